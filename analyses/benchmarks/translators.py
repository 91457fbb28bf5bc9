"""The ways to learn to translate that `translation.py` times, each in a process of its own.

`python translators.py NAME SETTINGS`, with `Settings` as JSON. All begin with the same weights, and print
-log p(x | x) of the first rows, in nats per row. Then they read numbers of steps, and print the seconds of one.
A step has four losses, each with its own gradient and step of Adam: both directions of back-translation by the
likeliest words, and denoising in both languages. Batches and noise are those of the library in all of them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import torch
from colorists import Turns
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, linear

from ppl_vae import fit
from ppl_vae.data import Buckets, Disguise, Vocabulary, invented_sentences, read_sentences
from ppl_vae.guides import Translator
from ppl_vae.models import LatentTranslation
from ppl_vae.networks import LATENTS, ROWS, EncoderDecoder, SentenceNetwork, WordNoise
from ppl_vae.objectives import BackTranslation, SentenceDenoising, Together
from ppl_vae.runtime import END, PAD, trimmed

LEARNING_RATE = 1e-3


@dataclass(frozen=True)
class Settings:
    """What is timed.

    Attributes:
        data: A folder with train.en and train.de; "" for sentences of a small grammar and their disguise.
        size: Sentences of each language.
        vocabulary: Size of the vocabulary.
        width: Of the transformer's vectors.
        layers: Of encoder and decoder.
        heads: Of the attention.
        dropout: Share of the numbers that are set to 0.
        batch_size: Sentences of a batch.
        threads: Threads of torch.
        device: `cpu` or `cuda`.
    """

    data: str
    size: int
    vocabulary: int
    width: int
    layers: int
    heads: int
    dropout: float
    batch_size: int
    threads: int
    device: str

    @cached_property
    def texts(self) -> tuple[Vocabulary, Tensor, Tensor]:
        """The vocabulary, and rows x and z of which none translates another."""
        n = self.size
        if self.data:
            x = read_sentences(f"{self.data}/train.en")[:n]
            z = read_sentences(f"{self.data}/train.de")[n : 2 * n]
        else:
            made = invented_sentences(2 * n, seed=0)
            x, z = made[:n], Disguise(difficulty=0.5)(made[n:])
        words = Vocabulary.learn([*x, *z], self.vocabulary)
        rows = words.rows([*x, *z])
        return words, rows[:n], rows[n:]

    def pair(self) -> tuple[LatentTranslation, Translator]:
        """The pair, with the same weights each time."""
        words, x, z = self.texts
        torch.manual_seed(0)
        network = EncoderDecoder(self.width, self.layers, self.heads, self.dropout)
        model = LatentTranslation((x.shape[1],), len(words), network)
        model.count_words(x, z)
        model.prior.requires_grad_(False)
        model.to(self.device)
        return model, Translator(model)

    @property
    def noise(self) -> WordNoise:
        """What denoising takes away."""
        return WordNoise(starts=self.texts[0].word_starts)

    def batches(self, rows: Tensor) -> Buckets:
        """Batches of like length."""
        return Buckets(rows, batch_size=self.batch_size, trim=False)

    def some(self) -> Tensor:
        """The first rows, whose loss all print."""
        return self.texts[1][: self.batch_size].to(self.device)

    @property
    def steps(self) -> int:
        """Steps of an epoch."""
        return len(self.batches(self.texts[1]))


# -- by hand -------------------------------------------------------------------------------------------------


class Transformer(nn.Module):
    """Torch's own layers, with the weights of the library's network, and a loop that writes.

    The dropout is where the library has it: in what is added, not in the attention, which would be slow.
    """

    places: Tensor
    never: Tensor

    def __init__(self, of: SentenceNetwork, width: int, heads: int) -> None:
        super().__init__()
        self.embedding, self.languages, self.bias = of.embedding, of.languages, of.bias
        self.encoded, self.decoded, self.scale = of.encoded, of.decoded, width**0.5
        self.register_buffer("places", of.places)
        self.register_buffer("never", of.never)
        self.drop = nn.Dropout(of.dropout)
        options: dict[str, Any] = {"d_model": width, "nhead": heads, "dim_feedforward": 4 * width}
        options |= {"dropout": of.dropout, "activation": "gelu", "batch_first": True}
        options |= {"norm_first": True}
        assert of.encoder is not None
        self.encoder = nn.ModuleList(
            _filled(nn.TransformerEncoderLayer(**options), block) for block in of.encoder
        )
        self.decoder = nn.ModuleList(
            _filled(nn.TransformerDecoderLayer(**options), block) for block in of.decoder
        )

    def vectors(self, rows: Tensor, language: int) -> Tensor:
        """Of words at the places from 1 on."""
        x = self.embedding(rows) * self.scale + self.languages[language]
        found: Tensor = x + self.places[1 : rows.shape[1] + 1]
        return found

    def read(self, rows: Tensor, language: int) -> tuple[Tensor, Tensor]:
        """What the decoder reads, and where there is nothing."""
        absent = rows == PAD
        x = self.drop(self.vectors(rows, language))
        for layer in self.encoder:
            x = layer(x, src_key_padding_mask=absent)
        assert self.encoded is not None
        return self.encoded(x), absent

    def states(self, rows: Tensor, language: int, memory: Tensor, absent: Tensor) -> Tensor:
        """The states ahead of each word and of the one behind the last, `(n, T + 1, width)`."""
        start = self.languages[language] + self.places[0]
        y = torch.cat([start.expand(len(rows), 1, -1), self.vectors(rows, language)], 1)
        y = self.drop(y)
        mask = nn.Transformer.generate_square_subsequent_mask(y.shape[1], device=y.device)
        for layer in self.decoder:
            y = layer(y, memory, tgt_mask=mask, tgt_is_causal=True, memory_key_padding_mask=absent)
        found: Tensor = self.decoded(y)
        return found

    def logits(self, states: Tensor, language: int) -> Tensor:
        """Of all words."""
        return linear(states, self.embedding.weight, self.bias[language] + self.never)

    def loss(self, source: Tensor, rows: Tensor, languages: tuple[int, int]) -> Tensor:
        """-log p(rows | source), the mean over rows."""
        source, rows = trimmed(source), trimmed(rows)
        states = self.states(rows[:, :-1], languages[1], *self.read(source, languages[0]))
        found = self.logits(states, languages[1]).transpose(1, 2)
        return cross_entropy(found, rows, reduction="sum", ignore_index=PAD) / len(rows)

    @torch.no_grad()
    def translate(self, source: Tensor, languages: tuple[int, int]) -> Tensor:
        """The likeliest words, one after the other; layers of torch keep no keys, and read all words again."""
        self.eval()
        source = trimmed(source)
        memory, absent = self.read(source, languages[0])
        longest = len(self.places) - 1
        rows = source.new_empty(len(source), 0)
        going = torch.ones(len(source), dtype=torch.bool, device=source.device)
        while rows.shape[1] < longest - 1 and bool(going.any()):
            last = self.states(rows, languages[1], memory, absent)[:, -1]
            words = self.logits(last, languages[1]).argmax(-1).where(going, PAD)
            rows, going = torch.cat([rows, words[:, None]], 1), going & (words != END)
        ends = torch.full_like(rows[:, :1], END).where(going[:, None], PAD)
        self.train()
        return torch.cat([rows, ends], 1)


def _filled(layer: Any, block: Any) -> nn.Module:
    """A layer of torch with the weights of one of the library's, and its places for dropout."""
    reads = isinstance(layer, nn.TransformerDecoderLayer)
    pairs = [
        (layer.self_attn.out_proj, block.attended),
        (layer.linear1, block.mlp[0]),
        (layer.linear2, block.mlp[2]),
        (layer.norm1, block.before_attention),
        (layer.norm3 if reads else layer.norm2, block.before_mlp),
    ]
    if reads:
        other = layer.multihead_attn
        pairs += [(other.out_proj, block.read), (layer.norm2, block.before_reading)]
        weights = torch.cat([block.queries.weight, block.keys_values.weight])
        other.in_proj_weight.data = weights.data.clone()
        other.in_proj_bias.data = torch.cat([block.queries.bias, block.keys_values.bias]).data
        other.dropout = 0.0
    for one, of in pairs:
        one.weight.data, one.bias.data = of.weight.data, of.bias.data
    layer.self_attn.in_proj_weight.data = block.queries_keys_values.weight.data
    layer.self_attn.in_proj_bias.data = block.queries_keys_values.bias.data
    layer.self_attn.dropout = 0.0
    layer.dropout = nn.Identity()
    found: nn.Module = layer
    return found


class Distributions(nn.Module):
    """The programs of the library as plain distributions: densities and likeliest words, without Pyro."""

    def __init__(self, model: LatentTranslation, guide: Translator) -> None:
        super().__init__()
        self.model, self.guide = model, guide

    def _of(self, source: Tensor, languages: tuple[int, int]) -> Any:
        methods = {
            (ROWS, LATENTS): self.guide.encode,
            (LATENTS, ROWS): self.model.decode,
            (ROWS, ROWS): self.model.restore,
            (LATENTS, LATENTS): self.guide.restore,
        }
        return methods[languages](source)

    def loss(self, source: Tensor, rows: Tensor, languages: tuple[int, int]) -> Tensor:
        """-log p(rows | source), the mean over rows."""
        found: Tensor = -self._of(source, languages).log_prob(rows).mean()
        return found

    @torch.no_grad()
    def translate(self, source: Tensor, languages: tuple[int, int]) -> Tensor:
        """The likeliest words, one after the other."""
        self.eval()
        found: Tensor = self._of(source, languages).greedy()
        self.train()
        return found


def by_torch(settings: Settings) -> Transformer:
    """Torch's layers with the weights of the pair."""
    model, _ = settings.pair()
    return Transformer(model.network, settings.width, settings.heads).to(settings.device)


def by_distributions(settings: Settings) -> Distributions:
    """The pair's own distributions."""
    return Distributions(*settings.pair())


def train_by_hand(settings: Settings, make: Callable[[Settings], Any]) -> None:
    """The loop that is written by hand. It reads one number per step, as `fit` does."""
    network = make(settings)
    optimizer = torch.optim.Adam(
        [p for p in network.parameters() if p.requires_grad], lr=LEARNING_RATE, fused=True
    )
    _, x, z = settings.texts
    german, noise, device = settings.batches(z), settings.noise, settings.device

    def batches() -> Iterator[Tensor]:
        english = settings.batches(x)
        while True:
            yield from english

    def rows_of_z(n: int) -> Tensor:
        drawn: Tensor = german.draw(n)
        return drawn.to(device)

    def losses(rows: Tensor) -> Iterator[Tensor]:
        """The four losses of a step; each is computed with the weights that the one before has left."""
        translated = network.translate(rows, (ROWS, LATENTS))
        yield network.loss(translated, rows, (LATENTS, ROWS))
        real = rows_of_z(len(rows))
        translated = network.translate(real, (LATENTS, ROWS))
        yield network.loss(translated, real, (ROWS, LATENTS))
        yield network.loss(noise(rows), rows, (ROWS, ROWS))
        real = rows_of_z(len(rows))
        yield network.loss(noise(real), real, (LATENTS, LATENTS))

    with torch.no_grad():
        network.eval()
        first = float(network.loss(settings.some(), settings.some(), (ROWS, ROWS)))
        network.train()
    turns = Turns(device, first)
    count, total, source = turns.next(0), 0.0, batches()
    while True:
        for _ in range(count):
            for loss in losses(next(source).to(device)):
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
            total += loss.item()
        count = turns.next(count)


# -- the library ---------------------------------------------------------------------------------------------


def train_by_fit(settings: Settings) -> None:
    """`fit`: a turn is an epoch, which ends where a schedule of the learning rate is asked."""
    model, guide = settings.pair()
    _, x, z = settings.texts
    german = settings.batches(z)
    with torch.no_grad():
        model.eval()
        first = float(-model.restore(settings.some()).log_prob(settings.some()).mean())
        model.train()
    turns = Turns(settings.device, first)

    def factor(epoch: int) -> float:
        turns.next(settings.steps if epoch else 0)
        return 1.0

    denoising = SentenceDenoising(german, noise=settings.noise, learn_prior=False, elbo_rows=0)
    translating = BackTranslation(german, greedy=True, learn_prior=False)
    fit(
        *(model, guide, settings.batches(x)),
        objective=Together([translating, denoising]),
        max_epochs=1_000_000,
        learning_rate=LEARNING_RATE,
        optimizer=partial(torch.optim.Adam, fused=True),
        lr_scheduler=lambda made: torch.optim.lr_scheduler.LambdaLR(made, factor),
        device=settings.device,
        progress=False,
        seed=0,
    )


WAYS: dict[str, Callable[[Settings], None]] = {
    "hand": partial(train_by_hand, make=by_torch),
    "distributions": partial(train_by_hand, make=by_distributions),
    "fit": train_by_fit,
}

if __name__ == "__main__":
    given = Settings(**json.loads(sys.argv[2]))
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    WAYS[sys.argv[1]](given)
