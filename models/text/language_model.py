"""A model of sentences without a latent."""

from __future__ import annotations

from collections.abc import Sequence

import pyro
from torch import Tensor

from ppl_vae.distributions import Sentences
from ppl_vae.models.rows import RowModel
from ppl_vae.networks import (
    EncoderDecoder,
    filled_up,
    require_object,
    require_shape_of_sentences,
)


class LanguageModel(RowModel):
    """p(x) = prod_t p(x_t | x_1, ..., x_{t-1}) of sentences, by a causal transformer.

    It has no latent: its guide is `NoLatent`, and its ELBO is log p(x). It is what the log
    p(x) of a `LatentTranslation` is compared with. The site is `x`, inside `pyro.plate("data", n, dim=-1)`. See
    `ppl_vae.distributions.Sentences` for the rows.

    Args:
        data_shape: Shape of one row of the data, `(T,)`: the most numbers of a sentence, with its end.
        words: Size of the vocabulary, with its special tokens.
        network: The sizes of the decoder.

    Raises:
        ValueError: `data_shape` is not `(T,)`, or there are no words.

    Example:
        >>> import torch
        >>> model = LanguageModel((6,), words=20, network=EncoderDecoder(width=8, layers=1, heads=2))
        >>> model.log_evidence(torch.tensor([[5, 7, 1, 0, 0, 0]])).shape
        torch.Size([1])
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        words: int = 4000,
        network: EncoderDecoder = EncoderDecoder(),  # frozen
    ) -> None:
        super().__init__(data_shape)
        require_shape_of_sentences(self, self.data_shape, words)
        require_object(self, "network", network, "build_writer", "EncoderDecoder(width=64)")
        self.words = words
        self.network = network.build_writer(words, self.data_shape[0])

    def forward(self, x: Tensor) -> None:
        """Runs the model on sentences `(n, T)`, or narrower ones.

        Raises:
            ValueError: The rows are wider.
        """
        super().forward(filled_up(x, self.data_shape[0]))

    def _program(self, x: Tensor) -> None:
        pyro.sample("x", self.density(), obs=x)

    def count_words(self, x: Tensor) -> None:
        """Sets the output bias to the log frequencies of the words of sentences, `(n, T)`, before training.

        Raises:
            TypeError: They are no tensor of numbers.
            ValueError: A number is not in the vocabulary.
        """
        self.network.count_words(x, 0, "x")

    def density(self) -> Sentences:
        """p(x), of batch shape `()`."""
        return Sentences(self.network.writing(0), self.words, self.data_shape[0])

    def log_evidence(self, x: Tensor) -> Tensor:
        """log p(x) of sentences `(n, T)`, in nats: `(n,)`."""
        return self.density().log_prob(filled_up(x, self.data_shape[0]))
