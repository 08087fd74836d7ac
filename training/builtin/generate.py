"""Documents of the built-in corpus: the training text.

The text is fixed by the seed: shard ``i`` of seed ``s`` is the same on every machine.

    python -m training.builtin.generate --megabytes 1 --seed 1 > sample.txt
"""

from __future__ import annotations

import argparse
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from training.builtin.languages import SHARES, draw_fact
from training.builtin.problems import Problem, draw

__all__ = ["SEED", "TOPICS", "documents", "shard", "topic_drawer"]

SEED = 20260
"""Seed of the published training text."""

TOPICS: dict[str, float] = {
    "math/products": 16.0,
    "math/chains": 13.0,
    "math/stories": 8.0,
    "reasoning/ordering": 13.0,
    "reasoning/swaps": 10.0,
    "reasoning/boolean": 7.0,
    **{f"multilingual/{code}": 0.33 * share for code, share in SHARES.items()},
}
"""Percent of the bytes of the text: math 37, reasoning 30, multilingual 33."""

LINES = 8
"""A document has one to this many lines."""

MIXED = 0.3
"""Share of documents whose lines are drawn from all topics, not from one."""

Drawer = Callable[[random.Random], Problem]


@dataclass(frozen=True, slots=True)
class Mixture:
    """Topics with the weight, in lines, that gives each its share of the bytes."""

    names: tuple[str, ...]
    cumulative: tuple[float, ...]


def topic_drawer(topic: str) -> Drawer:
    """The function that draws one training problem of a topic."""
    if topic.startswith("multilingual/"):
        return partial(draw_fact, topic.split("/")[1])
    return partial(draw, topic, evaluation=False)


def mixture() -> Mixture:
    """Weights by lines: the share of bytes over the mean length of the topic's lines."""
    total, cumulative = 0.0, []
    for topic, share in TOPICS.items():
        rng, drawer = random.Random(7), topic_drawer(topic)
        mean = sum(len(drawer(rng).line.encode()) + 1 for _ in range(400)) / 400
        total += share / mean
        cumulative.append(total)
    return Mixture(tuple(TOPICS), tuple(cumulative))


def documents(seed: str) -> Iterator[list[Problem]]:
    """Endless documents of the training side, as lists of problems."""
    rng = random.Random(seed)
    mix = mixture()
    drawers = {topic: topic_drawer(topic) for topic in mix.names}
    while True:
        lines = rng.randint(1, LINES)
        if rng.random() < MIXED:
            topics = rng.choices(mix.names, cum_weights=mix.cumulative, k=lines)
        else:
            topics = rng.choices(mix.names, cum_weights=mix.cumulative, k=1) * lines
        yield [drawers[topic](rng) for topic in topics]


def shard(seed: int, index: int, size: int) -> list[str]:
    """The documents of one shard of the training text, at least ``size`` bytes together."""
    texts: list[str] = []
    length = 0
    source = documents(f"train/{seed}/{index}")
    while length < size:
        text = "".join(problem.line + "\n" for problem in next(source))
        texts.append(text)
        length += len(text.encode()) + 1
    return texts


def main() -> None:
    """Print a sample of the training text."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=SEED)
    parser.add_argument("--shard", type=int, default=0)
    options = parser.parse_args()
    for text in shard(options.seed, options.shard, int(options.megabytes * 1e6)):
        sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
