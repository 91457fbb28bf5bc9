"""Networks that read sentences and write sentences, in several languages."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout

from ppl_vae.networks.arguments import (
    require_at_least,
    require_at_least_one,
    require_numbers,
    require_room,
)
from ppl_vae.networks.attention import AttentionBlock, Packed
from ppl_vae.networks.base import full_precision
from ppl_vae.runtime import BLANK, FIRST_WORD, PAD, as_words, trimmed

ROWS, LATENTS = 0, 1
"""The languages of the rows and of the latents of a pair, by their numbers in a network of two."""

_NEVER = -1e9
"""Added to the logit of what is never written: its probability is 0, and so is its gradient."""


def filled_up(rows: Tensor, length: int) -> Tensor:
    """Rows of sentences with more columns of PAD; wider ones, and what are no rows, stay as they are.

    Args:
        rows: `(n, S)`.
        length: How wide they are to be.

    Example:
        >>> import torch
        >>> filled_up(torch.tensor([[5, 1]]), 4)
        tensor([[5, 1, 0, 0]])
    """
    missing = length - rows.shape[-1] if rows.dim() == 2 else 0
    return torch.nn.functional.pad(rows, (0, missing), value=PAD) if missing > 0 else rows


def require_shape_of_sentences(owner: object, data_shape: tuple[int, ...], words: int) -> None:
    """Raises an error for what is no shape of a sentence, or no vocabulary.

    Args:
        owner: The object whose arguments they are.
        data_shape: The shape of a row.
        words: Size of the vocabulary.

    Raises:
        TypeError: `words` is no whole number.
        ValueError: It is not `(T,)` with T of at least 2, or there are no words.
    """
    if len(data_shape) != 1 or data_shape[0] < 2:
        raise ValueError(
            f"{type(owner).__name__}.data_shape must be (T,), the most numbers of a sentence with its end, at "
            f"least 2, got {data_shape}"
        )
    require_at_least(owner, FIRST_WORD + 1, words=words)


@dataclass(frozen=True)
class EncoderDecoder:
    """A small transformer that reads a sentence in one language and writes one in another: its sizes.

    The same encoder reads all languages, and the same decoder writes all of them. What is common to them is the
    vocabulary, whose vectors are at the entrance and, transposed, at the exit ("Using the Output Embedding to
    Improve Language Models", arXiv:1608.05859). A language has a vector, which is added to each word, and a
    bias for each word. Places have the sines of "Attention Is All You Need" (arXiv:1706.03762). See
    `AttentionBlock` for the layers.

    Args:
        width: Size of the vectors; a multiple of `heads`, and even.
        layers: Number of layers of the encoder, and of the decoder.
        heads: Heads of the attention.
        dropout: Share of the numbers that are set to 0 in training mode, not in the attention.

    Raises:
        TypeError: An argument is not what it must be.
        ValueError: A number is out of its range.

    Example:
        >>> network = EncoderDecoder(width=16, layers=1, heads=2).build(words=30, length=8)
        >>> source = torch.tensor([[7, 9, 1, 0], [5, 1, 0, 0]])
        >>> writing = network.writing(1, network.read(source, 0))
        >>> writing.states(torch.tensor([[8, 8, 1], [8, 1, 0]])).shape
        torch.Size([2, 3, 16])
    """

    width: int = 128
    layers: int = 2
    heads: int = 4
    dropout: float = 0.1

    def __post_init__(self) -> None:
        require_at_least_one(self, width=self.width, layers=self.layers, heads=self.heads)
        require_numbers(self, dropout=self.dropout)
        if not 0 <= self.dropout < 1:
            raise ValueError(
                f"EncoderDecoder.dropout must be at least 0 and below 1, got {self.dropout}"
            )
        if self.width % self.heads or self.width % 2:
            raise ValueError(
                f"EncoderDecoder.width must be even and a multiple of heads = {self.heads}, got {self.width}"
            )

    def build(self, words: int, length: int, languages: int = 2) -> SentenceNetwork:
        """A network that reads and writes.

        Args:
            words: Size of the vocabulary, with its special tokens.
            length: Most numbers of a sentence, with its end.
            languages: How many languages there are.

        Raises:
            ValueError: There are no words, or they do not fit into memory.
        """
        return SentenceNetwork(self, words, length, languages, reads=True)

    def build_writer(self, words: int, length: int) -> SentenceNetwork:
        """The decoder alone, for a language model: as `build`, but it reads nothing."""
        return SentenceNetwork(self, words, length, languages=1, reads=False)


class SentenceNetwork(nn.Module):
    """What an `EncoderDecoder` builds: see there.

    Args:
        of: Its sizes.
        words: Size of the vocabulary.
        length: Most numbers of a sentence, with its end.
        languages: How many languages there are.
        reads: Whether it reads, too.
    """

    places: Tensor
    never: Tensor

    def __init__(
        self, of: EncoderDecoder, words: int, length: int, languages: int, reads: bool
    ) -> None:
        super().__init__()
        require_at_least_one(of, words=words - FIRST_WORD, length=length, languages=languages)
        require_room(of, "choose a smaller width or a smaller vocabulary", words, of.width)
        self.words, self.length, self.dropout = words, length, of.dropout
        self.embedding = nn.Embedding(words, of.width)
        self.languages = nn.Parameter(torch.randn(languages, of.width))
        self.bias = nn.Parameter(torch.zeros(languages, words))
        nn.init.normal_(self.embedding.weight, std=of.width**-0.5)

        def blocks(reads: bool) -> nn.ModuleList:
            made = (
                AttentionBlock(of.width, of.heads, of.dropout, reads=reads)
                for _ in range(of.layers)
            )
            return nn.ModuleList(made)

        self.encoder = blocks(False) if reads else None
        self.encoded = nn.LayerNorm(of.width) if reads else None
        self.decoder = blocks(reads)
        self.decoded = nn.LayerNorm(of.width)
        self.register_buffer("places", _sines(length + 1, of.width), persistent=False)
        never = torch.zeros(words)
        never[[PAD, BLANK]] = _NEVER
        self.register_buffer("never", never, persistent=False)

    @torch.no_grad()
    def count_words(self, rows: Tensor, language: int, name: str = "rows") -> None:
        """Sets the output bias of a language to the log frequencies of its words.

        Words that do not occur count as 0.01. Without this, a network that has learned to restore sentences
        repeats those of the other language, too, as training makes words unlikely slowly.

        Args:
            rows: Sentences, `(n, T)`.
            language: The number of their language.
            name: What they are, for messages.

        Raises:
            TypeError: They are no tensor of numbers.
            ValueError: A number is not in the vocabulary.
        """
        rows = as_words(name, rows, self.words)
        counts = rows[rows != PAD].bincount(minlength=self.words)
        shares = (counts + 0.01) / (counts + 0.01).sum()
        self.bias[language] = shares.log().to(self.bias)

    def read(self, rows: Tensor, language: int) -> Memory:
        """What the encoder makes of sentences.

        Args:
            rows: `(n, S)`.
            language: The number of their language.

        Raises:
            ValueError: A sentence is too long, or a number is not in the vocabulary.
        """
        assert self.encoder is not None
        assert self.encoded is not None
        rows = trimmed(as_words("sentences that the network reads", rows, self.words))
        if rows.shape[1] > self.length:
            raise ValueError(
                f"sentences that the network reads must have at most {self.length:,} tokens, including the "
                f"end, got one of {rows.shape[1]:,}: leave it out, or cut it, as "
                f"Vocabulary.rows(..., max_length={self.length}, too_long='cut') does"
            )
        packed = Packed.of(rows != PAD)
        there = packed.there[:, None, None]
        x = packed.steps(self.vectors(rows, language))
        x = dropout(x, self.dropout, self.training)
        for block in self.encoder:
            x = block(x, causal=False, seen=there, packed=packed)
        states = self.encoded(x)
        layers = [block.remembered(states, packed) for block in _blocks(self.decoder)]
        return Memory(layers, there)

    def writing(self, language: int, memory: Memory | None = None) -> Writing:
        """What writes sentences of a language: translations of what is in a memory, if there is one."""
        return Writing(self, language, memory)

    def vectors(self, rows: Tensor, language: int) -> Tensor:
        """The vectors of words at the places from 1 on, `(n, S, width)`."""
        width = self.embedding.embedding_dim
        x = self.embedding(rows) * math.sqrt(width) + self.languages[language]
        found: Tensor = x + self.places[1 : rows.shape[1] + 1]
        return found


@dataclass(frozen=True)
class Memory:
    """What the decoder reads of sentences.

    Attributes:
        layers: Keys and values for each of its layers, `(2, n, heads, S, width / heads)`.
        there: Which of the S steps are there, `(n, 1, 1, S)`.
    """

    layers: list[Tensor]
    there: Tensor

    def of_rows(self, index: Tensor) -> Memory:
        """Those of some rows, in this order."""
        index = index.to(self.there.device)
        return Memory(
            [layer.index_select(1, index) for layer in self.layers],
            self.there.index_select(0, index),
        )


@dataclass(frozen=True)
class Writing:
    """The decoder, as it writes in one language, with or without something to translate.

    Attributes:
        network: The network.
        language: The number of the language.
        memory: What it reads; None for nothing.
        past: Keys and values of the words so far for each layer, once it has begun.
        hides: Whether there is dropout in training mode.
    """

    network: SentenceNetwork
    language: int
    memory: Memory | None = None
    past: list[Tensor] = field(default_factory=list)
    hides: bool = True

    def as_drawn(self) -> Writing:
        """The same without dropout, as `step` has none."""
        return replace(self, hides=False)

    def of_rows(self, index: Tensor) -> Writing:
        """The same for some of the rows, in this order; a row may come several times."""
        memory = None if self.memory is None else self.memory.of_rows(index)
        index = index.to(self.network.places.device)
        past = [layer.index_select(1, index) for layer in self.past]
        return replace(self, memory=memory, past=past)

    def states(self, rows: Tensor) -> Tensor:
        """The state ahead of each word, which depends on those before it: `(n, T, width)` for rows `(n, T)`.

        Zeros ahead of `PAD`: what fills up rows is not computed.
        """
        network = self.network
        hides = self.hides and network.training
        before = network.vectors(rows[:, :-1], self.language)
        start = network.languages[self.language] + network.places[0]
        x = torch.cat([start.expand(len(rows), 1, -1), before], 1)
        packed = Packed.of(rows != PAD)
        x = dropout(packed.steps(x), network.dropout, hides)
        for block, memory in self._layers():
            x = block(x, memory=memory, there=self._there, hides=hides, packed=packed)
        return packed.rows(network.decoded(x))

    def logits(self, states: Tensor) -> Tensor:
        """The logits of all words, `(*, words)`, for states `(*, width)`."""
        network = self.network
        bias = network.bias[self.language] + network.never
        return full_precision(torch.nn.functional.linear(states, network.embedding.weight, bias))

    def begun(self, n: int) -> Writing:
        """The same, before the first word of n rows."""
        network = self.network
        past = [block.past(n, network.length) for block, _ in self._layers()]
        return replace(self, past=past)

    def step(self, words: Tensor | None, i: int) -> Tensor:
        """The logits of word i, `(n, words)`, after the word before, `(n,)`, has been added to the past.

        Without gradients, and without dropout but that in the memory.
        """
        network = self.network
        with torch.no_grad():
            if words is None:
                x = network.languages[self.language] + network.places[0]
                x = x.expand(self.past[0].shape[1], -1)
            else:
                width = network.embedding.embedding_dim
                x = network.embedding(words) * math.sqrt(width)
                x = x + network.languages[self.language] + network.places[i]
            for (block, memory), past in zip(self._layers(), self.past, strict=True):
                x = block.step(x, past, i, memory, self._there)
            return self.logits(network.decoded(x))

    @property
    def _there(self) -> Tensor | None:
        return None if self.memory is None else self.memory.there

    def _layers(self) -> list[tuple[AttentionBlock, Tensor | None]]:
        blocks = _blocks(self.network.decoder)
        memories = [None] * len(blocks) if self.memory is None else self.memory.layers
        return list(zip(blocks, memories, strict=True))


def _blocks(layers: nn.ModuleList) -> list[AttentionBlock]:
    return [block for block in layers if isinstance(block, AttentionBlock)]


def _sines(length: int, width: int) -> Tensor:
    """Vectors of places, `(length, width)`: sines and cosines of wavelengths from 2 pi to 20,000 pi."""
    at = torch.arange(length).unsqueeze(1)
    rates = torch.exp(-math.log(10_000.0) * torch.arange(0, width, 2) / width)
    return torch.stack([torch.sin(at * rates), torch.cos(at * rates)], -1).flatten(1)
