"""Prompts that separate the tiers, chosen with the local weights; text for both halves."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evalq.audit.panel import BASE, Panel, Row
from evalq.errors import PlanError, TaskError
from evalq.stats.agreement import CAP, prompt_e_values
from evalq.texts import TextSource

Floats = NDArray[np.float64]

__all__ = [
    "Probe",
    "candidates",
    "continuations",
    "half",
    "own_probes",
    "rate",
    "render",
    "windows",
]


@dataclass(frozen=True, slots=True)
class Probe:
    """One prompt.

    Args:
        text: as it is sent.
        ids: as it is rendered for the parent (chat template included).
        score: how well it separates the tiers, a token; higher is better.
    """

    text: str
    ids: tuple[int, ...]
    score: float = 0.0

    def as_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {**asdict(self), "ids": list(self.ids)}


def render(tokenizer: Any, text: str, api: str) -> tuple[int, ...]:
    """A prompt's tokens as an honest server reads them.

    Raises:
        PlanError: chat, and the parent has no chat template.
    """
    if api == "completions":
        return tuple(int(i) for i in tokenizer(text)["input_ids"])
    if not tokenizer.chat_template:
        raise PlanError(
            "the endpoint only chats, and this parent has no chat template",
            hint="Give the parent with the tokenizer_config.json that holds its template.",
        )
    whole = tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
    )
    return tuple(int(i) for i in tokenizer(whole, add_special_tokens=False)["input_ids"])


def half(source: TextSource, second: bool) -> list[str]:
    """One half of the documents, by a hash of their names: first calibrates, second is asked."""

    def of(name: str) -> bool:
        return hashlib.sha256(name.encode()).digest()[0] % 2 == 1

    found = [d.text for d in source.documents if of(d.document) == second]
    if not found:
        raise TaskError(
            f"{source.name} is too short to be cut into two halves",
            hint="Give a longer text, with several documents.",
        )
    return found


def windows(texts: Sequence[str], tokenizer: Any, count: int, length: int) -> list[Row]:
    """Windows of text to compare distributions on: a quarter is read, the rest is scored."""
    out: list[Row] = []
    head = max(1, length // 4)
    for text in texts:
        ids = [int(i) for i in tokenizer(text)["input_ids"]]
        for start in range(0, len(ids) - length + 1, length):
            part = ids[start : start + length]
            out.append(Row(tuple(part[:head]), tuple(part[head:])))
    if len(out) < 8:
        raise TaskError("the text gives too few windows to calibrate on", hint="Give more of it.")
    step = max(1, len(out) // count)
    return out[::step][:count]


def candidates(
    texts: Sequence[str],
    tokenizer: Any,
    api: str,
    count: int,
    tokens: int,
    rng: np.random.Generator,
) -> list[Probe]:
    """Prompts cut out of texts at random places, of half to one and a half times ``tokens``."""
    out: dict[str, Probe] = {}
    encoded = [tokenizer(t, add_special_tokens=False)["input_ids"] for t in texts]
    encoded = [ids for ids in encoded if len(ids) > tokens // 2 + 4]
    if not encoded:
        raise TaskError("no text is long enough to cut a probe from", hint="Give longer texts.")
    for _ in range(20 * count):
        ids = encoded[int(rng.integers(len(encoded)))]
        length = int(tokens * (0.5 + rng.random()))
        start = int(rng.integers(max(1, len(ids) - length)))
        text = str(tokenizer.decode(ids[start : start + length])).strip(" ")
        # What does not come back unchanged cannot be compared with what an endpoint reads.
        if not text or "\ufffd" in text or text in out:
            continue
        rendered = render(tokenizer, text, api)
        if tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text:
            out[text] = Probe(text, rendered)
        if len(out) == count:
            break
    return list(out.values())


def own_probes(path: Path, tokenizer: Any, api: str) -> list[Probe]:
    """Prompts of the user: a line each, or JSON lines with ``prompt``.

    Raises:
        TaskError: no such file, or fewer than 8 prompts in it.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"cannot read the probes {path}: {error}") from None
    texts = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        text: Any = line
        if path.suffix == ".jsonl":
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            text = row.get("prompt") if isinstance(row, dict) else None
            if not isinstance(text, str) or not text:
                raise TaskError(f"{path}, line {number}: no JSON object with a 'prompt'")
        texts.append(text)
    unique = list(dict.fromkeys(texts))
    if len(unique) < 8:
        raise TaskError(
            f"{path} holds {len(unique)} different prompts", hint="Give 8 or more, better 80."
        )
    return [Probe(t, render(tokenizer, t, api)) for t in unique]


def continuations(panel: Panel, probes: Sequence[Probe], length: int) -> list[Row | None]:
    """What the parent says after each prompt at temperature 0; ``None`` where it says nothing."""
    from evalq.serve.engine import Job, ServeEngine

    engine = ServeEngine(panel.parent)
    out: list[Row | None] = []
    for start in range(0, len(probes), 16):
        jobs = [Job(p.ids, length, temperature=0.0) for p in probes[start : start + 16]]
        for job, done in zip(jobs, engine.run(jobs), strict=True):
            tokens = tuple(t.token for t in done.tokens)
            out.append(Row(job.prompt, tokens) if len(tokens) > 1 else None)
    return out


def rate(
    panel: Panel, probes: Sequence[Probe], rows: Sequence[Row | None], floor: float
) -> tuple[list[Probe], dict[str, Floats]]:
    """Probes with their scores, best first, and in that order the e-value that each tier gives.

    A prompt is good where the tiers' own choices, read along the parent's answer, would be
    evidence against the parent, and where the tiers differ among themselves; both a token spent.

    Args:
        panel: parent and tiers.
        probes, rows: as ``continuations`` gives them.
        floor: of the noise, nats.
    """
    kept = [(p, r) for p, r in zip(probes, rows, strict=True) if r is not None]
    base = panel.score(BASE, [r for _, r in kept])
    best = {name: [s.best for s in panel.score(name, [r for _, r in kept])] for name in panel.tiers}
    asked = [
        Row(r.prompt, r.tokens, tuple(tuple(int(best[n][i][t]) for n in panel.tiers)
                                      for t in range(len(r.tokens))))
        for i, (_, r) in enumerate(kept)
    ]  # fmt: skip
    looked = panel.score(BASE, asked) if panel.tiers else []
    evidence: dict[str, list[float]] = {name: [] for name in panel.tiers}
    rated = []
    for i, (probe, row) in enumerate(kept):
        against = []
        for k, name in enumerate(panel.tiers):
            flip = best[name][i] != base[i].best
            own = np.array([a[k] for a in looked[i].asked])
            top = base[i].logp + np.where(base[i].flip, base[i].gap, 0.0)
            margin = np.where(base[i].flip, 0.0, base[i].gap)
            gap = np.where(flip, np.maximum(top - own, 0.0), margin)
            value = prompt_e_values(gap, flip, np.zeros(len(gap), dtype=int), floor)[0]
            evidence[name].append(float(value))
            against.append(max(0.0, float(np.log(value))) / np.log(CAP))
        pairs = [
            float(min(1, int((best[a][i] != best[b][i]).sum())))
            for j, a in enumerate(panel.tiers)
            for b in panel.tiers[j + 1 :]
        ]
        worth = float(np.mean(against or [0])) + float(np.mean(pairs or [0]))
        cost = len(row.prompt) + len(row.tokens)
        rated.append(Probe(probe.text, probe.ids, worth / cost))
    order = sorted(range(len(rated)), key=lambda i: -rated[i].score)
    return [rated[i] for i in order], {n: np.array(v)[order] for n, v in evidence.items()}
