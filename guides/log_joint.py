"""The density of a model at values that a guide proposes, computed out of sight of all handlers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from ppl_vae.pairs import PairError, Site, Trace, rows_frame, sample_sites, unscaled

Model = Callable[..., Any]


def hidden_trace(
    model: Model, x: Tensor, values: Mapping[str, Tensor], others: Sequence[Tensor | None] = ()
) -> Trace:
    """Runs the model with latents of given values, hidden from all handlers."""
    with poutine.block():
        return poutine.trace(poutine.condition(model, data=dict(values))).get_trace(x, *others)


def rows_plate(name: str, site: Site, n: int) -> Any:
    """The outermost plate of size n around a site, with its name and its dim from the right.

    Raises:
        ValueError: There is none.
    """
    try:
        return rows_frame({name: site}, n)
    except PairError:
        raise ValueError(
            f"the model's site '{name}' is not inside a plate over the {n} rows it was run on: put "
            f'all its sites inside `with pyro.plate("data", x.shape[0]):`'
        ) from None


def log_joint(
    model: Model, x: Tensor, values: Mapping[str, Tensor], others: Sequence[Tensor | None] = ()
) -> Tensor:
    """log p(x, z) of every row, `(n,)`, in nats, differentiable, with masks but without scales.

    Handlers around the call (plates over samples, beta, traces) neither see nor change it.

    Args:
        model: A Pyro program `model(x, *others)` with independent rows in a plate.
        x: Data, `(n, *data_shape)`.
        values: All latents by site, `(n, *event)` each.
        others: What the rows come with, `(n, ...)` each, for a model that is given it.

    Raises:
        ValueError: The model has a latent that is not among `values`, or a site outside the plate
            over rows.
    """
    n = x.shape[0]
    terms: list[Tensor] = []
    for name, site in sample_sites(hidden_trace(model, x, values, others)).items():
        if not site["is_observed"]:
            known = ", ".join(f"'{z}'" for z in values)
            raise ValueError(
                f"the model has a latent site '{name}' beside {known}: this guide knows no value "
                f"for it; use a guide that samples '{name}' too"
            )
        terms.append(
            unscaled(site).movedim(rows_plate(name, site, n).dim, 0).reshape(n, -1).sum(-1)
        )
    return torch.stack(terms).sum(0)


def repeat_rows(x: Tensor, times: int) -> Tensor:
    """Copies of x below each other, `(times * n, *data_shape)`: one run holds many proposals."""
    return x.expand(times, *x.shape).reshape(times * x.shape[0], *x.shape[1:])
