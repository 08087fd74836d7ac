"""JUnit XML: a suite a variant, a case a check. Read by Jenkins, GitLab and the rest.

``<failure>`` for a fail, ``<error>`` for what is not decided (inconclusive or not certified),
``<skipped>`` for an advisory check that did not pass: it stops nothing. No times and no host are
written, so the same run under the same policy gives the same bytes.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET

from evalq.gate.result import Check, GateResult, VariantResult
from evalq.gate.text import limit_words, one_line, value_words, xml_text

__all__ = ["junit_xml"]


def junit_xml(result: GateResult) -> bytes:
    """The report as UTF-8 XML."""
    root = ET.Element("testsuites", name="evalq gate")
    totals = [_suite(root, variant, result) for variant in result.variants]
    for name, values in zip(
        ("tests", "failures", "errors"), zip(*totals, strict=True), strict=True
    ):
        root.set(name, str(sum(values)))
    ET.indent(root)
    body: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return body + b"\n"


def _kind(check: Check) -> str:
    """The element that a check gets, or nothing for a pass."""
    if check.verdict == "pass":
        return ""
    if check.role == "advisory" or (check.role == "supporting" and check.verdict != "fail"):
        return "skipped"
    return "failure" if check.verdict == "fail" else "error"


def _suite(root: ET.Element, variant: VariantResult, result: GateResult) -> tuple[int, int, int]:
    kinds = [_kind(c) for c in variant.checks]
    counts = (len(kinds), kinds.count("failure"), kinds.count("error"))
    suite = ET.SubElement(
        root,
        "testsuite",
        name=xml_text(f"evalq gate: {variant.variant}"),
        tests=str(counts[0]),
        failures=str(counts[1]),
        errors=str(counts[2]),
        skipped=str(kinds.count("skipped")),
    )
    properties = ET.SubElement(suite, "properties")
    for name, value in (
        ("verdict", variant.verdict),
        ("variant_hash", variant.hash),
        ("baseline", variant.baseline),
        ("policy_hash", result.policy_hash),
        ("alpha", f"{result.alpha:g}"),
    ):
        ET.SubElement(properties, "property", name=name, value=xml_text(value))
    for check, kind in zip(variant.checks, kinds, strict=True):
        _case(suite, variant, check, kind)
    return counts


def _case(suite: ET.Element, variant: VariantResult, check: Check, kind: str) -> None:
    case = ET.SubElement(
        suite,
        "testcase",
        classname=xml_text(f"evalq.{variant.variant}.{check.slice}".replace("/", ".")),
        name=xml_text(f"{check.slice}: {check.metric}"),
    )
    if kind:
        message = f"{check.verdict}: {value_words(check)} {limit_words(check)}".strip()
        element = ET.SubElement(
            case, kind, type=check.verdict.replace(" ", "-"), message=xml_text(message)
        )
        element.text = xml_text("\n".join(_details(check)))
    elif check.notes:
        ET.SubElement(case, "system-out").text = xml_text("\n".join(check.notes))


def _details(check: Check) -> list[str]:
    lines = [f"rule {check.rule} (line {check.line}), {check.role}"]
    if check.lost is not None:
        lines.append(f"{check.count} items, {check.lost} lost, {check.gained} gained")
    if check.p is not None:
        adjusted = "" if check.p_adjusted is None else f", adjusted {check.p_adjusted:.3g}"
        lines.append(f"p = {check.p:.3g}{adjusted}")
    if check.items_needed is not None:
        lines.append(f"about {check.items_needed} items would settle it")
    lines += check.notes
    for example in check.examples:
        lines += [
            f"lost: {one_line(example.task)} {one_line(example.item_id)}",
            f"  prompt:   {one_line(example.prompt)}",
            f"  target:   {one_line(example.target)}",
            f"  baseline: {one_line(example.baseline)}",
            f"  variant:  {one_line(example.variant)}",
        ]
    return lines
