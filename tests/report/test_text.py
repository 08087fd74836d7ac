import csv
import io

import pandas as pd
import pytest

from evalq.report.render import csv_text
from evalq.report.text import (
    bytes_text,
    clip,
    csv_safe,
    interval_text,
    markdown_safe,
    p_text,
    pp,
    visible,
)


@pytest.mark.parametrize(
    "char", ["\x00", "\x1b", "\r", "\x9b", "\u202e", "\u2066", "\ufeff", "\u2028"]
)
def test_no_control_or_bidi_character_survives(char: str) -> None:
    shown = visible(f"a{char}b")
    assert char not in shown
    assert shown.startswith("a\\")
    assert shown.isprintable()


def test_scripts_with_joiners_and_marks_stay_whole() -> None:
    for text in ("می‌خواهم", "క్ష", "አማርኛ", "e\u0301", "日本", "a\tb\nc"):
        assert visible(text) == text


def test_lone_surrogates_are_written_out() -> None:
    assert visible("\ud800") == "\\ud800"


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "|x", "%x"])
def test_no_cell_is_a_formula(text: str) -> None:
    frame = pd.DataFrame({"a": [text], "n": [-1.5]})
    rows = list(csv.reader(io.StringIO(csv_text(frame))))
    assert rows[1][0].startswith("'")
    assert rows[1][1] == "-1.5"
    assert csv_safe(-1.5) == -1.5


def test_markdown_of_others_has_no_markup() -> None:
    text = "[x](javascript:alert(1)) <b> | `c` https://e.org www.e.org a@b.c\n# h"
    safe = markdown_safe(text)
    assert "\n" not in safe
    for raw in ("[x]", "<b>", " | ", "`c`", "https://", "www.", "a@b"):
        assert raw not in safe


def test_clip_says_how_much_is_gone() -> None:
    assert clip("abc", 3) == "abc"
    assert clip("x" * 100, 10, 5) == "x" * 10 + " [… 85 characters …] " + "x" * 5


def test_numbers() -> None:
    assert pp(0.0) == "0.0 pp"
    assert pp(-0.0004) == "−0.04 pp"
    assert pp(0.123) == "+12.3 pp"
    assert interval_text((-0.1, 0.02)) == "−10.0 to +2.0 pp"
    assert interval_text(None) == "no interval"
    assert p_text(1e-9) == "< 0.001"
    assert p_text(None) == "–"
    assert bytes_text(None) == "–"
    assert bytes_text(3 * 2**30) == "3 GiB"
