"""Checks, tunes and times the Triton kernel on a CUDA GPU, in one run.

    python -m benchmarks.kernels_gpu check           # the grid against float64, in parallel
    python -m benchmarks.kernels_gpu tune --bits 4 --rows 1 16 64 256
    python -m benchmarks.kernels_gpu verify          # every stored launch, many times over
    python -m benchmarks.kernels_gpu bench
    python -m benchmarks.kernels_gpu w8a8            # int8 activations: against float64, and timed

``tune`` writes ``OUT/tuned.json`` (to be stored as ``evalq/kernels/tuned/<gpu>.json``), ``bench``
writes ``OUT/bench.json``; ``OUT`` is ``--out``. Weights are rotated beyond the L2 cache, launches
are replayed from CUDA graphs, and every figure is the median of ten replays.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernels_launches import KERNELS, candidates
from evalq.kernels.base import PackedWeight
from evalq.kernels.op import pack, quantized_matmul
from evalq.kernels.packing import QuantizedWeight, group_count
from evalq.kernels.reference import quantize_activations
from evalq.kernels.triton_gpu import TRITON
from evalq.kernels.triton_launch import Launch, Problem, buckets, slug
from evalq.kernels.triton_pack import SETS
from evalq.schema import PerChannel, PerGroup, WeightScheme

SHAPES = ((4096, 4096), (4096, 14336), (14336, 4096), (8192, 28672))
"""Columns (K) by rows (N) of a weight."""
TABLES = Path(__file__).parent.parent / "evalq" / "kernels" / "tuned"
ROTATE = 192 * 2**20
"""Bytes of weights that a timed loop passes over: several times the L2 cache."""


def random_weight(
    bits: int, group: int | None, symmetric: bool, shape: tuple[int, int], scales: torch.dtype
) -> QuantizedWeight:
    scheme = WeightScheme(bits, PerChannel() if group is None else PerGroup(group), symmetric)
    groups = group_count(scheme, shape[1])
    codes = torch.randint(0, 1 << bits, shape, dtype=torch.uint8, device="cuda")
    scale = (torch.rand(shape[0], groups, device="cuda") * 0.02 + 0.001).to(scales)
    zeros = None
    if not symmetric:
        zeros = torch.randint(0, 1 << bits, (shape[0], groups), dtype=torch.uint8, device="cuda")
    return QuantizedWeight(codes, scale, zeros, scheme, shape)


def copies(packed: PackedWeight) -> list[PackedWeight]:
    count = max(2, min(24, -(-ROTATE // packed.bytes)))
    many = [replace(packed, tensors=tuple(t.clone() for t in packed.tensors)) for _ in range(count)]
    torch.cuda.synchronize()  # launches may fetch weights before the kernel before has ended
    return many


def timed(calls: list[Any], repeats: int = 10) -> float:
    """Microseconds of one call: the median replay of a graph that makes each call once."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for call in calls[:2]:
            call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for call in calls:
            call()
    graph.replay()
    torch.cuda.synchronize()
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / len(calls))
    return statistics.median(times)


def copy_bandwidth() -> float:
    """GB/s of the better of a device-to-device copy and a kernel that copies, read and written."""
    source = torch.randint(0, 2**31, (2**29,), dtype=torch.int32, device="cuda")
    target = torch.empty_like(source)
    by_engine = timed([lambda: target.copy_(source)] * 2)
    by_kernel = timed([lambda: torch.bitwise_not(source, out=target)] * 2)
    return 2 * source.numel() * 4 / min(by_engine, by_kernel) / 1e3


# -- check ---------------------------------------------------------------------------------------


def dense64(weight: QuantizedWeight) -> Tensor:
    size = weight.shape[1] if isinstance(weight.scheme.granularity, PerChannel) else 0
    size = size or weight.scheme.granularity.size  # type: ignore[union-attr]
    index = torch.arange(weight.shape[1], device="cuda") // size
    zero: Any = 2 ** (weight.scheme.bits - 1)
    if weight.zeros is not None:
        zero = weight.zeros.double()[:, index]
    return (weight.codes.double() - zero) * weight.scales.double()[:, index]


def check_one(case: tuple[int, int | None, bool, str, int]) -> list[tuple[str, float, bool]]:
    bits, group, symmetric, kind, only = case
    dtype = getattr(torch, kind)
    torch.manual_seed(bits)
    found = []
    # The first is packed with 16 columns a word, the second with 32.
    for shape in ((203, 1008), (203, 1075), (512, 1024))[: 3 if group == 128 else only]:
        weight = random_weight(bits, group, symmetric, shape, dtype)
        packed = pack(weight, "cuda", dtype, "triton")
        dense = dense64(weight)
        for rows in (1, 2, 3, 16, 17, 64, 257):
            x = torch.randn(rows, shape[1], device="cuda").to(dtype)
            for what in ("random", "outlier", "zero", "nan", "inf"):
                if what != "random" and rows not in (1, 17, 257):
                    continue
                y = x.clone()
                if what == "outlier":
                    y[:, 5] = 1e3
                elif what == "zero":
                    y.zero_()
                elif what in ("nan", "inf"):
                    y[0, 7] = float(what)
                result = quantized_matmul(y, packed)
                same = torch.equal(
                    result.view(torch.int16), quantized_matmul(y, packed).view(torch.int16)
                )
                expected = y.double() @ dense.T
                if what in ("nan", "inf"):
                    same = same and not torch.isfinite(result[0]).any()
                    result, expected = result[1:], expected[1:]
                    if rows == 1:
                        result = expected = torch.ones(1, device="cuda").double()
                if what == "zero":
                    error = float(result.abs().max())
                else:
                    error = float((result.double() - expected).norm() / expected.norm())
                found.append(
                    (f"{bits} {group} {symmetric} {kind} {shape} {rows} {what}", error, same)
                )
    return found


def check(args: argparse.Namespace) -> None:
    cases = [
        (bits, group, symmetric, kind, args.check_shapes)
        for bits in args.bits
        for group in (g or None for g in args.groups)
        for symmetric in (True, False)
        for kind in (("bfloat16", "float16") if group in (32, None) else ("bfloat16",))
    ]
    start = time.time()
    with ProcessPoolExecutor(args.processes, mp_context=get_context("spawn")) as pool:
        rows = [row for found in pool.map(check_one, cases) for row in found]
    limit = {"bfloat16": 1e-2, "float16": 2e-3}
    bad = [r for r in rows if not (r[1] <= limit[r[0].split()[3]] and r[2])]
    worst = {k: max((r[1] for r in rows if r[0].split()[3] == k), default=0.0) for k in limit}
    print(
        f"check: {len(rows)} products, {len(bad)} bad, worst {worst}, {time.time() - start:.0f} s"
    )
    for row in bad[:20]:
        print("  BAD", *row)


# -- tune ----------------------------------------------------------------------------------------


def precompile(job: tuple[int, int, int, list[tuple[int, dict[str, Any]]]]) -> int:
    """Compile launches in a process of its own; the results lie in Triton's cache on disk."""
    bits, width, rows, launches = job
    failed = 0
    for columns, launch in launches:
        weight = random_weight(bits, 128, True, (1024, columns), torch.bfloat16)
        packed = TRITON.pack_as(weight, torch.device("cuda"), torch.bfloat16, width)
        x = torch.randn(rows, columns, device="cuda").to(torch.bfloat16)
        try:
            TRITON.run(x, packed, Launch(**launch))
        except Exception as error:
            failed += 1
            if failed < 2:
                print("  cannot compile", launch, str(error)[:200], flush=True)
    return failed


def compiled(
    bits: int, width: int, rows: int, shapes: Any, kernels: Sequence[str] = KERNELS
) -> list[tuple[int, dict[str, Any]]]:
    """Launches that differ in what is compiled, each with columns that it fits."""
    found = set()
    for columns, out in shapes:
        problem = Problem(bits, 128, width, SETS[bits] * width, rows, out, columns, columns, True)
        for launch in candidates(problem, rows, kernels):
            split = min(launch.split, 2)
            turns = launch.turns(problem) if launch.kernel == "decode" else 8
            size = turns * launch.step * split * launch.ks
            found.add((size, replace(launch, split=split)))
    return [(size, asdict(launch)) for size, launch in sorted(found, key=str)]


def tune(args: argparse.Namespace) -> None:
    start = time.time()
    jobs = []
    for bits in args.bits:
        for rows in args.rows:
            for width in args.widths:
                chunk = SETS[bits] * width
                if chunk > 1024:
                    continue
                launches = compiled(bits, width, rows, args.shapes, args.kernels)
                size = 4
                jobs += [
                    (bits, width, rows, launches[i : i + size])
                    for i in range(0, len(launches), size)
                ]
    print(f"tune: {sum(len(j[3]) for j in jobs)} kernels to compile", flush=True)
    with ProcessPoolExecutor(args.processes, mp_context=get_context("spawn")) as pool:
        failed = sum(pool.map(precompile, jobs))
    print(f"tune: compiled in {time.time() - start:.0f} s, {failed} failed", flush=True)
    entries = []
    found: dict[str, Any] = {}
    for bits in args.bits:
        for columns, out in args.shapes:
            weight = random_weight(bits, 128, True, (out, columns), torch.bfloat16)
            for rows in args.rows:
                x = torch.randn(rows, columns, device="cuda").to(torch.bfloat16)
                results: list[tuple[float, int, Launch]] = []
                for width in args.widths:
                    if columns % (SETS[bits] * width) or SETS[bits] * width > 1024:
                        continue
                    packed = TRITON.pack_as(weight, torch.device("cuda"), torch.bfloat16, width)
                    many = copies(packed)
                    problem = TRITON.problem(rows, packed)
                    expected = x @ TRITON.dense(packed).T
                    for launch in candidates(problem, rows, args.kernels):
                        if time.time() - start > args.budget:
                            break
                        try:
                            result = TRITON.run(x, packed, launch)
                            error = float((result - expected).norm() / expected.norm())
                            if not error < 1e-2:
                                print("  WRONG", launch, f"{error:.2e}", flush=True)
                                continue
                            micro = timed(
                                [lambda p=p, c=launch, x=x: TRITON.run(x, p, c) for p in many], 3
                            )
                        except Exception as error:
                            if "out of resource" not in str(error):
                                print("  failed", launch, str(error)[:120], flush=True)
                            continue
                        results.append((micro, width, launch))
                    del many
                results.sort(key=lambda r: r[0])
                found[f"w{bits} M{rows} {columns}x{out}"] = [
                    (round(micro, 2), width, asdict(launch)) for micro, width, launch in results
                ]
                for micro, width, launch in results[:3]:
                    print(f"w{bits} M{rows} {columns}x{out} {micro:.1f} us C{width} {launch}")
                if results:
                    micro, width, launch = results[0]
                    entries.append(
                        {"bits": bits, "rows": buckets(rows), "out": out, "columns": columns,
                         "width": width, "micro": round(micro, 2), "launch": asdict(launch)}
                    )  # fmt: skip
    (args.out / "tried.json").write_text(json.dumps(found))
    (args.out / "tuned.json").write_text(
        json.dumps({"gpu": torch.cuda.get_device_name(), "launches": entries}, indent=1)
    )


def verify_one(entry: dict[str, Any]) -> tuple[str, float, int]:
    """One stored launch: its largest relative error, and how often it did not repeat itself."""
    torch.manual_seed(0)
    shape = (entry["out"], entry["columns"])
    weight = random_weight(entry["bits"], 128, True, shape, torch.bfloat16)
    packed = TRITON.pack_as(weight, torch.device("cuda"), torch.bfloat16, entry["width"])
    dense = TRITON.dense(packed).double()
    launch = Launch(**entry["launch"])
    worst, moved = 0.0, 0
    for rows in sorted({entry["rows"], max(1, entry["rows"] - 3)}):
        x = torch.randn(rows, shape[1], device="cuda").to(torch.bfloat16)
        expected = x.double() @ dense.T
        # Back to back, each may be launched while the one before it still runs.
        results = [TRITON.run(x, packed, launch) for _ in range(24)]
        for result in results:
            error = float((result.double() - expected).norm() / expected.norm())
            worst = max(worst, error if error == error else 1e9)
            moved += not torch.equal(result, results[0])
    key = {k: entry[k] for k in ("bits", "rows", "out", "columns")}
    return f"{key} {launch}", worst, moved


def verify(args: argparse.Namespace) -> None:
    """Every stored launch of this GPU on the shape that it was tuned for, many times over."""
    path = TABLES / f"{slug(torch.cuda.get_device_name())}.json"
    entries = json.loads(path.read_text())["launches"]
    with ProcessPoolExecutor(args.processes, mp_context=get_context("spawn")) as pool:
        found = list(pool.map(verify_one, entries))
    bad = [f for f in found if f[1] > 1e-2 or f[2]]
    print(f"verify: {len(found)} launches, {len(bad)} bad, worst {max(f[1] for f in found):.2e}")
    for name, worst, moved in bad:
        print("  BAD", name, f"error {worst:.2e}, {moved} moved")


def merge(args: argparse.Namespace) -> None:
    """Put launches of ``OUT/tuned.json`` that are faster into the stored table of this GPU."""
    found = json.loads((args.out / "tuned.json").read_text())
    path = TABLES / f"{slug(found['gpu'])}.json"
    stored = json.loads(path.read_text()) if path.exists() else {"gpu": found["gpu"]}
    key = ("bits", "rows", "out", "columns")
    table = {tuple(e[k] for k in key): e for e in stored.get("launches", ())}
    for entry in found["launches"]:
        there = table.get(tuple(entry[k] for k in key))
        if there is None or entry["micro"] < there["micro"]:
            table[tuple(entry[k] for k in key)] = entry
    text = json.dumps({**stored, "launches": list(table.values())}, indent=1) + "\n"
    path.write_text(text)
    (args.out / path.name).write_text(text)


# -- bench ---------------------------------------------------------------------------------------


def bench(args: argparse.Namespace) -> None:
    bandwidth = copy_bandwidth()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}: copy {bandwidth:.0f} GB/s")
    rows_out = []
    for columns, out in args.shapes:
        dense = [
            torch.randn(out, columns, device="cuda").to(torch.bfloat16)
            for _ in range(max(2, -(-ROTATE // (2 * out * columns))))
        ]
        packs = {}
        for bits in args.bits:
            weight = random_weight(bits, 128, True, (out, columns), torch.bfloat16)
            packs[bits] = copies(pack(weight, "cuda", torch.bfloat16))
        for rows in args.rows:
            x = torch.randn(rows, columns, device="cuda").to(torch.bfloat16)
            base = timed([lambda w=w, x=x: torch.nn.functional.linear(x, w) for w in dense])
            line = {"M": rows, "K": columns, "N": out, "cublas": round(base, 1)}
            for bits, many in packs.items():
                if rows > 256 and bits != 4:
                    continue
                micro = timed([lambda p=p, x=x: quantized_matmul(x, p) for p in many])
                line[f"w{bits}"] = round(micro, 1)
                line[f"w{bits}_ratio"] = round(base / micro, 2)
                line[f"w{bits}_gbs"] = round(many[0].bytes / micro / 1e3)
            rows_out.append(line)
            print(json.dumps(line), flush=True)
        del packs, dense
    (args.out / "bench.json").write_text(
        json.dumps({"gpu": torch.cuda.get_device_name(), "copy_gbs": bandwidth, "rows": rows_out})
    )


def w8a8(args: argparse.Namespace) -> None:
    """int8 weights times int8 activations: against the reference in float64, and beside cuBLAS."""
    worst, bad = 0.0, 0
    for shape in ((203, 1075), (512, 1024), (4096, 4096)):
        weight = random_weight(8, None, True, shape, torch.float32)
        packed = pack(weight, "cuda", torch.bfloat16, "triton-int8", 8)
        dense = dense64(weight)
        for rows in (1, 2, 3, 16, 17, 64, 257):
            x = torch.randn(rows, shape[1], device="cuda").to(torch.bfloat16)
            result = quantized_matmul(x, packed)
            expected = quantize_activations(x).double() @ dense.T
            error = float((result.double() - expected).norm() / expected.norm())
            again = quantized_matmul(x, packed)
            bad += not (error <= 1e-2 and torch.equal(result, again))
            worst = max(worst, error)
            x[0, 7] = float("nan")
            broken = quantized_matmul(x, packed)
            bad += bool(torch.isfinite(broken[0]).any())
            bad += rows > 1 and not torch.equal(broken[1:], result[1:])
    print(f"w8a8: {bad} bad of 63, worst {worst:.2e}")
    for columns, out in args.shapes:
        weight = random_weight(8, None, True, (out, columns), torch.float32)
        many = copies(pack(weight, "cuda", torch.bfloat16, "triton-int8", 8))
        dense = torch.randn(out, columns, device="cuda").to(torch.bfloat16)
        plain = [dense.clone() for _ in range(max(2, -(-ROTATE // dense.nbytes)))]
        for rows in args.rows:
            x = torch.randn(rows, columns, device="cuda").to(torch.bfloat16)
            base = timed([lambda w=w, x=x: torch.nn.functional.linear(x, w) for w in plain])
            micro = timed([lambda p=p, x=x: quantized_matmul(x, p) for p in many])
            print(f"w8a8 M{rows} {columns}x{out} {micro:.1f} us, cuBLAS {base:.1f} us, "
                  f"{base / micro:.2f}x", flush=True)  # fmt: skip


def _shape(text: str) -> tuple[int, int]:
    columns, out = text.split("x")
    return int(columns), int(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "what", nargs="+", choices=("check", "tune", "merge", "verify", "bench", "w8a8")
    )
    parser.add_argument("--bits", type=int, nargs="+", default=[8, 6, 4, 3, 2])
    parser.add_argument(
        "--groups", type=int, nargs="+", default=[32, 64, 128, 256, 0], help="of check; 0: a row"
    )
    parser.add_argument("--check-shapes", type=int, default=2, help="shapes of check, 1 or 2")
    parser.add_argument("--kernels", nargs="+", choices=KERNELS, default=KERNELS, help="to tune")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 16, 64, 256, 2048])
    parser.add_argument("--widths", type=int, nargs="+", default=[32])
    parser.add_argument("--shapes", type=_shape, nargs="+", default=SHAPES, metavar="KxN")
    parser.add_argument("--budget", type=float, default=240, help="seconds of tuning")
    parser.add_argument("--processes", type=int, default=14)
    parser.add_argument("--out", type=Path, default=Path("."))
    args = parser.parse_args()
    for what in args.what:
        jobs = {
            "check": check,
            "tune": tune,
            "merge": merge,
            "verify": verify,
            "bench": bench,
            "w8a8": w8a8,
        }
        jobs[what](args)


if __name__ == "__main__":
    main()
