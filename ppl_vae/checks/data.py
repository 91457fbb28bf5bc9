"""Checks of the data for a pair: NaN, values outside the likelihood's support, values that all rows share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import Independent
from torch.distributions.constraints import Constraint

from ppl_vae.checks.report import Problem
from ppl_vae.checks.supports import in_words
from ppl_vae.distributions import HIDDEN, Given, Revealed
from ppl_vae.likelihoods import counts_of
from ppl_vae.pairs import (
    Batch,
    Pair,
    PairError,
    Site,
    innermost,
    name_of_argument,
    num_rows,
    present,
    rows_frame,
    tensors_of,
)


def data_problems(pair: Pair, sites: Mapping[str, Site], batch: Batch) -> Iterator[Problem]:
    """Problems with the data of a batch: not in a plate over the rows, NaN or infinite, outside the support.

    Args:
        pair: The pair.
        sites: The `sites_of_rows` of the model.
        batch: What it was called with.
    """
    n = num_rows(batch)
    dim: int | None = None
    if sites:
        try:
            dim = rows_frame(sites, n).dim
        except PairError as error:
            yield Problem("error", next(iter(sites)), str(error))
    for name, site in sites.items():
        found = unusable(name, site, n, dim, given=(pair, batch))
        if found is not None:
            problem, rows = found
            where = f"row {rows[0]} of the rows checked (counted from 0): " if rows else ""
            yield replace(problem, message=where + problem.message)


def same_for_all_rows(
    sites: Mapping[str, Site], batch: Batch, dim: int, surely: bool = False
) -> Iterator[Problem]:
    """Observed values that are broadcast over the rows: `x.mean(0)`, or a single row that stands for a batch.

    Args:
        sites: The `sites_of_rows` of the model.
        batch: What it was called with.
        dim: Where the plate over the rows is.
        surely: Whether every such value is an error, because the data may have been read otherwise than they
            were meant. An argument of the model always is, because its first dimension are the rows.
    """
    if num_rows(batch) == 1:
        return
    for name, site in sites.items():
        value = site["value"]
        shape = value.shape[: max(0, value.dim() - len(site["fn"].event_shape))]
        with_rows = len(shape) >= -dim and shape[dim] > 1
        # A factor has no value, and what is masked for all rows scores nothing.
        if with_rows or not value.numel() or not bool(present(site).any()):
            continue
        found = (
            f"site '{name}': its value, of shape {tuple(value.shape)}, has no dimension of rows: every row "
            "scores the same value"
        )
        if any(
            value.shape == x.shape and value.data_ptr() == x.data_ptr() for x in tensors_of(batch)
        ):
            found += "; it is the whole batch, which should be of shape (rows, ...)"
            yield Problem("error", name, found)
        elif surely:
            yield Problem("error", name, found)
        else:
            found += (
                "; if it is computed from the whole batch (x.mean(0)), the rows are not independent"
            )
            yield Problem("warning", name, found)


def unusable(
    name: str,
    site: Any,
    n: int,
    dim: int | None,
    support: Constraint | None = None,
    *,
    given: tuple[Pair, Batch],
) -> tuple[Problem, list[int]] | None:
    """The problem with the data at an observed site, if any, and its rows (none if they are not known).

    Args:
        name: The site.
        site: What it is.
        n: The number of rows.
        dim: Where the plate over rows is.
        support: The values that are allowed; None takes those of the site.
        given: The pair and its batch, in which the site's value may be an argument.
    """
    fn, value = site["fn"], site["value"]
    if value.numel() == 0:  # pyro.factor
        return None
    if not bool(torch.isfinite(value).all()):
        rows = rows_not_finite(site, dim)
        what = "NaN" if bool(torch.isnan(value).any()) else "infinite"
        place = _place_in_row(~torch.isfinite(value), site["fn"], dim)
        advice = (
            f"{_what(name, site, given)} are {what} in {len(rows) or 1} of the {n} rows checked{place}: "
            "remove those rows, or replace these values by any number and hide them from the likelihood with "
            "poutine.mask"
        )
        return Problem("error", name, advice), rows
    base = fn
    while isinstance(base, (Independent, dist.ExpandedDistribution, dist.MaskedDistribution)):
        if isinstance(base, dist.MaskedDistribution):  # masked values may be anything
            return None
        base = base.base_dist
    kind = type(base).__name__.lstrip("_")
    try:
        inside = (fn.support if support is None else support).check(value)
    except Exception:  # distributions without a support, or without one for this shape
        return None
    if kind == "Beta":  # its density at 0 and 1 may be infinite
        inside = inside & ~_any_of_event((value <= 0.0) | (value >= 1.0), fn)
    if isinstance(site["mask"], Tensor):
        inside = inside | ~site["mask"]
    if bool(inside.all()):
        return None
    low, high = float(value.min()), float(value.max())
    such = _such_as(base, value)
    advice = {
        "Bernoulli": "binarize it (load_data(..., binarize=...)), or choose a likelihood for its values",
        "Beta": "squeeze it into the open interval (0, 1)",
    }.get(kind, "transform the data or choose another likelihood")
    if kind == "Binomial":
        advice = counts_of(value, int(base.total_count.max()))
    elif (
        kind in ("QuantizedLogistic", "QuantizedBetaBinomial")
        and bool(value.min() >= 0)
        and value.max() == base.levels - 1
    ):
        advice = f"divide them by {base.levels - 1}"
    elif isinstance(base, Given | Revealed):
        what = _what(name, site, given)
        wanted = _labels_wanted(fn.support, value)
        text = f"{what} ({low:g} to {high:g}){such} must be {in_words(base)}: {wanted}"
        return Problem("error", name, text), _rows_of(~inside, dim)
    elif kind != "Bernoulli" and base.support.is_discrete and _were_bytes(value):
        advice = "they are k / 255, as arrays of type uint8 are read: give them as int64"
    problem = Problem(
        "error",
        name,
        f"the data at site '{name}' ({low:g} to {high:g}){such} are outside of the support of {kind}, "
        f"{in_words(base)}: {advice}",
    )
    return problem, _rows_of(~inside, dim)


def _were_bytes(value: Tensor) -> bool:
    """Whether values look like bytes that were divided by 255."""
    whole = 255 * value.double()
    if bool(value.min() < 0) or bool((value == value.round()).all()):
        return False
    return bool(value.max() <= 1) and bool(((whole - whole.round()).abs() < 1e-3).all())


def _what(name: str, site: Any, given: tuple[Pair, Batch]) -> str:
    """The data at a site; of what the model is given beside them, the argument that holds it."""
    if isinstance(innermost(site["fn"]), Given | Revealed):
        argument = name_of_argument(*given, site["value"])
        if argument:
            return f"the values of argument '{argument}'"
    return f"the data at site '{name}'"


def _labels_wanted(support: Any, value: Tensor) -> str:
    """What to do about labels, or other context of rows, that a model was not built for."""
    last = getattr(support, "upper_bound", None)
    if last is None or not support.is_discrete:
        return "give the model what it was built for"
    if bool((value != value.round()).any()):
        return "labels are whole numbers that count from 0"
    hides = getattr(support, "lower_bound", 0) == HIDDEN
    if hides and value.dtype == torch.uint8 and bool(value.max() == 255):
        return (
            f"a hidden label is -1, which {value.dtype} does not hold (it is 255 there): pass "
            "labels.long().where(labels != 255, -1), or in numpy "
            "numpy.where(labels == 255, -1, labels.astype(int))"
        )
    if not hides and bool(value.min() == HIDDEN) and bool(value.max() <= last):
        return (
            "the pair needs the label of every row: leave out rows whose label is hidden (-1), or use a "
            "SemiSupervisedVAE; labels count from 0"
        )
    if bool(value.min() == 1) and bool(value.max() == last + 1):
        return "labels count from 0: subtract 1"
    return (
        f"labels count from 0, and the pair is built for {int(last) + 1} of them: number yours in this way, or "
        "build model and guide for more"
    )


def _such_as(base: Any, value: Tensor) -> str:
    """The first number that is outside of the support of single numbers, with all of its digits."""
    try:
        outside = value[~base.support.check(value)]
    except Exception:  # a support of vectors, or of another shape
        return ""
    return f", such as {float(outside.flatten()[0]):.9g}," if outside.numel() else ""


def large_values(batch: Batch, power: int = 4, start: int = 0, name: str = "x") -> str:
    """The largest number of the data and its place, if a power of it is beyond its dtype; otherwise empty.

    Programs compute with squares and products of the data, and NaN or infinity then shows up anywhere.

    Args:
        batch: The rows.
        power: Which power.
        start: The number of the first row.
        name: What to call the data.

    Example:
        >>> large_values(torch.tensor([[0.0, 1.0], [0.0, -1e30]]))
        'x reaches -1e+30 in row 1 (counted from 0), column 1'
    """
    for i, x in enumerate(tensors_of(batch)):
        if not x.is_floating_point() or not x.numel():
            continue
        size = x.abs().nan_to_num(0.0, posinf=0.0)
        if float(size.max()) <= torch.finfo(x.dtype).max ** (1 / power):
            continue
        row, *place = (int(p) for p in torch.unravel_index(size.argmax(), size.shape))
        what = name if len(tensors_of(batch)) == 1 else f"{name}[{i}]"
        return (
            f"{what} reaches {float(x[(row, *place)]):.3g} in row {start + row} (counted from 0)"
            f"{_column(place)}"
        )
    return ""


def _place_in_row(bad: Tensor, fn: Any, dim: int | None) -> str:
    """Where in the first bad row the first bad number is; empty if a row is one number."""
    if dim is None or bad.dim() < -dim + len(fn.event_shape):
        return ""
    rows = bad.movedim(dim - len(fn.event_shape), 0)
    place = rows.nonzero()[0].tolist()[1:]
    return _column([p for p, size in zip(place, rows.shape[1:], strict=True) if size > 1])


def _column(place: Sequence[int]) -> str:
    if not place:
        return ""
    return f", column {place[0]}" if len(place) == 1 else f", at {list(place)} in the row"


def rows_not_finite(site: Any, dim: int | None) -> list[int]:
    """The rows with NaN or infinite data at an observed site, counted from 0 along the plate at `dim`."""
    return _rows_of(_any_of_event(~torch.isfinite(site["value"]), site["fn"]), dim)


def _any_of_event(bad: Tensor, fn: Any) -> Tensor:
    event_dim = min(len(fn.event_shape), bad.dim())
    return bad.flatten(bad.dim() - event_dim).any(-1) if event_dim else bad


def _rows_of(bad: Tensor, dim: int | None) -> list[int]:
    if dim is None or bad.dim() < -dim:
        return []
    rows = bad.movedim(dim, 0)
    found: list[int] = rows.reshape(len(rows), -1).any(1).nonzero().flatten().tolist()
    return found
