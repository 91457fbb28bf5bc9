"""Sizes of the codebook and weights of the commitment, on axes of rate and distortion."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from progress import Table, require_list
from vq_vae_pairs import MANY, Setting, Sizes, uses

from ppl_vae import evaluate
from ppl_vae.codes import perplexity
from ppl_vae.objectives import ELBO, QuantizedELBO
from ppl_vae.runtime import replacing, require_output


@dataclass(frozen=True)
class Swept:
    """A point of the rate-distortion picture, nats per row.

    Attributes:
        codes: K.
        commitment: The VQ-VAE's beta; 0 of a Gaussian VAE.
        beta: The weight of the KL of a Gaussian VAE; 0 of a VQ-VAE.
        uniform: The rate with a uniform prior: positions times log K.
        rate: With a prior that was fitted to the codes; the VAE's own.
        distortion: - log p(x | z).
        perplexity: Of the codes.
    """

    codes: int
    commitment: float
    beta: float
    uniform: float
    rate: float
    distortion: float
    perplexity: float


def sweep(
    data: str = "MNIST",
    data_dir: Path = Path("data"),
    runs: Path = Path("vq_vae_sweep"),
    sizes: Sizes = MANY,
    codes: tuple[int, ...] = (4, 16, 64, 256),
    commitments: tuple[float, ...] = (0.05, 0.25, 1.0, 4.0),
    betas: tuple[float, ...] = (0.3, 1.0, 3.0, 10.0),
    vae_epochs: int = 40,
    output: Path = Path("vq_vae_sweep.png"),
    overwrite: bool = False,
) -> None:
    """Rate and distortion of test rows for several sizes of the codebook and weights of the commitment.

    Beside them Gaussian VAEs with several weights of the KL.

    Args:
        data: MNIST, or digits.
        data_dir: Folder of the data, in torchvision's layout.
        runs: Folder that keeps the trained pairs.
        sizes: Of networks and trainings.
        codes: Sizes K of the codebook.
        commitments: Weights of the commitment, the VQ-VAE's beta.
        betas: Weights of the KL of the Gaussian VAE.
        vae_epochs: Passes of the Gaussian VAE over the training rows: a step of it takes a tenth of the time.
        output: Where to save the picture.
        overwrite: Whether a picture that is there is replaced.
    """
    require_output(output, overwrite=overwrite)
    require_list("--codes", codes, may_be_empty=True)
    require_list("--commitments", commitments, may_be_empty=True)
    require_list("--betas", betas, may_be_empty=True)
    of = Setting.of(data, data_dir, sizes, runs)
    columns = ["pair", "rate, uniform", "rate, PixelCNN", "distortion", "ELBO", "perplexity"]
    shown = Table(columns, steps=len(codes) * len(commitments) + len(betas))
    shown.head()
    found = []
    for size, commitment in itertools.product(codes, commitments):
        point = _swept(replace(of, sizes=replace(sizes, codes=size)), commitment)
        found.append(point)
        name = f"VQ-VAE, K = {size}, commitment {commitment:g}"
        shown.row([name, f"{point.uniform:.2f}", *_of_point(point), f"{point.perplexity:.1f}"])
        shown.step(name)
    for beta in betas:
        point = _swept_vae(replace(of, sizes=replace(sizes, max_epochs=vae_epochs)), beta)
        found.append(point)
        shown.row([f"VAE, beta = {beta:g}", "", *_of_point(point), ""])
        shown.step(f"VAE, beta = {beta:g}")
    with replacing(output, overwrite=overwrite) as file:
        picture_of_sweep(found).savefig(file)
    print(
        f"\n{len(of.data.test)} test rows of {data}, nats per row. {len(of.data.train)} training rows: "
        f"{sizes.max_epochs} epochs, {sizes.prior_epochs} of the prior, {vae_epochs} of the VAE. The picture "
        f"is {output}."
    )


def _of_point(point: Swept) -> list[str]:
    return [f"{n:.2f}" for n in (point.rate, point.distortion, -point.rate - point.distortion)]


def _swept(of: Setting, commitment: float) -> Swept:
    name = f"codes={of.sizes.codes}-commitment={commitment:g}"
    objective = QuantizedELBO(commitment=commitment)
    model, guide = of.trained(name, of.vqvae, objective=objective)
    learned = of.with_prior(f"{name}_prior", (model, guide), of.sizes.prior)
    first = evaluate(model, guide, of.data.test, num_samples=2, seed=0, progress=False)
    found = evaluate(learned, guide, of.data.test, num_samples=2, seed=0, progress=False)
    used = perplexity(uses(model, guide, of.data.test))
    return Swept(
        of.sizes.codes,
        commitment,
        0.0,
        first.rate.mean,
        found.rate.mean,
        found.distortion.mean,
        used,
    )


def _swept_vae(of: Setting, beta: float) -> Swept:
    model, guide = of.trained(f"vae-beta={beta:g}", of.vae, objective=ELBO(beta=beta))
    found = evaluate(
        model, guide, of.data.test, num_samples=100, method="guide", seed=0, progress=False
    )
    return Swept(0, 0.0, beta, found.rate.mean, found.rate.mean, found.distortion.mean, 0.0)


def picture_of_sweep(points: list[Swept]) -> Figure:
    """Distortion against rate: uniform and learned priors of codes, and the Gaussian VAE."""
    figure = Figure(figsize=(7.5, 5), dpi=110, layout="constrained")
    axes = figure.subplots()
    codes = [p for p in points if p.codes]
    sizes = sorted({p.codes for p in codes})
    colors = dict(
        zip(sizes, ("#56B4E9", "#0072B2", "#009E73", "#D55E00", "#CC79A7") * 2, strict=False)
    )
    markers = dict(zip(sorted({p.commitment for p in codes}), "ovsD^P" * 2, strict=False))
    for p in codes:
        marker, color = markers[p.commitment], colors[p.codes]
        axes.plot([p.uniform, p.rate], [p.distortion] * 2, color=color, linewidth=0.6, alpha=0.6)
        axes.plot(p.uniform, p.distortion, marker, color=color, fillstyle="none", markersize=6)
        axes.plot(p.rate, p.distortion, marker, color=color, markersize=6)
    vae = sorted((p for p in points if not p.codes), key=lambda p: p.rate)
    axes.plot([p.rate for p in vae], [p.distortion for p in vae], ".-", color="#444444")
    for p in vae:
        axes.annotate(
            f"β = {p.beta:g}", (p.rate, p.distortion), xytext=(5, 3), textcoords="offset points"
        )
    handles: list[tuple[Any, str]] = [
        (axes.plot([], [], "s", color=c)[0], f"K = {k}") for k, c in colors.items()
    ]
    handles += [
        (axes.plot([], [], m, color="#888888")[0], f"commitment {w:g}") for w, m in markers.items()
    ]
    handles.append((axes.plot([], [], ".-", color="#444444")[0], "Gaussian VAE"))
    axes.legend(*zip(*handles, strict=True), frameon=False, fontsize=10)
    axes.set_xlabel("rate, nats (open: uniform prior, filled: PixelCNN)", fontsize=12)
    axes.set_ylabel("distortion, nats", fontsize=12)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
