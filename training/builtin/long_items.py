"""Write the items of the suite ``builtin-long``: questions behind a context full of solved lines.

The built-in parent sees 1,024 bytes and was trained on lines that stand for themselves: it cannot
find a fact that stands earlier in its context (of 48 invented ones it gives back none). What it can
do at length is answer its own problems behind a context of others, and continue a long text. Lines
of the context come from the training side, questions and text from the evaluation side.

    python -m training.builtin.long_items
"""

from __future__ import annotations

import json
import random

from training.builtin.generate import SEED, topic_drawer
from training.builtin.items import ITEMS, write_lines
from training.builtin.problems import Problem, draw

CONTEXT = 820
"""Bytes of solved lines before a question; with question and answer below the parent's 1,024."""

TEXT = 1000
"""Bytes of a text that is continued."""

COUNT = 100
"""Items a topic."""

TOPICS = {
    "chains": ("math/chains", 5),
    "products": ("math/products", 1),
    "ordering": ("reasoning/ordering", 5),
    "swaps": ("reasoning/swaps", 6),
}
"""Topic and least level of the questions by the stem of their file."""


def context(topic: str, rng: random.Random) -> str:
    """Solved lines of the training side, as many as fit."""
    drawer, text = topic_drawer(topic), ""
    while True:
        line = drawer(rng).line + "\n"
        if len((text + line).encode()) > CONTEXT:
            return text
        text += line


def questions(topic: str, level: int, rng: random.Random) -> list[Problem]:
    """Different problems of the evaluation side that no other suite asks."""
    known = {
        json.loads(line)["prompt"]
        for path in ITEMS.glob("**/*.jsonl")
        if path.parent.name != "long"
        for line in path.read_text(encoding="utf-8").split("\n")
        if line and "prompt" in json.loads(line)
    }
    chosen: dict[str, Problem] = {}
    while len(chosen) < COUNT:
        problem = draw(topic, rng, evaluation=True)
        if problem.level >= level and problem.prompt not in known:
            chosen.setdefault(problem.key, problem)
    return list(chosen.values())


def main() -> None:
    """Write all files and say how much is in them."""
    for stem, (topic, level) in TOPICS.items():
        rng = random.Random(f"long/{topic}/{SEED}")
        rows = [
            {"id": f"long-{stem}-{i}", "prompt": context(topic, rng) + p.prompt, "target": p.target}
            for i, p in enumerate(questions(topic, level, rng))
        ]
        print(stem, write_lines(ITEMS / "long" / f"{stem}.jsonl", rows))
    texts = []
    for index in range(COUNT):
        topic = list(TOPICS.values())[index % len(TOPICS)][0]
        rng, text = random.Random(f"long/text/{index}/{SEED}"), ""
        while len(text.encode()) < TEXT - 160:
            text += draw(topic, rng, evaluation=True).line + "\n"
        texts.append({"text": text, "document": f"long/{topic}/{index}"})
    print("text", write_lines(ITEMS / "long" / "text.jsonl", texts))


if __name__ == "__main__":
    main()
