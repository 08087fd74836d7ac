"""Generated problems of arithmetic and reasoning, split into a training and an evaluation side.

Every problem is one line, ``prompt + " " + answer``. Which side it is on follows from its operands
alone (:func:`held_out`), so a problem of the evaluation side cannot occur in the training text,
whatever the seed.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass

__all__ = ["PROBLEMS", "Problem", "draw", "held_out"]

EVALUATION_SHARE = 8
"""One problem in this many is on the evaluation side."""

PEOPLE = (
    "Ann", "Ben", "Cid", "Dan", "Eve", "Fay", "Gus", "Ida", "Jim", "Kim", "Leo", "Mia",
    "Ned", "Ola", "Pam", "Ray", "Sam", "Tom", "Una", "Vic", "Wes", "Zoe",
)  # fmt: skip
COLOURS = ("red", "blue", "green", "white", "black", "pink", "gold")
THINGS = ("pens", "coins", "cards", "shells", "stamps", "beads", "books", "nuts")
COMPARISONS = (
    ("older", "younger", "oldest"),
    ("taller", "shorter", "tallest"),
    ("faster", "slower", "fastest"),
    ("richer", "poorer", "richest"),
)


@dataclass(frozen=True, slots=True)
class Problem:
    """One question of the corpus.

    Attributes:
        slice: the slice it counts in, such as ``math/products``.
        key: what the side is decided by; equal problems have equal keys.
        prompt: the question, without a trailing space.
        answer: the whole continuation, worked steps included.
        target: the final answer, which ``answer`` ends with.
        level: the difficulty: steps, people, swaps, operators; 0 for facts.
    """

    slice: str
    key: str
    prompt: str
    answer: str
    target: str
    level: int

    @property
    def line(self) -> str:
        """The problem as it stands in a text."""
        return f"{self.prompt} {self.answer}"


def digest(key: str) -> int:
    """A stable number in ``[0, 2**32)`` for ``key``."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=4).digest(), "big")


def held_out(key: str) -> bool:
    """Whether the problem with this key is on the evaluation side."""
    return digest(key) % EVALUATION_SHARE == 0


def products(rng: random.Random) -> Problem:
    """A three-digit by a two-digit or a three-digit number, by partial products."""
    a = rng.randint(101, 999)
    if rng.random() < 0.5:
        b = rng.randint(11, 99)
        tens, ones = a * (b // 10) * 10, a * (b % 10)
        steps, name, level = f"{tens} + {ones}", "short", 1
    else:
        b = rng.randint(101, 999)
        hundreds, tens, ones = a * (b // 100) * 100, a * (b // 10 % 10) * 10, a * (b % 10)
        steps = f"{hundreds} + {tens} + {ones} = {hundreds + tens} + {ones}"
        name, level = "long", 2
    target = str(a * b)
    answer = f"{steps} = {target}"
    key = f"{max(a, b)}*{min(a, b)}"
    return Problem(f"math/products/{name}", key, f"{a} * {b} =", answer, target, level)


def chains(rng: random.Random) -> Problem:
    """Two to seven operations one after the other, each intermediate value written down."""
    length = rng.randint(2, 7)
    value = rng.randint(11, 999)
    words, values = [f"Start {value}"], []
    for _ in range(length):
        choices = ["add"] + ["take"] * (value > 60) + ["times"] * (value < 1100)
        operation = rng.choice(choices)
        if operation == "add":
            operand = rng.randint(11, 999)
            value += operand
        elif operation == "take":
            operand = rng.randint(11, min(value - 1, 999))
            value -= operand
        else:
            operand = rng.randint(3, 9)
            value *= operand
        words.append(f"{operation} {operand}")
        values.append(str(value))
    prompt = ", ".join(words) + ":"
    return Problem("math/chains", prompt, prompt, ", ".join(values), values[-1], length)


def stories(rng: random.Random) -> Problem:
    """A story of three or four sentences that needs two or three operations."""
    who, other = rng.sample(PEOPLE, 2)
    thing = rng.choice(THINGS)
    start, boxes, size = rng.randint(21, 499), rng.randint(3, 9), rng.randint(12, 89)
    bought = boxes * size
    total = start + bought
    given = rng.randint(11, total - 11)
    left = total - given
    steps = f"{boxes} * {size} = {bought}, {start} + {bought} = {total}, {total} - {given} = {left}"
    kind = rng.randrange(4)
    text = f"{who} has {start} {thing}. "
    level = 3
    if kind == 0:
        text += f"{who} buys {boxes} boxes of {size} and gives {given} to {other}. "
        question = f"How many has {who}?"
    elif kind == 1:
        text += f"{other} gives {who} {boxes} bags of {size}. {who} loses {given}. "
        question = "How many are left?"
    elif kind == 2:
        text += f"{other} has {boxes} times {size}. They sell {given} together. "
        question = "How many remain?"
    else:
        share = rng.randint(2, 9)
        per = rng.randint(12, 199)
        rest = rng.randint(1, share * per - 1)
        text = f"{who} packs {share} boxes of {per} {thing}, but {rest} break. "
        question = f"How many {thing} are whole?"
        left = share * per - rest
        steps = f"{share} * {per} = {share * per}, {share * per} - {rest} = {left}"
        level = 2
    prompt = text + question
    return Problem("math/stories", prompt, prompt, steps, str(left), level)


def ordering(rng: random.Random) -> Problem:
    """Three to six people in a row, given as shuffled comparisons of neighbours."""
    size = rng.choices((3, 4, 5, 6), weights=(4, 4, 3, 2))[0]
    row = rng.sample(PEOPLE, size)
    more, less, most = rng.choice(COMPARISONS)
    pairs = list(itertools.pairwise(row))
    rng.shuffle(pairs)
    facts = [
        f"{a} is {more} than {b}." if rng.random() < 0.5 else f"{b} is {less} than {a}."
        for a, b in pairs
    ]
    prompt = " ".join(facts) + f" From the {most}:"
    answer = ", ".join(row)
    return Problem("reasoning/ordering", prompt, prompt, answer, answer, size)


def swaps(rng: random.Random) -> Problem:
    """Three to six boxes swap their balls in pairs; in which box does one colour end?

    The answer goes through the swaps: each pair, and the box that holds the colour after it.
    """
    boxes = "ABCDEF"[: rng.randint(3, 6)]
    colours = rng.sample(COLOURS, len(boxes))
    wanted = rng.choice(colours)
    place = boxes[colours.index(wanted)]
    pairs, track = [], [place]
    count = rng.randint(2, 9)
    for _ in range(count):
        a, b = rng.sample(boxes, 2)
        place = b if place == a else a if place == b else place
        pairs.append(f"{a}{b}")
        track.append(f"{a}{b} {place}")
    held = ", ".join(f"{box} {colour}" for box, colour in zip(boxes, colours, strict=True))
    prompt = f"Boxes: {held}. Swap {', '.join(pairs)}. Follow {wanted}:"
    return Problem("reasoning/swaps", prompt, prompt, ", ".join(track), place, count)


def expression(rng: random.Random, operators: int) -> tuple[str, bool]:
    """A boolean expression with that many operators, and its value."""
    if operators == 0:
        value = rng.random() < 0.5
        return ("True" if value else "False"), value
    if rng.random() < 0.3:
        text, value = expression(rng, operators - 1)
        return f"not {text}", not value
    left = rng.randint(0, operators - 1)
    a, x = expression(rng, left)
    b, y = expression(rng, operators - 1 - left)
    if rng.random() < 0.5:
        return f"({a} and {b})", x and y
    return f"({a} or {b})", x or y


def boolean(rng: random.Random) -> Problem:
    """A boolean expression of three to twelve operators."""
    operators = rng.randint(3, 12)
    text, value = expression(rng, operators)
    prompt = f"{text} is"
    return Problem("reasoning/boolean", prompt, prompt, str(value), str(value), operators)


PROBLEMS: dict[str, Callable[[random.Random], Problem]] = {
    "math/products": products,
    "math/chains": chains,
    "math/stories": stories,
    "reasoning/ordering": ordering,
    "reasoning/swaps": swaps,
    "reasoning/boolean": boolean,
}


def draw(slice_name: str, rng: random.Random, *, evaluation: bool) -> Problem:
    """A problem of a slice from the training or the evaluation side."""
    while True:
        problem = PROBLEMS[slice_name](rng)
        if held_out(problem.key) == evaluation:
            return problem
