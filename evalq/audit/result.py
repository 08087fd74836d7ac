"""What an audit leaves behind: ``audit.json``, and the exit code of a gate."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evalq.audit.calibration import Calibration
from evalq.audit.session import AuditSettings, Outcome
from evalq.errors import PlanError, StoreError, nearest
from evalq.stats.agreement import flip_scale
from evalq.store.files import atomic_write

__all__ = ["FORMAT", "Expected", "audit_dict", "exit_code", "judge", "load_audit", "save_audit"]

FORMAT = 1
_PARENT = ("parent", "bf16", "bfloat16", "fp16", "fp32", "full")


@dataclass(frozen=True, slots=True)
class Expected:
    """What ``--expect`` came to.

    Args:
        tier: as the user wrote it.
        met: ``None`` where the audit cannot say.
        why: one sentence.
    """

    tier: str
    met: bool | None
    why: str


def audit_dict(
    outcome: Outcome,
    calibration: Calibration,
    settings: AuditSettings,
    about: Mapping[str, Any],
) -> dict[str, Any]:
    """All of an audit as JSON values.

    Args:
        outcome: of the session.
        calibration: that it used.
        settings: that it ran with.
        about: endpoint, model, capabilities, created, command, versions.
    """
    d = outcome.decision
    sigma = _sigma(outcome, calibration, settings.seed)
    share = None
    if d.share is not None and d.components is not None:
        share = {"of": d.components[1], "beside": d.components[0], "estimate": d.share[0],
                 "low": d.share[1], "high": d.share[2]}  # fmt: skip
    return {
        "format": FORMAT,
        "verdict": d.verdict if d.verdict != "TIER" else d.tier,
        "kind": d.verdict,
        "tier": d.tier,
        "posterior": dict(d.posterior),
        "sigma": None if sigma is None else sigma["sigma"],
        "sigma_detail": sigma,
        "log_e": d.log_e,
        "log_e_against": dict(d.against),
        "share": share,
        "tokens": outcome.tokens,
        "requests": outcome.requests,
        "usd": outcome.usd,
        "capabilities": about["capabilities"],
        "warnings": list(dict.fromkeys([*d.warnings, *outcome.warnings])),
        "reasons": list(d.reasons),
        "stopped": outcome.stopped,
        "settle": _settle(d.verdict, calibration, settings, outcome.stopped),
        "timeline": [list(point) for point in outcome.timeline],
        "rows": _rows(outcome, calibration),
        "examples": outcome.examples,
        "settings": asdict(settings),
        "calibration": {**calibration.as_dict(), "hash": calibration.hash, "probes": None},
        "probes": len(calibration.probes),
        "expected": {
            name: {
                "phase1": calibration.expected_tokens(name, settings.alpha),
                "phase2": calibration.expected_sampled(name, settings.alpha),
            }
            for name in calibration.names[1:]
        },
        "about": dict(about),
    }


def _sigma(outcome: Outcome, calibration: Calibration, seed: int) -> dict[str, Any] | None:
    """The scale of the endpoint's flips against the parent; ``None`` without phase 1."""
    greedy = [w for w in outcome.weighed if w.kind == "greedy" and len(w.gap[0])]
    if not greedy:
        return None
    labels = np.concatenate([np.full(len(w.gap[0]), i) for i, w in enumerate(greedy)])
    found = flip_scale(
        np.concatenate([w.gap[0] for w in greedy]),
        np.concatenate([w.flip[0] for w in greedy]),
        labels,
        np.random.default_rng(seed),
    )
    return {**asdict(found), "ci": list(found.ci), "floor": calibration.floor}


def _rows(outcome: Outcome, calibration: Calibration) -> list[dict[str, Any]]:
    names = calibration.names
    return [
        {
            "kind": w.kind,
            "probe": w.probe,
            "spent": w.spent,
            "tokens": w.tokens,
            "flips": {n: int(f.sum()) for n, f in zip(names, w.flip, strict=True)},
            "e": dict(zip(names, (float(v) for v in w.e), strict=True)),
            "nll": dict(zip(names, (float(v) for v in w.nll), strict=False)),
        }
        for w in outcome.weighed
    ]


def _settle(
    verdict: str, calibration: Calibration, settings: AuditSettings, stopped: str
) -> list[str]:
    """What would settle an open question, in sentences."""
    if verdict not in ("UNDERPOWERED", "PARENT-LIKE"):
        return []
    out = []
    if stopped:
        out.append("run the same command again when the endpoint answers, with a larger budget")
    for name in calibration.names[1:]:
        first = calibration.expected_tokens(name, settings.alpha)
        second = calibration.expected_sampled(name, settings.alpha)
        if name in calibration.near or first is None:
            often = "no" if second is None else f"about {second:,}"
            out.append(
                f"{name}: within this noise floor; {often} sampled tokens would tell it from the "
                "parent if the endpoint's arithmetic were known exactly, and an endpoint that "
                "returns log-probabilities needs fewer"
            )
        elif verdict == "UNDERPOWERED":
            out.append(f"{name}: about {first:,} tokens at temperature 0")
    return out


def save_audit(path: Path, result: Mapping[str, Any]) -> None:
    """Write ``audit.json`` whole."""
    with atomic_write(path) as stream:
        stream.write(json.dumps(result, indent=1, allow_nan=False).encode())


def load_audit(path: Path) -> dict[str, Any]:
    """A stored audit: the directory, or its ``audit.json``.

    Raises:
        StoreError: no audit there, or one of another version.
    """
    path = Path(path)
    file = path / "audit.json" if path.is_dir() else path
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise StoreError(
            f"no audit at {path}: {error.strerror}", hint="Give the --out of `evalq audit`."
        ) from None
    except ValueError:
        raise StoreError(
            f"{file} is broken", hint="Run the audit again: its answers are kept."
        ) from None
    if not isinstance(data, dict) or data.get("format") != FORMAT:
        raise StoreError(f"{file} is no audit of this version of evalq")
    return data


def _rank(name: str, calibration: Calibration) -> float | None:
    """Bits of a name or of ``int8``; the parent has 16."""
    if name in _PARENT or name == str(calibration.parent["name"]):
        return 16.0
    if name in calibration.bits:
        bits = calibration.bits[name]
        return None if bits is None else float(bits)
    digits = name.lower().removeprefix("int").removeprefix("w")
    return float(digits) if digits.isdigit() and 1 < int(digits) <= 8 else None


def check_expected(expect: str, calibration: Calibration) -> None:
    """Refuse a tier that no audit could name.

    Raises:
        PlanError: neither the parent, nor a listed tier, nor ``int2`` to ``int8``.
    """
    if _rank(expect, calibration) is None and expect not in calibration.bits:
        known = ["parent", *calibration.bits, "int8", "int4"]
        raise PlanError(f"--expect {expect!r} is no tier", hint=nearest(expect, known))


def judge(result: Mapping[str, Any], calibration: Calibration, expect: str) -> Expected:
    """Is at least the expected precision served?

    An accusation (a lower tier, a mixture with one, an unlisted recipe) fails; what cannot be
    compared or told is not met either, and not failed.
    """
    wanted = _rank(expect, calibration)
    kind, tier = result["kind"], result["tier"]
    if kind in ("NOT_COMPARABLE", "UNDERPOWERED"):
        return Expected(expect, None, f"the audit cannot say: {kind}")
    if kind == "PARENT-LIKE":
        return Expected(expect, True, "what is served cannot be told from the parent")
    if kind == "TIER":
        got = _rank(str(tier), calibration)
        same = tier == expect
        enough = got is not None and wanted is not None and got >= wanted
        if same or enough:
            return Expected(expect, True, f"{tier} is served")
        return Expected(expect, False, f"{tier} is served, not {expect}")
    if kind == "MIXED":
        share = result["share"]
        lowest = [_rank(str(share[k]), calibration) for k in ("of", "beside")]
        if wanted is not None and all(r is not None and r >= wanted for r in lowest):
            return Expected(expect, True, "all of what is served is at least that")
        return Expected(expect, False, f"{share['of']} answers a part of the requests")
    return Expected(expect, False, "an unlisted recipe, or another model, is served")


def exit_code(result: Mapping[str, Any], expected: Expected | None) -> int:
    """0 done or met, 1 not met, 3 the audit cannot say."""
    if result["kind"] in ("NOT_COMPARABLE", "UNDERPOWERED"):
        return 3
    return 0 if expected is None or expected.met else 1
