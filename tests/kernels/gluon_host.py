"""Gluon kernels on the host: their source is run with a language made of torch tensors.

Gluon has no interpreter. What it adds to Triton, layouts, changes where values lie and not what
they are, so a kernel's arithmetic and addresses can be run without them: every operation works on
whole tensors, programs run one after another, copies arrive at once, and inline PTX is carried out
statement by statement. What this cannot show is what hardware adds: races, barriers that are
missing, and layouts that a compiler refuses.
"""

from __future__ import annotations

import re
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["launch", "load_kernel", "ptx"]

_NAMES = {
    "int1": torch.bool, "int16": torch.int16, "int32": torch.int32, "int64": torch.int64,
    "float16": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32,
}  # fmt: skip
_OURS = ("evalq.kernels.gluon_decode", "evalq.kernels.gluon_tiles")


class Kind:
    """A dtype as the language has it."""

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype

    @property
    def value(self) -> Kind:
        return self

    @property
    def element_ty(self) -> Kind:
        return self

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Kind) and self.dtype == other.dtype

    def __hash__(self) -> int:
        return hash(self.dtype)


def _raw(value: Any) -> Any:
    return value.data if isinstance(value, Value) else value


class Value:
    """A tensor, or a number, of the language."""

    def __init__(self, data: Tensor) -> None:
        self.data = data
        self.type = types.SimpleNamespace(layout=None)

    def to(self, kind: Kind, bitcast: bool = False) -> Value:
        return Value(self.data.view(kind.dtype) if bitcast else self.data.to(kind.dtype))

    def __getitem__(self, key: Any) -> Value:
        return Value(self.data[key])

    def __bool__(self) -> bool:
        return bool(self.data)

    def __index__(self) -> int:
        return int(self.data)


def _operator(name: str) -> Callable[..., Any]:
    def apply(self: Value, other: Any) -> Any:
        if isinstance(other, Pointer):
            return other + self
        left, right = self.data, _raw(other)
        if name == "__floordiv__":
            return Value(torch.div(left, right, rounding_mode="floor"))
        return Value(getattr(torch.as_tensor(left), name)(torch.as_tensor(right)))

    return apply


for _name in (
    "add", "radd", "sub", "rsub", "mul", "rmul", "floordiv", "mod", "and", "or", "lt", "le", "gt",
    "ge", "eq", "ne", "lshift", "rshift",
):  # fmt: skip
    setattr(Value, f"__{_name}__", _operator(f"__{_name}__"))


class Pointer:
    """Addresses into one flat tensor."""

    def __init__(self, base: Tensor, at: Tensor) -> None:
        self.base, self.at = base, at
        self.dtype = Kind(base.dtype)

    def __add__(self, other: Any) -> Pointer:
        return Pointer(self.base, self.at + _raw(other))

    __radd__ = __add__


class Memory:
    """Shared memory: views of one tensor. It begins as NaN or as the lowest number."""

    def __init__(self, data: Tensor) -> None:
        self.data = data

    def index(self, at: Any) -> Memory:
        return Memory(self.data[int(at)])

    def slice(self, start: int, length: int, dim: int = 0) -> Memory:
        return Memory(self.data.narrow(dim, start, length))

    def permute(self, order: tuple[int, ...]) -> Memory:
        return Memory(self.data.permute(order))

    def load(self, layout: Any) -> Value:
        return Value(self.data.clone())

    def store(self, value: Value) -> None:
        assert value.data.dtype == self.data.dtype
        self.data.copy_(value.data)


# -- inline PTX ------------------------------------------------------------------------------------


def _halves(word: Tensor, dtype: torch.dtype) -> Tensor:
    """float32 ``[..., 2]`` of the two halves of 32-bit words (int64)."""
    both = torch.stack([word & 0xFFFF, word >> 16 & 0xFFFF], -1)
    signed = torch.where(both >= 1 << 15, both - (1 << 16), both).to(torch.int16)
    return signed.view(dtype).to(torch.float32)


def _word(halves: Tensor, dtype: torch.dtype) -> Tensor:
    bits = halves.to(dtype).view(torch.int16).to(torch.int64) & 0xFFFF
    return bits[..., 0] | bits[..., 1] << 16


def ptx(text: str, inputs: list[Tensor]) -> Tensor:
    """What inline PTX of 32-bit registers leaves in ``$0``: int64 words for int64 words."""
    registers: dict[str, Tensor] = {f"${i + 1}": word for i, word in enumerate(inputs)}

    def read(name: str) -> Tensor:
        return registers[name] if name in registers else torch.tensor(int(name, 0))

    for statement in re.split(r";", text.replace("{", "").replace("}", "")):
        words = statement.replace(",", " ").split()
        if not words or words[0] == ".reg":
            continue
        op, to, *names = words
        values = [read(name) for name in names]
        if op == "lop3.b32":
            assert names[-1] == "0xEA"  # (a and b) or c
            registers[to] = values[0] & values[1] | values[2]
        elif op == "shr.b32":
            registers[to] = values[0] >> values[1]
        elif op == "mov.b32":
            registers[to] = values[0]
        else:
            kind, _, pair = op.split(".")
            dtype = {"bf16x2": torch.bfloat16, "f16x2": torch.float16}[pair]
            a, b = (_halves(v, dtype) for v in values)
            registers[to] = _word({"sub": a - b, "mul": a * b}[kind], dtype)
    return registers["$0"]


def _asm(text: str, form: str, args: list[Value], *, dtype: Kind, is_pure: bool, pack: int) -> Any:
    if "griddepcontrol" in text:
        return None
    shape = torch.broadcast_shapes(*(a.data.shape for a in args))
    assert pack == 2
    assert len(args) == form.count("r") - 1
    words = []
    for arg in args:
        whole = arg.data.expand(shape).to(torch.int64) & 0xFFFF
        words.append(whole[..., ::2] | whole[..., 1::2] << 16)
    result = ptx(text, words)
    both = torch.stack([result & 0xFFFF, result >> 16 & 0xFFFF], -1).reshape(shape)
    return Value(both.to(torch.int16).view(dtype.dtype))


# -- the language ----------------------------------------------------------------------------------


def _load(at: Pointer, mask: Any = None, other: float = 0.0, cache_modifier: str = "") -> Value:
    where = at.at
    keep = torch.ones_like(where, dtype=torch.bool)
    if mask is not None:
        where, keep = torch.broadcast_tensors(where, _raw(mask))
    assert ((where >= 0) & (where < at.base.numel()))[keep].all(), "an address outside of a tensor"
    found = at.base.flatten()[where.where(keep, 0)]
    return Value(found.where(keep, torch.tensor(other, dtype=found.dtype)))


def _store(at: Pointer, value: Any, mask: Any = None) -> None:
    data = torch.as_tensor(_raw(value)).to(at.base.dtype)
    where = at.at
    keep = torch.ones_like(where, dtype=torch.bool) if mask is None else _raw(mask)
    where, keep, data = torch.broadcast_tensors(where, keep, data)
    assert ((where >= 0) & (where < at.base.numel()))[keep].all(), "an address outside of a tensor"
    at.base.view(-1)[where[keep]] = data[keep]


def _atomic_add(at: Pointer, value: int, sem: str, scope: str) -> Value:
    assert sem == "acq_rel"
    before = at.base.view(-1)[at.at].clone()
    at.base.view(-1)[at.at] += value
    return Value(before)


def _allocate(kind: Kind, shape: tuple[int, ...], layout: Any) -> Memory:
    # What is read before it is written has to show.
    return Memory(torch.full(shape, float("nan"), dtype=kind.dtype))


def _mma(a: Value, b: Any, acc: Value, **_: Any) -> Value:
    product = a.data.to(torch.float32) @ b.data.to(torch.float32)
    return Value(acc.data + product)


def _copy(to: Memory, at: Pointer, mask: Any) -> None:
    to.data.copy_(_load(at, mask).data)


class _Layout:
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass


class _Constexpr:
    def __new__(cls, value: Any) -> Any:  # type: ignore[misc]
        return value


_program: tuple[tuple[int, ...], tuple[int, ...]] = ((0, 0, 0), (1, 1, 1))


def _reduce(whole: Callable[[Tensor, int], Tensor]) -> Callable[..., Value]:
    return lambda value, axis: Value(whole(value.data, axis))


def _language() -> types.ModuleType:
    gl = types.ModuleType("language")
    simple: dict[str, Any] = {
        "constexpr": _Constexpr,
        "arange": lambda a, b, layout=None: Value(torch.arange(a, b, dtype=torch.int32)),
        "full": lambda shape, v, kind, layout=None: Value(torch.full(shape, v, dtype=kind.dtype)),
        "zeros": lambda shape, kind, layout=None: Value(torch.zeros(shape, dtype=kind.dtype)),
        "program_id": lambda axis: Value(torch.tensor(_program[0][axis], dtype=torch.int32)),
        "num_programs": lambda axis: Value(torch.tensor(_program[1][axis], dtype=torch.int32)),
        "minimum": lambda a, b: Value(torch.minimum(*map(torch.as_tensor, (_raw(a), _raw(b))))),
        "where": lambda c, a, b: Value(torch.where(_raw(c), _raw(a), _raw(b))),
        "reshape": lambda v, shape: Value(v.data.reshape(shape)),
        "permute": lambda v, order: Value(v.data.permute(order)),
        "convert_layout": lambda v, layout, assert_trivial=False: v,
        "sum": _reduce(lambda t, axis: t.sum(axis)),
        "max": _reduce(lambda t, axis: t.max(axis).values),
        "static_range": range,
        "thread_barrier": lambda: None,
        "inline_asm_elementwise": _asm,
        "load": _load,
        "store": _store,
        "atomic_add": _atomic_add,
        "allocate_shared_memory": _allocate,
    }
    for name, function in simple.items():
        setattr(gl, name, function)
    for name, dtype in _NAMES.items():
        setattr(gl, name, Kind(dtype))
    for name in (
        "BlockedLayout", "DistributedLinearLayout", "DotOperandLayout", "NVMMADistributedLayout",
        "NVMMASharedLayout", "SliceLayout", "SwizzledSharedLayout",
    ):  # fmt: skip
        setattr(gl, name, _Layout)
    return gl


def _jit(function: Any = None, **_: Any) -> Any:
    return function if function is not None else lambda f: f


def _modules() -> dict[str, types.ModuleType]:
    root = "triton.experimental"
    names = (
        root, f"{root}.gluon", f"{root}.gluon.language", f"{root}.gluon.language.nvidia",
        f"{root}.gluon.language.nvidia.ampere", f"{root}.gluon.language.nvidia.hopper",
    )  # fmt: skip
    found = {name: types.ModuleType(name) for name in names}
    found[names[2]] = _language()
    found[root].gluon = found[names[1]]  # type: ignore[attr-defined]
    found[names[1]].jit = _jit  # type: ignore[attr-defined]
    found[names[1]].language = found[names[2]]  # type: ignore[attr-defined]
    found[names[4]].mma_v2 = _mma  # type: ignore[attr-defined]
    hopper: Any = found[names[5]]
    hopper.warpgroup_mma = _mma
    hopper.warpgroup_mma_wait = lambda outstanding, deps: deps[0]
    hopper.fence_async_shared = lambda: None
    hopper.async_copy = types.SimpleNamespace(
        async_copy_global_to_shared=lambda to, at, mask: _copy(to, at, mask),
        commit_group=lambda: None,
        wait_group=lambda outstanding: None,
    )
    return found


def load_kernel(name: str) -> types.ModuleType:
    """``evalq.kernels.<name>``, its source run in the language of this module."""
    import evalq.kernels

    replaced = _modules()
    kept = {key: sys.modules.get(key) for key in (*replaced, *_OURS)}
    try:
        for key in _OURS:
            sys.modules.pop(key, None)
        sys.modules.update(replaced)
        module = types.ModuleType(f"host_{name}")
        path = Path(evalq.kernels.__file__).parent / f"{name}.py"
        if name != "gluon_decode":
            sys.modules["evalq.kernels.gluon_decode"] = load_kernel("gluon_decode")
            sys.modules.update(replaced)
        exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), module.__dict__)
        return module
    finally:
        for key, value in kept.items():
            if value is None:
                sys.modules.pop(key, None)
            else:
                sys.modules[key] = value


def launch(
    kernel: Callable[..., None], grid: tuple[int, ...], tensors: list[Tensor], numbers: list[int],
    **constants: Any,
) -> None:  # fmt: skip
    """Run every program of a grid, one after another."""
    global _program
    whole = (*grid, 1, 1)[:3]
    pointers = [Pointer(t, torch.tensor(0, dtype=torch.int64)) for t in tensors]
    scalars = [Value(torch.tensor(n, dtype=torch.int32)) for n in numbers]
    for z in range(whole[2]):
        for y in range(whole[1]):
            for x in range(whole[0]):
                _program = ((x, y, z), whole)
                kernel(*pointers, *scalars, **constants)
