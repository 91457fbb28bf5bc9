"""Functions that are not one-to-one: other draws that give the same latents."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ppl_vae.pairs.guide_maps import Block, GuideMap

_MOST_FOLDED = 8
"""Most draws that are moved one by one to find others that give the same latents."""


def fold(of: GuideMap, block: Block) -> float:
    """log of 1 + the sum of q(v) / q(u) over other draws v with the same numbers of latents.

    -u is tried, and u + 2 pi k. If each number of u alone can be moved so, their densities count as
    independent. There the determinant is the same, because the function is.
    """
    start, rows, columns = of.start.detach(), block.rows, block.columns

    def moved(by: Tensor, which: Tensor) -> Tensor:
        there = start.clone()
        there[which] = by[which]
        return there

    def change(there: Tensor) -> Tensor:
        with torch.no_grad():
            numbers = of.at(there).numbers
        return (numbers - of.image.numbers.detach())[rows].abs()

    eps = 10 * torch.finfo(start.dtype).eps
    noise = eps * (1 + of.image.numbers.detach()[rows].abs() + start[columns].abs().max())

    def same(there: Tensor) -> bool:
        return bool((change(there) <= noise).all())

    turns = 2 * math.pi * torch.tensor([1.0, -1.0, 2.0, -2.0, 3.0, -3.0])
    others = [
        tries
        for tries in ([-start], [start + float(turn) for turn in turns])
        if same(moved(tries[0], columns))
    ]
    # A function that is flat here, as far as rounding lets one see, gives the same numbers anywhere.
    if not others or not bool((change(start + 0.003 * (1 + start.abs())) > 10 * noise).all()):
        return 0.0
    tries = [there for some in others for there in some]
    singly = len(columns) <= _MOST_FOLDED and all(
        same(moved(some[0], column)) for some in others for column in columns
    )
    with torch.no_grad():
        log_q = of.log_draws(start)
        return sum(
            math.log1p(
                sum(
                    math.exp(min(50.0, float((of.log_draws(moved(t, which)) - log_q).sum())))
                    for t in tries
                )
            )
            for which in (columns if singly else [columns])
        )
