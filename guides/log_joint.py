"""The density of a model at values that a guide proposes, hidden from whoever runs the guide."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.util import site_is_subsample
from torch import Tensor

Model = Callable[[Tensor], Any]


def hidden_sites(model: Model, x: Tensor, values: Mapping[str, Tensor]) -> dict[str, Any]:
    """Run the model with latents of given values, unseen by all handlers; return its sample sites."""
    with poutine.block():
        trace: Any = poutine.trace(poutine.condition(model, data=dict(values))).get_trace(x)
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample"
        and not site_is_subsample(site)
        and not site["infer"].get("_deterministic", False)
    }


def rows_frame(name: str, site: Mapping[str, Any], n: int) -> Any:
    """Return the outermost plate of size n around a site, with its name and its dim from the right.

    Raises:
        ValueError: there is none.
    """
    frames = [f for f in site["cond_indep_stack"] if f.vectorized and f.size == n]
    if not frames:
        raise ValueError(
            f"the model's site '{name}' is not inside a plate over the {n} rows it was run on: put "
            f'all its sites inside of `with pyro.plate("data", x.shape[0]):`'
        )
    return min(frames, key=lambda frame: frame.dim)


def log_joint(model: Model, x: Tensor, values: Mapping[str, Tensor]) -> Tensor:
    """Return log p(x, z) of every row, `(n,)`, in nats, differentiable; masks count, scales do not.

    Handlers around the call (plates over samples, beta, traces) neither see nor change it.

    Args:
        model: a Pyro program `model(x)` with independent rows in a plate.
        x: data, `(n, *data_shape)`.
        values: all latents by site, `(n, *event)` each.

    Raises:
        ValueError: the model has a latent that is not among `values`, or a site outside of the
            plate over rows.
    """
    n = x.shape[0]
    terms: list[Tensor] = []
    for name, site in hidden_sites(model, x, values).items():
        if not site["is_observed"]:
            known = ", ".join(f"'{z}'" for z in values)
            raise ValueError(
                f"the model has a latent site '{name}' beside {known}: this guide knows no value "
                f"for it; use a guide that samples '{name}' too"
            )
        log_prob = scale_and_mask(site["fn"].log_prob(site["value"]), mask=site["mask"])
        terms.append(log_prob.movedim(rows_frame(name, site, n).dim, 0).reshape(n, -1).sum(-1))
    return torch.stack(terms).sum(0)


def repeat_rows(x: Tensor, times: int) -> Tensor:
    """Return x below itself, `(times * n, *data_shape)`, so that one run holds many proposals."""
    return x.expand(times, *x.shape).reshape(times * x.shape[0], *x.shape[1:])
