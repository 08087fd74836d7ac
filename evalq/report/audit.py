"""The report of an audit: a page that a buyer can send to a vendor, and lines for the terminal."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from evalq.report.svg import element, linear, root, text
from evalq.report.text import clip, short, visible
from evalq.store.files import atomic_write

if TYPE_CHECKING:
    from evalq.audit.calibration import Calibration

__all__ = ["calibration_lines", "render_audit", "summary_lines", "verdict_text"]

_SAYS = {
    "PARENT-LIKE": "What is served cannot be told from the parent at the noise floor measured.",
    "TIER": "What is served is the tier named, and not the parent.",
    "MIXED": "Requests are answered by two models.",
    "UNLISTED": "What is served is neither the parent nor any listed tier.",
    "NOT_COMPARABLE": "What is served cannot be compared with the parent.",
    "UNDERPOWERED": "What was asked does not settle what is served.",
}
_LIMITS = (
    "PARENT-LIKE never means that full precision is confirmed: other ways to run the same weights "
    "(kernels, batches, 8-bit weights) move the answers as little.",
    "UNLISTED does not say why: an unlisted recipe, a hidden prompt or another model look alike.",
    "The verdict is about the requests that were asked, at the time they were asked. Whoever "
    "recognizes an audit can answer it from another model.",
    "The e-value holds for endpoints whose noise is at most 1.5 times the largest of the benign "
    "ways listed here.",
)


def verdict_text(result: Mapping[str, Any]) -> str:
    """The verdict in one sentence, with its numbers."""
    kind = str(result["kind"])
    if kind == "TIER":
        mass = float(result["posterior"].get(str(result["tier"]), math.nan))
        return (
            f"{visible(str(result['tier']))} is served (posterior {_mass(mass)} among the listed)."
        )
    if kind == "MIXED":
        share = result["share"]
        return (
            f"{visible(str(share['of']))} answers {share['estimate']:.0%} of the requests (95 % "
            f"interval {share['low']:.0%} to {share['high']:.0%}), "
            f"{visible(str(share['beside']))} the others."
        )
    return _SAYS[kind]


def _mass(value: float) -> str:
    return "over .9999" if value > 0.9999 else f"{value:.4f}"


def summary_lines(result: Mapping[str, Any]) -> list[str]:
    """The verdict for the terminal; nothing in it is markup."""
    spent = f"{result['tokens']:,} tokens in {result['requests']:,} requests"
    if result["usd"] is not None:
        spent += f", {result['usd']:.4f} US dollars"
    lines = [
        f"verdict: {visible(str(result['verdict']))}",
        f"  {verdict_text(result)}",
        f"  log e-value against the parent: {result['log_e']:.1f} (it takes "
        f"{math.log(3 / result['settings']['alpha']):.1f} to accuse)",
        f"  spent: {spent}",
    ]
    if result["sigma"] is not None:
        lines.append(
            f"  sigma {result['sigma']:.3g} nats, noise floor {result['sigma_detail']['floor']:.3g}"
        )
    lines += [f"  {visible(r)}" for r in result["reasons"]]
    lines += [f"  to settle it: {visible(s)}" for s in result["settle"]]
    lines += [f"  warning: {visible(w)}" for w in result["warnings"]]
    return lines


def calibration_lines(found: Calibration, alpha: float) -> list[str]:
    """The local calibration for the terminal."""
    lines = [f"noise floor {found.floor:.3g} nats; {len(found.probes)} probes"]
    lines.append(f"{'':24}{'sigma':>10}{'KL nats':>12}{'tokens at T=0':>16}{'at T=1':>12}")
    for m in found.benign:
        lines.append(f"  {visible(m.name):22}{m.sigma:>10.3g}{m.kl:>12.3g}")
    for m in found.ladder:
        first, second = found.expected_tokens(m.name, alpha), found.expected_sampled(m.name, alpha)
        lines.append(
            f"  {short(m.name, 22):22}{m.sigma:>10.3g}{m.kl:>12.3g}"
            f"{'never' if first is None else f'{first:,}':>16}"
            f"{'never' if second is None else f'{second:,}':>12}"
        )
    if found.near:
        lines.append(f"not told from the parent: {visible(', '.join(found.near))}")
    return lines


def evidence_chart(result: Mapping[str, Any], width: float = 640) -> Markup:
    """Log e-value against the parent over tokens, with the line that accuses."""
    points = [(0.0, 0.0), *((float(t), float(v)) for t, v in result["timeline"])]
    bar = math.log(3 / float(result["settings"]["alpha"]))
    height, left, bottom = 260.0, 56.0, 40.0
    most = max(bar * 1.4, *(v for _, v in points))
    x = linear((0.0, max(1.0, max(t for t, _ in points))), (left, width - 12))
    y = linear((0.0, most), (height - bottom, 12.0))
    body = [
        element("line", x1=left, x2=width - 12, y1=y.to(v), y2=y.to(v), class_="grid")
        for v in y.ticks
    ]
    body += [text(left - 6, y.to(v) + 4, f"{v:g}", "tick", text_anchor="end") for v in y.ticks]
    body += [
        text(x.to(v), height - bottom + 16, f"{v:,.0f}", "tick", text_anchor="middle")
        for v in x.ticks
    ]
    body.append(element("line", x1=left, x2=width - 12, y1=y.to(bar), y2=y.to(bar), class_="bar"))
    body.append(text(width - 14, y.to(bar) - 5, "accuses", "tick", text_anchor="end"))
    path = " ".join(f"{x.to(t):.1f},{y.to(v):.1f}" for t, v in points)
    body.append(element("polyline", points=path, class_="line"))
    body += [element("circle", cx=x.to(t), cy=y.to(v), r=3.0, class_="dot") for t, v in points]
    body.append(text((left + width) / 2, height - 6, "tokens spent", "axis", text_anchor="middle"))
    title = "Log e-value against the parent, over tokens spent"
    return root((width, height), title, body, "chart")


def sigma_chart(result: Mapping[str, Any], width: float = 640) -> Markup:
    """The endpoint's sigma among those of the benign ways and the tiers, on a log scale."""
    found = result["calibration"]
    rows = [(m["name"], m["sigma"], m["sigma_ci"], "benign") for m in found["benign"]]
    rows += [(m["name"], m["sigma"], m["sigma_ci"], "tier") for m in found["ladder"]]
    if result["sigma_detail"] is not None:
        detail = result["sigma_detail"]
        rows.append(("this endpoint", detail["sigma"], detail["ci"], "endpoint"))
    low, left, step = 1e-5, 190.0, 22.0
    height = 20 + step * len(rows) + 34

    def at(value: float) -> float:
        share = math.log10(max(value, low) / low) / math.log10(30 / low)
        return left + share * (width - left - 16)

    body = []
    for decade in range(-5, 2):
        here = at(10.0**decade)
        body.append(element("line", x1=here, x2=here, y1=10.0, y2=height - 30, class_="grid"))
        label = f"{10.0**decade:g}"
        body.append(text(here, height - 16, label, "tick", text_anchor="middle"))
    here = at(float(found["floor"]))
    body.append(element("line", x1=here, x2=here, y1=10.0, y2=height - 30, class_="bar"))
    body.append(text(here + 4, 12, "noise floor", "tick"))
    for i, (name, sigma, ci, kind) in enumerate(rows):
        y = 28 + i * step
        body.append(text(left - 8, y + 4, short(str(name), 28), "tick", text_anchor="end"))
        body.append(element("line", x1=at(ci[0]), x2=at(ci[1]), y1=y, y2=y, class_=f"range {kind}"))
        body.append(element("circle", cx=at(sigma), cy=y, r=4.0, class_=f"dot {kind}"))
    title = "Scale of the noise between each model's choices and the parent's (nats)"
    body.append(text((left + width) / 2, height - 2, "sigma, nats", "axis", text_anchor="middle"))
    return root((width, height), title, body, "chart")


def _references(result: Mapping[str, Any]) -> list[dict[str, str]]:
    bits = {t["name"]: t["bits"] for t in result["calibration"]["tiers"]}
    bar = math.log(3 / float(result["settings"]["alpha"]))
    out = []
    for name, mass in result["posterior"].items():
        against = float(result["log_e_against"][name])
        expected = result["expected"].get(name, {}).get("phase1")
        out.append(
            {
                "name": visible(str(name)),
                "bits": "" if bits.get(name) is None else str(bits[name]),
                "posterior": _mass(float(mass)),
                "against": f"{against:.1f}",
                "out": "ruled out" if against >= bar else "",
                "expected": "" if expected is None else f"{expected:,}",
            }
        )
    return out


def _facts(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    about, settings = result["about"], result["settings"]
    parent = result["calibration"]["parent"]
    rows = [
        ("Endpoint", about["endpoint"]),
        ("Model asked for", about["model"] or "(none named)"),
        ("Parent", f"{parent['name']}, content {parent['hash']}"),
        *(
            (f"Tier {t['name']}", f"{t['bits'] or 'unknown'} bits, content {t['hash']}")
            for t in result["calibration"]["tiers"]
        ),
        ("Asked on", about["created"]),
        ("Command", about["command"]),
        ("evalq", about["evalq_version"]),
        ("Seed", settings["seed"]),
        ("alpha", settings["alpha"]),
        ("Calibration", result["calibration"]["hash"]),
        ("Probes", f"{result['probes']} kept, from {result['calibration']['text']['name']}"),
        ("Benign ways", ", ".join(m["name"] for m in result["calibration"]["benign"])),
        *((k.replace("_", " "), v) for k, v in about["capabilities"].items()),
    ]
    return [(visible(str(k)), clip(visible(_plain(v)), 400)) for k, v in rows]


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _examples(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    worst = sorted(
        (e for e in result["examples"] if e["kind"] == "greedy"), key=lambda e: -(e["flips"] or 0)
    )
    return [
        {
            "prompt": clip(visible(e["prompt"]), 200, 80),
            "text": clip(visible(e["text"]), 300, 80),
            "flips": e["flips"],
            "tokens": e["tokens"],
        }
        for e in worst[:8]
    ]


def page(result: Mapping[str, Any], expected: str = "") -> str:
    """The report as HTML: one file, no script, nothing loaded."""
    environment = Environment(
        loader=PackageLoader("evalq.report"),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    spent = [("Tokens", f"{result['tokens']:,}"), ("Requests", f"{result['requests']:,}")]
    if result["usd"] is not None:
        spent.append(("US dollars", f"{result['usd']:.4f}"))
    return environment.get_template("audit.html.j2").render(
        verdict=visible(str(result["verdict"])),
        kind=result["kind"].lower().replace("_", "-"),
        sentence=verdict_text(result),
        expected=visible(expected),
        endpoint=visible(str(result["about"]["endpoint"])),
        model=visible(str(result["about"]["model"])),
        reasons=[visible(r) for r in result["reasons"]],
        warnings=[visible(w) for w in result["warnings"]],
        settle=[visible(s) for s in result["settle"]],
        stopped=visible(str(result["stopped"])),
        spent=spent,
        log_e=f"{result['log_e']:.1f}",
        bar=f"{math.log(3 / result['settings']['alpha']):.1f}",
        chart=evidence_chart(result),
        ladder=sigma_chart(result),
        references=_references(result),
        examples=_examples(result),
        facts=_facts(result),
        limits=_LIMITS,
        kl=_kl(result),
    )


def _kl(result: Mapping[str, Any]) -> tuple[Sequence[str], list[tuple[str, list[str]]]]:
    names = [visible(str(n)) for n in result["posterior"]]
    rows = [[f"{v:.2g}" for v in row] for row in result["calibration"]["kl"]]
    return names, list(zip(names, rows, strict=True))


def render_audit(out: Path, result: Mapping[str, Any]) -> Path:
    """Write ``report.html`` beside ``audit.json``; its path."""
    path = out / "report.html"
    with atomic_write(path) as stream:
        stream.write(page(result).encode("utf-8", "replace"))
    return Path(os.path.normpath(path))
