"""Memory, users, prices and bits by layer on the page and in the tables."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from evalq.compare import load_run
from evalq.errors import PlanError
from evalq.frontier import frontier
from evalq.plan import parse_plan
from evalq.report.capacity import DEVICES, Capacity, capacity
from evalq.report.frames import collect
from evalq.report.layers import bits_chart, mixed_layers, sensitivity_chart
from evalq.report.render import render
from evalq.report.tables import tables
from evalq.store.layers import layer_record
from tests.synthetic import change_info, write_run

V = "rtn-w4-g128"
LLAMA = {
    "model_type": "llama",
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_size": 4096,
    "max_position_embeddings": 8192,
}
PARAMETERS = 2_200_000


def _run(path: Path, config: dict[str, Any] | None = None, execution: str = "") -> Path:
    write_run(path, variants=(V,), items=20)
    info = json.loads((path / "run.json").read_text())
    change_info(path, parent={**info["parent"], **({"config": config} if config else {})})
    if execution:
        costs = pd.read_parquet(path / "costs.parquet")
        costs.loc[costs["variant"] == V, "execution"] = execution
        costs.to_parquet(path / "costs.parquet", index=False)
    return path


def _capacity(path: Path) -> Capacity:
    found = capacity(collect(load_run(path), resamples=20))
    assert isinstance(found, Capacity)
    return found


def test_memory_is_weights_and_cache(tmp_path: Path) -> None:
    found = _capacity(_run(tmp_path / "r", LLAMA))
    assert found.contexts == (1024, 4096, 8192)
    assert found.at == 8192
    # Llama-3-8B: 128 KiB a token, so 1 GiB at 8192.
    assert found.memory["parent"][2] - found.weights["parent"] == 2**30
    users = (0.9 * DEVICES["80 GB"] - found.weights[V]) // 2**30
    assert found.users[V][list(DEVICES).index("80 GB")] == users == 67


def test_a_measured_peak_stands_beside_its_model(tmp_path: Path) -> None:
    found = _capacity(_run(tmp_path / "r", LLAMA, "packed:native"))
    cache = 129 * 2 * 128 * 1024  # 128 tokens and one more, at four bytes a number
    assert found.peaks["parent"].modelled == PARAMETERS * 4 + cache
    assert found.peaks[V].modelled == found.weights[V] + cache
    assert found.peaks[V].measured == 30_000_000
    assert found.peaks[V].tokens == 129


def test_a_quantized_cache_counts_its_bits(tmp_path: Path) -> None:
    path = _run(tmp_path / "r", LLAMA)
    info = json.loads((path / "run.json").read_text())
    info["plan"]["variants"][0]["kv_bits"] = 8
    change_info(path, plan=info["plan"])
    found = _capacity(path)
    # 8 bits and 32 of scale a group of 32; the last 128 of 8192 tokens stay in 16 bits.
    bits = (128 * 16 + (8192 - 128) * 9) / 8192
    assert found.memory[V][2] - found.weights[V] == pytest.approx(2**30 * bits / 16, abs=1)
    assert any("scales" in n for n in found.notes)


def test_a_run_that_holds_no_configuration_says_so(tmp_path: Path) -> None:
    found = capacity(collect(load_run(_run(tmp_path / "r")), resamples=20))
    assert found == "the run does not hold the parent's configuration"


def test_a_price_is_the_speed_turned_round(tmp_path: Path) -> None:
    path = _run(tmp_path / "r", LLAMA, "packed:native")
    data = collect(load_run(path), resamples=50, price_per_hour=3.6)
    assert set(data.frontiers) == {"bytes", "decode", "prefill", "price"}
    speeds = {p.variant: p for p in frontier(load_run(path), "decode", 50).points}
    for point in data.frontiers["price"].points:
        assert point.cost == pytest.approx(1000 / speeds[point.variant].cost)
        assert point.probability == speeds[point.variant].probability
    costs = tables(data)["costs"].set_index("variant")
    assert costs.loc[V, "dollars_per_million_tokens"] == pytest.approx(1000 / speeds[V].cost)
    with pytest.raises(PlanError, match="price per hour"):
        collect(load_run(path), resamples=20, price_per_hour=0.0)


def test_no_price_is_made_of_a_dequantized_speed(tmp_path: Path) -> None:
    data = collect(load_run(_run(tmp_path / "r")), resamples=20, price_per_hour=2.0)
    assert [p.variant for p in data.frontiers["price"].points] == ["parent"]
    assert "dequantized" in data.frontiers["price"].left_out[V]


def test_a_price_is_no_part_of_what_is_measured() -> None:
    plain, priced = (
        parse_plan({"cost": {"repeats": 2, **more}}) for more in ({}, {"price_per_hour": 2.0})
    )
    assert plain.hash == priced.hash != parse_plan({"cost": {"repeats": 4}}).hash
    with pytest.raises(PlanError, match="price_per_hour"):
        parse_plan({"cost": {"price_per_hour": 0}})


KINDS = ("self_attn.q_proj", "mlp.down_proj")


def _manifest() -> dict[str, Any]:
    names = [f"model.layers.{b}.{k}" for b in range(3) for k in KINDS] + ["lm<script>"]
    layers = [
        {"name": n, "bits": 4 if i % 2 else 8, "method": "gptq", "weight_error": 0.1,
         "output_error": 0.01 * (i + 1)}
        for i, n in enumerate(names)
    ]  # fmt: skip
    sensitivity = {n: {"2": 0.5 * (i + 1), "4": 0.1, "bad": "x"} for i, n in enumerate(names)}
    return {"layers": layers, "sensitivity": sensitivity}


def test_only_mixed_bits_are_recorded() -> None:
    record = layer_record(_manifest())
    assert [x["bits"] for x in record["layers"]] == [8, 4, 8, 4, 8, 4, 8]
    assert record["sensitivity"]["model.layers.1.self_attn.q_proj"] == {"2": 1.5, "4": 0.1}
    assert layer_record(record) == record
    for other in ({}, {"layers": "x"}, {"layers": [{"name": "a", "bits": 4}, {"name": "b"}]}):
        assert layer_record(other) == {}


def test_bits_by_layer_are_shown(tmp_path: Path) -> None:
    path = _run(tmp_path / "r", LLAMA)
    info = json.loads((path / "run.json").read_text())
    info["variants"][1] |= {**layer_record(_manifest()), "bits": 4.5}
    change_info(path, variants=info["variants"])
    (found,) = mixed_layers(load_run(path)).items()
    assert found[0] == V
    chart = str(bits_chart(V, found[1], 1120.0))
    assert chart.count("<rect") == 7
    assert chart.count('class="pt layer tier-8"') == 4
    shades = str(sensitivity_chart(V, found[1], 1120.0))
    assert "at 2 bits, 0.5 to 3.5" in shades
    text = render(path, (), price_per_hour=2.0).read_text()
    assert f"Bits by layer: {V}" in text
    assert "lm<script>" not in text
    assert "sensitivity at 2 bits" in text
    assert "$2 an hour" in text
    assert "Users a device, each with 8 K tokens" in text
    table = pd.read_csv(path / "report" / "tables" / "layers.csv")
    assert table["sensitivity_2"].tolist() == [0.5 * (i + 1) for i in range(7)]
    memory = pd.read_csv(path / "report" / "tables" / "memory.csv")
    assert set(memory["source"]) == {"modelled"}
