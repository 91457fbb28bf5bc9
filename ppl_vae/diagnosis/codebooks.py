"""How far the codes of a quantizer are from the vectors that they stand for, over some rows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pyro.poutine as poutine
import torch
from torch import Tensor

from ppl_vae.checks import Session
from ppl_vae.diagnosis.use_of_codes import ENOUGH, UseOfCodes
from ppl_vae.pairs import (
    COLLAPSED,
    Layout,
    Site,
    Substitute,
    as_args,
    innermost,
    is_ours,
    num_rows,
    rows_first,
    take_rows,
    trace_pair,
)

MOST_CODES = 2**16
"""Most codes whose vectors are looked at."""

_MOST_VECTORS = 2**15
"""Vectors to which the distances of unused codes are measured, evenly spread over the rows."""

_AT_ONCE = 2**22
"""Distances that are computed at once."""

_CODES_AT_ONCE = 64
"""Codes with which a model is run together, each in a row of its own, or as many as there are first rows."""

_SAME = 1e-4
"""Of the size of the codes' vectors: up to which two of them are the same."""

_ROUNDING = 1e-5
"""Of the size of an encoder's vectors: up to which those of all rows are the same."""


@dataclass(frozen=True)
class Codebooks:
    """The codebooks of one site.

    Attributes:
        site: The latent.
        values: Number K of codes of each.
        points: The vectors of each codebook, `(K, dim)`, in double precision on the CPU; None if they are not
            known.
        why_not: Why they are not known, in words.
        learn: Whether they are known to be fixed (False), or may learn.
    """

    site: str
    values: int
    points: tuple[Tensor, ...] | None
    why_not: str = ""
    learn: bool = True


def vectors_of(site: Site | None, layout: Layout, n: int) -> Tensor | None:
    """The value of a deterministic site, row by row: `(n, *positions, dim)`; None if there is none."""
    if site is None:
        return None
    value: Tensor = site["value"]
    if value.dim() and len(site["fn"].event_shape) == value.dim() and value.shape[0] == n:
        return value  # no event_dim was given
    return rows_first(site, layout, 1, n)[0]


def log_q_of(site: Site, layout: Layout, n: int) -> Tensor:
    """The log probabilities of codes that are drawn, row by row: `(n, *positions, K)`."""
    logits = innermost(site["fn"]).logits
    logits = logits.expand(*site["value"].shape, logits.shape[-1])
    # A site whose events have one more dimension.
    fn = SimpleNamespace(event_shape=(*site["fn"].event_shape, logits.shape[-1]))
    return rows_first({"value": logits, "fn": fn}, layout, 1, n)[0]


def depth_of(z: Tensor, vectors: Tensor | None) -> int:
    """How many codes a vector has: z is `(n, *positions)`, or `(n, *positions, depth)`; 0 if they do not fit.

    Args:
        z: The codes of some rows.
        vectors: Their vectors, `(n, *positions, dim)`.

    Example:
        >>> vectors = torch.zeros(9, 5, 5, 2)
        >>> depth_of(torch.zeros(9, 5, 5), vectors), depth_of(torch.zeros(9, 5, 5, 3), vectors)
        (1, 3)
    """
    if vectors is None or vectors.dim() < 2:
        return 0
    positions = vectors.shape[1:-1]
    if z.shape[1:] == positions:
        return 1
    return z.shape[-1] if z.dim() > 1 and z.shape[1:-1] == positions else 0


def find_codebooks(session: Session, marked: Mapping[str, str], layout: Layout) -> list[Codebooks]:
    """The codebooks of each marked site.

    Those of a model of this library are its quantizer's. Others are found by running the model with each code
    in all places; then the vector of a code must be the same in all of them.

    Args:
        session: The opened pair.
        marked: The sites, with the deterministic sites of their vectors.
        layout: That of the first rows.
    """
    model_trace, guide_trace = trace_pair(session.pair, session.first)
    n = num_rows(session.first)
    found = []
    for site, name in marked.items():
        node = guide_trace.nodes[site]
        values = _values(node)
        z = rows_first(node, layout, 1, n)[0]
        given = vectors_of(guide_trace.nodes.get(name), layout, n)
        depth = depth_of(z, given)
        decoded = vectors_of(model_trace.nodes.get(name), layout, n)
        points: tuple[Tensor, ...] | None = None
        learn, why_not = True, ""
        if values > MOST_CODES:
            why_not = f"'{site}' has {values:,} codes"
        elif not depth:
            why_not = f"the guide has no vectors '{name}' in the places of the codes '{site}'"
        elif decoded is None or given is None or decoded.shape != given.shape:
            why_not = f"the model has no vectors '{name}' like those of the guide"
        else:
            ours, learn = _of_quantizer(session.pair.model, depth, values)
            if ours is not None and _suit(ours, z, decoded):
                points = ours
            elif depth == 1:
                learn = True
                points = _by_running(session, site, name, values, node, layout)
                if points is None or not _suit(points, z, decoded):
                    points = None
                    why_not = f"the vector of a code of '{site}' is not the same everywhere"
            else:
                why_not = (
                    f"each vector has {depth} codes of '{site}', whose own vectors are not known"
                )
        found.append(Codebooks(site, values, points, why_not, learn))
    return found


def _values(node: Site) -> int:
    """The number of values of a code."""
    return int(innermost(node["fn"]).support.upper_bound) + 1


def _of_quantizer(model: Any, depth: int, values: int) -> tuple[tuple[Tensor, ...] | None, bool]:
    """The vectors of the codebooks of a model of this library, and whether they learn."""
    quantizer: Any = getattr(model, "quantizer", None)
    if not is_ours(quantizer, "codes") or quantizer.codes != values or quantizer.depth != depth:
        return None, True
    levels = getattr(quantizer, "levels", None) if depth > 1 else [quantizer]
    if levels is None or len(levels) != depth:
        return None, True
    points = tuple(level.points().detach().double().cpu() for level in levels)
    return points, all(hasattr(level, "codebook") for level in levels)


def _suit(points: tuple[Tensor, ...], z: Tensor, decoded: Tensor) -> bool:
    """Whether the model decodes these points."""
    codes = z.long().cpu().reshape(-1, len(points)).unbind(-1)
    flat = decoded.detach().double().cpu().reshape(-1, decoded.shape[-1])
    total = sum(of[code] for of, code in zip(points, codes, strict=True))
    size = max(float(of.abs().max()) for of in points)
    return bool(((total - flat).abs() <= _SAME * size).all())


def _by_running(
    session: Session, site: str, name: str, values: int, node: Site, layout: Layout
) -> tuple[Tensor, ...] | None:
    """The vector of each code, by the model with one code in all places of a row; None if they differ."""
    if session.pair.keeps_rows:
        return None
    n, value = num_rows(session.first), node["value"]
    row = value.dim() - len(node["fn"].event_shape) + layout.dim
    found = []
    for codes in torch.arange(values, device=value.device).split(max(n, _CODES_AT_ONCE)):
        m = len(codes)
        batch = take_rows(session.first, torch.arange(m, device=session.device) % n)
        each = codes.reshape(m, *(1,) * (value.dim() - row - 1))
        each = each.expand(*value.shape[:row], m, *value.shape[row + 1 :])
        model = Substitute({site: each})(session.pair.model)
        trace = poutine.trace(model).get_trace(*as_args(batch))
        vectors = vectors_of(trace.nodes.get(name), layout, m)
        if vectors is None:
            return None
        flat = vectors.detach().double().cpu().reshape(m, -1, vectors.shape[-1])
        if bool(((flat - flat[:, :1]).abs() > _SAME * flat.abs().max()).any()):
            return None
        found.append(flat[:, 0])
    return (torch.cat(found),)


class Drawn:
    """What q(z | x) says of codes that are drawn, summed over rows: by itself, and not by its draws."""

    def __init__(self) -> None:
        self.rows = 0
        self._sums = self._nearest = torch.zeros(())
        self._entropy = 0.0
        self._first: Tensor | None = None
        self.moves = False

    def update(self, log_q: Tensor) -> None:
        """Adds rows.

        Args:
            log_q: log q(z = k | x), `(n, m, K)`.
        """
        for part in log_q.split(max(1, _AT_ONCE // log_q[0].numel())):
            log_q = part.detach().double().cpu()
            log_q = log_q - log_q.logsumexp(-1, keepdim=True)
            q = log_q.exp()
            nearest = log_q.argmax(-1)
            self._first = nearest[:1] if self._first is None else self._first
            self.moves = self.moves or bool((nearest != self._first).any())
            self._entropy -= float(torch.where(q > 0, q * log_q, 0.0).sum())
            ones = torch.zeros_like(q).scatter_(-1, nearest.unsqueeze(-1), 1.0)
            self._sums, self._nearest = self._sums + q.sum(0), self._nearest + ones.sum(0)
            self.rows += len(q)

    def says(self) -> dict[str, float]:
        """What is known of a code by it, nats: see `UseOfCodes`."""
        m = len(self._sums)
        noise = self._entropy / (self.rows * m)
        return {
            "noise": noise,
            "information": max(0.0, _entropy_of(self._sums / self.rows) / m - noise),
            "rounded": _entropy_of(self._nearest / self.rows) / m,
        }


def _entropy_of(p: Tensor) -> float:
    """The sum of the entropies of distributions, `(m, K)`, nats."""
    return float(-torch.special.xlogy(p, p).sum())


class Members:
    """What the codes of one codebook have as members, summed over rows.

    Args:
        values: Number K of codes.
        points: Their vectors, `(K, dim)`; None if they are not known.
        stride: One of so many vectors is kept, to measure distances to it.
        learn: Whether the codes may follow their members.
    """

    def __init__(self, values: int, points: Tensor | None, stride: int, learn: bool) -> None:
        self.values, self.points, self.stride, self.learn = values, points, stride, learn
        self.counts = torch.zeros(values if values <= 2**20 else 0, dtype=torch.int64)
        self._seen: dict[int, int] = {}  # of more codes
        self.uses = 0
        self.rows = 0
        self._first: Tensor | None = None
        self._differ = False
        self.drawn: Drawn | None = None
        self.same_vectors = points is not None
        self._offsets = self._squares = torch.zeros(())
        self._sum = self._square = torch.zeros(())
        self._row: Tensor | None = None
        self._kept: list[Tensor] = []
        if points is not None:
            self._offsets = torch.zeros_like(points)
            self._squares = torch.zeros(values, dtype=torch.float64)

    def update(self, z: Tensor, vectors: Tensor | None, log_q: Tensor | None = None) -> None:
        """Adds rows.

        Args:
            z: Their codes, `(n, m)`.
            vectors: What the codebook is to stand for, `(n, m, dim)`; None if that is not known.
            log_q: log q(z | x), `(n, m, K)`, if they are drawn from it.
        """
        if log_q is not None:
            self.drawn = self.drawn or Drawn()
            self.drawn.update(log_q)
        z = z.long().cpu()
        self.rows += len(z)
        self.uses += z.numel()
        self._first = z[:1] if self._first is None else self._first
        self._differ = self._differ or bool((z != self._first).any())
        if len(self.counts):
            self.counts += z.flatten().bincount(minlength=self.values)
        else:
            for code, count in zip(
                *(t.tolist() for t in z.unique(return_counts=True)), strict=True
            ):
                self._seen[code] = self._seen.get(code, 0) + count
        if vectors is None or self.points is None:
            return
        vectors = vectors.detach().double().cpu()
        if self._row is None:
            self._row = vectors[:1].clone()
        size = float(torch.maximum(vectors.abs().max(), self._row.abs().max()))
        away = float((vectors - self._row).abs().max())
        self.same_vectors = self.same_vectors and away <= _ROUNDING * size
        flat, code = vectors.flatten(0, 1), z.flatten()
        from_code = flat - self.points[code]
        self._offsets.index_add_(0, code, from_code)
        self._squares.index_add_(0, code, from_code.square().sum(1))
        from_first = flat - self._row[0, 0]
        self._sum = self._sum + from_first.sum(0)
        self._square = self._square + from_first.square().sum()
        self._kept.append(flat[:: self.stride])

    @property
    def varies(self) -> bool:
        """Whether codes differ from row to row; of drawn ones, whether q(z | x) does by more than chance."""
        if self.drawn is None:
            return self._differ
        if self.same_vectors:  # up to rounding, which may turn what is nearest
            return False
        return self.drawn.moves or self.drawn.says()["information"] >= COLLAPSED

    def use(self, name: str, rate: float, gain: float) -> UseOfCodes:
        """What these rows say.

        Args:
            name: Of the codebook.
            rate: What a code costs, nats.
            gain: What one is worth to the decoder, nats.
        """
        counts = self.counts if len(self.counts) else torch.tensor([*self._seen.values()])
        used = int((counts > 0).sum())
        shares = counts[counts > 0].double() / self.uses
        entropy = max(0.0, -float((shares * shares.log()).sum()))
        dead = 0
        if self.uses >= ENOUGH * self.values:
            once, twice = int((counts == 1).sum()), int((counts == 2).sum())
            dead = max(0, round(self.values - used - once * (once - 1) / (2 * (twice + 1))))
        return UseOfCodes(
            name,
            count=self.uses // self.rows,
            values=self.values,
            uses=self.uses,
            used=used,
            dead=dead,
            perplexity=math.exp(entropy),
            entropy=entropy,
            rate=rate,
            gain=gain,
            varies=self.varies,
            **({} if self.drawn is None else self.drawn.says()),
            **self._geometry(),
        )

    def _geometry(self) -> dict[str, float]:
        if self.points is None:
            return {}
        n = self.counts.double()
        squares = float(self._squares.sum())
        between = self._offsets.square().sum(1) / n.clamp(min=1)  # n_k |M_k - C_k|^2
        inside = (self._squares - between).clamp(min=0)
        # The mean of few members is off by chance: by their variance / n_k.
        chance = inside / (n - 1).clamp(min=1)
        lag = max(0.0, float((between - chance).sum()) / self.uses) if self.learn else 0.0
        spread = (self._square - self._sum.square().sum() / self.uses) / max(1, self.uses - 1)
        found = {
            "spread": max(0.0, float(spread)),
            "within": max(0.0, squares / self.uses - lag),
            "lag": lag,
        }
        unused = self.points[self.counts == 0]
        if len(unused) and found["spread"] > 0:
            distances = _to_the_nearest(unused, torch.cat(self._kept))
            found["away"] = float(distances.median()) / math.sqrt(found["spread"])
        return found


def _to_the_nearest(points: Tensor, vectors: Tensor) -> Tensor:
    """The distance from each point to the nearest vector."""
    size = max(1, _AT_ONCE // len(vectors))
    return torch.cat([torch.cdist(part, vectors).min(1).values for part in points.split(size)])


def stride_for(uses: int | None) -> int:
    """One of how many vectors is kept, if there are so many of them; None: their number is not known."""
    return max(1, -(-(uses or 16 * _MOST_VECTORS) // _MOST_VECTORS))
