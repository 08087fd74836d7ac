"""Published memory, bandwidth and arithmetic of devices that models are served on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from evalq.errors import PlanError, nearest

__all__ = ["DEVICES", "Device", "find_device"]


@dataclass(frozen=True, slots=True)
class Device:
    """One device, by its vendor's data sheet.

    Args:
        name: what ``--gpu`` takes.
        kind: ``gpu`` or ``laptop``.
        memory: bytes, in decimal gigabytes so that none is overstated.
        bandwidth: of that memory, bytes a second.
        flops: dense bfloat16 (float16 where there is none) operations a second; ``None`` where no
            figure is published that could be relied on.
    """

    name: str
    kind: Literal["gpu", "laptop"]
    memory: float
    bandwidth: float
    flops: float | None


def _gpu(name: str, gigabytes: float, gb_a_second: float, teraflops: float) -> Device:
    return Device(name, "gpu", gigabytes * 1e9, gb_a_second * 1e9, teraflops * 1e12)


def _laptop(name: str, gigabytes: float, gb_a_second: float) -> Device:
    return Device(name, "laptop", gigabytes * 1e9, gb_a_second * 1e9, None)


DEVICES: dict[str, Device] = {
    d.name: d
    for d in (
        _laptop("laptop-8gb", 8, 68),
        _laptop("laptop-16gb", 16, 90),
        _laptop("laptop-32gb", 32, 90),
        _laptop("laptop-64gb", 64, 90),
        _laptop("macbook-m4-16gb", 16, 120),
        _laptop("macbook-m4-pro-48gb", 48, 273),
        _laptop("macbook-m4-max-128gb", 128, 546),
        _gpu("t4", 16, 320, 65),
        _gpu("a10", 24, 600, 125),
        _gpu("l4", 24, 300, 121),
        _gpu("rtx-3090", 24, 936, 71),
        _gpu("rtx-4090", 24, 1008, 165),
        _gpu("rtx-5090", 32, 1792, 209),
        _gpu("a100-40gb", 40, 1555, 312),
        _gpu("l40s", 48, 864, 362),
        _gpu("a100", 80, 2039, 312),
        _gpu("h100", 80, 3350, 989),
        _gpu("h200", 141, 4800, 989),
        _gpu("mi300x", 192, 5300, 1307),
        _gpu("b200", 180, 7700, 2250),
    )
}
"""Every device by name: data sheets of NVIDIA, AMD and Apple; laptops by two channels of DDR5."""


def find_device(name: str) -> Device:
    """The device of that name, however it is written (``H100``, ``RTX 4090``).

    Raises:
        PlanError: no such device; the nearest is suggested.
    """
    key = name.strip().lower().replace(" ", "-").replace("_", "-")
    if key not in DEVICES:
        raise PlanError(f"no device {name!r} is known", hint=nearest(key, DEVICES))
    return DEVICES[key]
