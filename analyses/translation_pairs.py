"""The pairs of back_translation.py, and how they are trained."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from kept_pairs import has_begun, keep, kept
from translation_texts import Texts

from ppl_vae import fit
from ppl_vae.data import Buckets
from ppl_vae.guides import NoLatent, Translator
from ppl_vae.models import LanguageModel, LatentTranslation
from ppl_vae.networks import EncoderDecoder, WordNoise
from ppl_vae.objectives import (
    ELBO,
    Alternating,
    BackTranslation,
    KnownLatents,
    Objective,
    SentenceDenoising,
    Together,
)
from ppl_vae.runtime import require_count


@dataclass(frozen=True)
class Sizes:
    """Network and training.

    Attributes:
        width: Of the transformer's vectors.
        layers: Of the encoder, and of the decoder.
        heads: Heads of the attention.
        dropout: Share of the numbers that are set to 0.
        batch_size: Rows of a step.
        learning_rate: Of Adam, from the second epoch of a phase on; then it falls to 0, as a cosine.
        language_epochs: Epochs of a language model; the weights of the best one are kept.
        denoising_epochs: Epochs of denoising alone.
        epochs: Epochs of back-translation.
        pair_epochs: Epochs with pairs alone, each of which draws as many as there are sentences.
        count_words: Whether the output biases begin with the words of each language.
    """

    width: int = 128
    layers: int = 2
    heads: int = 4
    dropout: float = 0.2
    batch_size: int = 64
    learning_rate: float = 2e-3
    language_epochs: int = 30
    denoising_epochs: int = 15
    epochs: int = 20
    pair_epochs: int = 20
    count_words: bool = True

    def folder(self, runs: Path, name: str, texts: Texts, seed: int) -> Path:
        """Where a training is kept: others of these texts and settings have other folders."""
        of = hashlib.sha256(f"{self} {texts.digest}".encode()).hexdigest()[:10]
        return runs / f"{name},seed={seed},{of}"

    def require(self) -> None:
        """Raises an error for what no training can have, by the name of its option.

        Raises:
            ValueError: A number is out of its range.
        """
        phases = ("language_epochs", "denoising_epochs", "epochs", "pair_epochs")
        for name in ("batch_size", *phases):
            require_count(f"--sizes.{name}", getattr(self, name))
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"--sizes.learning_rate must be above 0, got {self.learning_rate}")
        try:
            _ = self.network
        except ValueError as error:
            raise ValueError(str(error).replace("EncoderDecoder.", "--sizes.")) from error

    @property
    def network(self) -> EncoderDecoder:
        """The network."""
        return EncoderDecoder(self.width, self.layers, self.heads, self.dropout)

    def fit(
        self,
        folder: Path,
        model: Any,
        guide: Any,
        x: Buckets,
        epochs: int,
        seed: int,
        **options: Any,
    ) -> Any:
        """One phase of a training, which goes on if its folder is there."""

        def share(epoch: int) -> float:
            """Of the learning rate: half of it in the first epoch, then a cosine."""
            return min(1.0, (epoch + 1) / 2) * 0.5 * (1 + math.cos(math.pi * epoch / epochs))

        return fit(
            *(model, guide, x),
            max_epochs=epochs,
            learning_rate=self.learning_rate,
            optimizer=lambda p, lr: torch.optim.Adam(p, lr=lr, betas=(0.9, 0.98)),
            lr_scheduler=lambda o: torch.optim.lr_scheduler.LambdaLR(o, share),
            clip_grad_norm=1.0,
            run_dir=folder,
            resume=has_begun(folder),
            seed=seed,
            **options,
        )


@dataclass(frozen=True)
class Training:
    """What a pair learns from.

    Attributes:
        pairs: Sentences whose translations are known, the first ones.
        by: "denoising" of sentences alone; "back-translation", with denoising before and beside it, and with
            the pairs, if there are some; "pairs" alone.
        greedy: Whether back-translation takes the likeliest words; draws if not, as its formula has them.
        then: What it goes on with: "ELBO", by its gradient, or "back-translation" again; "" for nothing.
        epochs: Epochs of that.
    """

    pairs: int = 0
    by: str = "back-translation"
    greedy: bool = True
    then: str = ""
    epochs: int = 0

    @property
    def name(self) -> str:
        """What tells it apart from others."""
        if self.by == "denoising":
            return "denoised"
        alone = "-alone" if self.by == "pairs" else ""
        drawn = "" if self.greedy else ",drawn"
        after = f",{self.then}={self.epochs}" if self.then else ""
        return f"pairs={self.pairs}{alone}{drawn}{after}"

    def __str__(self) -> str:
        if self.by == "denoising":
            return "denoising alone"
        told = "sentences"
        if self.pairs:
            told = f"{self.pairs} pairs {'alone' if self.by == 'pairs' else 'and sentences'}"
        if not self.greedy:
            told += ", by draws"
        return f"{told}, then {self.epochs} epochs of {self.then}" if self.then else told


def language_model(runs: Path, texts: Texts, of: str, sizes: Sizes, seed: int) -> LanguageModel:
    """A language model of one side's sentences, by the weights that are best on held-out ones."""
    folder = sizes.folder(runs, f"language={of}", texts, seed)
    side = 0 if of == "x" else 1
    found = kept(folder, repr(sizes))
    if found is not None:
        model: LanguageModel = found[0]
        return model.eval()
    torch.manual_seed(seed)
    model = LanguageModel((texts.length,), len(texts.words), sizes.network)
    rows = texts.rows((texts.x, texts.z)[side])
    model.count_words(rows)
    # A patience as long as the training: it stops nothing, and keeps the best weights.
    options: dict[str, Any] = {
        "validation": texts.rows(texts.validation[side]),
        "patience": sizes.language_epochs,
    }
    batches = Buckets(rows, batch_size=sizes.batch_size, trim=False)
    sizes.fit(
        folder.with_suffix(".training"),
        *(model, NoLatent(), batches, sizes.language_epochs, seed),
        **options,
    )
    keep(folder, model, NoLatent(), repr(sizes))
    return model.eval()


def trained(runs: Path, texts: Texts, how: Training, sizes: Sizes, seed: int) -> tuple[Any, Any]:
    """A pair of `LatentTranslation` and `Translator`, in evaluation mode."""
    folder = sizes.folder(runs, how.name, texts, seed)
    found = kept(folder, repr(sizes))
    if found is None:
        settings, learns, epochs = sizes, objective(texts, how, sizes), sizes.epochs
        if how.then:
            found = trained(runs, texts, replace(how, then=""), sizes, seed)
            # The gradient of draws is noisy, so that steps are smaller; the same for both, to compare them.
            settings, epochs = replace(sizes, learning_rate=0.3 * sizes.learning_rate), how.epochs
        elif how.by == "back-translation":
            found = trained(runs, texts, Training(by="denoising"), sizes, seed)
        else:
            found = untrained(texts, sizes, seed)
            epochs = sizes.pair_epochs if how.by == "pairs" else sizes.denoising_epochs
        model, guide = found
        prior = language_model(runs, texts, "z", sizes, seed)
        model.prior.load_state_dict(prior.state_dict())
        model.prior.requires_grad_(False)
        for program in found:
            program.train()
        if how.then == "ELBO":  # its reward is the ELBO of what is used in the end, without dropout
            for part in model.modules():
                if hasattr(part, "dropout"):
                    part.dropout = 0.0
        x = Buckets(texts.rows(texts.x), batch_size=sizes.batch_size, trim=False)
        settings.fit(
            folder.with_suffix(".training"), model, guide, x, epochs, seed, objective=learns
        )
        keep(folder, model, guide, repr(sizes), vocabulary=texts.words)
    model, guide = found
    return model.eval(), guide.eval()


def untrained(texts: Texts, sizes: Sizes, seed: int) -> tuple[LatentTranslation, Translator]:
    """A new pair."""
    torch.manual_seed(seed)
    model = LatentTranslation((texts.length,), len(texts.words), sizes.network)
    if sizes.count_words:
        model.count_words(texts.rows(texts.x), texts.rows(texts.z))
    return model, Translator(model)


def objective(texts: Texts, how: Training, sizes: Sizes) -> Objective:
    """What a pair learns by."""
    if how.then == "ELBO":
        return ELBO(num_particles=4)
    z = Buckets(texts.rows(texts.z), batch_size=sizes.batch_size, trim=False)
    # Words are left out, hidden or moved with all of their pieces.
    noise = WordNoise(starts=texts.words.word_starts)
    if how.by == "denoising":
        return SentenceDenoising(z, noise=noise, learn_prior=False)
    parts: list[Alternating] = []
    if how.by == "back-translation":
        parts = [
            BackTranslation(z, greedy=how.greedy, learn_prior=False),
            SentenceDenoising(z, noise=noise, learn_prior=False, elbo_rows=0),
        ]
    if how.pairs:
        known = Buckets(
            *(texts.rows(side[: how.pairs]) for side in texts.pairs),
            batch_size=sizes.batch_size,
            trim=False,
        )
        parts.append(KnownLatents(known, learn_prior=False, elbo_rows=8 * (not parts)))
    return parts[0] if len(parts) == 1 else Together(parts)
