"""A sentence of one language, as the translation of a latent sentence of another."""

from __future__ import annotations

from collections.abc import Sequence

import pyro
from torch import Tensor, nn

from ppl_vae.distributions import Sentences
from ppl_vae.models.rows import RowModel
from ppl_vae.networks import (
    LATENTS,
    ROWS,
    EncoderDecoder,
    filled_up,
    require_at_least,
    require_object,
    require_shape_of_sentences,
)


class LatentTranslation(RowModel):
    """z ~ p(z), a sentence by a language model, and x ~ p(x | z), its translation by a transformer.

    "We can treat the German sentence z as a latent variable in a probability model of an English sentence y"
    (McAllester, TTIC 31230): x is the English sentence. Its guide is `Translator`: the same network in the
    other direction, as it reads and writes both languages. What the two learn is said by the objective:
    `SentenceDenoising` first, then `BackTranslation`. `ELBO(num_particles=4)` has the true gradient of the
    ELBO, by the score function of several draws, which are baselines of each other.

    The sites are `z` and `x`, inside `pyro.plate("data", n, dim=-1)`; plates over samples go outside, at
    `dim=-2`. See `ppl_vae.distributions.Sentences` for the rows.

    Args:
        data_shape: Shape of one row of the data, `(T,)`: the most numbers of a sentence, with its end.
        words: Size of the vocabulary of both languages, with its special tokens.
        network: The sizes of the network; those of the language model's decoder are the same.
        latent_length: The most numbers of a latent sentence; T if None.

    Attributes:
        prior: `prior()` is p(z), of event shape `(latent_length,)`.
        network: Reads and writes the language of the rows, number 0, and that of the latents, number 1.

    Raises:
        ValueError: `data_shape` is not `(T,)`, or there are no words.

    Example:
        >>> import torch
        >>> model = LatentTranslation((6,), words=20, network=EncoderDecoder(width=8, layers=1, heads=2))
        >>> z = model.prior().sample((5,))
        >>> model.decode(z).log_prob(torch.tensor([5, 7, 1, 0, 0, 0])).shape
        torch.Size([5])
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        words: int = 4000,
        network: EncoderDecoder = EncoderDecoder(),  # frozen
        latent_length: int | None = None,
    ) -> None:
        super().__init__(data_shape)
        require_shape_of_sentences(self, self.data_shape, words)
        require_object(self, "network", network, "build_writer", "EncoderDecoder(width=64)")
        (length,) = self.data_shape
        self.words = words
        self.latent_length = length if latent_length is None else latent_length
        require_at_least(self, 2, latent_length=self.latent_length)
        self.prior = SentencePrior(network, words, self.latent_length)
        self.network = network.build(words, max(length, self.latent_length))

    def forward(self, x: Tensor) -> None:
        """Runs the model on sentences `(n, T)`, or narrower ones.

        Raises:
            ValueError: The rows are wider.
        """
        super().forward(filled_up(x, self.data_shape[0]))

    def _program(self, x: Tensor) -> None:
        z = pyro.sample("z", self.prior())
        pyro.sample("x", self.decode(z), obs=x)

    def count_words(self, x: Tensor, z: Tensor) -> None:
        """Sets the output biases of each language to the log frequencies of its words; also those of p(z).

        Call it before training. Without it, a network that has learned to restore sentences repeats those of
        the other language, too (`copied sentence` of `diagnose`).

        Args:
            x: Sentences of the rows' language, `(n, T)`.
            z: Sentences of the latents' language, `(m, S)`: no translations of x.

        Raises:
            TypeError: They are no tensors of numbers.
            ValueError: A number is not in the vocabulary.
        """
        self.network.count_words(x, ROWS, "x")
        self.network.count_words(z, LATENTS, "z")
        self.prior.network.count_words(z, 0, "z")

    def decode(self, z: Tensor) -> Sentences:
        """p(x | z) for sentences `(*batch, latent_length)`: batch shape `batch`."""
        return self._written(z, LATENTS)

    def restore(self, noisy: Tensor) -> Sentences:
        """p(x | noisy) for rows `(*batch, T)` with noise: what `SentenceDenoising` trains the network by."""
        return self._written(noisy, ROWS)

    def _written(self, source: Tensor, language: int) -> Sentences:
        rows = source.reshape(-1, source.shape[-1])
        writing = self.network.writing(ROWS, self.network.read(rows, language))
        return Sentences(writing, self.words, self.data_shape[0], source.shape[:-1])


class SentencePrior(nn.Module):
    """p(z) of a `LatentTranslation`: a language model.

    Args:
        network: The sizes of the decoder.
        words: Size of the vocabulary.
        length: The most numbers of a sentence.
    """

    def __init__(self, network: EncoderDecoder, words: int, length: int) -> None:
        super().__init__()
        self.words, self.length = words, length
        self.network = network.build_writer(words, length)

    def forward(self) -> Sentences:
        """p(z), of batch shape `()`."""
        return Sentences(self.network.writing(0), self.words, self.length)
