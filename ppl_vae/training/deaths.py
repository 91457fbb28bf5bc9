"""Which latent dimensions have died, by the KL of each after each epoch, and what is said of them."""

from __future__ import annotations

import itertools
import logging
from collections import deque
from collections.abc import Mapping, Sequence

from ppl_vae.pairs import COLLAPSED
from ppl_vae.training.latents import ERROR_OF_KL, KL, TERM

_logger = logging.getLogger(__name__)

DEAD_EPOCHS = 5
"""Epochs in a row for which a dimension carries nothing until it is called dead."""


def kl_of_epoch(metrics: Mapping[str, float]) -> dict[str, float]:
    """The KL of each dimension in the metrics of an epoch, by the dimension's name.

    Example:
        >>> kl_of_epoch({"epoch": 3, "rate": 2.0, "kl_z[0]": 1.9, "kl_z[1]": 0.1})
        {'z[0]': 1.9, 'z[1]': 0.1}
    """
    return {name[len(KL) :]: value for name, value in metrics.items() if name.startswith(KL)}


def terms_of_epoch(metrics: Mapping[str, float]) -> dict[str, float]:
    """What each dimension that has no KL adds to the rate, by the dimension's name, as `kl_of_epoch`.

    Example:
        >>> terms_of_epoch({"epoch": 3, "rate": 2.0, "kl_top": 2.1, "rate_middle": -0.1})
        {'middle': -0.1}
    """
    return {name[len(TERM) :]: value for name, value in metrics.items() if name.startswith(TERM)}


def dead_dimensions(history: Sequence[Mapping[str, float]]) -> tuple[str, ...]:
    """The dimensions that have carried less than 0.01 nats in each of the last 5 epochs.

    Where the KLs are of draws, two standard errors more are less than that. A dimension that has no KL is not
    known to be dead.

    Example:
        >>> dead_dimensions([{"epoch": i, "kl_z[0]": 1.0, "kl_z[1]": 0.001} for i in range(5)])
        ('z[1]',)
    """
    if len(history) < DEAD_EPOCHS:
        return ()
    dead = frozenset.intersection(*map(carry_nothing, history[-DEAD_EPOCHS:]))
    return tuple(name for name in kl_of_epoch(history[-1]) if name in dead)


def carry_nothing(metrics: Mapping[str, float]) -> frozenset[str]:
    """The dimensions that surely carry less than 0.01 nats, by the metrics of an epoch.

    Example:
        >>> sorted(carry_nothing({"kl_z[0]": 0.009, "kl_z[1]": 0.001, "error_of_kl": 0.002}))
        ['z[1]']
    """
    return frozenset(name[len(KL) :] for name in _below(metrics, KL, _least(metrics)))


def _least(metrics: Mapping[str, float]) -> float:
    """What a KL must be below to be surely less than 0.01 nats."""
    return COLLAPSED - 2 * metrics.get(ERROR_OF_KL, 0.0)


def _below(metrics: Mapping[str, float], of_what: str, least: float) -> frozenset[str]:
    """The metrics of a kind, such as `kl_`, that are below something."""
    return frozenset(n for n, value in metrics.items() if value < least and n.startswith(of_what))


class Deaths:
    """Says in the log that dimensions have died, each of them once, and at most every 5 epochs.

    Of dimensions that have no KL, it says so once, if what they add to the rate looks as if they had died.

    Args:
        history: The epochs before, when a training is resumed: what died in them has been said.
        speaks: Whether this process says it.
    """

    def __init__(self, history: Sequence[Mapping[str, float]], speaks: bool = True) -> None:
        self._named: set[str] = set()
        self._last = -DEAD_EPOCHS
        self._speaks = False
        self._doubted = False
        # Of the last epochs: the metrics of KLs that are surely nothing, and of terms that are as small.
        self._small: deque[tuple[frozenset[str], frozenset[str]]] = deque(maxlen=DEAD_EPOCHS)
        for end in range(1, len(history) + 1):
            self.look(history[:end][-DEAD_EPOCHS:], end)
        self._speaks = speaks

    def look(self, history: Sequence[Mapping[str, float]], epoch: int) -> None:
        """Looks at the epochs so far, of which the last has just ended."""
        for row in history[-1 if self._small else -DEAD_EPOCHS :]:
            self._small.append((_below(row, KL, _least(row)), _below(row, TERM, COLLAPSED)))
        if len(self._small) < DEAD_EPOCHS:
            return
        dead, small = (frozenset.intersection(*of) for of in zip(*self._small, strict=True))
        row = history[-1]
        if small and not self._doubted:
            self._doubted = True
            self._say(_not_known([n[len(TERM) :] for n in row if n in small], epoch))
        if epoch - self._last < DEAD_EPOCHS or dead <= self._named:
            return
        self._last = epoch
        new = [name[len(KL) :] for name in row if name in dead - self._named]
        self._named |= dead
        self._say(_said(new, sum(name.startswith((KL, TERM)) for name in row), epoch))

    def _say(self, text: str) -> None:
        if self._speaks:
            _logger.warning("%s", text)


def _not_known(small: Sequence[str], epoch: int) -> str:
    add, each, it_is = ("adds", "", "it is") if len(small) == 1 else ("add", " each", "they are")
    return (
        f"epoch {epoch}: {_few(small)} {add} less than {COLLAPSED} nats{each} to the rate, which does not say "
        f"that {it_is} unused: the prior depends on latents that the guide computes from the same draws, so "
        f"that this number ({TERM}{small[0]}) is no KL and may be negative. See active_units and diagnose()"
    )


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(itertools.islice(names, 3))}{more}"


def _said(new: Sequence[str], number: int, epoch: int) -> str:
    have, each = ("has", "") if len(new) == 1 else ("have", " each")
    every = "both latent dimensions" if number == 2 else f"all {number} latent dimensions"
    whole = every if 1 < len(new) == number else _few(new)
    return (
        f"epoch {epoch}: {whole} {have} carried less than {COLLAPSED} nats{each} for {DEAD_EPOCHS} epochs; "
        "diagnose() and `ppl-vae diagnose` say why"
    )
