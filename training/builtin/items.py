"""Write what the evaluation reads: suite items, held-out text and calibration text.

Items and held-out text come from the evaluation side, calibration text from the training side
with a seed that the training text does not use.

    python -m training.builtin.items
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from training.builtin.generate import SEED, documents
from training.builtin.languages import evaluation_facts
from training.builtin.problems import Problem, draw

ROOT = Path(__file__).resolve().parents[2]
ITEMS = ROOT / "suites" / "builtin" / "items"
ASSETS = ROOT / "evalq" / "assets" / "builtin"

EVALUATED = ("en", "de", "ru", "ja", "th", "te", "sw", "am", "yo")
"""Languages with a slice of their own."""

FORMS = {"to_words": 12, "to_digits": 8, "ask_english": 11, "ask_name": 9}
"""Items of each form of question a language; without number words 20 of each name form."""

LONGEST = 64
"""Longest answer of a language item in bytes: it bounds the evaluation's cost."""

CALIBRATION_BYTES = 200_000
HELDOUT_BYTES = 340
"""Of one held-out document, about."""
HELDOUT_DOCUMENTS = {
    "math/products": 18, "math/chains": 18, "math/stories": 18,
    **{f"multilingual/{code}": 10 for code in EVALUATED},
    "reasoning/ordering": 14, "reasoning/swaps": 14, "reasoning/boolean": 14,
}  # fmt: skip


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Write JSON lines; the number of lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return len(lines)


def generated(
    topic: str, count: int, wanted: Callable[[Problem], bool], per_level: int
) -> list[Problem]:
    """``count`` different problems of the evaluation side, at most ``per_level`` a level."""
    rng = random.Random(f"items/{topic}/{SEED}")
    chosen: dict[str, Problem] = {}
    levels: dict[int, int] = defaultdict(int)
    while len(chosen) < count:
        problem = draw(topic, rng, evaluation=True)
        if wanted(problem) and problem.key not in chosen and levels[problem.level] < per_level:
            chosen[problem.key] = problem
            levels[problem.level] += 1
    return list(chosen.values())


def language_items(language: str) -> list[Problem]:
    """The items of a language: held-out facts, in the form of question that is held out."""
    rng = random.Random(f"items/{language}/{SEED}")
    by_form: dict[str, list[Problem]] = defaultdict(list)
    for problem in evaluation_facts(language):
        if len(problem.answer.encode()) <= LONGEST:
            by_form[problem.key.split("/")[-1]].append(problem)
    forms = FORMS if by_form["to_words"] else {"ask_english": 20, "ask_name": 20}
    return [p for form, count in forms.items() for p in rng.sample(by_form[form], count)]


def suite_problems() -> dict[str, list[Problem]]:
    """All problems of the suites by the stem of their file."""
    everything = {
        "products-short": generated("math/products", 60, lambda p: p.level == 1, 60),
        "products-long": generated("math/products", 60, lambda p: p.level == 2, 60),
        "chains": generated("math/chains", 112, lambda p: 4 <= p.level <= 7, 28),
        "stories": generated("math/stories", 90, lambda p: True, 60),
        "ordering": generated("reasoning/ordering", 105, lambda p: p.level >= 4, 35),
        "swaps": generated("reasoning/swaps", 100, lambda p: p.level <= 6, 20),
        "boolean": generated("reasoning/boolean", 110, lambda p: True, 11),
    }
    for language in EVALUATED:
        everything[f"multilingual-{language}"] = language_items(language)
    return everything


def heldout_documents(avoid: set[str]) -> list[dict[str, str]]:
    """Held-out documents that share no problem with ``avoid`` (keys) or with one another.

    Facts are few, so documents of languages may hold questions that the suites ask too.
    """
    rng = random.Random(f"heldout/{SEED}")
    rows = []
    seen = set(avoid)
    for topic, count in HELDOUT_DOCUMENTS.items():
        facts: list[Problem] | None = None
        if topic.startswith("multilingual/"):
            facts = evaluation_facts(topic.split("/")[1])
            rng.shuffle(facts)
        for index in range(count):
            text = ""
            while len(text.encode()) < HELDOUT_BYTES:
                problem = draw(topic, rng, evaluation=True) if facts is None else facts.pop()
                if facts is None and problem.key in seen:
                    continue
                seen.add(problem.key)
                text += problem.line + "\n"
            rows.append({"text": text, "document": f"{topic}/{index}", "slice": topic})
    return rows


def calibration_text() -> str:
    """Documents of the training side, line after line: a text file has no END between them."""
    texts: list[str] = []
    length = 0
    source = documents(f"calibration/{SEED}")
    while length < CALIBRATION_BYTES:
        texts.append("".join(problem.line + "\n" for problem in next(source)))
        length += len(texts[-1].encode())
    return "".join(texts)


def main() -> None:
    """Write all files and say how much is in them."""
    keys: set[str] = set()
    for stem, problems in suite_problems().items():
        keys |= {p.key for p in problems}
        rows = []
        for index, p in enumerate(problems):
            row: dict[str, Any] = {"id": f"{stem}-{index}", "prompt": p.prompt, "target": p.target}
            if stem == "boolean":
                row |= {"choices": ["False", "True"], "label": int(p.target == "True")}
            rows.append(row | ({"level": p.level} if p.level else {"form": p.key.split("/")[-1]}))
        print(stem, write_lines(ITEMS / f"{stem}.jsonl", rows))
    heldout = heldout_documents(keys)
    write_lines(ASSETS / "heldout.jsonl", heldout)
    print("heldout", len(heldout), sum(len(row["text"].encode()) for row in heldout))
    text = calibration_text()
    (ASSETS / "calibration.txt").write_text(text, encoding="utf-8")
    print("calibration", len(text.encode()))
    picked = heldout[::5]
    print("text", write_lines(ITEMS / "text.jsonl", picked))


if __name__ == "__main__":
    main()
