"""The observed sites that hold the rows, and the expectations of their distributions."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

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


@dataclass(frozen=True)
class DataSites:
    """The observed site that holds the rows, or the sites of their steps, `x_0`, `x_1`, ...

    Args:
        names: The sites, in the order of the steps.
        steps: Whether each is a step of the rows: the second dimension of these.
    """

    names: tuple[str, ...]
    steps: bool = False

    def __str__(self) -> str:
        first, last = (f"'{self.names[i]}'" for i in (0, -1))
        return first if len(self.names) == 1 else f"{first} to {last}"

    def categorical(self, trace: Trace) -> bool:
        """Whether the values are numbers of categories."""
        return is_categorical(trace.nodes[self.names[0]])

    def value(self, trace: Trace) -> Tensor:
        """The values in a trace, `(n, *event)`."""
        return self._whole([trace.nodes[name]["value"] for name in self.names], 1)

    def expectation(self, trace: Trace, layout: Layout, num_samples: int, n: int) -> Tensor:
        """E[x | z], `(num_samples, n, *event)`; of categories their probabilities, as `expectation` says.

        Raises:
            NoMeanError: The distribution states no mean.
        """
        each = [expectation(name, trace.nodes[name], layout, num_samples, n) for name in self.names]
        return self._whole(each, 2)

    def drawn(self, trace: Trace, layout: Layout, num_samples: int, n: int) -> Tensor:
        """Draws of x, in the shape of their expectation."""
        return self._whole(
            [drawn(trace.nodes[name], layout, num_samples, n) for name in self.names], 2
        )

    def _whole(self, each: list[Tensor], dim: int) -> Tensor:
        return torch.stack(each, dim) if self.steps else each[0]


def data_sites(trace: Trace, observed: Sequence[str], x: Tensor, site: str | None) -> DataSites:
    """The observed site that holds the rows, or those that hold their steps.

    A model may observe the steps `x[:, 0]`, `x[:, 1]`, ... of its rows at numbered sites of their own, as
    hidden Markov models do. Where all steps are observed as they are, the values say which site holds which
    step; else the numbers do.

    Args:
        trace: A trace of the model.
        observed: The observed sites.
        x: The first tensor of the rows.
        site: The name that was asked for, or what the names of several steps begin with; None takes the only
            one, or else the one of the shape of `x`, or those of its steps.

    Raises:
        ValueError: There is no such site, or it is unclear which one is meant.
    """
    names = [name for name in observed if not isinstance(trace.nodes[name]["fn"], dist.Unit)]
    series = _numbered(names)
    values: dict[str, Tensor] = {name: trace.nodes[name]["value"] for name in names}
    if site is not None and site not in names:
        if site not in series:
            raise ValueError(
                f"'{site}' is no site that the model observes (it observes {_listed(names)})"
            )
        return DataSites(in_order(values, series[site], x), steps=True)
    if site is not None:
        return DataSites((site,))
    shapes = {name: value.shape[1:] for name, value in values.items()}
    fitting = [DataSites((name,)) for name in names if shapes[name] == x.shape[1:]]
    of_steps = [
        DataSites(in_order(values, each, x), steps=True)
        for each in series.values()
        if x.shape[1:2] == (len(each),) and all(shapes[n] == x.shape[2:] for n in each)
    ]
    as_they_are = [each for each in of_steps if _holds(trace, each.names, x)]
    for found in (fitting, of_steps, as_they_are):
        if len(found) == 1:
            return found[0]
    if len(names) == 1:
        return DataSites((names[0],))
    raise ValueError(
        f"the model observes {_listed(names)}: say which one is meant, as site='{names[0] if names else 'x'}'"
    )


def in_order(values: Mapping[str, Tensor], names: Sequence[str], x: Tensor) -> tuple[str, ...]:
    """Sites in the order of the steps that they hold; in that of their numbers, if the values say nothing.

    Args:
        values: What the sites hold.
        names: The sites.
        x: The rows.
    """
    steps: dict[int, str] = {}
    for name in names:
        same = [
            t
            for t in range(x.shape[1])
            if values[name].shape == x[:, t].shape and _equal(values[name], x[:, t])
        ]
        if len(same) == 1:
            steps[same[0]] = name
    if x.shape[1] == len(names) == len(steps):
        return tuple(steps[t] for t in sorted(steps))
    return tuple(names)


def _holds(trace: Trace, names: Sequence[str], x: Tensor) -> bool:
    """Whether sites hold the steps of the rows as they are."""
    return all(_equal(trace.nodes[name]["value"], x[:, t]) for t, name in enumerate(names))


def _equal(value: Tensor, other: Tensor) -> bool:
    return bool(((value == other) | ((value != value) & (other != other))).all())


def _numbered(names: Sequence[str]) -> dict[str, list[str]]:
    """Names that differ in a number at their end alone, counted from 0 or 1, by what they begin with."""
    series: dict[str, dict[int, str]] = {}
    for name in names:
        if found := re.fullmatch(r"(.*?)(0|[1-9]\d*)", name):
            series.setdefault(found[1], {})[int(found[2])] = name
    return {
        start.removesuffix("_"): [numbers[i] for i in sorted(numbers)]
        for start, numbers in series.items()
        if sorted(numbers) == list(range(min(numbers), min(numbers) + len(numbers)))
        and min(numbers) in (0, 1)
    }


def _listed(names: Sequence[str]) -> str:
    """Names as a sentence has them; of many, the first and the last."""
    if len(names) > 6:
        return f"'{names[0]}', '{names[1]}', ... '{names[-1]}'"
    return ", ".join(f"'{name}'" for name in names) or "none"


def expectation(name: str, site: Site, layout: Layout, num_samples: int, n: int) -> Tensor:
    """The mean of a site's distribution, `(num_samples, n, *event)`.

    Of a categorical one it is the probabilities of the values, with one more dimension at the end; so it is of
    one with many elements that states these as `marginals`, such as a Markov chain.

    Raises:
        NoMeanError: The distribution states no mean.
    """
    fn = site["fn"]
    shape = fn.batch_shape + fn.event_shape
    probs = (
        innermost(fn).probs if is_categorical(site) else getattr(innermost(fn), "marginals", None)
    )
    if isinstance(probs, Tensor):
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
