from pathlib import Path

import numpy as np
import pytest
import statsmodels.api as sm

from evalq.compare import fidelity_result, kl_by_slice, load_run
from tests.synthetic import write_run

V = "gptq-w4-g128"


def test_fidelity_is_the_mean_with_statsmodels_clustered_interval(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path / "r", variants=(V,), items=2))
    found = fidelity_result(run, V)
    assert found is not None
    frame = run.fidelity[run.fidelity["variant"] == V]
    kl = frame["kl"].to_numpy()
    groups = frame["document"].cat.codes.to_numpy()
    fit = sm.OLS(kl, np.ones(len(kl))).fit(
        cov_type="cluster",
        cov_kwds={"groups": groups, "df_correction": True, "use_correction": True},
        use_t=True,
    )
    low, high = fit.conf_int(alpha=0.10)[0]
    assert found.kl_mean == pytest.approx(kl.mean())
    # statsmodels' small-sample factor also has (n - 1) / (n - k), which is 1 for a mean.
    assert found.kl_ci == pytest.approx((low, high), rel=1e-6)
    assert found.kl_p99 == pytest.approx(np.quantile(kl, 0.99))
    difference = frame["nll_variant"] - frame["nll_parent"]
    assert found.ppl_ratio == pytest.approx(np.exp(difference.mean()))
    assert found.ppl_ratio_ci is not None
    assert found.ppl_ratio_ci[0] < found.ppl_ratio < found.ppl_ratio_ci[1]
    assert found.top1_agreement == pytest.approx(frame["top1"].mean())
    assert (found.tokens, found.documents) == (768, 24)


def test_what_was_not_measured_is_none(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path / "r", variants=(V,), items=2))
    assert fidelity_result(run, "parent") is None
    assert fidelity_result(run, run.control) is not None


def test_kl_by_slice_has_the_control_first(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path / "r", variants=(V,), items=2))
    table = kl_by_slice(run)
    assert list(table.columns) == [run.control, V]
    assert list(table.index) == ["multilingual/sw", "prose"]
