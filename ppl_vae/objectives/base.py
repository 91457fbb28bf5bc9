"""What an objective is."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ppl_vae.objectives.schedules import Schedule, require_beta
from ppl_vae.pairs import (
    Batch,
    Layout,
    Pair,
)


@dataclass(frozen=True)
class Loss:
    """One evaluation of an objective on a batch.

    Attributes:
        loss: What is minimized, nats per row, differentiable.
        elbo: The beta = 1 ELBO, nats per row, as a detached scalar; so are the next two.
        rate: E_q log q(z | x) - log p(z).
        distortion: - E_q log p(x | z).
        traces: The (model, guide) traces that the loss was computed from.
    """

    loss: Tensor
    elbo: Tensor
    rate: Tensor
    distortion: Tensor
    traces: list[tuple[Any, Any]]


@dataclass(frozen=True)
class Objective(ABC):
    """What `fit` minimizes.

    Attributes:
        beta: Weight of the KL: a number, or a schedule over epochs.
        free_bits: Nats per latent dimension that are free of charge: each dimension's KL, averaged over the
            batch, counts as max(free_bits, KL) (Kingma et al., arXiv:1606.04934). The latents of a site
            whose density does not factorize over its dimensions are one group, with free_bits times
            their number.
        num_particles: Samples of z a row; drawn in one vectorized run where the pair allows that.
    """

    beta: float | Schedule = 1.0
    free_bits: float = 0.0
    num_particles: int = 1

    def __post_init__(self) -> None:
        name = type(self).__name__
        if not isinstance(self.beta, Schedule):
            require_beta(name, "beta", self.beta)
        if not (self.free_bits >= 0 and math.isfinite(self.free_bits)):
            raise ValueError(f"{name}: free_bits is in nats and must be >= 0, not {self.free_bits}")
        if self.num_particles < 1:
            raise ValueError(f"{name}: num_particles must be at least 1, not {self.num_particles}")

    def beta_at(self, epoch: float) -> float:
        """beta after `epoch` epochs."""
        return self.beta(epoch) if isinstance(self.beta, Schedule) else float(self.beta)

    @property
    def warmup_epochs(self) -> float:
        """Epochs before which early stopping must not act."""
        return self.beta.warmup_epochs if isinstance(self.beta, Schedule) else 0.0

    def resolve(self, pair: Pair, batch: Batch) -> Objective:
        """The objective that will run on this pair: itself, unless it chooses by the pair."""
        return self

    @property
    def needs_reparameterised_latents(self) -> bool:
        """Whether a latent that has no reparameterized sampler makes the gradient wrong."""
        return self.free_bits > 0

    @abstractmethod
    def __call__(self, pair: Pair, layout: Layout, batch: Batch, beta: float = 1.0) -> Loss:
        """Evaluates the loss on a batch with a given beta, inside of `pair.scope()`."""
