"""Draws by class: codes from a prior that is given the label."""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib.figure import Figure
from progress import Table
from torchvision.utils import make_grid
from vq_vae_pairs import USUAL, Pair, Setting, Sizes

from ppl_vae import sample
from ppl_vae.guides import QuantizingEncoder
from ppl_vae.models import ConditionalVQVAE
from ppl_vae.networks import Labels
from ppl_vae.runtime import replacing, require_output


def samples(
    data: str = "MNIST",
    data_dir: Path = Path("data"),
    runs: Path = Path("vq_vae"),
    sizes: Sizes = USUAL,
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
    learned = of.with_prior("conditional_PixelCNNPrior", (model, guide), sizes.prior, rows, others)
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
