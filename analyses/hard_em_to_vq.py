"""From hard EM to vector quantization: where k-means, EM and a VQ-VAE's codebook converge."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from progress import Table, start
from scipy.optimize import linear_sum_assignment
from sklearn.cluster import KMeans, kmeans_plusplus
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from ppl_vae import load_data
from ppl_vae.em import fit_em
from ppl_vae.models import GaussianMixture
from ppl_vae.networks import MLP
from ppl_vae.runtime import replacing, require_output


@dataclass
class Quantizer:
    """A codebook `(codes, d)`, the rows `(n, d)` in its space, and the codes' pictures."""

    name: str
    codebook: Tensor
    rows: Tensor
    pictures: Tensor

    def __post_init__(self) -> None:
        self.assigned = torch.cdist(self.rows, self.codebook).argmin(1)
        # Distances are in units of the rows' standard deviation, so that spaces can be compared.
        self.unit = (self.rows - self.rows.mean(0)).square().mean().sqrt()
        nearest = means(self.rows, self.assigned, self.codebook)
        self.residual = float(rms(self.codebook - nearest) / self.unit)
        self.moved = float(rms(self.codebook - k_means(self.rows, self.codebook)) / self.unit)

    def match(self, other: Quantizer) -> Quantizer:
        """The same codebook, reordered so that its pictures are nearest to another's."""
        cost = torch.cdist(other.pictures, self.pictures).square()
        order = linear_sum_assignment(cost.numpy())[1]
        return Quantizer(self.name, self.codebook[order], self.rows, self.pictures[order])


class AtScale(nn.Module):
    """A mixture of spherical Gaussians of one fixed sigma: hard EM becomes k-means as sigma falls.

    The likeliest component of a row is the argmin of |x - mu_k|^2 - 2 sigma^2 log pi_k: the nearest one, once
    sigma is small. The M step for the means, which takes the means of the rows, does not depend on sigma.
    """

    def __init__(self, mixture: GaussianMixture, sigma: float) -> None:
        super().__init__()
        self.mixture, self.sigma = mixture, sigma

    def forward(self, x: Tensor) -> None:
        """Runs the mixture on `x`."""
        self.mixture(x)

    def expected_statistics(self, x: Tensor, hard: bool = False) -> dict[str, Tensor]:
        """Those of the mixture."""
        return self.mixture.expected_statistics(x, hard)

    @torch.no_grad()
    def maximize(self, statistics: dict[str, Tensor]) -> None:
        """The M step of the mixture, except for sigma."""
        self.mixture.maximize(statistics)
        for log_scale in self.mixture.covariance.parameters():
            log_scale.fill_(math.log(self.sigma))


def em(x: Tensor, start: Tensor, sigma: float | None, hard: bool) -> Tensor:
    """The means that EM finds from a start; sigma is learned (one per component) if it is None."""
    mixture = GaussianMixture(x.shape[1:], len(start), "spherical").double()
    with torch.no_grad():
        mixture.means.copy_(start)
        mixture.centre.copy_(x.mean(0))
        for log_scale in mixture.covariance.parameters():
            log_scale.fill_(math.log(sigma or float((x - x.mean(0)).square().mean().sqrt())))
    model = mixture if sigma is None else AtScale(mixture, sigma)
    fit_em(model, x, hard=hard, initialize=False, tolerance=1e-9, max_iterations=1000)
    return mixture.means.detach()


def k_means(x: Tensor, start: Tensor) -> Tensor:
    """Lloyd's algorithm from a start until nothing moves."""
    fitted = KMeans(len(start), init=start.numpy(), n_init=1, tol=0, max_iter=1000).fit(x.numpy())
    return torch.from_numpy(fitted.cluster_centers_)


def quantize(z: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest code of each row, twice: with the gradient of `z` (straight through), and with its own.

    The first has the value of the code and the gradient of z, so that the codebook is trained only by its own
    loss, |sg(z) - c|^2. The gradient of this loss by c_k is 2 sum over the rows assigned to k of (c_k - z). It
    vanishes where c_k is their mean: the M step of hard EM (arXiv:1711.00937).
    """
    codes = codebook[torch.cdist(z.detach(), codebook.detach()).argmin(1)]
    return z + (codes - z).detach(), codes


def vq(x: Tensor, start: Tensor, steps: int) -> Tensor:
    """A codebook for the rows themselves, by gradient descent on its loss."""
    codebook = start.clone().requires_grad_()
    # In a cluster that holds 1 / codes of the rows, a step goes a quarter of the way to the mean.
    optimizer = torch.optim.SGD([codebook], lr=len(start) / 8)
    for _ in range(steps):
        _, codes = quantize(x, codebook)
        optimizer.zero_grad()
        (x - codes).square().sum(1).mean().backward()
        optimizer.step()
    return codebook.detach()


def vq_vae(x: Tensor, codes: int, steps: int, seed: int, size: int = 8) -> Quantizer:
    """A codebook for the outputs of an encoder, which is trained straight through it, and a decoder."""
    scale = x.max()
    network = MLP(hidden=(128,), activation=nn.Softplus)
    encoder = nn.Sequential(network.encoder(x.shape[1:]), nn.Linear(128, size)).double()
    decoder = network.decoder(size, x.shape[1:]).double()
    with torch.no_grad():
        z = encoder(x / scale)
    codebook = nn.Parameter(
        torch.from_numpy(kmeans_plusplus(z.numpy(), codes, random_state=seed)[0])
    )
    optimizer = torch.optim.Adam([codebook, *encoder.parameters(), *decoder.parameters()], lr=3e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        z = encoder(x / scale)
        read, nearest = quantize(z, codebook)
        optimizer.zero_grad()
        loss = mse_loss(decoder(read), x / scale) + mse_loss(nearest, z.detach())
        (loss + 0.25 * mse_loss(z, nearest.detach())).backward()
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        pictures = decoder(codebook) * scale
        return Quantizer("VQ-VAE", codebook.detach(), encoder(x / scale), pictures)


def means(x: Tensor, assigned: Tensor, otherwise: Tensor) -> Tensor:
    """The mean of the rows assigned to each code; the code itself where there are none."""
    found = otherwise.new_zeros(len(otherwise), x.shape[1]).index_add(0, assigned, x)
    counts = assigned.bincount(minlength=len(otherwise)).unsqueeze(1)
    return torch.where(counts > 0, found / counts.clamp_min(1), otherwise)


def rms(x: Tensor) -> Tensor:
    """Root mean square."""
    return x.square().mean().sqrt()


def main(
    codes: int = 10,
    steps: int = 4000,
    sigmas: tuple[float, ...] = (8.0, 4.0, 2.0, 1.0, 0.5),
    max_rows: int | None = None,
    output: Path = Path("hard_em_to_vq.png"),
    overwrite: bool = False,
    seed: int = 0,
) -> None:
    """Quantizes handwritten digits by k-means, EM, hard EM and VQ: do they converge to the same codebooks?

    A codebook is a fixed point of k-means if each of its vectors is the mean of the rows nearest to it. The
    table gives the distance of each codebook from those means ("residual"), how far k-means moves when it
    starts from the codebook, and the distance from what k-means finds from the common start, with the codes
    in the best order. These are root mean squares, in units of the standard deviation of the rows. The
    VQ-VAE's residual is measured in the space of its codebook, the outputs of its encoder.

    Args:
        codes: Number of vectors in the codebook, and of components of the mixture.
        steps: Gradient steps of the codebooks that are trained by gradients, each on all rows.
        sigmas: Standard deviations at which EM holds sigma, in gray levels (there are 16).
        max_rows: Maximum number of rows, for a quick trial.
        output: Where to save the picture.
        overwrite: Whether a picture that is there is replaced.
        seed: Seed of all random numbers.
    """
    require_output(output, overwrite=overwrite)
    torch.manual_seed(seed)
    x = load_data("digits", max_rows=max_rows).train.flatten(1).double()
    start = torch.from_numpy(kmeans_plusplus(x.numpy(), codes, random_state=seed)[0])

    columns = ["method", "error per pixel", "residual", "moved by k-means", "from k-means"]
    table = Table([*columns, "rows elsewhere"], steps=5 + 2 * len(sigmas))

    def on_pixels(name: str, codebook: Tensor) -> Quantizer:
        table.step(name)
        return Quantizer(name, codebook, x, codebook)

    reference = on_pixels("k-means", k_means(x, start))
    kinds = {"EM": False, "hard EM": True}
    learned = [on_pixels(f"{k}, sigma learned", em(x, start, None, kinds[k])) for k in kinds]
    held = {
        k: [on_pixels(f"{k}, sigma = {s:g}", em(x, start, s, kinds[k])) for s in sigmas]
        for k in kinds
    }
    trained = [on_pixels("VQ of the pixels", vq(x, start, steps)), vq_vae(x, codes, steps, seed)]
    found = [reference, *learned, *held["EM"], *held["hard EM"], *trained]
    table.step("VQ-VAE")
    found = [q.match(reference) for q in found]  # which is why rows come together

    table.head()
    for q in found:
        error = (x - q.pictures[q.assigned]).square().mean()
        away = rms(q.pictures - reference.pictures) / reference.unit
        elsewhere = (q.assigned != reference.assigned).double().mean()
        cells = [f"{error:.3f}", *(f"{v:.1e}" for v in (q.residual, q.moved, away))]
        table.row([q.name, *cells, f"{elsewhere:.1%}"])
    vae = found[-1]
    decoded = rms(vae.pictures - means(x, vae.assigned, vae.pictures)) / reference.unit
    print(f"\nWhat the VQ-VAE decodes is the mean of a code's rows to within {decoded:.1e}.")
    shown = [found[0], found[-3], *found[1:3], *found[-2:]]
    with replacing(output, overwrite=overwrite) as file:
        draw(shown, {k: [q.moved for q in held[k]] for k in held}, sigmas).savefig(file)
    print(f"The picture is in {output}.")


def draw(
    shown: list[Quantizer], moved: dict[str, list[float]], sigmas: tuple[float, ...]
) -> Figure:
    """Draws the codebooks, each picture with its distance from that of k-means, and how EM becomes k-means."""
    figure = Figure(figsize=(13, 5.4), dpi=150, layout="constrained")
    parts: Any = figure.subfigures(1, 2, width_ratios=(2.1, 1))
    left, right = parts
    codes, side = shown[0].pictures.shape[0], math.isqrt(shown[0].pictures.shape[1])
    grid = left.subplots(len(shown), codes, squeeze=False)
    for row, q in zip(grid, shown, strict=True):
        for axes, picture, best in zip(row, q.pictures, shown[0].pictures, strict=True):
            axes.imshow(picture.reshape(side, side).numpy(), cmap="gray_r", vmin=0, vmax=16)
            axes.set(xticks=[], yticks=[])
            if q is not shown[0]:
                distance = float(rms(picture - best) / shown[0].unit)
                axes.set_xlabel(f"{distance:.2f}" if distance >= 5e-3 else "0", labelpad=2)
        label = f"{q.name.replace(', ', chr(10))}\nresidual {q.residual:.0e}"
        row[0].set_ylabel(label, rotation=0, ha="right", va="center")
    left.suptitle(
        "Codebooks after convergence, and each vector's distance from that of k-means (standard deviations)"
    )
    axes = right.subplots()
    for (name, distances), marker in zip(moved.items(), "os", strict=True):
        axes.loglog(sigmas, distances, marker=marker, label=name)
    axes.axhspan(1e-17, 1e-13, color="0.9", lw=0)
    axes.text(sigmas[-1], 3e-14, "rounding error", va="top", color="0.4")
    axes.set(ylim=(1e-17, 1), xlabel="sigma of the mixture (gray levels)")
    axes.set(ylabel="how far k-means moves from there", title="Where EM converges, as sigma falls")
    axes.set_xticks(sigmas, [f"{s:g}" for s in sigmas])
    axes.minorticks_off()
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend()
    return figure


if __name__ == "__main__":
    start(
        main,
        quick={
            **{"codes": 4, "steps": 100, "sigmas": (8.0, 0.5), "max_rows": 150},
            "output": "hard_em_to_vq_quick.png",
        },
    )
