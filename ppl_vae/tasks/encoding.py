"""encode(): posterior means, or draws, of the latents of each row."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ppl_vae.checks import Session, opened
from ppl_vae.pairs import (
    DataLike,
    PairError,
    Program,
    RowDensities,
    innermost,
    is_categorical,
    stated_moment,
)
from ppl_vae.runtime import require_samples
from ppl_vae.tasks.arrays import as_given
from ppl_vae.tasks.observed import expectation, tell

MEAN_SAMPLES = 100
"""Draws of a row that are averaged where the guide states no mean, or one that depends on other latents."""


def encode(
    model: Program,
    guide: Program,
    x: DataLike,
    *,
    num_samples: int | None = None,
    seed: int | None = None,
    progress: bool | None = None,
) -> dict[str, Any]:
    """Posterior means, or draws, of every latent of each row: z ~ q(z | x).

    The mean of a guide with one latent is the one that its distribution states. Where it states none (a flow),
    or depends on other latents, it is the average of what 100 draws say. Of a latent with categories, the mean
    is the probability of each, with one more dimension at the end.

    Args:
        model: Pyro program of p(x, z).
        guide: Pyro program of q(z | x).
        x: The rows, as for `ppl_vae.fit`.
        num_samples: Draws of each row; None gives means.
        seed: Seed of the draws; None draws from torch's global generator.
        progress: Whether to show a progress bar; None shows it on a terminal.

    Returns:
        For each latent site the means, `(n, *event)`, or the draws, `(num_samples, n, *event)`: tensors, or
        numpy arrays if `x` is no tensor.

    Raises:
        PairError: The guide draws no latents of rows (the model sums them out), or means are asked for of
            categories whose probabilities it does not state (a sentence), or the programs fail.
        ValueError: `num_samples` is not positive.

    Example:
        >>> from ppl_vae.guides import Exact
        >>> from ppl_vae.models import ProbabilisticPCA
        >>> model, x = ProbabilisticPCA((3,), latent_dim=2), torch.randn(5, 3)
        >>> encode(model, Exact(model), x)["z"].shape
        torch.Size([5, 2])
        >>> encode(model, Exact(model), x.numpy(), num_samples=10)["z"].shape
        (10, 5, 2)
    """
    if num_samples is not None:
        require_samples("num_samples", num_samples)
    parts: dict[str, list[Tensor]] = {}
    give = as_given(x)
    with opened(model, guide, x, seed=seed, progress=progress) as session:
        require_latents(session)
        draws = num_samples or draws_for_means(session)
        for chunk in session.chunks(session.rows_at_once(draws), "encode"):
            rows = session.sample(chunk, draws)
            found = rows.latents if num_samples else means_of_latents(rows)
            for name, value in found.items():
                parts.setdefault(name, []).append(value.cpu())
    tell(session)
    dim = 1 if num_samples else 0
    return {name: give(torch.cat(some, dim)) for name, some in parts.items()}


def require_latents(session: Session) -> None:
    """Refuses a guide that draws no latents of rows.

    Raises:
        PairError: It draws none.
    """
    if not session.layout.latents:
        summed = ", ".join(f"'{name}'" for name in session.layout.enumerated)
        why = f": the model sums {summed} out" if summed else ""
        raise PairError(
            f"the guide draws no latents of rows{why}. Give one that draws them, such as Exact or Enumerated"
        )


def draws_for_means(session: Session) -> int:
    """How many draws of a row are averaged: one, if what the guide states does not depend on it."""
    rows = session.sample(session.first, 1)
    layout = rows.layout
    if not layout.draws:  # a guide of points draws nothing
        return 1
    alone = len(layout.draws) <= 1 and len(layout.latents) == 1
    states = all(_stated(rows, name) is not None for name in layout.latents)
    return 1 if alone and states else MEAN_SAMPLES


def means_of_latents(rows: RowDensities) -> dict[str, Tensor]:
    """The means of the latents of some rows by site, `(n, *event)`."""
    means = {}
    for name in rows.layout.latents:
        stated = _stated(rows, name)
        value = rows.latents[name] if stated is None else stated
        site = rows.guide_trace.nodes.get(name)
        if stated is None and site is not None and is_categorical(site):
            value = one_hot(value.long(), innermost(site["fn"]).probs.shape[-1])
        elif stated is None and site is not None and hasattr(innermost(site["fn"]), "categories"):
            raise PairError(
                f"the numbers of latent '{name}' name categories, and {type(innermost(site['fn'])).__name__} "
                "states no probabilities of them: their means mean nothing. Ask for draws, by num_samples=1"
            )
        value = value if value.is_floating_point() else value.to(rows.log_guide.dtype)
        means[name] = value.mean(0)
    return means


def _stated(rows: RowDensities, name: str) -> Tensor | None:
    """What the guide says of the mean of a latent, `(draws, n, *event)`, if it says anything."""
    site = rows.guide_trace.nodes[name]
    samples, n = rows.log_guide.shape
    if site["fn"].has_enumerate_support or hasattr(type(innermost(site["fn"])), "marginals"):
        of_all_draws = rows.layout.vectorizes or samples == 1
        return expectation(name, site, rows.layout, samples, n) if of_all_draws else None
    return stated_moment(rows, rows.layout, name, "mean")
