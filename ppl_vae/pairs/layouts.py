"""The layouts of a pair: which one a batch has may change from batch to batch."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

from ppl_vae.pairs.errors import PairError
from ppl_vae.pairs.layout import Layout, Signature, signature_of
from ppl_vae.pairs.modules import Buffers
from ppl_vae.pairs.pair import Pair
from ppl_vae.pairs.programs import Batch, num_rows, shapes_of_rows, tensors_of
from ppl_vae.pairs.survey import find_layout
from ppl_vae.pairs.traces import Trace, trace_pair

Result = TypeVar("Result")


class Layouts:
    """The layout of each batch of a pair.

    Lengths, labels and modalities may come and go: sites, roles and plates belong to the traces of a batch, not
    to the pair. To look at the traces of every batch first would cost as much as the work itself. So `run` does
    the work with the layout of the last batch of the same shapes, and again with the right one if the sites
    turn out to be others. Use it inside of `pair.scope()`.

    Args:
        pair: The pair.

    Attributes:
        check: Called with a batch and its traces of model and guide, once for each signature (see
            `signature_of`) and shape of the rows that are found from then on: the sizes of plates inside of a
            row belong to the shape alone. An error that it raises is that of the batch.
        found: Called after `check` with the batch, its traces and its layout.
        used: The layouts with which `run` has done its work, in their order.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from ppl_vae.pairs import sample_rows
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         for t in range(x.shape[1]):
        ...             z = pyro.sample(f"z_{t}", dist.Normal(0.0, 1.0))
        ...             pyro.sample(f"x_{t}", dist.Normal(z, 1.0), obs=x[:, t])
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         for t in range(x.shape[1]):
        ...             pyro.sample(f"z_{t}", dist.Normal(x[:, t] / 2, 0.5**0.5))
        >>> pair = Pair.of(model, guide)
        >>> with pair.scope():
        ...     layouts = Layouts(pair)
        ...     [layouts.of(torch.zeros(2, steps)).latents for steps in (1, 2)]
        [('z_0',), ('z_0', 'z_1')]
    """

    def __init__(self, pair: Pair) -> None:
        self._pair = pair
        self.check: Callable[[Batch, tuple[Trace, Trace]], object] | None = None
        self.found: Callable[[Batch, tuple[Trace, Trace], Layout], object] | None = None
        self.used: dict[Layout, None] = {}
        self._known: dict[tuple[Signature, bool], Layout] = {}
        self._kinds: set[tuple[Signature, object]] = set()
        self._last: dict[object, Layout] = {}
        self._unsteady: set[object] = set()
        self._latest: tuple[weakref.ref[Tensor], ...] = ()  # the batch that `of` last saw
        self._buffers: Buffers | None = None

    def of(self, batch: Batch) -> Layout:
        """The layout of a batch, found by running the programs on it. The random state does not change.

        Raises:
            PairError: As for `find_layout`, or from `check`.
        """
        with torch.random.fork_rng(), torch.no_grad(), self._pair.mode(training=False):
            traces = trace_pair(self._pair, batch)
            key = signature_of(*traces), num_rows(batch) == 1
            kind = key[0], shapes_of_rows(batch)
            is_new = kind not in self._kinds
            if is_new and self.check is not None:
                self.check(batch, traces)
            if key not in self._known:
                # With the random numbers that come after those of the traces.
                self._known[key] = find_layout(self._pair, batch, traces)
            layout = self._known[key]
            if is_new and self.found is not None:
                self.found(batch, traces, layout)
            self._kinds.add(kind)
        self._last[_shapes(batch)] = layout
        self._latest = tuple(map(weakref.ref, tensors_of(batch)))
        return layout

    def expected(self, batch: Batch) -> Layout:
        """The layout that a batch most likely has: that of the last one of its shapes.

        Where kinds of batches of the same shapes come in turns, the programs run to tell, once for each batch.
        """
        shapes, args = _shapes(batch), tensors_of(batch)
        if shapes not in self._last:
            return self.of(batch)
        if shapes in self._unsteady and not (
            len(args) == len(self._latest)
            and all(ref() is t for ref, t in zip(self._latest, args, strict=True))
        ):
            return self.of(batch)
        return self._last[shapes]

    def run(self, batch: Batch, work: Callable[[Layout], Result]) -> Result:
        """The result of some work on a batch, done with the batch's layout.

        Args:
            batch: The rows.
            work: What to do. It raises an error if the layout is not that of the batch, as `sample_rows` and
                the objectives do. Then it is done again, with the same random numbers and buffers.
        """
        layout = self.expected(batch)
        with self._kept(tensors_of(batch)[0].device) as put_back:
            try:
                result = work(layout)
            except Exception as error:
                try:
                    found = self.of(batch)
                except PairError:  # which says more than what the work has made of it
                    raise
                except Exception:  # the programs cannot run on this batch
                    raise error from None
                if found is layout:
                    raise
                put_back()
            else:
                self.used[layout] = None
                return result
        self._unsteady.add(_shapes(batch))
        result = work(found)
        self.used[found] = None
        return result

    @contextmanager
    def of_others(self, used: dict[Layout, None]) -> Iterator[None]:
        """Notes the layouts that are used meanwhile apart from `used`, for rows that are looked at aside.

        Args:
            used: Where they are noted.
        """
        own, self.used = self.used, used
        try:
            yield
        finally:
            self.used = own

    @property
    def known(self) -> tuple[Layout, ...]:
        """The layouts found so far."""
        return tuple(self._known.values())

    @contextmanager
    def _kept(self, device: torch.device) -> Iterator[Callable[[], None]]:
        """Remembers random state and buffers, which a run in training mode changes."""
        generator = torch.get_rng_state()
        on_gpu = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        if self._buffers is None:
            self._buffers = Buffers(self._pair.modules().values())
        buffers = self._buffers
        before = buffers.copies() if torch.is_grad_enabled() else None  # in training

        def put_back() -> None:
            torch.set_rng_state(generator)
            if on_gpu is not None:
                torch.cuda.set_rng_state(on_gpu, device)
            if before is not None:
                buffers.put_back(before)

        yield put_back


def _shapes(batch: Batch) -> object:
    """What the sites of most programs depend on at most: the shapes of the rows.

    A single row is a kind of its own: after `squeeze()` it does not run with a dimension of samples.
    """
    alone = num_rows(batch) == 1
    return alone, shapes_of_rows(batch)
