"""Questions on number words and names in fifteen languages, from ``facts.json``.

A fact has several forms of question. For a held-out fact one form is never in the training text;
the fact is there in the other forms, so that it can be known, and the held-out form is there for
other facts, so that the question can be understood.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import dataclass
from functools import cache
from typing import Any

from training.builtin.facts import FACTS
from training.builtin.problems import Problem, digest

__all__ = ["SHARES", "Fact", "draw_fact", "evaluation_facts", "facts_of"]

SHARES = {
    "en": 33.0, "de": 13.0, "fr": 10.0, "es": 9.0, "it": 7.0, "ru": 7.0, "tr": 5.0, "ja": 5.0,
    "ar": 4.0, "th": 2.0, "bn": 1.2, "te": 0.95, "sw": 0.95, "am": 0.95, "yo": 0.95,
}  # fmt: skip
"""Percent of the multilingual text."""

NUMBER_FORMS = ("to_words", "to_digits")
NAME_FORMS = ("ask_name", "tell_name", "ask_english", "tell_english")
ALWAYS_WHOLE = 100
"""Numbers below this are in the training text in both directions: the rest is made of them."""


@dataclass(frozen=True, slots=True)
class Fact:
    """One fact of one language.

    Attributes:
        language: ISO 639-1 code.
        kind: "number", "country" or "language".
        known: the digits, the English name, or for English the CLDR code.
        word: the words or the name in the language.
        held: the form that is never trained on, or "".
    """

    language: str
    kind: str
    known: str
    word: str
    held: str

    @property
    def forms(self) -> tuple[str, ...]:
        """All forms of question of this kind of fact."""
        return NUMBER_FORMS if self.kind == "number" else NAME_FORMS

    def ask(self, form: str, language_name: str) -> Problem:
        """The fact as a problem, in one of its forms."""
        name, known, word = language_name, self.known, self.word
        if self.language == "en" and self.kind != "number":
            known = f"{self.kind} {known}"
        if form == "to_words":
            prompt, answer = f"{known} in {name}:", word
        elif form == "to_digits":
            prompt, answer = f"{name} {word} in digits:", known
        elif form == "ask_name":
            prompt, answer = f"{known} in {name}:", word
        elif form == "ask_english":
            prompt = f"{name} {word} in {'CLDR' if self.language == 'en' else 'English'}:"
            answer = known
        elif form == "tell_name":
            prompt, answer = f"What {name} calls {known} is", f"{word}."
        else:
            prompt, answer = f"By {word}, {name} means", f"{known}."
        key = f"{self.language}/{self.kind}/{self.known}/{form}"
        return Problem(f"multilingual/{self.language}", key, prompt, answer, answer, 0)


@cache
def load() -> dict[str, Any]:
    """The tables of ``facts.json``."""
    tables: dict[str, Any] = json.loads(FACTS.read_text(encoding="utf-8"))
    return tables


def held_form(language: str, kind: str, known: str) -> str:
    """The form of this fact that only the evaluation asks, or ""."""
    if kind == "number":
        if int(known) < ALWAYS_WHOLE:
            return ""
        return {0: "to_words", 1: "to_digits"}.get(digest(f"{language}/{known}") % 8, "")
    return {0: "ask_name", 1: "ask_english"}.get(digest(f"{language}/{kind}/{known}") % 4, "")


@cache
def facts_of(language: str) -> tuple[tuple[Fact, ...], tuple[Fact, ...]]:
    """The (number facts, name facts) of a language; the first may be empty."""
    tables = load()
    table, english = tables[language], tables["en"]
    numbers = tuple(
        Fact(language, "number", n, word, held_form(language, "number", n))
        for n, word in table["numbers"].items()
    )
    found = []
    for plural, kind in (("countries", "country"), ("languages", "language")):
        for code, word in table[plural].items():
            if language != "en" and code not in english[plural]:
                continue
            known = code if language == "en" else english[plural][code]
            found.append(Fact(language, kind, known, word, held_form(language, kind, known)))
    return numbers, tuple(found)


def name_of(language: str) -> str:
    """The English name of a language."""
    return str(load()[language]["name"])


def draw_fact(language: str, rng: random.Random) -> Problem:
    """A question of the training side: 60 % names, 40 % numbers."""
    numbers, found = facts_of(language)
    fact = rng.choice(numbers if numbers and rng.random() < 0.4 else found)
    form = rng.choice([f for f in fact.forms if f != fact.held])
    return fact.ask(form, name_of(language))


def evaluation_facts(language: str) -> list[Problem]:
    """Every held-out question of a language.

    Left out are names that a language shares with English, which copying answers, and questions
    that another fact asks in the same words (Nauru is a country and a language).
    """
    name = name_of(language)
    facts = [fact for group in facts_of(language) for fact in group]
    asked = Counter(fact.ask(form, name).prompt for fact in facts for form in fact.forms)
    held = [fact.ask(fact.held, name) for fact in facts if fact.held and fact.known != fact.word]
    return [problem for problem in held if asked[problem.prompt] == 1]
