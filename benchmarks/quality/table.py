"""The result lines of all tools as one table, with the ratio of evalq's best to the best peer's.

    python -m benchmarks.quality.table RESULTS.jsonl... --json OUT.json > OUT.md

Of each tool the variant with the least KL at a width is shown, by text: near and other may name
different settings of the same tool, and a ratio below 1 means that evalq's KL is lower. The
interval is a bootstrap over windows, which both variants were judged on.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

TEXTS = ("near", "other")
RESAMPLES = 4000
OURS = "evalq"


def stored_bits(scheme: str) -> float:
    """Bits a weight that a scheme stores: codes, and a 16-bit scale and perhaps a zero a group.

    >>> stored_bits("w4-g64-sym"), stored_bits("w4-g64-asym")
    (4.25, 4.3125)
    """
    width, group, side = scheme.split("-")
    bits, size = int(width[1:]), int(group[1:])
    return bits + (16 + (bits if side == "asym" else 0)) / size


def rows_of(files: Iterable[Path]) -> list[dict[str, Any]]:
    """All lines; a later line of the same parent, scheme and label replaces an earlier one."""
    found: dict[tuple[str, str, str], dict[str, Any]] = {}
    for file in files:
        for line in file.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            found[row["parent"], row["scheme"], row["label"]] = row
    return list(found.values())


def best(rows: Iterable[dict[str, Any]], text: str) -> dict[str, Any]:
    """The line of least KL on ``text``."""
    return min(rows, key=lambda r: float(r[text]["kl"]))


def ratio(ours: dict[str, Any], theirs: dict[str, Any], text: str) -> tuple[float, float, float]:
    """KL of ours over theirs, with the 95 % interval of a paired bootstrap over windows.

    The interval is NaN where a line has no KL by window.
    """
    if not all("kl_by_window" in r[text] for r in (ours, theirs)):
        return ours[text]["kl"] / theirs[text]["kl"], math.nan, math.nan
    a, b = (np.asarray(r[text]["kl_by_window"]) for r in (ours, theirs))
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, len(a), size=(RESAMPLES, len(a)))
    ratios = a[drawn].mean(1) / b[drawn].mean(1)
    low, high = np.quantile(ratios, (0.025, 0.975))
    return float(a.mean() / b.mean()), float(low), float(high)


def compare(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One entry for each parent and width that evalq and a peer both made."""
    found = []
    for parent, width in sorted({(r["parent"], r["scheme"].split("-")[0]) for r in rows}):
        some = [r for r in rows if r["parent"] == parent and r["scheme"].startswith(f"{width}-")]
        ours = [r for r in some if r["tool"] == OURS]
        peers = [r for r in some if r["tool"] != OURS]
        if not ours or not peers:
            continue
        entry: dict[str, Any] = {"parent": parent, "width": width}
        for text in TEXTS:
            mine, theirs = best(ours, text), best(peers, text)
            middle, low, high = ratio(mine, theirs, text)
            entry[text] = {
                "ours": mine["label"],
                "ours_scheme": mine["scheme"],
                "ours_kl": mine[text]["kl"],
                "peer": theirs["label"],
                "peer_scheme": theirs["scheme"],
                "peer_kl": theirs[text]["kl"],
                "ratio": middle,
                "interval": None if math.isnan(low) else [low, high],
            }
        found.append(entry)
    return found


def _line(cells: Iterable[Any]) -> str:
    return "| " + " | ".join(str(c) for c in cells) + " |"


def markdown(rows: list[dict[str, Any]]) -> str:
    """Both tables: all variants, and the ratios."""
    lines = [
        _line(["parent", "scheme", "bits a weight", "tool and settings", *_heads(), "seconds"]),
        _line(["---"] * 10),
    ]
    order = sorted(rows, key=lambda r: (r["parent"], -int(r["scheme"][1]), r["other"]["kl"]))
    for row in order:
        figures = [
            f"{row[t]['kl']:.4f} / {row[t]['perplexity_ratio']:.3f} / {row[t]['top1']:.3f}"
            for t in TEXTS
        ]
        seconds = row.get("seconds", "")
        bits = f"{stored_bits(row['scheme']):.4g}"
        lines.append(_line([row["parent"], row["scheme"], bits, row["label"], *figures, seconds]))
    lines[1] = _line(["---"] * 7)
    lines += ["", _line(["parent", "width", "text", "evalq", "best peer", "ratio", "95 %"])]
    lines.append(_line(["---"] * 7))
    for entry in compare(rows):
        for text in TEXTS:
            part = entry[text]
            mine = f"{part['ours_kl']:.4f} ({part['ours']}, {part['ours_scheme']})"
            theirs = f"{part['peer_kl']:.4f} ({part['peer']}, {part['peer_scheme']})"
            found = part["interval"]
            interval = "{:.2f} to {:.2f}".format(*found) if found else "not kept"
            cells = [entry["parent"], entry["width"], text, mine, theirs]
            lines.append(_line([*cells, f"{part['ratio']:.2f}", interval]))
    return "\n".join(lines)


def _heads() -> list[str]:
    return [f"{text}: KL / perplexity ratio / top-1" for text in TEXTS]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rows = rows_of(given.results)
    print(markdown(rows))
    if given.json:
        plain = [{k: v for k, v in r.items() if k not in TEXTS} for r in rows]
        for kept, row in zip(plain, rows, strict=True):
            for text in TEXTS:
                kept[text] = {k: v for k, v in row[text].items() if k != "kl_by_window"}
        whole = {"variants": plain, "ratios": compare(rows)}
        given.json.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
