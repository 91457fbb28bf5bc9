"""Rows whose latents are known: maximum likelihood of both programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import pyro.poutine as poutine
import torch
from torch import Tensor

from ppl_vae.objectives.alternating import Alternating, Turn, require_unweighted
from ppl_vae.objectives.base import Loss
from ppl_vae.objectives.real_latents import Latents, RealLatents, SetReal, require_possible
from ppl_vae.objectives.schedules import require_bool
from ppl_vae.objectives.scored_draws import (
    density_of_rows,
    elbo_of_rows,
    require_draws,
    require_elbo_rows,
    whole_guide,
)
from ppl_vae.pairs import (
    Batch,
    Layout,
    Pair,
    PairError,
    Substitute,
    as_args,
    is_factor,
    num_rows,
    tensors_of,
    trace_guide,
    with_tensors,
)

_OWNER = "KnownLatents.pairs"
"""What holds the rows and their latents, for messages."""


@dataclass(frozen=True, kw_only=True)
class KnownLatents(Alternating):
    """Both programs learn from rows whose latents are known, such as sentences with their translations.

    In nats per row, with (x, z) from `pairs`,

        pairs = -log p(x, z) - log q(z | x)

    Each step draws as many pairs as the batch has rows, or fewer; the rows of the batch themselves are not
    used, so that this objective goes together with others: see `Together`. Alone it is supervised training:
    `fit(model, guide, x, objective=KnownLatents((x, z)))`. The ELBO that is logged is that of `elbo_rows` rows
    of each batch, by draws.

    Attributes:
        pairs: Rows and their latents, `(x, z)`, each a tensor with as many rows as the other, or something with
            a method `draw(n)` that returns both.
        learn_prior: Whether p(z) learns from them, if it has parameters.
        elbo_rows: Rows of each batch by which the ELBO is logged; with 0 it is NaN, which is right where
            another objective logs it.

    Raises:
        PairError: The programs are given more than x, or the known values are not those of the latents, or
            rows or values are outside of the support of the model.
        TypeError: A setting is of another type.
        ValueError: A setting is out of its range, or beta is not 1 or free_bits not 0: the losses have no KL.

    Example:
        >>> import torch
        >>> KnownLatents((torch.tensor([0, 1]), torch.tensor([1, 0])), learn_prior=False).learn_prior
        False
    """

    judged_by_elbo = False
    why_no_free_bits = ": the loss has no KL; set free_bits=0"

    pairs: Latents = field(kw_only=False)
    learn_prior: bool = True
    elbo_rows: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        require_unweighted(self)
        require_bool("KnownLatents", "learn_prior", self.learn_prior)
        require_elbo_rows(self, self.elbo_rows)
        object.__setattr__(self, "pairs", self._given)

    @property
    def _given(self) -> RealLatents:
        return RealLatents.of(_OWNER, self.pairs, paired=True)

    def turns(self, pair: Pair) -> Sequence[Turn]:
        """See `Alternating.turns`."""
        return [Turn("pairs", self._pairs, [pair.model, *whole_guide(pair)])]

    def _pairs(self, pair: Pair, layout: Layout, batch: Batch, beta: float) -> Loss:
        require_draws(layout, "KnownLatents")
        n, (given, *others) = num_rows(batch), tensors_of(batch)
        if others:
            raise PairError(
                "KnownLatents has rows x and their z, and the programs are given more than x: let one argument "
                "hold all of a row"
            )
        x, values = self._given.drawn(n, layout, given.device)
        assert x is not None  # as they are paired
        n = len(x)
        known = with_tensors(batch, [_of_dtype(x, given.dtype)])
        known_model = SetReal(values, _OWNER, layout.dim)(pair.model)
        model = poutine.trace(known_model).get_trace(*as_args(known))
        for name in layout.observed:
            if not is_factor(model.nodes[name]):
                require_possible(_OWNER, model.nodes[name], layout.dim)
        guide = trace_guide(Substitute(values)(pair.guide), *as_args(known))
        rows, prior = (
            density_of_rows(model, names, layout, 1, n)
            for names in (layout.observed, layout.latents)
        )
        log_q: Tensor = density_of_rows(guide, layout.guide_sites, layout, 1, n)
        loss = -(rows + log_q).mean()
        if self.learn_prior:
            loss = loss - prior.mean()
        return replace(elbo_of_rows(pair, layout, batch, self.elbo_rows), loss=loss)


def _of_dtype(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Rows of the dtype of the batch.

    Raises:
        PairError: They are not whole numbers, as those of the batch are.
    """
    found = x.to(dtype)
    if x.is_floating_point() and not dtype.is_floating_point and bool((found != x).any()):
        raise PairError(
            f"{_OWNER}: the rows x hold {float(x[found != x][0]):g}, and those of the batch are whole numbers "
            f"({dtype})"
        )
    return found
