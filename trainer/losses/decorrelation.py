"""L_decor: the expression code must not tell what is said (METHOD.md section 4).

`cor` is Pearson's correlation over the present batch together with a bank of past features;
the gradient flows through the present batch only.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class MemoryBank(nn.Module):
    """The last `size` features of `dims`, oldest overwritten first; saved with the stage."""

    rows: Tensor
    state: Tensor

    def __init__(self, size: int, dims: int) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(size, dims))
        self.register_buffer("state", torch.zeros(2, dtype=torch.long))

    @property
    def count(self) -> int:
        """Rows that hold something."""
        return int(self.state[1])

    @torch.no_grad()
    def push(self, features_ND: Tensor) -> None:
        """Keep a copy without its gradient."""
        size = len(self.rows)
        fresh = features_ND.detach()[-size:].to(self.rows)
        start = int(self.state[0])
        at = (torch.arange(len(fresh), device=self.rows.device) + start) % size
        self.rows[at] = fresh
        self.state[0] = (start + len(fresh)) % size
        self.state[1] = min(self.count + len(fresh), size)

    def together(self, features_ND: Tensor) -> Tensor:
        """The features followed by what the bank holds; nothing flows back into the bank."""
        return torch.cat([features_ND, self.rows[: self.count].to(features_ND)])


def _standard(x_ND: Tensor) -> Tensor:
    centred = x_ND - x_ND.mean(0)
    return centred / (centred.square().mean(0) + 1e-8).sqrt()


def same_dimension(expression_ND: Tensor, audio_ND: Tensor) -> Tensor:
    """Variant a: (1/D) sum_d cor(Fe_d, Fa_d)^2, for features of equal length (512-d)."""
    if expression_ND.shape != audio_ND.shape:
        raise ValueError(f"shapes differ: {expression_ND.shape} and {audio_ND.shape}")
    cor = (_standard(expression_ND) * _standard(audio_ND)).mean(0)
    return cor.square().mean()


def cross_correlation(expression_ND: Tensor, audio_NE: Tensor) -> Tensor:
    """Variant b: mean of the squares of the whole (D, E) correlation matrix."""
    a, b = _standard(expression_ND), _standard(audio_NE)
    cor = a.t() @ b / len(a)
    return cor.square().mean()


def decorrelation(
    expression_ND: Tensor,
    audio_NE: Tensor,
    expression_bank: MemoryBank,
    audio_bank: MemoryBank,
    *,
    variant: str,
) -> Tensor:
    """L_decor over batch and banks; the batch is then pushed into the banks.

    Rows of both features belong to the same frames, so that the banks stay in step. A batch
    of fewer than two rows together with the banks has no correlation: the loss is 0.
    """
    a, b = expression_bank.together(expression_ND), audio_bank.together(audio_NE)
    expression_bank.push(expression_ND)
    audio_bank.push(audio_NE)
    if len(a) < 2:
        return expression_ND.sum() * 0
    return {"a": same_dimension, "b": cross_correlation}[variant](a, b)
