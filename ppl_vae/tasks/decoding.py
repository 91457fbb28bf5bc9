"""reconstruct(): E[x | z] of each row, over latents that its posterior gives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ppl_vae.checks import Session, opened
from ppl_vae.pairs import Batch, DataLike, Program, draw_jointly, num_rows, tensors_of
from ppl_vae.runtime import require_flags, require_samples
from ppl_vae.tasks.arrays import as_given
from ppl_vae.tasks.observed import data_sites, tell


def reconstruct(
    model: Program,
    guide: Program,
    x: DataLike,
    *,
    num_samples: int = 10,
    means: bool = True,
    site: str | None = None,
    seed: int | None = None,
    progress: bool | None = None,
) -> Any:
    """Rows as the pair sees them: the mean of E[x | z] over z ~ q(z | x).

    It is the mean of the posterior predictive distribution, as far as the guide is right. Latents c that the
    model sums out are drawn from p(c | x, z). Of categories, the most probable ones.

    Args:
        model: Pyro program of p(x, z).
        guide: Pyro program of q(z | x).
        x: The rows, as for `ppl_vae.fit`.
        num_samples: Draws of z that are averaged; 1 gives the mean at a single draw.
        means: Whether E[x | z] is averaged. False averages a draw of x for each z: `num_samples=1` gives draws
            of the posterior predictive distribution. That is for distributions of x that state no mean, as
            those of an `AutoregressiveDecoder`.
        site: The observed site to reconstruct, if the model has several; by default the one with the shape of
            the rows, or those of their steps, `x_0`, `x_1`, ..., together.
        seed: Seed of the draws; None draws from torch's global generator.
        progress: Whether to show a progress bar; None shows it on a terminal.

    Returns:
        `(n, *event)`, a tensor, or a numpy array if `x` is no tensor.

    Raises:
        PairError: The distribution of x states no mean, or the programs fail on the rows.
        ValueError: It is unclear which site is meant.

    Example:
        >>> from ppl_vae.guides import Exact
        >>> from ppl_vae.models import ProbabilisticPCA
        >>> model, x = ProbabilisticPCA((3,), latent_dim=2), torch.randn(5, 3)
        >>> reconstruct(model, Exact(model), x).shape
        torch.Size([5, 3])
    """
    require_samples("num_samples", num_samples)
    require_flags(means=means)
    parts = []
    with opened(model, guide, x, seed=seed, progress=progress) as session:
        for chunk in session.chunks(session.rows_at_once(num_samples), "reconstruct"):
            parts.append(_reconstructed(session, chunk, num_samples, means, site).cpu())
    tell(session)
    return as_given(x)(torch.cat(parts))


def _reconstructed(
    session: Session, chunk: Batch, num_samples: int, means: bool, site: str | None
) -> Tensor:
    layout, n = session.layouts.of(chunk), num_rows(chunk)
    # Latents that the model sums out are drawn, too, for which there is no plate over samples.
    at_once = num_samples if layout.vectorizes and not layout.enumerated else 1
    total = torch.zeros((), device=session.device)
    for _ in range(num_samples // at_once):
        if layout.enumerated:
            trace = draw_jointly(session.pair, layout, chunk)
        else:
            rows = session.sample(chunk, at_once)
            trace, layout = rows.model_trace, rows.layout
        found = data_sites(trace, layout.observed, tensors_of(chunk)[0], site)
        of_draws = (
            found.expectation(trace, layout, at_once, n)
            if means
            else found.drawn(trace, layout, at_once, n)
        )
        total = total + of_draws.sum(0)
    return total.argmax(-1) if found.categorical(trace) else total / num_samples
