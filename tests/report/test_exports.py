import json
from pathlib import Path

import pytest
import yaml

from evalq.compare import load_run
from evalq.report.exports import lm_eval_results, model_card, write_exports
from evalq.report.frames import ReportData, collect
from tests.synthetic import write_run

V = "rtn-w8-g128"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ReportData:
    path = write_run(tmp_path_factory.mktemp("runs") / "r", variants=(V,), items=20)
    return collect(load_run(path), resamples=20)


def test_lm_evals_layout_has_the_means_of_the_items(data: ReportData) -> None:
    found = lm_eval_results(data, V)
    items = data.run.items
    mine = items[items["variant"] == V].groupby("task", observed=True)["score"]
    for task, mean in mine.mean().items():
        assert found["results"][task]["exact_match,none"] == pytest.approx(mean)
        assert found["results"][task]["exact_match_stderr,none"] == pytest.approx(mine.sem()[task])
    assert found["n-samples"]["t_math_products"]["effective"] == 20


def test_the_model_cards_metadata_is_yaml(data: ReportData) -> None:
    _, head, body = model_card(data, V).split("---\n", 2)
    index = yaml.safe_load(head)["model-index"][0]
    assert index["name"] == V
    assert len(index["results"]) == 9
    assert "| variant |" in body


def test_exports_are_written(data: ReportData, tmp_path: Path) -> None:
    write_exports(data, tmp_path)
    names = [json.loads(p.read_text())["model_name"] for p in sorted(tmp_path.glob("lm_eval/*"))]
    assert names == ["parent", V]
    assert (tmp_path / "model_card.md").is_file()
