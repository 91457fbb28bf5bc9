"""A prior that is a mixture of the guide's own posteriors."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_vae.distributions import NormalMixture
from ppl_vae.models.priors.base import Prior
from ppl_vae.networks import require_at_least_one, require_numbers, require_room


@dataclass(frozen=True)
class VampPrior(Prior):
    """p(z) = 1/K sum_k q(z | u_k), with K learned pseudo-inputs u_k that look like rows of data.

    "VAE with a VampPrior" (arXiv:1705.07120). q is the guide's own `encode`, so the prior must be
    given the guide once both exist: `model.prior.attach_guide(guide)`. `load_run` and the command
    line do this themselves. The guide's parameters are not among the model's, and training the guide
    changes p(z). After training, `model.prior.keep_guide()` makes a copy of the guide a part of the
    model, and p(z) no longer changes with the guide. `refit_guide` and `ppl-vae refit` do this
    themselves before they train another guide.

    Pseudo-inputs are clamped between `low` and `high`. At a limit, and beyond it, they get the gradients that
    lead back, and no others: those of a loss, which is minimized. They start uniformly between the two (at
    draws from a standard normal if a limit is infinite), or better at rows of the data:
    `model.prior.start_at(rows)`.

    Args:
        components: Number K of pseudo-inputs.
        low: Smallest value of the data.
        high: Largest value of the data.

    Raises:
        ValueError: `components` is not positive, or `low` is not below `high`.

    Example:
        >>> from ppl_vae.guides import MeanField
        >>> from ppl_vae.models import VAE
        >>> model = VAE((1, 8, 8), latent_dim=2, prior=VampPrior(components=20))
        >>> guide = MeanField((1, 8, 8), latent_dim=2)
        >>> model.prior.attach_guide(guide)
        >>> model.prior.start_at(torch.rand(100, 1, 8, 8))
        >>> model.prior().sample((5,)).shape
        torch.Size([5, 2])
    """

    components: int = 100
    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        require_at_least_one(self, components=self.components)
        require_numbers(self, low=self.low, high=self.high)
        if not self.low < self.high:
            raise ValueError(
                f"VampPrior.low must be below VampPrior.high, got {self.low} and {self.high}: "
                f"give the range of the data"
            )

    def build(self, data_shape: Sequence[int], latent_dim: int) -> nn.Module:
        """See `Prior.build`."""
        require_room(self, "choose fewer components", self.components, *data_shape)
        return _Vamp((self.components, *data_shape), self.low, self.high)


class _Clamped(torch.autograd.Function):
    """Values clamped between two limits, which they can leave again: the gradient of a loss over a box.

    The derivative of `torch.clamp` is 0 at the limits, so that pseudo-inputs that start at binary rows would
    stay there for good.
    """

    @staticmethod
    def forward(ctx: Any, values: Tensor, low: float, high: float) -> Tensor:
        ctx.save_for_backward(values)
        ctx.limits = low, high
        return values.clamp(low, high)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (values,) = ctx.saved_tensors
        low, high = ctx.limits
        outward = ((values <= low) & (grad > 0)) | ((values >= high) & (grad < 0))
        return torch.where(outward, torch.zeros_like(grad), grad), None, None


class _Vamp(nn.Module):
    def __init__(self, shape: Sequence[int], low: float, high: float) -> None:
        super().__init__()
        self.low = low
        self.high = high
        finite = math.isfinite(low) and math.isfinite(high)
        start = low + (high - low) * torch.rand(*shape) if finite else torch.randn(*shape)
        self.inputs = nn.Parameter(start.clamp(low, high))
        # In a tuple: as a plain attribute the guide would be registered as a submodule, with its parameters.
        self._attached: tuple[Any, ...] = ()
        self.kept: nn.Module | None = None
        self._encoding = False

    def forward(self) -> dist.MixtureSameFamily:
        guide = self._guide()
        circular = TypeError(
            f"VampPrior is made of {type(guide).__name__}.encode(x), which runs the model, and so "
            f"the prior, itself: use a guide that does not, such as MeanField"
        )
        if self._encoding:
            raise circular
        self._encoding = True
        try:
            components = guide.encode(_Clamped.apply(self.inputs, self.low, self.high))
        except ValueError as error:  # a model that runs inside itself enters its plate twice
            if "duplicate plate" in str(error):
                raise circular from error
            raise
        finally:
            self._encoding = False
        equal = torch.zeros(len(self.inputs), dtype=self.inputs.dtype, device=self.inputs.device)
        return NormalMixture(dist.Categorical(logits=equal), components)

    def attach_guide(self, guide: nn.Module) -> None:
        """Takes q(z | x) from the guide's `encode`; has no effect once a guide is kept.

        Raises:
            TypeError: The guide has no `encode`.
        """
        if not callable(getattr(guide, "encode", None)):
            raise TypeError(
                f"VampPrior needs a guide with encode(x), the distribution q(z | x), but "
                f"{type(guide).__name__} has none"
            )
        self._attached = (guide,)

    def keep_guide(self) -> None:
        """Makes a copy of the guide a part of the prior, so that another guide leaves p(z) as it is.

        Raises:
            RuntimeError: No guide is attached.
        """
        if self.kept is None:
            self.kept = copy.deepcopy(self._guide()).train(self.training)

    def _guide(self) -> Any:
        if self.kept is not None:
            return self.kept
        if not self._attached:
            raise RuntimeError(
                "VampPrior is a mixture of the guide's posteriors, but it has no guide: call "
                "model.prior.attach_guide(guide) once both are built"
            )
        return self._attached[0]

    @torch.no_grad()
    def start_at(self, rows: Tensor) -> None:
        """Puts the pseudo-inputs at rows of the data, chosen at random.

        Args:
            rows: Data, `(n, *data_shape)`, with n at least the number of components.

        Raises:
            ValueError: There are too few rows, or a value lies outside `low` and `high`.
        """
        if len(rows) < len(self.inputs):
            raise ValueError(
                f"VampPrior has {len(self.inputs)} pseudo-inputs, but got {len(rows)} rows to "
                f"start at: give more rows or fewer components"
            )
        chosen = rows[torch.randperm(len(rows))[: len(self.inputs)]]
        if bool((chosen < self.low).any()) or bool((chosen > self.high).any()):
            raise ValueError(
                f"the rows have values from {float(chosen.min()):g} to {float(chosen.max()):g}, but "
                f"VampPrior was built for values from {self.low:g} to {self.high:g}: give the "
                f"range of the data as low and high"
            )
        self.inputs.copy_(chosen)
