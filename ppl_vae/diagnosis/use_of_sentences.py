"""What is known of a latent that is a sentence."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class UseOfSentences:
    """What some rows say of a latent that is a sentence, such as the translation of x.

    Attributes:
        words: Mean number of words of z, including the end.
        worth: By how much log p(x | z) falls with the z of another row, nats per row.
        worth_per_word: The same per word of z, including the end.
        told: By how much log q(z | x) falls with the z of another row, nats per row: what x tells of z.
        copied: Share of the words of z that are words of its x, too, in any order; NaN if x is no sentence.
        copied_by_chance: The same with the x of another row.
        log_prior: log p(z) of the guide's z, nats per word.
        log_prior_of_own: log p(z) of sentences that p(z) draws, nats per word: minus its entropy.
        words_of_own: Mean number of their words, including the end.
    """

    words: float
    worth: float
    worth_per_word: float
    told: float
    copied: float
    copied_by_chance: float
    log_prior: float
    log_prior_of_own: float
    words_of_own: float

    @property
    def foreign(self) -> float:
        """How much less likely a word of z is than one that p(z) draws, nats; below 0 if it is likelier."""
        return self.log_prior_of_own - self.log_prior

    @property
    def surplus(self) -> float:
        """The share of the words that are copied, beyond chance."""
        return self.copied - self.copied_by_chance


def told_of_sentences(name: str, use: UseOfSentences, is_used: bool) -> str:
    """Whether the sentence is used, in a sentence.

    Args:
        name: The latent's site.
        use: What is known of it.
        is_used: Whether it is.

    Example:
        >>> told_of_sentences("z", UseOfSentences(8, 20, 2, 30, 0.1, 0.05, -3, -2.8, 9), True)
        'No collapse: z is worth 20.0 nats to the decoder, 2 for each word of it, and x tells 30.0 nats of it.'
    """
    state = "No collapse" if is_used else "Collapse"
    return (
        f"{state}: {name} is worth {use.worth:.1f} nats to the decoder, {use.worth_per_word:.2g} for each word "
        f"of it, and x tells {use.told:.1f} nats of it."
    )


def lines_of_sentences(use: UseOfSentences) -> list[tuple[str, str]]:
    """Names and values of what is known."""
    return [
        ("worth of z", f"{use.worth:.2f} nats, {use.worth_per_word:.2g} per word of z"),
        ("what x tells of z", f"{use.told:.2f} nats"),
        (
            "words of z",
            f"{use.words:.1f}, including the end (draws of p(z): {use.words_of_own:.1f})",
        ),
        (
            "copied from x",
            "not defined: x is no sentence"
            if math.isnan(use.copied)
            else f"{use.copied:.1%} ({use.copied_by_chance:.1%} by chance)",
        ),
        (
            "log p(z) per word",
            f"{use.log_prior:.2f} nats (draws of p(z): {use.log_prior_of_own:.2f})",
        ),
    ]
