"""What does an adversary buy, and what does it cost in nats? VAE, VAE_Dis, VAE/GAN and GAN with one decoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from autoencoder_pairs import Sizes, picture_of_rows, spread_over
from faces import frames, is_video, over_stretches
from progress import Table, chosen_rows, start
from torch import Tensor
from vae_gan_measures import SHOWN, Measured, Measures, labels_of
from vae_gan_pairs import MODELS, USUAL, Setting

from ppl_vae.runtime import replacing, require_output
from ppl_vae.stats import Estimate

UNRELIABLE = 0.1
"""Share of rows from which on it is said that log p(x) is not known."""

Over = Callable[..., Estimate]
"""The mean over test rows, with the standard error over what is independent of one another."""


def main(
    data: str = "faces.npy",
    data_dir: Path = Path("data"),
    runs: Path = Path("vae_gan"),
    models: list[str] | None = None,
    seeds: int = 3,
    latent_dim: int = 32,
    gamma: float | None = None,
    feature_sigma: float | None = None,
    layer: int = 2,
    batch_norm: bool = False,
    sizes: Sizes = USUAL,
    guide_epochs: int = 30,
    test_rows: int = 200,
    num_samples: int = 100,
    accuracy: bool = False,
    classifier_steps: int = 500,
    output: Path = Path("vae_gan.png"),
    overwrite: bool = False,
) -> None:
    """Trains four models with one decoder, and measures each in the space of the rows.

    ELBO and log p(x) are those of the decoder that was trained, whatever by: its noise and a new guide are
    fitted to it, in turn. *Minus VAE* is log p(x) less that of the VAE of the same seed, row by row: what an
    adversary costs. The feature distance is |Dis_l(x) - Dis_l(x')|^2, as a share of the variance of Dis_l(x),
    for a row x and its reconstruction x', by the discriminator of a GAN of another seed, without batch norm,
    which no line was trained with. The spread of 500 draws is their variance as a share of that of the rows;
    *distinct* is how many different training rows are the nearest ones of a draw, as a share of what could be.
    A line counts as collapsed with a spread below a half, or less than a tenth of different rows. Accuracies
    are those of classifiers on real test rows: of ones that were trained on reconstructions, and of ones that
    were trained on draws, means of x given z from a normal density of the codes of each class
    (arXiv:1905.10887), as none of the models knows labels. Rows are unreliable if their log p(x) is not to be
    trusted, even with better proposals than the guide. All seeds are printed, and means over them.

    Args:
        data: A video in an `.npy` file, which is split by stretches, or a name as for `load_data`, which has a
            split.
        data_dir: Folder of the data, in torchvision's layout.
        runs: Folder that keeps trained pairs and what was measured; an interrupted training continues.
        models: Which lines, by their names; all by default.
        seeds: How many seeds.
        latent_dim: Number of latents.
        gamma: Weight of the features in the decoder's loss, of `VAEGANLoss`. What counts is gamma times the
            number of features, which is printed; None takes 1 / number of features.
        feature_sigma: Noise of the features, of `VAEGANLoss` and `VAEDisLoss`; None takes what is found.
        layer: The layer of the discriminator whose outputs are the features.
        batch_norm: Whether the discriminator has batch norm, with which GANs of small faces collapsed.
        sizes: Networks and trainings.
        guide_epochs: Passes over the rows for the noise and a guide of a fixed decoder.
        test_rows: Test rows for ELBO and log p(x), at equal distances.
        num_samples: Importance samples per row.
        accuracy: Whether classifiers are trained on reconstructions and on draws, of data with labels.
        classifier_steps: Steps of their training.
        output: Where to save reconstructions and draws of the first seed.
        overwrite: Whether a picture that is there is replaced.
    """
    require_output(output, overwrite=overwrite)
    chosen = chosen_rows(models, MODELS, "--models")
    rows = frames(data, sizes, data_dir)
    if accuracy:
        labels_of(rows)  # before anything is trained
    of = Setting(rows, latent_dim, sizes, gamma, feature_sigma, layer, batch_norm, runs)
    columns = ["model", "seed", "ELBO", "log p(x)", "minus VAE", "unreliable", "squared error"]
    columns += ["feature distance", "spread of draws", "distinct", "collapsed"]
    columns += ["accuracy, reconstructions", "accuracy, draws"] if accuracy else []
    shown = Table(columns, steps=len(chosen) * seeds + 1)
    shown.head()
    # The same one for all tables of these sizes.
    of_judge = replace(of, sizes=replace(sizes, seed=sizes.seed + 1000), batch_norm=False)
    judge = of_judge.gan()[0].discriminator
    features = judge.eval()(rows.test[:1].float())[1].numel()
    shown.step("the discriminator that judges")
    measures = Measures(judge, guide_epochs, test_rows, num_samples, classifier_steps, accuracy)
    over = partial(over_stretches, data=data)
    found: dict[tuple[str, int], Measured] = {}
    for name in sorted(chosen, key=lambda name: name != "VAE"):  # the others are compared with it
        for seed in range(sizes.seed, sizes.seed + seeds):
            each = measures.of(name, replace(of, sizes=replace(sizes, seed=seed)))
            found[name, seed] = each
            nats = (over(values, at=each.at).numbers(".2f") for values in (each.elbo, each.log_p))
            cells = [name, f"{seed}", *nats]
            cells += [
                _minus_vae(over, found, name, seed),
                f"{each.unreliable.double().mean():.1%}",
                over(each.errors).numbers(".2f"),
                f"{each.distance:.3f}",
                f"{each.spread:.2f}",
                f"{each.distinct:.2f}",
                "yes" if each.collapsed else "no",
            ]
            shares = (100 * each.accuracy).tolist()
            cells += [f"{shares[i]:.1f} ± {shares[i + 1]:.1f}" for i in range(0, len(shares), 2)]
            shown.row(cells)
            shown.step(f"{name}, seed {seed}")
    _over_seeds(found)
    print(_unreliable(found), end="")
    sheet: dict[str, Tensor] = {"test rows": rows.test[spread_over(len(rows.test), SHOWN)]}
    sheet |= {name: found[name, sizes.seed].seen for name in chosen}
    sheet |= {f"{name}, drawn": found[name, sizes.seed].drawn for name in chosen}
    with replacing(output, overwrite=overwrite) as file:
        picture_of_rows(sheet).savefig(file)
    gamma = 1 / features if gamma is None else gamma
    print(
        f"\n{rows.name}: {len(rows.test)} test rows (ELBO and log p(x): {min(test_rows, len(rows.test))}), "
        f"nats and squared errors per row; standard errors over "
        f"{'stretches of the video' if is_video(data) else 'rows'}, and over seeds. "
        f"{sizes.max_epochs} epochs of {len(rows.train)} rows, {latent_dim} latents. gamma = {gamma:g} for "
        f"{features} features: their product is {gamma * features:.3g}. Reconstructions and draws of the first "
        f"seed are {output}."
    )


def _minus_vae(over: Over, found: dict[tuple[str, int], Measured], name: str, seed: int) -> str:
    """What log p(x) is above that of the VAE of the same seed, row by row."""
    if name == "VAE" or ("VAE", seed) not in found:
        return ""
    each = found[name, seed]
    return over(each.log_p - found["VAE", seed].log_p, at=each.at).numbers("+.2f")


def _over_seeds(found: dict[tuple[str, int], Measured]) -> None:
    """Prints means over seeds with their standard errors, and how many collapsed."""
    names = [*dict.fromkeys(name for name, _ in found)]
    accuracy = any(len(each.accuracy) for each in found.values())
    columns = ["model", "log p(x)", "minus VAE", "squared error", "feature distance"]
    columns += ["accuracy, reconstructions", "accuracy, draws"] if accuracy else []
    print()
    shown = Table([*columns, "spread of draws", "distinct", "collapsed"], steps=1)
    shown.head()
    for name in names:
        of = {seed: each for (of_name, seed), each in found.items() if of_name == name}

        def over(values: list[Tensor], form: str = ".2f") -> str:
            return Estimate(torch.stack([value.double().mean() for value in values])).numbers(form)

        paired = name != "VAE" and "VAE" in names
        costs = [each.log_p - found["VAE", seed].log_p for seed, each in of.items() if paired]
        every = [*of.values()]
        cells = [name, over([each.log_p for each in every]), over(costs, "+.2f") if costs else ""]
        cells += [
            over([each.errors for each in every]),
            over([each.distance for each in every], ".3f"),
        ]
        for place in (0, 2) if accuracy else ():
            cells.append(over([100 * each.accuracy[place] for each in every], ".1f"))
        cells += [over([each.spread for each in every]), over([each.distinct for each in every])]
        shown.row([*cells, f"{sum(each.collapsed for each in every)} of {len(every)}"])


def _unreliable(found: dict[tuple[str, int], Measured]) -> str:
    """Of which models log p(x) is known from below only, in words; empty if of none."""
    shares = {
        name: torch.cat([each.unreliable for (of, _), each in found.items() if of == name])
        for name, _ in found
    }
    told = {
        name: f"{name} ({share.double().mean():.0%} of the rows)"
        for name, share in shares.items()
        if share.double().mean() > UNRELIABLE
    }
    if not told:
        return ""
    which = ", ".join(told.values())
    return (
        f"\nThese log p(x) are not to be trusted, and are lower bounds at best: {which}. So is what they are "
        "above or below the VAE: compare ELBO and squared error, or give more num_samples.\n"
    )


if __name__ == "__main__":
    start(
        main,
        quick={
            "data": "digits",
            "runs": "vae_gan_quick",
            "seeds": 1,
            "latent_dim": 2,
            "sizes.hidden": (16,),
            "sizes.channels": (4, 8),
            "sizes.max_epochs": 1,
            "sizes.max_rows": 60,
            "guide_epochs": 2,
            "test_rows": 10,
            "num_samples": 10,
            "classifier_steps": 5,
            "output": "vae_gan_quick.png",
        },
    )
