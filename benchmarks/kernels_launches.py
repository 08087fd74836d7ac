"""Launches of the GPU kernels that are worth a try on a problem, for ``kernels_gpu tune``."""

from __future__ import annotations

from collections.abc import Sequence

from evalq.kernels.triton_launch import Launch, Problem, buckets

KERNELS = ("decode", "sub", "tiles", "triton")
"""What is tried: ``"sub"`` is the decode kernel without sums of activations."""
DECODE = ((128, 8, 1), (64, 4, 1), (32, 4, 2), (16, 4, 4))
"""Rows of the weight, warps and parts of K of a program, for up to 16 rows of activations."""
FEW = ((64, 2), (64, 4), (128, 2), (128, 4))
"""The same where weights go through shared memory: for more rows than one."""
MANY = {
    32: ((64, 32, 4), (128, 32, 4)),
    64: ((64, 64, 4), (128, 64, 4), (128, 64, 8)),
    128: ((64, 64, 4), (128, 64, 8), (128, 128, 8)),
    256: ((128, 64, 8), (128, 128, 8)),
    1024: ((128, 128, 8), (256, 128, 8), (128, 256, 8)),
}
"""Rows of the weight, rows of the activations and warps, by bucket of rows."""
TILES = {32: (64,), 64: (64,), 128: (64, 128), 256: (128, 256), 1024: (128, 256)}
"""Rows of the activations, by bucket of rows, for the kernel of warpgroups."""


def decode_candidates(problem: Problem, bucket: int, base: int) -> list[Launch]:
    found = []
    for bn, warps, ks in DECODE[: 3 if bucket > 1 else None]:
        for split in (1, 2, 4, 7, 8, 14, 16):
            for step in (base, 2 * base, 4 * base, 8 * base):
                held = bn * step * ks * problem.bits // 8 // (32 * warps)  # bytes a thread
                every = -(-problem.out // bn) * split * warps / 132  # warps a multiprocessor
                if every >= 6 and split * ks <= 16 and 64 <= held <= 256:
                    found += [
                        Launch(
                            bn, max(8, bucket), split, step, False, warps, 1, ks, "decode", summed
                        )
                        for summed in (True, False)
                    ]
    return found


def triton_candidates(problem: Problem, bucket: int, base: int) -> list[Launch]:
    if bucket <= 16:
        return [
            Launch(bn, bucket, split, step, False, warps, stages)
            for bn, warps in FEW
            for split in (1, 2, 4, 7, 8, 14, 16)
            for stages in (3, 5)
            for step in (base, 2 * base)
        ]
    return [
        Launch(bn, bm, split, base, scaled, warps, stages)
        for bn, bm, warps in MANY[bucket]
        for split in ((1,) if bucket > 256 else (1, 2, 4, 7))
        for stages in ((3,) if bucket >= 256 else (2, 3, 4))
        for scaled in ((False, True) if bucket <= 64 else (True,))
    ]


def tile_candidates(problem: Problem, bucket: int) -> list[Launch]:
    found = []
    for bm in TILES[bucket]:
        for bn, warps in ((128, 8), (64, 4))[: 2 if bm == 64 else 1]:
            for split in (1, 2, 4, 7, 8):
                programs = -(-problem.out // bn) * -(-problem.rows // bm) * split
                if split == 1 or programs <= 132 * 4:
                    launch = Launch(bn, bm, split, problem.chunk, True, warps, 4, 1, "tiles")
                    found.append(launch)
    return found


def candidates(problem: Problem, rows: int, kernels: Sequence[str] = KERNELS) -> list[Launch]:
    """Launches worth a try by the kernels named; ``"sub"``: decode without sums."""
    bucket = buckets(rows)
    base = max(problem.chunk, min(problem.group or 128, 128))
    found = []
    if bucket <= 16:
        decode = decode_candidates(problem, bucket, base)
        found += [c for c in decode if ("decode" if c.summed else "sub") in kernels]
    elif "tiles" in kernels:
        found += tile_candidates(problem, bucket)
    if "triton" in kernels and bucket > 1:
        found += triton_candidates(problem, bucket, base)
    return [c for c in found if c.fits(problem) and c.shared_bytes(problem) < 225_000]
