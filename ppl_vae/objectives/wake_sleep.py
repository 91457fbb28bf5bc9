"""Wake-sleep: the model learns from rows that the guide explains, the guide from rows that the model makes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pyro.poutine as poutine
import torch
from torch import Tensor

from ppl_vae.objectives.alternating import Alternating, Turn, require_unweighted
from ppl_vae.objectives.base import Loss
from ppl_vae.objectives.judged_rows import fitted_parts, in_mode
from ppl_vae.objectives.schedules import require_whole
from ppl_vae.pairs import (
    Batch,
    Layout,
    Pair,
    PairError,
    Program,
    Trace,
    as_args,
    latent_sites,
    modules_of_program,
    num_rows,
    require_proper,
    row_log_prob,
    sample_rows,
    sum_to_rows,
    take_rows,
    tensors_of,
    with_tensors,
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
        require_draws(layout)
        rows = sample_rows(pair, layout, batch, self.num_particles, as_seen=detached_draws)
        loss = -(rows.log_likelihood + rows.log_prior).mean()
        distortion = -rows.log_likelihood.detach().mean()
        rate = (rows.log_guide - rows.log_prior).detach().mean()
        traces = [(rows.model_trace, rows.guide_trace)]
        return Loss(loss, -(distortion + rate), rate, distortion, traces)

    def _sleep(self, pair: Pair, layout: Layout, batch: Batch, beta: float) -> Loss:
        require_draws(layout)
        require_proper(layout, "WakeSleep", pair.model, trained=False)
        n = num_rows(batch)
        with torch.no_grad():
            rows = sample_rows(pair, layout, batch, 1)
            with in_mode(fitted_parts(pair), False):
                dream = poutine.trace(poutine.uncondition(pair.model)).get_trace(*as_args(batch))
        drawn = drawn_rows(dream, layout, batch)
        guide = poutine.trace(poutine.replay(pair.guide, trace=dream)).get_trace(*as_args(drawn))
        loss = -density_of_rows(guide, layout.guide_sites, layout, 1, n).mean()
        distortion, rate = -rows.log_likelihood.mean(), (rows.log_guide - rows.log_prior).mean()
        return Loss(loss, -(distortion + rate), rate, distortion, [(dream, guide)])


def require_draws(layout: Layout, objective: str = "WakeSleep") -> None:
    """Raises an error for a pair whose latents are not those that both programs draw.

    Args:
        layout: The layout of a batch.
        objective: What needs them.

    Raises:
        PairError: They are not.
    """
    if layout.enumerated:
        raise PairError(
            f"{objective} needs draws of all latents, and the model sums out '{layout.enumerated[0]}': let the "
            'guide draw it, without infer={"enumerate": "parallel"} in the model'
        )
    if set(layout.draws) != set(layout.latents):
        others = sorted(set(layout.draws) ^ set(layout.latents))
        raise PairError(
            f"{objective} scores the model's z by the guide, and '{others[0]}' is not drawn by both "
            "programs: draw the same sites in both"
        )


def detached_draws(trace: Trace) -> Trace:
    """The trace of the guide with constants as draws, for the model."""
    found = trace.copy()
    for name, site in latent_sites(trace).items():
        found.nodes[name] = {**site, "value": site["value"].detach()}
    return found


def drawn_rows(dream: Trace, layout: Layout, batch: Batch, objective: str = "WakeSleep") -> Batch:
    """The batch, with what the model has drawn in the place of what it observes.

    Args:
        dream: A run of the model that has drawn what it observes.
        layout: The layout of the batch.
        batch: The batch.
        objective: What needs them.

    Raises:
        PairError: The model observes something else than tensors of the batch.
    """
    drawn: list[Tensor] = list(tensors_of(batch))
    for name in layout.observed:
        site = dream.nodes[name]
        seen = site["infer"]["obs"]
        same = [i for i, given in enumerate(tensors_of(batch)) if given is seen]
        places = same or [i for i, given in enumerate(tensors_of(batch)) if _filled_up(given, seen)]
        if len(places) != 1:
            observed = "more than one" if places else "none"
            raise PairError(
                f"{objective} gives the guide rows that the model draws, and the site '{name}' "
                f"observes {observed} of the tensors of the batch as it is: write obs=x, where x is an "
                "argument of the model"
            )
        drawn[places[0]] = site["value"].to(drawn[places[0]].dtype)
    return with_tensors(batch, drawn)


def _filled_up(given: Tensor, seen: Tensor) -> bool:
    """Whether a tensor is another one, perhaps with more zeros at the end of its rows."""
    if given.dim() != seen.dim() or given.shape[:-1] != seen.shape[:-1]:
        return False
    width = given.shape[-1]
    if given.dim() < 2 or width > seen.shape[-1]:
        return given.shape == seen.shape and bool((given == seen).all())
    return bool((given == seen[..., :width]).all()) and not bool(seen[..., width:].any())


def whole_guide(pair: Pair) -> list[Tensor | Program]:
    """What a guide learns by, for `Turn.moves`: also what it shares with the model.

    A guide that refers to the model itself has only what it alone has: it uses the model as it is.
    """
    modules = modules_of_program(pair.guide, "guide").values()
    if any(part is pair.model for module in modules for part in module.modules()):
        return [pair.guide]
    shared = {id(p): p for module in modules for p in module.parameters() if p.requires_grad}
    return [pair.guide, *shared.values()]


def require_elbo_rows(objective: object, given: int) -> None:
    """Raises an error for a number of rows that is none.

    Raises:
        TypeError: It is no whole number.
        ValueError: It is negative.
    """
    require_whole(type(objective).__name__, "elbo_rows", given)
    if given < 0:
        raise ValueError(f"{type(objective).__name__}: elbo_rows must be at least 0, got {given}")


def elbo_of_rows(pair: Pair, layout: Layout, batch: Batch, most: int) -> Loss:
    """ELBO, rate and distortion of some rows of a batch, by a draw each in evaluation mode; the loss is NaN.

    Args:
        pair: The pair.
        layout: The layout of the batch.
        batch: The batch.
        most: How many rows; with 0 all numbers are NaN, as nothing is measured.
    """
    nothing = torch.full((), torch.nan, device=tensors_of(batch)[0].device)
    if not most:
        return Loss(nothing, nothing, nothing, nothing, [])
    with torch.no_grad(), pair.mode(training=False):
        found = sample_rows(pair, layout, take_rows(batch, slice(0, most)), 1)
    distortion = -found.log_likelihood.mean()
    rate = (found.log_guide - found.log_prior).mean()
    traces = [(found.model_trace, found.guide_trace)]
    return Loss(nothing, -(distortion + rate), rate, distortion, traces)


def density_of_rows(
    trace: Trace, names: Sequence[str], layout: Layout, samples: int, n: int
) -> Tensor:
    """The sum of the log densities of some sites, `(samples, n)`."""
    each = [
        sum_to_rows(row_log_prob(trace.nodes[name], layout), layout, samples, n) for name in names
    ]
    return torch.stack(each).sum(0)
