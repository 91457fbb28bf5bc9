"""The training's check of itself: at beta = 1, minus the loss and the logged ELBO differ by noise alone."""

from __future__ import annotations

import math
from collections.abc import Mapping

from ppl_vae.objectives import Objective, marked_sites
from ppl_vae.pairs import (
    Layout,
    Trace,
    is_weighted,
    observed_sites,
    sample_sites,
)

LEAST_STEPS = 20
"""Steps from which the noise is known well enough."""

STANDARD_ERRORS = 6.0
"""A difference of more standard errors than this is no noise."""

ROUNDING = 1e-3
"""Differences up to this share of the ELBO may be rounding."""


class Agreement:
    """Compares minus the loss with the logged ELBO, which are computed in different ways, step by step.

    Pyro's estimator gives the loss, and the sums over the rows of a layout give the ELBO. If a layout misses a
    site, a mask or a scale, the two differ. Steps with another beta than 1 do not count.

    Args:
        objective: The objective; one whose loss is not the ELBO is not watched.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> from ppl_vae.objectives import TraceELBO
        >>> from ppl_vae.pairs import Pair, find_layout, trace_pair
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)
        >>> pair, x = Pair(model, lambda x: None), torch.zeros(3)
        >>> agreement = Agreement(TraceELBO())
        >>> agreement.look(find_layout(pair, x), *trace_pair(pair, x))
        >>> for i in range(20):
        ...     agreement.add({"loss": 2.0 + 0.1 * (i % 2), "elbo": -1.0}, beta=1.0)
        >>> agreement.doubt()[:69]
        'in 20 steps minus the loss is -2.05 nats per row, but the logged ELBO'
    """

    def __init__(self, objective: Objective) -> None:
        self.watches = _claims_the_elbo(objective) and objective.free_bits == 0
        self._steps = 0
        self._loss = self._elbo = self._mean = self._squares = 0.0

    def look(self, layout: Layout, model_trace: Trace, guide_trace: Trace) -> None:
        """Stops watching if loss and ELBO are meant to differ on a kind of rows.

        That is so where a program weights its own sites (`poutine.scale`) or has a term that belongs to no row,
        or the guide has one that is no density, or chooses codes by a quantizer, whose terms are in the loss
        alone. The steps on rows of other kinds cannot be told apart from
        then on: a recorded step does not say of which kind its rows are.

        Args:
            layout: The layout of rows of this kind.
            model_trace: The trace of the model on them.
            guide_trace: That of the guide.
        """
        self.watches = (
            self.watches
            and len(layout.observed) == len(observed_sites(model_trace))
            and observed_sites(guide_trace).keys() <= set(layout.factors)
            and not marked_sites(guide_trace)
            and not any(
                is_weighted(site)
                for trace in (model_trace, guide_trace)
                for site in sample_sites(trace).values()
            )
        )

    def add(self, metrics: Mapping[str, float], beta: float) -> None:
        """Adds a step with these metrics."""
        if not self.watches or beta != 1.0 or not metrics:
            return
        loss, elbo = metrics["loss"], metrics["elbo"]
        self._steps += 1
        self._loss += (loss - self._loss) / self._steps
        self._elbo += (elbo - self._elbo) / self._steps
        off = loss + elbo - self._mean
        self._mean += off / self._steps
        self._squares += off * (loss + elbo - self._mean)

    def doubt(self, name: str = "ELBO") -> str | None:
        """What to say if the two differ by more than noise; None if they do not, or it is too early to say.

        Args:
            name: What the logged ELBO is called, of this pair.
        """
        if self._steps < LEAST_STEPS:
            return None
        error = math.sqrt(self._squares / (self._steps - 1) / self._steps)
        allowed = STANDARD_ERRORS * error + ROUNDING * max(1.0, abs(self._elbo))
        if abs(self._mean) <= allowed:
            return None
        return (
            f"in {self._steps} steps minus the loss is {-self._loss:.2f} nats per row, but the logged {name} "
            f"{self._elbo:.2f}, and they differ by more than noise. At beta = 1 they are the same number, so "
            f"one of them leaves something out: do not trust the {name}, nor evaluate and diagnose, for "
            "this pair, and please report it"
        )


def _claims_the_elbo(objective: Objective) -> bool:
    """Whether the loss is the ELBO, as said by the class that computes it, not by one that it extends."""
    computes, says = (
        next(kind for kind in type(objective).__mro__ if name in vars(kind))
        for name in ("__call__", "loss_is_elbo")
    )
    return objective.loss_is_elbo and issubclass(says, computes)
