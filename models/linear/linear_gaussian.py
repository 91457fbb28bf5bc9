"""x = W z + mu + noise with z ~ N(0, I): its closed forms, for the models that are built from it.

Factor analysis, probabilistic PCA and its mixtures share this algebra. In shapes, `parts` are the components
of a mixture; other models have none.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor


class LinearGaussian:
    """z ~ N(0, I), x | z ~ N(W z + mu, diag(s^2)): evidence and posterior, without matrix inverses.

    Marginally x ~ N(mu, W W^T + diag(s^2)); the posterior is N(m, M^-1) with M = I + W^T diag(s^-2) W and
    M m = W^T diag(s^-2) (x - mu). M is never formed: QR of the stacked (W / s; I) = Q T gives its root,
    T^T T = M, whose condition number is the square root of M's.

    Args:
        weight: W, `(*parts, D, q)`.
        mean: mu, `(*parts, D)`.
        scale: s, `(*parts, D)`, or broadcasting to it.

    Attributes:
        root: The lower triangular T with a positive diagonal, `(*parts, q, q)`.

    Example:
        >>> p = LinearGaussian(torch.ones(3, 1), torch.zeros(3), torch.ones(3))
        >>> p.log_evidence(torch.zeros(2, 3)).shape, p.posterior_mean(torch.zeros(2, 3)).shape
        (torch.Size([2]), torch.Size([2, 1]))
    """

    def __init__(self, weight: Tensor, mean: Tensor, scale: Tensor) -> None:
        self.weight, self.mean = weight, mean
        self.scale = scale.expand(mean.shape)
        scaled = weight / self.scale.unsqueeze(-1)
        identity = torch.eye(weight.shape[-1], dtype=weight.dtype, device=weight.device)
        stacked = torch.cat([scaled, identity.expand(*weight.shape[:-2], -1, -1)], -2)
        # QR gives an upper triangle. A scale_tril is a lower one: reverse the columns before and after.
        orthogonal, upper = torch.linalg.qr(stacked.flip(-1))
        basis, root = orthogonal[..., : mean.shape[-1], :].flip(-1), upper.flip(-2, -1)
        signs = root.diagonal(dim1=-2, dim2=-1).sign()
        self.root = root * signs.unsqueeze(-1)
        # T m = Q^T (x - mu) / s
        self._basis = basis * signs.unsqueeze(-2) / self.scale.unsqueeze(-1)

    def log_evidence(self, x: Tensor, posterior_mean: Tensor | None = None) -> Tensor:
        """log p(x) of rows `(n, D)`: `(*parts, n)`, in nats.

        -1/2 (D log 2 pi + sum log s^2 + log |M| + |(x - mu - W m) / s|^2 + |m|^2): a sum of squares, so
        that small noise costs no precision.
        """
        z = self.posterior_mean(x) if posterior_mean is None else posterior_mean
        noise = (self._residual(x) - z @ self.weight.mT) / self.scale.unsqueeze(-2)
        normalizer = self.scale.log().sum(-1) + self.root.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        squares = noise.square().sum(-1) + z.square().sum(-1)
        constant = x.shape[-1] * math.log(2 * math.pi)
        log_p: Tensor = -0.5 * (constant + squares) - normalizer.unsqueeze(-1)
        return log_p

    def posterior_mean(self, x: Tensor) -> Tensor:
        """The posterior mean m of rows `(n, D)`: `(*parts, n, q)`."""
        right = self._residual(x) @ self._basis
        z: Tensor = torch.linalg.solve_triangular(self.root.mT, right, upper=True, left=False)
        return z

    def posterior_scale_tril(self) -> Tensor:
        """L = T^-1 with L L^T = M^-1, `(*parts, q, q)`: the same for all rows."""
        # solve_triangular does not broadcast its right side.
        identity = torch.eye(self.root.shape[-1], dtype=self.root.dtype, device=self.root.device)
        inverse: Tensor = torch.linalg.solve_triangular(
            self.root, identity.expand_as(self.root), upper=False
        )
        return inverse

    def expected_statistics(self, chunks: Iterable[Tensor], hard: bool) -> dict[str, Tensor]:
        """The E step's sums over rows that come in chunks `(n, D)`.

        Args:
            chunks: At least one chunk of rows.
            hard: Take the posterior's mode for z, without the spread around it.

        Returns:
            The statistics of `regression_statistics`; "log_evidence", the sum of log p(x), or if `hard` of
            max_z log p(x, z) = log p(x) + log p(z | x) at its mode; "num_rows".
        """
        spread = self.posterior_scale_tril()
        covariance = torch.zeros_like(spread) if hard else spread @ spread.T
        size = len(self.root)
        log_mode = self.root.diagonal().log().sum() - size * math.log(2 * math.pi) / 2
        total: dict[str, Tensor] = {}
        for rows in chunks:
            z = self.posterior_mean(rows)
            found = regression_statistics(rows, z, covariance)
            found["num_rows"] = found["uu"][-1, -1]
            log_p = self.log_evidence(rows, z).sum()
            found["log_evidence"] = log_p + len(rows) * log_mode if hard else log_p
            total = {k: total[k] + v for k, v in found.items()} if total else found
        return total

    def _residual(self, x: Tensor) -> Tensor:
        return x - self.mean.unsqueeze(-2)


def regression_statistics(
    x: Tensor, z: Tensor, covariance: Tensor, weights: Tensor | None = None
) -> dict[str, Tensor]:
    """The sufficient statistics of x = W z + mu under q(z) = N(z, covariance), summed over rows.

    With u = (z, 1): `xu` = sum w x u^T, `(D, q + 1)`; `uu` = sum w E[u u^T], `(q + 1, q + 1)`; and
    `xx` = sum w x^2, `(D,)`.

    Args:
        x: Rows, `(n, D)`, about a fixed center.
        z: Posterior means, `(n, q)`.
        covariance: Posterior covariance, `(q, q)`, the same for all rows.
        weights: A weight w for each row, `(n,)`; 1 if None.
    """
    u = torch.cat([z, torch.ones_like(z[:, :1])], 1)
    weighted = u if weights is None else u * weights.unsqueeze(1)
    total = weighted[:, -1].sum()
    uu = weighted.T @ u
    uu[:-1, :-1] += total * covariance
    squares = x.square().sum(0) if weights is None else weights @ x.square()
    return {"xu": x.T @ weighted, "uu": uu, "xx": squares}


def regress(xu: Tensor, uu: Tensor, xx: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """W `(D, q)`, mu `(D,)` about the center, and the mean squared residuals `(D,)`.

    W and mu maximize the expected log density of x = W z + mu + noise, for any diagonal noise.

    Args:
        xu: See `regression_statistics`.
        uu: See `regression_statistics`.
        xx: See `regression_statistics`.
    """
    # Pseudo-inverse: uu is singular where a column of W has collapsed and hard EM sets z to 0.
    solution = xu @ torch.linalg.pinv(uu, hermitian=True)
    # sum (x - B u)^2 = xx - 2 B xu + B uu B; rounding may leave it below 0.
    residual = xx - 2 * (solution * xu).sum(1) + ((solution @ uu) * solution).sum(1)
    return solution[:, :-1], solution[:, -1], residual.clamp_min(0) / uu[-1, -1]
