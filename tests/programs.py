"""Small pairs that many tests use, written for plain Pyro and mostly with closed forms, and how to run them."""

from __future__ import annotations

import contextlib
import math
import weakref
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ppl_vae.data import Data
from ppl_vae.diagnosis import Diagnosis, diagnose
from ppl_vae.guides import Exact, MeanField
from ppl_vae.models import VAE, ProbabilisticPCA
from ppl_vae.networks import MLP
from ppl_vae.objectives import Loss, Objective
from ppl_vae.pairs import Pair, Program, find_layout
from ppl_vae.stats import Estimate

LOG_2PI = math.log(2 * math.pi)

WEIGHTS = torch.tensor([0.2, 0.5, 0.3])  # of a mixture
LOCS = torch.tensor([-2.0, 0.5, 3.0])
POINTS = torch.tensor([-1.0, 0.0, 4.0])  # of mean 1


def normal(x: Tensor) -> None:
    """z ~ N(0, 1), x ~ N(z, 1): then x ~ N(0, 2), and p(z | x) = N(x / 2, 1 / 2)."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def normal_normal(x: Tensor) -> None:
    """z ~ N(0, 1), x ~ N(z, 1 / 4): then x ~ N(0, 5 / 4)."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 0.5), obs=x)


def located(x: Tensor) -> None:
    """z ~ N(loc, 1), x ~ N(z, 1), where loc is a parameter that starts at 0."""
    loc = pyro.param("loc", torch.tensor(0.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(loc, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def log_evidence(x: Tensor, loc: float) -> Tensor:
    """log p(x) of `located`."""
    density: Tensor = torch.distributions.Normal(loc, 2**0.5).log_prob(x)
    return density


def positive(x: Tensor) -> None:
    """z ~ Gamma(2, 1), x ~ N(z, 1)."""
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Gamma(2.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def normal_guide(slope: float, scale: float, shift: float = 0.0) -> Program:
    """z ~ N(slope x + shift, scale^2)."""

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(slope * x + shift, scale))

    return guide


def shared_mean(scale: float) -> Program:
    """mu ~ N(0, scale^2) for all rows; z ~ N(mu, 1), x ~ N(z, 1)."""

    def model(x: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, scale))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(mu, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    return model


def shared_mean_guide(loc: float, scale: float) -> Program:
    """mu ~ N(loc, scale^2) for all rows; z ~ p(z | x, mu) = N((mu + x) / 2, 1 / 2)."""

    def guide(x: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(x.new_tensor(loc), scale))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal((mu + x) / 2, 0.5**0.5))

    return guide


def mixture_prior(weights: Tensor, locs: Tensor, width: float, noise: float) -> Program:
    """z ~ N(locs[c], width^2) with c ~ Categorical(weights), which is summed out; x ~ N(z, noise^2)."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            c = pyro.sample("c", dist.Categorical(weights), infer={"enumerate": "parallel"})
            z = pyro.sample("z", dist.Normal(locs[c], width))
            pyro.sample("x", dist.Normal(z, noise), obs=x)

    return model


def coin(x: Tensor) -> None:
    """c ~ Bernoulli(0.3), x ~ N(2 c - 1, 1)."""
    with pyro.plate("data", len(x)):
        c = pyro.sample("c", dist.Bernoulli(torch.tensor(0.3)))
        pyro.sample("x", dist.Normal(2 * c - 1, 1.0), obs=x)


def coin_guide(slope: float) -> Program:
    """c ~ Bernoulli with the logit slope x."""

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("c", dist.Bernoulli(logits=slope * x))

    return guide


def everything(x: Tensor) -> None:
    """A latent of all rows, two of each row, one in a plate inside, and two observed sites."""
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(x), dim=-2):
        z = pyro.sample("z", dist.Normal(mu[..., None], torch.ones(2)).to_event(1))
        pyro.deterministic("twice", 2 * z, event_dim=1)
        with pyro.plate("pixels", 3, dim=-1):
            v = pyro.sample("v", dist.Normal(z[..., 0], 1.0))
            pyro.sample("x", dist.Normal(v + z[..., 1], 0.5), obs=x)
        pyro.sample("label", dist.Bernoulli(0.3), obs=torch.ones(len(x), 1))


def everything_guide(x: Tensor) -> None:
    """Of `everything`, with an auxiliary latent of each row."""
    mu = pyro.sample("mu", dist.Normal(0.2, 0.5))
    with pyro.plate("rows", len(x), dim=-2):
        helper = pyro.sample("helper", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
        loc = torch.stack(
            [x.mean(-1, keepdim=True) + mu + helper, x[:, :1] + 0 * mu + 0 * helper], -1
        )
        z = pyro.sample("z", dist.Normal(loc, 0.7).to_event(1))
        with pyro.plate("pixels", 3, dim=-1):
            pyro.sample("v", dist.Normal(z[..., 0] + x, 0.4))


class Hierarchical(nn.Module):
    """z2 -> z1 -> x, with a guide x -> z1 -> z2."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Linear(2, 3)
        self.out = nn.Linear(3, 64)
        self.up1 = nn.Linear(64, 3)
        self.up2 = nn.Linear(3, 2)

    def model(self, x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            z2 = pyro.sample("z2", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            z1 = pyro.sample("z1", dist.Normal(self.down(z2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.out(z1)).to_event(1), obs=x.flatten(1))

    def guide(self, x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            z1 = pyro.sample("z1", dist.Normal(self.up1(x.flatten(1)), 0.5).to_event(1))
            pyro.sample("z2", dist.Normal(self.up2(z1), 0.5).to_event(1))


class Factor(nn.Module):
    """z ~ N(0, I_2), x ~ Bernoulli with the logits W z + b."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(2, 64)

    def forward(self, x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=self.out(z)).to_event(1), obs=x.flatten(1))


# -- for objectives -------------------------------------------------------------------------------------


def run(
    objective: Objective,
    model: Program,
    guide: Program,
    x: Tensor,
    beta: float = 1.0,
    vectorizes: bool | None = None,
) -> Loss:
    """The objective on a pair of plain functions, with particles vectorized or looped.

    Without Pyro's validation, as `fit` runs it: it warns of every order of sites but the model's.
    """
    pair = Pair(model, guide)
    with pair.scope(), pyro.validation_enabled(False):
        layout = find_layout(pair, x)
        if vectorizes is not None:
            layout = replace(layout, vectorizes=vectorizes)
        return objective.resolve(pair, x)(pair, layout, x, beta)


@contextlib.contextmanager
def own_store() -> Iterator[None]:
    """A parameter store of its own; what is learned inside is gone afterwards."""
    with pyro.get_param_store().scope():
        yield


class Conjugate:
    """z ~ N(0, 1), x ~ N(w z, s^2); q = N(a x + c, e^2t). Every expectation is a polynomial of order two."""

    def __init__(self, normal: type[dist.Normal] = dist.Normal) -> None:
        values = {"w": 1.3, "log_s": -0.4, "a": 0.3, "c": 0.2, "t": -0.6}
        self.leaves = {
            name: torch.tensor(value, dtype=torch.float64, requires_grad=True)
            for name, value in values.items()
        }
        self.normal = normal

    def model(self, x: Tensor) -> None:
        w, log_s = self.leaves["w"], self.leaves["log_s"]
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(()), 1.0))
            pyro.sample("x", dist.Normal(w * z, log_s.exp()), obs=x)

    def guide(self, x: Tensor) -> None:
        a, c, t = (self.leaves[name] for name in "act")
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.normal(a * x + c, t.exp()))

    def gradients(self, x: Tensor, beta: float) -> dict[str, float]:
        """Of mean(D + beta R), by hand; m and v are the guide's mean and variance.

        D = 1/2 log(2 pi s^2) + ((x - w m)^2 + w^2 v) / (2 s^2), R = 1/2 (v + m^2 - 1 - log v).
        """
        w, log_s, a, c, t = (float(leaf.detach()) for leaf in self.leaves.values())
        m, v, s2 = a * x + c, math.exp(2 * t), math.exp(2 * log_s)
        by_mean = -w * (x - w * m) / s2 + beta * m
        found = {
            "w": (-(x * m) + w * (m**2 + v)) / s2,
            "log_s": 1 - ((x - w * m) ** 2 + w**2 * v) / s2,
            "a": by_mean * x,
            "c": by_mean,
            "t": torch.full_like(x, w**2 * v / s2 + beta * (v - 1)),
        }
        return {name: float(value.mean()) for name, value in found.items()}

    def rate_and_distortion(self, x: Tensor) -> tuple[float, float]:
        w, log_s, a, c, t = (float(leaf.detach()) for leaf in self.leaves.values())
        m, v, s2 = a * x + c, math.exp(2 * t), math.exp(2 * log_s)
        rate = 0.5 * (v + m**2 - 1 - math.log(v))
        distortion = 0.5 * (LOG_2PI + math.log(s2)) + ((x - w * m) ** 2 + w**2 * v) / (2 * s2)
        return float(rate.mean()), float(distortion.mean())

    def grad(self, loss: Tensor) -> dict[str, float]:
        grads = torch.autograd.grad(
            loss, list(self.leaves.values()), allow_unused=True, retain_graph=True
        )
        return {
            name: 0.0 if g is None else float(g) for name, g in zip(self.leaves, grads, strict=True)
        }


def several_sites(x: Tensor) -> None:
    """A hierarchy z2 -> z1 -> x, with a vector of numbers at each site."""
    with pyro.plate("rows", len(x)):
        z2 = pyro.sample("z2", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        z1 = pyro.sample("z1", dist.Normal(z2.sum(-1, keepdim=True), torch.ones(3)).to_event(1))
        pyro.sample("x", dist.Normal(z1, 0.5).to_event(1), obs=x)


def several_sites_guide(x: Tensor) -> None:
    a = pyro.param("a", torch.tensor(0.4))
    with pyro.plate("rows", len(x)):
        z2 = pyro.sample("z2", dist.Normal(a * x[:, :2], 0.8).to_event(1))
        pyro.sample("z1", dist.Normal(a * x + z2.mean(-1, keepdim=True), 0.7).to_event(1))


def subsampled(x: Tensor) -> None:
    with pyro.plate("data", 100, subsample=torch.arange(len(x))):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])


def subsampled_guide(x: Tensor) -> None:
    a = pyro.param("a", torch.tensor(0.4))
    with pyro.plate("data", 100, subsample=torch.arange(len(x))):
        pyro.sample("z", dist.Normal(a * x[:, 0], 0.8))


def with_global(x: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(mu, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])


def with_global_guide(x: Tensor) -> None:
    a = pyro.param("a", torch.tensor(0.4))
    mu = pyro.sample("mu", dist.Normal(a, 0.3))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(a * x[:, 0] + mu, 0.8))


def global_subsampled(x: Tensor) -> None:
    """The latent of all rows is charged once for 100 rows, not once for those of the batch."""
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 100, subsample=torch.arange(len(x))):
        z = pyro.sample("z", dist.Normal(mu, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, 0])


def global_subsampled_guide(x: Tensor) -> None:
    a = pyro.param("a", torch.tensor(0.4))
    mu = pyro.sample("mu", dist.Normal(a + 1, 0.3))
    with pyro.plate("data", 100, subsample=torch.arange(len(x))):
        pyro.sample("z", dist.Normal(a * x[:, 0] + mu, 0.8))


def pixels(x: Tensor) -> None:
    """Plates inside of the rows, and the rows not at dim -1."""
    rows = pyro.plate("rows", len(x), dim=-2)
    with rows:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("pixels", 3, dim=-1):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def pixels_guide(x: Tensor) -> None:
    a = pyro.param("a", torch.tensor(0.4))
    with pyro.plate("rows", len(x), dim=-2):
        pyro.sample("z", dist.Normal(a * x[:, :1], 0.8))


GAUSSIAN_PAIRS = {
    "several sites": (several_sites, several_sites_guide),
    "subsampled": (subsampled, subsampled_guide),
    "global": (with_global, with_global_guide),
    "global, subsampled": (global_subsampled, global_subsampled_guide),
    "plates inside": (pixels, pixels_guide),
}


# -- for annealing and diagnosis ------------------------------------------------------------------------


def pca(seed: int = 0, n: int = 20) -> tuple[ProbabilisticPCA, Tensor]:
    """Ten dimensions, four latents, and rows from the model itself."""
    generator = torch.Generator().manual_seed(seed)
    model = ProbabilisticPCA((10,), 4, sigma=0.3)
    with torch.no_grad():
        model.weight.copy_(torch.randn(10, 4, generator=generator) / 2)
        z = torch.randn(n, 4, generator=generator)
        x = z @ model.weight.T + 0.3 * torch.randn(n, 10, generator=generator)
    return model, x


def narrow_guide(model: ProbabilisticPCA) -> MeanField:
    """A linear guide that is off by a prior's standard deviation, and too sure."""
    guide = MeanField((10,), 4, network=MLP(hidden=()))
    with torch.no_grad():
        guide.head.weight.zero_()
        guide.head.bias[:4] = 0.7
        guide.head.bias[4:] = math.log(math.expm1(0.3))
    return guide


def agrees(found: Estimate, error: Tensor, truth: Tensor, sigmas: float = 4.5) -> None:
    """Every row within its own error, and the mean over rows within that of the mean."""
    miss = found.values.double() - truth.detach().double()
    assert ((miss / error.double()).abs() < sigmas).all()
    # log E w > E log w: the log of a mean over chains is low by about half its variance.
    bias = -0.5 * float(error.double().square().mean())
    mean_error = float(error.double().square().sum().sqrt()) / len(miss)
    assert abs(float(miss.mean()) - bias) < 3.5 * mean_error


def vae() -> tuple[VAE, MeanField, Tensor]:
    """Small networks and six binary pictures."""
    model = VAE((1, 4, 4), 3, network=MLP(hidden=(8,)))
    guide = MeanField((1, 4, 4), 3, network=MLP(hidden=(8,)))
    return model, guide, (torch.rand(6, 1, 4, 4) < 0.4).float()


def gaussian_data(eigenvalues: list[float], n: int = 3000, seed: int = 0) -> Tensor:
    """Rows whose sample covariance has exactly these eigenvalues, along random directions."""
    generator = torch.Generator().manual_seed(seed)
    size = len(eigenvalues)
    x = torch.randn(n, size, generator=generator, dtype=torch.float64)
    x = x - x.mean(0)
    white = torch.linalg.solve_triangular(torch.linalg.cholesky(x.T @ x / n), x.T, upper=False).T
    basis, _ = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
    scales = torch.tensor(eigenvalues, dtype=torch.float64).sqrt()
    rows: Tensor = white * scales @ basis.T + 1.0
    return rows


def fitted_pca(
    x: Tensor, latent_dim: int, sigma: float, beta: float = 1.0, learn_sigma: bool = False
) -> ProbabilisticPCA:
    """The maximum of the beta-ELBO under the exact posterior; sigma is held unless it is learned."""
    model = ProbabilisticPCA(
        (x.shape[1],), latent_dim, sigma=sigma, learn_sigma=learn_sigma
    ).double()
    return model.maximum_likelihood(x, beta=beta)


def of_fitted_pca(
    eigenvalues: list[float], latent_dim: int, sigma: float, n: int = 3000
) -> Diagnosis:
    """The diagnosis of the best model of this sigma, with its posterior as the guide."""
    x = gaussian_data(eigenvalues, n)
    model = fitted_pca(x, latent_dim, sigma)
    return diagnose(model, Exact(model), x, seed=0)


# -- rows of data ---------------------------------------------------------------------------------------


def digits() -> Tensor:
    """48 binary pictures of scikit-learn's digits."""
    from sklearn.datasets import load_digits  # takes a second to import

    return torch.tensor(load_digits().images[:48] > 7.0, dtype=torch.float32)


def splits(data: Data[Any]) -> tuple[Tensor, Tensor, Tensor]:
    """The rows for training, validation and test."""
    return data.train, data.validation, data.test


def numbered(n: int, *shape: int) -> np.ndarray:
    """Rows that can be told apart: row i is filled with i."""
    return np.broadcast_to(
        np.arange(n, dtype=np.float64).reshape(-1, *[1] * len(shape)), (n, *shape)
    )


def numbers(*parts: Tensor) -> list[int]:
    """The numbers of such rows."""
    return [int(row[0]) for part in parts for row in part.flatten(1)]


# -- memory ---------------------------------------------------------------------------------------------


class Memory(TorchDispatchMode):
    """Bytes of the tensors that are computed inside it.

    `ppl_vae.checks` counts bytes too, to choose how many rows run at once. The tests of that choice have a
    count of their own, or a mistake in one would hide in the other.

    Attributes:
        largest: Of the largest tensor.
        most: The most that were alive at once.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.largest = self.now = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, Tensor):
                size = tensor.numel() * tensor.element_size()
                self.largest = max(self.largest, size)
                self.now += size
                weakref.finalize(tensor, self._gone, size)
        self.most = max(self.most, self.now)
        return out

    def _gone(self, size: int) -> None:
        self.now -= size
