"""Where data come from: what each reader returns, and the embedded digits.

Each reader (`arrays`, `folders`, `torchvision_sets`) returns a `Source`: the values as they are stored, and the
source's own splits. `load_data` is the public function.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Part:
    """Rows of one split: `x` is uint8 (8-bit pictures), bool or float32, shape (n, *shape)."""

    x: Tensor
    labels: Tensor | None = None


@dataclass(frozen=True, eq=False)
class Source:
    """What a reader returns.

    Attributes:
        train: All rows, or those of the source's own training split.
        test: The source's own test split, if it has one.
        validation: The source's own validation split, if it has one.
        levels: Number of equally spaced values an entry can take, from 0 to `maximum`; None for
            real values.
        maximum: The largest value in `Data`; 1 for 8-bit pictures, which are divided by 255.
    """

    train: Part
    test: Part | None = None
    validation: Part | None = None
    levels: int | None = None
    maximum: float = 1.0


def read_digits() -> Source:
    """scikit-learn's 1,797 handwritten digits, 8 x 8, counts 0..16; embedded, no files needed."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    x = torch.from_numpy(bunch.images).float()[:, None]
    return Source(Part(x, torch.from_numpy(bunch.target).long()), levels=17, maximum=16.0)
