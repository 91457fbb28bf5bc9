"""Models of colors for `colorization.py`, each trained once and kept in a folder of its own."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from kept_pairs import has_begun
from torch import Tensor, nn
from torch.distributions import kl_divergence
from torch.optim.lr_scheduler import CosineAnnealingLR

from ppl_vae import fit
from ppl_vae.coloring import score_photos
from ppl_vae.data import PhotoData
from ppl_vae.guides import Exact, StructuredMeanField, WithinPicture
from ppl_vae.models import (
    IndependentSegments,
    LatentColors,
    LumaColors,
    Palette,
    PictureColors,
    PottsSegments,
    ScanLineSegments,
    TreeSegments,
    colorization,
)
from ppl_vae.networks import UNet
from ppl_vae.objectives import ELBO, ElementwiseELBO, Loss, MeanFieldELBO, Objective
from ppl_vae.pairs import Batch, Layout, Pair, shared
from ppl_vae.runs import save_run
from ppl_vae.runtime import digest, write_bytes

RUNGS: dict[str, type[colorization.SegmentedColors]] = {
    "independent": IndependentSegments,
    "lines": ScanLineSegments,
    "tree": TreeSegments,
    "potts": PottsSegments,
}
COLORS: dict[str, Callable[[UNet], colorization.Colors]] = {
    "palette": lambda network: Palette(),
    "latent": lambda network: LatentColors(),
    "luma": lambda network: LumaColors(),
    "picture": PictureColors,
}


def digest_of(photos: PhotoData) -> str:
    """A short text that differs for other photos."""
    return digest([of for part in (photos.train, photos.test) for p in part for of in p.rows])


class PixelMixture(IndependentSegments):
    """A mixture of K colors for each pixel, by one U-Net: what is usually done, without a word of segments.

    Summed over its components it is the density of `IndependentSegments` with `PictureColors`, which has a
    network for P(z | x) and another one for the colors. Here one gives both.

    Args:
        segments: Number K of components.
        network: The U-Net.
    """

    def __init__(self, segments: int, network: UNet) -> None:
        super().__init__(segments, PictureColors(network), network)
        self.segmenter = nn.Identity()
        self.colors = _OfOneNetwork(segments, network)

    def unary(self, x: Tensor) -> Tensor:
        """See `SegmentedColors`."""
        colors: Any = self.colors
        logits: Tensor = colors.outputs(x)[..., : self.segments].log_softmax(-1)
        return logits


class _OfOneNetwork(nn.Module):
    def __init__(self, segments: int, network: UNet) -> None:
        super().__init__()
        self.segments = segments
        self.features = nn.Parameter(
            torch.randn(segments, 5) * torch.tensor([1, 0.5, 0.1, 0.1, 0.1])
        )
        self.net = network.build(1, 6 * segments)

    def outputs(self, luma: Tensor) -> Tensor:
        """Of the network, `(n, h, w, 6 K)`."""

        def compute() -> Tensor:
            found: Tensor = self.net((luma.unsqueeze(-3) - 128.0) / 64.0)
            return found.movedim(-3, -1)

        return shared(self, "outputs", (luma,), compute)

    def forward(self, luma: Tensor) -> Tensor:
        of_colors = self.outputs(luma)[..., self.segments :]
        found: Tensor = of_colors.unflatten(-1, self.features.shape) + self.features
        return found


@dataclass(frozen=True, kw_only=True)
class SummedSegmentsELBO(Objective):
    """The ELBO of latent colors, with a weight of the KL of the segments, too.

    A model with latent colors c sums its segments out, so that they have no KL which beta could weight in
    `ELBO`. With the best q(z | x, y, c) for a weight beta, the objective is

        E_q(c) beta log sum_z P(z | x) P(y | z, x, c)^(1 / beta) - beta KL(q(c) || p(c)),

    which at beta = 1 is the ELBO. That of beta = 1 is reported beside it.
    """

    def __call__(self, pair: Pair, layout: Layout, batch: Batch, beta: float = 1.0) -> Loss:
        found = MeanFieldELBO()(pair, layout, batch, 1.0)
        if beta == 1.0:
            return found
        model: Any = pair.model
        y, x = cast(tuple[Tensor, Tensor], batch)
        ((_, guide_trace),) = found.traces
        shifts = guide_trace.nodes["shifts"]
        unary = model.unary(x)
        with_colors = unary + model.log_likelihoods(y, x, shifts["value"]) / beta
        evidence = beta * (model.log_partition(with_colors, x) - model.log_partition(unary, x))
        kl = kl_divergence(shifts["fn"], model.shifts_prior())
        return replace(found, loss=(beta * kl - evidence).mean())


@dataclass(frozen=True)
class Point:
    """A model of colors, and how it is trained.

    Attributes:
        colors: What the colors of a pixel may depend on: a key of `COLORS`; or "mixture", a `PixelMixture`.
        rung: P(z | x): a key of `RUNGS`.
        beta: The weight of the KL.
        segments: K.
        widths: Channels of the U-Nets.
        start: Where the colors of the segments start: at those of clusters of pixels, or "apart" at random.
        patch: Side of the patches.
        patches: How many.
        epochs: Passes over them.
        batch_size: Patches of a step.
        learning_rate: Of Adam, at the start; it falls to 0 along a cosine.
        longest: Photos are reduced to this side.
        seed: Seed of weights, patches and their order.
    """

    colors: str
    rung: str = "independent"
    beta: float = 1.0
    segments: int = 8
    widths: tuple[int, ...] = (16, 32, 64, 64)
    start: str = "clusters"
    patch: int = 48
    patches: int = 2000
    epochs: int = 4
    batch_size: int = 4
    learning_rate: float = 1e-3
    longest: int = 120
    seed: int = 0

    @property
    def name(self) -> str:
        """What its folder is called: what differs from the defaults."""
        usual = asdict(Point(self.colors))
        own = {name: value for name, value in asdict(self).items() if value != usual[name]}
        words = [f"{key}={_word(value)}" for key, value in own.items()]
        return "-".join([self.colors, *words])

    def _as_kept(self) -> dict[str, Any]:
        kept: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return kept

    def scores(self, photos: PhotoData, folder: Path) -> dict[str, Any] | None:
        """What was measured in a folder; None if nothing was.

        Args:
            photos: The photos.
            folder: The folder.

        Raises:
            ValueError: It was measured on other photos, or of a model with other settings. Its name has only
                those that differ from the defaults, and the defaults may have been others.
        """
        file = folder / "scores.json"
        if not file.exists():
            return None
        found: dict[str, Any] = json.loads(file.read_text())
        others = [
            what
            for what, key, own in (
                ("on other photos", "photos", digest_of(photos)),
                ("with other settings", "point", self._as_kept()),
            )
            if found.get(key) != own
        ]
        if others:
            raise ValueError(
                f"{folder} was measured {' and '.join(others)}: choose another folder for `runs`, "
                "or remove it"
            )
        return found

    def pair(self) -> tuple[Any, Any]:
        """Model and guide, with new weights."""
        network = UNet(self.widths)
        if self.colors == "mixture":
            mixture = PixelMixture(self.segments, network)
            return mixture, Exact(mixture, beta=self.beta)
        model = RUNGS[self.rung](self.segments, COLORS[self.colors](network), network)
        if self.colors == "latent":
            return model, WithinPicture(model)
        if self.rung == "potts":
            return model, StructuredMeanField(model, beta=self.beta)
        return model, Exact(model, beta=self.beta)

    def objective(self) -> Objective:
        """What is maximised: exact given y in each of them, without a draw of segments (Potts aside)."""
        if self.colors == "latent":
            return SummedSegmentsELBO(beta=self.beta)
        # `ELBO` takes a model that is not of the library for any discrete latent, and would draw z.
        return (ElementwiseELBO if self.colors == "mixture" else ELBO)(beta=self.beta)

    def train(self, photos: PhotoData, folder: Path, progress: bool | None = False) -> None:
        """Trains the pair, unless that has been done, and measures it on photos that it was not trained on.

        A training that was stopped goes on where its last checkpoint is.

        Args:
            photos: The photos.
            folder: Its folder.
            progress: Whether to show a progress bar.
        """
        if self.scores(photos, folder) is not None:
            return
        torch.manual_seed(self.seed)
        rows = photos.train.patches(self.patch, self.patches, seed=self.seed)
        model, guide = self.pair()
        if self.start == "clusters":
            model.initialize(*rows, seed=self.seed)
        fitted = fit(
            *(model, guide, rows),
            objective=self.objective(),
            max_epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            lr_scheduler=partial(CosineAnnealingLR, T_max=self.epochs),
            seed=self.seed,
            run_dir=folder / "training",
            resume=has_begun(folder / "training"),
            progress=progress,
        )
        save_run(folder / "run", model, guide, fit=fitted, overwrite=True)
        # Nothing is drawn where all is summed exactly. Otherwise a sample costs an EM, or a mean field.
        draws = 1 if self.rung == "potts" else 5
        scores = score_photos(model, guide, photos.test, num_samples=draws, seed=0, progress=False)
        found = {
            "point": self._as_kept(),
            "photos": digest_of(photos),
            "seconds": fitted.seconds,
            "mean": scores.to_dict(),
            "rows": {name: values.tolist() for name, values in scores.rows().items()},
        }
        write_bytes(folder / "scores.json", json.dumps(found, indent=1).encode())


def _word(value: Any) -> str:
    if isinstance(value, tuple):
        return ",".join(map(_word, value))
    return f"{value:g}" if isinstance(value, float) else str(value)
