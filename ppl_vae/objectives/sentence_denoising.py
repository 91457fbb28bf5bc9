"""Denoising: a network that is to translate learns first to restore sentences of each language."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ppl_vae.objectives.alternating import Alternating, Turn
from ppl_vae.objectives.base import Loss
from ppl_vae.objectives.real_latents import Latents, RealLatents
from ppl_vae.objectives.schedules import require_bool, require_whole
from ppl_vae.objectives.wake_sleep import whole_guide
from ppl_vae.pairs import (
    Batch,
    Layout,
    Pair,
    PairError,
    num_rows,
    sample_rows,
    take_rows,
    tensors_of,
)
from ppl_vae.runtime import described


@dataclass(frozen=True, kw_only=True)
class SentenceDenoising(Alternating):
    r"""Rows and real latents, each restored from noise within its own language, in nats per row:

        rows    = -log p(x | noise(x))
        latents = -log q(z' | noise(z')) - log p(z')

    for programs that share a network which reads and writes both languages ("Unsupervised Machine Translation
    Using Monolingual Corpora Only", arXiv:1711.00043). It is what `BackTranslation` begins with: a network that
    can write both languages, and has one encoder for both. It is no bound on log p(x).

    The model has a method `restore(noisy)`, which returns a distribution of rows, and the guide one that
    returns a distribution of latents. `LatentTranslation` and `Translator` have.

    Attributes:
        latents: Real values of the latents, unpaired with the rows: see `BackTranslation`.
        noise: Gives rows `(n, T)` with noise, `WordNoise()` of `ppl_vae.networks`, say.
        learn_prior: Whether p(z) learns from the real latents.
        elbo_rows: Rows of each batch by which the ELBO is logged, as drawing a sentence takes longer than a
            step. With 0 it is NaN, which is right where another objective logs it.

    Raises:
        PairError: A program has no method `restore`, or the real values are not those of the latents.
        TypeError: A setting is of another type.
        ValueError: beta is not 1 or free_bits not 0: the losses have no KL.

    Example:
        >>> from ppl_vae import fit
        >>> from ppl_vae.guides import Translator
        >>> from ppl_vae.models import LatentTranslation
        >>> from ppl_vae.networks import EncoderDecoder
        >>> model = LatentTranslation((4,), words=9, network=EncoderDecoder(width=8, layers=1, heads=2))
        >>> x, z = torch.tensor([[5, 6, 1, 0], [5, 1, 0, 0]]), torch.tensor([[8, 7, 1, 0]])
        >>> half = SentenceDenoising(z, noise=lambda rows: rows.where(torch.rand(rows.shape) < 0.5, 3))
        >>> found = fit(model, Translator(model), x, objective=half, max_epochs=1, seed=0)
        >>> [name for name in found.history[0] if name.startswith("loss")]
        ['loss', 'loss_rows', 'loss_latents']
    """

    judged_by_elbo = False
    why_no_free_bits = ": denoising has no KL; set free_bits=0"

    latents: Latents = field(kw_only=False)
    noise: Callable[[Tensor], Tensor]
    learn_prior: bool = True
    elbo_rows: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.beta != 1:
            raise ValueError(
                f"SentenceDenoising: there is no KL to weight: leave beta at 1, got {self.beta!r}"
            )
        if not callable(self.noise):
            raise TypeError(
                f"SentenceDenoising.noise must be a function of rows, such as WordNoise(), got "
                f"{described(self.noise)}"
            )
        require_whole("SentenceDenoising", "elbo_rows", self.elbo_rows)
        if self.elbo_rows < 0:
            raise ValueError(
                f"SentenceDenoising: elbo_rows must be at least 0, got {self.elbo_rows}"
            )
        require_bool("SentenceDenoising", "learn_prior", self.learn_prior)
        latents = RealLatents.of("SentenceDenoising.latents", self.latents)
        object.__setattr__(self, "latents", latents)

    def turns(self, pair: Pair) -> Sequence[Turn]:
        """See `Alternating.turns`."""
        restore = [
            _method(program, role)
            for program, role in ((pair.model, "model"), (pair.guide, "guide"))
        ]

        def rows(pair: Pair, layout: Layout, batch: Batch, beta: float) -> Loss:
            (x, *_) = tensors_of(batch)
            loss = -restore[0](self.noise(x)).log_prob(x).mean()
            return self._logged(pair, layout, batch, loss)

        def latents(pair: Pair, layout: Layout, batch: Batch, beta: float) -> Loss:
            (x, *_) = tensors_of(batch)
            _, values = self.latents.drawn(num_rows(batch), layout, x.device)
            (z,) = values.values()
            loss = -restore[1](self.noise(z)).log_prob(z).mean()
            if self.learn_prior:
                prior: Any = pair.model
                loss = loss - prior.prior().log_prob(z).mean()
            return _unlogged(loss)

        of_guide = whole_guide(pair)
        return [
            Turn("rows", rows, [pair.model]),
            Turn("latents", latents, [*of_guide, pair.model]),
        ]

    def _logged(self, pair: Pair, layout: Layout, batch: Batch, loss: Tensor) -> Loss:
        """The loss, and the ELBO of some of the rows beside it."""
        if not self.elbo_rows:
            return _unlogged(loss)
        few = take_rows(batch, slice(0, self.elbo_rows))
        with torch.no_grad(), pair.mode(training=False):
            found = sample_rows(pair, layout, few, 1)
        distortion = -found.log_likelihood.mean()
        rate = (found.log_guide - found.log_prior).mean()
        traces = [(found.model_trace, found.guide_trace)]
        return Loss(loss, -(distortion + rate), rate, distortion, traces)


def _method(program: object, role: str) -> Callable[[Tensor], Any]:
    found = getattr(program, "restore", None)
    if not callable(found):
        raise PairError(
            f"SentenceDenoising needs a {role} with a method restore(noisy), which returns a distribution, "
            f"such as LatentTranslation and Translator; {described(program)} has none"
        )
    restore: Callable[[Tensor], Any] = found
    return restore


def _unlogged(loss: Tensor) -> Loss:
    """The loss of a turn that does not measure the ELBO."""
    nothing = torch.full((), torch.nan, device=loss.device)
    return Loss(loss, nothing, nothing, nothing, [])
