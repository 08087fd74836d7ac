"""The page: one file with its styles, its script and its data inside, nothing loaded from anywhere.

What models, datasets and users wrote is hostile. Jinja escapes it in the page; in the data blocks
``<``, ``>`` and ``&`` are written as escapes of JSON; the script puts texts in by ``textContent``
only; and a content security policy lets only evalq's own script run, by its hash.
"""

from __future__ import annotations

import base64
import hashlib
import json
from importlib import resources
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from evalq.report.adaptive import adaptive_rows
from evalq.report.charts import cliff_panels, kl_chart, legend
from evalq.report.flips import FlipPack
from evalq.report.frames import ReportData
from evalq.report.palette import TIERS
from evalq.report.rows import (
    NARROW,
    WIDE,
    artifacts,
    cards,
    facts,
    fidelity_rows,
    frontiers,
    head_flips,
    heatmap,
    kl_table,
    perplexity_rows,
    text_rows,
    variant_rows,
)
from evalq.report.serving import capacity_rows, cost_rows, mixed_rows, price_note
from evalq.report.text import visible
from evalq.report.words import banners, headline, limits, unevenness_text

__all__ = ["fill", "json_block", "page"]


def json_block(value: Any) -> Markup:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return Markup(text)


def _asset(name: str) -> str:
    return (resources.files("evalq.report") / "templates" / name).read_text(encoding="utf-8")


def _csp_hash(script: str) -> str:
    digest = hashlib.sha256(script.encode()).digest()
    return "sha256-" + base64.b64encode(digest).decode("ascii")


def _tier_css() -> str:
    light = "".join(f"--t-{t.key}:{t.light};" for t in TIERS.values())
    dark = "".join(f"--t-{t.key}:{t.dark};" for t in TIERS.values())
    rules = "".join(f".tier-{k}{{--c:var(--t-{k})}}" for k in TIERS)
    return (
        f":root{{{light}}}@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}}}{rules}"
    )


def fill(template: str, **values: Any) -> str:
    """A page from one of the templates; ``title`` and the template's own values have to be given.

    Values are escaped unless they are ``Markup``.
    """
    script = _asset("app.js")
    environment = Environment(
        loader=PackageLoader("evalq.report"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(
        style=Markup(_tier_css() + _asset("style.css")),
        script=Markup(script),
        script_hash=_csp_hash(script),
        **values,
    )


def page(data: ReportData, pack: FlipPack) -> str:
    """The whole report as HTML."""
    info = data.run.info
    return fill(
        "report.html.j2",
        title=visible(str(info["name"])),
        parent=visible(str(info["parent"].get("name"))),
        created=visible(str(info.get("created", "")))[:10],
        command=visible(str(info.get("command", ""))),
        headline=visible(headline(data)),
        why=visible(data.recommendation.why),
        cards=cards(data),
        banners=[visible(b) for b in banners(data)],
        uneven=[visible(t) for t in unevenness_text(data)],
        legend=legend(data),
        frontiers=frontiers(data),
        variants=variant_rows(data),
        heat=heatmap(data),
        panels=cliff_panels(data),
        kl_wide=kl_chart(data, WIDE[0]),
        kl_narrow=kl_chart(data, NARROW[0]),
        kl_table=kl_table(data),
        fidelity=fidelity_rows(data),
        costs=cost_rows(data),
        price_note=visible(price_note(data)),
        room=capacity_rows(data),
        mixed=mixed_rows(data, WIDE[0], NARROW[0]),
        dequantized=len(data.dequantized),
        flips=pack,
        flips_meta=json_block(pack.meta),
        head_flips=head_flips(pack),
        facts=[(k, visible(v)) for k, v in facts(data)],
        artifacts=artifacts(data),
        limits=[visible(t) for t in limits(data)],
        warnings=[visible(w) for w in data.warnings],
        plan=data.run.recommend,
        perplexity=perplexity_rows(data),
        adaptive=adaptive_rows(data),
        texts=text_rows(data),
    )
