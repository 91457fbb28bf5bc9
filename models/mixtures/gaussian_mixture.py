"""The mixture of Gaussians: a discrete latent, with posterior and EM step in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_vae.models.mixtures.components import (
    k_means_plus_plus,
    positive_counts,
    responsibilities,
    split_empty,
)
from ppl_vae.models.mixtures.gaussians import Gaussians
from ppl_vae.models.mixtures.mixture import Mixture
from ppl_vae.models.rows import row_chunks


class GaussianMixture(Mixture, Gaussians):
    """z ~ Categorical(pi) and x | z ~ N(mu_z, Sigma_z).

    log p(x) = log sum_k pi_k N(x; mu_k, Sigma_k) and p(z = k | x) = pi_k N(x; mu_k, Sigma_k) / p(x).
    With N_k = sum_n p(z_n = k | x_n), the EM step is (Dempster, Laird & Rubin 1977, "Maximum Likelihood
    from Incomplete Data via the EM Algorithm"; Bishop 2006, section 9.2)

        pi_k = N_k / n,  mu_k = sum_n p(k | x_n) x_n / N_k,
        Sigma_k = sum_n p(k | x_n) (x_n - mu_k)(x_n - mu_k)^T / N_k,

    its mean over the components for "tied", its diagonal for "diagonal", the mean of the diagonal for
    "spherical". Eigenvalues (variances) below `min_scale`^2 are raised to it. That is the maximizer under
    this constraint, so the likelihood cannot fall, nor grow without bound on a single row. A component
    without rows is replaced by one split off from the largest one. Both come with a warning.

    The sites are `z`, marked for enumeration, and `x`, inside `pyro.plate("data", n, dim=-1)`; plates
    over samples go outside, at `dim=-2`. Rows of any shape are flattened to D values.

    Args:
        data_shape: Shape of one row of the data.
        components: Number k of components.
        covariance: "full", "diagonal", "tied" (one full covariance of all components) or "spherical".
        min_scale: Least standard deviation in any direction that `maximize` sets, in units of the data.

    Attributes:
        logits: log pi up to a constant, `(k,)`.
        means: mu, `(k, D)`.
        covariance: Module with the unconstrained parameters of the covariances: logarithms of scales, and
            for "full" and "tied" the strictly lower part of the Cholesky factor.

    Raises:
        ValueError: `components` or `min_scale` is not positive, or `covariance` is none of the four.

    Example:
        >>> x = torch.cat([torch.randn(300, 2), 5 + 2 * torch.randn(300, 2)])
        >>> model = GaussianMixture((2,), components=2)
        >>> model.initialize(x, seed=0)
        >>> for _ in range(20):
        ...     model.maximize(model.expected_statistics(x))
        >>> model.means.sort(0).values.round().long()
        tensor([[0, 0],
                [5, 5]])
        >>> model.posterior(x).probs.shape, model.log_evidence(x).shape
        (torch.Size([600, 2]), torch.Size([600]))
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        components: int = 10,
        covariance: Literal["full", "diagonal", "tied", "spherical"] = "full",
        min_scale: float = 1e-3,
    ) -> None:
        super().__init__(data_shape, components)
        self._create_gaussians(components, self.data_shape, covariance, min_scale)

    def _start(self, rows: Tensor, seed: int) -> None:
        """Sets weights, means and covariances to those of the rows nearest to each seed."""
        self.centre.copy_(rows.mean(0))
        rows = rows - self.centre
        weights = k_means_plus_plus(rows, self.components, seed)
        # Unit covariances about the center: whitened residuals are then the rows themselves.
        for parameter in [self.means, *self.covariance.parameters()]:
            parameter.zero_()
        zeros = torch.zeros_like(self.means, dtype=rows.dtype)
        _, features = self.covariance.density(zeros, rows.dtype)(rows)
        self.maximize(
            {
                "counts": weights.sum(1),
                "first": weights @ rows,
                "second": self.covariance.second(weights, features),
                "num_rows": weights.sum(),
            }
        )

    @torch.no_grad()
    def expected_statistics(self, x: Tensor, hard: bool = False) -> dict[str, Tensor]:
        """The E step's sufficient statistics of `x` under p(z | x), summed over the rows, in float64.

        Products of matrices for each chunk of rows are in the dtype of the data (in float64 where clusters
        are so far apart that float32 would lose precision); the sums over chunks are in float64.

        Args:
            x: Data, `(n, *data_shape)`.
            hard: Put all of a row's weight on the likeliest component (classification EM, Celeux &
                Govaert 1992, "A classification EM algorithm for clustering").

        Returns:
            "counts", N_k, `(k,)`; "first" and "second", weighted sums of x and x x^T (or what the kind
            of covariance needs of it) about `centre`; "log_evidence", the sum of log p(x), or if `hard` of
            max_z log p(x, z); "num_rows".

        Raises:
            ValueError: The rows of `x` do not have the shape `data_shape`.
        """
        rows = self._rows(x)
        means = (self.means - self.centre).double()
        log_weights = self.logits.log_softmax(-1).unsqueeze(-1)
        density = self.covariance.density(means, rows.dtype)
        parts: list[tuple[Tensor, ...]] = []
        # Summed as they come: a list of moments would hold k D^2 numbers for every chunk.
        for chunk in row_chunks(rows, self.components * means.shape[-1]):
            chunk = chunk - self.centre
            log_density, features = density(chunk)
            weights, log_p = responsibilities(log_density + log_weights, hard)
            second = self.covariance.second(weights, features)
            first = weights @ chunk.to(weights.dtype)
            found = (weights.sum(1).double(), first.double(), second.double(), log_p)
            parts = (
                [tuple(a + b for a, b in zip(parts[0], found, strict=True))] if parts else [found]
            )
        counts, first, second, log_p = parts[0]
        return {
            "counts": counts,
            "first": first,
            "second": self.covariance.about_center(second, first, counts, means),
            "log_evidence": log_p,
            "num_rows": counts.new_tensor(float(len(rows))),
        }

    @torch.no_grad()
    def maximize(self, statistics: dict[str, Tensor]) -> None:
        """M step: sets the parameters to the maximizer of the expected log p(x, z).

        Warns of components without rows, and of those whose variances were raised to `min_scale`^2.

        Args:
            statistics: Those of an E step.
        """
        counts, num_rows = statistics["counts"], statistics["num_rows"]
        counts, empty = positive_counts(counts, num_rows)
        means = statistics["first"] / counts.unsqueeze(-1)
        self.logits.copy_((counts / num_rows).log())
        self._maximize_gaussians(means, statistics["second"], counts, empty, "components")
        split_empty(self.logits, empty, self._split)

    def _split(self, source: int, target: int) -> None:
        self.covariance.split(self.means, source, target)

    def _log_joint(self, rows: Tensor) -> Tensor:
        z = torch.arange(self.components, device=rows.device).unsqueeze(-1)
        x = rows.reshape(len(rows), *self.data_shape)
        log_p: Tensor = self._component(z, rows.dtype).log_prob(x)
        return log_p + self.logits.log_softmax(-1).unsqueeze(-1)

    def _component(self, z: Tensor, dtype: torch.dtype) -> dist.TorchDistribution:
        return self.covariance.normal(self.means.to(dtype)[z], z, self.data_shape)
