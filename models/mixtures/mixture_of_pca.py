"""A mixture of probabilistic PCAs: clusters, each with its own directions."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from sklearn.cluster import KMeans
from torch import Tensor, nn

from ppl_vae.models.linear.linear_gaussian import LinearGaussian, regress, regression_statistics
from ppl_vae.models.mixtures.components import positive_counts, require_enough, split_empty
from ppl_vae.models.rows import RowModel, as_vectors
from ppl_vae.networks import require_at_least_one, require_positive, require_room


class MixtureOfPCA(RowModel):
    """k ~ Categorical(pi), z ~ N(0, I) and x = W_k z + mu_k + sigma_k eps with eps ~ N(0, I).

    Marginally a mixture of N(mu_k, W_k W_k^T + sigma_k^2 I): full covariances at the cost of q directions
    each (Tipping & Bishop 1999, "Mixtures of Probabilistic Principal Component Analysers"). Rows of any
    shape are flattened to D values.

    The sites are `k`, which Pyro sums out (`infer={"enumerate": "parallel"}`), `z` and `x`, inside
    `pyro.plate("data", n, dim=-1)`; plates over samples go outside, at `dim=-2`. A guide samples only `z`:
    `posterior(x)` is p(z | x), itself a mixture over k.

    Args:
        data_shape: Shape of one row of the data.
        latent_dim: Number q of latent dimensions of each component.
        components: Number K of components.
        min_scale: The least sigma_k that the M step sets, in units of the data. Without it, a component on
            fewer than q + 2 rows has infinite density.

    Attributes:
        logits: log pi up to a constant, `(K,)`.
        weight: W, `(K, D, q)`.
        mean: mu, `(K, D)`.
        log_sigma: log sigma, `(K,)`.

    Raises:
        ValueError: `latent_dim`, `components` or `min_scale` is not positive.

    Example:
        >>> x = torch.randn(300, 5) + 6.0 * torch.randint(2, (300, 1))
        >>> model = MixtureOfPCA((5,), latent_dim=1, components=2)
        >>> model.initialize(x, seed=0)
        >>> model.responsibilities(x).probs.shape, model.posterior(x).event_shape
        (torch.Size([300, 2]), torch.Size([1]))
    """

    prior_loc: Tensor
    centre: Tensor

    def __init__(
        self,
        data_shape: Sequence[int],
        latent_dim: int = 2,
        components: int = 2,
        min_scale: float = 1e-3,
    ) -> None:
        super().__init__(data_shape)
        require_at_least_one(self, latent_dim=latent_dim, components=components)
        require_positive(self, min_scale=min_scale)
        few = "choose fewer components or a smaller latent_dim"
        require_room(self, few, components, math.prod(self.data_shape), latent_dim)
        self.latent_dim = latent_dim
        self.components = components
        self.min_scale = min_scale
        size = math.prod(self.data_shape)
        self.logits = nn.Parameter(torch.zeros(components))
        self.weight = nn.Parameter(
            torch.randn(components, size, latent_dim) / math.sqrt(latent_dim)
        )
        # Equal components would stay equal: start apart.
        self.mean = nn.Parameter(torch.randn(components, size))
        self.log_sigma = nn.Parameter(torch.zeros(components))
        self.register_buffer("prior_loc", torch.zeros(latent_dim), persistent=False)
        # The point about which EM takes moments: fixed, so that statistics of different steps add up.
        self.register_buffer("centre", torch.zeros(size))

    def _program(self, x: Tensor) -> None:
        z = pyro.sample("z", self.prior())
        k = pyro.sample("k", dist.Categorical(logits=self.logits), infer={"enumerate": "parallel"})
        pyro.sample("x", self.decode(z, k), obs=x)

    def prior(self) -> dist.Independent:
        """p(z), of event shape `(latent_dim,)`."""
        return dist.Independent(dist.Normal(self.prior_loc, 1.0), 1)

    def decode(self, z: Tensor, k: Tensor) -> dist.Independent:
        """p(x | z, k) for latents `(*batch, latent_dim)` and `(*batch)`: batch shape `batch`."""
        mean = torch.einsum("...dq,...q->...d", self.weight[k], z) + self.mean[k]
        mean = mean.reshape(*mean.shape[:-1], *self.data_shape)
        scale = self.log_sigma.exp()[k].reshape(*k.shape, *(1 for _ in self.data_shape))
        return dist.Independent(dist.Normal(mean, scale), len(self.data_shape))

    def log_evidence(self, x: Tensor) -> Tensor:
        """log p(x) of every row, `(n,)`, in nats.

        Raises:
            ValueError: The rows of `x` do not have the shape `data_shape`.
        """
        return self._log_joint(self._linear(), as_vectors(self, x)).logsumexp(0)

    def responsibilities(self, x: Tensor) -> dist.Categorical:
        """p(k | x), of batch shape `(n,)`.

        Raises:
            ValueError: The rows of `x` do not have the shape `data_shape`.
        """
        return dist.Categorical(logits=self._log_joint(self._linear(), as_vectors(self, x)).T)

    def posterior(self, x: Tensor) -> dist.MixtureSameFamily:
        """p(z | x) = sum_k p(k | x) p(z | x, k), of batch shape `(n,)`, event `(latent_dim,)`.

        Gradients flow into the parameters.

        Raises:
            ValueError: The rows of `x` do not have the shape `data_shape`.
        """
        rows, linear = as_vectors(self, x), self._linear()
        means = linear.posterior_mean(rows).transpose(0, 1)
        parts = dist.MultivariateNormal(means, scale_tril=linear.posterior_scale_tril())
        weights = dist.Categorical(logits=self._log_joint(linear, rows).T)
        return dist.MixtureSameFamily(weights, parts)

    def check_start(self, x: Tensor) -> None:
        """Raises an error if EM cannot start from `x`, before any work.

        Raises:
            ValueError: `x` has fewer rows than there are components.
        """
        require_enough(self.components, "components", len(x), "rows")

    @torch.no_grad()
    def initialize(self, x: Tensor, seed: int = 0) -> None:
        """Starts EM at k-means (from k-means++) and the probabilistic PCA of each cluster.

        Args:
            x: Data, `(n, *data_shape)`.
            seed: Random seed of k-means++.

        Raises:
            ValueError: The rows of `x` do not have the shape `data_shape`, or are fewer than the components.
        """
        rows = as_vectors(self, x).double()
        self.check_start(rows)
        self.centre.copy_(rows.mean(0))
        kmeans = KMeans(self.components, n_init=1, random_state=seed % 2**32).fit(
            rows.cpu().numpy()
        )
        labels = torch.as_tensor(kmeans.labels_, device=rows.device)
        counts = torch.bincount(labels.long(), minlength=self.components)
        self.logits.copy_((counts.clamp_min(1).double() / len(rows)).log())
        for k in counts.nonzero().flatten().tolist():
            own = rows[labels == k]
            mean = own.mean(0)
            _, singular, directions = torch.linalg.svd(own - mean, full_matrices=False)
            values = singular.square() / len(own)
            kept = min(self.latent_dim, len(values))
            noise = values[kept:].sum() / max(len(mean) - kept, 1)
            noise = noise.clamp_min(self.min_scale**2)
            self.mean[k] = mean.to(self.mean.dtype)
            self.weight[k] = 0.0
            lengths = (values[:kept] - noise).clamp_min(0).sqrt()
            self.weight[k, :, :kept] = (directions[:kept].T * lengths).to(self.weight.dtype)
            self.log_sigma[k] = noise.log() / 2
        # Empty where there are fewer different rows than components.
        split_empty(self.logits, counts == 0, self._split)

    @torch.no_grad()
    def expected_statistics(self, x: Tensor, hard: bool = False) -> dict[str, Tensor]:
        """The E step's sufficient statistics under p(k, z | x), summed over the rows, in float64.

        Args:
            x: Data, `(n, *data_shape)`.
            hard: Put all of a row's weight on the likeliest component. Given the component, z is
                integrated out in both cases.

        Returns:
            "xu", `(K, D, q + 1)`, "uu", `(K, q + 1, q + 1)`, and "xx", `(K, D)` (see
            `ppl_vae.models.linear.linear_gaussian.regression_statistics`), of rows about `centre`; "num_rows";
            "log_evidence", the sum of log p(x), or if `hard` of max_k log p(x, k).

        Raises:
            ValueError: The rows of `x` do not have the shape `data_shape`.
        """
        rows = as_vectors(self, x).double() - self.centre.double()
        log_joint, means, covariances = [], [], []
        # One component after the other: (K, n, D) numbers would need too much memory.
        for k in range(self.components):
            linear = self._component(k)
            means.append(linear.posterior_mean(rows))
            log_joint.append(linear.log_evidence(rows, means[-1]))
            spread = linear.posterior_scale_tril()
            covariances.append(spread @ spread.T)
        joint = torch.stack(log_joint) + self.logits.double().log_softmax(0).unsqueeze(1)
        if hard:
            log_evidence, labels = joint.max(0)
            weights = torch.nn.functional.one_hot(labels, self.components).T.to(joint)
        else:
            log_evidence = joint.logsumexp(0)
            weights = (joint - log_evidence).exp()
        parts = [
            regression_statistics(rows, means[k], covariances[k], weights[k])
            for k in range(self.components)
        ]
        return {
            **{name: torch.stack([part[name] for part in parts]) for name in parts[0]},
            "log_evidence": log_evidence.sum(),
            "num_rows": rows.new_tensor(len(rows)),
        }

    @torch.no_grad()
    def maximize(self, statistics: dict[str, Tensor]) -> None:
        """M step: sets the parameters to the maximizer of the expected log p(x, k, z).

        A component without rows is replaced by one split off from the largest one. Warns of it, and of noise
        that was raised to `min_scale`.

        Args:
            statistics: Those of an E step.
        """
        num_rows = statistics["num_rows"]
        counts, empty = positive_counts(statistics["uu"][:, -1, -1], num_rows)
        self.logits.copy_((counts / num_rows).log())
        narrow = []
        for k in (~empty).nonzero().flatten().tolist():
            weight, mean, variance = regress(*(statistics[s][k] for s in ("xu", "uu", "xx")))
            self.weight[k] = weight.to(self.weight.dtype)
            self.mean[k] = (mean + self.centre.double()).to(self.mean.dtype)
            scale = variance.mean().sqrt()
            self.log_sigma[k] = scale.clamp_min(self.min_scale).log()
            if scale < self.min_scale:
                narrow.append(k)
        split_empty(self.logits, empty, self._split)
        if narrow:
            warnings.warn(
                f"the noise of components {narrow} would fall below min_scale and was raised to it",
                stacklevel=2,
            )

    def _split(self, source: int, target: int) -> None:
        """Copies a component to another, and moves the two half a standard deviation apart."""
        weight, size = self.weight[source], len(self.mean[source])
        self.weight[target] = weight
        self.log_sigma[target] = self.log_sigma[source]
        # One standard deviation in the q + D dimensions of z and noise.
        noise = self.log_sigma[source].exp() / math.sqrt(size)
        step = (weight.sum(-1) + noise) / math.sqrt(self.latent_dim + 1) / 4
        self.mean[target] = self.mean[source] + step
        self.mean[source] -= step

    def _log_joint(self, linear: LinearGaussian, rows: Tensor) -> Tensor:
        """log p(x, k), `(K, n)`."""
        return linear.log_evidence(rows) + self.logits.log_softmax(0).unsqueeze(1)

    def _linear(self) -> LinearGaussian:
        """All components at once."""
        return LinearGaussian(self.weight, self.mean, self.log_sigma.exp().unsqueeze(1))

    def _component(self, k: int) -> LinearGaussian:
        """One of them in float64, for data about `centre`."""
        mean = self.mean[k].double() - self.centre.double()
        return LinearGaussian(self.weight[k].double(), mean, self.log_sigma[k].double().exp())
