"""The function from a guide's draws to the latents that it gives as Deltas, with its derivatives."""

from __future__ import annotations

import functools
import math
import warnings
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

MOST_NUMBERS = 256
"""Most numbers that are computed from one another, of which the determinant is taken."""


class Block(NamedTuple):
    """Latents and the draws that they alone are computed from.

    Attributes:
        values: The values of latents, `(v,)`.
        rows: The numbers of these values, `(k,)`.
        columns: The draws, `(k,)`.
        jacobian: The derivatives of the numbers by the draws, `(k, k)`.
    """

    values: Tensor
    rows: Tensor
    columns: Tensor
    jacobian: Tensor


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
        with torch.enable_grad():
            self.image = self.at(self.start)

    def is_point(self, value: int) -> bool:
        """Whether a value of a latent depends on no draw."""
        rows = (self.image.value_of == value).nonzero()[:, 0].tolist()
        with torch.enable_grad():
            return not any(bool(self.gradient(row).any()) for row in rows)

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
            (self._gradients[number],) = torch.autograd.grad(
                self.image.numbers[number], self.start, retain_graph=True
            )
        return self._gradients[number]

    def block(self, value: int) -> Block | None:
        """The values that share draws with a value, these draws, and the Jacobian, if it is square.

        None also if the gradient is not that of the function.
        """
        image = self.image
        values = torch.tensor([value], device=image.value_of.device)
        while True:
            rows = torch.isin(image.value_of, values).nonzero()[:, 0]
            if len(rows) > MOST_NUMBERS:
                return None
            with torch.enable_grad():
                jacobian = torch.stack([self.gradient(row) for row in rows.tolist()])
            columns = (jacobian != 0).any(0).nonzero()[:, 0]
            if not 0 < len(columns) <= MOST_NUMBERS or not bool(image.present[values].all()):
                return None
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
        seen, expected = (there - image.numbers.detach())[rows], jacobian @ step
        noise = 10 * torch.finfo(seen.dtype).eps * image.numbers[rows].detach().abs().max()
        agrees = float((seen - expected).norm()) <= 0.1 * float(expected.norm()) + float(noise)
        if not agrees or len(rows) != len(columns):
            return None
        return Block(values, rows, columns, jacobian[:, columns])

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
