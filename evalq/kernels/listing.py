"""What `evalq list kernels` shows: which kernel would run each scheme here, and why."""

from __future__ import annotations

from typing import Any

import torch

from evalq.errors import KernelError
from evalq.kernels.dispatch import KERNELS, ORDER, choose
from evalq.schema import PerChannel, PerGroup, WeightScheme

__all__ = ["list_kernels"]

_SHAPE = (4096, 4096)
_SCHEMES = (
    (WeightScheme(8, PerChannel()), 8),
    (WeightScheme(8, PerChannel()), None),
    (WeightScheme(8, PerGroup(128)), None),
    (WeightScheme(6, PerGroup(128)), None),
    (WeightScheme(4, PerGroup(128)), None),
    (WeightScheme(4, PerGroup(128), symmetric=False), None),
    (WeightScheme(3, PerGroup(128)), None),
    (WeightScheme(2, PerGroup(64), symmetric=False), None),
)


def list_kernels(
    device: torch.device | str | None = None, shape: tuple[int, int] = _SHAPE
) -> dict[str, Any]:
    """Every kernel, and what would run the usual schemes on this machine.

    Args:
        device: ``cuda`` where there is one, else ``cpu``.
        shape: ``(out, in)`` of the layer that is asked about.

    Returns:
        ``{device, kernels: [{name, summary, order}], choices: [{scheme, dtype, rows, kernel, path,
        why}]}``; ``kernel`` is ``None`` where nothing runs it, and ``why`` then says why not.

    Raises:
        KernelError: a device that is not here, or that nothing is written for.
    """
    name = str(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if name.partition(":")[0] not in ORDER:
        raise KernelError(f"no kernels are written for {name!r}", hint="Use cpu or cuda.")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise KernelError("there is no CUDA device here", hint="Use cpu, or run this on the GPU.")
    target = torch.device(name)
    order = ORDER.get(target.type, ())
    kernels = [
        {
            "name": name,
            "summary": KERNELS.summary(name),
            "order": order.index(name) + 1 if name in order else None,
        }
        for name in sorted(KERNELS, key=lambda n: (n not in order, n))
    ]
    dtypes = (torch.float32, torch.bfloat16, torch.float16)
    choices: list[dict[str, Any]] = []
    for scheme, activation_bits in _SCHEMES:
        for dtype in dtypes:
            for rows in (1, 64):
                row: dict[str, Any] = {
                    "scheme": f"{scheme}{'-a8' if activation_bits else ''}",
                    "dtype": str(dtype).removeprefix("torch."),
                    "rows": rows,
                }
                try:
                    choice = choose(target, dtype, scheme, shape, rows, activation_bits)
                    row |= {"kernel": choice.name, "path": choice.path, "why": choice.why}
                except KernelError as error:
                    row |= {"kernel": None, "path": None, "why": error.message}
                choices.append(row)
    return {"device": str(target), "kernels": kernels, "choices": choices}
