"""From an autoencoder to a VAE: noise that goes to 0, exact for linear pairs, trained for deep ones."""

from __future__ import annotations

import math
from dataclasses import dataclass
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
from matplotlib.ticker import FuncFormatter
from progress import Table, require_list
from torch import Tensor

from ppl_vae import evaluate
from ppl_vae.guides import MeanField
from ppl_vae.likelihoods import Gaussian
from ppl_vae.models import VAE
from ppl_vae.runtime import replacing, require_output
from ppl_vae.stats import Estimate
from ppl_vae.tasks import encode, sample


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
    as a weight of 1 with the noise sqrt(beta) sigma. So this is also the road of beta -> 0. The squared error
    is that of E[x | z], in expectation over z ~ q(z | x); that *of the means* is at the mean of q(z | x).

    The linear VAE is exact: the best one of the training rows, as `LinearVAE` says, on the same test rows. Of
    each of the first principal components with the variance l it leaves min(l, sigma^2) in expectation over z
    (at the mean, sigma^4 / l), at a rate of log(l / sigma^2) / 2 if that is positive: on the training rows.
    PCA, where the noise is 0, stands in the last line.

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
    require_list("--sigmas", sigmas)
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
        means = squared_errors(rows.test, at_the_means(pair, rows.test))
        exact = LinearVAE(pca, code, sigma)
        of_linear = exact.rates(rows.test), exact.errors(rows.test)
        deep.append((found.rate.mean, float(errors.mean())))
        linear.append((float(of_linear[0].mean()), float(of_linear[1].mean())))
        cells = [_of(each) for each in (found.rate.values, errors, means, *of_linear)]
        shown.row([f"{sigma:g}", *cells])
        shown.step(f"sigma = {sigma:g}")
    pair = trained(runs, f"code={code}", partial(autoencoder, rows, code, training), rows, training)
    last = squared_errors(rows.test, reconstructed(pair, rows.test))
    of_pca = squared_errors(rows.test, pca.reconstruct(rows.test, code))
    shown.row(["autoencoder", "not defined", _of(last), _of(last), "", _of(of_pca)])
    shown.step("autoencoder")
    with replacing(output, overwrite=overwrite) as file:
        picture(deep, linear, float(last.mean()), float(of_pca.mean())).savefig(file)
    print(
        f"\nNats and squared errors per row of {rows.name}, {len(rows.test)} test rows, in all columns; the "
        f"linear VAE and PCA (last line) are the best ones of the training rows. Codes of {code}, "
        f"{training.max_epochs} epochs of {len(rows.train)} rows. The picture is {output}."
    )


@dataclass(frozen=True)
class LinearVAE:
    """The best linear VAE of the training rows, with a fixed noise s: all of it is known.

    Of the first principal components, u with the variance l, those with l > s^2 are used. With m the mean,

        E[x | z] = m + sum_i sqrt(l_i - s^2) z_i u_i,    q(z_i | x) = N(sqrt(l_i - s^2) a_i / l_i, s^2 / l_i),

    where a_i = u_i^T (x - m), and q is the posterior ("Don't Blame the ELBO!", arXiv:1911.02469). The others
    are left whole, with q(z_i | x) = N(0, 1).

    Attributes:
        pca: PCA of the training rows.
        latent_dim: Number of latents.
        sigma: The noise s.
    """

    pca: PCA
    latent_dim: int
    sigma: float

    def rates(self, x: Tensor) -> Tensor:
        """KL(q(z | x) || N(0, I)) of each row, nats, `(n,)`."""
        squares, variances = self._used(x)
        share = self.sigma**2 / variances
        kl = share - 1 - share.log() + (1 - share) * squares / variances
        return kl.sum(1) / 2

    def errors(self, x: Tensor) -> Tensor:
        """E |x - E[x | z]|^2 over z ~ q(z | x) of each row, `(n,)`."""
        squares, variances = self._used(x)
        share = self.sigma**2 / variances
        of_used = squares * share**2 + (variances - self.sigma**2) * share
        whole = (x.flatten(1).double() - self.pca.mean).square().sum(1)
        return whole - squares.sum(1) + of_used.sum(1)

    def _used(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The squares a_i^2 of each row, `(n, used)`, and the variances l_i, `(used,)`."""
        used = int((self.pca.variances[: self.latent_dim] > self.sigma**2).sum())
        along = (x.flatten(1).double() - self.pca.mean) @ self.pca.directions[:, :used]
        return along.square(), self.pca.variances[:used]


def at_the_means(pair: Pair, x: Tensor) -> Tensor:
    """E[x | z] at the mean of q(z | x)."""
    z = encode(*pair, x, progress=False)["z"]
    found: Tensor = sample(pair[0], len(x), given={"z": z}, means=True, progress=False)
    return found


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
    for which in (axes.yaxis.set_major_formatter, axes.yaxis.set_minor_formatter):
        which(FuncFormatter(lambda value, _: f"{value:g}"))  # 20 in place of 2 x 10^1
    axes.legend(frameon=False, fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def _of(values: Tensor) -> str:
    return Estimate(values).numbers(".2f")
