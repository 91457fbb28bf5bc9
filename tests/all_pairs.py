"""Fewer cases than a full product of parameters has, which still bring each two values together."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

import pytest


def all_pairs(*values: Iterable[Any]) -> list[Any]:
    """The cases of a full product for `parametrize`; those that bring no two values together anew are slow.

    Most faults show in one value or in two that meet; the rest of the product is run by `pytest -m slow`.
    """
    positions = [list(enumerate(each)) for each in values]
    cases = list(itertools.product(*positions))

    def of(case: tuple[tuple[int, Any], ...]) -> set[tuple[tuple[int, int], ...]]:
        places = [(which, place) for which, (place, _) in enumerate(case)]
        return set(itertools.combinations(places, 2))

    left, kept = set().union(*map(of, cases)), set()
    while left:
        best = max(
            range(len(cases)), key=lambda i: len(of(cases[i]) & left)
        )  # the first of the best
        kept.add(best)
        left -= of(cases[best])
    return [
        pytest.param(*(value for _, value in case), marks=() if i in kept else pytest.mark.slow)
        for i, case in enumerate(cases)
    ]
