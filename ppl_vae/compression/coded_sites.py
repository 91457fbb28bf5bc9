"""An effect handler that codes each site of a program: its value is popped from a stack, or pushed onto it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ppl_vae.coding import LEAST, TableCoder
from ppl_vae.compression.finite_values import Finite, finite_of
from ppl_vae.compression.interval_masses import Masses, masses_of, points, standard
from ppl_vae.compression.latent_grid import Grid, Grids, digits_of
from ppl_vae.compression.reading import Reading
from ppl_vae.distributions import Given, Revealed
from ppl_vae.pairs import PairError, Site, innermost, is_delta, is_factor, kind_of, mask_kind

_TINY = 1e-300
"""The least mass of an interval."""


class CodedSites(Messenger):
    """Codes the sites of a program in its order.

    Whether they are popped or pushed, and whether the program runs to write or to read, it is the same code
    with the same tensors: a distribution sees of the rows only what was coded before it.

    Args:
        coder: What pops or pushes.
        grids: The grids of continuous latents.
        known: For each latent that is pushed, its indices `(B, E)`: on its grid, or among its values.
        reading: Where observed rows come from and go; None for a guide, which observes nothing.

    Attributes:
        indices: For each latent so far, its indices `(B, E)`.
        bits: For each site, - log2 of its probability as it is coded, of the shape of the site's batch.
        log_p: For each site that is no point, its log density, of that shape.
    """

    def __init__(
        self,
        coder: TableCoder,
        grids: Grids,
        known: Mapping[str, Tensor] | None = None,
        reading: Reading | None = None,
    ) -> None:
        super().__init__()
        self._coder, self._grids, self._known, self._reading = coder, grids, known, reading
        self.indices: dict[str, Tensor] = {}
        self.bits: dict[str, Tensor] = {}
        self.log_p: dict[str, Tensor] = {}
        self._spent = torch.zeros(())

    def _pyro_sample(self, msg: Site) -> None:
        if site_is_subsample(msg) or msg["infer"].get("_deterministic", False):
            return
        if is_factor(msg):
            raise PairError(
                f"'{msg['name']}' is a pyro.factor, which says nothing of values: rows whose density has "
                "factors cannot be compressed"
            )
        if mask_kind(msg) is not True:
            if msg["is_observed"] and is_delta(msg) and mask_kind(msg) is False:
                return  # a name for a computed value
            raise PairError(
                f"site '{msg['name']}' has a mask: what it hides could not be read back from a file. "
                "Compress rows without hidden values"
            )
        if msg["is_observed"] and isinstance(innermost(msg["fn"]), Given | Revealed):
            return  # the receiver has it
        if msg["is_observed"]:
            self._observed(msg)
        else:
            self._latent(msg)
        self.bits[msg["name"]] = self._spent
        if not is_delta(msg):
            self.log_p[msg["name"]] = msg["fn"].log_prob(msg["value"]).double()

    # -- latents -----------------------------------------------------------------------------------------------

    def _latent(self, msg: Site) -> None:
        name, fn = msg["name"], msg["fn"]
        known = None if self._known is None else self._known.get(name)
        if self._known is not None and known is None:
            raise PairError(
                f"site '{name}' has no value: latents are coded that model and guide both sample, and this "
                "one only one of them does. Sample it in both, or sum it out by hand"
            )
        grid, batch = self._grids.of(msg), fn.batch_shape
        self._spent = torch.zeros(batch, dtype=torch.float64)
        if grid is not None:
            masses = masses_of(fn)
            if masses is None:
                raise _uncodable(name, fn)
            index, value = self._on_grid(name, masses, grid, known)
            value = value.reshape(batch + fn.event_shape).to(self._grids.dtype)
        elif hasattr(fn, "by_parts"):
            index, value = self._latent_by_parts(name, fn, known)
        else:
            finite = finite_of(fn)
            if finite is None and is_delta(msg):
                raise PairError(
                    f"latent '{name}' is discrete in the model and a Delta in the guide: give the guide a "
                    "distribution over its values"
                )
            if finite is None:
                raise _uncodable(name, fn)
            numbers = None if known is None else known.reshape(-1)
            index = self._numbers(name, finite, numbers)
            value = finite.taken(index, batch + fn.event_shape)
        self.indices[name] = index
        msg["value"], msg["done"] = value, True

    def _on_grid(
        self, name: str, masses: Masses, grid: Grid, known: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Indices and values of a continuous latent, `(B, E)` each."""
        certain = points(masses)
        if certain is not None:
            index = grid.nearest(certain)
            if known is not None and not torch.equal(known, index):
                raise WrongValueError
            return index, grid.values(index, slice(None))
        rows, numbers = self._spent.numel(), len(grid.loc)
        index = torch.zeros(rows, numbers, dtype=torch.long)
        values = torch.zeros(rows, numbers, dtype=torch.float64)
        uniform = grid.is_standard and standard(masses)
        for which in masses.steps:
            before = index[:, which]
            for digit, (done, width, right) in enumerate(
                digits_of(index if known is None else known, grid)
            ):
                count = 2**width
                if uniform:
                    tables = torch.full((*before.shape, count), 1 / count, dtype=torch.float64)
                else:
                    edges = grid.edges(before, done, width, which)
                    tables = masses.of(which, edges, values)
                    # No interval is impossible: masses that are 0 are those that cannot be told from it.
                    tables = (tables / tables.sum(-1, keepdim=True)).clamp_min(_TINY)
                _require_finite(name, tables)
                given = right[:, which].reshape(-1)
                found = self._coded(given, tables.reshape(-1, count)).reshape(before.shape)
                before = (before << width) + found if digit else found
            index[:, which] = before
            values[:, which] = grid.values(before, which)
        return index, values

    def _latent_by_parts(self, name: str, fn: Any, known: Tensor | None) -> tuple[Tensor, Tensor]:
        """Indices and values of a latent whose numbers depend on those before them."""
        orders = self._orders()
        if name not in orders:
            orders[name] = _order(fn)
        order, sizes = orders[name]
        index = torch.zeros(fn.batch_shape.numel(), len(order), dtype=torch.long)
        given = None if known is None else known.reshape(index.shape)
        start, parts = 0, iter(sizes)

        def values(p: Any) -> Tensor:
            nonlocal start
            finite = finite_of(p)
            if finite is None:
                raise _uncodable(name, p)
            places = order[start : start + (size := next(parts))]
            start += size
            found = self._numbers(
                name, finite, None if given is None else given[:, places].reshape(-1)
            )
            index[:, places] = found.reshape(-1, size)
            return finite.taken(found, p.batch_shape + p.event_shape)

        value: Tensor = fn.by_parts(values)
        return index.reshape(-1), value

    # -- observed rows -----------------------------------------------------------------------------------------

    def _observed(self, msg: Site) -> None:
        name, fn = msg["name"], msg["fn"]
        if self._reading is None:
            raise PairError(
                f"the guide observes site '{name}', and log q(z | x) would hold its density: a guide whose "
                "pair is to compress rows only samples"
            )
        target = self._reading.target(name, msg["value"])
        self._spent = torch.zeros(fn.batch_shape, dtype=torch.float64)
        if hasattr(fn, "by_parts"):
            value = self._by_parts(name, fn, target.known)
        elif hasattr(innermost(fn), "conditionals"):
            value = self._one_by_one(name, fn, target.known)
        else:
            value = self._independent(name, fn, target.known)
        msg["value"] = target.fill(value)

    def _independent(self, name: str, fn: Any, known: Tensor | None) -> Tensor:
        finite = finite_of(fn)
        if finite is None:
            raise PairError(
                f"site '{name}' is {kind_of(fn)}, which has a density, or infinitely many values: only rows of "
                "finitely many values have a probability, and so a length in bits. Use a likelihood such as "
                "Bernoulli, Categorical, Binomial, BetaBinomial or DiscretizedLogistic"
            )
        numbers = None if known is None else self._numbers_of(name, finite, known)
        found = self._numbers(name, finite, numbers, observed=True)
        return finite.taken(found, fn.batch_shape + fn.event_shape)

    def _by_parts(self, name: str, fn: Any, known: Tensor | None) -> Tensor:
        """Rows whose values depend on those before them, by the program that draws them."""
        orders = self._orders()
        if name not in orders:
            orders[name] = _order(fn)
        order, sizes = orders[name]
        rows = fn.batch_shape.numel()
        flat = None if known is None else known.reshape(rows, -1)[:, order]
        start, parts = 0, iter(sizes)

        def values(p: Any) -> Tensor:
            nonlocal start
            size = next(parts)
            shape = p.batch_shape + p.event_shape
            part = None if flat is None else flat[:, start : start + size].reshape(shape)
            start += size
            return self._independent(name, p, part)

        found: Tensor = fn.by_parts(values)
        return found

    def _orders(self) -> dict[str, tuple[Tensor, list[int]]]:
        return {} if self._reading is None else self._reading.orders

    def _one_by_one(self, name: str, fn: Any, known: Tensor | None) -> Tensor:
        """The same in the order of the flattened row, with all distributions made for each value."""
        inner = innermost(fn)
        shape = fn.batch_shape + fn.event_shape
        dtype = self._reading.dtype if self._reading else torch.float64
        row = torch.zeros(shape, dtype=dtype)
        flat = row.reshape(*fn.batch_shape, -1)
        truth = None if known is None else known.reshape(flat.shape)
        for i in range(flat.shape[-1]):
            finite = finite_of(inner.conditionals(row))
            if finite is None:
                raise _uncodable(name, inner.conditionals(row))
            tables = finite.log_tables().reshape(*flat.shape, -1)[..., i, :].flatten(0, -2)
            numbers = None
            if truth is not None:
                numbers = self._numbers_of(name, finite, truth[..., i])
            found = self._with_tables(name, tables, numbers, True)
            flat[..., i] = finite.taken(found, fn.batch_shape).to(dtype)
        return row

    def _numbers_of(self, name: str, finite: Finite, known: Tensor) -> Tensor:
        numbers = finite.numbers(known)
        if bool((numbers < 0).any()):
            raise PairError(
                f"site '{name}' has a value that its distribution does not know, of which values are "
                f"{_in_words(finite.values)}. A site has to observe the rows themselves, not what is "
                "computed from them"
            )
        return numbers

    # -- tables ------------------------------------------------------------------------------------------------

    def _numbers(
        self, name: str, finite: Finite, numbers: Tensor | None, observed: bool = False
    ) -> Tensor:
        return self._with_tables(name, finite.log_tables(), numbers, observed)

    def _with_tables(
        self, name: str, logs: Tensor, numbers: Tensor | None, observed: bool
    ) -> Tensor:
        """Codes numbers with the logarithms of their probabilities, `(n, K)`."""
        tables = logs.exp()
        _require_finite(name, tables)
        if numbers is not None and observed:
            chosen = logs.gather(1, numbers.unsqueeze(1))
            if bool(chosen.isneginf().any()):
                raise PairError(
                    f"the model gives a value at site '{name}' the probability 0, so that no file is long "
                    "enough for it: look at the likelihood's parameters, or at the rows"
                )
        # What is impossible for exp, but not for log, is as rare as a table can say.
        tables = tables.clamp_min(torch.finfo(tables.dtype).tiny).where(logs > -math.inf, 0.0)
        if numbers is None:
            numbers = torch.zeros(len(tables), dtype=torch.long)
        if not observed:
            return self._coded(numbers, tables)
        found = self._written(numbers, tables)
        self._spend(-logs.gather(1, found.unsqueeze(1)) / math.log(2.0))
        return found

    def _coded(self, numbers: Tensor, tables: Tensor) -> Tensor:
        """The numbers of a latent; the least probability is that of the coder, which may pop any number."""
        found = self._written(numbers, tables)
        chosen = tables.gather(1, found.unsqueeze(1)).squeeze(1) / tables.sum(1)
        self._spend(-chosen.clamp_min(LEAST).log2())
        return found

    def _written(self, numbers: Tensor, tables: Tensor) -> Tensor:
        found = self._coder.categorical(numbers, tables)
        sure = (tables > 0).sum(1) == 1
        if bool((sure & (tables.gather(1, found.unsqueeze(1)).squeeze(1) == 0)).any()):
            raise WrongValueError
        return found

    def _spend(self, bits: Tensor) -> None:
        self._spent = self._spent + bits.reshape(*self._spent.shape, -1).sum(-1)


class WrongValueError(Exception):
    """A value that is certain is not the one that was written."""


def _order(fn: Any) -> tuple[Tensor, list[int]]:
    """In which order a distribution makes its values: their places in the flattened row, and sizes of parts.

    The values are numbered where they are asked for, and the numbers are looked up in the row: written in
    zeros and ones, as these are values of all such distributions.
    """
    count = fn.event_shape.numel()
    found = torch.zeros(count, dtype=torch.long)
    sizes: list[int] = []
    for bit in range(max(1, (count - 1).bit_length())):
        start = 0
        sizes = []

        def values(p: Any, bit: int = bit, sizes: list[int] = sizes) -> Tensor:
            nonlocal start
            size = p.event_shape.numel()
            numbers = torch.arange(start, start + size)
            start += size
            sizes.append(size)
            finite = finite_of(p)
            dtype = torch.float64 if finite is None else finite.values.dtype
            ones = ((numbers >> bit) & 1).to(dtype)
            return ones.reshape(p.event_shape).expand(p.batch_shape + p.event_shape)

        row = fn.by_parts(values)
        ones = row.reshape(-1, count)[0].round().long()
        found |= ones << bit
    return found.argsort(), sizes


def _require_finite(name: str, tables: Tensor) -> None:
    if not bool(tables.isfinite().all()):
        raise PairError(
            f"the probabilities at site '{name}' are not finite: look at the parameters, or train again"
        )


def _uncodable(name: str, fn: Any) -> PairError:
    return PairError(
        f"latent '{name}' is {kind_of(fn)}, of which masses of intervals are not known number by number (as "
        "those of a flow): use a distribution that has a cdf for each number, a multivariate normal or a "
        "mixture of normals, such as those of MeanField, FullCovariance or MixtureOfGaussians"
    )


def _in_words(values: Tensor) -> str:
    if values.dim() > 1 or len(values) <= 3:
        return ", ".join(str(value) for value in values.tolist()[:3])
    low, second, high = (float(values[i]) for i in (0, 1, -1))
    return f"{low:g}, {second:g}, ..., {high:g}"
