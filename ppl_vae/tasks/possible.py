"""Values that cannot be where they are given or observed, noticed as a model runs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppl_vae.checks import constraint_in_words
from ppl_vae.pairs import support_of


class Possible(Messenger):
    """Notes values that are given or observed where they cannot be, before the model uses them.

    Args:
        drawn: The observed sites that are drawn.
        held: The latents that are given.
        free: Those that may be given, too.
        beside: The arguments that are given.

    Attributes:
        problem: What is wrong: a value is outside of the support of its site, or draws of latents exclude it.
            None if nothing is.
    """

    def __init__(
        self,
        drawn: Collection[str],
        held: Collection[str],
        free: Collection[str],
        beside: Mapping[str, Tensor],
    ) -> None:
        super().__init__()
        self.drawn, self.held, self.free, self.beside = drawn, held, free, beside
        self.problem: str | None = None

    def _pyro_post_sample(self, msg: Any) -> None:
        name, fn, value = msg["name"], msg["fn"], msg["value"]
        observed = msg["is_observed"] and name not in self.drawn and not isinstance(fn, dist.Unit)
        if self.problem is not None or not (observed or name in self.held):
            return
        mask = msg["mask"] if isinstance(msg["mask"], Tensor) else torch.tensor(True)
        mask = mask.to(value.device)
        support = support_of(fn)
        wrong = mask if support is None else mask & ~support.check(value)
        if support is not None and bool(wrong.any()):
            given = self._given(name, value)
            where = f"given['{given}'] holds {_first(value, wrong)}"
            if not given:
                where = f"{_first(value, wrong)} is observed at site '{name}'"
            self.problem = f"{where}: expected {constraint_in_words(support)}"
        elif observed:
            with pyro.validation_enabled(False):  # masked values may be anything
                excluded = mask & (fn.log_prob(value) == -torch.inf)
            if bool(excluded.any()):
                given = ", ".join(f"'{latent}': values" for latent in self.free)
                remedy = f"Give the latents, too: given={{{given}}}"
                what = self._given(name, value)
                what = f"given['{what}']" if what else f"what is observed at site '{name}'"
                self.problem = (
                    f"the draws exclude {what}, {_first(value, excluded)} for example: what is observed does "
                    f"not change p(z). {remedy if given else 'Give the latents that suit it'}"
                )

    def _given(self, site: str, value: Tensor) -> str:
        """The name by which a value was given; empty if it was not."""
        if site in self.held:
            return site
        for name, given in self.beside.items():
            if given.shape == value.shape and bool((given == value).all()):
                return name
        return ""


def _first(values: Tensor, which: Tensor) -> str:
    """The first of some values."""
    found = values.expand(which.shape + values.shape[which.dim() :])[which][0]
    return f"{found.item():g}" if found.numel() == 1 else str(found.tolist())
