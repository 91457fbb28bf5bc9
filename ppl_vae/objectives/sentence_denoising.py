"""Denoising: a network that is to translate learns first to restore sentences of each language."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor

from ppl_vae.objectives.alternating import Alternating, Turn, require_unweighted
from ppl_vae.objectives.base import Loss
from ppl_vae.objectives.real_latents import (
    Latents,
    RealLatents,
    require_possible,
    require_shape,
)
from ppl_vae.objectives.schedules import require_bool
from ppl_vae.objectives.scored_draws import elbo_of_rows, require_elbo_rows, whole_guide
from ppl_vae.pairs import (
    Batch,
    Layout,
    Pair,
    PairError,
    num_rows,
    own_attribute,
    tensors_of,
)
from ppl_vae.runtime import as_words, described

_OWNER = "SentenceDenoising.latents"
"""What holds the real latents, for messages."""


@dataclass(frozen=True, kw_only=True)
class SentenceDenoising(Alternating):
    r"""Rows and real latents, each restored from noise within its own language, in nats per row:

        rows    = -log p(x | noise(x))
        latents = -log q(z' | noise(z')) - log p(z')

    for programs that share a network which reads and writes both languages ("Unsupervised Machine Translation
    Using Monolingual Corpora Only", arXiv:1711.00043). It is what `BackTranslation` begins with: a network that
    can write both languages, and has one encoder for both. It is no bound on log p(x).

    The model has a method `restore(noisy)`, which returns a distribution of rows, and the guide one that
    returns a distribution of latents; `model.prior()` is p(z), if it learns. `LatentTranslation` and
    `Translator` have them.

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
        >>> import torch
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
        require_unweighted(self)
        if not callable(self.noise):
            raise TypeError(
                f"SentenceDenoising.noise must be a function of rows, such as WordNoise(), got "
                f"{described(self.noise)}"
            )
        require_elbo_rows(self, self.elbo_rows)
        require_bool("SentenceDenoising", "learn_prior", self.learn_prior)
        object.__setattr__(self, "latents", self._given)

    @property
    def _given(self) -> RealLatents:
        return RealLatents.of(_OWNER, self.latents)

    def turns(self, pair: Pair) -> Sequence[Turn]:
        """See `Alternating.turns`."""
        prior: Any = getattr(pair.model, "prior", None) if self.learn_prior else None
        if self.learn_prior and not callable(prior):
            raise PairError(
                f"SentenceDenoising: p(z) learns from the real latents by model.prior(), which "
                f"{described(pair.model)} does not have: set learn_prior=False"
            )
        known_prior: Any = own_attribute(pair.model, "prior") if prior is None else prior
        restore = [
            _method(program, role)
            for program, role in ((pair.model, "model"), (pair.guide, "guide"))
        ]

        def rows(pair: Pair, layout: Layout, batch: Batch, beta: float) -> Loss:
            (x, *_) = tensors_of(batch)
            loss = -self._restored("x", restore[0], as_words("x", x)).mean()
            return replace(elbo_of_rows(pair, layout, batch, self.elbo_rows), loss=loss)

        def latents(pair: Pair, layout: Layout, batch: Batch, beta: float) -> Loss:
            (x, *_) = tensors_of(batch)
            _, values = self._given.drawn(num_rows(batch), layout, x.device)
            if len(values) > 1:
                raise PairError(
                    f"SentenceDenoising restores one latent of a row, and there are {', '.join(values)}"
                )
            ((name, z),) = values.items()
            if known_prior is not None:  # noise and network would say less of what is no sentence
                site = {"name": name, "fn": known_prior(), "value": z, "mask": None}
                require_shape(_OWNER, site)
                require_possible(_OWNER, site, dim=-1)
            z = as_words(f"{_OWNER}: the values of site '{name}'", z)
            loss = -self._restored(f"{_OWNER}, site '{name}'", restore[1], z).mean()
            if prior is not None:
                loss = loss - prior().log_prob(z).mean()
            return replace(elbo_of_rows(pair, layout, batch, 0), loss=loss)

        of_guide = whole_guide(pair)
        return [
            Turn("rows", rows, [pair.model]),
            Turn("latents", latents, [*of_guide, pair.model]),
        ]

    def _restored(self, name: str, restore: Callable[[Tensor], Any], rows: Tensor) -> Tensor:
        """log p of each row given itself with noise; messages call the rows by a name."""
        p = restore(self.noise(rows))
        inside = p.support.check(rows)
        if not bool(inside.all()):
            wrong = (~inside).nonzero().flatten().tolist()
            raise PairError(
                f"{name}: {len(wrong)} of {len(rows)} rows are outside of the support of what restore "
                f"returns, {p.support}: the first is {rows[wrong[0]].tolist()!s:.200}"
            )
        found: Tensor = p.log_prob(rows)
        return found


def _method(program: object, role: str) -> Callable[[Tensor], Any]:
    found = getattr(program, "restore", None)
    if not callable(found):
        raise PairError(
            f"SentenceDenoising needs a {role} with a method restore(noisy), which returns a distribution, "
            f"such as LatentTranslation and Translator; {described(program)} has none"
        )
    restore: Callable[[Tensor], Any] = found
    return restore
