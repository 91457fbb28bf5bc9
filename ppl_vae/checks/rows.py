"""Checks of what the rows are: latents of other plates, and latents that all rows share."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ppl_vae.checks.report import Problem
from ppl_vae.pairs import Layout, Site, Trace, latents_of_other_plates


def row_problems(
    model_trace: Trace, layout: Layout, minibatches: bool = False
) -> Iterator[Problem]:
    """What may be meant otherwise about rows, as warnings.

    Args:
        model_trace: The trace of the model.
        layout: Its layout.
        minibatches: Whether a batch holds only some of the rows.
    """
    if not layout.observed:
        return
    frames = {f.name: f for f in model_trace.nodes[layout.observed[0]]["cond_indep_stack"]}
    rows = frames[layout.plate]
    others = latents_of_other_plates(model_trace, layout)
    for name, plate in others.items():
        yield Problem(
            "warning",
            name,
            f"the data lie in plate '{rows.name}' and in plate '{plate}', and latent '{name}' is in '{plate}' "
            f"alone: the rows are taken to be the {rows.size} of '{rows.name}', the first dimension of x, and "
            f"'{name}' to be shared by all of them. If each of '{plate}' is a row, put its dimension first in "
            "x (x.transpose(0, 1)), and change it back in the programs",
        )
    unscaled = [name for name in layout.shared if _has_no_scale(model_trace.nodes[name])]
    if minibatches and unscaled and rows.full_size in (None, rows.size):
        name = unscaled[0]
        yield Problem(
            "warning",
            name,
            f"latent '{name}' is shared by all rows, but plate '{rows.name}' takes the {rows.size} rows of a "
            f"batch for all of the data: the KL of '{name}' counts once in each batch, not once in all. Tell "
            f'the plate the number N of all rows, pyro.plate("{rows.name}", N, subsample_size=len(x)), or '
            "train with batch_size = N",
        )


def _has_no_scale(site: Site) -> bool:
    """Whether nothing weights a site, such as `poutine.scale(scale=len(x) / N)`."""
    return bool((torch.as_tensor(site["scale"]) == 1).all())
