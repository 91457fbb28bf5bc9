"""The covariances of a Gaussian mixture: their parameters, their part in the E step and in the M step.

Throughout, rows `x`, `(n, D)`, and means, `(k, D)`, are relative to one center.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_vae.networks import Rebuildable

Density = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Maps rows to log N(x; mu_k, Sigma_k), `(k, n)`, and to the features that `second` sums."""

FAR = 1e2
"""(distance / width)^2 of a mean from the center beyond which float32 products are off by more than 1e-5."""


class Covariance(Rebuildable, nn.Module, ABC):
    """The covariances of k components of D dimensions, as unconstrained parameters."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    @abstractmethod
    def normal(self, mean: Tensor, z: Tensor, shape: Sequence[int]) -> dist.TorchDistribution:
        """N(mean, Sigma_z) of event shape `shape`, for means `(*batch, D)`, components `(*batch)`."""

    @abstractmethod
    def spread(self, component: int) -> Tensor:
        """A vector, `(D,)`, as long as one standard deviation of a component."""

    @abstractmethod
    def density(self, means: Tensor, dtype: torch.dtype) -> Density:
        """The density as the E step needs it: prepared once, then called on every chunk."""

    @abstractmethod
    def second(self, weights: Tensor, features: Tensor) -> Tensor:
        """Second moments of a chunk, for `weights` `(k, n)` and the features from the density."""

    def about_center(self, second: Tensor, first: Tensor, counts: Tensor, means: Tensor) -> Tensor:
        """Moments about the center, for the sum of `second` over chunks, in float64."""
        return second

    @abstractmethod
    def maximize(self, second: Tensor, counts: Tensor, means: Tensor, floor: float) -> list[int]:
        """Sets the maximum-likelihood covariances; returns the components with variances raised to `floor`.

        Args:
            second: Second moments about the center, float64.
            counts: Expected rows of each component, `(k,)`, float64, positive.
            means: The new means, float64.
            floor: The least variance in any direction.
        """

    def split(self, means: Tensor, source: int, target: int) -> None:
        """Copies a component to another, and moves the two half a standard deviation apart."""
        self._copy(source, target)
        step = self.spread(source) / 4
        means[target] = means[source] + step
        means[source] -= step

    def _copy(self, source: int, target: int) -> None:
        for parameter in self.parameters():
            parameter[target] = parameter[source]

    def _normalizer(self) -> float:
        return self.size * math.log(2 * math.pi)


def precise_enough(means: Tensor, dtype: torch.dtype) -> torch.dtype:
    """The dtype in which |x - m|^2 can be expanded, for whitened means: float64 if any is far away.

    The rounding error of the expansion is about eps |m|^2: below 1e-5 in float32 for |m|^2 < 1e2.
    """
    return torch.float64 if float(means.square().sum(-1).max()) > FAR else dtype


class Spherical(Covariance):
    """Sigma_k = s_k^2 I; `log_scale` is log s, `(k,)`."""

    def __init__(self, components: int, size: int) -> None:
        super().__init__(size)
        self.log_scale = nn.Parameter(torch.zeros(components))

    def normal(self, mean: Tensor, z: Tensor, shape: Sequence[int]) -> dist.TorchDistribution:
        scale = self.log_scale.to(mean.dtype).exp()[z].unsqueeze(-1)
        return _independent(mean, scale, shape)

    def spread(self, component: int) -> Tensor:
        scale = self.log_scale[component].exp() / math.sqrt(self.size)
        return scale.expand(self.size)

    def density(self, means: Tensor, dtype: torch.dtype) -> Density:
        scale = self.log_scale.double().exp().unsqueeze(-1)
        dtype = precise_enough(means / scale, dtype)
        precision = scale.pow(-2)
        constant = (
            self._normalizer() + 2 * self.size * scale.log()
        ) + precision * means.square().sum(-1, keepdim=True)
        linear, half = (precision * means).to(dtype), (-0.5 * precision).to(dtype)
        constant = (-0.5 * constant).to(dtype)

        def log_density(x: Tensor) -> tuple[Tensor, Tensor]:
            x = x.to(dtype)
            square = x.square().sum(-1)
            return torch.addmm(constant, linear, x.T).addcmul_(half, square), square

        return log_density

    def second(self, weights: Tensor, features: Tensor) -> Tensor:
        return weights @ features

    def maximize(self, second: Tensor, counts: Tensor, means: Tensor, floor: float) -> list[int]:
        variance = (second / counts - means.square().sum(-1)) / self.size
        self.log_scale.copy_(variance.clamp_min(floor).log() / 2)
        return _indices(variance < floor)


class Diagonal(Covariance):
    """Sigma_k = diag(s_k^2); `log_scale` is log s, `(k, D)`."""

    def __init__(self, components: int, size: int) -> None:
        super().__init__(size)
        self.log_scale = nn.Parameter(torch.zeros(components, size))

    def normal(self, mean: Tensor, z: Tensor, shape: Sequence[int]) -> dist.TorchDistribution:
        return _independent(mean, self.log_scale.to(mean.dtype).exp()[z], shape)

    def spread(self, component: int) -> Tensor:
        return self.log_scale[component].exp() / math.sqrt(self.size)

    def density(self, means: Tensor, dtype: torch.dtype) -> Density:
        scale = self.log_scale.double().exp()
        dtype = precise_enough(means / scale, dtype)
        precision = scale.pow(-2)
        constant = (2 * scale.log() + precision * means.square()).sum(-1, keepdim=True)
        constant = (-0.5 * (constant + self._normalizer())).to(dtype)
        linear, half = (precision * means).to(dtype), (-0.5 * precision).to(dtype)

        def log_density(x: Tensor) -> tuple[Tensor, Tensor]:
            x = x.to(dtype)
            square = x.square()
            return torch.addmm(constant, linear, x.T).addmm_(half, square.T), square

        return log_density

    def second(self, weights: Tensor, features: Tensor) -> Tensor:
        return weights @ features

    def maximize(self, second: Tensor, counts: Tensor, means: Tensor, floor: float) -> list[int]:
        variance = second / counts.unsqueeze(-1) - means.square()
        self.log_scale.copy_(variance.clamp_min(floor).log() / 2)
        return _indices((variance < floor).any(-1))


class _Factored(Covariance):
    """Sigma = L L^T with L = strictly lower `lower` (by rows) + diag(exp(`log_scale`))."""

    def __init__(self, size: int, *batch: int) -> None:
        super().__init__(size)
        self.log_scale = nn.Parameter(torch.zeros(*batch, size))
        self.lower = nn.Parameter(torch.zeros(*batch, size * (size - 1) // 2))

    def scale_tril(self) -> Tensor:
        """L, `(*batch, D, D)`."""
        flat = torch.diag_embed(self.log_scale.exp()).flatten(-2)
        factor = flat.index_copy(-1, self._below(), self.lower)
        square: Tensor = factor.unflatten(-1, (self.size, self.size))
        return square

    def _below(self) -> Tensor:
        """The positions of the strictly lower part in a flattened matrix."""
        rows, columns = torch.tril_indices(
            self.size, self.size, -1, device=self.lower.device
        ).unbind()
        return rows * self.size + columns

    def _set(self, covariance: Tensor, floor: float) -> Tensor:
        """Sets the factor of covariances `(*batch, D, D)`; returns where eigenvalues were raised to `floor`."""
        covariance = (covariance + covariance.mT) / 2
        identity = torch.eye(self.size, dtype=covariance.dtype, device=covariance.device)
        low: Tensor = torch.linalg.cholesky_ex(covariance - floor * identity).info > 0
        if bool(low.any()):
            values, vectors = torch.linalg.eigh(covariance[low])
            raised = vectors * values.clamp_min(floor).unsqueeze(-2) @ vectors.mT
            covariance = covariance.masked_scatter(low[..., None, None], raised)
        factor = torch.linalg.cholesky(covariance)
        self.log_scale.copy_(factor.diagonal(dim1=-2, dim2=-1).log())
        self.lower.copy_(factor.flatten(-2)[..., self._below()])
        return low


class Full(_Factored):
    """Any Sigma_k, by its factor L_k."""

    def __init__(self, components: int, size: int) -> None:
        super().__init__(size, components)

    def normal(self, mean: Tensor, z: Tensor, shape: Sequence[int]) -> dist.TorchDistribution:
        return _multivariate(mean, self.scale_tril().to(mean.dtype)[z], shape)

    def spread(self, component: int) -> Tensor:
        return self.scale_tril()[component].sum(-1) / math.sqrt(self.size)

    def density(self, means: Tensor, dtype: torch.dtype) -> Density:
        # The features are whitened residuals y = L^-1 (x - mu): without the expansion no precision is lost.
        factor = self.scale_tril().double()
        identity = torch.eye(self.size, dtype=factor.dtype, device=factor.device)
        whiten = torch.linalg.solve_triangular(factor, identity, upper=False)
        shift = (whiten @ means.unsqueeze(-1)).to(dtype)
        constant = self._normalizer() + 2 * self.log_scale.double().sum(-1, keepdim=True)
        constant = (-0.5 * constant).to(dtype)
        whiten = whiten.reshape(-1, self.size).to(dtype)

        def log_density(x: Tensor) -> tuple[Tensor, Tensor]:
            y = (whiten @ x.to(dtype).T).view(len(shift), self.size, -1).sub_(shift)
            return constant.sub(y.square().sum(1), alpha=0.5), y

        return log_density

    def second(self, weights: Tensor, features: Tensor) -> Tensor:
        weighted = features * weights.unsqueeze(1)
        return torch.bmm(weighted, features.mT)

    def about_center(self, second: Tensor, first: Tensor, counts: Tensor, means: Tensor) -> Tensor:
        # sum r x x^T = L (sum r y y^T) L^T + m f^T + f m^T - N m m^T, f = sum r x.
        factor = self.scale_tril().double()
        cross = means.unsqueeze(-1) * first.unsqueeze(-2)
        square = means.unsqueeze(-1) * means.unsqueeze(-2) * counts[:, None, None]
        return factor @ second @ factor.mT + cross + cross.mT - square

    def maximize(self, second: Tensor, counts: Tensor, means: Tensor, floor: float) -> list[int]:
        covariance = second / counts[:, None, None] - means.unsqueeze(-1) * means.unsqueeze(-2)
        return _indices(self._set(covariance, floor))


class Tied(_Factored):
    """One Sigma for all components, by its factor L."""

    def __init__(self, components: int, size: int) -> None:
        super().__init__(size)

    def normal(self, mean: Tensor, z: Tensor, shape: Sequence[int]) -> dist.TorchDistribution:
        return _multivariate(mean, self.scale_tril().to(mean.dtype), shape)

    def spread(self, component: int) -> Tensor:
        return self.scale_tril().sum(-1) / math.sqrt(self.size)

    def density(self, means: Tensor, dtype: torch.dtype) -> Density:
        factor = self.scale_tril().double()
        whitened = torch.linalg.solve_triangular(factor, means.T, upper=False).T
        dtype = precise_enough(whitened, dtype)
        constant = whitened.square().sum(-1, keepdim=True) + self._normalizer()
        constant = (-0.5 * constant - self.log_scale.double().sum()).to(dtype)
        identity = torch.eye(self.size, dtype=factor.dtype, device=factor.device)
        whiten = torch.linalg.solve_triangular(factor, identity, upper=False).to(dtype)
        whitened = whitened.to(dtype)

        def log_density(x: Tensor) -> tuple[Tensor, Tensor]:
            x = x.to(dtype)
            y = whiten @ x.T
            log_p = torch.addmm(constant, whitened, y).sub_(y.square().sum(0), alpha=0.5)
            return log_p, x

        return log_density

    def second(self, weights: Tensor, features: Tensor) -> Tensor:
        return features.T @ features  # the weights of a row sum to one

    def maximize(self, second: Tensor, counts: Tensor, means: Tensor, floor: float) -> list[int]:
        covariance = (second - (counts.unsqueeze(-1) * means).T @ means) / counts.sum()
        return list(range(len(counts))) if bool(self._set(covariance, floor)) else []

    def _copy(self, source: int, target: int) -> None:
        pass


_KINDS: dict[str, Callable[[int, int], Covariance]] = {
    "full": Full,
    "diagonal": Diagonal,
    "tied": Tied,
    "spherical": Spherical,
}


def covariance_of_kind(model: nn.Module, kind: str, components: int, size: int) -> Covariance:
    """Builds the covariances of a kind, for a model that has an argument `covariance`.

    Args:
        model: The model, which errors name.
        kind: "full", "diagonal", "tied" or "spherical".
        components: Number k of components.
        size: Number D of dimensions.

    Raises:
        ValueError: `kind` is none of the four.
    """
    if not isinstance(kind, str) or kind not in _KINDS:
        raise ValueError(
            f"{type(model).__name__}.covariance must be one of {', '.join(_KINDS)}, got {kind!r}"
        )
    return _KINDS[kind](components, size)


def _indices(mask: Tensor) -> list[int]:
    found: list[int] = mask.nonzero().flatten().tolist()
    return found


def _independent(mean: Tensor, scale: Tensor, shape: Sequence[int]) -> dist.Independent:
    scale = scale.expand(mean.shape) if scale.dim() <= mean.dim() else scale
    mean = mean.reshape(*mean.shape[:-1], *shape)
    return dist.Independent(dist.Normal(mean, scale.reshape(mean.shape)), len(shape))


class _Reshaped(dist.TransformedDistribution):  # type: ignore[misc]
    """A distribution of vectors as one of arrays."""

    @property
    def mean(self) -> Tensor:
        mean: Tensor = self.transforms[0](self.base_dist.mean)
        return mean


def _multivariate(mean: Tensor, scale_tril: Tensor, shape: Sequence[int]) -> dist.TorchDistribution:
    normal = dist.MultivariateNormal(mean, scale_tril=scale_tril)
    if len(shape) == 1:
        return normal
    reshape = torch.distributions.transforms.ReshapeTransform(mean.shape[-1:], torch.Size(shape))
    return _Reshaped(normal, [reshape])
