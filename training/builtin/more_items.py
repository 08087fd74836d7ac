"""Write what a rescue needs beside the evaluation: training splits and fresh held-out items.

Training items are drawn as the training text was; held-out items come from the evaluation side,
share no problem with the suites' own items, and are asked in no other suite.

    python -m training.builtin.more_items
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from training.builtin.generate import SEED
from training.builtin.items import ITEMS, suite_problems, write_lines
from training.builtin.problems import Problem, draw

TRAINING = 400
HELDOUT = 300

TOPICS: dict[str, tuple[str, Callable[[Problem], bool]]] = {
    "products-short": ("math/products", lambda p: p.level == 1),
    "products-long": ("math/products", lambda p: p.level == 2),
    "chains": ("math/chains", lambda p: 4 <= p.level <= 7),
    "stories": ("math/stories", lambda p: True),
    "ordering": ("reasoning/ordering", lambda p: p.level >= 4),
    "swaps": ("reasoning/swaps", lambda p: p.level <= 6),
}
"""Topic and levels of each file, as in the suites. Truth values are too few to draw fresh ones."""


def drawn(stem: str, purpose: str, count: int, evaluation: bool, avoid: set[str]) -> list[Problem]:
    """``count`` different problems of a file's levels that are not in ``avoid``."""
    topic, wanted = TOPICS[stem]
    rng = random.Random(f"{purpose}/{stem}/{SEED}")
    found: dict[str, Problem] = {}
    while len(found) < count:
        problem = draw(topic, rng, evaluation=evaluation)
        if wanted(problem) and problem.key not in avoid:
            found[problem.key] = problem
    return list(found.values())


def row(stem: str, purpose: str, index: int, problem: Problem) -> dict[str, Any]:
    """One item as a JSON line."""
    # Training items show the worked steps, as the training text does; held-out ones are scored.
    worked = problem.line.removeprefix(problem.prompt).strip()
    return {
        "id": f"{stem}-{purpose}-{index}",
        "prompt": problem.prompt,
        "target": worked if purpose == "train" else problem.target,
        "level": problem.level,
    }


def main() -> None:
    """Write all files and say how much is in them."""
    suites = suite_problems()
    for stem in TOPICS:
        asked = {p.key for p in suites[stem]}
        heldout = drawn(stem, "heldout", HELDOUT, True, asked)
        training = drawn(stem, "train", TRAINING, False, asked | {p.key for p in heldout})
        for purpose, problems in (("heldout", heldout), ("train", training)):
            rows = [row(stem, purpose, i, p) for i, p in enumerate(problems)]
            print(stem, purpose, write_lines(ITEMS / purpose / f"{stem}.jsonl", rows))


if __name__ == "__main__":
    main()
