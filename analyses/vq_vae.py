"""What do codes cost and buy? VQ-VAEs beside a Gaussian VAE and an autoregressive model, in nats."""

from __future__ import annotations

import contextlib
import itertools
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from kept_pairs import keep, kept, num_trained
from matplotlib.figure import Figure
from progress import Table, start
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR
from torchvision.utils import make_grid

from ppl_vae import evaluate, fit, load_data, refit_prior, sample
from ppl_vae.codes import EMA, Gradient, KMeansStart, RandomStart, VectorQuantizer, perplexity
from ppl_vae.data import Data
from ppl_vae.guides import HierarchicalQuantizingEncoder, MeanField, QuantizingEncoder
from ppl_vae.likelihoods import Bernoulli, Binomial, Likelihood
from ppl_vae.models import (
    VAE,
    VQVAE,
    VQVAE2,
    Autoregressive,
    ConditionalVQVAE,
    IndependentCodes,
    MixturePrior,
    PixelCNNPrior,
)
from ppl_vae.networks import MLP, ConvolutionalGrid, GridPyramid, Labels
from ppl_vae.objectives import ELBO, QuantizedELBO
from ppl_vae.runtime import replacing, require_output
from ppl_vae.stats import Estimate

Pair = tuple[Any, Any]


def nothing(x: Tensor) -> None:
    """The guide of a model without latents."""


@dataclass(frozen=True)
class Sizes:
    """How large networks are, and how long they are trained.

    Attributes:
        codes: Number K of codes.
        dim: Size of their vectors.
        channels: Channels of the networks of codes.
        latent_dim: Latents of the Gaussian VAE.
        hidden: Widths of its networks, and of the autoregressive model.
        components: Components of a mixture that is fitted to its codes.
        max_epochs: Passes over the training rows.
        prior: What the learned prior is built from.
        prior_epochs: Most passes of the prior over the codes.
        prior_rows: Number of training rows whose codes it sees, the first ones.
        batch_size: Rows of a step.
        learning_rate: Of Adam, at the start; it falls to 0 along a cosine.
        max_rows: Maximum number of rows per split; None takes all.
        seed: Seed of all random numbers.
    """

    codes: int = 64
    dim: int = 8
    channels: int = 32
    latent_dim: int = 40
    hidden: tuple[int, ...] = (400, 400)
    components: int = 50
    max_epochs: int = 12
    prior: PixelCNNPrior = PixelCNNPrior(channels=32, layers=3, window=6)  # noqa: RUF009 (frozen)
    prior_epochs: int = 8
    prior_rows: int = 20_000
    batch_size: int = 128
    learning_rate: float = 1e-3
    max_rows: int | None = None
    seed: int = 0


MANY = Sizes(codes=256, max_epochs=4, max_rows=10_000)
"""For the sweep and the ablation, which train many."""


@dataclass(frozen=True)
class Setting:
    """Data, sizes, and the folder that keeps what is trained.

    Attributes:
        data: MNIST, with pixels that are drawn again for each batch; or the digits, which are counts.
        sizes: See `Sizes`.
        runs: The folder.
    """

    data: Data[Tensor]
    sizes: Sizes
    runs: Path

    @classmethod
    def of(cls, name: str, data_dir: Path, sizes: Sizes, runs: Path) -> Setting:
        """Loads the data."""
        names = {"mnist": "MNIST", "digits": "digits"}
        if name.lower() not in names:
            raise ValueError(
                f"data must be MNIST or digits, whose values are 0 or 1 or counts, got {name!r}"
            )
        name = names[name.lower()]
        binarize: Any = "dynamic" if name == "MNIST" else None
        data = load_data(
            name, data_dir=data_dir, binarize=binarize, max_rows=sizes.max_rows, seed=sizes.seed
        )
        return cls(data, sizes, runs)

    @property
    def likelihood(self) -> Likelihood:
        """Of pixels that are 0 or 1, or of counts."""
        levels = self.data.levels or 2
        return Bernoulli() if levels == 2 else Binomial(levels - 1)

    @property
    def train(self) -> Tensor:
        """The training rows, with pixels drawn once."""
        torch.manual_seed(self.sizes.seed)
        x, transform = self.data.train, self.data.transform
        return x if transform is None else transform(x)

    @property
    def grid(self) -> ConvolutionalGrid:
        """The networks of a VQ-VAE: a code for 4 x 4 pixels."""
        return ConvolutionalGrid(self.sizes.channels, halvings=2)

    def quantizer(self, **options: Any) -> VectorQuantizer:
        """A codebook."""
        return VectorQuantizer(self.sizes.codes, self.sizes.dim, **options)

    def trained(self, name: str, make: Callable[[], Pair], **options: Any) -> Pair:
        """A pair, from its folder if it is there; a training that was stopped goes on."""
        folder = self.runs / name
        torch.manual_seed(self.sizes.seed)
        model, guide = make()
        fit(
            *(model, guide, options.pop("rows", self.data.train)),
            validation=options.pop("validation", self.data.validation),
            transform=options.pop("transform", self.data.transform),
            batch_size=self.sizes.batch_size,
            max_epochs=self.sizes.max_epochs,
            learning_rate=self.sizes.learning_rate,
            lr_scheduler=partial(CosineAnnealingLR, T_max=self.sizes.max_epochs),
            seed=self.sizes.seed,
            run_dir=folder,
            resume=folder.exists(),
            **options,
        )
        return model, guide

    def with_prior(
        self, name: str, pair: Pair, prior: Any, rows: Any = None, held_out: Any = None
    ) -> Any:
        """The model with a prior that is fitted to its codes, from its folder if it is there."""
        folder, sizes = self.runs / name, self.sizes
        made_of = f"{prior}, {sizes}, {self.data.name}"
        if (found := kept(folder, made_of)) is not None:
            return found[0]
        of_codes = hasattr(prior, "build_codes")
        by_steps = of_codes and not isinstance(prior, IndependentCodes)
        count = sizes.prior_rows if by_steps else None
        chosen: Any = self.train if rows is None else rows
        chosen = tuple(p[:count] for p in chosen) if isinstance(chosen, tuple) else chosen[:count]
        others = self.data.validation if held_out is None else held_out
        options: dict[str, Any] = {"validation": others} if of_codes else {}
        model = refit_prior(
            *(*pair, chosen, prior),
            **options,
            max_epochs=sizes.prior_epochs,
            batch_size=sizes.batch_size,
            seed=sizes.seed,
        )
        keep(folder, model, pair[1], made_of)
        return model

    # -- pairs ---------------------------------------------------------------------------------------------

    def vqvae(self) -> Pair:
        """A VQ-VAE with a uniform prior."""
        model = VQVAE(self.data.shape, self.quantizer(), self.grid, self.likelihood)
        return model, QuantizingEncoder(model, self.grid)

    def vqvae2(self) -> Pair:
        """One with two levels: a code for 2 x 2 pixels, and one for 4 x 4."""
        network = GridPyramid(self.sizes.channels, halvings=(1, 1))
        quantizers = [self.quantizer(), self.quantizer()]
        model = VQVAE2(self.data.shape, quantizers, network, self.likelihood)
        return model, HierarchicalQuantizingEncoder(model, network)

    def vae(self) -> Pair:
        """A Gaussian VAE."""
        shape, size, network = self.data.shape, self.sizes.latent_dim, MLP(self.sizes.hidden)
        return VAE(shape, size, network, self.likelihood), MeanField(shape, size, network)

    def autoregressive(self) -> Pair:
        """p(x) of each pixel given those before it, without a latent."""
        hidden = (2 * self.sizes.hidden[0],)
        return Autoregressive(self.data.shape, self.data.levels or 2, hidden), nothing


# -- table -------------------------------------------------------------------------------------------------


def table(
    data: str = "MNIST",
    data_dir: Path = Path("data"),
    runs: Path = Path("vq_vae"),
    sizes: Sizes = Sizes(),
    max_test_rows: int | None = None,
    num_samples: int = 100,
) -> None:
    """One bound for all, on the same test rows: rate, distortion, ELBO, log p(x); and losses of both phases.

    Args:
        data: MNIST, or digits.
        data_dir: Folder of the data, in torchvision's layout.
        runs: Folder that keeps the trained pairs.
        sizes: Of networks and trainings.
        max_test_rows: Number of test rows to use, the first ones.
        num_samples: Importance samples per row for log p(x) of the Gaussian VAE.
    """
    of = Setting.of(data, data_dir, sizes, runs)
    test = of.data.test[:max_test_rows]
    columns = ["model", "rate", "distortion", "ELBO", "log p(x)", "more than the VAE's ELBO"]
    shown = Table([*columns, "trained numbers"], steps=len(PAIRS))
    rows, losses, baseline = [], [], None
    for name, make in PAIRS.items():
        model, guide, phases = make(of)
        found = evaluate(
            *(model, guide, test),
            num_samples=num_samples,
            method="guide",
            seed=sizes.seed,
            progress=False,
        )
        baseline = found.elbo.values if baseline is None else baseline
        log_p = "at least the ELBO" if found.certain else _nats(found.log_likelihood)
        gain = Estimate(found.elbo.values - baseline)
        cells = [_nats(e) for e in (found.rate, found.distortion, found.elbo)]
        rows.append([name, *cells, log_p, _nats(gain), f"{num_trained(model, guide):,}"])
        losses += [[name, *each] for each in phases]
        shown.step(name)
    shown.head()
    for row in rows:
        shown.row(row)
    print(
        f"\n{len(test)} test rows of {data}, nats per row, means and standard errors over rows.\n"
    )
    second = Table(["model", "phase", "training rows", "held-out rows", "difference"], steps=1)
    second.head()
    for row in losses:
        second.row(row)
    print(
        "\nPhase I: the distortion. Phase II: the rate of the codes; the epoch with the least held-out rate is "
        f"kept, so that the difference is a little too small. {len(of.data.train)} training rows, "
        f"{sizes.max_epochs} epochs; a prior that learns by steps sees {sizes.prior_rows} of them, in at "
        f"most {sizes.prior_epochs} epochs. Networks: {of.grid} and {MLP(sizes.hidden)}."
    )


Made = tuple[Any, Any, list[list[str]]]


def _of_codes(name: str, make: Callable[[Setting], Pair], prior: Any) -> Callable[[Setting], Made]:
    """A pair with codes, with its first prior or another one, and its losses."""

    def made(of: Setting) -> Made:
        model, guide = of.trained(name, partial(make, of))
        if prior is None:
            return model, guide, [_phase_one(of, model, guide)]
        learned = prior(of.sizes)
        refitted = of.with_prior(f"{name}_{type(learned).__name__}", (model, guide), learned)
        return (
            refitted,
            guide,
            [_losses(of, refitted, guide, "II, " + type(learned).__name__, "rate")],
        )

    return made


def _losses(
    of: Setting, model: Any, guide: Any, phase: str, number: str, sign: int = 1
) -> list[str]:
    """A loss of as many training rows as there are held-out rows, and of these."""
    held_out = of.data.validation
    both = [
        getattr(
            evaluate(model, guide, x, num_samples=2, method="guide", seed=0, progress=False), number
        )
        for x in (of.train[: len(held_out)], held_out)
    ]
    train, validation = (Estimate(sign * found.values) for found in both)
    error = (train.standard_error**2 + validation.standard_error**2) ** 0.5
    difference = f"{validation.mean - train.mean:.2f} ± {error:.2f}"
    return [phase, _nats(train), _nats(validation), difference]


def _phase_one(of: Setting, model: Any, guide: Any) -> list[str]:
    return _losses(of, model, guide, "I, distortion", "distortion")


def _whole(name: str, make: Callable[[Setting], Pair]) -> Callable[[Setting], Made]:
    """A pair that is trained in one phase."""

    def made(of: Setting) -> Made:
        model, guide = of.trained(name, partial(make, of))
        return model, guide, [_losses(of, model, guide, "-ELBO", "elbo", sign=-1)]

    return made


def _vae_with_mixture(of: Setting) -> Made:
    """The Gaussian VAE, with a mixture that is fitted to its aggregate posterior."""
    model, guide = of.trained("vae", of.vae)
    refitted = of.with_prior("vae_MixturePrior", (model, guide), MixturePrior(of.sizes.components))
    return refitted, guide, [_losses(of, refitted, guide, "-ELBO", "elbo", sign=-1)]


def _counted(sizes: Sizes) -> IndependentCodes:
    return IndependentCodes()


def _pixel_cnn(sizes: Sizes) -> PixelCNNPrior:
    return sizes.prior


# Add a line here for other pairs.
PAIRS: dict[str, Callable[[Setting], Made]] = {
    "VAE, N(0, I)": _whole("vae", Setting.vae),
    "VAE, mixture": _vae_with_mixture,
    "autoregressive": _whole("autoregressive", Setting.autoregressive),
    "VQ-VAE, uniform": _of_codes("vqvae", Setting.vqvae, None),
    "VQ-VAE, counted": _of_codes("vqvae", Setting.vqvae, _counted),
    "VQ-VAE, PixelCNN": _of_codes("vqvae", Setting.vqvae, _pixel_cnn),
    "VQ-VAE-2, uniform": _of_codes("vqvae2", Setting.vqvae2, None),
    "VQ-VAE-2, PixelCNN": _of_codes("vqvae2", Setting.vqvae2, _pixel_cnn),
}


def _nats(of: Estimate) -> str:
    return of.numbers(".2f")


# -- sweep -------------------------------------------------------------------------------------------------


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
        output: Where to save the picture.
        overwrite: Whether a picture that is there is replaced.
    """
    require_output(output, overwrite=overwrite)
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
        point = _swept_vae(of, beta)
        found.append(point)
        shown.row([f"VAE, beta = {beta:g}", "", *_of_point(point), ""])
        shown.step(f"VAE, beta = {beta:g}")
    with replacing(output, overwrite=overwrite) as file:
        picture_of_sweep(found).savefig(file)
    print(f"\n{len(of.data.test)} test rows of {data}, nats per row. The picture is {output}.")


def _of_point(point: Swept) -> list[str]:
    return [f"{n:.2f}" for n in (point.rate, point.distortion, -point.rate - point.distortion)]


def _swept(of: Setting, commitment: float) -> Swept:
    name = f"codes={of.sizes.codes}-commitment={commitment:g}"
    objective = QuantizedELBO(commitment=commitment)
    model, guide = of.trained(name, of.vqvae, objective=objective)
    learned = of.with_prior(f"{name}_prior", (model, guide), _pixel_cnn(of.sizes))
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


@torch.no_grad()
def uses(model: Any, guide: Any, x: Tensor) -> Tensor:
    """How often each code is used for these rows, `(K,)`."""
    z = torch.cat([guide.codes(part) for part in x.split(500)])
    return z.flatten().bincount(minlength=model.quantizer.codes)


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


# -- ablation ----------------------------------------------------------------------------------------------


def ablation(
    data: str = "MNIST",
    data_dir: Path = Path("data"),
    results: Path = Path("vq_vae_ablation.jsonl"),
    sizes: Sizes = MANY,
    num_seeds: int = 3,
) -> None:
    """Which of the means against dead codes does what: start, learner, restarts and gradient, each with each.

    Args:
        data: MNIST, or digits.
        data_dir: Folder of the data, in torchvision's layout.
        results: File that keeps what was found: a run that was stopped goes on.
        sizes: Of networks and trainings.
        num_seeds: Trainings of each.
    """
    known = _known(results)
    results.parent.mkdir(parents=True, exist_ok=True)
    settings = list(itertools.product(STARTS, LEARNERS, RESTARTS, GRADIENTS))
    columns = [
        "start",
        "codebook",
        "restarts",
        "gradient",
        "dead codes",
        "perplexity",
        "distortion",
    ]
    shown = Table(columns, steps=len(settings) * num_seeds)
    of = Setting.of(data, data_dir, sizes, results.parent)
    for seed, names in itertools.product(range(num_seeds), settings):
        key = json.dumps([*names, seed, data, asdict(sizes)])
        if key not in known:
            known[key] = _ablated(replace(of, sizes=replace(sizes, seed=seed)), *names)
            with results.open("a") as file:
                file.write(json.dumps([key, known[key]]) + "\n")
        shown.step(", ".join(names))
    shown.head()
    for names in settings:
        each = [known[json.dumps([*names, seed, data, asdict(sizes)])] for seed in range(num_seeds)]
        numbers = [
            Estimate(torch.tensor([float(found[i]) for found in each]), unit="") for i in range(3)
        ]
        shown.row(
            [*names, *(n.numbers(f) for n, f in zip(numbers, (".0f", ".1f", ".2f"), strict=True))]
        )
    print(
        f"\n{num_seeds} seeds, means and standard errors over them; {sizes.codes} codes, "
        f"{sizes.max_epochs} epochs of {len(of.data.train)} rows of {data}. Dead: the code of none of the "
        "training rows. Perplexity of training rows, distortion of test rows in nats."
    )


STARTS = {"k-means": KMeansStart(), "random": RandomStart()}
LEARNERS: dict[str, Any] = {"EMA": EMA(), "gradient": Gradient()}
RESTARTS = {"yes": 1.0, "no": 0.0}
GRADIENTS = {"straight-through": "straight-through", "rotation": "rotation"}


def _ablated(
    of: Setting, begin: str, learner: str, restarts: str, gradient: Any
) -> tuple[int, float, float]:
    """Dead codes and perplexity of training rows, and the distortion of test rows."""
    sizes = of.sizes
    torch.manual_seed(sizes.seed)
    quantizer = of.quantizer(
        start=STARTS[begin], learner=LEARNERS[learner], restarts=RESTARTS[restarts]
    )
    model = VQVAE(of.data.shape, quantizer, of.grid, of.likelihood)
    guide = QuantizingEncoder(model, of.grid)
    fit(
        *(model, guide, of.data.train),
        objective=QuantizedELBO(gradient=gradient),
        transform=of.data.transform,
        batch_size=sizes.batch_size,
        max_epochs=sizes.max_epochs,
        learning_rate=sizes.learning_rate,
        lr_scheduler=partial(CosineAnnealingLR, T_max=sizes.max_epochs),
        seed=sizes.seed,
        progress=False,
    )
    counts = uses(model, guide, of.train)
    dead = int((counts == 0).sum())
    found = evaluate(model, guide, of.data.test, num_samples=2, seed=0, progress=False)
    return dead, perplexity(counts), found.distortion.mean


def _known(file: Path) -> dict[str, Any]:
    if not file.exists():
        return {}
    found = {}
    for line in file.read_text().splitlines():
        with contextlib.suppress(json.JSONDecodeError):  # it was stopped while it wrote
            key, numbers = json.loads(line)
            found[key] = numbers
    return found


# -- samples -----------------------------------------------------------------------------------------------


def samples(
    data: str = "MNIST",
    data_dir: Path = Path("data"),
    runs: Path = Path("vq_vae"),
    sizes: Sizes = Sizes(),
    num_rows: int = 6,
    output: Path = Path("vq_vae_samples.png"),
    overwrite: bool = False,
) -> None:
    """Draws rows of each class: codes from the prior that is given the label, and the mean of x given them.

    Args:
        data: MNIST, or digits.
        data_dir: Folder of the data, in torchvision's layout.
        runs: Folder that keeps the trained pairs.
        sizes: Of networks and trainings.
        num_rows: Draws of each class.
        output: Where to save the picture.
        overwrite: Whether a picture that is there is replaced.
    """
    require_output(output, overwrite=overwrite)
    of = Setting.of(data, data_dir, sizes, runs)
    labels, held_out = of.data.train_labels, of.data.validation_labels
    assert labels is not None
    assert held_out is not None
    classes = int(labels.max()) + 1
    rows, others = (of.train, labels), (of.data.validation, held_out)

    def make() -> Pair:
        context = Labels(classes)
        model = ConditionalVQVAE(
            of.data.shape, of.quantizer(), of.grid, of.likelihood, context=context
        )
        return model, QuantizingEncoder(model, of.grid)

    steps = Table(["draws"], steps=3)
    model, guide = of.trained("conditional", make, rows=rows, validation=others, transform=None)
    steps.step("the pair")
    learned = of.with_prior(
        "conditional_PixelCNNPrior", (model, guide), _pixel_cnn(sizes), rows, others
    )
    steps.step("the prior")
    c = torch.arange(classes).repeat_interleave(num_rows)
    like = (of.data.test[:1].expand(len(c), *of.data.shape), c)
    drawn = {
        "uniform prior": sample(model, len(c), like=like, means=True, seed=sizes.seed),
        "PixelCNN, given the label": sample(
            learned, len(c), like=like, means=True, seed=sizes.seed
        ),
    }
    figure = Figure(figsize=(3.2 * len(drawn), 5), dpi=110, layout="constrained")
    for axes, (title, x) in zip(figure.subplots(1, len(drawn)), drawn.items(), strict=True):
        x = x[0] if isinstance(x, tuple) else x
        grid = make_grid(x / x.max(), nrow=num_rows, padding=1, pad_value=0.5)
        axes.imshow(grid.movedim(0, -1).clamp(0, 1).numpy(), interpolation="nearest")
        axes.set_title(title, fontsize=11)
        axes.set_axis_off()
    with replacing(output, overwrite=overwrite) as file:
        figure.savefig(file)
    steps.step("the picture")
    print(f"The picture is {output}: a line for each class.")


if __name__ == "__main__":
    tiny = {
        "data": "digits",
        "sizes.codes": 4,
        "sizes.dim": 2,
        "sizes.channels": 8,
        "sizes.latent_dim": 2,
        "sizes.hidden": (16,),
        "sizes.max_epochs": 1,
        "sizes.prior.channels": 8,
        "sizes.prior_epochs": 1,
        "sizes.max_rows": 60,
    }
    start(
        {"table": table, "sweep": sweep, "ablation": ablation, "samples": samples},
        quick={
            "table": {**tiny, "max_test_rows": 20, "runs": "vq_vae_quick"},
            "sweep": {
                **tiny,
                "codes": (2, 4),
                "commitments": (0.25,),
                "betas": (1.0,),
                "runs": "vq_vae_sweep_quick",
                "output": "vq_vae_sweep_quick.png",
            },
            "ablation": {**tiny, "num_seeds": 1, "results": "vq_vae_ablation_quick.jsonl"},
            "samples": {**tiny, "runs": "vq_vae_quick", "output": "vq_vae_samples_quick.png"},
        },
    )
