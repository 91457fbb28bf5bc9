"""What objectives share that score both programs at draws, or at values from data, without their gradient."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ppl_vae.objectives.base import Loss
from ppl_vae.objectives.schedules import require_whole
from ppl_vae.pairs import (
    Batch,
    Layout,
    Pair,
    PairError,
    Program,
    Trace,
    latent_sites,
    modules_of_program,
    row_log_prob,
    sample_rows,
    sum_to_rows,
    take_rows,
    tensors_of,
    with_tensors,
)


def require_draws(layout: Layout, objective: str) -> None:
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


def drawn_rows(dream: Trace, layout: Layout, batch: Batch, objective: str) -> Batch:
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
