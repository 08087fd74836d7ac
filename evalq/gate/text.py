"""Words of a verdict, and texts of a model made harmless for whoever shows them."""

from __future__ import annotations

import re

from evalq.gate.result import Check

__all__ = ["code", "limit_words", "markdown", "one_line", "value_words", "xml_text"]

_CONTROL = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff\ufffe\uffff]"
)
_SURROGATE = re.compile("[\ud800-\udfff]")
_PLAIN = re.compile(r"[^0-9A-Za-zÀ-ÖØ-öø-ɏͰ-῿぀-ヿ㐀-鿿가-힯 ,.;?=+/%€$…⏎]")


def one_line(text: str) -> str:
    """``text`` on one line of visible characters, safe to print where logs are read by machines.

    Line ends become a sign; control, direction-changing and invisible characters a replacement
    mark; and the two forms in which a GitHub runner takes orders (``::`` at the start of a line,
    ``##[`` anywhere) are broken up.
    """
    flat = text.replace("\r\n", "\n").replace("\r", "\n").replace("\n", "⏎").replace("\t", " ")
    flat = _SURROGATE.sub("\ufffd", _CONTROL.sub("\ufffd", flat))
    flat = flat.replace("##[", "## [")
    return "·" + flat if flat.lstrip().startswith("::") else flat


def xml_text(text: str) -> str:
    """``text`` without the characters that XML 1.0 cannot hold; escaping is the writer's."""
    return _SURROGATE.sub("\ufffd", _CONTROL.sub("\ufffd", text))


def markdown(text: str) -> str:
    """``text`` as inert Markdown: all that could be markup, HTML or a table becomes an entity."""
    return _PLAIN.sub(lambda m: f"&#{ord(m.group())};", one_line(text))


def code(text: str) -> str:
    """``text`` in an HTML code element, where nobody is mentioned and nothing is linked."""
    return f"<code>{markdown(text)}</code>"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 10_000 else f"{value:.4g}"


def limit_words(check: Check) -> str:
    """What was asked: ``margin 2 pp``, ``max 0.05``."""
    if check.limit is None:
        return ""
    if check.kind == "margin":
        return f"margin {100 * check.limit:.3g} pp"
    words = {"max": "max", "min": "min", "max_ratio": "max ratio", "min_ratio": "min ratio"}
    return f"{words[check.kind]} {_number(check.limit)}"


def value_words(check: Check) -> str:
    """What was found: the estimate with its interval."""
    if check.estimate is None:
        return f"{check.count:,} {check.unit}" if check.count else ""
    if check.kind == "margin":
        text = f"{100 * check.estimate:+.2f} pp"
        low, high = (f"{100 * x:+.2f}" for x in check.ci or (0.0, 0.0))
    else:
        text = _number(check.estimate)
        low, high = (_number(x) for x in check.ci or (0.0, 0.0))
    exact = check.ci is None or check.ci[0] == check.ci[1]
    return text if exact else f"{text} [{low}, {high}]"
