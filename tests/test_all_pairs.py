"""`all_pairs` loses nothing of a product, and any two values meet in a case that is not slow."""

from __future__ import annotations

import itertools

import pytest
from all_pairs import all_pairs


@pytest.mark.parametrize("sizes", [(2, 2), (3, 2, 2), (4, 3, 2, 2), (3, 4, 4), (1, 3, 2)], ids=str)
def test_every_two_values_meet(sizes: tuple[int, ...]) -> None:
    cases = all_pairs(*map(range, sizes))
    assert [case.values for case in cases] == [*itertools.product(*map(range, sizes))]
    kept = [case.values for case in cases if not case.marks]
    for one, other in itertools.combinations(range(len(sizes)), 2):
        met = {(values[one], values[other]) for values in kept}
        assert len(met) == sizes[one] * sizes[other]
    assert len(kept) < len(cases) or len(sizes) == 2 or 1 in sizes
