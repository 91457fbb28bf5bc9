"""Results as the rows came: tensors for tensors, numpy arrays for arrays of any other library."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from ppl_vae.pairs import is_array


def as_given(x: object) -> Callable[[Tensor], Any]:
    """What turns a tensor of results into the kind of array that the rows are.

    Args:
        x: The rows, as a function was given them: for a tuple or a dict, its first array says it. What is
            neither (a `DataLoader`) gives tensors.

    Returns:
        A function of a tensor, which moves it to the CPU.

    Example:
        >>> import numpy as np, torch
        >>> type(as_given(np.zeros((3, 2)))(torch.zeros(3))).__name__
        'ndarray'
        >>> as_given({"x": torch.zeros(3, 2), "y": np.zeros(3)})(torch.zeros(2))
        tensor([0., 0.])
    """
    first: Any = x
    while isinstance(first, (tuple, list, Mapping)) and len(first):
        first = next(iter(first.values())) if isinstance(first, Mapping) else first[0]
    if is_array(first) and not isinstance(first, Tensor):
        return lambda tensor: tensor.cpu().numpy()
    return lambda tensor: tensor.cpu()
