"""Nothing that is evaluated is in the training text."""

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from training.builtin import items as builder
from training.builtin.generate import SEED, TOPICS, shard, topic_drawer
from training.builtin.languages import SHARES, draw_fact, evaluation_facts, facts_of, name_of
from training.builtin.problems import EVALUATION_SHARE, PROBLEMS, draw, held_out

ROOT = Path(__file__).resolve().parents[2]
ITEMS = ROOT / "suites" / "builtin" / "items"
ASSETS = ROOT / "evalq" / "assets" / "builtin"
SAMPLE = 3_000_000
"""Bytes of training text that are generated anew: shards 0 and 63 of the published 64."""


def rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def suite_items() -> Iterator[tuple[str, dict[str, object]]]:
    for path in sorted(ITEMS.glob("*.jsonl")):
        if path.stem != "text":
            for row in rows(path):
                yield path.stem, row


@pytest.fixture(scope="module")
def training_lines() -> set[str]:
    texts = [text for index in (0, 63) for text in shard(SEED, index, SAMPLE // 2)]
    return {line for text in texts for line in text.split("\n") if line}


@pytest.fixture(scope="module")
def heldout_lines() -> list[str]:
    return [
        line
        for row in rows(ASSETS / "heldout.jsonl")
        for line in str(row["text"]).split("\n")
        if line
    ]


def key_of(prompt: str) -> str:
    """The key of a generated problem, told from its prompt alone."""
    product = re.fullmatch(r"(\d+) \* (\d+) =", prompt)
    if product:
        a, b = sorted(map(int, product.groups()), reverse=True)
        return f"{a}*{b}"
    return prompt


def test_the_files_are_what_the_generator_makes() -> None:
    made = builder.suite_problems()
    assert set(made) == {p.stem for p in ITEMS.glob("*.jsonl")} - {"text"}
    for stem, problems in made.items():
        stored = [(row["prompt"], row["target"]) for row in rows(ITEMS / f"{stem}.jsonl")]
        assert stored == [(p.prompt, p.target) for p in problems]
    assert (ASSETS / "calibration.txt").read_text(encoding="utf-8") == builder.calibration_text()


def test_every_generated_item_is_on_the_evaluation_side_by_its_key() -> None:
    generated = [(s, r) for s, r in suite_items() if not s.startswith("multilingual")]
    assert len(generated) == 637
    for _, row in generated:
        assert held_out(key_of(str(row["prompt"])))


@pytest.mark.parametrize("topic", sorted(PROBLEMS))
def test_the_training_side_never_draws_an_evaluation_problem(topic: str) -> None:
    rng, drawer = random.Random(5), topic_drawer(topic)
    drawn = [drawer(rng) for _ in range(3000)]
    assert not any(held_out(p.key) for p in drawn)
    assert all(held_out(key_of(p.prompt)) == held_out(p.key) for p in drawn)
    other = [draw(topic, rng, evaluation=True) for _ in range(300)]
    assert all(held_out(p.key) for p in other)


@pytest.mark.parametrize("language", sorted(SHARES))
def test_a_held_fact_is_trained_on_in_its_other_forms_only(language: str) -> None:
    rng = random.Random(6)
    asked = {draw_fact(language, rng).prompt for _ in range(40_000)}
    questions = {problem.prompt for problem in evaluation_facts(language)}
    assert len(questions) > 100
    assert not asked & questions
    held = [fact for group in facts_of(language) for fact in group if fact.held]
    other = [
        any(fact.ask(f, name_of(language)).prompt in asked for f in fact.forms if f != fact.held)
        for fact in held
    ]
    assert sum(other) / len(other) > 0.98


def test_items_are_not_in_regenerated_training_text(training_lines: set[str]) -> None:
    assert sum(len(line.encode()) for line in training_lines) > SAMPLE / 2
    prompts = {str(row["prompt"]) for _, row in suite_items()}
    assert len(prompts) == 637 + 9 * 40
    for line in training_lines:
        ends = [m.end() for m in re.finditer(r"[:=?]|\bis\b", line)]
        assert not any(line[:end] in prompts for end in ends), line


def test_every_prompt_ends_where_the_last_test_cuts() -> None:
    for _, row in suite_items():
        assert re.search(r"([:=?]|\bis)$", str(row["prompt"]))


def test_heldout_text_is_not_in_regenerated_training_text(
    training_lines: set[str], heldout_lines: list[str]
) -> None:
    assert len(heldout_lines) > 1000
    assert not training_lines & set(heldout_lines)


def test_calibration_text_shares_no_line_with_items_or_heldout(heldout_lines: list[str]) -> None:
    text = (ASSETS / "calibration.txt").read_text(encoding="utf-8")
    assert len(text.encode()) >= 150_000
    lines = set(text.split("\n")) - {""}
    assert not lines & set(heldout_lines)
    prompts = {str(row["prompt"]) for _, row in suite_items()}
    assert not any(line.startswith(tuple(prompts)) for line in lines)


def test_heldout_documents_share_no_generated_problem_with_the_suites(
    heldout_lines: list[str],
) -> None:
    prompts = {str(r["prompt"]) for s, r in suite_items() if not s.startswith("multilingual")}
    assert not any(line.startswith(tuple(prompts)) for line in heldout_lines)
    documents = rows(ASSETS / "heldout.jsonl")
    assert len(documents) >= 150
    assert len({row["document"] for row in documents}) == len(documents)
    assert sum(len(str(row["text"]).encode()) for row in documents) >= 60_000


def test_the_share_of_the_evaluation_side() -> None:
    side = [held_out(str(i)) for i in range(20_000)]
    assert sum(side) / len(side) == pytest.approx(1 / EVALUATION_SHARE, rel=0.05)


def test_shards_depend_on_seed_and_index_alone() -> None:
    assert shard(SEED, 3, 20_000) == shard(SEED, 3, 20_000)
    assert shard(SEED, 3, 20_000) != shard(SEED, 4, 20_000)
    assert shard(SEED, 3, 20_000) != shard(SEED + 1, 3, 20_000)


def test_languages_have_their_shares_of_the_bytes() -> None:
    assert sum(TOPICS.values()) == pytest.approx(100)
    multilingual = sum(v for k, v in TOPICS.items() if k.startswith("multilingual/"))
    assert TOPICS["multilingual/en"] / multilingual == pytest.approx(1 / 3, abs=0.01)
    for low in ("sw", "te", "am", "yo"):
        assert TOPICS[f"multilingual/{low}"] / multilingual < 0.01
