"""Collect the multilingual facts of the built-in corpus into ``facts.json``.

Number words come from num2words, names of countries and languages from the CLDR tables in babel.
Both are needed only here: the corpus is generated from the committed JSON.

    python -m training.builtin.facts
"""

from __future__ import annotations

import json
import random
import unicodedata
from pathlib import Path
from typing import Any

FACTS = Path(__file__).with_name("facts.json")

LANGUAGES = (
    "en", "de", "fr", "es", "it", "ru", "tr", "ja", "ar", "th", "bn", "te", "sw", "am", "yo",
)  # fmt: skip
"""ISO 639-1 codes, from the most to the least text."""

WITHOUT_NUMBER_WORDS = frozenset({"sw", "yo"})
"""num2words knows none for these: they have names only."""

WITH_THOUSANDS = frozenset({"en", "de", "fr", "es", "it", "ru", "tr"})
"""Languages that also get a sample of the numbers from 1000 to 9999."""

THOUSANDS = 1000
"""Size of that sample."""


def number_words(language: str, numbers: list[int]) -> dict[str, str]:
    """``{"21": "einundzwanzig", …}`` for ``numbers``; numbers spelt alike are left out."""
    from num2words import num2words

    words = {str(n): clean(num2words(n, lang=language)) for n in numbers}
    spelt: dict[str, int] = {}
    for word in words.values():
        spelt[word] = spelt.get(word, 0) + 1
    return {n: word for n, word in words.items() if spelt[word] == 1 and not word.isdigit()}


def clean(text: str) -> str:
    """``text`` in NFC on one line, with single plain spaces."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def names(kind: str) -> dict[str, dict[str, str]]:
    """``{language: {code: name}}`` for ``kind`` "territories" or "languages".

    Only codes that every language names, and only names that are unique within a language, so
    that each question has one answer.
    """
    from babel import Locale

    tables = {code: getattr(Locale.parse(code), kind) for code in LANGUAGES}
    shared = set.intersection(*(set(table) for table in tables.values()))
    wanted = sorted(c for c in shared if c.isalpha() and c.isascii() and len(c) == 2)
    result: dict[str, dict[str, str]] = {}
    for language, table in tables.items():
        found = {code: clean(table[code]) for code in wanted}
        counts: dict[str, int] = {}
        for name in found.values():
            counts[name] = counts.get(name, 0) + 1
        result[language] = {c: n for c, n in found.items() if counts[n] == 1}
    return result


def collect() -> dict[str, Any]:
    """All facts: for each language its English name, number words, countries and languages."""
    from babel import Locale

    english = Locale.parse("en")
    sample = sorted(random.Random(20).sample(range(1000, 10000), THOUSANDS))
    countries, languages = names("territories"), names("languages")
    facts: dict[str, Any] = {}
    for code in LANGUAGES:
        numbers = list(range(1000)) + (sample if code in WITH_THOUSANDS else [])
        facts[code] = {
            "name": clean(english.languages[code]),
            "numbers": {} if code in WITHOUT_NUMBER_WORDS else number_words(code, numbers),
            "countries": countries[code],
            "languages": languages[code],
        }
    return facts


def main() -> None:
    """Write ``facts.json`` and say what is in it."""
    facts = collect()
    FACTS.write_text(json.dumps(facts, ensure_ascii=False, indent=0) + "\n", encoding="utf-8")
    for code, table in facts.items():
        counts = [len(table[k]) for k in ("numbers", "countries", "languages")]
        print(code, table["name"], *counts)


if __name__ == "__main__":
    main()
