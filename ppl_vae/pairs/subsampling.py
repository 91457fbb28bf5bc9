"""Plates that draw a part of their elements, made to take all of them where these are the rows.

Pyro's way to train on minibatches is a plate over all rows that draws some:

    with pyro.plate("data", len(x), subsample_size=5) as i:
        pyro.sample("x", dist.Normal(z, 1.0), obs=x[i])

Here `fit` and `evaluate` choose the rows, and every row that a program is given counts. Plates without a size
get that of the rows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import SubsampleMessenger
from torch import Tensor
from torch.utils._pytree import tree_leaves

from ppl_vae.pairs.errors import PairError


class Subsampling:
    """The plates with a `subsample_size` that a pair's programs make, and which of them take all instead.

    Attributes:
        met: The size and the `subsample_size` of each such plate when it was last made, by name.
        takes_all: Whether a plate takes all of its elements; plates whose role is not known are not in it.
        device: Where the indices of a plate that takes all are.
        only: The one size that plates that take all may have, because the programs keep something for each
            row; None for any.

    Example:
        >>> import pyro
        >>> subsampling = Subsampling()
        >>> subsampling.takes_all["data"] = True
        >>> with subsampling.watched(), pyro.plate("data", 4, subsample_size=2) as index:
        ...     index
        tensor([0, 1, 2, 3])
    """

    def __init__(self) -> None:
        self.met: dict[str, tuple[int, int]] = {}
        self.takes_all: dict[str, bool] = {}
        self.device: torch.device | None = None
        self.only: int | None = None
        self._trial: Trial | None = None

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Makes plates that are to take all rows without their `subsample_size`.

        A handler could choose a plate's indices, but not how many they are: Pyro compares their number with
        the `subsample_size` that the plate was given, and weights by it. So a plate that takes all is made
        as if it had been given none.

        Raises:
            PairError: A plate that takes all has another size than the `only` one.
        """
        original: Any = SubsampleMessenger.__init__

        def init(
            plate: SubsampleMessenger,
            name: str,
            size: int | None = None,
            subsample_size: int | None = None,
            subsample: Any = None,
            dim: int | None = None,
            use_cuda: bool | None = None,
            device: Any = None,
        ) -> None:
            trial = self._trial if size is not None and subsample is None else None
            if size is not None and subsample_size is not None and subsample is None:
                self.met[name] = (int(size), int(subsample_size))
                tried = trial is not None and name not in self.takes_all and size == trial.rows
                # Pyro refuses to draw more than there are, as in a last batch of few rows.
                if tried or self.takes_all.get(name) or subsample_size > size:
                    subsample_size = None
                    if trial is None and self.only not in (None, size):
                        raise PairError(
                            f"plate '{name}' has {size} rows, but the programs keep something for each of "
                            f"{self.only}: give them exactly these rows"
                        )
                    if device is None and use_cuda is None:
                        device = self.device
                if trial is not None:
                    trial.met[name] = self.met[name]
            original(plate, name, size, subsample_size, subsample, dim, use_cuda, device)
            if trial is not None and plate._indices is not None:
                plate._indices = Indices.of(plate._indices, trial.uses.setdefault(name, set()))

        patched: Any = init
        SubsampleMessenger.__init__ = patched  # type: ignore[method-assign]
        try:
            with SizePlates():
                yield
        finally:
            SubsampleMessenger.__init__ = original  # type: ignore[method-assign]

    def tried(self, program: Callable[..., Any], trials: dict[int, Trial]) -> Callable[..., Any]:
        """A program in which plates with as many elements as there are rows take all of them.

        Args:
            program: The program.
            trials: What was seen, by the number of rows; each call adds to it.
        """

        def run(*args: Tensor | None) -> Any:
            before = self._trial
            n = len(next(tensor for tensor in args if tensor is not None))
            self._trial = trials.setdefault(n, Trial(n))
            try:
                return program(*args)
            finally:
                self._trial = before

        return run


class SizePlates(Messenger):
    """Gives plates without a size the one that the distribution at a site shows.

    `with pyro.plate("data"):` stands for any size. Pyro marks it by -1, where what reads a trace needs the
    number of rows. The mark stays where a distribution has no such dimension: one draw for all rows.

    Example:
        >>> import torch, pyro, pyro.distributions as dist, pyro.poutine as poutine
        >>> def model():
        ...     with pyro.plate("data"):
        ...         pyro.sample("z", dist.Normal(torch.zeros(3), 1.0))
        >>> with SizePlates():
        ...     poutine.trace(model).get_trace().nodes["z"]["cond_indep_stack"][0].size
        3
    """

    def _pyro_post_sample(self, msg: dict[str, Any]) -> None:
        if all(frame.size != -1 for frame in msg["cond_indep_stack"]):
            return
        fn, value = msg["fn"], msg["value"]
        shape = fn.batch_shape
        if msg["is_observed"]:  # Pyro expands no distribution to a plate without a size
            data = value.shape[: value.dim() - len(fn.event_shape)]
            shape = torch.broadcast_shapes(shape, data)
        msg["cond_indep_stack"] = tuple(
            frame._replace(size=shape[frame.dim], full_size=shape[frame.dim])
            if frame.size == -1 and frame.vectorized and len(shape) >= -frame.dim
            else frame
            for frame in msg["cond_indep_stack"]
        )


class Trial:
    """What was seen when programs ran on so many rows.

    Attributes:
        rows: The number of rows.
        met: As for `Subsampling`.
        uses: The sizes of the dimensions that the indices of each plate have selected from; see `Indices`.
    """

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self.met: dict[str, tuple[int, int]] = {}
        self.uses: dict[str, set[int]] = {}


class Indices(Tensor):
    """Indices of elements that remember the size of every dimension they select from.

    A use of their values that is none of the usual ways to select counts as a size of 0.

    Example:
        >>> index = Indices.of(torch.arange(2), uses := set())
        >>> _ = torch.zeros(3, 5)[:, index], torch.zeros(4).index_select(0, index)
        >>> sorted(uses)
        [4, 5]
    """

    uses: set[int]

    @classmethod
    def of(cls, index: Tensor, uses: set[int]) -> Indices:
        """The indices, which add to `uses`."""
        found = index.as_subclass(cls)
        found.uses = uses
        return found

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.__name__
        own = next(t for t in tree_leaves((args, kwargs)) if isinstance(t, cls))
        with torch._C.DisableTorchFunctionSubclass():
            size = _selected(name, args, kwargs)
            if size is not None:
                own.uses.add(size)
            elif name in _VALUES:
                own.uses.add(0)
            result = func(*args, **kwargs)
            if size is not None or name.startswith("new_") or name.endswith("_like"):
                return result
            if isinstance(result, tuple) and all(type(part) is Tensor for part in result):
                return tuple(cls.of(part, own.uses) for part in result)  # as in a loop over indices
            if not isinstance(result, Tensor):
                return result
            if result.is_floating_point() or result.is_complex() or result.dtype == torch.bool:
                own.uses.add(0)
                return result
            return cls.of(result, own.uses)


_VALUES = ("tolist", "numpy", "item", "__array__", "__index__", "__int__", "__float__")
"""Ways to get at the values of indices, by the names of tensors' methods."""


def _selected(name: str, args: Sequence[Any], kwargs: dict[str, Any]) -> int | None:
    """The size of the dimension of another tensor that indices select from; None if they do not select."""
    if name in ("__getitem__", "__setitem__") and not isinstance(args[0], Indices):
        key = args[1] if isinstance(args[1], tuple) else (args[1],)
        place = next((i for i, part in enumerate(key) if isinstance(part, Indices)), None)
        if place is None or any(isinstance(part, Tensor) for part in key[:place]):
            return 0
        if any(part is Ellipsis for part in key[:place]):
            after = sum(part is not None for part in key[place:])
            return int(args[0].shape[args[0].dim() - after])
        return int(args[0].shape[sum(part is not None for part in key[:place])])
    if name in ("index_select", "gather", "take"):
        source = kwargs["input"] if "input" in kwargs else args[0]
        if isinstance(source, Indices):
            return None
        if name == "take":  # of a tensor with more dimensions, it selects single numbers
            return len(source) if source.dim() == 1 else 0
        dim = kwargs["dim"] if "dim" in kwargs else args[1]
        return int(source.shape[dim])
    if name == "embedding":
        return len(kwargs["weight"] if "weight" in kwargs else args[1])
    return None
