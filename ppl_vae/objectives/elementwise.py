"""The exact ELBO of a discrete latent with many elements, such as a segment per pixel."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ppl_vae.objectives.base import Loss, Objective
from ppl_vae.pairs import (
    Batch,
    Buffers,
    Elements,
    ElementTables,
    Layout,
    Pair,
    PairError,
    as_args,
    element_tables,
    elements_of,
    expected_value,
    find_layout,
    is_posterior,
    num_rows,
    sharing_work,
    states_elements,
    sum_to_rows,
)


@dataclass(frozen=True, kw_only=True)
class OfElements(Objective):
    """An objective of one discrete latent z_1, ..., z_m, of which the likelihood takes one at a time."""

    loss_is_elbo = True
    why_no_free_bits = " for a discrete latent; set free_bits=0"

    def resolve(self, pair: Pair, batch: Batch) -> Objective:
        self.elements(pair, find_layout(pair, batch), batch)
        return self

    def elements(self, pair: Pair, layout: Layout, batch: Batch) -> Elements:
        """The elements of the pair's latent.

        Raises:
            PairError: It is no such pair.
        """
        found = known_elements(pair, layout, batch)
        if found is None:
            norm = _OF_BATCH_NORM if _batch_norms(pair) else ""
            raise PairError(
                f"{type(self).__name__} needs a guide that draws one discrete latent, whose event holds "
                "several elements with few values and known marginals, a formula of its KL, and a likelihood "
                f"that takes one element at a time: use ELBO, which chooses what suits the pair{norm}"
            )
        return found


_OF_BATCH_NORM = (
    ". Batch norm in a decoder mixes elements and rows in training: take group or layer norm there"
)


def _batch_norms(pair: Pair) -> bool:
    """Whether modules of the pair take statistics of a batch in training."""
    parts = (part for root in pair.modules().values() for part in root.modules())
    return any(isinstance(part, nn.modules.batchnorm._NormBase) for part in parts)


def known_elements(pair: Pair, layout: Layout, batch: Batch) -> Elements | None:
    """`elements_of` a pair, which is looked for once for each layout: it runs the pair several times."""
    known = _KNOWN.setdefault(pair, {})
    if layout.signature not in known:
        with pair.mode(training=False):  # batch statistics come from training steps alone
            found = elements_of(pair, layout, batch)
        if found is not None and not states_elements(pair) and _batch_norms(pair):
            # The decoder runs with one value everywhere, of which it would take the statistics.
            buffers = Buffers(pair.modules().values())
            before = buffers.copies()
            with pair.mode(training=True):
                found = elements_of(pair, layout, batch)
            buffers.put_back(before)
        known[layout.signature] = found
    return known[layout.signature]


@dataclass(frozen=True, kw_only=True)
class ElementwiseELBO(OfElements):
    """The ELBO of one discrete latent z = (z_1, ..., z_m), summed over its values one element at a time.

        ELBO = sum_i sum_k q(z_i = k | x) log p(x | z_i = k) - beta KL(q(z | x) || p(z))

    where log p(x | z) is a sum of terms with one element each, as the colors of pixels with a segment each are.
    It needs K runs of the model's likelihood, in one, instead of K^m; there are no draws, and so there is no
    noise. The elements need not be independent: of a Markov chain the marginals and the KL are known as well.
    With the exact posterior (`Exact`) as the guide, value and gradient are those of log p(x), at beta = 1.

    It is what `ELBO` chooses for models of this library (`IndependentSegments`, ...). For a model of your own
    ask for it: that the likelihood takes one element at a time is tried at random values, which finds nearly
    all that do not. For elements in plates Pyro's enumeration does the same: `EnumELBO`.

    Raises:
        PairError: The pair is no such pair, or there is no formula of its KL.
        ValueError: free_bits is not 0.

    Example:
        >>> ElementwiseELBO(beta=0.5)
        ElementwiseELBO(beta=0.5, free_bits=0.0, num_particles=1)
    """

    loss_is_elbo = True  # said here, as the loss is computed here

    def __call__(self, pair: Pair, layout: Layout, batch: Batch, beta: float = 1.0) -> Loss:
        elements = self.elements(pair, layout, batch)
        evidence = None if isinstance(beta, Tensor) or beta != 1.0 else _log_evidence(pair)
        with sharing_work():
            # The marginals of an exact posterior are then for the metrics alone, which need no gradient.
            loss = None if evidence is None else -evidence(*as_args(batch)).mean()
            with torch.set_grad_enabled(loss is None and torch.is_grad_enabled()):
                tables = element_tables(pair, layout, batch, elements)
                likelihood = expected_likelihood(tables, layout, num_rows(batch))
                rate = mean_over_rows(tables.kl, layout, num_rows(batch))
        if loss is None:
            loss = beta * rate - likelihood
        likelihood, rate = likelihood.detach(), rate.detach()
        return Loss(loss, likelihood - rate, rate, -likelihood, [tables.traces])


_KNOWN: WeakKeyDictionary[Pair, dict[object, Elements | None]] = WeakKeyDictionary()
"""The elements of pairs, for each layout."""


def _log_evidence(pair: Pair) -> Callable[..., Tensor] | None:
    """The model's own log p(x), if the guide is its posterior: then it is the ELBO, with the same gradient."""
    if not is_posterior(pair.model, pair.guide):
        return None
    return getattr(pair.model, "log_evidence", None)


def independent_elements(table: Tensor | None, name: str, of: str = "guide") -> Tensor:
    """A table of `ElementTables` that there is only for independent elements.

    Args:
        table: The table.
        name: Of the objective that needs it.
        of: Whether it is the table of the guide or of the prior.

    Raises:
        PairError: There is none.
    """
    if table is None:
        other = "use a guide with independent elements, such as SegmentationEncoder, or "
        raise PairError(
            f"{name} is for elements that are independent under the {of}: {other if of == 'guide' else 'use '}"
            "ELBO, which takes the exact expectation"
        )
    return table


def expected_likelihood(tables: ElementTables, layout: Layout, n: int) -> Tensor:
    """E_q log p(x | z), the mean over rows."""
    return mean_of_elements(expected_value(tables.q, tables.log_likelihood, 0), layout, n)


def mean_of_elements(terms: Tensor, layout: Layout, n: int) -> Tensor:
    """The mean over rows of the sum over elements, from `(*plates, *event)`."""
    event = terms.dim() - layout.nesting
    return mean_over_rows(terms.flatten(-event).sum(-1) if event else terms, layout, n)


def mean_over_rows(of_rows: Tensor, layout: Layout, n: int) -> Tensor:
    """The mean over rows, from `(*plates)`."""
    return sum_to_rows(of_rows, layout, 1, n).sum() / n
