"""Whether Pyro's autoguides keep parameters for each row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro
import torch
from pyro.infer.autoguide import AutoCallable, AutoGuide, AutoGuideList, AutoMessenger

from ppl_vae.pairs.modules import modules_of_program
from ppl_vae.pairs.programs import Batch, Program, as_args
from ppl_vae.pairs.row_plate import find_rows, one_row_fewer, run_alone
from ppl_vae.pairs.traces import latent_sites


def autoguides_of(guide: Program) -> list[Any]:
    """The autoguides that a guide is, holds or calls, without parts that are your own programs.

    Messengers are among them: `AutoNormalMessenger` and similar guides.
    """
    modules = modules_of_program(guide, "guide").values()
    inner = {id(module): module for root in modules for module in root.modules()}
    return [
        m
        for m in inner.values()
        if isinstance(m, (AutoGuide, AutoMessenger)) and not isinstance(m, _WITHOUT_LATENTS)
    ]


def keep_rows(guides: Sequence[Any], model: Program, batch: Batch) -> bool:
    """Whether one of the autoguides has a latent inside the plate over rows, with parameters for each row.

    An autoguide over latents that all rows share does not, nor one whose `create_plates` addresses the rows by
    their indices. If the model cannot be run alone on these rows, the answer is yes.

    Args:
        guides: The autoguides.
        model: The model of the pair.
        batch: Some rows, on the device of the programs.
    """
    try:
        trace = run_alone(model, batch)
        plate = find_rows(model, batch, trace).name
        return any(_keeps(guide, plate, batch) for guide in guides)
    except Exception:  # it needs exactly its rows, or what is wrong is reported elsewhere
        return True


_WITHOUT_LATENTS = (AutoCallable, AutoGuideList)
"""Autoguides that only hold others."""


def _keeps(guide: Any, plate: str, batch: Batch) -> bool:
    sites = latent_sites(run_alone(guide.model, batch)).values()
    frames = [f for site in sites for f in site["cond_indep_stack"] if f.name == plate]
    if isinstance(guide, AutoMessenger):
        return bool(frames) and plate not in guide.amortized_plates
    return bool(frames) and plate not in _plates_by_index(guide, batch)


def _plates_by_index(guide: Any, batch: Batch) -> set[str]:
    """The plates that `create_plates` makes for any rows, by their indices."""
    master = guide if guide.master is None else guide.master()
    if master.create_plates is None:
        return set()
    made = master.create_plates(*as_args(one_row_fewer(batch)))
    plates = [made] if isinstance(made, pyro.plate) else list(made)
    return {p.name for p in plates if p.subsample_size < p.size}


def device_of_programs(model: Program, guides: Sequence[Any]) -> torch.device:
    """The device of the parameters of a model and its autoguides; the CPU if there are none."""
    modules = [*modules_of_program(model, "model").values(), *guides]
    tensors = (p for module in modules for p in module.parameters())
    return next((p.device for p in tensors), torch.device("cpu"))
