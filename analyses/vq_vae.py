"""What do codes cost and buy? VQ-VAEs beside a Gaussian VAE and an autoregressive model, in nats."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from kept_pairs import num_trained
from progress import Table, chosen_rows, start
from vq_vae_ablation import ablation
from vq_vae_pairs import USUAL, Pair, Setting, Sizes
from vq_vae_quantizers import quantizers
from vq_vae_samples import samples
from vq_vae_sweep import sweep

from ppl_vae import evaluate
from ppl_vae.models import IndependentCodes, MixturePrior, PixelCNNPrior
from ppl_vae.stats import Estimate


def table(
    data: str = "MNIST",
    data_dir: Path = Path("data"),
    runs: Path = Path("vq_vae"),
    sizes: Sizes = USUAL,
    max_test_rows: int | None = None,
    num_samples: int = 100,
    rows: list[str] | None = None,
) -> None:
    """One bound for all, on the same test rows: rate, distortion, ELBO, log p(x); and losses of both phases.

    Args:
        data: MNIST, or digits.
        data_dir: Folder of the data, in torchvision's layout.
        runs: Folder that keeps the trained pairs.
        sizes: Of networks and trainings.
        max_test_rows: Number of test rows to use, the first ones.
        num_samples: Importance samples per row for log p(x) of the Gaussian VAE.
        rows: The lines of the table, in this order; None: all. The others are compared to the first one.
    """
    chosen = chosen_rows(rows, PAIRS)
    of = Setting.of(data, data_dir, sizes, runs)
    test = of.data.test[:max_test_rows]
    more = f"more than the ELBO of {chosen[0]}"
    columns = ["model", "rate", "distortion", "ELBO", "log p(x)", more, "trained numbers"]
    shown = Table(columns, steps=len(chosen))
    lines, losses, baseline = [], [], None
    for name in chosen:
        model, guide, phases = PAIRS[name](of)
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
        lines.append([name, *cells, log_p, _nats(gain), f"{num_trained(model, guide):,}"])
        losses += [[name, *each] for each in phases]
        shown.step(name)
    shown.head()
    for line in lines:
        shown.row(line)
    print(
        f"\n{len(test)} test rows of {data}, nats per row, means and standard errors over rows.\n"
    )
    second = Table(["model", "phase", "training rows", "held-out rows", "difference"], steps=1)
    second.head()
    for row in losses:
        second.row(row)
    rows_of_prior = min(sizes.prior_rows, len(of.data.train))
    print(
        "\nPhase I: the distortion. Phase II: the rate of the codes; the epoch with the least held-out rate is "
        f"kept, so that the difference is a little too small. {len(of.data.train)} training rows, "
        f"{sizes.max_epochs} epochs; a prior that learns by steps sees {rows_of_prior} of them, in at most "
        f"{sizes.prior_epochs} epochs. Networks of codes with {sizes.channels} channels, others with layers of "
        f"{', '.join(map(str, sizes.hidden))}."
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
        {
            "table": table,
            "quantizers": quantizers,
            "sweep": sweep,
            "ablation": ablation,
            "samples": samples,
        },
        quick={
            "table": {**tiny, "max_test_rows": 20, "runs": "vq_vae_quick"},
            "quantizers": {**tiny, "num_seeds": 1, "runs": "vq_vae_quantizers_quick"},
            "sweep": {
                **tiny,
                "codes": (2, 4),
                "commitments": (0.25,),
                "betas": (1.0,),
                "vae_epochs": 1,
                "runs": "vq_vae_sweep_quick",
                "output": "vq_vae_sweep_quick.png",
            },
            "ablation": {**tiny, "num_seeds": 1, "results": "vq_vae_ablation_quick.jsonl"},
            "samples": {**tiny, "runs": "vq_vae_quick", "output": "vq_vae_samples_quick.png"},
        },
    )
