"""The observed sites that hold the rows, and the expectations of their distributions."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_vae.checks import PairWarning, Session
from ppl_vae.pairs import (
    Layout,
    PairError,
    Site,
    Trace,
    center,
    innermost,
    is_categorical,
    rows_first,
)


class NoMeanError(PairError):
    """The distribution of an observed site states no mean."""


def data_site(trace: Trace, observed: Sequence[str], x: Tensor, site: str | None) -> str:
    """The name of the observed site that holds the rows.

    Args:
        trace: A trace of the model.
        observed: The observed sites.
        x: The first tensor of the rows.
        site: The name that was asked for; None takes the only one, or else the one of the shape of `x`.

    Raises:
        ValueError: There is no such site, or it is unclear which one is meant.
    """
    names = [name for name in observed if not isinstance(trace.nodes[name]["fn"], dist.Unit)]
    listed = ", ".join(f"'{name}'" for name in names) or "none"
    if site is not None:
        if site not in names:
            raise ValueError(f"'{site}' is no site that the model observes (it observes {listed})")
        return site
    fitting = [n for n in names if trace.nodes[n]["value"].shape[1:] == x.shape[1:]]
    for found in (names, fitting):
        if len(found) == 1:
            return found[0]
    raise ValueError(f"the model observes {listed}: say which one is meant, as site='x'")


def expectation(name: str, site: Site, layout: Layout, num_samples: int, n: int) -> Tensor:
    """The mean of a site's distribution, `(num_samples, n, *event)`.

    Of a categorical one it is the probabilities of the values, with one more dimension at the end.

    Raises:
        NoMeanError: The distribution states no mean.
    """
    fn = site["fn"]
    shape = fn.batch_shape + fn.event_shape
    if is_categorical(site):
        probs = innermost(fn).probs
        probs = probs.expand(*shape, probs.shape[-1])
        each = [rows_first({**site, "value": p}, layout, num_samples, n) for p in probs.unbind(-1)]
        return torch.stack(each, -1)
    try:
        mean = center(fn)
    except (NotImplementedError, AttributeError) as error:
        kind = type(innermost(fn)).__name__
        why = f" ({error})" if str(error) else ""
        raise NoMeanError(
            f"the distribution of site '{name}', {kind}, states no mean: ask for draws, with means=False{why}"
        ) from error
    return rows_first({**site, "value": mean.expand(shape)}, layout, num_samples, n)


def drawn(site: Site, layout: Layout, num_samples: int, n: int) -> Tensor:
    """A draw from a site's distribution, in the shape of its `expectation`: of a categorical one, one-hot."""
    fn = site["fn"]
    value = fn.sample()
    if not is_categorical(site):
        return rows_first({**site, "value": value}, layout, num_samples, n)
    labels = rows_first({**site, "value": value}, layout, num_samples, n).long()
    return torch.nn.functional.one_hot(labels, innermost(fn).probs.shape[-1]).to(
        innermost(fn).probs
    )


def tell(session: Session) -> None:
    """Warns of what the checks have found, once all rows were read."""
    for text in session.findings.doubts:
        warnings.warn(text, PairWarning, stacklevel=3)


def require_any_rows(session: Session) -> None:
    """Refuses a pair with parameters for each row, which knows no others.

    Raises:
        PairError: It is one.
    """
    if session.pair.keeps_rows:
        raise PairError(
            "the pair keeps parameters for each row, so it makes no rows but these: use one that is amortized"
        )


def require_drawn(session: Session) -> None:
    """Refuses a model that sums latents out: E[x | z] is one for each of their values then.

    Raises:
        PairError: It does.
    """
    if session.layout.enumerated:
        names = ", ".join(f"'{name}'" for name in session.layout.enumerated)
        raise PairError(
            f"the model sums {names} out, and E[x | z] is another one for each value: give a guide that draws "
            'them, such as Exact or Enumerated, and a model without infer={"enumerate": "parallel"}'
        )
