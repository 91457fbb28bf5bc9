"""What do rows without labels add to a few labels? Encoders that were trained without any, and M2."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from few_labels_encoders import ENCODERS, Setting, Sizes
from kept_scores import Scores
from numpy.typing import NDArray
from progress import Table, chosen_rows, require_list, start
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from ppl_vae import encode, fine_tune, load_data, probe
from ppl_vae.data import few_labels, oversample_labelled
from ppl_vae.guides import SemiSupervised
from ppl_vae.likelihoods import OptimalGaussian
from ppl_vae.models import SemiSupervisedVAE
from ppl_vae.networks import MLP, Network
from ppl_vae.objectives import SemiSupervisedELBO
from ppl_vae.runtime import require_count
from ppl_vae.stats import Estimate
from ppl_vae.tasks.probing import CS, LogisticProbe

Array = NDArray[Any]

PIXELS, NEAREST = "pixels, logistic regression", "pixels, nearest neighbor"
M2, M1_M2 = "M2", "M1 + M2"
PROBE, TUNED = "probe", "fine-tuned"

Method = Callable[[int, range], Iterator[float]]


@dataclass(frozen=True)
class Learning:
    """How the classifiers learn.

    Attributes:
        scale_each: Whether each number of an encoder has a scale of its own, or all have the same.
        num_steps: Steps of fine-tuning.
        learning_rate: Of the linear layer.
        encoder_rate: Of the encoder.
        weight_decay: Share of the weights, times the rate, that a step takes away.
    """

    scale_each: bool = False
    num_steps: int = 300
    learning_rate: float = 1e-3
    encoder_rate: float = 1e-3
    weight_decay: float = 0.01


@dataclass(frozen=True)
class M2Learning:
    """How M2 learns.

    Attributes:
        epochs: Passes over the rows.
        share: Of the rows with a label in a batch: they are repeated, see `oversample_labelled`. The default
            leaves rows as they are, as it suits the digits; where labels are rarer, as of MNIST, 0.3 is better.
        weight: The classifier's term, as a multiple of the mean over the rows with a label. The default suits
            the digits; for MNIST 1 is better.
        latent_dim: Latents beside the class.
    """

    epochs: int = 100
    share: float = 0.0
    weight: float = 100.0
    latent_dim: int = 10


SIZES, LEARNING, M2_LEARNING = Sizes(), Learning(), M2Learning()


def main(
    data: str = "digits",
    data_dir: Path = Path("data"),
    labels: tuple[int, ...] = (10, 30, 100, 1000),
    draws: int = 10,
    rows: list[str] | None = None,
    sizes: Sizes = SIZES,
    learning: Learning = LEARNING,
    m2: M2Learning = M2_LEARNING,
    max_rows: int | None = None,
    runs: Path | None = None,
) -> None:
    """Trains encoders without labels, once each, and classifiers on what they make of a few rows with labels.

    Each draw chooses other rows that keep their label, as many of each class, the same ones for all methods.
    What is trained and found is kept, draw by draw where each is a training: a run that was stopped goes on.

    Args:
        data: Pictures with labels: `digits`, `MNIST`, `CIFAR10`, `folder:PATH`, ...
        data_dir: Folder of the data, in torchvision's layout.
        labels: Numbers of labels.
        draws: How often they are chosen.
        rows: Which lines to print, by their names; all by default.
        sizes: How large networks are, and how long they are trained without labels.
        learning: How the classifiers learn.
        m2: How M2 learns.
        max_rows: Maximum number of rows per split, for a quick trial.
        runs: Folder that keeps pairs and scores; None: few_labels/ and the name of the data.
    """
    require_list("--labels", labels)
    require_count("--draws", draws)
    runs = Path("few_labels") / Path(data.removeprefix("folder:")).name if runs is None else runs
    loaded = load_data(data, data_dir=data_dir, max_rows=max_rows, seed=sizes.seed)
    setting = Setting(loaded, sizes, runs)
    methods = methods_of(setting, learning, m2)
    scores = Scores(
        runs / "scores.csv",
        {name: f"{setting.of}, {m2 if name in (M2, M1_M2) else learning}" for name in methods},
    )
    chosen = chosen_rows(rows, methods)
    table = Table(["learns", *(f"{k} labels" for k in labels)], steps=len(chosen) * len(labels))
    table.head()
    for name in chosen:
        cells = []
        for k in labels:
            missing = range(len(scores.of(name, k)), draws)
            shares = methods[name](k, missing) if missing else ()
            for draw, share in zip(missing, shares, strict=True):
                scores.add(name, k, draw, numbers=[share])
            found = torch.tensor(scores.of(name, k)[:draws])
            cells.append(Estimate(100 * found).numbers(".1f"))
            table.step(f"{name}, {k} labels")
        table.row([name, *cells])
    print(
        f"\nPercent of {len(loaded.test)} test rows, mean ± standard error over {draws} draws of labels. Of "
        f"each encoder there is one training, on {len(setting.rows)} rows."
    )
    _differences(chosen, scores, labels, draws)


def _differences(chosen: list[str], scores: Scores, labels: tuple[int, ...], draws: int) -> None:
    """Prints what each line adds, draw by draw, to one from scratch and to classifiers of the pixels."""

    def of(name: str, k: int) -> Tensor:
        return 100 * torch.tensor(scores.of(name, k)[:draws])

    def from_scratch(name: str, k: int) -> Tensor:
        return of(_beside(name), k)

    def of_pixels(name: str, k: int) -> Tensor:
        there = [of(each, k) for each in (PIXELS, NEAREST) if each in chosen]
        return max(there, key=lambda shares: float(shares.mean()))

    scratch = [name for name in chosen if _beside(name) in chosen and _beside(name) != name]
    learned = [name for name in chosen if name not in (PIXELS, NEAREST)]
    learned = learned if len(learned) < len(chosen) else []
    beside = "the better of the two on pixels" if {PIXELS, NEAREST} <= {*chosen} else "pixels"
    for title, names, other in (
        ("training from scratch, fine-tuned", scratch, from_scratch),
        (beside, learned, of_pixels),
    ):
        if not names:
            continue
        print(f"\nMinus {title}, with the same labels:\n")
        table = Table(["learns", *(f"{k} labels" for k in labels)], steps=1)
        table.head()
        for name in names:
            cells = [Estimate(of(name, k) - other(name, k)).numbers("+.1f") for k in labels]
            table.row([name, *cells])


def _beside(name: str) -> str:
    """The line from scratch that a line is compared with."""
    encoder, _, how = name.rpartition(", ")
    kind = ENCODERS[encoder].beside if how in (PROBE, TUNED) else "from scratch"
    return f"{kind}, {TUNED}"


def methods_of(of: Setting, learning: Learning, m2: M2Learning) -> dict[str, Method]:
    """The lines of the table: from a number of labels and draws of them, the share of each draw."""
    found: dict[str, Method] = {
        PIXELS: partial(by_pixels, of, learning),
        NEAREST: partial(by_nearest, of),
    }
    for name in ENCODERS:
        found[f"{name}, {PROBE}"] = partial(by_probe, of, learning, name)
        found[f"{name}, {TUNED}"] = partial(by_fine_tuning, of, learning, name)
    return found | {M2: partial(by_m2, of, m2), M1_M2: partial(by_m1_m2, of, m2)}


def by_probe(
    of: Setting, learning: Learning, name: str, labels: int, draws: range
) -> Iterator[float]:
    """Logistic regression on what an encoder makes of rows."""
    found = probe(
        *(*of.pair(name), *_labelled(of)),
        labels=labels,
        draws=draws.stop,
        scale_each=learning.scale_each,
        progress=False,
    )
    yield from _shares(found.accuracy.by_repeat, draws)


def by_fine_tuning(
    of: Setting, learning: Learning, name: str, labels: int, draws: range
) -> Iterator[float]:
    """An encoder and a linear layer, trained together."""
    found = fine_tune(
        *of.pair(name),
        *_labelled(of),
        labels=labels,
        draws=draws.stop,
        num_steps=learning.num_steps,
        learning_rate=learning.learning_rate,
        encoder_rate=learning.encoder_rate,
        weight_decay=learning.weight_decay,
        scale_each=learning.scale_each,
        progress=False,
    )
    yield from _shares(found.accuracy.by_repeat, draws)


def by_pixels(of: Setting, learning: Learning, labels: int, draws: range) -> Iterator[float]:
    """Logistic regression on rows as they are, with the scale and the choice of C that a probe has."""

    def predict(x: Array, y: Array, held: Array, draw: int) -> Array:
        rng = np.random.default_rng(draw)
        return LogisticProbe.fit(x, y, CS, rng, learning.scale_each).predict(held)

    return _of_rows(of, predict, labels, draws)


def by_nearest(of: Setting, labels: int, draws: range) -> Iterator[float]:
    """The label of the nearest row that has one."""

    def predict(x: Array, y: Array, held: Array, draw: int) -> Array:
        found: Array = KNeighborsClassifier(1).fit(x, y).predict(held)
        return found

    return _of_rows(of, predict, labels, draws)


def _of_rows(
    of: Setting, predict: Callable[[Array, Array, Array, int], Array], labels: int, draws: range
) -> Iterator[float]:
    """Of a classifier that sees the rows with a label alone: rows, labels, test rows, draw -> classes."""
    (x, y), (held, truth) = _labelled(of)
    rows, test = (each.flatten(1).double().numpy() for each in (x, held))
    for draw in draws:
        known = (few_labels(y, labels, draw) >= 0).numpy()
        right = predict(rows[known], y.numpy()[known], test, draw) == truth.numpy()
        yield float(right.mean())


def by_m2(of: Setting, m2: M2Learning, labels: int, draws: range) -> Iterator[float]:
    """M2, trained on rows with and without labels together, anew for each draw."""
    (x, y), (held, truth) = _labelled(of)
    return _shares_of_m2(of, m2, (x, held), of.sizes.network, (y, truth), labels, draws)


def by_m1_m2(of: Setting, m2: M2Learning, labels: int, draws: range) -> Iterator[float]:
    """M2 whose rows are what the VAE, which is M1, makes of rows: the means of its guide."""
    (x, y), (held, truth) = _labelled(of)
    model, guide = of.pair("VAE")
    codes = [encode(model, guide, part, progress=False)["z"] for part in (x, held)]
    network = MLP(hidden=of.sizes.hidden[-1:])
    return _shares_of_m2(of, m2, (codes[0], codes[1]), network, (y, truth), labels, draws)


def _shares_of_m2(
    of: Setting,
    m2: M2Learning,
    rows: tuple[Tensor, Tensor],
    network: Network,
    truth: tuple[Tensor, Tensor],
    labels: int,
    draws: range,
) -> Iterator[float]:
    """What an M2 of training rows says of test rows, for each draw of labels."""
    (x, held), (y, right) = rows, truth
    shape = tuple(x.shape[1:])
    options: dict[str, Any] = {
        "latent_dim": m2.latent_dim,
        "classes": 1 + int(y.max()),
        "network": network,
    }
    for draw in draws:
        torch.manual_seed(of.sizes.seed + draw)
        likelihood = of.likelihood() if shape == of.data.shape else OptimalGaussian()
        model = SemiSupervisedVAE(shape, likelihood=likelihood, **options)
        guide = SemiSupervised(shape, **options)
        told = few_labels(y, labels, draw)
        keep = (told >= 0) | (torch.arange(len(x)) < len(of.rows))
        seen = oversample_labelled(x[keep], told[keep], m2.share)
        weight = m2.weight * len(seen[1]) / int((seen[1] >= 0).sum())
        of.fit(
            *(model, guide, seen, None, m2.epochs),
            objective=SemiSupervisedELBO(classification=weight),
            seed=of.sizes.seed + draw,
        )
        with torch.no_grad():
            parts = [guide.classify(part).probs.argmax(-1) for part in held.split(512)]
        yield float((torch.cat(parts) == right).double().mean())


def _labelled(of: Setting) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Training rows and test rows, with all labels."""
    data = of.data
    assert data.train_labels is not None
    assert data.test_labels is not None
    return (data.train, data.train_labels), (data.test, data.test_labels)


def _shares(by_draw: Tensor, draws: range) -> list[float]:
    return [float(by_draw[draw]) for draw in draws]


if __name__ == "__main__":
    start(
        main,
        quick={
            **{"labels": "[20,40]", "draws": 2, "max_rows": 200, "runs": "few_labels_quick"},
            **{"sizes.latent_dim": 4, "sizes.hidden": "[16]", "sizes.max_epochs": 1},
            **{"sizes.codes": 8, "sizes.dim": 2, "sizes.grid.channels": 8},
            **{"learning.num_steps": 10, "m2.epochs": 1},
        },
    )
