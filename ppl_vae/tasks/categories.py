"""Expectations over latents with categories, of which only the probabilities are known."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor

from ppl_vae.pairs import PairError

MOST_COMBINATIONS = 1000
"""Most combinations of categories that are summed over."""


def expected(
    decode: Callable[[Mapping[str, Tensor]], Tensor],
    latents: Mapping[str, Tensor],
    categorical: Collection[str],
) -> Tensor:
    """sum_k q(k) E[x | z, k]: the mean over categories of which each row has the probabilities q.

    Args:
        decode: E[x | latents], `(n, *event)`, of values of all latents.
        latents: The latents by name, `(n, *event)`; those with K categories as probabilities, `(n, *event, K)`.
        categorical: The names of these.

    Raises:
        ValueError: The numbers are no probabilities.
        PairError: There are more than 1,000 combinations of categories.

    Example:
        >>> halves = {"y": torch.tensor([[0.5, 0.5], [0.0, 1.0]])}
        >>> expected(lambda given: 10.0 * given["y"], halves, ["y"])
        tensor([ 5., 10.])
    """
    fixed = {name: value for name, value in latents.items() if name not in categorical}
    probs = {name: value for name, value in latents.items() if name in categorical}
    for name, q in probs.items():
        wrong = (q < 0).any(-1) | ((q.sum(-1) - 1).abs() > 1e-3)
        wrong = wrong.reshape(len(q), -1).any(1)
        if bool(wrong.any()):
            raise ValueError(
                f"the columns of '{name}' are the probabilities of its {q.shape[-1]} categories, as transform "
                "gives them: expected numbers from 0 that sum to 1, which those of row "
                f"{int(wrong.nonzero()[0])} do not"
            )
    sizes = [q.shape[-1] for q in probs.values() for _ in range(math.prod(q.shape[1:-1]))]
    if math.prod(sizes) > MOST_COMBINATIONS:
        raise PairError(
            f"the latents {', '.join(probs)} have {math.prod(sizes):,} combinations of categories, too many to "
            "sum over: give values of them to ppl_vae.sample(model, n, given={...}, means=True)"
        )
    total: Tensor | None = None
    for combination in itertools.product(*map(range, sizes)):
        weight, left, given = torch.ones(()), iter(combination), dict(fixed)
        for name, q in probs.items():
            shape = q.shape[1:-1]
            values = torch.tensor([next(left) for _ in range(math.prod(shape))]).reshape(shape)
            given[name] = values.expand(q.shape[:-1])
            chosen = q.gather(-1, given[name].unsqueeze(-1)).squeeze(-1)
            weight = weight * chosen.reshape(len(q), -1).prod(1)
        if bool((weight > 0).any()):
            mean = decode(given)
            part = mean * weight.reshape(weight.shape + (1,) * (mean.dim() - weight.dim()))
            total = part if total is None else total + part
    assert total is not None  # probabilities sum to 1
    return total
