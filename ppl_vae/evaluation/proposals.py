"""Proposals of a row's own: mixtures of Student t distributions, fitted to weighted draws."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

DEGREES = 10.0
"""Degrees of freedom: tails heavy enough that weights stay bounded, and light enough to lose little."""


@dataclass(frozen=True)
class StudentMixture:
    r"""A mixture of C multivariate Student t distributions for each of n rows.

    Its density is sum_c weight_c t(u; mean_c, L_c L_c^T, df), with

        t(u; m, S, v) = G((v + d) / 2) / (G(v / 2) (v pi)^(d / 2) |S|^(1/2)) (1 + q / v)^(-(v + d) / 2),

    where G is the gamma function and q = (u - m)^T S^-1 (u - m).

    Attributes:
        log_weight: `(n, C)`; -inf for a component that is not used.
        mean: `(n, C, d)`.
        scale: Lower Cholesky factors of the scale matrices, `(n, C, d, d)`.
        df: Degrees of freedom; infinite for normal distributions.

    Example:
        >>> one = StudentMixture(
        ...     torch.zeros(1, 1), torch.zeros(1, 1, 2), torch.eye(2).expand(1, 1, 2, 2), math.inf
        ... )
        >>> one.log_prob(torch.zeros(1, 1, 2))
        tensor([[-1.8379]])
    """

    log_weight: Tensor
    mean: Tensor
    scale: Tensor
    df: float = DEGREES

    def sample(self, num_samples: int) -> Tensor:
        """Draws, `(num_samples, n, d)`."""
        n, _, d = self.mean.shape
        picked = torch.multinomial(self.log_weight.exp(), num_samples, replacement=True).T
        noise = torch.randn(num_samples, n, d, dtype=self.mean.dtype, device=self.mean.device)
        if math.isfinite(self.df):
            shape = torch.full((num_samples, n, 1), self.df / 2, dtype=noise.dtype)
            chi_squared = 2 * torch._standard_gamma(shape.to(noise.device))
            noise = noise * (self.df / chi_squared).sqrt()
        # One component after the other: a factor for each draw would take d x d numbers of memory.
        result = torch.zeros_like(noise)
        for c in range(self.mean.shape[1]):
            rows = self._users(c)
            moved = self.mean[rows, c] + torch.einsum(
                "nij,snj->sni", self.scale[rows, c], noise[:, rows]
            )
            its = (picked[:, rows] == c)[..., None]
            result[:, rows] = torch.where(its, moved, result[:, rows])
        return result

    def _users(self, component: int) -> Tensor | slice:
        """The rows that use a component: all in one piece, or their numbers."""
        used = self.log_weight[:, component] > -math.inf
        return slice(None) if bool(used.all()) else used.nonzero()[:, 0]

    def frame(self) -> tuple[Tensor, Tensor]:
        """Mean and scale of the component with the largest weight, `(n, d)` and `(n, d, d)`."""
        rows = torch.arange(len(self.mean), device=self.mean.device)
        largest = self.log_weight.argmax(-1)
        return self.mean[rows, largest], self.scale[rows, largest]

    def log_prob(self, u: Tensor) -> Tensor:
        """The log density at u, `(S, n, d)`: `(S, n)`."""
        return torch.logsumexp(self.of_components(u), -1)

    def of_components(self, u: Tensor) -> Tensor:
        """The log densities of the components, weights included, `(S, n, C)`."""
        _, components, d = self.mean.shape
        parts = []
        for c in range(components):
            rows = self._users(c)
            scale, off = self.scale[rows, c], (u[:, rows] - self.mean[rows, c]).permute(1, 2, 0)
            q = torch.linalg.solve_triangular(scale, off, upper=False).square().sum(1).T
            log_det = scale.diagonal(dim1=-2, dim2=-1).log().sum(-1)
            if math.isfinite(self.df):
                v = self.df
                constant = (
                    math.lgamma((v + d) / 2) - math.lgamma(v / 2) - d / 2 * math.log(v * math.pi)
                )
                density = constant - (v + d) / 2 * torch.log1p(q / v)
            else:
                density = -d / 2 * math.log(2 * math.pi) - q / 2
            density = density - log_det + self.log_weight[rows, c]
            if not isinstance(rows, slice):
                whole = density.new_full(u.shape[:2], -math.inf)
                density = whole.index_copy(1, rows, density)
            parts.append(density)
        return torch.stack(parts, -1)
