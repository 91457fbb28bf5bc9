"""The device of a pair: `auto` is a GPU only for a pair that runs there."""

from __future__ import annotations

import warnings

import pyro
import torch

from ppl_vae.checks.programs import aside, restored
from ppl_vae.checks.report import PairWarning, mixes_devices
from ppl_vae.pairs import Batches, Pair, first_line, move, take_rows, trace_pair
from ppl_vae.runtime import resolve_device

_ROWS = 64


def device_for(pair: Pair, batches: Batches, device: str) -> str:
    """The name of the device on which a pair is to compute.

    A program that makes tensors of its own makes them on the CPU, as in `dist.Normal(torch.zeros(2), 1.0)`,
    unless it is written for a GPU. With `auto`, the pair is moved to the GPU and tried on the first rows; if
    it mixes devices there, it is to compute on the CPU, with a warning. Only this is tried: whatever else is
    wrong is found by `check`.

    Args:
        pair: The pair, outside of its scope. If it is tried, its modules stay on the GPU.
        batches: The rows.
        device: As for `resolve_device`.

    Returns:
        The name that was given, or `cpu`.

    Raises:
        ValueError: There is no such device, or torch cannot see it.
    """
    chosen = resolve_device(device)
    if device != "auto" or chosen.type == "cpu":
        return device
    pair.to(chosen)
    if pair.keeps_rows and batches.in_memory:
        first = batches.rows
    else:
        first = take_rows(batches.first(_ROWS), slice(0, _ROWS))
    first = move(first, chosen)
    with pair.scope(), restored(pair), aside(pair), pyro.validation_enabled(False):
        try:
            with torch.no_grad():
                for trace in trace_pair(pair, first):
                    trace.compute_log_prob()
        except Exception as error:
            if not mixes_devices(error):
                return device
            reason = first_line(error)
        else:
            return device
    warnings.warn(
        f"the pair computes on the CPU: on the GPU it mixes devices ({reason}). To use the GPU, make the "
        "programs' own tensors where x is, as in torch.zeros(2, device=x.device); device='cpu' silences "
        "this warning",
        PairWarning,
        stacklevel=3,
    )
    return "cpu"
