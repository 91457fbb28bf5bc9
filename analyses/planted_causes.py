"""Does `diagnose` name the cause of a collapse, and does what it says to type help? Pairs with known causes."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from progress import Table, start
from pyro.nn import ConditionalAutoRegressiveNN
from torch import Tensor, nn

import ppl_vae
from ppl_vae import diagnose, fit
from ppl_vae.diagnosis import Diagnosis
from ppl_vae.guides import FullCovariance, MeanField
from ppl_vae.likelihoods import Bernoulli, Gaussian, LearnedGaussian, Likelihood
from ppl_vae.models import VAE
from ppl_vae.networks import MLP, Convolutional, Network
from ppl_vae.objectives import ELBO
from ppl_vae.training import Fit

FACTORS = 3
"""What the data hold."""

ONE = math.log(math.e - 1)
"""softplus(ONE) = 1."""


# -- families: data, and the pair for them -----------------------------------------------------------------


@dataclass(frozen=True)
class Family:
    """Data of one kind, and the pair for them.

    Attributes:
        data: Rows with three factors: from their number and a generator.
        network: What the pair is built from.
        noise: The noise of the data; None for bits.
        guide: The class of the guide.
        hiding: A noise that hides the factors.
        num_rows: Number of rows.
        epochs: Epochs of a whole training.
    """

    data: Callable[[int, torch.Generator], Tensor]
    network: Network
    noise: float | None
    guide: type[Any] = MeanField
    hiding: float = 0.0
    num_rows: int = 1000
    epochs: int = 150

    def rows(self, seed: int) -> Tensor:
        """The data of a seed."""
        return self.data(self.num_rows, torch.Generator().manual_seed(seed))

    def pair(
        self, seed: int, latent_dim: int = FACTORS, likelihood: Likelihood | None = None
    ) -> tuple[VAE, Any]:
        """A pair with new weights."""
        torch.manual_seed(seed)
        if likelihood is None:
            likelihood = Bernoulli() if self.noise is None else LearnedGaussian(self.noise)
        shape = self.rows(seed).shape[1:]
        model = VAE(shape, latent_dim, self.network, likelihood)
        return model, self.guide(shape, latent_dim, self.network)


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


FAMILIES = {
    "linear": Family(linear, MLP(()), 0.5, hiding=2.0),
    "curved": Family(curved, MLP((32,), nn.Tanh), 0.3, FullCovariance, hiding=4.0),
    "bits": Family(bits, MLP((32,)), None),
    "spots": Family(spots, Convolutional((4,), hidden=16), 0.2, hiding=4.0),
    "markov": Family(markov, MLP((32,)), None),
}
"""By name; the pairs are a linear VAE, networks with two guides, a convolutional one, and two for bits."""


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


# -- planted causes ----------------------------------------------------------------------------------------


@dataclass
class Planted:
    """A trained pair whose cause is known.

    Attributes:
        model: Its model.
        guide: Its guide.
        x: The rows that it was trained on.
        fitted: How it was trained; None if that shall not be told.
    """

    model: Any
    guide: Any
    x: Tensor
    fitted: Fit | None

    def diagnosis(self) -> Diagnosis:
        """What `diagnose` says of it."""
        pair = (self.model, self.guide, self.x)
        return diagnose(*pair, fit=self.fitted, seed=0, progress=False)

    def type_remedy(self, found: Diagnosis) -> Diagnosis | None:
        """Types the line of the main cause as it is, and diagnoses again; None if there is nothing to type."""
        code = next((c.code for c in found.causes.values() if c.name == found.cause), "")
        if not code:
            return None
        names = {"model": self.model, "guide": self.guide, "x": self.x}
        exec(code, {"ppl_vae": ppl_vae, "torch": torch, **names})
        return replace(self, fitted=None).diagnosis()


def trained(family: Family, model: Any, guide: Any, seed: int, **options: Any) -> Planted:
    """The pair after a training, a whole one unless something else is asked for."""
    usual = {"max_epochs": family.epochs, "learning_rate": 1e-2, "batch_size": 100}
    x = family.rows(seed)
    fitted = fit(model, guide, x, seed=seed, progress=False, **(usual | options))
    return Planted(model, guide, x, fitted)


def healthy(family: Family, seed: int) -> Planted:
    """As many latents as the data have factors."""
    return trained(family, *family.pair(seed), seed)


def surplus(family: Family, seed: int) -> Planted:
    """Twice as many latents.

    With a noise that is learned, normal decoders would explain what chance leaves; a guide of full covariance
    may spread each factor over several latents.
    """
    family = replace(family, guide=MeanField)
    fixed = None if family.noise is None else Gaussian(1.14 * family.noise)
    return trained(family, *family.pair(seed, 2 * FACTORS, fixed), seed)


def noise(family: Family, seed: int) -> Planted:
    """A fixed noise that hides the factors."""
    return trained(family, *family.pair(seed, FACTORS, Gaussian(family.hiding)), seed)


def beta(family: Family, seed: int) -> Planted:
    """A beta of 30."""
    return trained(family, *family.pair(seed), seed, objective=ELBO(beta=30.0))


def strong(family: Family, seed: int) -> Planted:
    """A decoder that reads the numbers before each number, and learns to while z is too dear.

    At beta = 1 it has no reason to use z then, and none not to: z could say the same at the same price.
    """
    _, guide = family.pair(seed)
    size = family.rows(seed).shape[1]
    model = Chain(size) if family.noise is None else Regressions(size)
    trained(family, model, guide, seed, objective=ELBO(beta=10.0))
    return trained(family, model, guide, seed, max_epochs=50, learning_rate=1e-3)


def lagging(family: Family, seed: int) -> Planted:
    """A model that uses its latents, and a guide that has lost two of them."""
    planted = trained(family, *family.pair(seed), seed)
    head, size = planted.guide.head, planted.guide.latent_dim
    with torch.no_grad():
        below = range(2 * size, head.out_features)  # of a full covariance
        for row in (1, 2, size + 1, size + 2, *below):
            head.weight[row] = 0.0
            head.bias[row] = ONE if size <= row < 2 * size else 0.0
    return planted


def dead(family: Family, seed: int) -> Planted:
    """Units of the encoder that are off in all rows, from the start."""
    model, guide = replace(family, network=MLP((32,))).pair(seed)
    first = next(part for part in guide.encoder.modules() if isinstance(part, nn.Linear))
    with torch.no_grad():
        first.bias.fill_(-1000.0)
    return trained(family, model, guide, seed)


def stuck(family: Family, seed: int) -> Planted:
    """Latents that a beta of 100 has killed, and a training with beta = 1 that is too timid to revive them."""
    pair = family.pair(seed)
    trained(family, *pair, seed, objective=ELBO(beta=100.0))
    return trained(family, *pair, seed, max_epochs=10, learning_rate=1e-6)


def early(family: Family, seed: int) -> Planted:
    """Few epochs, from a start at which the latents say nothing."""
    model, guide = family.pair(seed)
    with torch.no_grad():
        guide.head.weight.mul_(0.01)
        guide.head.bias.zero_()
    return trained(family, model, guide, seed, max_epochs=3, learning_rate=3e-4)


PLANTS: dict[str, tuple[Callable[[Family, int], Planted], tuple[str, ...]]] = {
    "none": (healthy, ("linear", "curved", "bits", "spots")),
    "surplus dimensions": (surplus, ("linear", "curved", "bits")),
    "decoder noise": (noise, ("linear", "curved", "spots")),
    "large beta": (beta, ("linear", "curved", "bits")),
    "strong decoder": (strong, ("linear", "bits", "markov")),
    "lagging guide": (lagging, ("linear", "curved", "bits")),
    "dead encoder": (dead, ("linear", "curved", "bits")),
    "local optimum": (stuck, ("linear", "curved", "bits")),
    "still training": (early, ("linear", "curved", "bits")),
}
"""For each cause what plants it, and the families in which it is planted."""


def plant(cause: str, family: str, seed: int, **settings: Any) -> Planted:
    """A pair with a planted cause, by the names of cause and family."""
    return PLANTS[cause][0](replace(FAMILIES[family], **settings), seed)


def main(
    causes: tuple[str, ...] = tuple(PLANTS),
    num_seeds: int = 5,
    num_rows: int = 1000,
    max_epochs: int = 150,
    remedies: bool = True,
) -> None:
    """Plants each cause in several families, and prints how often it is named, and what its remedy gives.

    The last columns are for the line that `diagnose` says to type: pairs in which it brings a dimension back,
    of those that have such a line, and dimensions that it brings back, of all that were not used.

    Args:
        causes: The causes to plant; `none` is a healthy pair.
        num_seeds: Seeds for each family.
        num_rows: Rows of the data.
        max_epochs: Epochs of a whole training.
        remedies: Whether the remedies are tried.
    """
    columns = ["planted", "named", "others that were named", "pairs mended", "dimensions back"]
    table = Table(columns, sum(num_seeds * len(PLANTS[cause][1]) for cause in causes))
    table.head()
    for cause in causes:
        named: Counter[str] = Counter()
        mended = typed = back = lost = 0
        for family in PLANTS[cause][1]:
            for seed in range(num_seeds):
                planted = plant(cause, family, seed, num_rows=num_rows, epochs=max_epochs)
                found = planted.diagnosis()
                named[found.cause] += 1
                after = planted.type_remedy(found) if remedies else None
                if after is not None:
                    revived = int((after.active & ~found.active).sum())
                    typed, mended = typed + 1, mended + (revived > 0)
                    back, lost = back + revived, lost + int((~found.active).sum())
                table.step(f"{cause} in {family}: {found.cause}")
        others = ", ".join(f"{n} {other}" for other, n in named.items() if other != cause) or "-"
        counts = [f"{mended} of {typed}", f"{back} of {lost}"] if typed else ["-", "-"]
        table.row([cause, f"{named[cause]} of {named.total()}", others, *counts])


if __name__ == "__main__":
    quick = {"causes": ("none", "large beta"), "num_seeds": 1, "num_rows": 300, "max_epochs": 40}
    start(main, quick=quick | {"remedies": False})
