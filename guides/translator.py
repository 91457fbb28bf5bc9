"""The guide of a latent translation: the model's network, in the other direction."""

from __future__ import annotations

import pyro
from torch import Tensor, nn

from ppl_vae.distributions import Sentences
from ppl_vae.networks import LATENTS, ROWS, Rebuildable, SentenceNetwork


class Translator(Rebuildable, nn.Module):
    """q(z | x): the sentence z by the network of a `LatentTranslation`, which reads x and writes z.

    It has no parameters of its own: those of the network are the model's, too. The site is `z`, inside
    `pyro.plate("data", n, dim=-1)`.

    Args:
        model: The model.

    Raises:
        TypeError: The model has no such network.

    Example:
        >>> import torch
        >>> from ppl_vae.models import LatentTranslation
        >>> from ppl_vae.networks import EncoderDecoder
        >>> model = LatentTranslation((6,), words=20, network=EncoderDecoder(width=8, layers=1, heads=2))
        >>> guide = Translator(model)
        >>> guide.encode(torch.tensor([[5, 7, 1, 0, 0, 0]])).sample((3,)).shape
        torch.Size([3, 1, 6])
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        network = getattr(model, "network", None)
        length = getattr(model, "latent_length", None)
        if not isinstance(network, SentenceNetwork) or not isinstance(length, int):
            raise TypeError(
                f"Translator needs a model with a network that reads and writes two languages, such as "
                f"LatentTranslation, and {type(model).__name__} has none"
            )
        self.network = network
        self.latent_length = length

    def forward(self, x: Tensor) -> None:
        """Runs the guide on sentences `(n, T)`."""
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", self.encode(x))

    def encode(self, x: Tensor) -> Sentences:
        """q(z | x) for sentences `(*batch, T)`: batch shape `batch`."""
        return self._written(x, ROWS)

    def restore(self, noisy: Tensor) -> Sentences:
        """q(z | noisy) for latents `(*batch, latent_length)` with noise: see `SentenceDenoising`."""
        return self._written(noisy, LATENTS)

    def _written(self, source: Tensor, language: int) -> Sentences:
        rows = source.reshape(-1, source.shape[-1])
        writing = self.network.writing(LATENTS, self.network.read(rows, language))
        return Sentences(writing, self.network.words, self.latent_length, source.shape[:-1])
