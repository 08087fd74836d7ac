"""The generated answers are right, by arithmetic and evaluation of Python's own."""

import random
import re

import pytest

from training.builtin.facts import LANGUAGES, number_words
from training.builtin.languages import facts_of
from training.builtin.problems import PROBLEMS, Problem


def many(topic: str, count: int = 500) -> list[Problem]:
    rng = random.Random(f"test/{topic}")
    return [PROBLEMS[topic](rng) for _ in range(count)]


@pytest.mark.parametrize("topic", ["math/products", "math/stories"])
def test_every_equation_of_the_steps_holds(topic: str) -> None:
    for problem in many(topic):
        text = problem.line if topic == "math/products" else problem.answer
        for equation in text.split(", "):
            sides = [eval(side, {"__builtins__": {}}) for side in equation.split("=")]
            assert len(set(sides)) == 1
        assert problem.answer.endswith(problem.target)


def test_products_end_with_the_product() -> None:
    for problem in many("math/products"):
        a, b = map(int, re.findall(r"\d+", problem.prompt))
        assert int(problem.target) == a * b
        assert len(str(a)) == 3
        assert problem.slice == ("math/products/short" if b < 100 else "math/products/long")


def test_chains_follow_their_operations() -> None:
    for problem in many("math/chains"):
        start, *operations = problem.prompt.removesuffix(":").split(", ")
        value, values = int(start.split()[1]), []
        for operation in operations:
            verb, operand = operation.split()
            value = {
                "add": value + int(operand),
                "take": value - int(operand),
                "times": value * int(operand),
            }[verb]
            assert value >= 0
            values.append(str(value))
        assert problem.answer == ", ".join(values)
        assert problem.target == values[-1]
        assert problem.level == len(operations)


def test_stories_count_what_is_told() -> None:
    for problem in many("math/stories"):
        n = list(map(int, re.findall(r"\d+", problem.prompt)))
        expected = n[0] * n[1] - n[2] if problem.level == 2 else n[0] + n[1] * n[2] - n[3]
        assert int(problem.target) == expected > 0


def test_orderings_satisfy_every_comparison() -> None:
    for problem in many("reasoning/ordering"):
        row = problem.target.split(", ")
        facts = re.findall(r"(\w+) is (\w+) than (\w+)\.", problem.prompt)
        assert len(facts) == len(row) - 1 == problem.level - 1
        most = problem.prompt.rsplit(" ", 1)[1].removesuffix(":")
        for a, relation, b in facts:
            first = relation[:4] == most[:4]
            assert (
                (row.index(a) + 1 == row.index(b)) if first else (row.index(b) + 1 == row.index(a))
            )


def test_swaps_end_where_the_ball_is() -> None:
    for problem in many("reasoning/swaps"):
        boxes = dict(re.findall(r"([A-F]) ([a-z]+)", problem.prompt.split(".")[0]))
        pairs = re.findall(r"[A-F]{2}", problem.prompt.split("Swap")[1])
        wanted = re.search(r"Follow (\w+):", problem.prompt).group(1)  # type: ignore[union-attr]
        for a, b in pairs:
            boxes[a], boxes[b] = boxes[b], boxes[a]
        assert boxes[problem.target] == wanted
        assert problem.answer.endswith(problem.target)
        assert len(pairs) == problem.level


def test_boolean_values_are_pythons() -> None:
    values = set()
    for problem in many("reasoning/boolean"):
        text = problem.prompt.removesuffix(" is")
        assert str(eval(text, {"__builtins__": {}})) == problem.target
        assert len(re.findall(r"and|or|not", text)) == problem.level
        values.add(problem.target)
    assert values == {"True", "False"}


@pytest.mark.parametrize("language", LANGUAGES)
def test_facts_are_those_of_their_sources(language: str) -> None:
    babel = pytest.importorskip("babel")
    pytest.importorskip("num2words")
    numbers, names = facts_of(language)
    if numbers:
        sample = [int(fact.known) for fact in numbers[::97]]
        words = number_words(language, sample)
        assert [words[f.known] for f in numbers[::97]] == [f.word for f in numbers[::97]]
    locale, english = babel.Locale.parse(language), babel.Locale.parse("en")
    territories = {" ".join(name.split()) for name in locale.territories.values()}
    countries = [fact for fact in names if fact.kind == "country"]
    assert len(countries) > 200
    assert sum(fact.word in territories for fact in countries) / len(countries) > 0.95
    if language != "en":
        assert {f.known for f in countries} <= set(english.territories.values())
