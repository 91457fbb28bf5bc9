"""How much text does it take to read a secret script? EM, amortized guides and back-translation, by length."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from progress import Table, chosen_rows, start
from secret_texts import ROW, Language, Secret

from ppl_vae import fit, refit_guide
from ppl_vae.em import fit_em
from ppl_vae.guides import Recurrent
from ppl_vae.models import SubstitutionCipher
from ppl_vae.objectives import ELBO, BackTranslation, LinearWarmup, Objective

WITH_GUIDE = ("guide", "guide, annealed", "back-translation", "back-translation after EM")
"""What trains a guide, which takes longer."""


@dataclass(frozen=True)
class Score:
    """How well a text is read: both shares are of its letters, not of the alphabet.

    Attributes:
        read: What the most probable plaintext under the key that was found has right.
        key: What is right if each symbol stands for one letter, the one most often behind it.
        log_p: log p(x) under the key that was found, nats per letter.
        seconds: How long it took.
    """

    read: float
    key: float
    log_p: float
    seconds: float


@torch.no_grad()
def score(secret: Secret, model: SubstitutionCipher, seconds: float) -> Score:
    """How well a model reads a text."""
    x, plain = secret.x, secret.plain
    letters = model.expected_statistics(x)["symbols"].argmax(0)
    return Score(
        read=float((model.posterior(x).mode == plain).double().mean()),
        key=float((letters[x] == plain).double().mean()),
        log_p=float(model.log_evidence(x).sum()) / x.numel(),
        seconds=seconds,
    )


@dataclass(frozen=True)
class Methods:
    """What is tried, with its settings.

    Args:
        restarts: Starts of EM.
        max_steps: Steps of a training with a guide.
        hidden: Width of the guide's GRU.
    """

    restarts: int
    max_steps: int
    hidden: int

    def by_frequency(self, secret: Secret) -> SubstitutionCipher:
        """The most frequent symbol is the most frequent letter, and so on: no inference."""
        letters = secret.language.letters
        often = secret.x.flatten().bincount(minlength=letters).argsort(descending=True)
        usual = secret.language.plain.flatten().bincount(minlength=letters)
        return secret.model_of(often[usual.argsort(descending=True).argsort()])

    def em(self, secret: Secret) -> SubstitutionCipher:
        """EM from several starts, of which log p(x) chooses."""
        model = secret.language.model()
        options: dict[str, Any] = {
            "restarts": self.restarts,
            "tolerance": 1e-3,
            "seed": secret.seed,
        }
        fit_em(model, secret.x, max_iterations=300, device="cpu", progress=False, **options)
        return model

    def guide(self, secret: Secret) -> SubstitutionCipher:
        """The exact ELBO of an amortized guide."""
        return self._trained(secret, ELBO())

    def annealed_guide(self, secret: Secret) -> SubstitutionCipher:
        """The same, with a KL that counts a tenth at first: then z cannot be ignored."""
        epochs = max(1, 2 * self._epochs(secret) // 3)
        return self._trained(secret, ELBO(beta=LinearWarmup(epochs, start=0.1)))

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
            "max_epochs": self._epochs(secret),
            "batch_size": self._rows(secret),
            "learning_rate": 0.01,
            "optimizer": torch.optim.Adam,
            "device": "cpu",
            "seed": secret.seed,
            "progress": False,
        }


def main(
    plain: Path | None = None,
    secret: Path | None = None,
    lengths: tuple[int, ...] = (100, 200, 400, 800, 1600, 3200),
    num_keys: int = 20,
    restarts: int = 20,
    guide_lengths: tuple[int, ...] = (400, 1600),
    guide_keys: int = 3,
    max_steps: int = 800,
    hidden: int = 32,
    rows: tuple[str, ...] | None = None,
    seed: int = 0,
) -> None:
    """Shows how much text it takes to read a script in which each letter of a known language has a symbol.

    The plaintext is the latent variable: its bigrams are known, and the key is learned from the ciphertext
    alone. Texts of each length are tried with keys at random.

    Args:
        plain: A file of the language, UTF-8, of which the bigrams are counted; None for an invented language.
        secret: A file of which the secret texts are pieces; the second half of `plain` if None.
        lengths: Letters of a text.
        num_keys: Keys, each with a text of its own.
        restarts: Starts of EM.
        guide_lengths: Those of the lengths at which guides are trained, too, which takes longer.
        guide_keys: With so many of the keys.
        max_steps: Steps of a training with a guide.
        hidden: Width of the guide's GRU.
        rows: The methods; all if None.
        seed: Seed of all random numbers.
    """
    methods = Methods(restarts, max_steps, hidden)
    ways = {
        "by frequency": methods.by_frequency,
        "EM, one start": replace(methods, restarts=1).em,
        "EM": methods.em,
        "guide": methods.guide,
        "guide, annealed": methods.annealed_guide,
        "back-translation": methods.back_translation,
        "back-translation after EM": methods.back_translation_after_em,
    }
    chosen = chosen_rows(rows, ways)
    language = Language.invented(seed) if plain is None else Language.of_file(plain, secret)
    each = [
        (length, name)
        for length in lengths
        for name in chosen
        if name not in WITH_GUIDE or length in guide_lengths
    ]
    columns = ["letters", "method", "keys", "read right, %", "key right, %", "solved"]
    columns += ["log p(x)", "less that of the true key", "seconds"]
    table = Table(columns, steps=len(each))
    print(
        f"{language.letters} letters; the entropy of a letter given the one before is "
        f"{language.entropy:.3f} nats, log {language.letters} = {math.log(language.letters):.3f}.\n"
    )
    table.head()
    for length, name in each:
        scores, truths = [], []
        for i in range(guide_keys if name in WITH_GUIDE else num_keys):
            of = Secret.of(language, length, seed + i)
            began = time.perf_counter()
            model = ways[name](of)
            scores.append(score(of, model, time.perf_counter() - began))
            truths.append(score(of, of.model_of(of.key), 0.0).log_p)
        table.row([str(length), name, *cells(scores, truths)])
        table.step(f"{length} letters, {name}")
    print(
        "\nPercent of the letters of a text, nats per letter; mean ± standard error over keys. Read right: by "
        "the likeliest plaintext under the key that was found. Key right: if each symbol stands for one "
        "letter, the one most often behind it. Solved: texts of which 90 % are read right. Under the true key "
        "all is read right; log p(x) may be above that, as a key that is found may have any probabilities."
    )


def cells(scores: Sequence[Score], truths: Sequence[float]) -> list[str]:
    """What a row of the table says of some texts."""
    solved = sum(one.read >= 0.9 for one in scores)
    more = [one.log_p - truth for one, truth in zip(scores, truths, strict=True)]
    known = all(math.isfinite(each) and each > -100 for each in more)
    return [
        str(len(scores)),
        with_error([100 * one.read for one in scores], 0),
        with_error([100 * one.key for one in scores], 0),
        f"{solved} of {len(scores)}",
        with_error([one.log_p for one in scores], 3) if known else "-",
        with_error(more, 3) if known else "-",
        f"{sum(one.seconds for one in scores) / len(scores):.1f}",
    ]


def with_error(numbers: Sequence[float], digits: int) -> str:
    """The mean of numbers and its standard error."""
    values = torch.tensor(numbers, dtype=torch.float64)
    if len(values) < 2:
        return f"{float(values.mean()):.{digits}f}"
    error = float(values.std()) / math.sqrt(len(values))
    return f"{float(values.mean()):.{digits}f} ± {error:.{digits}f}"


if __name__ == "__main__":
    start(
        main,
        quick={
            **{"lengths": (100,), "num_keys": 2, "restarts": 2},
            **{"guide_lengths": (100,), "guide_keys": 1, "max_steps": 2, "hidden": 4},
        },
    )
