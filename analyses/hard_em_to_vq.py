"""Soft to hard as one axis, a temperature: from one code for all, over EM, to k-means and VQ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from progress import Table, require_list, start
from sklearn.cluster import KMeans
from torch import Tensor, nn

from ppl_vae import evaluate, fit, load_data
from ppl_vae.codes import EMA, RandomStart, VectorQuantizer
from ppl_vae.em import fit_em
from ppl_vae.guides import QuantizingEncoder
from ppl_vae.likelihoods import Binomial
from ppl_vae.models import VQVAE, GaussianMixture
from ppl_vae.networks import MLP, Slots
from ppl_vae.runtime import replacing, require_output

CENTERS = torch.tensor([[-3.0, -1.5], [-3.0, 1.5], [3.0, -1.5], [3.0, 1.5]]).double()
SIGMA = 0.7
"""Of the data, and known: four equally likely Gaussians in the plane."""

CODES = len(CENTERS)
POSTERIOR = 2 * SIGMA**2
"""The temperature at which q(z | x) is the posterior."""


@dataclass
class At:
    """A codebook at rest, and its numbers at a temperature: sums over codes, means over rows."""

    temperature: float
    points: Tensor
    distortion: float
    entropy: float
    elbo: float
    log_p: float

    @property
    def free_energy(self) -> float:
        return self.distortion - self.temperature * self.entropy

    @property
    def apart(self) -> float:
        """The largest distance of two codes."""
        return float(torch.cdist(self.points, self.points).max())


def mixture_rows(n: int, seed: int) -> Tensor:
    """Rows `(n, 2)`, as many of each component."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(n // CODES, CODES, 2, generator=generator).double()
    return (CENTERS + SIGMA * noise).flatten(0, 1)


def critical_temperature(x: Tensor) -> float:
    """Above it, one place is best for all codes: twice the largest variance of the rows."""
    return 2 * float(torch.linalg.eigvalsh(torch.cov(x.T, correction=0))[-1])


def rest(quantizer: VectorQuantizer, x: Tensor, temperature: float) -> None:
    """Moves the codes to the means of their members until nothing moves: the encoder is the identity."""
    for _ in range(100_000):
        before = quantizer.points()
        if temperature:
            weights = quantizer.log_weights(x, temperature).softmax(-1)
            quantizer.codebook.follow(weights.sum(0), weights.T @ x)
        else:  # as in the training of a VQ-VAE
            quantizer.gather(x, quantizer.nearest(x))
            quantizer.learn()
        if float((quantizer.points() - before).abs().max()) < 1e-11:
            break


def measured(quantizer: VectorQuantizer, x: Tensor, temperature: float) -> At:
    """What the codebook costs with q of this temperature, under the mixture with the true sigma."""
    squared = -quantizer.log_weights(x, 1.0)
    q = (
        quantizer.log_weights(x, temperature).softmax(-1)
        if temperature
        else nn.functional.one_hot(quantizer.nearest(x), CODES).double()
    )
    log_joint = -squared / POSTERIOR - math.log(math.pi * POSTERIOR) - math.log(CODES)
    entropy = -torch.special.xlogy(q, q).sum(-1)
    return At(
        temperature,
        quantizer.points(),
        float((q * squared).sum(-1).mean()),
        float(entropy.mean()),
        float(((q * log_joint).sum(-1) + entropy).mean()),
        float(log_joint.logsumexp(-1).mean()),
    )


def annealed(x: Tensor, temperatures: Sequence[float], seed: int) -> list[At]:
    """Codebooks from the highest temperature down, each from the one before and a push too small to see.

    Args:
        x: The rows.
        temperatures: In any order.
        seed: Of the pushes.
    """
    generator = torch.Generator().manual_seed(seed)
    quantizer = VectorQuantizer(
        CODES, 2, EMA(decay=0.0), RandomStart(), restarts=0
    ).double()  # one step is one of Lloyd's
    points, found = x.mean(0).expand(CODES, 2), []
    for temperature in sorted(temperatures, reverse=True):
        push = 1e-6 * torch.randn(CODES, 2, generator=generator).double()
        quantizer.codebook.place(points + push, torch.ones(CODES, dtype=torch.bool))
        rest(quantizer, x, temperature)
        found.append(measured(quantizer, x, temperature))
        points = quantizer.points()
    return found[::-1]


class AtScale(nn.Module):
    """A mixture of spherical Gaussians of one fixed sigma and equal weights, for `fit_em`."""

    def __init__(self, mixture: GaussianMixture, sigma: float) -> None:
        super().__init__()
        self.mixture, self.sigma = mixture, sigma
        self._hold()

    def forward(self, x: Tensor) -> None:
        """Runs the mixture on `x`."""
        self.mixture(x)

    def expected_statistics(self, x: Tensor, hard: bool = False) -> dict[str, Tensor]:
        """Those of the mixture."""
        return self.mixture.expected_statistics(x, hard)

    @torch.no_grad()
    def maximize(self, statistics: dict[str, Tensor]) -> None:
        """The M step of the mixture, except for sigma and the weights."""
        self.mixture.maximize(statistics)
        self._hold()

    @torch.no_grad()
    def _hold(self) -> None:
        self.mixture.logits.zero_()
        for log_scale in self.mixture.covariance.parameters():
            log_scale.fill_(math.log(self.sigma))


def moved_by_em(x: Tensor, at: At) -> float:
    """How far EM moves the codes, at sigma^2 = T / 2; hard EM at T = 0. It knows nothing of codes."""
    mixture = GaussianMixture(x.shape[1:], CODES, "spherical").double()
    with torch.no_grad():
        mixture.means.copy_(at.points)
        mixture.centre.zero_()
    hard = at.temperature == 0
    model = AtScale(mixture, SIGMA if hard else math.sqrt(at.temperature / 2))
    fit_em(model, x, hard=hard, initialize=False, tolerance=1e-12, max_iterations=50)
    return float((mixture.means.detach() - at.points).abs().max())


def moved_by_k_means(x: Tensor, at: At) -> float:
    """How far Lloyd's algorithm of scikit-learn moves the codes."""
    lloyd = KMeans(CODES, init=at.points.numpy(), n_init=1, tol=0).fit(x.numpy())
    return float((torch.from_numpy(lloyd.cluster_centers_) - at.points).abs().max())


def vq_vae(temperature: float, epochs: int, max_rows: int | None, seed: int) -> list[str]:
    """A VQ-VAE of the digits whose guide draws its codes at a temperature: the cells of its row."""
    data = load_data("digits", max_rows=max_rows)
    torch.manual_seed(seed)
    network = Slots(2, MLP(hidden=(128,)))
    model = VQVAE(data.shape, VectorQuantizer(16, dim=4), network, Binomial(16))
    guide = QuantizingEncoder(model, network, temperature)
    fit(model, guide, data.train, max_epochs=epochs, learning_rate=2e-3, seed=seed, progress=False)
    found = evaluate(model, guide, data.test)
    q, entropy = guide.encode(data.test), 0.0
    if temperature:
        entropy = float(q.entropy().detach().mean())
    used = len(guide.codes(data.test).unique())
    means = (found.rate.mean, entropy, found.distortion.mean, found.elbo.mean)
    cells = [f"{number:.3f}" for number in (*means, found.log_likelihood.mean)]
    return [f"{temperature:g}", *cells, f"{used}"]


def main(
    rows: int = 2000,
    shown: tuple[float, ...] = (0.1, 0.5, 1.0, 2.0, 4.0),
    of_critical: tuple[float, ...] = (0.5, 0.98, 1.02, 1.5),
    drawn: int = 80,
    temperatures: tuple[float, ...] = (0.0, 0.1, 0.3, 1.0, 3.0),
    epochs: int = 200,
    max_rows: int | None = None,
    output: Path = Path("hard_em_to_vq.png"),
    overwrite: bool = False,
    seed: int = 0,
) -> None:
    """Soft to hard: codes at temperatures T from 0 (k-means) over EM to where all of them are one.

    q(z | x) is proportional to exp(-|x - C_z|^2 / T), and the codes minimize distortion - T entropy. The first
    table has a mixture of four Gaussians in the plane with equal weights and a known sigma, four codes and no
    encoder. Everything is a sum over codes; EM and k-means, which share no code with it, say how far each
    codebook is from where they would come to rest. The second table has a VQ-VAE with two codes for each of the
    digits, trained and evaluated with codes drawn at T. Its entropy counts in the ELBO, and log p(x) is a sum
    over its 256 joint codes.

    Args:
        rows: Rows of the mixture.
        shown: Temperatures of the first table, in units of 2 sigma^2, where q is the posterior.
        of_critical: More of them, in units of the critical temperature.
        drawn: Temperatures of the picture.
        temperatures: Those of the second table.
        epochs: Of the training of each VQ-VAE.
        max_rows: Maximum number of digits, for a quick trial.
        output: Where to save the picture.
        overwrite: Whether a picture that is there is replaced.
        seed: Seed of all random numbers.
    """
    require_output(output, overwrite=overwrite)
    require_list("--shown", shown, may_be_empty=True)
    require_list("--of_critical", of_critical, may_be_empty=True)
    require_list("--temperatures", temperatures)
    x = mixture_rows(rows, seed)
    critical = critical_temperature(x)
    print(f"The posterior is at T = {POSTERIOR:.4g}, the critical temperature is {critical:.5g}.\n")
    asked = [0.0, *(each * POSTERIOR for each in shown), *(each * critical for each in of_critical)]
    columns = ["T", "codes apart", "distortion", "entropy", "distortion - T entropy"]
    columns += ["ELBO", "log p(x)", "moved by EM"]
    table = Table(columns, steps=len(asked) + len(temperatures) + 1)
    found = annealed(x, sorted({*asked}), seed)
    table.head()
    for at in found:
        numbers = (at.distortion, at.entropy, at.free_energy, at.elbo, at.log_p)
        cells = [f"{number:.4f}" for number in numbers]
        table.row([f"{at.temperature:.5g}", f"{at.apart:.4f}", *cells, f"{moved_by_em(x, at):.0e}"])
        table.step(f"T = {at.temperature:.3g}")
    print(f"\nk-means moves the codes of T = 0 by {moved_by_k_means(x, found[0]):.0e}.\n")

    grid = np.geomspace(POSTERIOR / 20, 1.6 * critical, drawn).tolist()
    with replacing(output, overwrite=overwrite) as file:
        draw(annealed(x, grid, seed), x, critical).savefig(file)
    table.step("the picture")

    columns = ["T", "rate", "entropy", "distortion", "ELBO", "log p(x)", "codes used"]
    trained = Table(columns, steps=0)
    trained.head()
    for temperature in temperatures:
        trained.row(vq_vae(temperature, epochs, max_rows, seed))
        table.step(f"VQ-VAE, T = {temperature:g}")
    print(f"\nNats per row. The picture is in {output}.")


def draw(found: list[At], x: Tensor, critical: float) -> Figure:
    """Draws where the codes are, and what they cost, against the temperature."""
    figure = Figure(figsize=(11, 3.4), dpi=100, layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    t = [at.temperature for at in found]
    for k, style in zip(range(CODES), ("-", "--", "-", "--"), strict=True):
        left.plot(
            t,
            [float(at.points[k, 0]) for at in found],
            f"C0{style}",
            label="first" if k == 0 else None,
        )
        left.plot(
            t,
            [float(at.points[k, 1]) for at in found],
            f"C1{style}",
            label="second" if k == 0 else None,
        )
    left.set(title="Coordinates of the codes", xlabel="T")
    left.legend(loc="center left")
    middle.plot(t, [at.distortion for at in found], label="distortion")
    middle.plot(t, [at.entropy for at in found], label="entropy, nats")
    middle.plot(t, [at.free_energy for at in found], label="distortion - T entropy")
    middle.set(title="What q costs", xlabel="T", ylim=(-18, 15))
    middle.legend()
    right.plot(t, [at.log_p for at in found], label="log p(x)")
    right.plot(t, [at.elbo for at in found], "--", label="ELBO")
    right.set(title="Under the true sigma, nats", xlabel="T", ylim=(-14, None))
    right.legend(loc="lower left")
    for axes in (left, middle, right):
        axes.set_xscale("log")
        for place in (POSTERIOR, critical):
            axes.axvline(place, color="0.7", lw=1, zorder=0)
        axes.spines[["top", "right"]].set_visible(False)
    left.text(POSTERIOR, 0, "posterior ", ha="right", va="center", rotation=90, color="0.4")
    left.text(1.1 * critical, 2, "critical", va="center", rotation=90, color="0.4")
    return figure


if __name__ == "__main__":
    start(
        main,
        quick={
            **{"rows": 200, "drawn": 12, "temperatures": (0.0, 1.0), "epochs": 2, "max_rows": 150},
            "output": "hard_em_to_vq_quick.png",
        },
    )
