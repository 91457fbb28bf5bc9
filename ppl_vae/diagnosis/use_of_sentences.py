"""What is known of a latent that is a sentence."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from ppl_vae.stats import Estimate


@dataclass(frozen=True)
class UseOfSentences:
    """What some rows say of a latent that is a sentence, such as the translation of x.

    Means over rows with their standard errors, of one draw of z for each row.

    Attributes:
        words: Number of words of z, including the end.
        worth: By how much log p(x | z) falls with the z of another row, nats per row.
        worth_per_word: The same per word of z, including the end.
        told: By how much log q(z | x) falls with the z of another row, nats per row: what x tells of z.
        copied: Share of the words of z that are words of its x, too, in any order; `missing` says so if x is no
            sentence, or z has no words.
        copied_by_chance: The same with the x of another row.
        log_prior: log p(z) of the guide's z, nats per word.
        log_prior_of_own: log p(z) of sentences that p(z) draws, nats per word: minus its entropy.
        words_of_own: Number of their words, including the end.
    """

    words: Estimate
    worth: Estimate
    worth_per_word: Estimate
    told: Estimate
    copied: Estimate
    copied_by_chance: Estimate
    log_prior: Estimate
    log_prior_of_own: Estimate
    words_of_own: Estimate

    @classmethod
    def of(
        cls,
        *,
        words: Tensor,
        worth: Tensor,
        told: Tensor,
        copied: Tensor,
        by_chance: Tensor,
        log_prior: Tensor,
        own_words: Tensor,
        log_own: Tensor,
    ) -> UseOfSentences:
        """What each row says, `(n,)` each; log p(z) is that of the whole sentence.

        Args:
            words: See `words`.
            worth: See `worth`; NaN for a row that came alone, which does not count.
            told: As `worth`.
            copied: NaN for a row without words, which does not count.
            by_chance: As `copied`, and as `worth`.
            log_prior: log p(z) of the guide's z.
            own_words: Words of what p(z) draws.
            log_own: Its log p(z).
        """

        def per_word(of: Tensor, count: Tensor) -> Estimate:
            return Estimate(of / count, "nats per word", weights=count.where(~of.isnan(), 0))

        def known(of: Tensor, unit: str = "nats", missing: str = "") -> Estimate:
            there = ~of.isnan()
            return Estimate(of, unit, there.double(), "" if there.any() else missing)

        def share(of: Tensor) -> Estimate:
            why = "z has no words" if bool((words <= 1).all()) else "x is no sentence"
            return known(of, "of the words", f"not defined: {why}")

        return cls(
            words=Estimate(words, "words"),
            worth=known(worth),
            worth_per_word=per_word(worth, words),
            told=known(told),
            copied=share(copied),
            copied_by_chance=share(by_chance),
            log_prior=per_word(log_prior, words),
            log_prior_of_own=per_word(log_own, own_words),
            words_of_own=Estimate(own_words, "words"),
        )

    @property
    def is_known(self) -> bool:
        """Whether any row came with another one, without which nothing is known of its worth."""
        return not math.isnan(self.worth.mean)

    @property
    def foreign(self) -> float:
        """How much less likely a word of z is than one that p(z) draws, nats; below 0 if it is likelier."""
        return self.log_prior_of_own.mean - self.log_prior.mean

    @property
    def surplus(self) -> float:
        """The share of the words that are copied, beyond chance."""
        return self.copied.mean - self.copied_by_chance.mean

    def to_dict(self) -> dict[str, Any]:
        """All means and standard errors."""
        return {each.name: getattr(self, each.name).to_dict() for each in fields(self)}


def told_of_sentences(name: str, use: UseOfSentences, is_used: bool) -> str:
    """Whether the sentence is used, in a sentence.

    Args:
        name: The latent's site.
        use: What is known of it.
        is_used: Whether it is.

    Example:
        >>> import torch
        >>> one, other = torch.tensor([8.0, 10.0]), torch.tensor([18.0, 20.0])
        >>> use = UseOfSentences.of(
        ...     words=one, worth=other, told=other, copied=one / 100, by_chance=one / 200, log_prior=-other,
        ...     own_words=one, log_own=-other,
        ... )
        >>> told_of_sentences("z", use, True)[:73]
        'No collapse: z is worth 19.0 ± 1.0 nats to the decoder, 2.1 for each word'
    """
    state = "No collapse" if is_used else "Collapse"
    return (
        f"{state}: {name} is worth {use.worth.numbers('.1f')} nats to the decoder, "
        f"{use.worth_per_word.mean:.2g} for each word of it, and x tells {use.told.numbers('.1f')} nats of it."
    )


def lines_of_sentences(use: UseOfSentences) -> list[tuple[str, str]]:
    """Names and values of what is known."""
    shares = [
        Estimate(100 * of.values, weights=of.weights).numbers(".1f")
        for of in (use.copied, use.copied_by_chance)
    ]
    return [
        (
            "worth of z",
            f"{use.worth.numbers('.2f')} nats, {use.worth_per_word.numbers('.3f')} per word of z",
        ),
        ("what x tells of z", f"{use.told.numbers('.2f')} nats"),
        (
            "words of z",
            f"{use.words.numbers('.1f')}, including the end (draws of p(z): {use.words_of_own.numbers('.1f')})",
        ),
        ("copied from x", use.copied.missing or f"{shares[0]} % ({shares[1]} % by chance)"),
        (
            "log p(z) per word",
            f"{use.log_prior.numbers('.2f')} nats (draws of p(z): {use.log_prior_of_own.numbers('.2f')})",
        ),
    ]


def margin(*estimates: Estimate) -> float:
    """Half the width of the 95 % interval of a mean, or of a sum or difference of independent means.

    Of few rows by Student's t: two rows say very little, and one nothing (NaN).

    Example:
        >>> import torch
        >>> two, many = Estimate(torch.tensor([1.0, 3.0])), Estimate(torch.tensor([1.0, 3.0]).repeat(50))
        >>> round(margin(two), 1), round(margin(many) / many.standard_error, 1)
        (12.7, 2.0)
    """
    from scipy.stats import t  # here, because it takes a second

    error = math.hypot(*(each.standard_error for each in estimates))
    weights = [
        each.values.isfinite() if each.weights is None else each.weights for each in estimates
    ]
    return error * float(t.ppf(0.975, min(int((of > 0).sum()) for of in weights) - 1))
