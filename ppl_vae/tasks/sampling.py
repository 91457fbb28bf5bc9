"""sample(): rows drawn from the model, given latents or labels if wanted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pyro
import pyro.poutine as poutine
import torch
from pyro.poutine.uncondition_messenger import UnconditionMessenger
from torch import Tensor

from ppl_vae.checks import Session, evaluating, opened
from ppl_vae.evaluation import PriorGuide, warn_if_draws_follow_data
from ppl_vae.pairs import (
    Batch,
    DataArguments,
    DataLike,
    ImproperStandIns,
    Layout,
    Pair,
    PairError,
    Program,
    SomeArguments,
    Substitute,
    Trace,
    as_args,
    as_tensor,
    first_line,
    latent_sites,
    move,
    num_rows,
    parts_of,
    places_of,
    require_proper,
    sample_sites,
    selects_outside,
    take_rows,
    tensors_of,
    unbound,
    with_tensors,
)
from ppl_vae.runtime import described, own_generator, preserve_random_state, require_count
from ppl_vae.tasks.arrays import as_given
from ppl_vae.tasks.observed import (
    DataSites,
    data_sites,
    in_order,
    require_any_rows,
    tell,
)
from ppl_vae.tasks.possible import Possible

Given = Mapping[str, Any]
"""Values of latents or arguments of the model by name, one for each draw: `(num, ...)`."""


def sample(
    model: Program,
    num: int,
    *,
    like: DataLike | None = None,
    given: Given | None = None,
    means: bool = False,
    return_latents: bool = False,
    site: str | None = None,
    seed: int | None = None,
    progress: bool | None = None,
) -> Any:
    """Rows drawn from the model: z ~ p(z), and x ~ p(x | z) or its mean.

    With one seed, the draws and the means are of the same z.

    Args:
        model: Pyro program of p(x, z).
        num: How many.
        like: Some rows, as for `ppl_vae.fit`, which say what the model is called with. Of other arguments than
            the data (labels), and of what else the model observes, the draws get those of these rows in turn. A
            model that has a `data_shape`, as ours have, needs none, if `given` holds its other arguments. What
            is observed does not change p(z): labels of a `SemiSupervisedVAE` need its classes, too, as
            `given={"y": labels}`, which is enough without the labels.
        given: Values that are not to be drawn, by the name of a latent site, or of an argument of the model:
            `{"z": z}` decodes latents, `{"y": labels}` draws rows with these labels. Each is `(num, ...)`.
        means: Whether to return E[x | z] for the z that were drawn, not draws of x. Pictures of means look
            smoother than the model's draws are.
        return_latents: Whether to return the latents of the rows, too.
        site: The observed site to draw, if the model has several; by default the one with the shape of the
            rows, or those of their steps, `x_0`, `x_1`, ..., together.
        seed: Seed of the draws; None draws from torch's global generator.
        progress: Whether to show a progress bar; None shows it on a terminal.

    Returns:
        `(num, *event)`, a tensor, or a numpy array if `like` is no tensor. With `return_latents` a tuple of
        that and a dict, for each latent site `(num, *event)`.

    Raises:
        PairError: The observed site states no mean, a value does not fit its site or lies outside of its
            support, draws exclude what is observed beside them, or the model fails.
        TypeError: Rows are needed, and `like` is missing.
        ValueError: A name in `given` is neither a latent nor an argument.

    Example:
        >>> from ppl_vae.models import VAE
        >>> model = VAE((1, 8, 8), latent_dim=2)
        >>> sample(model, 16).shape, sample(model, 3, given={"z": torch.zeros(3, 2)}, means=True).shape
        (torch.Size([16, 1, 8, 8]), torch.Size([3, 1, 8, 8]))
    """
    require_count("num", num)
    rows = _blank(model, {} if given is None else given) if like is None else like
    with opened(model, PriorGuide(model), rows, seed=seed, progress=False) as session:
        require_any_rows(session)
        draw = Draw(session, num, {} if given is None else given, site)
        parts = []
        of_rows = (*session.layout.latents, *session.layout.enumerated)
        latents: dict[str, list[Tensor]] = {name: [] for name in of_rows}
        with session.bar("sample", "row", num) as bar:
            for part in parts_of(num, session.rows_at_once(1)):
                parts.append(draw(part, means).cpu())
                for name, some in latents.items() if return_latents else ():
                    some.append(draw.latent(name, len(parts[-1])).cpu())
                bar.update(len(parts[-1]))
    tell(session)
    give = as_given(like)
    drawn = give(torch.cat(parts))
    if return_latents:
        return drawn, {name: give(torch.cat(some)) for name, some in latents.items()}
    return drawn


def _blank(model: Program, given: Given) -> Batch:
    """Two rows to call a model with that says their shape: draws of its own, which are in its support.

    Raises:
        TypeError: It does not.
    """
    owner = unbound(model)
    shape = getattr(owner, "data_shape", None)
    if shape is None:
        raise TypeError(
            f"sample needs rows to call {described(owner)} with: pass like=x, some rows of the data"
        )
    pair = Pair.of(model, PriorGuide(model))
    arguments = DataArguments.of(pair)
    others = None if arguments.names is None else arguments.names[1 : arguments.required]
    if others is None or not set(others) <= given.keys():
        names = (
            ""
            if others is None
            else ", or of what it takes: " + ", ".join(f"given['{name}']" for name in others)
        )
        raise TypeError(
            f"sample needs rows to call {described(owner)} with, which takes more than the data: pass like=x, "
            f"some rows of the data{names}"
        )
    beside = [_two(as_tensor(given[name], f"given['{name}']", arguments.dtype)) for name in others]
    with preserve_random_state(), evaluating(pair, seed=None):
        free = poutine.trace(
            ImproperStandIns(pair.model)(poutine.uncondition(pair.model))
        ).get_trace(torch.zeros(2, *shape), *beside)
    seen = [n for n, s in sample_sites(free).items() if s["infer"].get("was_observed")]
    rows = torch.zeros(2, *shape)
    try:
        value = data_sites(free, seen, rows, None).value(free)
    except ValueError:  # several sites, none of which is the rows
        value = rows
    rows = value if value.shape == rows.shape else rows
    return (rows, *beside) if beside else rows


def _two(values: Tensor) -> Tensor:
    """The first two rows, or the only one twice."""
    return values[torch.tensor([0, len(values) - 1 and 1])] if values.dim() else values.expand(2)


def without_observed(model: Program, x: Batch) -> Batch:
    """Rows without optional arguments that the model observes: draws from p(z) need not agree with these.

    Args:
        model: Pyro program of p(x, z).
        x: Rows, such as pictures and labels that may be left out.

    Example:
        >>> from ppl_vae.models import SemiSupervisedVAE
        >>> x, labels = torch.rand(4, 3).round(), torch.tensor([0, 1, -1, 2])
        >>> without_observed(SemiSupervisedVAE((3,), 2, classes=3), (x, labels)).shape
        torch.Size([4, 3])
    """
    with opened(model, PriorGuide(model), x, seed=0, progress=False) as session:
        return unobserved(session, x)


def unobserved(session: Session, x: Batch) -> Batch:
    """`without_observed` of the rows of an opened pair."""
    required = max(1, DataArguments.of(session.pair).required)
    if len(places_of(x)) <= required:
        return x
    first = session.first
    with preserve_random_state(), torch.no_grad():
        looked = ImproperStandIns(session.pair.model)(session.pair.model)
        trace = poutine.trace(looked).get_trace(*as_args(first))
    seen: list[Any] = [trace.nodes[name]["value"] for name in session.layout.observed]
    arguments = dict(zip(places_of(first), tensors_of(first), strict=True))
    kept = {
        place: rows
        for place, rows in zip(places_of(x), tensors_of(x), strict=True)
        if place < required or not any(_is(arguments[place], value) for value in seen)
    }
    return kept[0] if list(kept) == [0] else SomeArguments.at(kept, kept.values())


def _is(argument: Tensor, value: Any) -> bool:
    """Whether an observed value is an argument."""
    return argument.shape == value.shape and bool((argument == value).all())


class Draw:
    """Draws rows of an opened pair's model.

    Args:
        session: The opened pair; its rows say what the model is called with.
        num: How many rows.
        given: See `sample`.
        site: See `sample`.
        rows: What the model is called with, in turn; the first rows of the session by default.

    Raises:
        ValueError: A name is neither a latent nor an argument, or there are fewer values than rows.
    """

    def __init__(
        self,
        session: Session,
        num: int,
        given: Given,
        site: str | None,
        rows: Batch | None = None,
    ) -> None:
        self.session = session
        self._rows = session.first if rows is None else move(rows, session.device)
        pair = session.pair
        warn_if_draws_follow_data(pair, session.first)
        require_proper(session.layout, "sample", pair.model, given)
        asked = poutine.trace(ImproperStandIns(pair.model)(pair.model)).get_trace(
            *as_args(session.first)
        )
        self._data = data_sites(asked, session.layout.observed, tensors_of(session.first)[0], site)
        if self._data.steps:
            self._data = replace(self._data, names=_in_order(session, self._data.names))
        arguments = DataArguments.of(pair).names or ()
        sites = {n: s for n, s in asked.nodes.items() if s["type"] == "sample"}
        self._held: dict[str, Tensor] = {}
        self._shared: dict[str, Tensor] = {}
        self._arguments: dict[int, Tensor] = {}
        self._trace: Trace | None = None
        dtype = DataArguments.of(pair).dtype
        for name, value in given.items():
            tensor = as_tensor(value, f"given['{name}']", dtype).to(session.device)
            if tensor.dim() == 0 or len(tensor) != num:
                raise ValueError(
                    f"given['{name}'] has shape {tuple(tensor.shape)}: expected one value for each of the "
                    f"{num} draws, ({num}, ...)"
                )
            if name not in arguments and (name not in sites or name in self._data.names):
                latents = ", ".join(f"'{n}'" for n in latent_sites(asked)) or "none"
                raise ValueError(
                    f"given['{name}'] is neither a latent of the model (it has {latents}) nor an argument of "
                    f"it ({', '.join(arguments)})"
                )
            if name in arguments:
                self._arguments[arguments.index(name)] = tensor
            elif sites[name]["is_observed"]:
                raise ValueError(
                    f"given['{name}'] is a site that the model observes: give the argument that holds it "
                    f"({', '.join(arguments)})"
                )
            else:
                _require_fit(name, tensor, asked, session.layout)
                there: Any = sites[name]["value"]
                self._held[name] = tensor.to(there.dtype)
                changed = (self._held[name] != tensor) & torch.tensor(not there.is_floating_point())
                if bool(changed.any()):
                    raise ValueError(
                        f"given['{name}'] holds {tensor[changed][0].item():g}, but the values of site '{name}' "
                        f"are {'0 and 1' if there.dtype == torch.bool else 'whole numbers'}"
                    )

    def __call__(self, part: slice, means: bool) -> Tensor:
        """The draws of these numbers, or E[x | z] of them."""
        batch = self._batch(part)
        n = num_rows(batch)
        held = {name: value[part] for name, value in self._held.items()}
        free = Substitute(held | self._shared)(_Free(self._data)(self.session.pair.model))
        layout = self.session.layout
        latents = [n for n in layout.discrete or layout.latents if n not in held]
        names = DataArguments.of(self.session.pair).names or ()
        beside = {names[place]: value[part] for place, value in self._arguments.items()}
        watch = Possible(self._data.names, held, latents, beside)
        try:
            trace: Trace = poutine.trace(watch(free)).get_trace(*as_args(batch))
        except Exception as error:
            if watch.problem is not None:
                raise PairError(watch.problem) from error
            if selected := selects_outside(self.session.pair, batch, error, part.start):
                raise PairError(f"given: {selected} ({first_line(error)})") from error
            raise
        if watch.problem is not None:
            raise PairError(watch.problem)
        self._trace = trace
        for name in self.session.layout.shared:  # one draw for all parts
            self._shared[name] = trace.nodes[name]["value"]
        if means:
            layout = self.session.layouts.of(batch)
            mean = self._data.expectation(trace, layout, 1, n)[0]
            return mean.argmax(-1) if self._data.categorical(trace) else mean
        drawn = self._data.value(trace)
        if drawn.shape[:1] != (n,):
            raise PairError(f"the rows are not the first dimension of site {self._data}")
        return drawn

    def latent(self, name: str, num: int) -> Tensor:
        """The latents of the `num` rows that were drawn last.

        Raises:
            PairError: The rows come second there.
        """
        assert self._trace is not None
        value: Tensor = self._trace.nodes[name]["value"]
        if value.shape[:1] != (num,):
            raise PairError(f"the rows are not the first dimension of latent '{name}'")
        return value

    def _batch(self, part: slice) -> Batch:
        """What the model is called with: the rows that there are, in turn, and what is given instead."""
        index = torch.arange(part.start, part.stop, device=self.session.device)
        rows = take_rows(self._rows, index % num_rows(self._rows))
        tensors = dict(zip(places_of(rows), tensors_of(rows), strict=True))
        tensors |= {place: value[part] for place, value in self._arguments.items()}
        if tensors.keys() == set(places_of(rows)):
            return with_tensors(rows, tensors.values())
        places = sorted(tensors)
        return SomeArguments.at(places, [tensors[place] for place in places])


def _in_order(session: Session, names: tuple[str, ...]) -> tuple[str, ...]:
    """The sites of steps in the order in which the model takes these from its rows, whatever the rows are."""
    batch = session.first
    x, *others = tensors_of(batch)
    probe = torch.rand(x.shape, generator=own_generator()).to(x)
    if not x.is_floating_point():
        return names
    try:
        with preserve_random_state(), torch.no_grad(), pyro.validation_enabled(False):
            free: Trace = poutine.trace(poutine.uncondition(session.pair.model)).get_trace(
                *as_args(with_tensors(batch, [probe, *others]))
            )
        taken: dict[str, Any] = {name: free.nodes[name]["infer"] for name in names}
        return in_order({name: infer["obs"] for name, infer in taken.items()}, names, probe)
    except Exception:  # the model takes no such rows
        return names


class _Free(UnconditionMessenger):
    """Draws the rows that the model observes; what else it observes stays as it is."""

    def __init__(self, data: DataSites) -> None:
        super().__init__()
        self.data = data

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.data.names:
            super()._pyro_sample(msg)


def _require_fit(name: str, value: Tensor, asked: Trace, layout: Layout) -> None:
    """Refuses values that do not have the shape of the model's site, or whose rows come second there.

    Raises:
        PairError: They do not fit.
    """
    fn = asked.nodes[name]["fn"]
    row = (fn.batch_shape + fn.event_shape)[1:]
    if name in layout.latents and len(fn.batch_shape) != -layout.dim:
        raise PairError(
            f"the rows are not the first dimension of site '{name}', so it cannot be given: make the plate "
            "over rows the outermost one"
        )
    if value.shape[1:] != row:
        raise PairError(
            f"given['{name}'] has rows of shape {tuple(value.shape[1:])}, and the model's site '{name}' of "
            f"shape {tuple(row)}"
        )
