"""Why latent dimensions are not used: per-row posteriors, and what a Gaussian decoder leaves unexplained."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import Normal

from ppl_vae.checks import chunk_sizes
from ppl_vae.diagnosis.refinement import can_refine, refine_rows
from ppl_vae.pairs import (
    Batch,
    Layout,
    Pair,
    RowDensities,
    as_args,
    elementwise,
    num_rows,
    posterior_means,
    rows_first,
    sample_rows,
    take_rows,
)

CAUSES = {
    "none": ("no cause", "nothing to do"),
    "identical rows": (
        "the rows given are all the same, and leave nothing to tell apart",
        "diagnose with rows that differ",
    ),
    "constant posterior": (
        "the guide ignores x: all rows have the same posterior, which is not the prior",
        "train for longer; if that does not help, check that the guide's network is given x and gets "
        "gradients",
    ),
    "small means": (
        "their posterior means vary little, yet the posterior depends on x",
        "judge them by the mutual information: what counts as active is meant for priors of variance 1 and "
        "for posteriors that differ in their means",
    ),
    "lagging guide": (
        "the guide lags behind the model, whose own posterior does use them",
        "train the guide on (more steps for it than for the model), enlarge its network, or warm beta up "
        "more slowly",
    ),
    "large beta": (
        "beta weighs their KL by more than they could explain",
        "lower beta to use them",
    ),
    "decoder noise": (
        "the decoder's noise is larger than what they could explain",
        "learn the noise (LearnedGaussian or OptimalGaussian), for longer if it is learned already, or make it "
        "smaller to use them",
    ),
    "surplus dimensions": (
        "what is left of the data is no more than the decoder's noise",
        "nothing is lost, and a smaller latent_dim would do",
    ),
    "ignored latent": (
        "the decoder does not use them",
        "if a smaller latent_dim reaches the same ELBO nothing is lost, otherwise warm beta up from 0, set "
        "free_bits, or weaken the decoder",
    ),
}
"""For each cause: what it means, and the remedy."""


def remedy_of(cause: str, beta: float) -> str:
    """What to do about a cause; a decoder that does not use z may have learnt so from beta."""
    lower = f"lower beta, which is {beta:g}; " if cause == "ignored latent" and beta > 1 else ""
    return lower + CAUSES[cause][1]


REVIVED = 0.1
"""Nats of KL, by which a row's own posterior must use a dimension that the guide does not."""


NUM_DRAWS = 32


_VALUES = 2**24  # numbers of standardised data that are kept


def find_cause(
    pair: Pair,
    layout: Layout,
    batch: Batch,
    residuals: Residuals,
    unused: Tensor,
    beta: float,
) -> tuple[str, tuple[str, ...]]:
    """Why dimensions are not used, one of :data:`CAUSES`, and what is not known of it.

    Args:
        pair: The pair, inside of ``pair.scope()``.
        layout: Its layout.
        batch: Some rows, for which posteriors of their own are fitted.
        residuals: What the decoder leaves of all rows.
        unused: Which dimensions are not active.
        beta: The weight of the KL that the pair was trained with.
    """
    few = batch if pair.keeps_rows else take_rows(batch, slice(0, 2))
    trace = sample_rows(pair, layout, few, 1).model_trace
    notes: tuple[str, ...] = ()
    if not can_refine(pair, layout, trace):
        notes = (
            "no posterior of a single row can be fitted for this pair: a guide that lags behind the model is "
            "not ruled out",
        )
    elif _revives(pair, layout, batch, unused, beta):
        return "lagging guide", ()
    verdict = residuals.verdict(beta)
    if verdict is None and beta > 1 and not notes and _revives(pair, layout, batch, unused, 1.0):
        verdict = "large beta"
    return verdict or "ignored latent", notes


def _revives(pair: Pair, layout: Layout, batch: Batch, unused: Tensor, beta: float) -> bool:
    """Whether posteriors fitted to each row under the same beta use what the guide does not."""
    dtype = as_args(batch)[0].dtype
    dtype = dtype if dtype.is_floating_point else torch.get_default_dtype()
    n = num_rows(batch)
    at_once, draws = chunk_sizes(pair, layout, take_rows(batch, slice(0, 16)), NUM_DRAWS)
    size = max(1, at_once * draws // NUM_DRAWS)
    gains, kls = [], []
    for first in range(0, n, size):
        chunk = take_rows(batch, slice(first, first + size))
        rows = sample_rows(pair, layout, chunk, NUM_DRAWS)
        means = posterior_means(rows, layout)
        # Off the prior's mean, which may be a saddle.
        start = means + 0.5 * torch.randn_like(means) * unused.to(means.device)
        bound = rows.log_likelihood + beta * (rows.log_prior - rows.log_guide)
        del rows
        refined = refine_rows(pair, layout, chunk, start.to(dtype), beta=beta)
        gains.append(refined.bound - bound.mean(0))
        kls.append(refined.kl)
    kl = torch.cat(kls).mean(0)[unused.to(kls[0].device)]
    return float(torch.cat(gains).mean()) > 0 and float(kl.max()) > REVIVED


class Residuals:
    r"""What a Gaussian decoder leaves of the data, in units of its noise.

    By Lucas et al., *Don't Blame the ELBO!* (arXiv:1911.02469), a further dimension pays in a linear model iff
    the data's variance along it exceeds beta sigma^2. So the eigenvalues of the covariance of
    (x - E_q[mean of p(x | z)]) / sigma tell what a further dimension could gain, be the decoder linear or
    not; sampling noise alone makes them as large as (1 + sqrt(D / n))^2 (Marchenko and Pastur).
    """

    def __init__(self) -> None:
        self._known = True
        self._left: list[Tensor] = []
        self._explained: list[Tensor] = []
        self._squares = 0.0
        self._rows = 0

    def update(self, rows: RowDensities, layout: Layout) -> None:
        """Takes in the draws for a batch of rows."""
        site = rows.model_trace.nodes[layout.observed[0]]
        samples, n = rows.log_guide.shape
        self._known &= (
            layout.vectorizes
            # A latent that is enumerated gives x a mean for each of its values.
            and site["fn"].batch_shape.numel() <= samples * n
            and len(layout.observed) == 1
            and site["mask"] is None
            and isinstance(elementwise(site["fn"]), Normal)
        )
        if not self._known:
            return

        def by_row(value: Tensor) -> Tensor:
            shaped = rows_first({**site, "value": value}, layout, samples, n)
            return shaped.reshape(samples, n, -1).double()

        x, mean, variance = (
            by_row(site["value"]),
            by_row(site["fn"].mean),
            by_row(site["fn"].variance),
        )
        self._squares += float(((x - mean).square() / variance).mean(0).mean(1).sum())
        self._rows += n
        if sum(part.numel() for part in self._left) < _VALUES:
            noise = variance.mean(0).sqrt()
            self._left.append(((x[0] - mean.mean(0)) / noise).float().cpu())
            self._explained.append((mean.mean(0) / noise).float().cpu())

    def verdict(self, beta: float) -> str | None:
        """What keeps further dimensions from being used; None if it can not be told for this likelihood."""
        if not self._known or self._rows < 2:
            return None
        left = torch.cat(self._left).double()
        left = left - left.mean(0)
        n, size = left.shape
        edge = (1 + math.sqrt(size / n)) ** 2
        if _top(left) > beta * edge:
            return "ignored latent"
        used = _directions(torch.cat(self._explained).double(), 0.01)
        rest = left - left @ used @ used.T
        free = size - used.shape[1]
        if free == 0:
            return "surplus dimensions"
        if beta > 1 and _top(rest) > edge:
            return "large beta"
        if float(rest.square().sum()) / (n * free) >= 0.9:
            return "surplus dimensions"  # what is left looks like the noise
        # Noise that is larger than what is left, and yet at its optimum, is so for beta's sake.
        at_optimum = abs(self._squares / self._rows - 1) < 0.02
        return "large beta" if beta > 1 and at_optimum else "decoder noise"


def _top(centred: Tensor) -> float:
    """The largest eigenvalue of the covariance of rows."""
    n, size = centred.shape
    gram = centred.T @ centred if size <= n else centred @ centred.T
    return float(torch.linalg.eigvalsh(gram / n)[-1])


def _directions(x: Tensor, least: float) -> Tensor:
    """Orthonormal directions along which the variance of rows is at least ``least``: ``(D, directions)``."""
    x = x - x.mean(0)
    n, size = x.shape
    if size <= n:
        variances, vectors = torch.linalg.eigh(x.T @ x / n)
        found: Tensor = vectors[:, variances > least]
        return found
    variances, vectors = torch.linalg.eigh(x @ x.T / n)
    kept = variances > least
    found = x.T @ vectors[:, kept] / (n * variances[kept]).sqrt()
    return found
