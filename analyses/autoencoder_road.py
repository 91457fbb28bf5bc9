"""From an autoencoder to a VAE: noise that goes to 0, exact for linear pairs, trained for deep ones."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

from autoencoder_pairs import (
    PCA,
    SMALL,
    Pair,
    Rows,
    Sizes,
    autoencoder,
    reconstructed,
    squared_errors,
    trained,
)
from matplotlib.figure import Figure
from progress import Table
from torch import Tensor

from ppl_vae import evaluate
from ppl_vae.guides import MeanField
from ppl_vae.likelihoods import Gaussian
from ppl_vae.models import VAE
from ppl_vae.rate_distortion import reverse_water_filling
from ppl_vae.runtime import replacing, require_output
from ppl_vae.stats import Estimate


def road(
    data: str = "MNIST",
    data_dir: Path = Path("data"),
    runs: Path = Path("autoencoder_road"),
    code: int = 16,
    sigmas: tuple[float, ...] = (1.0, 0.5, 0.3, 0.2, 0.1, 0.05, 0.02),
    training: Sizes = SMALL,
    output: Path = Path("autoencoder_road.png"),
    overwrite: bool = False,
) -> None:
    """Rate and squared error of VAEs as their noise sigma goes to 0, and of the autoencoder at the end.

    Only beta sigma^2 matters to encoder and decoder: a weight beta of the rate with the noise sigma is the same
    as a weight of 1 with the noise sqrt(beta) sigma. So this is also the road of beta -> 0. The linear VAE is
    exact (reverse water-filling of the training rows): of each of the first principal components with the
    variance l it leaves min(l, sigma^2), at a rate of log(l / sigma^2) / 2 if that is positive.

    Args:
        data: Name of the data, as for `load_data`.
        data_dir: Folder of the data, in torchvision's layout.
        runs: Folder that keeps the trained pairs; an interrupted training continues.
        code: Size of the code.
        sigmas: The noise, from the largest.
        training: Networks and trainings.
        output: Where to save the picture.
        overwrite: Whether a picture that is there is replaced.
    """
    require_output(output, overwrite=overwrite)
    rows = Rows.of(data, data_dir, training)
    pca = PCA(rows.train)
    columns = ["sigma", "rate", "squared error", "of the means", "linear, rate", "linear, error"]
    shown = Table(columns, steps=len(sigmas) + 1)
    shown.head()
    deep, linear = [], []
    for sigma in sigmas:
        name = f"code={code}-sigma={sigma:g}"
        pair = trained(runs, name, partial(vae, rows, code, sigma, training), rows, training)
        found = evaluate(*pair, rows.test, num_samples=20, method="guide", seed=0, progress=False)
        size = rows.test[0].numel()
        constant = size / 2 * math.log(2 * math.pi * sigma**2)
        errors = 2 * sigma**2 * (found.distortion.values.double() - constant)
        means = squared_errors(rows.test, reconstructed(pair, rows.test))
        exact = reverse_water_filling(pca.variances, sigma**2, latent_dim=code)
        rate, error = exact.rate, exact.distortion
        deep.append((found.rate.mean, float(errors.mean())))
        linear.append((rate, error))
        cells = [_of(found.rate.values), _of(errors), _of(means), f"{rate:.2f}", f"{error:.2f}"]
        shown.row([f"{sigma:g}", *cells])
        shown.step(f"sigma = {sigma:g}")
    pair = trained(runs, f"code={code}", partial(autoencoder, rows, code, training), rows, training)
    last = squared_errors(rows.test, reconstructed(pair, rows.test))
    of_pca = float(pca.variances[code:].sum())
    shown.row(["autoencoder", "not defined", _of(last), _of(last), "", f"{of_pca:.2f}"])
    shown.step("autoencoder")
    with replacing(output, overwrite=overwrite) as file:
        picture(deep, linear, float(last.mean()), of_pca).savefig(file)
    print(
        f"\nNats and squared errors per row of {rows.name}, {len(rows.test)} test rows; the linear VAE and PCA "
        f"(last line): training rows. Codes of {code}, {training.max_epochs} epochs of {len(rows.train)} rows. "
        f"The picture is {output}."
    )


def vae(rows: Rows, latent_dim: int, sigma: float, sizes: Sizes) -> Pair:
    """A VAE with a fixed noise."""
    network = sizes.network
    return (
        VAE(rows.shape, latent_dim, network, Gaussian(sigma)),
        MeanField(rows.shape, latent_dim, network),
    )


def picture(
    deep: list[tuple[float, float]], linear: list[tuple[float, float]], last: float, of_pca: float
) -> Figure:
    """Squared error against the rate; the autoencoders are the lines that the curves come down to."""
    figure = Figure(figsize=(6.5, 4.2), dpi=110, layout="constrained")
    axes = figure.subplots()
    for points, end, color, name, of_end in (
        (linear, of_pca, "#D55E00", "linear VAE, exact", "PCA"),
        (deep, last, "#0072B2", "VAE", "autoencoder"),
    ):
        rates, errors = zip(*points, strict=True)
        axes.plot(rates, errors, "o-", color=color, label=name)
        axes.axhline(end, color=color, linestyle="--", linewidth=1, label=of_end)
    axes.set_xlabel("rate, nats: the noise goes to 0 to the right", fontsize=12)
    axes.set_ylabel("squared error per row", fontsize=12)
    axes.set_yscale("log")
    axes.legend(frameon=False, fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _of(values: Tensor) -> str:
    return Estimate(values).numbers(".2f")
