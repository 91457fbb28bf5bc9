"""interpolate() and traverse(): rows along paths in the latent space."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any, Literal

import pyro.poutine as poutine
import torch
from torch import Tensor
from torch.distributions import constraints

from ppl_vae.checks import Session, opened
from ppl_vae.pairs import (
    Batch,
    DataArguments,
    DataLike,
    PairError,
    Program,
    Site,
    as_args,
    as_tensor,
    num_rows,
    places_of,
    prior_moments,
    tensors_of,
)
from ppl_vae.runtime import described, require_count, require_flags
from ppl_vae.tasks.arrays import as_given
from ppl_vae.tasks.encoding import (
    MEAN_SAMPLES,
)
from ppl_vae.tasks.ends import decoded, differs, posterior_centers, with_argument
from ppl_vae.tasks.sampling import Given

LEAST_SINE = 1e-6
"""Sine of the angle between two directions below which the path between them is straight."""

PRIOR_DRAWS = 2000
"""Draws that say where a prior is that states no mean."""

REACH = 3.0
"""How far a traversal goes to both sides, in standard deviations of the prior."""


def interpolate(
    model: Program,
    guide: Program,
    a: DataLike,
    b: DataLike,
    *,
    steps: int = 8,
    path: Literal["linear", "spherical"] = "linear",
    means: bool = True,
    site: str | None = None,
    given: Given | None = None,
    seed: int | None = None,
) -> Any:
    r"""Rows between two others: E[x | z] along a path from the posterior mean of a to that of b.

    All latents that are numbers move together. Between classes there is no path: each path keeps the most
    probable one, which must be the same at both ends; the means are then those given that class. What rows come
    with (labels) must be the same, too, as far as p(x | z) depends on it. `given` holds another class or label
    along a path.

    The linear path is (1 - t) z_a + t z_b. The spherical one goes along the great
    circle between the two directions,

        z_t = |z|_t (sin((1 - t) w) z_a / |z_a| + sin(t w) z_b / |z_b|) / sin w,
        cos w = z_a . z_b / (|z_a| |z_b|),

    with lengths |z|_t that change linearly: in many dimensions nearly all mass of a normal lies at one length,
    which a straight line leaves (White, "Sampling Generative Networks", arXiv:1609.04468).

    Args:
        model: Pyro program of p(x, z).
        guide: Pyro program of q(z | x).
        a: Rows to start from, `(n, *event)`.
        b: Rows to end at, as many.
        steps: Rows of a path, with both ends.
        path: "linear" or "spherical".
        means: Whether to return E[x | z]; False draws x at each point, for distributions that state no mean.
        site: The observed site, if the model has several.
        given: Values that are held along the paths, by the name of a latent or of an argument of the model, one
            for each path: `{"y": classes}`.
        seed: Seed of the draws, where the guide states no mean.

    Returns:
        `(n, steps, *event)`, a tensor, or a numpy array if `a` is no tensor. The model's other arguments than
        the data are those of `a`, unless they are given.

    Raises:
        PairError: The two ends of a path have different classes, or come with different labels; all latents are
            discrete; or the distribution of x states no mean.
        ValueError: `a` and `b` have different numbers of rows, or fewer than two steps are wanted.

    Example:
        >>> from ppl_vae.guides import MeanField
        >>> from ppl_vae.models import VAE
        >>> model, guide, x = VAE((1, 8, 8), 2), MeanField((1, 8, 8), 2), torch.rand(6, 1, 8, 8).round()
        >>> interpolate(model, guide, x[:3], x[3:], steps=5).shape
        torch.Size([3, 5, 1, 8, 8])
    """
    require_count("steps", steps, 2)
    require_flags(means=means)
    if path not in ("linear", "spherical"):
        raise ValueError(f"path must be 'linear' or 'spherical', got {path!r}")
    held = {name: as_tensor(value, name) for name, value in (given or {}).items()}
    with opened(model, guide, b, seed=seed, progress=False) as session:
        last = posterior_centers(session, "interpolate (b)", given=held)
        end = session.batches.rows
    with opened(model, guide, a, seed=seed, progress=False) as session:
        first = posterior_centers(session, "interpolate (a)", given=held)
        n, ends = (len(next(iter(means.values()))) for means in (first, last))
        if ends != n:
            raise ValueError(
                f"interpolate needs as many rows to end at as to start from: a has {n}, b has {ends}"
            )
        for name, value in held.items():
            if value.dim() == 0 or len(value) != n:
                raise ValueError(
                    f"given['{name}'] has shape {tuple(value.shape)}: expected one value for each of the {n} "
                    f"paths, ({n}, ...)"
                )
        for name in session.layout.discrete:
            _require_same_ends(first, last, name)
        _require_same_context(session, first, end, site, held)
        along = _spherical if path == "spherical" else torch.lerp
        shares = [i / (steps - 1) for i in range(steps)]
        between = {
            name: first[name][:, None].expand(-1, steps, *first[name].shape[1:])
            if name in session.layout.discrete
            else torch.stack([along(first[name], last[name], share) for share in shares], 1)
            for name in first
        }
        return as_given(a)(decoded(session, between, site, held, means=means))


def traverse(
    model: Program,
    guide: Program,
    x: DataLike,
    dimension: int | Sequence[int],
    *,
    steps: int = 9,
    latent: str | None = None,
    means: bool = True,
    site: str | None = None,
    seed: int | None = None,
) -> Any:
    """What one dimension of a latent does: E[x | z] as it moves, from the posterior mean of each row.

    It goes from three standard deviations of the prior below its mean to three above, in equal steps; of a
    latent without a prior, as an `Autoencoder` has, from three deviations of the codes of the rows. From a
    row's own posterior mean, because decoders are rarely good where all latents are zero. A class that the pair
    infers, too, stays at the row's most probable one, and the mean is the one given that class.

    Args:
        model: Pyro program of p(x, z).
        guide: Pyro program of q(z | x).
        x: Rows to start from, `(n, *event)`.
        dimension: The number of the dimension, of the latent's numbers in one row; or several numbers, each of
            which moves alone.
        steps: Values of it.
        latent: The latent site, if there are several.
        means: Whether to return E[x | z]; False draws x for each value, for distributions that state no mean.
        site: The observed site, if the model has several.
        seed: Seed of the draws, where the guide states no mean.

    Returns:
        `(n, steps, *event)`, a tensor, or a numpy array if `x` is no tensor; of several dimensions
        `(n, dimensions, steps, *event)`.

    Raises:
        PairError: The latent is discrete, another one is discrete and has no most probable value, or the
            distribution of x states no mean.
        ValueError: There is no such latent or dimension.

    Example:
        >>> from ppl_vae.guides import MeanField
        >>> from ppl_vae.models import VAE
        >>> model, guide, x = VAE((1, 8, 8), 2), MeanField((1, 8, 8), 2), torch.rand(2, 1, 8, 8).round()
        >>> traverse(model, guide, x, dimension=1, steps=5).shape
        torch.Size([2, 5, 1, 8, 8])
    """
    require_count("steps", steps)
    require_flags(means=means)
    with opened(model, guide, x, seed=seed, progress=False) as session:
        centers = posterior_centers(session, "traverse")
        moving = [name for name in centers if name not in session.layout.discrete]
        if latent is None and len(moving) == 1:
            (latent,) = moving
        if latent not in centers:
            listed = ", ".join(f"'{name}'" for name in centers)
            asked = "several latents" if latent is None else f"no latent '{latent}'"
            raise ValueError(f"the pair has {asked}: pass latent= one of {listed}")
        if latent in session.layout.discrete:
            raise PairError(f"'{latent}' is discrete: there is no path between values")
        size = centers[latent][0].numel()
        single = isinstance(dimension, Integral)
        several: Any = [dimension] if single else dimension
        if not isinstance(several, Sequence) or isinstance(several, str) or not len(several):
            raise TypeError(
                f"dimension must be a whole number, or a list of them, got {described(dimension)}"
            )
        for each in several:
            require_count("dimension", each, 0, size - 1)
        shares = torch.linspace(-REACH, REACH, steps).to(centers[latent])
        moved = {
            name: mean[:, None].repeat_interleave(len(several) * steps, 1)
            for name, mean in centers.items()
        }
        flat = moved[latent].reshape(len(centers[latent]), len(several), steps, -1)
        if latent in session.layout.improper:
            of_prior = _of_codes(centers[latent], several)
        else:
            of_prior = _of_prior(session, latent, several)
        for place, (each, (center, deviation)) in enumerate(zip(several, of_prior, strict=True)):
            flat[:, place, :, each] = center + deviation * shares
        moved[latent] = flat.reshape(moved[latent].shape)
        found = decoded(session, moved, site, means=means)
        if not single:
            found = found.unflatten(1, (len(several), steps))
        return as_given(x)(found)


def _of_prior(
    session: Session, latent: str, dimensions: Sequence[int]
) -> list[tuple[Tensor, Tensor]]:
    """Mean and deviation of some numbers of a latent under the prior of each row, `(n, 1)`.

    If the prior depends on other latents, over draws of these; of draws, if it states none.

    Raises:
        PairError: The latent is bounded.
    """
    means, deviations = [], []
    for chunk in session.chunks(session.rows_at_once(MEAN_SAMPLES)):
        rows = session.sample(chunk, MEAN_SAMPLES)
        _require_unbounded(latent, rows.model_trace.nodes[latent])
        moments = prior_moments(rows, rows.layout, latent)
        n = num_rows(chunk)
        if moments is None:
            drawn = _drawn_from_prior(session, latent)
            moment = [m.expand(n, -1) for m in (drawn.mean(0), drawn.var(0))]
        else:
            moment = [m.reshape(n, -1) for m in moments]
        means.append(moment[0].to(session.device))
        deviations.append(moment[1].to(session.device).sqrt())
    center, deviation = torch.cat(means), torch.cat(deviations)
    return [(center[:, each, None], deviation[:, each, None]) for each in dimensions]


def _of_codes(centers: Tensor, dimensions: Sequence[int]) -> list[tuple[Tensor, Tensor]]:
    """Mean and deviation of some numbers of the codes of all rows, `(n, 1)`, for latents without a prior.

    Raises:
        ValueError: There is a single row, of which nothing varies.
    """
    codes = centers.reshape(len(centers), -1)
    if len(codes) < 2:
        raise ValueError(
            "traverse moves a latent without a prior as far as the codes of the rows go: give it two rows or "
            "more"
        )
    means, deviations = codes.mean(0), codes.std(0)
    return [
        tuple(value[each].expand(len(codes), 1) for value in (means, deviations))  # type: ignore[misc]
        for each in dimensions
    ]


def _require_unbounded(latent: str, site: Site) -> None:
    """Refuses a latent with a bounded range: three deviations may lie outside of it.

    Raises:
        PairError: It is one.
    """
    try:
        support: Any = site["fn"].support
    except NotImplementedError:  # flows
        return
    while hasattr(support, "base_constraint"):
        support = support.base_constraint
    if support not in (constraints.real, constraints.real_vector):
        raise PairError(
            f"latent '{latent}' is bounded ({support}): a traversal would leave its range. Decode values of "
            f"your own with sample(model, num, given={{'{latent}': values}}, means=True)"
        )


def _drawn_from_prior(session: Session, latent: str) -> Tensor:
    args = as_args(session.first)
    draws: list[Tensor] = []
    while sum(map(len, draws)) < PRIOR_DRAWS:
        value: Any = poutine.trace(session.pair.model).get_trace(*args).nodes[latent]["value"]
        draws.append(value.reshape(len(value), -1))
    return torch.cat(draws).double()


def _require_same_ends(first: dict[str, Tensor], last: dict[str, Tensor], name: str) -> None:
    """Refuses paths between different values of a discrete latent.

    Raises:
        PairError: There is one.
    """
    if name not in first:  # it is given
        return
    other = (first[name] != last[name]).reshape(len(first[name]), -1).any(1)
    if bool(other.any()):
        row = int(other.nonzero()[0])
        raise PairError(
            f"'{name}' is discrete: there is no path between values, and row {row} of a has "
            f"{first[name][row].tolist()} where row {row} of b has {last[name][row].tolist()}. Pair rows of "
            f"one class, or hold it: given={{'{name}': classes}}"
        )


def _require_same_context(
    session: Session, first: dict[str, Tensor], end: Batch, site: str | None, given: Given
) -> None:
    """Refuses paths whose ends come with different labels, lengths, ..., as far as p(x | z) depends on them.

    Raises:
        PairError: There is one.
    """
    rows = session.batches.rows
    names = DataArguments.of(session.pair).names or ()
    pairs = zip(places_of(end), tensors_of(end), strict=True)
    for place, values in pairs:
        if place == 0 or place not in places_of(rows):
            continue
        other = differs(session, first, with_argument(rows, place, values), site, given)
        if bool(other.any()):
            name = names[place] if place < len(names) else f"argument {place}"
            row = int(other.nonzero()[0])
            raise PairError(
                f"the rows of a and b come with different values of '{name}', such as row {row}, and E[x | z] "
                f"depends on it: pair rows with the same one, or say which one holds along each path: "
                f"given={{'{name}': values}}"
            )


def _spherical(a: Tensor, b: Tensor, t: float) -> Tensor:
    """The point at t of the great circle from a to b, `(n, *event)`, with a length between theirs.

    Where they point to the same or to opposite directions, or one is zero, no great circle is meant: a line.
    """
    one, other = (v.reshape(len(v), -1).double() for v in (a, b))
    lengths = one.norm(dim=1, keepdim=True), other.norm(dim=1, keepdim=True)
    cosine = (one * other).sum(1, keepdim=True) / (lengths[0] * lengths[1])
    angle = torch.acos(cosine.clamp(-1.0, 1.0))
    sine = angle.sin()
    from_one = ((1 - t) * angle).sin() / (sine * lengths[0]) * one
    from_other = (t * angle).sin() / (sine * lengths[1]) * other
    length = torch.lerp(*lengths, t)
    on_circle = length * (from_one + from_other)
    found = torch.where(sine > LEAST_SINE, on_circle, torch.lerp(one, other, t))
    return found.to(a.dtype).reshape(a.shape)
