"""A VAE whose decoder is trained against a discriminator."""

from __future__ import annotations

from collections.abc import Sequence

from ppl_vae.likelihoods import Likelihood, OptimalGaussian
from ppl_vae.models.adversarial.discriminator import Discriminator
from ppl_vae.models.deep.latent_decoder import LatentDecoder
from ppl_vae.models.priors.base import Prior
from ppl_vae.models.priors.normal import StandardNormal
from ppl_vae.networks import MLP, Convolutional, Network, require_object


class VAEGAN(LatentDecoder):
    """A `VAE` with a discriminator beside it, for VAE/GAN, a GAN alone, and VAE_Dis.

        z ~ p(z),    x ~ p(x | decoder(z)),    D(x) = sigmoid(logit), Dis_l(x) = features

    The program is that of a `VAE`, in the space of the rows: the discriminator is no part of p(x, z). So
    `evaluate`, `diagnose` and all others say of the same decoder what its log p(x) is, whatever it was trained
    with ("Autoencoding beyond pixels using a learned similarity metric", arXiv:1512.09300):

    - `VAEGANLoss`, which stands for the default objective here (`default_objective`): VAE/GAN;
    - `GANLoss`: a GAN; guide and noise are fitted afterwards, by `refit_guide(..., fit_noise=True)`;
    - `VAEDisLoss`: VAE_Dis, with the features of a GAN's discriminator:
      `model.discriminator.load_state_dict(gan.discriminator.state_dict())`, on the command line
      `--start_from RUN --start_parts model.discriminator`.

    The VAE to compare them with is `VAE(..., likelihood=OptimalGaussian())`.

    `model.discriminator` maps rows `(n, *data_shape)` to logits `(n,)` and features `(n, ...)`; `fit` logs its
    `accuracy_real` and `accuracy_false`, as `Discriminator` says. What it sees of the decoder is the mean of
    p(x | z). The noise around it is found from the rows (`OptimalGaussian`), unless another likelihood is
    given.

    Args:
        data_shape: Shape of one row of the data.
        latent_dim: Number of latent dimensions.
        network: What builds the decoder.
        likelihood: p(x | features), of a mean; `OptimalGaussian()` if none is given.
        prior: What p(z) is built from; `StandardNormal()` if none is given.
        discriminator: What builds the trunk of the discriminator: `Convolutional(batch_norm=False)` is for
            pictures, `MLP` for any rows; the default takes what suits their shape. With batch norm
            in D, GANs of small faces made the same picture of every z in our trials.
        feature_layer: The hidden layer of it whose outputs are the features Dis_l, counted from 1; None takes
            the last one.

    Attributes:
        prior: The module that was built from the argument: `prior()` is p(z), of event shape `(latent_dim,)`.

    Raises:
        TypeError: An argument is not what it must be.
        ValueError: `latent_dim` is not positive, or there is no such layer.

    Example:
        >>> import torch
        >>> network = Convolutional((8, 16), hidden=32)
        >>> judge = Convolutional((8, 16), hidden=32, batch_norm=False)
        >>> model = VAEGAN((1, 8, 8), 2, network, discriminator=judge, feature_layer=2)
        >>> logits, features = model.discriminator(torch.zeros(5, 1, 8, 8))
        >>> logits.shape, features.shape
        (torch.Size([5]), torch.Size([5, 16, 2, 2]))
    """

    default_objective = "VAEGANLoss"
    """What `ELBO`, the default, becomes for this model."""

    likelihood_of_data = False
    """The command line leaves the likelihood to this class, and does not look for the one of the data."""

    def __init__(
        self,
        data_shape: Sequence[int],
        latent_dim: int = 10,
        network: Network = MLP(),  # frozen
        likelihood: Likelihood | None = None,
        prior: Prior | None = None,
        discriminator: Network | None = None,
        feature_layer: int | None = None,
    ) -> None:
        super().__init__(
            data_shape,
            latent_dim,
            network,
            OptimalGaussian() if likelihood is None else likelihood,
            StandardNormal() if prior is None else prior,
        )
        if discriminator is None:
            pictures = len(self.data_shape) > 1
            discriminator = Convolutional(batch_norm=False) if pictures else MLP()
        require_object(self, "discriminator", discriminator, "encoder", "Convolutional()")
        self.discriminator = Discriminator(discriminator, self.data_shape, feature_layer)
