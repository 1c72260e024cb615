"""Several processes, one training: what `torchrun` starts behaves like one process with the
same global batch.

Every process draws its own part of the same batch, gradients are averaged, batch statistics
and contrastive embeddings are shared. With one process everything here is the identity.
"""

from __future__ import annotations

import os
from collections.abc import Iterable

import torch
import torch.distributed as dist
import torch.distributed.nn.functional as dist_nn
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def world() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if world() > 1 else 0


def start(device: str) -> torch.device:
    """Join the group that `torchrun` announces in the environment; returns this process's device.

    `auto` is CUDA where there is one. Without `torchrun` nothing is started.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and "LOCAL_RANK" in os.environ:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    found = torch.device(device)
    if found.type == "cuda":
        torch.cuda.set_device(found)
    return found


def stop() -> None:
    """Leave the group."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def gather(x: Tensor) -> Tensor:
    """Rows of all processes in order of rank, (world * N, ...); the gradient finds its way back."""
    if world() == 1:
        return x
    parts: list[Tensor] = list(dist_nn.all_gather(x.contiguous()))  # type: ignore[no-untyped-call]
    return torch.cat(parts)


def mean(values: Tensor) -> Tensor:
    """Mean of all processes, without gradient."""
    if world() == 1:
        return values
    total = values.clone()
    dist.all_reduce(total)
    return total / world()


def share_gradients(parameters: Iterable[Tensor]) -> None:
    """Average the gradients of all processes, in one message.

    Done by hand instead of by `DistributedDataParallel`, because the stages call parts of
    networks, freeze others and go backwards through two networks in turn.
    """
    if world() == 1:
        return
    mine = [p for p in parameters if p.requires_grad]
    for p in mine:
        if p.grad is None:
            p.grad = torch.zeros_like(p)
    flat = torch.cat([p.grad.flatten() for p in mine if p.grad is not None])
    dist.all_reduce(flat)
    flat /= world()
    start_at = 0
    for p in mine:
        assert p.grad is not None
        p.grad.copy_(flat[start_at : start_at + p.numel()].view_as(p))
        start_at += p.numel()


def same_everywhere(modules: Iterable[nn.Module]) -> None:
    """Copy weights and buffers of process 0 to all others."""
    if world() == 1:
        return
    for module in modules:
        for value in module.state_dict().values():
            dist.broadcast(value, 0)


class SharedBatchNorm(_BatchNorm):
    """Batch normalisation over the batch of all processes; parameters and names as before."""

    @staticmethod
    def instead_of(norm: _BatchNorm) -> SharedBatchNorm:
        """The same layer, with the very same parameters and buffers."""
        new = SharedBatchNorm(norm.num_features, norm.eps, norm.momentum)
        new.weight, new.bias = norm.weight, norm.bias
        for name, value in norm.named_buffers():
            new.register_buffer(name, value)
        new.training = norm.training
        return new

    def _check_input_dim(self, input: Tensor) -> None:
        if input.ndim < 2:
            raise ValueError(f"expected (B, C, ...), got {tuple(input.shape)}")

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, ...) of this process, normalised by everybody's rows while it trains."""
        if not self.training or world() == 1:
            return super().forward(input)
        axes = [0, *range(2, input.ndim)]
        shape = [1, -1] + [1] * (input.ndim - 2)
        wide = input.float()
        mine = torch.stack([wide.sum(axes), wide.square().sum(axes)])
        sums: Tensor = dist_nn.all_reduce(mine)  # type: ignore[no-untyped-call]
        count = input.numel() / input.shape[1] * world()
        mean = sums[0] / count
        var = sums[1] / count - mean * mean
        with torch.no_grad():
            assert self.running_mean is not None
            assert self.running_var is not None
            assert self.num_batches_tracked is not None
            momentum = 0.1 if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean, momentum)
            self.running_var.lerp_(var * (count / max(count - 1, 1)), momentum)
            self.num_batches_tracked += 1
        out = (wide - mean.view(shape)) * (var + self.eps).rsqrt().view(shape)
        done: Tensor = out * self.weight.view(shape) + self.bias.view(shape)
        return done.to(input.dtype)


def share_batch_norms(module: nn.Module) -> None:
    """Let every batch norm below `module` see the batches of all processes; alone: nothing."""
    if world() == 1:
        return
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
            setattr(module, name, SharedBatchNorm.instead_of(child))
        else:
            share_batch_norms(child)
