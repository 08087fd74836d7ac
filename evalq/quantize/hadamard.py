"""Orthogonal matrices that spread every coordinate evenly over all others."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["has_hadamard", "rotation_matrix"]


def _is_prime(n: int) -> bool:
    return n > 1 and all(n % d for d in range(2, int(n**0.5) + 1))


def _paley(order: int) -> Tensor | None:
    """A Hadamard matrix by Paley's constructions (1933), or ``None`` where neither gives one."""
    for first in (True, False):
        q = order - 1 if first else order // 2 - 1
        if order % 4 or not _is_prime(q) or q % 4 != (3 if first else 1):
            continue
        squares = {(x * x) % q for x in range(1, q)}
        chi = torch.tensor([0] + [1 if x in squares else -1 for x in range(1, q)])
        rows = torch.arange(q)
        jacobsthal = chi[(rows[:, None] - rows[None, :]) % q].double()
        core = torch.zeros(q + 1, q + 1, dtype=torch.float64)
        core[0, 1:] = 1
        core[1:, 0] = -1 if first else 1
        core[1:, 1:] = jacobsthal
        if first:
            return core + torch.eye(q + 1, dtype=torch.float64)
        plus = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
        diagonal = torch.tensor([[1.0, -1.0], [-1.0, -1.0]], dtype=torch.float64)
        return torch.kron(core, plus) + torch.kron(torch.eye(q + 1, dtype=torch.float64), diagonal)
    return None


def _hadamard(order: int) -> Tensor | None:
    if order in (1, 2):
        return torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)[:order, :order]
    found = _paley(order)
    if found is not None:
        return found
    half = _hadamard(order // 2) if order % 2 == 0 else None
    two = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    return None if half is None else torch.kron(two, half)


def has_hadamard(order: int) -> bool:
    """Whether a Hadamard matrix of that order is constructed here (Sylvester's and Paley's)."""
    return _hadamard(order) is not None


def rotation_matrix(order: int, seed: int) -> Tensor:
    """An orthogonal float64 ``[order, order]``: a Hadamard matrix with random signs.

    Where no Hadamard matrix of the order is known here, the largest power of two in the order is
    Hadamard and the rest a random orthogonal matrix (their Kronecker product).
    """
    generator = torch.Generator().manual_seed(seed)
    base = _hadamard(order)
    if base is None:
        power = order & -order
        rest = torch.randn(order // power, order // power, generator=generator, dtype=torch.float64)
        orthogonal, upper = torch.linalg.qr(rest)
        spread = _hadamard(power)
        assert spread is not None
        base = torch.kron(
            (spread / power**0.5).contiguous(),
            (orthogonal * torch.sign(upper.diagonal())).contiguous(),
        )
    else:
        base = base / order**0.5
    signs = torch.randint(0, 2, (order,), generator=generator).double() * 2 - 1
    return signs[:, None] * base
