"""The function from a guide's draws to the latents that it gives as Deltas, with its derivatives."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyro
import pyro.poutine as poutine
import torch
from torch import Tensor

from ppl_vae.pairs.coordinates import support_of, unconstrained
from ppl_vae.pairs.handlers import Substitute
from ppl_vae.pairs.pair import Pair
from ppl_vae.pairs.programs import Batch, as_args
from ppl_vae.pairs.traces import Site, Trace, is_delta, latent_sites, present, unscaled
from ppl_vae.runtime import own_generator

MOST_NUMBERS = 256
"""Most numbers that are differentiated one by one at several draws."""

MOST_TOGETHER = 2048
"""Most numbers that are computed from one another, of which the determinant is taken."""

_AT_ONCE = 64
"""How many numbers are differentiated at once."""

_MOST_BY_STEPS = 8
"""Most draws that are moved by steps because autograd does not follow the function."""

_DRAWS_ARE_MANY = (
    "more than {most} of its numbers depend on the same draws, and not each on one draw alone"
)
_NO_DERIVATIVE = (
    "autograd does not follow the function (detach(), numpy, rounding, or a gradient of its own)"
)
_NOT_SQUARE = "there are not as many of its numbers as draws that they depend on"
_MASKED = "some of the numbers that depend on the same draws are masked"
ROUNDED = "its derivatives are 0 by rounding"
_SINGULAR = "the determinant of dz/du is 0 as far as rounding shows"


class Block(NamedTuple):
    """Latents and the draws that they alone are computed from.

    Attributes:
        values: The values of latents, `(v,)`.
        rows: The numbers of these values, `(k,)`.
        columns: The draws, `(k,)`.
        jacobian: The derivatives of the numbers by the draws, `(k, k)`; or `(k,)` if each number depends on the
            draw of the same place alone.
        noise: How much of a difference of log|det| the derivatives themselves explain.
    """

    values: Tensor
    rows: Tensor
    columns: Tensor
    jacobian: Tensor
    noise: float = 0.0


@dataclass
class Image:
    """What the guide computes from its draws.

    Attributes:
        numbers: The free numbers of all latents, `(m,)`.
        density: `log_density`, for the free numbers; of each value of a latent, `(v,)`.
        rounding: By how much `density` may be off because latents are rounded, `(v,)`.
        present: Which values are not masked, `(v,)`.
        value_of: The value that each number belongs to, `(m,)`.
        plain: Whether each number is one of the latent itself, not a coordinate of it, `(m,)`.
        latent_of: The latent that each value belongs to, `(v,)`.
        cell_of: The place of each value in the plates that all latents and factors share, `(v,)`.
        factors: Each factor, summed at each of these places, `(factors, cells)`.
    """

    numbers: Tensor
    density: Tensor
    rounding: Tensor
    present: Tensor
    value_of: Tensor
    plain: Tensor
    latent_of: Tensor
    cell_of: Tensor
    factors: Tensor


class GuideMap:
    """The function from the guide's draws to its latents, on the rows of a trace.

    Args:
        pair: The pair.
        batch: Its rows.
        guide_trace: The trace whose draws it starts at.
        latents: The model's sites of the latents.
        draws: The names of the draws that may move; other draws stay where they are.
        factors: The names of the factors that may be density of the latents.

    Attributes:
        decided: The numbers of the latents of which a value has a Jacobian, by `block`.
        reasons: Why another latent has none.
    """

    def __init__(
        self,
        pair: Pair,
        batch: Batch,
        guide_trace: Trace,
        latents: dict[str, Site],
        draws: list[str],
        factors: list[str],
    ) -> None:
        self._pair, self._batch, self.latents, self.draws = pair, batch, latents, draws
        self._fns = [guide_trace.nodes[name]["fn"] for name in draws]
        self.factors = factors
        plates = [
            {(f.dim, f.size) for f in guide_trace.nodes[name]["cond_indep_stack"] if f.vectorized}
            for name in (*latents, *factors)
        ]
        self._shared_plates: dict[int, int] = dict(set.intersection(*plates))
        self._values = {
            n: s["value"].detach() for n, s in latent_sites(guide_trace).items() if not is_delta(s)
        }
        self._sizes = [self._values[n].numel() for n in draws]
        self.start = torch.cat([self._values[n].flatten() for n in draws]).requires_grad_()
        self._gradients: dict[int, Tensor] = {}
        self.decided: set[int] = set()
        self.reasons: dict[int, str] = {}
        with torch.enable_grad():
            self.image = self.at(self.start)

    def is_point(self, value: int) -> bool:
        """Whether a value of a latent depends on no draw."""
        rows = self.image.value_of == value
        return all(
            bool((image.numbers[rows] == self.image.numbers[rows]).all())
            for _, image in self.others
        )

    def _cells(self, shape: torch.Size) -> Tensor:
        """For each place of a site's batch, in order, its place in the shared plates."""
        sizes = [self._shared_plates.get(dim, 1) for dim in range(-len(shape), 0)]
        cells = torch.arange(math.prod(sizes), device=self.start.device)
        return cells.view(sizes).expand(shape).flatten()

    def _trace(self, draws: Tensor) -> Trace:
        parts = zip(self.draws, draws.split(self._sizes), strict=True)
        values = self._values | {
            n: part.view_as(self._values[n]).to(self._values[n].dtype) for n, part in parts
        }
        with torch.random.fork_rng(), pyro.validation_enabled(False), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(0)
            return poutine.trace(Substitute(values)(self._pair.guide)).get_trace(
                *as_args(self._batch)
            )

    def at(self, draws: Tensor) -> Image:
        trace = self._trace(draws)
        parts_of: list[tuple[Tensor, ...]] = []
        first = 0
        for i, (name, in_model) in enumerate(self.latents.items()):
            site: Site = trace.nodes[name]
            shape, dims = site["fn"].batch_shape, len(site["fn"].event_shape)
            numbers, jacobian, rounding = unconstrained(in_model["fn"], site["value"])
            there = present(site)
            there = there.flatten(there.dim() - dims).all(-1) if dims else there
            density = (unscaled({**site, "mask": None}) + jacobian).expand(shape).flatten()
            size, device = density.numel(), density.device
            which = torch.arange(first, first + size, device=device)
            parts_of.append(
                (
                    numbers.flatten(),
                    density,
                    rounding.expand(shape).flatten(),
                    there.expand(shape).flatten(),
                    which.repeat_interleave(numbers.numel() // size),
                    torch.full((numbers.numel(),), numbers is site["value"], device=device),
                    torch.full_like(which, i),
                    self._cells(shape),
                )
            )
            first += size
        factors = self.start.new_zeros(len(self.factors), math.prod(self._shared_plates.values()))
        for i, name in enumerate(self.factors):
            factor = unscaled(trace.nodes[name]).detach()
            factors[i].index_add_(0, self._cells(factor.shape), factor.flatten().to(factors))
        columns = (torch.cat(column) for column in zip(*parts_of, strict=True))
        return Image(*(*columns, factors))

    @functools.cached_property
    def others(self) -> list[tuple[Tensor, Image]]:
        """Other draws, of which each number comes once from each quarter of its distribution."""
        rows, columns = torch.tensor([0, 21, 42, 63]), []
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(0)
            for fn, size in zip(self._fns, self._sizes, strict=True):
                many = fn.sample((64,)).reshape(64, size).sort(0)[0]
                order = torch.rand(4, size).argsort(0)
                columns.append(many.gather(0, rows[order].to(many.device)))
        points = [point.requires_grad_() for point in torch.cat(columns, 1).to(self.start)]
        with torch.enable_grad():
            return [(point, self.at(point)) for point in points]

    def gradient(self, number: int) -> Tensor:
        """The derivatives of a number of a latent, `(draws,)`."""
        if number not in self._gradients:
            weights = torch.zeros_like(self.image.numbers.detach())
            weights[number] = 1.0
            self._gradients[number] = slopes(self.start, self.image, weights)
        return self._gradients[number]

    def block(self, value: int) -> Block | None:
        """The values that share draws with a value, these draws, and the Jacobian, if it is square.

        It is found by autograd, or by small steps if autograd does not follow the function and the draws are
        few. If it is not found, `reasons` says why.
        """
        found = self._block(value, self._by_autograd)
        if found == _NO_DERIVATIVE:
            found = self._block(value, self._by_steps)
        latent = int(self.image.latent_of[value])
        if isinstance(found, str):
            self.reasons.setdefault(latent, found)
            return None
        self.decided.update(self.image.latent_of[found.values].tolist())
        return found

    def _block(
        self, value: int, differentiate: Callable[[Tensor], tuple[Tensor, Tensor, float] | str]
    ) -> Block | str:
        """The block of a value, or why there is none.

        Args:
            value: The value.
            differentiate: Finds for some numbers the draws that they depend on, the derivatives, and their
                noise; or says why it does not.
        """
        image = self.image
        values = torch.tensor([value], device=image.value_of.device)
        while True:
            rows = torch.isin(image.value_of, values).nonzero()[:, 0]
            if not bool(image.present[values].all()):
                return _MASKED
            found = differentiate(rows)
            if isinstance(found, str):
                return found
            columns, jacobian, noise = found
            if len(columns) < len(rows) and self._rounds(rows, columns):
                return ROUNDED
            if len(columns) == 0:
                return _NO_DERIVATIVE
            step = torch.zeros_like(self.start)
            scale = 0.003 * (1 + self.start.detach()[columns].abs())
            step[columns] = scale * (1 - 2 * (torch.arange(len(columns), device=scale.device) % 2))
            with torch.no_grad():
                there = self.at(self.start + step).numbers
            moved = torch.isin(image.value_of, values) | ~(there == image.numbers)
            others = image.value_of[moved].unique()
            if len(others) == len(values):
                break
            values = others
        if not any(self._agrees(rows, columns, jacobian, step * size) for size in (1, 0.1, 0.01)):
            return _NO_DERIVATIVE
        if len(rows) != len(columns):
            return _NOT_SQUARE
        if jacobian.dim() == 2 and _is_singular(jacobian):
            return _SINGULAR
        return Block(values, rows, columns, jacobian, noise)

    def _agrees(self, rows: Tensor, columns: Tensor, jacobian: Tensor, step: Tensor) -> bool:
        """Whether a step of the draws changes numbers as their derivatives say, up to rounding."""
        with torch.no_grad():
            seen = (self.at(self.start + step).numbers - self.image.numbers.detach())[rows]
        step = ((self.start.detach() + step) - self.start.detach())[columns]
        expected = jacobian * step if jacobian.dim() == 1 else jacobian @ step
        noise = 10 * torch.finfo(seen.dtype).eps * self.image.numbers.detach()[rows].abs().max()
        return float((seen - expected).norm()) <= 0.1 * float(expected.norm()) + float(noise)

    def _by_autograd(self, rows: Tensor) -> tuple[Tensor, Tensor, float] | str:
        if len(rows) <= MOST_NUMBERS:
            jacobian = torch.stack([self.gradient(row) for row in rows.tolist()])
            columns = (jacobian != 0).any(0).nonzero()[:, 0]
            if len(columns) > MOST_TOGETHER:
                return _DRAWS_ARE_MANY.format(most=MOST_TOGETHER)
            return columns, jacobian[:, columns], 0.0
        alone = self._each_of_one_draw(rows)
        if alone is not None:
            return alone
        if len(rows) > MOST_TOGETHER:
            return _DRAWS_ARE_MANY.format(most=MOST_TOGETHER)
        weights = torch.zeros_like(self.image.numbers.detach())
        weights[rows] = 0.5 + torch.rand(len(rows), generator=own_generator()).to(weights)
        columns = slopes(self.start, self.image, weights).nonzero()[:, 0]
        if len(columns) > MOST_TOGETHER:
            return _DRAWS_ARE_MANY.format(most=MOST_TOGETHER)
        parts = []
        for part in rows.split(_AT_ONCE):
            each = torch.nn.functional.one_hot(part, len(weights)).to(weights)
            parts.append(slopes(self.start, self.image, each)[:, columns])
        return columns, torch.cat(parts), 0.0

    def _each_of_one_draw(self, rows: Tensor) -> tuple[Tensor, Tensor, float] | None:
        """The draws and derivatives of numbers that depend on one draw each; None if they do not.

        Weighted sums of the numbers are differentiated. If each number has a draw of its own, its weight is the
        ratio of the derivatives with and without weights. All weights differ, and three sets have to agree.
        """
        count = len(rows)
        generator = own_generator()
        orders = torch.stack([torch.randperm(count, generator=generator) for _ in range(3)])
        weights = torch.zeros(4, len(self.image.numbers)).to(self.image.numbers.detach())
        weights[0, rows] = 1.0
        # Weights from 1/2 to 3/2 at equal distances.
        weights[1:, rows] = ((orders + 0.5) / count + 0.5).to(weights)
        found = torch.stack([slopes(self.start, self.image, some) for some in weights])
        columns = found[0].nonzero()[:, 0]
        if len(columns) != count or bool(found[1:].any(0).sum() != count):
            return None
        places = ((found[1:, columns] / found[0, columns]).double() - 0.5) * count - 0.5
        nearest = places.round().long()
        noise = 0.1 + 4 * count * torch.finfo(found.dtype).eps
        if bool(((places - nearest).abs() > noise).any() | (nearest < 0).any()):
            return None
        if bool((nearest >= count).any()) or noise > 0.4:
            return None
        number_of = orders.argsort(1).to(nearest.device).gather(1, nearest)  # of each draw
        if bool((number_of != number_of[0]).any()) or len(number_of[0].unique()) != count:
            return None
        columns = columns[number_of[0].argsort()]
        return columns, found[0, columns], 0.0

    def _rounds(self, rows: Tensor, columns: Tensor) -> bool:
        """Whether numbers depend on more draws elsewhere: here these derivatives are 0 by rounding."""
        weights = torch.zeros_like(self.image.numbers.detach()).index_fill(0, rows, 1.0)
        for point, image in self.others:
            found = slopes(point, image, weights) != 0
            found[columns] = False
            if bool(found.any()):
                return True
        return False

    def _by_steps(self, rows: Tensor) -> tuple[Tensor, Tensor, float] | str:
        """Differences of the function, at two distances that have to agree."""
        if len(rows) > _MOST_BY_STEPS:
            return _NO_DERIVATIVE
        start = self.start.detach()

        def change(step: Tensor) -> Tensor:
            with torch.no_grad():
                ahead, behind = (self.at(start + way * step).numbers[rows] for way in (1, -1))
            return (ahead - behind).double()

        size = torch.finfo(start.dtype).eps ** (1 / 3) * (1 + start.abs())
        uneven = size * torch.linspace(1, 2, len(size), device=size.device)
        columns: list[int] = []
        left = [torch.arange(len(start), device=start.device)]
        while left:
            part = left.pop()
            if bool(change(torch.zeros_like(start).index_copy(0, part, uneven[part])).any()):
                if len(part) == 1:
                    columns.append(int(part))
                else:
                    left += part.chunk(2)
            if len(columns) > _MOST_BY_STEPS:
                return _NO_DERIVATIVE
        if not columns:
            return _NO_DERIVATIVE
        which = torch.tensor(sorted(columns), device=start.device)
        sizes = []
        for factor in (1.0, 2.0):
            steps = torch.nn.functional.one_hot(which, len(start)) * size * factor
            sizes.append(
                torch.stack(
                    [change(s) / float(2 * s[w]) for s, w in zip(steps, which, strict=True)], 1
                )
            )
        noise = 0.0
        if len(which) == len(rows):
            near, far = (float(torch.linalg.slogdet(jacobian)[1]) for jacobian in sizes)
            noise = 0.01 + 4 * abs(near - far)
            if not noise < 0.1:
                return _NO_DERIVATIVE
        return which, sizes[0].to(start), noise

    def log_draws(self, draws: Tensor) -> Tensor:
        """The log densities of all draws of the guide, -inf outside of the support."""
        trace = self._trace(draws)
        terms = []
        with pyro.validation_enabled(False):
            for name in self._values:
                site = trace.nodes[name]
                support, log_q = support_of(site["fn"]), unscaled(site).double()
                if support is not None:
                    log_q = log_q.where(support.check(site["value"]), -math.inf)
                terms.append(log_q.flatten())
        return torch.cat(terms)

    def names(self, values: Tensor, columns: Tensor) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The names of the latents of some values, and of some draws."""
        names: list[Any] = list(self.latents)
        ends = torch.tensor(self._sizes, device=columns.device).cumsum(0)
        draws = torch.bucketize(columns, ends, right=True).unique().tolist()
        return (
            tuple(names[i] for i in self.image.latent_of[values].unique().tolist()),
            tuple(self.draws[i] for i in draws),
        )


def slopes(draws: Tensor, image: Image, weights: Tensor) -> Tensor:
    """The derivatives of a weighted sum of all numbers of latents by the draws.

    Args:
        draws: The draws.
        image: What is computed from them.
        weights: The weights, `(m,)`; or those of several sums, `(sums, m)`.

    Returns:
        The derivatives, `(draws,)` or `(sums, draws)`.
    """
    if not image.numbers.requires_grad:
        return draws.detach().new_zeros(*weights.shape[:-1], len(draws))

    def of(weight: Tensor) -> Tensor:
        (found,) = torch.autograd.grad(
            image.numbers,
            draws,
            weight.to(image.numbers),
            retain_graph=True,
            allow_unused=True,
            materialize_grads=True,
            is_grads_batched=weight.dim() > 1,
        )
        return found

    with torch.enable_grad():
        try:
            return of(weights)
        except RuntimeError:  # an operation that cannot be differentiated many times at once
            if weights.dim() == 1:
                raise
            return torch.stack([of(weight) for weight in weights])


def _is_singular(jacobian: Tensor) -> bool:
    """Whether rows of a Jacobian depend on one another. One that is 0 may be so by rounding."""
    jacobian = jacobian.double()
    sizes = jacobian.norm(dim=1, keepdim=True)
    if len(jacobian) < 2 or bool((sizes == 0).any()):
        return False
    # The determinant alone is small for many numbers.
    condition = torch.linalg.cond(jacobian / sizes, p="fro")
    return bool(condition > 0.01 / torch.finfo(torch.float32).eps * len(jacobian))
