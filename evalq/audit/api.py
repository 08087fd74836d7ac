"""From what a user typed to an audit on disk."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evalq.audit.calibration import (
    Calibration,
    CalibrationSettings,
    calibrate,
    load_calibration,
)
from evalq.audit.client import Client
from evalq.audit.journal import AuditJournal
from evalq.audit.panel import BASE, BENIGN, Benign, Member, Panel, bits_of
from evalq.audit.result import audit_dict, save_audit
from evalq.audit.session import AuditSettings, Session, journal_path
from evalq.audit.text import TextSession
from evalq.errors import PlanError, nearest
from evalq.models.transport import TransportSettings
from evalq.plan import EnginePlan
from evalq.progress import NullProgress, Progress
from evalq.schema import content_hash

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "Endpoint",
    "OpenAudit",
    "audit_endpoint",
    "build_panel",
    "open_audit",
    "prepare",
    "ways",
]


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where to ask, and how patiently.

    Args:
        url: ``https://HOST/v1``.
        model: the served model's name.
        connections: at once.
        transport: patience, and the key's environment variable.
    """

    url: str
    model: str
    connections: int = 8
    transport: TransportSettings = field(
        default_factory=lambda: TransportSettings(attempts=6, max_wait=30.0)
    )


def build_panel(parent: str, tiers: Sequence[str], engine: EnginePlan) -> Panel:
    """The parent and the listed tiers, none of them loaded yet.

    Args:
        parent: as for ``evalq run``.
        tiers: artifact directories, or ``NAME=DIR``.
        engine: device and remote code.

    Raises:
        PlanError: no directory, or two tiers of one name.
    """
    members = [Member(BASE, parent)]
    for text in tiers:
        name, found, rest = text.partition("=")
        path = Path(rest if found else text).expanduser()
        if not path.is_dir():
            raise PlanError(
                f"--tier {text!r} is no directory",
                hint="Make it with `evalq quantize`, and give DIR or NAME=DIR.",
            )
        label = name if found else path.resolve().name
        if label == BASE or "@" in label or not label.strip():
            raise PlanError(f"a tier cannot be named {label!r}", hint="Write NAME=DIR.")
        members.append(Member(label, str(path), bits=bits_of(path)))
    return Panel(members, engine)


def ways(names: Sequence[str]) -> list[Benign]:
    """The default benign ways, and those that are asked for on top.

    Raises:
        PlanError: no such way.
    """
    more = {"input8": Benign("input8", input_bits=8)}
    out = list(BENIGN)
    for name in names:
        if name not in more:
            raise PlanError(f"unknown benign way {name!r}", hint=nearest(name, more))
        out.append(more[name])
    return out


def prepare(
    panel: Panel,
    settings: CalibrationSettings,
    path: Path,
    benign: Sequence[Benign] = BENIGN,
    progress: Progress | None = None,
) -> Calibration:
    """The calibration stored at ``path``; made, and stored, where there is none.

    Raises:
        PlanError: the stored one is of another parent, other tiers or other settings.
        EvalqError: a model or a text that cannot be used.
    """
    if not path.exists():
        made = calibrate(panel, settings, benign, progress)
        made.save(path)
        return made
    found = load_calibration(path)
    _same_models(panel, found, path)
    if found.settings != settings:
        raise PlanError(
            f"{path} was made with other settings",
            hint="Choose another --calibration, or remove it to make it again.",
        )
    return found


def _same_models(panel: Panel, found: Calibration, path: Path) -> None:
    from evalq.artifacts.identity import hash_directory

    hint = "Choose another --calibration, or remove it to make it again."
    if panel.parent.hash != found.parent["hash"]:
        raise PlanError(f"{path} was made for another parent", hint=hint)
    stored = {str(t["name"]): t["hash"] for t in found.tiers}
    if list(stored) != panel.tiers:
        raise PlanError(
            f"{path} was made for the tiers {', '.join(stored) or 'none'}, not for "
            f"{', '.join(panel.tiers) or 'none'}",
            hint=hint,
        )
    for name, digest in stored.items():
        if hash_directory(Path(panel.members[name].spec)) != digest:
            raise PlanError(f"tier {name} is not the one that {path} was made with", hint=hint)


def audit_endpoint(
    endpoint: Endpoint,
    panel: Panel,
    calibration: Calibration,
    settings: AuditSettings,
    out: Path,
    progress: Progress | None = None,
    command: str = "",
) -> dict[str, Any]:
    """Audit an endpoint, or go on with an audit that was broken off; writes ``out/audit.json``.

    Args:
        endpoint: where.
        panel, calibration: what is held locally.
        settings: how much is asked.
        out: directory; holds the journal as well.
        progress: is told.
        command: as typed, for the report.

    Returns:
        What ``audit.json`` holds.

    Raises:
        EndpointError: the endpoint cannot be asked at all.
        StoreError: ``out`` holds another audit, or cannot be written.
    """
    import evalq

    identity = content_hash(
        [endpoint.url, endpoint.model, calibration.hash, asdict(_without_budget(settings))]
    )
    client = Client(endpoint.url, endpoint.model, endpoint.transport, endpoint.connections)
    with closing(client), closing(AuditJournal(journal_path(out), identity)) as journal:
        kind = TextSession if settings.mode == "text" else Session
        session = kind(client, panel, calibration, settings, journal, progress or NullProgress())
        outcome = session.run()
        about = {
            "endpoint": client.url,
            "model": endpoint.model,
            "capabilities": client.capabilities.as_dict(),
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "evalq_version": evalq.__version__,
            "command": command,
        }
        result = audit_dict(outcome, calibration, settings, about)
        save_audit(out / "audit.json", result)
    return result


def _without_budget(settings: AuditSettings) -> AuditSettings:
    """What is asked for does not depend on how much may be spent: a larger budget goes on."""
    return replace(settings, max_tokens_total=0, budget_usd=0.0, price_in=0.0, price_out=0.0)


@dataclass(frozen=True)
class OpenAudit:
    """A stored audit as pandas frames.

    Args:
        result: what ``audit.json`` holds.
    """

    result: Mapping[str, Any]

    @property
    def verdict(self) -> str:
        """``PARENT-LIKE``, a tier's name, ``MIXED``, …"""
        return str(self.result["verdict"])

    @property
    def posterior(self) -> pd.DataFrame:
        """A row a reference: name, bits, posterior, log e-value against it, expected tokens."""
        import pandas as pd

        bits = {t["name"]: t["bits"] for t in self.result["calibration"]["tiers"]}
        return pd.DataFrame(
            [
                {
                    "name": name,
                    "bits": bits.get(name, 16),
                    "posterior": value,
                    "log_e_against": self.result["log_e_against"][name],
                    "expected_tokens": self.result["expected"].get(name, {}).get("phase1"),
                }
                for name, value in self.result["posterior"].items()
            ]
        )

    @property
    def timeline(self) -> pd.DataFrame:
        """Tokens spent and log e-value against the parent, after each block."""
        import pandas as pd

        return pd.DataFrame(self.result["timeline"], columns=["tokens", "log_e"])

    @property
    def requests(self) -> pd.DataFrame:
        """A row an answer: kind, probe, tokens, flips and e-value against each reference."""
        import pandas as pd

        return pd.json_normalize(list(self.result["rows"]))

    @property
    def ladder(self) -> pd.DataFrame:
        """The local calibration: the benign ways and the tiers, their sigma and KL."""
        import pandas as pd

        found = self.result["calibration"]
        frames = [
            pd.DataFrame(found[kind]).assign(kind=label)
            for kind, label in (("benign", "benign"), ("ladder", "tier"))
        ]
        return pd.concat([f for f in frames if len(f)], ignore_index=True)

    @property
    def kl(self) -> pd.DataFrame:
        """KL(row || column), nats a token, of the parent and the tiers."""
        import pandas as pd

        names = list(self.result["posterior"])
        return pd.DataFrame(self.result["calibration"]["kl"], index=names, columns=names)


def open_audit(path: str | Path) -> OpenAudit:
    """Open a stored audit.

    Raises:
        StoreError: no audit there.
    """
    from evalq.audit.result import load_audit

    return OpenAudit(load_audit(Path(path)))
