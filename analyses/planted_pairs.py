"""Pairs for planted causes: data with known factors, and a library's or a user's own pair for them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import ConditionalAutoRegressiveNN
from torch import Tensor, nn
from torch.distributions.constraints import positive
from torch.nn.functional import softplus

from ppl_vae.guides import FullCovariance, MaskedAutoregressive, MeanField, TopDown
from ppl_vae.likelihoods import (
    Bernoulli,
    Categorical,
    DiscretizedLogistic,
    Gaussian,
    LearnedGaussian,
    Likelihood,
)
from ppl_vae.models import VAE, ConditionalVAE, HierarchicalVAE, MixturePrior
from ppl_vae.models.priors import Prior
from ppl_vae.networks import MLP, AutoregressiveDecoder, Convolutional, Labels, Network, linear_head

FACTORS = 3
"""What the data hold."""

CLASSES = 4
"""Categories of a token, and labels of a row."""

ONE = math.log(math.e - 1)
"""softplus(ONE) = 1."""


# -- data --------------------------------------------------------------------------------------------------


def directions(generator: torch.Generator, size: int) -> Tensor:
    """Orthogonal directions of the factors, of lengths 2, 1.7 and 1.4, `(size, 3)`."""
    q, _ = torch.linalg.qr(torch.randn(size, FACTORS, generator=generator))
    found: Tensor = q * torch.tensor([2.0, 1.7, 1.4])
    return found


def linear(n: int, generator: torch.Generator) -> Tensor:
    """A linear map of z to 10 dimensions, with noise of 0.5."""
    z = torch.randn(n, FACTORS, generator=generator)
    return z @ directions(generator, 10).T + 0.5 * torch.randn(n, 10, generator=generator)


def curved(n: int, generator: torch.Generator) -> Tensor:
    """A bent map of z to 16 dimensions, with noise of 0.3."""
    z = torch.randn(n, FACTORS, generator=generator)
    straight = z @ directions(generator, 16).T
    noise = 0.3 * torch.randn(n, 16, generator=generator)
    return 2 * torch.tanh(straight) + 0.3 * straight + noise


def spots(n: int, generator: torch.Generator) -> Tensor:
    """Pictures of 8 x 8 with a spot, whose place and brightness vary, with noise of 0.2."""
    z = torch.randn(n, FACTORS, generator=generator)
    place = 3.5 + 1.2 * z[:, :2].clamp(-2.5, 2.5)
    grid = torch.arange(8.0)
    y, x = ((grid - place[:, i, None]).square() / 4 for i in range(2))
    spot = (2 + 0.7 * z[:, 2, None, None]) * (-y[:, :, None] - x[:, None, :]).exp()
    return (spot + 0.2 * torch.randn(n, 8, 8, generator=generator)).unsqueeze(1)


def bits(n: int, generator: torch.Generator) -> Tensor:
    """24 bits with logits that are linear in z."""
    z = torch.randn(n, FACTORS, generator=generator)
    logits = 4 * z @ directions(generator, 24).T
    return (torch.rand(n, 24, generator=generator) < logits.sigmoid()).float()


def markov(n: int, generator: torch.Generator) -> Tensor:
    """24 bits, each equal to the one before it with probability 0.9."""
    changes = torch.rand(n, 24, generator=generator) < 0.1
    changes[:, 0] = torch.rand(n, generator=generator) < 0.5
    return (changes.cumsum(1) % 2).float()


def levels(n: int, generator: torch.Generator) -> Tensor:
    """The bent map to 16 numbers, in 32 levels from 0 to 1."""
    return ((curved(n, generator) / 8 + 0.5).clamp(0, 1) * 31).round() / 31


def absolute(n: int, generator: torch.Generator) -> Tensor:
    """The linear map to 10 dimensions, with errors of a Laplace distribution of scale 0.4."""
    z = torch.randn(n, FACTORS, generator=generator)
    u = torch.rand(n, 10, generator=generator) - 0.5
    return z @ directions(generator, 10).T - 0.4 * u.sign() * (-2 * u.abs()).log1p()


def tokens(n: int, generator: torch.Generator) -> Tensor:
    """16 tokens of four kinds, with logits that are linear in z."""
    z = torch.randn(n, FACTORS, generator=generator)
    logits = (5 * z @ directions(generator, 16 * CLASSES).T).reshape(n, 16, CLASSES)
    noise = -(-torch.rand(logits.shape, generator=generator).log()).log()
    return (logits + noise).argmax(-1).float()


def sequences(n: int, generator: torch.Generator) -> Tensor:
    """12 tokens of four kinds, each equal to the one before it with probability 0.85, else any."""
    x = torch.randint(CLASSES, (n, 12), generator=generator)
    for t in range(1, 12):
        same = torch.rand(n, generator=generator) < 0.8
        x[:, t] = torch.where(same, x[:, t - 1], x[:, t])
    return x.float()


def labeled(n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The linear map to 10 dimensions, beside a label that moves all of them."""
    x = linear(n, generator)
    label = torch.randint(CLASSES, (n,), generator=generator)
    return x + 2 * torch.randn(CLASSES, 10, generator=generator)[label], label


# -- pairs -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Family:
    """Data of one kind, and the pair for them.

    Attributes:
        data: Rows with three factors: from their number and a generator.
        network: What the pair is built from.
        noise: The noise of the data; None if they are no real numbers.
        guide: Makes the guide.
        hiding: A noise that hides the factors.
        likelihood: The likelihood; None for real numbers with a learned noise.
        prior: The prior; None for N(0, I).
        make: Makes the pair of a family, with so many latents, and a fixed noise unless that is None.
        num_rows: Number of rows.
        epochs: Epochs of a whole training.
    """

    data: Callable[[int, torch.Generator], Any]
    network: Network
    noise: float | None
    guide: Callable[..., Any] = MeanField
    hiding: float = 0.0
    likelihood: Callable[[], Likelihood] | None = None
    prior: Prior | None = None
    make: Callable[[Family, int, float | None], tuple[Any, Any]] | None = None
    num_rows: int = 1000
    epochs: int = 150

    def rows(self, seed: int) -> Any:
        """The data of a seed: a tensor, or one and what its rows come with."""
        return self.data(self.num_rows, torch.Generator().manual_seed(seed))

    def shape(self) -> tuple[int, ...]:
        """The shape of a row."""
        x = self.rows(0)
        return tuple((x[0] if isinstance(x, tuple) else x).shape[1:])

    def pair(
        self, seed: int, latent_dim: int = FACTORS, noise: float | None = None
    ) -> tuple[Any, Any]:
        """A pair with new weights, with a fixed noise unless that is None."""
        torch.manual_seed(seed)
        return (self.make or plain)(self, latent_dim, noise)

    def density(self, noise: float | None) -> Likelihood:
        """The likelihood, with a fixed noise unless that is None."""
        if noise is not None:
            return Gaussian(noise)
        if self.likelihood is not None:
            return self.likelihood()
        assert self.noise is not None
        return LearnedGaussian(self.noise)


def plain(family: Family, latent_dim: int, noise: float | None) -> tuple[Any, Any]:
    """A VAE."""
    shape, density = family.shape(), family.density(noise)
    model = VAE(shape, latent_dim, family.network, density, family.prior)
    return model, family.guide(shape, latent_dim, family.network)


def conditional(family: Family, latent_dim: int, noise: float | None) -> tuple[Any, Any]:
    """A VAE whose two networks read a label."""
    shape, density, context = family.shape(), family.density(noise), Labels(CLASSES)
    model = ConditionalVAE(shape, latent_dim, family.network, density, family.prior, context)
    return model, family.guide(shape, latent_dim, family.network, context)


def two_layers(family: Family, latent_dim: int, noise: float | None) -> tuple[Any, Any]:
    """Two layers of latents, the upper one smaller."""
    shape, dims, inner = family.shape(), (latent_dim, 2), MLP((16,))
    model = HierarchicalVAE(shape, dims, family.network, inner, family.density(noise))
    return model, TopDown(model, shape, dims, family.network, inner)


class Encoder(nn.Module):
    """Numbers for a location and a scale of each latent.

    Args:
        size: How many numbers a row has.
        latent_dim: Number of latent dimensions.
        network: What it is built from.
    """

    def __init__(self, size: int, latent_dim: int, network: Network) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.encoder = network.encoder((size,))
        self.head = linear_head(self.encoder, 2 * latent_dim)

    def forward(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Location and scale for rows `(n, size)`, each `(n, latent_dim)`."""
        loc, raw = self.head(self.encoder(rows)).chunk(2, -1)
        return loc, softplus(raw) + 1e-6


def written(family: Family, latent_dim: int, noise: float | None) -> tuple[Any, Any]:
    """Two functions as a user of Pyro writes them, with sites and a plate of their own, and absolute errors."""
    (size,) = family.shape()
    decoder = family.network.decoder(latent_dim, (size,))
    encoder = Encoder(size, latent_dim, family.network)
    scale = torch.tensor(family.noise if noise is None else noise)

    def model(rows: Tensor) -> None:
        pyro.module("decoder", decoder)
        b = scale if noise is not None else pyro.param("b", scale, constraint=positive)
        with pyro.plate("people", len(rows)):
            code = pyro.sample("code", dist.Normal(rows.new_zeros(latent_dim), 1.0).to_event(1))
            pyro.sample("answers", dist.Laplace(decoder(code), b).to_event(1), obs=rows)

    def guide(rows: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("people", len(rows)):
            pyro.sample("code", dist.Normal(*encoder(rows)).to_event(1))

    vars(guide)["inner"] = encoder
    return model, guide


def encoder_of(guide: Any) -> Any:
    """What holds the encoder and its last layer: the guide, or a part of a function that a fit has returned."""
    program = getattr(guide, "program", guide)
    return program if isinstance(program, nn.Module) else program.inner


READING = AutoregressiveDecoder(
    MLP((32,), nn.Tanh), channels=8, layers=1, window=1, categories=CLASSES
)

FAMILIES = {
    "linear": Family(linear, MLP(()), 0.5, hiding=2.0),
    "curved": Family(curved, MLP((32,), nn.Tanh), 0.3, FullCovariance, hiding=4.0),
    "bits": Family(bits, MLP((32,)), None, likelihood=Bernoulli),
    "spots": Family(spots, Convolutional((4,), hidden=16), 0.2, hiding=4.0),
    "markov": Family(markov, MLP((32,)), None, likelihood=Bernoulli),
    "levels": Family(
        *(levels, MLP((32,), nn.Tanh), None, MeanField),
        likelihood=lambda: DiscretizedLogistic(32),
        prior=MixturePrior(4),
    ),
    "tokens": Family(
        *(
            tokens,
            MLP((32,), nn.Tanh),
            None,
            partial(MaskedAutoregressive, transforms=1, hidden=(16,)),
        ),
        likelihood=lambda: Categorical(CLASSES),
        prior=MixturePrior(4),
    ),
    "sequences": Family(
        *(sequences, READING, None), likelihood=lambda: Categorical(CLASSES), prior=MixturePrior(4)
    ),
    "labels": Family(labeled, MLP((32,), nn.Tanh), 0.5, hiding=3.0, make=conditional),
    "layers": Family(bits, MLP((32,)), None, likelihood=Bernoulli, make=two_layers),
    "written": Family(absolute, MLP((32,), nn.Tanh), 0.4, hiding=6.0, make=written),
}
"""By name: a linear VAE, networks with two guides, a convolutional one and two for bits. Then a learned mixture
as prior of levels of gray, of tokens with a flow as guide, and of tokens that the decoder reads; a label beside
each row; two layers of latents; and programs of a user, with absolute errors."""


class Chain(nn.Module):
    """Bits, each predicted by a network from those before it and from z.

    Args:
        size: How many bits a row has.
        latent_dim: Number of latent dimensions.
    """

    def __init__(self, size: int, latent_dim: int = FACTORS) -> None:
        super().__init__()
        self.latent_dim = latent_dim
        self.net = ConditionalAutoRegressiveNN(
            *(size, latent_dim, [64]),
            param_dims=[1],
            permutation=torch.LongTensor(range(size)),
            nonlinearity=nn.Tanh(),
        )

    def forward(self, x: Tensor) -> None:
        """Runs the model on rows `(n, size)`."""
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(self.latent_dim), 1.0).to_event(1))
            logits = self.net(x.expand(*z.shape[:-1], x.shape[-1]), z)
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)


class Regressions(nn.Module):
    """Real numbers, each a linear function of those before it and of z, with a noise of its own.

    Args:
        size: How many numbers a row has.
        latent_dim: Number of latent dimensions.
    """

    def __init__(self, size: int, latent_dim: int = FACTORS) -> None:
        super().__init__()
        self.before = nn.Parameter(torch.zeros(size, size))
        self.of_z = nn.Linear(latent_dim, size)
        self.log_scale = nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor) -> None:
        """Runs the model on rows `(n, size)`."""
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(x.new_zeros(self.of_z.in_features), 1.0).to_event(1))
            mean = x @ self.before.tril(-1).T + self.of_z(z)
            pyro.sample("x", dist.Normal(mean, self.log_scale.exp()).to_event(1), obs=x)
