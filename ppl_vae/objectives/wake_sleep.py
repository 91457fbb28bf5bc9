"""Wake-sleep: the model learns from rows that the guide explains, the guide from rows that the model makes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyro.poutine as poutine
import torch

from ppl_vae.objectives.alternating import Alternating, Turn, require_unweighted
from ppl_vae.objectives.base import Loss
from ppl_vae.objectives.judged_rows import fitted_parts, in_mode
from ppl_vae.objectives.scored_draws import (
    density_of_rows,
    detached_draws,
    drawn_rows,
    require_draws,
    whole_guide,
)
from ppl_vae.pairs import (
    Batch,
    Layout,
    Pair,
    as_args,
    num_rows,
    require_proper,
    sample_rows,
)


@dataclass(frozen=True, kw_only=True)
class WakeSleep(Alternating):
    """Wake-sleep, for any pair whose model can draw rows: two losses, neither of which differentiates a draw.

    In nats per row (Hinton et al., "The wake-sleep algorithm for unsupervised neural networks", Science 268,
    1995):

        wake  = -E_q(z | x) log p(x, z)    moves the model,
        sleep = -E_p(x, z) log q(z | x)    moves the guide.

    The wake loss is the ELBO's for the model. The sleep loss is that of KL(p(z | x) || q(z | x)) for rows that
    the model makes: the other direction of the KL, on other rows, which needs no gradient through z, so that
    discrete latents have no noisy one. The ELBO is logged beside them.

    Raises:
        PairError: The model sums latents out, or the guide draws what the model does not have, or the model
            observes something else than the tensors of the batch as they are.
        ValueError: A setting is out of its range, or beta is not 1 or free_bits not 0: the losses have no KL.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from ppl_vae import fit
        >>> def model(x):
        ...     heads = pyro.param("heads", torch.tensor([-1.0, 1.0]))
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Categorical(torch.ones(2) / 2))
        ...         pyro.sample("x", dist.Bernoulli(logits=heads[z]), obs=x)
        >>> def guide(x):
        ...     logits = pyro.param("logits", torch.zeros(2, 2))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", dist.Categorical(logits=logits[x.long()]))
        >>> x = torch.tensor([0.0, 1.0, 1.0])
        >>> found = fit(model, guide, x, objective=WakeSleep(), max_epochs=1, seed=0)
        >>> [name for name in found.history[0] if name.startswith("loss")]
        ['loss', 'loss_wake', 'loss_sleep']
    """

    why_no_free_bits = ": wake-sleep has no KL; set free_bits=0"

    def __post_init__(self) -> None:
        super().__post_init__()
        require_unweighted(self)

    def turns(self, pair: Pair) -> Sequence[Turn]:
        """See `Alternating.turns`."""
        return [
            Turn("wake", self._wake, [pair.model]),
            Turn("sleep", self._sleep, whole_guide(pair)),
        ]

    def _wake(self, pair: Pair, layout: Layout, batch: Batch, beta: float) -> Loss:
        require_draws(layout, "WakeSleep")
        rows = sample_rows(pair, layout, batch, self.num_particles, as_seen=detached_draws)
        loss = -(rows.log_likelihood + rows.log_prior).mean()
        distortion = -rows.log_likelihood.detach().mean()
        rate = (rows.log_guide - rows.log_prior).detach().mean()
        traces = [(rows.model_trace, rows.guide_trace)]
        return Loss(loss, -(distortion + rate), rate, distortion, traces)

    def _sleep(self, pair: Pair, layout: Layout, batch: Batch, beta: float) -> Loss:
        require_draws(layout, "WakeSleep")
        require_proper(layout, "WakeSleep", pair.model, trained=False)
        n = num_rows(batch)
        with torch.no_grad():
            rows = sample_rows(pair, layout, batch, 1)
            with in_mode(fitted_parts(pair), False):
                dream = poutine.trace(poutine.uncondition(pair.model)).get_trace(*as_args(batch))
        drawn = drawn_rows(dream, layout, batch, "WakeSleep")
        guide = poutine.trace(poutine.replay(pair.guide, trace=dream)).get_trace(*as_args(drawn))
        loss = -density_of_rows(guide, layout.guide_sites, layout, 1, n).mean()
        distortion, rate = -rows.log_likelihood.mean(), (rows.log_guide - rows.log_prior).mean()
        return Loss(loss, -(distortion + rate), rate, distortion, [(dream, guide)])
