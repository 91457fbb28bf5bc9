"""Checks of what the rows are: latents of other plates, and what all rows share."""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch

from ppl_vae.checks.report import Problem
from ppl_vae.pairs import (
    Batch,
    Layout,
    Program,
    Site,
    Trace,
    is_factor,
    latents_of_other_plates,
    observed_sites,
    same_for_any_rows,
)


def row_problems(
    model_trace: Trace, layout: Layout, minibatches: bool = False, factors: bool = False
) -> Iterator[Problem]:
    """What may be meant otherwise about rows, as warnings.

    Args:
        model_trace: The trace of the model.
        layout: Its layout.
        minibatches: Whether a batch holds only some of the rows.
        factors: Whether a `pyro.factor` that counts once in each batch may be meant otherwise, too. In the loss
            of `fit` it weighs what it was given; EM sums over all batches, and should count it once in all.
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
    if not minibatches or rows.full_size not in (None, rows.size):
        return
    counted = {name: ("latent", f"KL of '{name}'") for name in layout.shared} | {
        name: ("factor", f"value of '{name}'")
        if is_factor(site)
        else ("observed site", f"log density of '{name}'")
        for name, site in observed_sites(model_trace).items()
        if name not in layout.observed and (factors or not is_factor(site))
    }
    for name, (kind, term) in counted.items():
        if not _has_no_scale(model_trace.nodes[name]):
            continue
        yield Problem(
            "warning",
            name,
            f"{kind} '{name}' is shared by all rows, but plate '{rows.name}' takes the {rows.size} rows of a "
            f"batch for all of the data: the {term} counts once in each batch, not once in all. Tell "
            f'the plate the number N of all rows, pyro.plate("{rows.name}", N, subsample_size=len(x)), or '
            "train with batch_size = N",
        )
        return


def factor_problems(
    model: Program, batch: Batch, model_trace: Trace, in_rows: Collection[str]
) -> Iterator[Problem]:
    """Factors of the model outside of all plates that follow the rows, as warnings.

    Args:
        model: The model; it runs twice if there are factors that belong to no row.
        batch: The rows.
        model_trace: The model's trace on them.
        in_rows: The `sites_of_rows`.
    """
    others = [name for name in observed_sites(model_trace) if name not in in_rows]
    same = same_for_any_rows(model, batch, others)
    for name in (n for n in others if n not in same):
        yield Problem(
            "warning",
            name,
            f"'{name}', outside of all plates, follows the rows: the loss of fit counts it, but the ELBO and "
            "log p(x) of a row do not. If it is a part of the likelihood, put it inside of the plate over "
            "rows, with a number for each row",
        )


def _has_no_scale(site: Site) -> bool:
    """Whether nothing weights a site, such as `poutine.scale(scale=len(x) / N)`."""
    return bool((torch.as_tensor(site["scale"]) == 1).all())
