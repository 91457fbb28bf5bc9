"""What does an adversary buy, and what does it cost in nats? VAE, VAE_Dis, VAE/GAN and GAN with one decoder."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from autoencoder_pairs import (
    Pair,
    Rows,
    Sizes,
    picture_of_rows,
    reconstructed,
    squared_errors,
    trained,
)
from faces import frames
from progress import Table, chosen_rows, start
from torch import Tensor

from ppl_vae import classification_accuracy_score, evaluate, refit_guide
from ppl_vae.guides import MeanField
from ppl_vae.likelihoods import OptimalGaussian
from ppl_vae.models import VAE, VAEGAN, FullNormal
from ppl_vae.networks import Convolutional
from ppl_vae.objectives import GANLoss, Objective, VAEDisLoss, VAEGANLoss
from ppl_vae.runtime import replacing, require_output
from ppl_vae.stats import CrossedEstimate, Estimate
from ppl_vae.tasks import ClassificationAccuracy, NetworkClassifier, prior_per_class, sample

USUAL = Sizes(
    hidden=(256,), channels=(32, 64, 128), max_epochs=60, batch_size=64, learning_rate=3e-4
)

ROUNDS = 3
"""How often noise and guide of a fixed decoder are fitted in turn."""

SPREAD = 0.5
"""Share of the variance of the rows below which draws count as collapsed."""


@dataclass(frozen=True)
class Setting:
    """Rows and what is trained on them.

    Attributes:
        rows: The rows.
        latent_dim: Number of latents.
        sizes: Networks and trainings.
        gamma: Weight of the features in the decoder's loss, of `VAEGANLoss`; None: 1 / number of features.
        layer: The layer of the discriminator whose outputs are the features.
        batch_norm: Whether the discriminator has batch norm.
        runs: Folder that keeps the trained pairs.
    """

    rows: Rows
    latent_dim: int
    sizes: Sizes
    gamma: float | None
    layer: int
    batch_norm: bool
    runs: Path

    @property
    def network(self) -> Convolutional:
        """Of encoder and decoder; means are from 0 to 1."""
        sizes = self.sizes
        return Convolutional(sizes.channels, sizes.hidden[0], output=torch.nn.Sigmoid)

    def guide(self) -> MeanField:
        """A guide with new weights."""
        return MeanField(self.rows.shape, self.latent_dim, self.network)

    def trained(self, name: str, model: Callable[[], Any], **how: Any) -> Pair:
        """A pair of this seed, from its folder if it is there."""
        folder = self.runs / self.rows.name
        return trained(
            *(folder, f"{name}-seed={self.sizes.seed}", lambda: (model(), self.guide())),
            *(self.rows, self.sizes),
            **how,
        )

    def vae(self) -> Pair:
        """A VAE of pixels."""
        shape = self.rows.shape
        make = partial(VAE, shape, self.latent_dim, self.network, OptimalGaussian())
        return self.trained("vae", make)

    def adversarial(self, name: str, objective: Objective, features_of: str = "") -> Pair:
        """A decoder with a discriminator, which may be that of another one."""

        def make() -> VAEGAN:
            shape, network = self.rows.shape, self.network
            found = VAEGAN(
                *(shape, self.latent_dim, network),
                discriminator=replace(network, batch_norm=self.batch_norm),
                feature_layer=self.layer,
            )
            if features_of:
                other = self.gan()[0].discriminator
                found.discriminator.load_state_dict(other.state_dict())
            return found

        adam = partial(torch.optim.Adam, betas=(0.5, 0.999))
        name += f"-layer={self.layer}" + ("-batch_norm" if self.batch_norm else "")
        return self.trained(name, make, objective=objective, optimizer=adam)

    def gan(self) -> Pair:
        """A GAN, whose guide is not trained."""
        return self.adversarial("gan", GANLoss())

    def vae_dis(self) -> Pair:
        """A VAE of the features that the GAN's discriminator has."""
        return self.adversarial("vae_dis", VAEDisLoss(), features_of="gan")

    def vae_gan(self) -> Pair:
        """VAE/GAN."""
        return self.adversarial("vae_gan", VAEGANLoss(gamma=self.gamma))


MODELS: dict[str, Callable[[Setting], Pair]] = {
    "VAE": Setting.vae,
    "VAE_Dis": Setting.vae_dis,
    "VAE/GAN": Setting.vae_gan,
    "GAN": Setting.gan,
}


def main(
    data: str = "faces.npy",
    data_dir: Path = Path("data"),
    runs: Path = Path("vae_gan"),
    models: list[str] | None = None,
    seeds: int = 3,
    latent_dim: int = 32,
    gamma: float | None = None,
    layer: int = 2,
    batch_norm: bool = False,
    sizes: Sizes = USUAL,
    guide_epochs: int = 10,
    test_rows: int = 200,
    num_samples: int = 100,
    accuracy: bool = False,
    classifier_steps: int = 500,
    output: Path = Path("vae_gan.png"),
    overwrite: bool = False,
) -> None:
    """Trains four models with one decoder, and measures each in the space of the rows.

    ELBO and log p(x) are those of the decoder that was trained, whatever by: its noise and a new guide are
    fitted to it, in turn. The feature distance is |Dis_l(x) - Dis_l(x')|^2, as a share of the variance of
    Dis_l(x), for a row x and its reconstruction x', by the discriminator of a GAN of another seed, without
    batch norm, which no line was trained with. Accuracies are those of classifiers on real test rows: of ones
    that were trained on reconstructions, and of ones that were trained on draws, means of x given z from a
    normal density of the codes of each class (arXiv:1905.10887), as none of the models knows labels. The
    spread of the draws is their variance as a share of that of the rows: below a half, the line counts as
    collapsed. All seeds are printed. Rows are unreliable if their log p(x) is not to be trusted, even with
    better proposals than the guide.

    Args:
        data: A video in an `.npy` file, which is split by stretches, or a name as for `load_data`, which has a
            split.
        data_dir: Folder of the data, in torchvision's layout.
        runs: Folder that keeps the trained pairs; an interrupted training continues.
        models: Which lines, by their names; all by default.
        seeds: How many seeds.
        latent_dim: Number of latents.
        gamma: Weight of the features in the decoder's loss, of `VAEGANLoss`. What counts is gamma times the
            number of features, which is printed; None takes 1 / number of features.
        layer: The layer of the discriminator whose outputs are the features.
        batch_norm: Whether the discriminator has batch norm, with which GANs of small faces collapsed.
        sizes: Networks and trainings.
        guide_epochs: Passes over the rows for a guide of a fixed decoder, in each round.
        test_rows: Test rows for ELBO and log p(x), the first ones.
        num_samples: Importance samples per row.
        accuracy: Whether classifiers are trained on reconstructions and on draws, of data with labels.
        classifier_steps: Steps of their training.
        output: Where to save reconstructions and draws of the first seed.
        overwrite: Whether a picture that is there is replaced.
    """
    require_output(output, overwrite=overwrite)
    chosen = chosen_rows(models, MODELS)
    rows = frames(data, sizes, data_dir)
    if accuracy:
        labels_of(rows)  # before anything is trained
    of = Setting(rows, latent_dim, sizes, gamma, layer, batch_norm, runs)
    columns = ["model", "seed", "ELBO", "log p(x)", "unreliable", "squared error"]
    columns += [
        "feature distance",
        "spread of draws",
        "collapsed",
        *(["accuracy, reconstructions", "accuracy, draws"] if accuracy else []),
    ]
    shown = Table(columns, steps=len(chosen) * seeds + 1)
    shown.head()
    # The same one for all tables of these sizes.
    of_judge = replace(of, sizes=replace(sizes, seed=sizes.seed + 1000), batch_norm=False)
    judge = of_judge.gan()[0].discriminator
    features = judge.eval()(rows.test[:1].float())[1].numel()
    shown.step("the discriminator that judges")
    sheet: dict[str, Tensor] = {"test rows": rows.test[:10]}
    draws: dict[str, Tensor] = {}
    for name in chosen:
        for seed in range(sizes.seed, sizes.seed + seeds):
            setting = replace(of, sizes=replace(sizes, seed=seed))
            model, own = MODELS[name](setting)
            model, guide = fitted_to(setting, model, guide_epochs)
            # A GAN has no encoder of its own: the one that is fitted to it stands for it.
            seen = reconstructed((model, guide if name == "GAN" else own), rows.test)
            found = evaluate(
                *(model, guide, rows.test[:test_rows]),
                num_samples=num_samples,
                method="auto",
                seed=0,
                progress=False,
            )
            drawn = sample(model, 500, seed=0, means=True)
            spread = _variance(drawn) / _variance(rows.test)
            cells = [name, f"{seed}", _of(found.elbo.values), _of(found.log_likelihood.values)]
            cells += [
                f"{found.unreliable.double().mean():.1%}",
                _of(squared_errors(rows.test, seen)),
                f"{distance(judge, rows.test, seen):.3f}",
            ]
            cells += [f"{spread:.2f}", "yes" if spread < SPREAD else "no"]
            if accuracy:
                encoder = guide if name == "GAN" else own
                both = accuracies_of(rows, (model, encoder), (model, guide), classifier_steps)
                cells += [f"{100 * of.mean:.1f} ± {100 * of.standard_error:.1f}" for of in both]
            shown.row(cells)
            shown.step(f"{name}, seed {seed}")
            if seed == sizes.seed:
                sheet[name] = seen[:10]
                draws[f"{name}, drawn"] = drawn[:10]
    with replacing(output, overwrite=overwrite) as file:
        picture_of_rows(sheet | draws).savefig(file)
    gamma = 1 / features if gamma is None else gamma
    print(
        f"\n{rows.name}: {len(rows.test)} test rows (ELBO and log p(x): {min(test_rows, len(rows.test))}), "
        f"nats and squared errors per row. {sizes.max_epochs} epochs of {len(rows.train)} rows, {latent_dim} "
        f"latents. gamma = {gamma:g} for {features} features: their product is {gamma * features:.3g}. "
        f"Reconstructions and draws of the first seed are {output}."
    )


def fitted_to(of: Setting, model: Any, epochs: int) -> Pair:
    """A copy of a model with the noise that suits its decoder, and a new guide for it."""
    model = copy.deepcopy(model).eval()
    guide = of.guide()
    for left in reversed(range(ROUNDS)):
        refit_guide(
            *(model, guide, of.rows.train),
            max_epochs=epochs,
            batch_size=of.sizes.batch_size,
            seed=of.sizes.seed,
            progress=False,
        )
        if left:  # the guide comes last: it suits the noise
            z = guide.eval().encode(of.rows.train).sample()
            with torch.no_grad():
                means = torch.cat([model.decode(part).mean for part in z.split(500)])
                model.likelihood.variance.fill_((means - of.rows.train).square().mean())
    return model, guide


def distance(judge: Any, x: Tensor, seen: Tensor) -> float:
    """The squared distance of features of rows and reconstructions, over the variance of those of rows."""
    with torch.no_grad():
        real, false = (judge.eval()(part.float())[1].flatten(1) for part in (x, seen))
    return float(
        (real - false).square().sum(1).mean() / (real - real.mean(0)).square().sum(1).mean()
    )


def labels_of(rows: Rows) -> tuple[Tensor, Tensor]:
    """Labels of the training rows and of the test rows.

    Raises:
        ValueError: There are none.
    """
    if rows.train_labels is None or rows.test_labels is None:
        raise ValueError(
            f"--accuracy needs labels, and {rows.name} has none: leave it out, or choose data with labels, "
            "such as digits or MNIST"
        )
    return rows.train_labels, rows.test_labels


def accuracies_of(
    rows: Rows, pair: Pair, drawn_by: Pair, steps: int
) -> tuple[CrossedEstimate, CrossedEstimate]:
    """The accuracy on real test rows of classifiers that were trained on reconstructions, and on draws.

    Args:
        rows: The rows.
        pair: What reconstructs them.
        drawn_by: The model that draws, and the guide to whose codes of each class a normal density is fitted.
        steps: Of the training of a classifier.
    """
    labels, test_labels = labels_of(rows)
    train = rows.train, labels

    def score(
        generator: Any, reference: ClassificationAccuracy | None = None
    ) -> ClassificationAccuracy:
        return classification_accuracy_score(
            *(generator, train, (rows.test, test_labels)),
            classifier=NetworkClassifier(num_steps=steps),
            seeds=2,
            reference=reference,
            progress=False,
        )

    seen = score((reconstructed(pair, rows.train), labels))
    drawn = score(prior_per_class(*drawn_by, train, FullNormal(), means=True, seed=0), seen)
    return seen.accuracy, drawn.accuracy


def _variance(x: Tensor) -> float:
    flat = x.double().flatten(1)
    return float((flat - flat.mean(0)).square().sum(1).mean())


def _of(values: Tensor) -> str:
    return Estimate(values).numbers(".2f")


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
            "guide_epochs": 1,
            "test_rows": 10,
            "num_samples": 10,
            "classifier_steps": 5,
            "output": "vae_gan_quick.png",
        },
    )
