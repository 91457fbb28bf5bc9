"""The optimizer's step without the Python around it, for thousands of steps in a row."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.optim import Adam, AdamW, Optimizer, optimizer as torch_optimizer


class Update:
    """Moves parameters along given gradients as `optimizer.step()` does, bit by bit.

    torch's Adam collects its parameters and their averages anew in each step, which takes longer than a fused
    update of a small network. Here the lists are made once, as long as the optimizer is plain: Adam or AdamW of
    torch with `fused=True`, numbers as options, and all state in place. Hooks of the user's run as in `step()`.
    Any other optimizer takes its own step.

    Args:
        optimizer: The optimizer. Settings such as "lr" may change between steps.
        leaves: The parameters whose gradients are given.

    Example:
        >>> leaf = torch.ones(3, requires_grad=True)
        >>> adam = torch.optim.Adam([leaf], lr=0.1, fused=True)
        >>> leaf.grad = torch.ones(3)
        >>> adam.step()
        >>> update = Update(adam, [leaf])
        >>> update.prepare([leaf.grad])
        True
        >>> update([torch.ones(3)])
        >>> leaf
        tensor([0.8000, 0.8000, 0.8000], requires_grad=True)
    """

    def __init__(self, optimizer: Optimizer, leaves: Sequence[Tensor]) -> None:
        self.optimizer = optimizer
        self.leaves = list(leaves)
        self._groups: list[_ParameterGroup] | None = None

    @property
    def has_hooks(self) -> bool:
        """Whether something of the user's runs with each step."""
        optimizer = self.optimizer
        return bool(
            optimizer._optimizer_step_pre_hooks
            or optimizer._optimizer_step_post_hooks
            or torch_optimizer._global_optimizer_pre_hooks
            or torch_optimizer._global_optimizer_post_hooks
        )

    def prepare(self, gradients: Sequence[Tensor | None]) -> bool:
        """Makes the lists for gradients of which the same are None; whether the optimizer allows it."""
        self._groups = self._collect(gradients)
        return self._groups is not None

    def __call__(self, gradients: Sequence[Tensor | None]) -> None:
        """Takes a step."""
        if self._groups is None:
            self.show(gradients)
            self.optimizer.step()
        elif self.has_hooks:
            self.show(gradients)
            self.run_hooks(ahead=True)
            self.fused([leaf.grad for leaf in self.leaves])
            self.run_hooks(ahead=False)
        else:
            self.fused(gradients)
            self.optimizer._opt_called = True  # type: ignore[attr-defined]  # a schedule asks for it

    def show(self, gradients: Sequence[Tensor | None]) -> None:
        """Puts the gradients where the optimizer, and hooks, look for them."""
        for leaf, gradient in zip(self.leaves, gradients, strict=True):
            leaf.grad = gradient

    def fused(self, gradients: Sequence[Tensor | None]) -> None:
        """The arithmetic of a step alone, without hooks."""
        assert self._groups is not None
        for group in self._groups:
            torch._foreach_add_(group.steps, 1)  # type: ignore[attr-defined, unused-ignore]
            options = group.options
            beta1, beta2 = options["betas"]
            group.function(
                group.leaves,
                [gradients[i] for i in group.places],
                *group.averages,
                group.steps,
                amsgrad=options["amsgrad"],
                lr=options["lr"],
                beta1=beta1,
                beta2=beta2,
                weight_decay=options["weight_decay"],
                eps=options["eps"],
                maximize=options["maximize"],
                grad_scale=None,
                found_inf=None,
            )

    def run_hooks(self, ahead: bool) -> None:
        """Runs what the user has registered to run with each step."""
        own: Any = self.optimizer
        if ahead:
            hooks = chain(
                torch_optimizer._global_optimizer_pre_hooks.values(),
                own._optimizer_step_pre_hooks.values(),
            )
        else:
            own._opt_called = True
            hooks = chain(
                own._optimizer_step_post_hooks.values(),
                torch_optimizer._global_optimizer_post_hooks.values(),
            )
        for hook in hooks:
            hook(own, (own,), {})

    @property
    def settings(self) -> list[Any]:
        """The options of the groups: a recorded update holds for these alone."""
        return [
            {name: value for name, value in group.items() if name != "params"}
            for group in self.optimizer.param_groups
        ]

    def tensors(self) -> list[Tensor]:
        """All that a step changes: parameters, averages, counts."""
        state = [
            value
            for values in self.optimizer.state.values()
            for value in values.values()
            if isinstance(value, Tensor)
        ]
        return [*self.leaves, *state]

    def _collect(self, gradients: Sequence[Tensor | None]) -> list[_ParameterGroup] | None:
        optimizer = self.optimizer
        if type(optimizer) not in (Adam, AdamW) or "step" in _replaced(optimizer):
            return None
        if getattr(optimizer, "grad_scale", None) is not None:
            return None
        places = {id(leaf): i for i, leaf in enumerate(self.leaves)}
        found = []
        for options in optimizer.param_groups:
            numbers = [options["lr"], options["eps"], options["weight_decay"], *options["betas"]]
            plain = options["fused"] and not (options["capturable"] or options["differentiable"])
            if not plain or any(isinstance(number, Tensor) for number in numbers):
                return None
            group = _ParameterGroup(options)
            for leaf in options["params"]:
                i = places.get(id(leaf))
                gradient = leaf.grad if i is None else gradients[i]
                if gradient is None:
                    continue
                state = optimizer.state.get(leaf, {})
                if i is None or not state or gradient.is_sparse or leaf.is_complex():
                    return None
                group.add(leaf, i, state)
            if len({(leaf.device, leaf.dtype) for leaf in group.leaves}) > 1:
                return None
            if group.leaves:
                found.append(group)
        return found


class _ParameterGroup:
    """The tensors of a group of parameters, as the fused kernel takes them."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.leaves: list[Tensor] = []
        self.places: list[int] = []
        self.averages: tuple[list[Tensor], ...] = ([], [], [])
        self.steps: list[Tensor] = []
        torch_ops: Any = torch
        decoupled = options["decoupled_weight_decay"]
        self.function: Callable[..., Any] = (
            torch_ops._fused_adamw_ if decoupled else torch_ops._fused_adam_
        )

    def add(self, leaf: Tensor, place: int, state: dict[str, Tensor]) -> None:
        self.leaves.append(leaf)
        self.places.append(place)
        self.steps.append(state["step"])
        names = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
        for values, name in zip(self.averages, names, strict=True):
            if name in state:
                values.append(state[name])


def _replaced(optimizer: Optimizer) -> set[str]:
    """Methods that someone has replaced on this object; a schedule's own wrapper does not count."""
    own = vars(optimizer).get("step")
    if own is None or getattr(own, "_wrapped_by_lr_sched", False):
        return set()
    return {"step"}
