"""Texts that others wrote (models, datasets, names), made safe to show, and numbers made readable.

Escaping for HTML is Jinja's job; here is what it does not do: characters that reorder or hide a
line, formulas in spreadsheets, markup in Markdown, and control sequences in a terminal.
"""

from __future__ import annotations

import math
import re

__all__ = [
    "UNKNOWN",
    "bytes_text",
    "clip",
    "csv_safe",
    "dollars_text",
    "interval_text",
    "markdown_safe",
    "p_text",
    "pp",
    "short",
    "speed_text",
    "visible",
]

UNKNOWN = "unknown"
"""What is shown of an endpoint's size, bits and cost: not missing, but beyond knowing."""

# C0 and C1 controls but tab and newline; bidi embeddings, overrides and isolates; line and
# paragraph separators; zero-width space, word joiner and BOM; Unicode tags; surrogates. The joiners
# U+200C and U+200D stay: Persian and Indic scripts are written with them.
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2060\u2066-\u2069"
    "\ufeff\U000e0000-\U000e007f\ud800-\udfff]"
)
_MARKDOWN = re.compile(
    r"([\\`*_\[\]<>#|~&$@]|:(?=//)|(?<=www)\.|(?<=mailto):|(?<=xmpp):|^[+\-])", re.I
)


def visible(text: str) -> str:
    """``text`` with control, bidi and invisible characters written out, ``"\\u202e"``.

    >>> visible("a\\x1b[31mb")
    'a\\\\x1b[31mb'
    """

    def shown(match: re.Match[str]) -> str:
        code = ord(match.group())
        if code < 0x100:
            return f"\\x{code:02x}"
        return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"

    return _HIDDEN.sub(shown, text)


def clip(text: str, head: int, tail: int = 0) -> str:
    """At most ``head`` first and ``tail`` last characters, with the cut marked.

    >>> clip("abcdefghij", 2, 3)
    'ab [… 5 characters …] hij'
    """
    if len(text) <= head + tail:
        return text
    cut = f"[… {len(text) - head - tail} characters …]"
    parts = (text[:head], cut, text[len(text) - tail :] if tail else "")
    return " ".join(p for p in parts if p)


def short(text: str, length: int) -> str:
    """A label of at most ``length`` characters, visible ones.

    >>> short("multilingual/sw", 8)
    'multili…'
    """
    shown = visible(text)
    return shown if len(shown) <= length else shown[: length - 1] + "…"


def csv_safe(value: object) -> object:
    """A cell that no spreadsheet takes for a formula: such texts get an apostrophe in front.

    >>> csv_safe("=1+1")
    "'=1+1"
    """
    if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r", "\n", "|", "%"):
        return "'" + visible(value)
    return visible(value) if isinstance(value, str) else value


def markdown_safe(text: str) -> str:
    """One line of plain text for Markdown: all that could be markup or a link is escaped.

    >>> markdown_safe("[a](http://b) | *c*")
    '\\\\[a\\\\](http\\\\://b) \\\\| \\\\*c\\\\*'
    """
    return _MARKDOWN.sub(r"\\\1", " ".join(visible(text).split()))


def pp(delta: float, sign: bool = True) -> str:
    """A difference of accuracies in points.

    >>> pp(-0.0234)
    '−2.3 pp'
    """
    value = 100 * delta
    digits = 1 if abs(value) >= 0.05 or value == 0 else 2
    text = f"{value:+.{digits}f}" if sign else f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return text.replace("-", "−") + " pp"


def interval_text(ci: tuple[float, float] | None) -> str:
    """An interval of a difference of accuracies, ``"−3.1 to −0.4 pp"``."""
    if ci is None:
        return "no interval"
    return f"{pp(ci[0]).removesuffix(' pp')} to {pp(ci[1])}"


def p_text(p: float | None) -> str:
    """A p-value, ``"0.03"`` or ``"< 0.001"``."""
    if p is None or math.isnan(p):
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.2g}" if p < 0.1 else f"{p:.2f}"


def bytes_text(value: float | None) -> str:
    """A size in binary units.

    >>> bytes_text(4_600_000)
    '4.4 MiB'
    """
    if value is None or not math.isfinite(value):
        return "–"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(value) < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" else f"{value:.3g} {unit}"


def dollars_text(value: float) -> str:
    """A price.

    >>> dollars_text(12.345), dollars_text(0.01234)
    ('$12.3', '$0.0123')
    """
    return f"${value:,.0f}" if value >= 100 else f"${value:.3g}"


def speed_text(value: float | None) -> str:
    """Tokens a second, without the unit."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"
