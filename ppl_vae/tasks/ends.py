"""What paths between rows need: their ends, what is decoded along them, and rows that have one."""

from __future__ import annotations

import pyro.poutine as poutine
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from ppl_vae.checks import Session, opened
from ppl_vae.pairs import (
    Batch,
    DataArguments,
    DataLike,
    ImproperStandIns,
    PairError,
    Program,
    RowDensities,
    Site,
    as_args,
    in_plates,
    inner_sizes,
    innermost,
    is_categorical,
    num_rows,
    parts_of,
    places_of,
    take_rows,
    tensors_of,
    with_tensors,
)
from ppl_vae.runtime import own_generator, preserve_random_state, require_count, seed_everything
from ppl_vae.tasks.encoding import (
    draws_for_means,
    means_of_latents,
    require_latents,
)
from ppl_vae.tasks.observed import NoMeanError, require_any_rows, require_drawn, tell
from ppl_vae.tasks.sampling import Draw, Given, unobserved


def partners(
    model: Program, guide: Program, x: DataLike, num: int, *, seed: int | None = None
) -> tuple[Tensor, Tensor]:
    """Numbers of rows between which there are paths: they come with the same labels, and have the same classes.

    Args:
        model: Pyro program of p(x, z).
        guide: Pyro program of q(z | x).
        x: The rows.
        num: How many pairs, at most. No row is in two of them.
        seed: Seed of the draws, where the guide states no mean.

    Returns:
        The rows that paths start from and those that they end at, each `(pairs,)`.

    Raises:
        PairError: There are no two such rows.

    Example:
        >>> from ppl_vae.guides import MeanField
        >>> from ppl_vae.models import ConditionalVAE
        >>> from ppl_vae.networks import Labels
        >>> model = ConditionalVAE((3,), 2, context=Labels(2))
        >>> guide, x = MeanField((3,), 2, context=Labels(2)), torch.rand(4, 3).round()
        >>> partners(model, guide, (x, torch.tensor([1, 0, 0, 1])), 2)
        (tensor([1, 0]), tensor([2, 3]))
    """
    require_count("num", num)
    with opened(model, guide, x, seed=seed, progress=False) as session:
        means = posterior_centers(session, "rows of a kind")
        rows = session.batches.rows
        n = num_rows(rows)
        same = [means[name].cpu() for name in session.layout.discrete]
        order = torch.randperm(n, generator=own_generator())
        for place, values in zip(places_of(rows), tensors_of(rows), strict=True):
            other = with_argument(rows, place, values[order.to(values.device)])
            if place and bool(differs(session, means, other, None, {}).any()):
                same.append(values.cpu())
    waiting: dict[object, int] = {}
    found: list[tuple[int, int]] = []
    for row in range(n):
        kind = tuple(tuple(values[row].flatten().tolist()) for values in same)
        if kind in waiting:
            found.append((waiting.pop(kind), row))
        else:
            waiting[kind] = row
        if len(found) == num:
            break
    if not found:
        raise PairError(
            f"no two of {n} rows have the same class and come with the same labels, between which there would "
            "be a path"
        )
    first, last = torch.tensor(found).T
    return first, last


def posterior_centers(
    session: Session, label: str, given: Given | None = None
) -> dict[str, Tensor]:
    """The posterior means of latents that are not given, `(n, *event)`; of classes the most probable values.

    The means are those given these values, E[z | x, y]: over all classes, they may be where no class is.
    """
    require_latents(session)
    require_any_rows(session)
    require_drawn(session)
    if session.layout.shared:
        names = ", ".join(f"'{name}'" for name in session.layout.shared)
        raise PairError(f"{names} belongs to all rows: there is no path of single rows")
    if not session.batches.in_memory:
        raise TypeError("a path starts at some rows: give them as one array, not as a loader")
    if not set(session.layout.latents) - {*session.layout.discrete}:
        names = ", ".join(f"'{name}'" for name in session.layout.discrete)
        says = "is discrete" if len(session.layout.discrete) == 1 else "are discrete"
        raise PairError(f"{names} {says}: there is no path between values")
    parts: dict[str, list[Tensor]] = {}
    draws, done = draws_for_means(session), 0
    for chunk in session.chunks(session.rows_at_once(draws), label):
        rows = session.sample(chunk, draws)
        classes: dict[str, Tensor] = {}
        held: dict[str, Tensor] = {}
        for name in (n for n in rows.guide_trace.nodes if n in session.layout.discrete):
            site = rows.guide_trace.nodes[name]
            try:
                classes[name] = _most_probable(site, means_of_latents(rows)[name])
            except PairError:
                if name not in (given or {}):
                    raise
                there = (given or {})[name][done : done + num_rows(chunk)]
                classes[name] = there.to(session.device)
            held[name] = _in_all_draws(rows, site, classes[name])
            rows = session.sample(chunk, draws, held)  # of what depends on it
        done += num_rows(chunk)
        for name, mean in (means_of_latents(rows) | classes).items():
            if name not in (given or {}):
                parts.setdefault(name, []).append(mean)
    return {name: torch.cat(some) for name, some in parts.items()}


def _in_all_draws(rows: RowDensities, site: Site, values: Tensor) -> Tensor:
    """Values of each row in the shape in which a site has them, the same in all draws."""
    draws, n = rows.log_guide.shape
    inner = inner_sizes(site, rows.layout)
    whole = values[None].expand(draws, *values.shape)
    shaped = whole.reshape(draws, n, *inner, *site["fn"].event_shape)
    return in_plates(shaped, rows.layout).to(site["value"].dtype)


def _most_probable(site: Site, mean: Tensor) -> Tensor:
    """The most probable values of a discrete site with these means.

    Raises:
        PairError: Its distribution is neither categorical, one-hot, nor Bernoulli.
    """
    if is_categorical(site):
        return mean.argmax(-1)
    if isinstance(innermost(site["fn"]), torch.distributions.Bernoulli):
        return mean.round()
    if isinstance(innermost(site["fn"]), torch.distributions.OneHotCategorical):
        return one_hot(mean.argmax(-1), mean.shape[-1]).to(mean.dtype)
    raise PairError(f"'{site['name']}' is discrete: its most probable value is not known")


def with_argument(rows: Batch, place: int, values: Tensor) -> Batch:
    """Rows with other values of one argument."""
    places = places_of(rows)
    tensors = zip(places, tensors_of(rows), strict=True)
    return with_tensors(rows, [values if i == place else tensor for i, tensor in tensors])


def differs(
    session: Session, latents: dict[str, Tensor], other: Batch, site: str | None, given: Given
) -> Tensor:
    """Whether E[x | z] of each row is another one if the model is called with other rows, `(n,)`.

    Where x states no mean: whether the model is called with other values of anything but the data.
    """
    held = {name: value[:, None] for name, value in latents.items()}
    found = []
    for rows in (session.batches.rows, other):
        with preserve_random_state():
            seed_everything(0)
            try:
                found.append(decoded(session, held, site, given, rows))
            except NoMeanError:
                return _differs_beside_the_data(session, other, given)
    one, two = found
    return ~torch.isclose(one, two, equal_nan=True).reshape(len(one), -1).all(1)


def _differs_beside_the_data(session: Session, other: Batch, given: Given) -> Tensor:
    """Whether rows of the session come with other values than in another batch, apart from what is given."""
    names = DataArguments.of(session.pair).names or ()
    held = {place for place, name in enumerate(names) if name in given}
    rows = unobserved(session, session.batches.rows)
    others = dict(zip(places_of(other), tensors_of(other), strict=True))
    found = torch.zeros(num_rows(rows), dtype=torch.bool)
    for place, values in zip(places_of(rows), tensors_of(rows), strict=True):
        if place and place not in held:
            same = values.to(others[place].device) == others[place]
            found |= ~same.reshape(len(found), -1).all(1).cpu()
    return found


def decoded(
    session: Session,
    latents: dict[str, Tensor],
    site: str | None,
    given: Given | None = None,
    rows: Batch | None = None,
    means: bool = True,
) -> Tensor:
    """E[x | z], or a draw of x, of latents `(n, steps, *event)`: `(n, steps, *event of x)`.

    Args:
        session: The opened pair.
        latents: The latents.
        site: See `interpolate`.
        given: See `interpolate`.
        rows: What the model is called with; those of the session by default.
        means: Whether E[x | z] is wanted.
    """
    rows = session.batches.rows if rows is None else rows
    n, steps = next(iter(latents.values())).shape[:2]
    index = torch.arange(n, device=tensors_of(rows)[0].device).repeat_interleave(steps)
    rows = take_rows(unobserved(session, rows), index)
    flat = {name: value.flatten(0, 1) for name, value in latents.items()}
    flat |= {name: value.repeat_interleave(steps, 0) for name, value in (given or {}).items()}
    draw = Draw(session, n * steps, flat, site, rows)
    size = session.rows_at_once(1)
    parts = [draw(part, means=means).cpu() for part in parts_of(n * steps, size)]
    tell(session)
    rows_of_paths: Tensor = torch.cat(parts).unflatten(0, (n, steps))
    return rows_of_paths


def discrete_latents(
    model: Program, guide: Program, x: DataLike, *, categorical: bool = False
) -> tuple[str, ...]:
    """The sites of a pair's discrete latents; if asked, those alone whose values are numbers of categories.

    Example:
        >>> from ppl_vae.guides import SemiSupervised
        >>> from ppl_vae.models import SemiSupervisedVAE
        >>> discrete_latents(SemiSupervisedVAE((3,), 2), SemiSupervised((3,), 2), torch.zeros(2, 3))
        ('y',)
    """
    with opened(model, guide, x, seed=0, progress=False) as session:
        found = session.layout.discrete
        if not categorical:
            return found
        trace = poutine.trace(ImproperStandIns(session.pair.model)(session.pair.model)).get_trace(
            *as_args(session.first)
        )
        return tuple(name for name in found if is_categorical(trace.nodes[name]))
