"""Does `diagnose` name the cause of a collapse, and does what it says to type help? Pairs with known causes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from planted_pairs import FACTORS, FAMILIES, ONE, Chain, Family, Regressions, encoder_of
from progress import Table, chosen_rows, start
from torch import nn

import ppl_vae
from ppl_vae import diagnose, fit
from ppl_vae.diagnosis import Diagnosis
from ppl_vae.guides import MeanField
from ppl_vae.networks import MLP, AutoregressiveDecoder
from ppl_vae.objectives import ELBO
from ppl_vae.runtime import require_count
from ppl_vae.training import Fit

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
    x: Any
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
    return Planted(fitted.model, fitted.guide, x, fitted)


def healthy(family: Family, seed: int) -> Planted:
    """As many latents as the data have factors."""
    return trained(family, *family.pair(seed), seed)


def surplus(family: Family, seed: int) -> Planted:
    """Twice as many latents.

    With a noise that is learned, normal decoders would explain what chance leaves; a guide of full covariance
    may spread each factor over several latents.
    """
    family = replace(family, guide=MeanField)
    fixed = None if family.noise is None else 1.14 * family.noise
    return trained(family, *family.pair(seed, 2 * FACTORS, fixed), seed)


def noise(family: Family, seed: int) -> Planted:
    """A fixed noise that hides the factors."""
    return trained(family, *family.pair(seed, FACTORS, family.hiding), seed)


def beta(family: Family, seed: int) -> Planted:
    """A beta of 30."""
    return trained(family, *family.pair(seed), seed, objective=ELBO(beta=30.0))


def strong(family: Family, seed: int) -> Planted:
    """A decoder that reads the numbers before each number, and learns to while z is too dear.

    At beta = 1 it has no reason to use z then, and none not to: z could say the same at the same price.
    """
    model, guide = family.pair(seed)
    (size,) = family.shape()
    if not isinstance(family.network, AutoregressiveDecoder):
        model = Chain(size) if family.noise is None else Regressions(size)
    trained(family, model, guide, seed, objective=ELBO(beta=10.0))
    return trained(family, model, guide, seed, max_epochs=50, learning_rate=1e-3)


def lagging(family: Family, seed: int) -> Planted:
    """A model that uses its latents, and a guide that has lost two of them."""
    planted = trained(family, *family.pair(seed), seed)
    encoder = encoder_of(planted.guide)
    head, size = encoder.head, encoder.latent_dim
    with torch.no_grad():
        below = range(2 * size, head.out_features)  # of a full covariance
        for row in (1, 2, size + 1, size + 2, *below):
            head.weight[row] = 0.0
            head.bias[row] = ONE if size <= row < 2 * size else 0.0
    return planted


def dead(family: Family, seed: int) -> Planted:
    """Units of the encoder that are off in all rows, from the start."""
    model, guide = replace(family, network=MLP((32,))).pair(seed)
    first = next(
        part for part in encoder_of(guide).encoder.modules() if isinstance(part, nn.Linear)
    )
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
        head = encoder_of(guide).head
        head.weight.mul_(0.01)
        head.bias.zero_()
    return trained(family, model, guide, seed, max_epochs=3, learning_rate=3e-4)


PLANTS: dict[str, tuple[Callable[[Family, int], Planted], tuple[str, ...]]] = {
    "none": (
        *(healthy,),
        ("linear", "curved", "bits", "spots", "levels", "tokens", "labels", "written"),
    ),
    "surplus dimensions": (surplus, ("linear", "curved", "bits", "labels", "written")),
    "decoder noise": (noise, ("linear", "curved", "spots", "labels", "written")),
    "large beta": (beta, ("linear", "curved", "bits", "levels", "tokens", "layers", "written")),
    "strong decoder": (strong, ("linear", "bits", "markov", "sequences")),
    "lagging guide": (lagging, ("linear", "curved", "bits", "labels", "written")),
    "dead encoder": (dead, ("linear", "curved", "bits", "levels", "written")),
    "local optimum": (stuck, ("linear", "curved", "bits", "levels", "written")),
    "still training": (early, ("linear", "curved", "bits", "labels", "written")),
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
    chosen_rows(causes, PLANTS, "--causes")
    require_count("--num_seeds", num_seeds)
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
