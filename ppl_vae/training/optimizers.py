"""The optimizer of a training and the schedule of its learning rate, from what the user gave."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import torch
from pyro.optim import PyroOptim
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau


def make_optimizer(
    leaves: list[Tensor],
    optimizer: Callable[..., Optimizer] | None,
    learning_rate: float | None,
) -> Optimizer:
    """The optimizer of the leaves: Adam unless the user gave another.

    Raises:
        TypeError: `optimizer` does not make an optimizer of torch, or one that needs a closure.
    """
    if optimizer is None:
        fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in leaves)
        return torch.optim.Adam(
            leaves, lr=1e-3 if learning_rate is None else learning_rate, fused=fused
        )
    expected = (
        "expected a function that makes a torch optimizer of a list of tensors (torch.optim.AdamW)"
    )
    if isinstance(optimizer, Optimizer | PyroOptim) or not callable(optimizer):
        raise TypeError(f"optimizer is a {type(optimizer).__name__} object; {expected}")
    made = optimizer(leaves) if learning_rate is None else optimizer(leaves, lr=learning_rate)
    if not isinstance(made, Optimizer):
        raise TypeError(f"optimizer made a {type(made).__name__}; {expected}")
    closure = inspect.signature(made.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise TypeError(
            f"{type(made).__name__} evaluates the loss several times per step, which fit does not do: use an "
            "optimizer whose step() needs no closure, such as torch.optim.Adam"
        )
    return made


def make_scheduler(
    optimizer: Optimizer,
    lr_scheduler: Callable[[Optimizer], LRScheduler | ReduceLROnPlateau] | None,
) -> LRScheduler | ReduceLROnPlateau | None:
    """The schedule of an optimizer; None if the user gave none.

    Raises:
        TypeError: `lr_scheduler` does not make a schedule of torch.
    """
    made = None if lr_scheduler is None else lr_scheduler(optimizer)
    if not isinstance(made, LRScheduler | ReduceLROnPlateau | None):
        raise TypeError(
            f"lr_scheduler made a {type(made).__name__}; expected a function that makes a "
            "schedule of torch.optim.lr_scheduler from the optimizer"
        )
    return made
