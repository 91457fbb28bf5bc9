"""Four models with one decoder, of the same sizes: VAE, VAE_Dis, VAE/GAN and GAN."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from autoencoder_pairs import Pair, Rows, Sizes, trained

from ppl_vae import refit_guide
from ppl_vae.guides import MeanField
from ppl_vae.likelihoods import OptimalGaussian
from ppl_vae.models import VAE, VAEGAN
from ppl_vae.networks import Convolutional
from ppl_vae.objectives import GANLoss, Objective, VAEDisLoss, VAEGANLoss

USUAL = Sizes(
    hidden=(256,), channels=(32, 64, 128), max_epochs=60, batch_size=64, learning_rate=3e-4
)


@dataclass(frozen=True)
class Setting:
    """Rows and what is trained on them.

    Attributes:
        rows: The rows.
        latent_dim: Number of latents.
        sizes: Networks and trainings.
        gamma: Weight of the features in the decoder's loss, of `VAEGANLoss`; None: 1 / number of features.
        feature_sigma: Noise of the features, of `VAEGANLoss` and `VAEDisLoss`; None: the one that is found.
        layer: The layer of the discriminator whose outputs are the features.
        batch_norm: Whether the discriminator has batch norm.
        runs: Folder that keeps the trained pairs.
    """

    rows: Rows
    latent_dim: int
    sizes: Sizes
    gamma: float | None
    feature_sigma: float | None
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
        return self.adversarial(
            "vae_dis", VAEDisLoss(feature_sigma=self.feature_sigma), features_of="gan"
        )

    def vae_gan(self) -> Pair:
        """VAE/GAN."""
        return self.adversarial(
            "vae_gan", VAEGANLoss(gamma=self.gamma, feature_sigma=self.feature_sigma)
        )


MODELS: dict[str, Callable[[Setting], Pair]] = {
    "VAE": Setting.vae,
    "VAE_Dis": Setting.vae_dis,
    "VAE/GAN": Setting.vae_gan,
    "GAN": Setting.gan,
}


def fitted_to(of: Setting, model: Any, epochs: int) -> Pair:
    """A copy of a model with the noise that suits its decoder, and a new guide for it."""
    model, guide = copy.deepcopy(model).eval(), of.guide()
    refit_guide(
        *(model, guide, of.rows.train),
        fit_noise=True,
        max_epochs=epochs,
        batch_size=of.sizes.batch_size,
        seed=of.sizes.seed,
        progress=False,
    )
    return model, guide
