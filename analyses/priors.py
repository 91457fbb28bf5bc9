"""What does the prior cost? The same decoder and guide; only p(z) is swapped, or fitted afterwards."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from progress import Table, start
from torch import Tensor
from torch.optim.lr_scheduler import CosineAnnealingLR
from torchvision.utils import make_grid

from ppl_vae import diagnose, evaluate, fit, load_data, sample
from ppl_vae.guides import MeanField
from ppl_vae.models import VAE, DiagonalNormal, FlowPrior, MixturePrior, StandardNormal, VampPrior
from ppl_vae.models.priors import Prior
from ppl_vae.networks import MLP
from ppl_vae.runtime import replacing, require_output
from ppl_vae.stats import Estimate
from ppl_vae.training import refit_prior


def main(
    data: str = "digits",
    data_dir: Path = Path("data"),
    max_epochs: int = 200,
    latent_dim: int = 8,
    hidden: tuple[int, ...] = (200, 200),
    components: int = 50,
    num_samples: int = 1000,
    max_rows: int | None = None,
    max_test_rows: int | None = None,
    output: Path = Path("priors.png"),
    overwrite: bool = False,
    seed: int = 0,
) -> None:
    """Swaps the prior of a Bernoulli VAE with a mean-field guide: log p(x), and means of p(x | z)
    for z from the prior side by side.

    Each prior is trained with its own decoder and guide, from the same start. Then priors are fitted to the
    aggregate posterior of the pair that was trained under N(0, I); that pair stays as it is.

    Args:
        data: A name that load_data knows. Gray values are compared with one half; those of MNIST are drawn
            again for each batch instead.
        data_dir: Folder of the data, in torchvision's layout.
        max_epochs: Passes over the training rows; the weights with the best held-out ELBO are kept.
        latent_dim: Number of latent dimensions.
        hidden: Widths of the encoder, and of the decoder backwards.
        components: Components of the mixtures, and pseudo-inputs of the VampPrior.
        num_samples: Importance samples per row, K.
        max_rows: Maximum number of rows per split, for a quick trial.
        max_test_rows: Number of test rows to use, the first ones.
        output: Where to save the picture of these means.
        overwrite: Whether a picture that is there is replaced.
        seed: Seed of all random numbers.
    """
    require_output(output, overwrite=overwrite)
    binarize: Any = "dynamic" if data == "MNIST" else "threshold"
    rows = load_data(data, data_dir=data_dir, binarize=binarize, max_rows=max_rows, seed=seed)
    test = rows.test[:max_test_rows]
    torch.manual_seed(seed)
    train = rows.train if rows.transform is None else rows.transform(rows.train)
    network = MLP(hidden=hidden)
    trained = partial(
        fit,
        max_epochs=max_epochs,
        learning_rate=2e-3,
        lr_scheduler=partial(CosineAnnealingLR, T_max=max_epochs),
        validation=rows.validation,
        transform=rows.transform,
        patience=max_epochs,
        seed=seed,
    )
    panels: list[tuple[str, Tensor]] = []
    found_so_far: list[Estimate] = []

    def judge(name: str, model: Any, guide: Any, seconds: str) -> None:
        found = evaluate(model, guide, test, num_samples=num_samples, seed=seed)
        seen = diagnose(model, guide, test, seed=seed)
        cells = [_nats(e) for e in (found.elbo, found.rate, found.distortion)]
        log_p = found.log_likelihood
        found_so_far.append(log_p)
        gain = Estimate(log_p.values - found_so_far[0].values)
        cells += [_nats(log_p), _nats(gain), f"{found.unreliable.double().mean():.1%}"]
        cells += [_nats(seen.mutual_information), _nats(seen.marginal_kl)]
        cells += [f"{seen.active_units} of {latent_dim}", seconds]
        table.row([name, *cells])
        table.step(name)
        title = f"{name}\nlog p(x) = {log_p.mean:.1f} ± {log_p.standard_error:.1f}"
        means = sample(model, _SHOWN, like=test, means=True, seed=seed)
        panels.append((title.replace("-", "−"), means))

    columns = ["prior", "ELBO", "rate", "distortion", f"log p(x), K = {num_samples}", "gain"]
    columns += ["unreliable", "mutual information", "marginal KL", "active", "seconds"]
    table = Table(columns, steps=7)
    table.head()
    learned: list[Prior] = [
        StandardNormal(),
        MixturePrior(components),
        VampPrior(components),
        FlowPrior(),
    ]
    plain: tuple[VAE, MeanField] | None = None
    for prior in learned:
        torch.manual_seed(seed)
        model: Any = VAE(rows.shape, latent_dim, network, prior=prior)
        torch.manual_seed(seed + 1)
        guide = MeanField(rows.shape, latent_dim, network)
        if isinstance(prior, VampPrior):
            model.prior.attach_guide(guide)
            model.prior.start_at(train)
        seconds = trained(model, guide, rows.train).seconds
        judge(type(prior).__name__, model, guide, f"{seconds:.0f}")
        plain = plain or (model, guide)
    assert plain is not None
    panels.append(("the data\n(test rows)", test[:_SHOWN]))
    for prior in (DiagonalNormal(), MixturePrior(components), FlowPrior()):
        model = refit_prior(*plain, train, prior, seed=seed)
        judge(f"{type(prior).__name__}, refitted", model, plain[1], "")
    with replacing(output, overwrite=overwrite) as file:
        _draw(panels).savefig(file)
    print(
        f"\n{len(test)} test rows; nats per row ± standard error over rows. The picture, {output}, shows "
        "means of p(x | z), with z from the prior."
    )
    print(
        "Gain: log p(x) minus that of the first line, with the error of the row-by-row difference."
    )
    print("Refitted: fitted to the codes of the first line's pair, which stays as it is.")


_SHOWN = 36  # samples in a panel


def _nats(estimate: Estimate) -> str:
    return estimate.numbers(".2f")


def _draw(panels: list[tuple[str, Tensor]]) -> Figure:
    """Draws the trained priors in the upper line; the data and the refitted priors in the lower."""
    figure = Figure(figsize=(7.2, 4.3), dpi=200, layout="constrained")
    for axes, (title, pictures) in zip(figure.subplots(2, 4).flat, panels, strict=True):
        grid = make_grid(1 - pictures, nrow=6, padding=1, pad_value=0.8)  # ink on paper
        axes.imshow(grid.permute(1, 2, 0).numpy(), interpolation="nearest")
        axes.set_title(title, fontsize=8)
        axes.set_axis_off()
    return figure


if __name__ == "__main__":
    start(
        main,
        quick={
            **{"max_epochs": 2, "hidden": (16,), "components": 3, "num_samples": 50},
            **{"max_rows": 64, "max_test_rows": 20, "output": "priors_quick.png"},
        },
    )
