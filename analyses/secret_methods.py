"""The ways to read a secret script that decipherment.py compares."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from secret_texts import ROW, Secret

from ppl_vae import fit, refit_guide
from ppl_vae.em import fit_em
from ppl_vae.guides import Recurrent
from ppl_vae.models import SubstitutionCipher
from ppl_vae.objectives import ELBO, BackTranslation, Objective

EM: dict[str, Any] = {"max_iterations": 300, "tolerance": 1e-3}
"""How EM runs."""

TRAINING: dict[str, Any] = {"optimizer": torch.optim.Adam, "learning_rate": 0.01}
"""How a guide is trained."""


@dataclass(frozen=True)
class Score:
    """How well a text is read: both shares are of its letters, not of the alphabet.

    Attributes:
        read: What the most probable plaintext under the key that was found has right.
        key: What is right if each symbol stands for one letter, the one most often behind it.
        log_p: log p(x) under the key that was found, nats per letter.
        true_log_p: The same under the true key.
        seconds: How long it took.
    """

    read: float
    key: float
    log_p: float
    true_log_p: float
    seconds: float

    @staticmethod
    def best(tried: Sequence[Score]) -> Score:
        """That with the highest log p(x), with the seconds of all."""
        chosen = max(tried, key=lambda one: one.log_p)
        return replace(chosen, seconds=sum(one.seconds for one in tried))


@torch.no_grad()
def score(secret: Secret, model: SubstitutionCipher, seconds: float) -> Score:
    """How well a model reads a text."""
    x, plain = secret.x, secret.plain
    letters = model.expected_statistics(x)["symbols"].argmax(0)
    return Score(
        read=float((model.posterior(x).mode == plain).double().mean()),
        key=float((letters[x] == plain).double().mean()),
        log_p=float(model.log_evidence(x).sum()) / x.numel(),
        true_log_p=float(secret.model_of(secret.key).log_evidence(x).sum()) / x.numel(),
        seconds=seconds,
    )


@dataclass(frozen=True)
class Way:
    """A way to read a text.

    Attributes:
        read: Gives the model with the key that it has found.
        made_of: What the key depends on, beside the text and its seed.
        trains_guide: Whether it trains a guide, which takes longer.
        starts: How often it is run, from other starts: the key with the highest log p(x) is taken.
        kept_as: The name of another way of which these are some of the starts; None for its own.
    """

    read: Callable[[Secret], SubstitutionCipher]
    made_of: str
    trains_guide: bool = False
    starts: int = 1
    kept_as: str | None = None

    def score(self, secret: Secret, start: int) -> Score:
        """Reads a text from a start, and says how well; the first start is that of the text's own seed."""
        began = time.perf_counter()
        model = self.read(replace(secret, seed=secret.seed + 1000 * start))
        return score(secret, model, time.perf_counter() - began)


@dataclass(frozen=True)
class Methods:
    """What is tried, with its settings.

    Args:
        restarts: Starts of EM.
        guide_restarts: Starts of the guide.
        max_steps: Steps of a training with a guide.
        hidden: Width of the guide's GRU.
    """

    restarts: int
    guide_restarts: int
    max_steps: int
    hidden: int

    def ways(self) -> dict[str, Way]:
        """All of them, by their names in the table."""
        one, em = f"{EM}, 1 start", f"{EM}, {self.restarts} starts"
        guide = f"{TRAINING}, {self.max_steps} steps, GRU of {self.hidden}"
        return {
            "by frequency": Way(self.by_frequency, ""),
            "EM, one start": Way(replace(self, restarts=1).em, one),
            "EM": Way(self.em, em),
            "guide, one start": Way(self.guide, guide, trains_guide=True, kept_as="guide"),
            "guide": Way(self.guide, guide, trains_guide=True, starts=self.guide_restarts),
            "back-translation": Way(self.back_translation, guide, trains_guide=True),
            "back-translation after EM": Way(
                self.back_translation_after_em, f"{em}, {guide}", trains_guide=True
            ),
        }

    def by_frequency(self, secret: Secret) -> SubstitutionCipher:
        """The most frequent symbol is the most frequent letter, and so on: no inference."""
        letters = secret.language.letters
        often = secret.x.flatten().bincount(minlength=letters).argsort(descending=True)
        usual = secret.language.plain.flatten().bincount(minlength=letters)
        return secret.model_of(often[usual.argsort(descending=True).argsort()])

    def em(self, secret: Secret) -> SubstitutionCipher:
        """EM from several starts, of which log p(x) chooses."""
        model = secret.language.model()
        options: dict[str, Any] = {**EM, "restarts": self.restarts, "seed": secret.seed}
        fit_em(model, secret.x, device="cpu", progress=False, **options)
        return model

    def guide(self, secret: Secret) -> SubstitutionCipher:
        """The exact ELBO of an amortized guide."""
        return self._trained(secret, ELBO())

    def back_translation(self, secret: Secret) -> SubstitutionCipher:
        """Back-translation from a start at random."""
        return self._trained(secret, BackTranslation(secret.language.plain))

    def back_translation_after_em(self, secret: Secret) -> SubstitutionCipher:
        """Back-translation from EM's key, and a guide that has learned it."""
        model = self.em(secret)
        with (
            torch.no_grad()
        ):  # EM rules symbols out, which a guide that still tries them could not bear
            model.key.copy_((0.99 * model.key.softmax(1) + 0.01 / model.symbols).log())
        guide = self._new_guide(secret)
        refit_guide(model, guide, secret.x, **self._options(secret))
        objective = BackTranslation(secret.language.plain)
        fit(model, guide, secret.x, objective=objective, **self._options(secret))
        return model

    def _trained(self, secret: Secret, objective: Objective) -> SubstitutionCipher:
        model = secret.language.model()
        model.initialize(secret.x, seed=secret.seed)
        guide = self._new_guide(secret)
        fit(model, guide, secret.x, objective=objective, **self._options(secret))
        return model

    def _new_guide(self, secret: Secret) -> Recurrent:
        torch.manual_seed(secret.seed)
        letters = secret.language.letters
        return Recurrent((ROW,), letters, self.hidden, symbols=letters, whole=True)

    def _epochs(self, secret: Secret) -> int:
        return max(1, self.max_steps // math.ceil(len(secret.x) / self._rows(secret)))

    def _rows(self, secret: Secret) -> int:
        return max(1, min(16, len(secret.x) // 4))

    def _options(self, secret: Secret) -> dict[str, Any]:
        return {
            **TRAINING,
            "max_epochs": self._epochs(secret),
            "batch_size": self._rows(secret),
            "device": "cpu",
            "seed": secret.seed,
            "progress": False,
            # A recording takes a GRU apart, into thousands of operations: the same numbers in more time.
            "capture": False,
        }
