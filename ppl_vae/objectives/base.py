"""The base class of objectives, and the loss that they return."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from torch import Tensor

from ppl_vae.objectives.control import Controller
from ppl_vae.objectives.schedules import (
    Schedule,
    require_beta,
    require_number,
    require_whole,
)
from ppl_vae.pairs import (
    Batch,
    Layout,
    LayoutChangedError,
    Layouts,
    Pair,
    Trace,
    sample_sites,
    trace_pair,
    unscaled,
)
from ppl_vae.runtime import described

_BETA = (
    "a number, a schedule over the epochs such as LinearWarmup(epochs=10) or Cyclical(period=10), or a "
    "controller such as TargetRate(nats=20) of ppl_vae.objectives (one of your own derives from Schedule or "
    "Controller)"
)
"""What beta may be."""


@dataclass(frozen=True)
class Loss:
    """One evaluation of an objective on a batch.

    Attributes:
        loss: The quantity to minimize, in nats per row; differentiable.
        elbo: The beta = 1 ELBO, in nats per row. A detached scalar, like `rate` and `distortion`.
        rate: E_q log q(z | x) - log p(z), in nats per row.
        distortion: - E_q log p(x | z), in nats per row.
        traces: The (model, guide) traces that the loss was computed from.
    """

    loss: Tensor
    elbo: Tensor
    rate: Tensor
    distortion: Tensor
    traces: list[tuple[Any, Any]]


@dataclass(frozen=True, kw_only=True)
class Objective(ABC):
    """An objective: defines the loss that `fit` minimizes.

    Attributes:
        beta: Weight of the KL: a number, schedule or controller.
        free_bits: Nats per dimension free of penalty: each latent dimension's KL, averaged
            over the batch, counts as max(free_bits, KL) (Kingma et al., arXiv:1606.04934). If the density of a
            site does not factorize over its dimensions, they form one group with free_bits times their number.
        num_particles: Samples of z per row, drawn in one vectorized run if the pair allows it.
        loss_is_elbo: Whether minus the loss, at beta = 1 and without free bits, is the ELBO in expectation. Set
            by subclasses.
        judged_by_elbo: Whether a higher held-out ELBO is what it is after. If not, as with an adversary, early
            stopping never acts, the last weights are kept, and `ReduceLROnPlateau` is refused. Set by
            subclasses.
        why_no_free_bits: If an objective has no free bits: the reason, appended to "there are no free bits" in
            the error. Set by subclasses.

    Raises:
        TypeError: A setting is of another type.
        ValueError: A setting is negative, infinite or NaN, or there are no free bits.

    Example:
        An objective of your own is a frozen dataclass with a `__call__`; `fit` takes an object of it. This one
        adds to the ELBO a penalty on the squared weights of a decoder, in nats per row:

        >>> from dataclasses import dataclass, replace
        >>> from ppl_vae.objectives import MeanFieldELBO, Objective
        >>> @dataclass(frozen=True)
        ... class WithPenalty(Objective):
        ...     penalty: float = 0.1
        ...
        ...     def __call__(self, pair, layout, batch, beta=1.0):
        ...         elbo = MeanFieldELBO(
        ...             beta=self.beta, free_bits=self.free_bits, num_particles=self.num_particles
        ...         )
        ...         found = elbo(pair, layout, batch, beta)
        ...         weights = sum(p.square().sum() for p in pair.model.decoder.parameters())
        ...         return replace(found, loss=found.loss + self.penalty * weights)
        >>> WithPenalty(penalty=0.5)
        WithPenalty(beta=1.0, free_bits=0.0, num_particles=1, penalty=0.5)
    """

    loss_is_elbo = False
    why_no_free_bits = ""
    judged_by_elbo = True

    beta: float | Schedule | Controller = 1.0
    free_bits: float = 0.0
    num_particles: int = 1

    def __post_init__(self) -> None:
        name = type(self).__name__
        if not isinstance(self.beta, Schedule | Controller):
            require_number(name, "beta", self.beta, _BETA)
            require_beta(name, "beta", self.beta)
        require_number(name, "free_bits", self.free_bits)
        require_whole(name, "num_particles", self.num_particles)
        if not (self.free_bits >= 0 and math.isfinite(self.free_bits)):
            raise ValueError(f"{name}: free_bits is in nats and must be >= 0, got {self.free_bits}")
        if self.free_bits and self.why_no_free_bits:
            raise ValueError(f"{name}: there are no free bits{self.why_no_free_bits}")
        if self.num_particles < 1:
            raise ValueError(f"{name}: num_particles must be at least 1, got {self.num_particles}")

    def beta_at(self, epoch: float) -> float:
        """beta after `epoch` epochs; of a controller, the beta that it begins with."""
        if isinstance(self.beta, Controller):
            return float(self.beta.start)
        if not isinstance(self.beta, Schedule):
            return float(self.beta)
        beta = self.beta(epoch)
        require_number(type(self.beta).__name__, "the beta that it returns", beta)
        return float(beta)

    def beta_after(self, history: Sequence[Mapping[str, float]]) -> float:
        """beta in the end of the epochs of a history, such as `Fit.history`; also one that a controller set."""
        if isinstance(self.beta, Controller) and history:
            return history[-1]["beta"]
        return self.beta_at(len(history))

    @property
    def warmup_epochs(self) -> float:
        """The number of epochs during which early stopping and `ReduceLROnPlateau` must not act.

        With a controller the first never acts, and the second is refused: the weights of the best ELBO are not
        those that reach the target.
        """
        if isinstance(self.beta, Controller):
            return math.inf
        return self.beta.warmup_epochs if isinstance(self.beta, Schedule) else 0.0

    def resolve(self, pair: Pair, batch: Batch) -> Objective:
        """The objective to use for this pair: this one, unless it selects another to suit the pair."""
        return self

    @property
    def needs_reparameterized_latents(self) -> str:
        """What makes the gradient wrong if a latent has no reparameterized sampler; empty if nothing does."""
        return "free bits" if self.free_bits > 0 else ""

    def keeps(self, pair: Pair, name: str) -> bool:
        """Whether `fit` leaves a trainable parameter as it is, by its name in `Pair.parameters`."""
        return False

    @abstractmethod
    def __call__(self, pair: Pair, layout: Layout, batch: Batch, beta: float = 1.0) -> Loss:
        """Evaluates the loss on a batch with a given beta; call it inside `pair.scope()`.

        Raises:
            LayoutChangedError: The layout is that of a batch with other sites.
        """


class Resolved:
    """An objective as it is resolved for each layout of a pair.

    Args:
        requested: The objective that the user asked for.
        pair: The pair.

    Attributes:
        check: Called once for each layout that is found from then on, with the layout, a batch of it, the
            batch's traces of model and guide, and the objective. An error that it raises is that of the batch.
    """

    def __init__(self, requested: Objective, pair: Pair) -> None:
        self.requested = requested
        self.pair = pair
        self.check: Callable[[Layout, Batch, tuple[Trace, Trace], Objective], object] | None = None
        self._found: dict[object, Objective] = {}

    def of(self, layout: Layout, batch: Batch) -> Objective:
        """The objective for a batch of this layout."""
        found = self._found.get(layout.signature)
        if found is None:
            with self.pair.mode(training=False):  # batch statistics come from training steps alone
                found = self.requested.resolve(self.pair, batch)
                with torch.random.fork_rng(), torch.no_grad():
                    traces = trace_pair(self.pair, batch)
                try:
                    layout.require(*traces)
                except LayoutChangedError:  # as the work on the batch will find, too
                    return found
                if self.check is not None:
                    self.check(layout, batch, traces, found)
            self._found[layout.signature] = found
        return found

    def loss(self, layouts: Layouts, batch: Batch, beta: float = 1.0) -> Loss:
        """The loss of a batch, with the layout and the objective that are its own."""

        def run(layout: Layout) -> Loss:
            objective = self.of(layout, batch)
            return checked(objective, objective(self.pair, layout, batch, beta))

        return layouts.run(batch, run)


def checked(objective: Objective | str, found: object) -> Loss:
    """What an objective returned, which may be one of the user's own.

    Args:
        objective: The objective, or what to call it in a message.
        found: What it has returned.

    Raises:
        TypeError: It is no `Loss`, or one of its parts is not a tensor of one number.
    """
    name = objective if isinstance(objective, str) else type(objective).__name__
    if not isinstance(found, Loss):
        raise TypeError(
            f"{name} must return a Loss of ppl_vae.objectives (loss, elbo, rate, distortion, traces), but it "
            f"returned {described(found)}"
        )
    for part in ("loss", "elbo", "rate", "distortion"):
        value: object = getattr(found, part)
        if not isinstance(value, Tensor) or value.numel() != 1:
            given = (
                f"a tensor of shape {tuple(value.shape)}"
                if isinstance(value, Tensor)
                else described(value)
            )
            raise TypeError(
                f"{name} must return a Loss whose {part} is a tensor of one number, in nats per row, not "
                f"{given}"
            )
    return found


def without_parameters(traces: Iterable[tuple[Trace, Trace]]) -> bool:
    """Whether no trainable parameter enters traces of model and guide, so that a loss needs no gradient.

    A batch may be of such a kind: rows with labels under a model whose parameters are fixed, for example.
    """
    with torch.enable_grad(), pyro.validation_enabled(False):
        return not any(
            unscaled(site).requires_grad
            for both in traces
            for trace in both
            for site in sample_sites(trace).values()
        )


def no_gradient(objective: Objective | str) -> str:
    """What to say of a loss that has no gradient."""
    name = objective if isinstance(objective, str) else type(objective).__name__
    return (
        f"the loss of {name} has no gradient: it is detached, or no trainable parameter "
        "enters it; an objective must return a Loss whose loss is differentiable"
    )
