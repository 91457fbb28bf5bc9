"""Functions that are not one-to-one: other draws that give the same latents."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ppl_vae.pairs.guide_maps import MOST_NUMBERS, Block, GuideMap, Image, slopes
from ppl_vae.runtime import own_generator

_MOST_FOLDED = 8
"""Most draws that are moved one by one to find others that give the same latents."""

_MOST_GRADIENTS = 64
"""About how many numbers are differentiated at other draws."""

_MOST_FLAT = 2
"""How many draws at which latents seem flat are looked at."""

_MOST_TURNED = 8
"""How many numbers whose derivatives have another sign at other draws are looked at."""

_HALVINGS = 12
"""How closely the place is found at which a derivative changes."""


def fold(of: GuideMap, block: Block) -> float:
    """log of 1 + the sum of q(v) / q(u) over other draws v with the same numbers of latents.

    -u is tried, and u + 2 pi k. If each number of u alone can be moved so, their densities count as
    independent. There the determinant is the same, because the function is.
    """
    start, rows, columns = of.start.detach(), block.rows, block.columns

    def moved(by: Tensor, which: Tensor) -> Tensor:
        there = start.clone()
        there[which] = by[which]
        return there

    def change(there: Tensor) -> Tensor:
        with torch.no_grad():
            numbers = of.at(there).numbers
        return (numbers - of.image.numbers.detach())[rows].abs()

    eps = 10 * torch.finfo(start.dtype).eps
    noise = eps * (1 + of.image.numbers.detach()[rows].abs() + start[columns].abs().max())

    def same(there: Tensor) -> bool:
        return bool((change(there) <= noise).all())

    turns = 2 * math.pi * torch.tensor([1.0, -1.0, 2.0, -2.0, 3.0, -3.0])
    others = [
        tries
        for tries in ([-start], [start + float(turn) for turn in turns])
        if same(moved(tries[0], columns))
    ]
    # A function that is flat here, as far as rounding lets one see, gives the same numbers anywhere.
    if not others or not bool((change(start + 0.003 * (1 + start.abs())) > 10 * noise).all()):
        return 0.0
    tries = [there for some in others for there in some]
    singly = len(columns) <= _MOST_FOLDED and all(
        same(moved(some[0], column)) for some in others for column in columns
    )
    with torch.no_grad():
        log_q = of.log_draws(start)
        return sum(
            math.log1p(
                sum(
                    math.exp(min(50.0, float((of.log_draws(moved(t, which)) - log_q).sum())))
                    for t in tries
                )
            )
            for which in (columns if singly else [columns])
        )


def turns(of: GuideMap, block: Block) -> bool:
    """Whether the determinant has another sign at other draws, so that f is certainly not one-to-one.

    A continuous function that is one-to-one on a connected support keeps the orientation (the invariance of
    domain). If each number depends on one draw alone, the sign of each derivative is looked at. Only a change
    of sign where f does not jump counts: a function that jumps may be one-to-one on each side.
    """
    alone = _each_alone(block)
    start = of.start.detach()
    for i, (point, image) in enumerate(of.others):
        parts: list[tuple[Tensor, Tensor, Tensor]] = []  # rows, columns, sign here
        if alone is not None:  # the derivative of the sum is that of each number
            rows, columns, here = alone
            inside = torch.zeros_like(image.numbers).index_fill(0, rows, 1.0)
            changed = here.sign() * slopes(point, image, inside.detach())[columns].sign() < 0
            for number in changed.nonzero()[:_MOST_TURNED, 0]:
                which = number.unsqueeze(0)
                parts.append((rows[which], columns[which], here[which].view(1, 1)))
        several = block.jacobian.dim() == 2 and len(block.columns) > 1
        few = (i + 1) * len(block.columns) <= _MOST_GRADIENTS
        if several and (few or (i == 0 and alone is None and len(block.columns) <= MOST_NUMBERS)):
            jacobian = _jacobian(point, image, block.rows, block.columns)
            if _sign(block.jacobian) * _sign(jacobian) < 0:
                parts.append((block.rows, block.columns, block.jacobian))
        for rows, which, before in parts:
            end = start.clone()
            end[which] = point.detach()[which]
            if _passes_zero(of, rows, which, end, _sign(before)):
                return True
    return False


def _each_alone(block: Block) -> tuple[Tensor, Tensor, Tensor] | None:
    """Numbers, the draw that each alone depends on, and its derivative; None if one depends on several."""
    if block.jacobian.dim() == 1:
        return block.rows, block.columns, block.jacobian
    there = block.jacobian != 0
    if not bool((there.sum(0) == 1).all()) or not bool((there.sum(1) == 1).all()):
        return None
    return block.rows, block.columns[there.long().argmax(1)], block.jacobian[there]


def _passes_zero(of: GuideMap, rows: Tensor, columns: Tensor, end: Tensor, sign: float) -> bool:
    """Whether the sign changes between the start and `end`, at a place where f does not jump."""
    if not bool(torch.isfinite(of.log_draws(end)).all()):
        return False

    def same(draws: Tensor, image: Image) -> bool:
        return _sign(_jacobian(draws, image, rows, columns)) != -sign

    if same(*_at(of, end)):
        return False
    near, far = _border(of, of.start.detach(), end, same)
    steps = [_jacobian(*both, rows, columns).norm() for both in (near, far)]
    length = (near[0] - far[0]).detach()[columns].norm()
    change = (near[1].numbers - far[1].numbers).detach()[rows]
    noise = 100 * torch.finfo(change.dtype).eps * far[1].numbers.detach()[rows].abs().max()
    return float(change.norm()) <= 10 * float(max(steps) * length) + float(noise)


def flat_draws(of: GuideMap) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Latents on which a draw has no influence for some of its values, such as relu(u) for u < 0; and the draw.

    All these values give the same latents, which have no density there. Derivatives that are 0 by rounding, as
    of a sigmoid near 1, do not count: they are small already where they end. Coordinates of a simplex are left
    out, which are cut off where the simplex is rounded.
    """
    numbers = of.image.numbers
    weights = 0.5 + torch.rand(len(numbers), generator=own_generator())
    weights = weights.to(numbers) * (of.image.plain & of.image.present[of.image.value_of])

    points = [(of.start, of.image), *of.others]
    zero = torch.stack([slopes(*point, weights) for point in points]) == 0
    seen: dict[str, int] = {}
    for column in (zero.any(0) & ~zero.all(0)).nonzero():
        (name,) = of.names(of.image.latent_of[:0], column)[1]
        seen[name] = seen.get(name, 0) + 1
        if seen[name] <= _MOST_FLAT:
            flat, other = (
                points[int(z.long().argmax())] for z in (zero[:, column], ~zero[:, column])
            )
            moved = _moved(of, *other, column) & (weights > 0)
            if not bool(moved.any()) or bool(_moved(of, *flat, column).any()):
                continue

            def steep(draws: Tensor, image: Image, column: Tensor = column) -> bool:
                return bool(slopes(draws, image, weights)[column] != 0)

            near, _ = _border(of, other[0].detach(), flat[0].detach(), steep)
            size = torch.stack([p[1].numbers.detach()[moved].abs().max() for p in (other, flat)])
            noise = 1e3 * torch.finfo(size.dtype).eps * size.max() + torch.finfo(size.dtype).tiny
            way = (other[0] - flat[0]).detach()[column]
            if bool((slopes(*near, weights)[column] * way).abs() > noise):
                yield of.names(of.image.value_of[moved].unique(), column)


def _moved(of: GuideMap, draws: Tensor, image: Image, column: Tensor) -> Tensor:
    """Which numbers of latents a small step of one draw changes."""
    there = draws.detach().clone()
    there[column] += 0.003 * (1 + there[column].abs())
    with torch.no_grad():
        return of.at(there).numbers != image.numbers


def _border(
    of: GuideMap, near: Tensor, far: Tensor, holds: Callable[[Tensor, Image], bool]
) -> tuple[tuple[Tensor, Image], tuple[Tensor, Image]]:
    """Draws on the way from `near` to `far`, close together, of which the first still satisfies a condition."""
    for _ in range(_HALVINGS):
        middle = _at(of, (near + far) / 2)
        if holds(*middle):
            near = middle[0].detach()
        else:
            far = middle[0].detach()
    return _at(of, near), _at(of, far)


def _at(of: GuideMap, draws: Tensor) -> tuple[Tensor, Image]:
    """Draws and what is computed from them, to be differentiated."""
    draws = draws.detach().clone().requires_grad_()
    with torch.enable_grad():
        return draws, of.at(draws)


def _jacobian(draws: Tensor, image: Image, rows: Tensor, columns: Tensor) -> Tensor:
    each = torch.nn.functional.one_hot(rows, len(image.numbers))
    return torch.stack([slopes(draws, image, row)[columns] for row in each])


def _sign(jacobian: Tensor) -> float:
    """The sign of the determinant; 0 if rounding decides."""
    values = torch.linalg.svdvals(jacobian.double())
    noise = 1e3 * torch.finfo(jacobian.dtype).eps * float(values[0]) if len(values) > 1 else 0.0
    if float(values[-1]) <= noise:
        return 0.0
    return float(torch.linalg.slogdet(jacobian.double())[0])
