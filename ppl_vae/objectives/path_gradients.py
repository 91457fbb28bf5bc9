"""Gradients along the path of a draw alone: a guide that runs again with its draws held fixed.

The density of a draw z depends on the guide's parameters phi in two ways: along the path, because
z = g(eps, phi), and directly. What is left of the gradient when the values of z are held fixed is the direct
part, the score; the rest is the path.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyro.distributions as dist
import pyro.poutine as poutine
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from ppl_vae.pairs import (
    Buffers,
    Layout,
    Pair,
    PairError,
    Program,
    Site,
    Trace,
    innermost,
    latent_sites,
)


class RepeatableGuide:
    """A pair's guide, whose last run can be repeated with its draws held fixed.

    The parameters of a site may depend on earlier draws as well as on phi. Only a second run tells the two
    apart. It has the same random numbers of torch (masks of dropout) and buffers as the first. A guide of a
    single site needs no second run, because its parameters depend on no draw.

    Args:
        pair: The pair.
        layout: The layout of the batch.
        needed_by: What needs reparameterized draws, for the error.
    """

    def __init__(self, pair: Pair, layout: Layout, needed_by: str) -> None:
        if isinstance(poutine.unwrap(pair.guide), Messenger):
            raise PairError(
                f"{needed_by} needs a guide that is a program of its own, and {type(pair.guide).__name__} runs "
                "the model with other distributions: use AutoNormal and its like, or leave the option out"
            )
        self._program = pair.guide
        self._needed_by = needed_by
        self._single = sum(row[0] == "guide" and not row[2] for row in layout.signature) == 1
        self._buffers = Buffers([] if self._single else pair.modules().values())
        self._before: list[tuple[Tensor, Tensor]] = []
        self._numbers = _SameNumbers(needed_by)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._single:
            return self._program(*args, **kwargs)
        if not self._numbers.repeats:
            self._before = self._buffers.copies()
            self._numbers.kept.clear()
        with self._numbers:
            return self._program(*args, **kwargs)

    def with_draws_held(self, trace: Trace, run: Program, *args: Any, **kwargs: Any) -> Trace:
        """The trace of the last run again, in which every draw is a constant of the same value.

        Args:
            trace: The trace of the last run.
            run: This guide, inside the handlers that it ran in.
            *args: Its arguments.
            **kwargs: Its arguments.

        Raises:
            PairError: A draw has no reparameterized sampler.
        """
        draws = draws_of(trace)
        for name, site in draws.items():
            require_reparameterized(name, site, self._needed_by)
        values = {name: site["value"].detach() for name, site in draws.items()}
        if self._single:
            held = trace.copy()
            for name, value in values.items():
                kept = {k: v for k, v in trace.nodes[name].items() if k not in _OF_THE_VALUE}
                held.nodes[name] = {**kept, "value": value}
            return held
        after = self._buffers.copies()
        self._buffers.put_back(self._before)
        with self._numbers.again(), _DrawsHeld(values):
            held = poutine.trace(run).get_trace(*args, **kwargs)
        self._buffers.put_back(after)
        return held


_OF_THE_VALUE = ("log_prob", "log_prob_sum", "unscaled_log_prob", "score_parts")
"""What Pyro and `unscaled` keep at a site, computed from its value."""


def draws_of(trace: Trace) -> dict[str, Site]:
    """The random sites of a guide's trace: without Delta sites, which are functions of the others."""
    return {
        name: site
        for name, site in latent_sites(trace).items()
        if not isinstance(innermost(site["fn"]), dist.Delta)
    }


def require_reparameterized(name: str, site: Site, needed_by: str) -> None:
    """Raises an error for a site without a reparameterized sampler.

    Raises:
        PairError: The site has none.
    """
    if not site["fn"].has_rsample:
        raise PairError(
            f"site '{name}' is drawn from {type(site['fn']).__name__}, which has no reparameterized sampler, "
            f"but {needed_by} needs one: leave {needed_by} at false, or draw it from a relaxed distribution"
        )


def with_gradient(value: Tensor, weight: Callable[[], Tensor]) -> Tensor:
    """The same tensor, whose gradient is multiplied by a weight that is known only when it is computed."""
    if not value.requires_grad:
        return value
    value = value.view_as(value)
    value.register_hook(lambda gradient: gradient * weight())
    return value


class _DrawsHeld(Messenger):
    """Replaces the values of drawn sites. Unlike with `Substitute` they are drawn all the same.

    So the random numbers after them are the same as in the run that is repeated.
    """

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_post_sample(self, msg: Site) -> None:
        if msg["name"] in self.values:
            msg["value"] = self.values[msg["name"]]


class _SameNumbers(TorchDispatchMode):
    """Keeps the results of torch's random operations in a run, and gives them again in its repetition.

    The state of a generator could be put back instead, but not in a recorded step (`ppl_vae.capture`).
    """

    def __init__(self, needed_by: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._needed_by = needed_by
        self.kept: list[Any] = []
        self._given: Iterator[Any] | None = None

    @property
    def repeats(self) -> bool:
        """Whether the results of the last run are given again."""
        return self._given is not None

    @contextmanager
    def again(self) -> Iterator[None]:
        """Inside, a run gets the results of the last one."""
        self._given = iter(self.kept)
        try:
            yield
        finally:
            self._given = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.nondeterministic_seeded not in getattr(func, "tags", ()):
            return func(*args, **kwargs)
        schema = func._schema
        written = [
            tensor
            for tensor, argument in zip(args, schema.arguments, strict=False)
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
        if self._given is None:
            result = func(*args, **kwargs)
            self.kept.append(tree_map_only(Tensor, torch.clone, (written, result)))
            return result
        numbers, result = next(self._given, (None, None))
        if numbers is None:
            raise PairError(
                f"the guide draws more random numbers ({func}) when it runs again on the same rows with the "
                f"same draws, so that the path is not known: leave {self._needed_by} at false"
            )
        for tensor, value in zip(written, numbers, strict=True):
            tensor.copy_(value)
        in_place = bool(schema.returns) and schema.returns[0].alias_info is not None
        return written[0] if in_place else tree_map_only(Tensor, torch.clone, result)
