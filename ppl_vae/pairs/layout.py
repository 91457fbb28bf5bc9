"""The layout of a pair: the plate that holds the rows, the roles of the sites, and tensors shaped by rows."""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import pyro
from torch import Tensor, nn

from ppl_vae.pairs.errors import PairError
from ppl_vae.pairs.traces import (
    Site,
    Trace,
    kind_of,
    mask_kind,
    observed_sites,
    sample_sites,
    unscaled,
)

SAMPLES_PLATE = "_ppl_vae_samples"
"""Name of the plate over samples that is added around a pair's programs."""

_SAMPLES_PLATES = {SAMPLES_PLATE, "num_particles_vectorized"}
"""Ours, and the one that Pyro's estimators add."""

Signature = tuple[tuple[object, ...], ...]
"""What a layout depends on: for each site its role, name, kind of distribution, event dimensions, kind of mask
(see `mask_kind`) and plates."""


class LayoutChangedError(PairError):
    """A batch has other sites, roles, masks or plates than the one on which a layout was found."""


def signature_of(model_trace: Trace, guide_trace: Trace) -> Signature:
    """The signature of two traces. Plates over samples and the sizes of plates do not count.

    Example:
        >>> import torch, pyro.distributions as dist, pyro.poutine as poutine
        >>> def program(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)
        >>> trace = poutine.trace(program).get_trace
        >>> signature_of(trace(torch.zeros(3)), trace(torch.zeros(2)))[0]
        ('model', 'x', True, 'Normal', 0, True, (('data', -1),))
    """
    seen = observed_sites(model_trace)  # a guide that runs the model may show or hide them
    return tuple(
        (
            program,
            name,
            site["is_observed"],
            kind_of(site["fn"]),
            len(site["fn"].event_shape),
            mask_kind(site),
            tuple(
                (f.name, f.dim)
                for f in site["cond_indep_stack"]
                if f.vectorized and f.name not in _SAMPLES_PLATES
            ),
        )
        for program, sites in (
            ("model", sample_sites(model_trace)),
            ("guide", {n: s for n, s in sample_sites(guide_trace).items() if n not in seen}),
        )
        for name, site in sites.items()
    )


@dataclass(frozen=True)
class Layout:
    """The plate of a pair that holds the rows, and the roles of its sites.

    Attributes:
        plate: Name of the plate over rows.
        dim: The plate's dimension, counted from the right (negative).
        latents: The model's latent sites inside that plate, which the guide samples.
        shared: Latent sites outside that plate, shared by all rows.
        enumerated: Latent sites that the model sums out exactly (the guide does not sample them).
        guide_sites: The guide's sites inside the plate; their log densities add up to log q(z | x).
        draws: The random ones of `guide_sites`: without Delta sites, with auxiliary ones.
        points: Latents, in or outside of the plate, for which the guide gives a point, not a distribution: a
            Delta with more numbers than the guide draws for it, such as a function of other latents alone.
        improper: Latents with an improper density in the model, such as `ImproperUniform`: p(x, z) is no
            density.
        observed: Observed sites.
        nesting: The number of dimensions that plates take up.
        vectorizes: Whether one run can hold many samples; if not, samples are drawn in a loop.
        discrete: Those of `draws` that have probabilities, not densities.
        factors: The guide's `pyro.factor` sites that are part of log q, in or outside of the plate.
        unsure: Latents whose draws may lie outside of the model's support: see `may_leave_support`.
        signature: That of the traces that the layout was found on; empty if that is not known.
    """

    plate: str
    dim: int
    latents: tuple[str, ...]
    shared: tuple[str, ...]
    enumerated: tuple[str, ...]
    guide_sites: tuple[str, ...]
    draws: tuple[str, ...]
    points: tuple[str, ...]
    observed: tuple[str, ...]
    nesting: int
    vectorizes: bool
    discrete: tuple[str, ...] = ()
    factors: tuple[str, ...] = ()
    unsure: tuple[str, ...] = ()
    improper: tuple[str, ...] = ()
    signature: Signature = field(default=(), compare=False, repr=False)

    @property
    def only_points(self) -> bool:
        """Whether the guide gives a point for every latent of a row, and draws nothing."""
        return bool(self.points) and {*self.points} == {*self.latents} and not self.shared

    @property
    def of_another_guide(self) -> Layout:
        """The same layout for a guide with the same sites and plates, whatever it draws them from."""
        return replace(self, signature=())

    def require(self, model_trace: Trace, guide_trace: Trace) -> None:
        """Raises an error for traces of another signature.

        Raises:
            LayoutChangedError: The traces have other sites, roles, masks or plates.
        """
        if not self.signature:
            return
        found = signature_of(model_trace, guide_trace)
        if found != self.signature:
            rows = [*found, *self.signature]
            others = [row for row in rows if (row in found) != (row in self.signature)]
            what = (
                f"the {others[0][0]}'s site '{others[0][1]}'"
                if others
                else "the order of the sites"
            )
            raise LayoutChangedError(
                f"{what} is not the same in this batch as in the one that the layout was found on"
            )


@contextlib.contextmanager
def many_samples(layout: Layout, num_samples: int) -> Iterator[None]:
    """A plate of size `num_samples` to the left of all plates of the pair (no plate for a single sample)."""
    if num_samples == 1:
        yield
    else:
        with pyro.plate(SAMPLES_PLATE, num_samples, dim=-layout.nesting - 1):
            yield


def sum_to_rows(log_prob: Tensor, layout: Layout, num_samples: int, n: int) -> Tensor:
    """Sums a site's log density over all dimensions except samples and rows: `(num_samples, n)`."""
    samples_dim = -layout.nesting - 1
    while log_prob.dim() < layout.nesting + 1:
        log_prob = log_prob.unsqueeze(0)
    keep = {log_prob.dim() + samples_dim, log_prob.dim() + layout.dim}
    others = [d for d in range(log_prob.dim()) if d not in keep]
    if others:
        log_prob = log_prob.sum(others)
    return log_prob.expand(num_samples, n)


def require_no_points(layout: Layout, task: str) -> None:
    """Raises an error if the guide gives points where a task needs its density.

    Raises:
        PairError: It does.
    """
    if layout.points:
        names = ", ".join(f"'{name}'" for name in layout.points)
        raise PairError(
            f"the guide gives a point for {names} (a Delta), which has no density: {task} needs a guide that "
            "samples these latents, such as AutoNormal in place of AutoDelta"
        )


def has_prior(model: object) -> bool:
    """Whether a model has a module `prior`, which `refit_prior` can replace: a function has none."""
    return isinstance(getattr(model, "prior", None), nn.Module)


def remedy_of_improper(model: object, names: Sequence[str], trained: bool = True) -> str:
    """What gives latents a density, in words: it depends on how the model is written.

    Args:
        model: The model.
        names: The latents whose p(z) is improper.
        trained: Whether there are codes already to which a density can be fitted.
    """
    if has_prior(model) and len(names) == 1:
        if trained:
            fitted = "refit_prior(model, guide, x, MixturePrior())"
            return f"fit one to the codes: {fitted} returns a model that has it"
        return "build the model with a prior that is a density, such as prior=StandardNormal()"
    each = f"'{names[0]}'" if len(names) == 1 else "each of them"
    found = f"where the model samples {each}, write one, such as a Normal"
    codes = " with mean and standard deviation of the codes, which encode(model, guide, x) gives"
    return found + codes if trained else found


def require_proper(
    layout: Layout, task: str, model: object, given: Collection[str] = (), trained: bool = True
) -> None:
    """Raises an error if p(z) is improper where a task needs draws from it, or its density.

    Args:
        layout: The layout.
        task: What needs it.
        model: The model, on which the remedy depends.
        given: Latents whose values are given.
        trained: Whether the pair is trained, or about to be.

    Raises:
        PairError: It is.
    """
    names = [name for name in layout.improper if name not in given]
    if names:
        told = ", ".join(f"'{name}'" for name in names)
        raise PairError(
            f"p(z) of {told} is improper, as an autoencoder's is: {task} needs a density of it; "
            f"{remedy_of_improper(model, names, trained)}"
        )


def inner_scale(site: Site, layout: Layout) -> float:
    """The weight N / n of the subsampled plates around a site, without the plate over rows.

    A batch is a part of the rows, and each row counts once. But what a row subsamples stands for all of it.
    """
    scale = 1.0
    for frame in site["cond_indep_stack"]:
        if frame.name != layout.plate and frame.full_size:
            scale *= frame.full_size / frame.size
    return scale


def subsampled_plates(
    traces: Iterable[Trace], layout: Layout, drawn: bool = False
) -> dict[str, str]:
    """The plates inside of a row of which the programs see a part only, and which part: `5 of 20`.

    Args:
        traces: Traces of the programs.
        layout: Their layout.
        drawn: Only those with a `subsample_size`, which draw their part in each run, not those that are given
            it by `subsample` alone.
    """
    return {
        frame.name: f"{frame.size} of {frame.full_size}"
        for trace in traces
        for site in sample_sites(trace).values()
        for frame in site["cond_indep_stack"]
        if inner_scale(site, layout) != 1.0
        if frame.name != layout.plate and frame.full_size not in (None, frame.size)
        if not drawn or _draws_its_part(trace, frame.name)
    }


def _draws_its_part(trace: Trace, plate: str) -> bool:
    node = trace.nodes.get(plate)
    return node is None or getattr(node["fn"], "subsample_size", None) is not None


def require_whole_rows(
    traces: Iterable[Trace], layout: Layout, needed: str, drawn: bool = False, instead: str = ""
) -> None:
    """Raises an error if a plate inside of a row is subsampled where whole rows are needed.

    Args:
        traces: Traces of the programs.
        layout: Their layout.
        needed: What needs whole rows, as in `a grid needs the density of whole rows`.
        drawn: Allow plates that are given their part.
        instead: What else to do, as in `use TraceELBO`.

    Raises:
        PairError: There is such a plate.
    """
    for name, part in subsampled_plates(traces, layout, drawn).items():
        raise PairError(
            f"plate '{name}' inside of a row is subsampled ({part}): {needed}; give the plate no "
            f"subsample_size{f', or {instead}' if instead else ''}"
        )


def latents_of_other_plates(model_trace: Trace, layout: Layout) -> dict[str, str]:
    """Latents in a plate that holds the data, too, but is not the plate over rows; each with that plate.

    Words of documents lie in a plate over words and in one over documents; each may have latents of its own.
    """
    around = {
        frame.name
        for name in layout.observed
        for frame in model_trace.nodes[name]["cond_indep_stack"]
        if frame.vectorized and frame.name not in _SAMPLES_PLATES
    }
    found = {}
    for name in layout.shared:
        plates = [f.name for f in model_trace.nodes[name]["cond_indep_stack"] if f.name in around]
        if plates:
            found[name] = plates[0]
    return found


def row_log_prob(site: Site, layout: Layout) -> Tensor:
    """What a site adds to the log density of its rows, of the shape of the site's batch: see `inner_scale`."""
    scale = inner_scale(site, layout)
    return unscaled(site) if scale == 1.0 else scale * unscaled(site)


def rows_first(site: Site, layout: Layout, num_samples: int, n: int) -> Tensor:
    """A site's value as `(num_samples, n, *inner plates, *event)`."""
    value: Tensor = site["value"]
    event_dim = len(site["fn"].event_shape)
    while value.dim() < layout.nesting + 1 + event_dim:
        value = value.unsqueeze(0)
    batch_dim = value.dim() - event_dim
    value = value.movedim((batch_dim - layout.nesting - 1, batch_dim + layout.dim), (0, 1))
    shape = value.shape[2:]
    value = value.expand(num_samples, n, *shape)
    ones = [d for d in range(2, value.dim() - event_dim) if value.shape[d] == 1]
    return value.squeeze(ones) if ones else value


def inner_sizes(site: Site, layout: Layout) -> tuple[int, ...]:
    """Sizes of a site in the dimensions that plates take up, without the rows; 1 where it has no plate."""
    batch = site["value"].shape[: site["value"].dim() - len(site["fn"].event_shape)]
    sizes = [1] * (layout.nesting - len(batch)) + list(batch[-layout.nesting :])
    del sizes[layout.dim]
    return tuple(sizes)


def in_plates(value: Tensor, layout: Layout) -> Tensor:
    """The inverse of `rows_first`: a site's value from `(num_samples, n, *inner_sizes, *event)`."""
    return value.movedim(1, 1 + layout.nesting + layout.dim)
