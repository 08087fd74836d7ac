import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

from evalq.compare import load_run
from evalq.errors import PlanError
from evalq.report.charts import by_weight_bits, cliff_panels
from evalq.report.figures import FIGURES, STYLES, draw, save_figures
from evalq.report.frames import ReportData, collect
from evalq.report.palette import TIERS
from tests.synthetic import change_info, write_run


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> ReportData:
    path = write_run(tmp_path_factory.mktemp("runs") / "r", items=30)
    return collect(load_run(path), resamples=20)


@pytest.mark.parametrize("style", STYLES)
def test_every_format_of_a_style(data: ReportData, tmp_path: Path, style: str) -> None:
    made = save_figures(data, tmp_path, ("frontier", "fidelity"), style)
    suffix = "" if style == "paper" else f"-{style}"
    kinds = ("png", "svg", "pdf")
    assert [p.name for p in made] == [
        f"{n}{suffix}.{k}" for n in ("frontier", "fidelity") for k in kinds
    ]
    first = {p: p.read_bytes() for p in made}
    with Image.open(made[0]) as image:
        assert image.info["dpi"][0] == pytest.approx(200, abs=0.1)
        corner = image.convert("RGB").getpixel((2, 2))
    assert corner == ((23, 30, 37) if style == "dark" else (255, 255, 255))
    assert b"<svg" in first[made[1]]
    assert first[made[2]].startswith(b"%PDF-")
    assert save_figures(data, tmp_path, ("frontier", "fidelity"), style) == made
    assert {p: p.read_bytes() for p in made} == first


def _texts(drawing: object) -> list[str]:
    drawing.canvas.draw()  # type: ignore[attr-defined]
    from matplotlib.text import Text

    return [t.get_text() for t in drawing.findobj(Text) if t.get_visible()]  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", FIGURES)
def test_no_label_is_markup_of_mathematics(data: ReportData, name: str) -> None:
    found = _texts(draw(data, name))  # type: ignore[arg-type]
    assert not [t for t in found if "$" in t or "mathdefault" in t]


def test_tiers_have_the_reports_colours(data: ReportData, tmp_path: Path) -> None:
    for style, colour in (("paper", TIERS["4"].light), ("dark", TIERS["4"].dark)):
        made = save_figures(data, tmp_path, ("frontier",), style)
        assert colour in made[1].read_text()
        ElementTree.parse(made[1])


def test_an_unknown_style_is_refused(data: ReportData, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="styl") as caught:
        draw(data, "frontier", "drak")
    assert "dark" in caught.value.hint


def test_a_rounded_cache_is_no_loss_of_the_weights_bits(tmp_path: Path) -> None:
    names = ("rtn-w4-g128", "rtn-w3-g128")
    path = write_run(tmp_path / "r", variants=names, items=20)
    plan = json.loads((path / "run.json").read_text())["plan"]
    plan["variants"][1]["kv_bits"] = 2
    change_info(path, plan=plan)
    data = collect(load_run(path), resamples=20)
    assert [(b, c.variant) for b, c in by_weight_bits(data)["rtn"]] == [(4.0, "rtn-w4-g128")]
    plan["variants"][0]["kv_bits"] = 8
    change_info(path, plan=plan)
    data = collect(load_run(path), resamples=20)
    assert cliff_panels(data) == []
    assert draw(data, "cliff") is None
