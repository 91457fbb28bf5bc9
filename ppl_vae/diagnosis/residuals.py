"""Residuals of a Gaussian decoder, and how much of them a further latent dimension could explain."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.distributions import Normal

from ppl_vae.pairs import Layout, RowDensities, elementwise, rows_first

_VALUES = 2**24  # how many numbers of standardized data are kept, about


class Residuals:
    r"""Residuals of a Gaussian decoder, in units of its noise.

    In a linear model, a further dimension pays off if and only if the data's variance along it exceeds
    beta sigma^2 (Lucas et al., *Don't Blame the ELBO!*, arXiv:1911.02469). So the eigenvalues of the
    covariance of (x - E_q[mean of p(x | z)]) / sigma show what a further dimension could gain, for linear
    and other decoders. Sampling noise alone makes them as large as (1 + sqrt(D / n))^2 (Marchenko and Pastur).
    """

    def __init__(self) -> None:
        self._known = True
        self._left: list[Tensor] = []
        self._explained: list[Tensor] = []
        self._squares = 0.0
        self._rows = 0

    def update(self, rows: RowDensities, layout: Layout) -> None:
        """Adds the draws for a batch of rows."""
        site = rows.model_trace.nodes[layout.observed[0]]
        samples, n = rows.log_guide.shape
        self._known &= (
            layout.vectorizes
            # An enumerated latent gives x one mean for each of its values.
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
            if self._left and self._left[0].shape[1] != x.shape[2]:
                self._known = False
                return
            noise = variance.mean(0).sqrt()
            self._left.append(((x[0] - mean.mean(0)) / noise).float().cpu())
            self._explained.append((mean.mean(0) / noise).float().cpu())

    def verdict(self, beta: float) -> str | None:
        """Why further dimensions are not used; None if it cannot be determined for this likelihood."""
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
        # If the noise is larger than the residuals and yet at its optimum, beta is the cause.
        at_optimum = abs(self._squares / self._rows - 1) < 0.02
        return "large beta" if beta > 1 and at_optimum else "decoder noise"


def _top(centered: Tensor) -> float:
    """The largest eigenvalue of the covariance of rows."""
    n, size = centered.shape
    gram = centered.T @ centered if size <= n else centered @ centered.T
    return float(torch.linalg.eigvalsh(gram / n)[-1])


def _directions(x: Tensor, least: float) -> Tensor:
    """Orthonormal directions along which the variance of rows is at least `least`: `(D, directions)`."""
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
