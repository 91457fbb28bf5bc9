"""`to_arviz`: draws, log p(x) and diagnostics of a pair on given rows, in ArviZ's data structure."""

from __future__ import annotations

import importlib.metadata
import math
import warnings
import zlib
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyro
import pyro.poutine as poutine
import torch
import xarray as xr
from torch import Tensor

from ppl_vae._version import __version__
from ppl_vae.checks import Session, opened
from ppl_vae.evaluation.importance import evaluate
from ppl_vae.evaluation.result import Evaluation
from ppl_vae.evaluation.sandwich import warn_if_draws_follow_data
from ppl_vae.pairs import (
    ELBO_MEASURE,
    Batch,
    DataLike,
    ImproperStandIns,
    Layout,
    Program,
    Substitute,
    as_args,
    draw_jointly,
    num_rows,
    take_rows,
)
from ppl_vae.runtime import described, require_samples

_ROWS_AT_ONCE = 1024

_LARGEST_GROUP = 2**24
"""Largest size of a group, in numbers; many rows, or large ones, get fewer draws."""

_FEW_ROWS, _FEW_DRAWS = 64, 4
"""What `netcdf_size` looks at."""

_SPREAD = 1e-6
"""Nats between the smallest and the largest of a row's repeated log p(x); see `to_arviz`."""


Groups = dict[str, dict[str, xr.DataArray]]
"""Variables by group and by site."""


def to_arviz(
    model: Program,
    guide: Program,
    x: DataLike,
    *,
    num_samples: int = 1000,
    num_draws: int = 100,
    evaluation: Evaluation | None = None,
    seed: int | None = None,
) -> Any:
    """Draws, data, log p(x) of each row and its diagnostics, for ArviZ 0.23 and 1.x.

    | group | holds | dimensions |
    | --- | --- | --- |
    | `posterior` | z ~ q(z \\| x), each latent site | chain, draw, row, ... |
    | `posterior_predictive` | x' ~ p(x' \\| z) for those z | chain, draw, row, ... |
    | `prior` | z ~ p(z) | chain, draw, row, ... |
    | `prior_predictive` | x' ~ p(x' \\| z) for those z | chain, draw, row, ... |
    | `log_likelihood` | log p(x), marginal, in nats | chain, draw, row |
    | `sample_stats` | ELBO, rate, distortion, ESS, Pareto k-hat, whether log p(x) is unreliable | row |
    | `observed_data` | x | row, ... |

    Where the guide gives points, `sample_stats` has log p(x, z) at them, `log_joint`, and -log p(z),
    `neg_log_prior`, in the place of ELBO and rate; where p(z) is improper, neither.

    The other dimensions of a site are called `<site>_dim_0` and so on. A latent outside of the
    plate over rows has no dimension `row`. A group holds fewer draws if all of them would take more
    than 2^24 numbers. A "/" in a site's name becomes "_", because netCDF names cannot contain it.

    Of codes that the guide is certain of (`QuantizingEncoder`), only the ELBO is known, if they are too many to
    be summed over. Then there is no `log_likelihood`, and `az.loo` and `az.compare` say that it is missing.

    If rows differ in their sites or lengths, what a row lacks is NaN. If the model's distribution of x depends
    on x itself (teacher forcing), the predictive draws follow the rows given: a `PairWarning` says so.

    The log likelihood is the marginal log p(x) = log E_p(z) p(x | z), estimated by importance
    sampling. It is not log p(x | z), which would score each row with a latent inferred from that
    same row. It belongs to the *trained* parameters, which have no posterior, so all draws of a row
    have the same value. `az.loo` then returns elpd = sum of log p(x), with p_loo = 0. On rows held
    out from training, this is the held-out score; on training rows, it is too high by as much as the
    model overfits.

    Pareto smoothing fails on exactly equal values (ArviZ 0.23 warns, 1.x raises). The draws of a row
    are therefore spread over a millionth of a nat around their value, which changes elpd by less than
    that. How they are spread says what is known of the row: where log p(x) is unreliable, as the
    quantiles of a Pareto distribution of shape 2, so that `az.loo` counts the row among those with a
    bad k-hat; elsewhere evenly. The k-hat of the importance weights is
    `sample_stats.khat`, and `sample_stats.unreliable` the verdict. `az.compare` works too. If log p(x) of
    single rows is below -745 nats, its default method "stacking" underflows: use
    `method="BB-pseudo-BMA"`.

    Args:
        model: Pyro program of p(x, z).
        guide: Pyro program of q(z | x), with the same arguments.
        x: A tensor or array `(n, *event)`, a tuple of them, or an iterable of batches; all that
            `ppl_vae.pairs.Batches` takes.
        num_samples: Importance samples for log p(x), if no `evaluation` is given.
        num_draws: Draws of each site, in one chain. `az.loo` needs 30 or more.
        evaluation: Result of `evaluate` for the same pair and rows, used instead of estimating
            log p(x) again.
        seed: Seed for the draws; None draws from torch's global generator.

    Returns:
        ArviZ 0.23: an `arviz.InferenceData`. ArviZ 1.x: an `xarray.DataTree`. Both have
        `.to_netcdf(path)`.

    Raises:
        PairError: The rows are not in a plate, or the guide ties the latents of different rows
            together.
        ValueError: `num_draws` is not positive, or `evaluation` has a different number of rows.

    Example:
        >>> import arviz
        >>> from ppl_vae.guides import Exact
        >>> from ppl_vae.models import ProbabilisticPCA
        >>> model, x = ProbabilisticPCA((4,), latent_dim=2), torch.ones(3, 4)
        >>> data = to_arviz(model, Exact(model), x, num_samples=10)
        >>> dict(data.posterior.sizes)
        {'chain': 1, 'draw': 100, 'row': 3, 'z_dim_0': 2}
        >>> loo = arviz.loo(data)
        >>> elpd = loo["elpd_loo"] if "elpd_loo" in dir(loo) else loo.elpd
        >>> abs(float(elpd) - model.log_evidence(x).sum().item()) < 1e-3
        True
    """
    require_samples("num_draws", num_draws)
    if evaluation is not None and not isinstance(evaluation, Evaluation):
        raise TypeError(
            f"evaluation must be what evaluate has returned for these rows, got {described(evaluation)}"
        )
    if evaluation is None:
        evaluation = evaluate(model, guide, x, num_samples=num_samples, seed=seed)
    chunks: list[Groups] = []
    with opened(model, guide, x, seed=seed, progress=False, draws_start_at_seed=True) as session:
        at_once = num_rows(session.first)
        if not session.pair.keeps_rows:
            # Draws are made one by one: memory for many samples of a row holds many rows instead.
            room = math.prod(session.chunk_sizes(_ROWS_AT_ONCE, rows=16))
            at_once = min(_ROWS_AT_ONCE, room)
        # Latents that belong to all rows must have the same value in every chunk of rows.
        shared: list[dict[str, Tensor]] = [{} for _ in range(2 * num_draws)]
        warn_if_draws_follow_data(session.pair, session.first)
        keep: dict[str, int] = {"observed_data": 1}
        for chunk in session.chunks(at_once):
            drawn = _draw(session, chunk, shared, keep, evaluation.num_rows)
            chunks.append(drawn)
    rows = [next(iter(c["observed_data"].values())).sizes["row"] for c in chunks]
    groups = {
        group: {
            name: _join([chunk.get(group, {}).get(name) for chunk in chunks], rows)
            for name in dict.fromkeys(name for chunk in chunks for name in chunk.get(group, {}))
        }
        for group in dict.fromkeys(group for chunk in chunks for group in chunk)
    }
    n = next(iter(groups["observed_data"].values())).sizes["row"]
    if n != evaluation.num_rows:
        raise ValueError(
            f"the evaluation has {evaluation.num_rows} rows, x has {n}: pass an evaluation of exactly "
            "these rows, or none to evaluate them here"
        )
    # Of codes it is not known, of points or under an improper p(z) not defined.
    unknown = evaluation.certain and bool(evaluation.log_likelihood.values.isnan().all())
    if not unknown and evaluation.measure is ELBO_MEASURE:
        observed = list(groups["observed_data"])
        groups["log_likelihood"] = _log_likelihood(evaluation, observed, num_draws)
    groups["sample_stats"] = _sample_stats(evaluation)
    return _assemble(groups, evaluation)


def netcdf_size(
    model: Program, guide: Program, x: DataLike, *, num_draws: int = 100, seed: int | None = None
) -> int:
    """About how many bytes the compressed netCDF file of `to_arviz` has, from a few draws of the first rows.

    Args:
        model: Pyro program of p(x, z).
        guide: Pyro program of q(z | x), with the same arguments.
        x: Rows that are in memory.
        num_draws: Draws of each site.
        seed: Seed for the draws.
    """
    require_samples("num_draws", num_draws)
    with opened(model, guide, x, seed=seed, progress=False, draws_start_at_seed=True) as session:
        n = session.num_rows
        if n is None:
            raise ValueError("the number of rows is not known: x must be in memory")
        whole = session.pair.keeps_rows
        few = session.first if whole else take_rows(session.first, slice(0, _FEW_ROWS))
        drawn = min(_FEW_DRAWS, num_draws)
        keep: dict[str, int] = {"observed_data": 1}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # `to_arviz` says it
            groups = _draw(session, few, [{} for _ in range(2 * drawn)], keep, n)
    total = 0.9 * 8 * n * num_draws  # log p(x), whose digits are hard to compress
    for group, variables in groups.items():
        draws = min(num_draws, keep[group])
        for array in variables.values():
            there = array.sizes.get("draw", 1)
            rows = n / array.sizes["row"] if "row" in array.sizes else 1
            total += _compressed(array.values) * rows * draws / there
    return int(total)


def _compressed(values: np.ndarray[Any, Any]) -> int:
    """Bytes after the compression of HDF5: the first bytes of all numbers, then the second ones, and so on."""
    numbers = np.ascontiguousarray(values)
    shuffled = numbers.view(np.uint8).reshape(-1, numbers.itemsize).T
    return len(zlib.compress(shuffled.tobytes(), 4))


def _draw(
    session: Session,
    batch: Batch,
    shared: list[dict[str, Tensor]],
    keep: dict[str, int],
    total_rows: int,
) -> Groups:
    """All draws of one chunk of rows. The first chunk fills `shared` and `keep`; all chunks use them."""
    num_draws = len(shared) // 2
    stacks: dict[str, dict[str, list[xr.DataArray]]] = {}
    for draw in range(num_draws):
        if draw >= max(keep.values()):
            break
        predictive = draw < keep.get("posterior_predictive", 1)
        both = shared[draw], shared[num_draws + draw]
        groups = _draw_once(session, batch, *both, predictive)
        for group, variables in groups.items():
            numbers = sum(variable.size for variable in variables.values())
            most = _LARGEST_GROUP * num_rows(batch) // max(1, numbers * total_rows)
            if draw < keep.setdefault(group, max(1, most)):
                for name, variable in variables.items():
                    stacks.setdefault(group, {}).setdefault(name, []).append(variable)
    observed = stacks.pop("observed_data")
    stacked = {
        group: {name: _stack(draws) for name, draws in variables.items()}
        for group, variables in stacks.items()
    }
    return stacked | {"observed_data": {name: draws[0] for name, draws in observed.items()}}


def _draw_once(
    session: Session,
    batch: Batch,
    shared: dict[str, Tensor],
    shared_prior: dict[str, Tensor],
    predictive: bool,
) -> Groups:
    """One draw of the latents, one of the data if `predictive`, and the observed data."""
    pair, layout, args = session.pair, session.layouts.of(batch), as_args(batch)
    posterior: dict[str, Any] = dict(draw_jointly(pair, layout, batch, shared).nodes)
    free = poutine.uncondition(pair.model) if predictive else pair.model
    free = ImproperStandIns(pair.model)(Substitute(shared_prior)(free))
    prior: dict[str, Any] = dict(poutine.trace(free).get_trace(*args).nodes)
    for name in layout.shared:
        shared[name], shared_prior[name] = posterior[name]["value"], prior[name]["value"]
    latents = (*layout.shared, *layout.latents, *layout.enumerated)
    # A pyro.factor statement is an observed site without a value.
    data = [name for name in layout.observed if posterior[name]["value"].numel() > 0]

    def collect(sites: dict[str, Any], names: Iterable[str], *, again: bool = False) -> Any:
        return {
            name.replace("/", "_"): _variable(
                name, site, site["fn"].sample() if again else site["value"], layout
            )
            for name in names
            for site in (sites[name],)
        }

    groups = {
        "posterior": collect(posterior, latents),
        "prior": collect(prior, latents),
        "observed_data": collect(posterior, data),
    }
    if predictive:
        groups["posterior_predictive"] = collect(posterior, data, again=True)
        groups["prior_predictive"] = collect(prior, data)
    if layout.improper:  # which has no draws
        groups = {name: sites for name, sites in groups.items() if not name.startswith("prior")}
    return groups


def _variable(name: str, site: dict[str, Any], value: Tensor, layout: Layout) -> xr.DataArray:
    """A site's value with its row dimension first, if it has one, and without plates of size one."""
    # Data may be larger than their distribution: one rate for all numbers of a row.
    value = value.expand(torch.broadcast_shapes(value.shape, site["fn"].shape()))
    batch_dim = value.dim() - len(site["fn"].event_shape)
    in_rows = any(frame.name == layout.plate for frame in site["cond_indep_stack"])
    if in_rows:
        value = value.movedim(batch_dim + layout.dim, 0)
    ones = [d for d in range(int(in_rows), batch_dim) if value.shape[d] == 1]
    array = value.squeeze(ones).detach().cpu().numpy()
    return xr.DataArray(array, dims=_dims(name, array.ndim, ("row",) if in_rows else ()))


def _dims(name: str, ndim: int, first: tuple[str, ...]) -> tuple[str, ...]:
    name = name.replace("/", "_")
    return (*first, *(f"{name}_dim_{i}" for i in range(ndim - len(first))))


def _stack(draws: list[xr.DataArray]) -> xr.DataArray:
    """Stacks draws into one chain."""
    array = np.stack([draw.values for draw in draws])[None]
    return xr.DataArray(array, dims=("chain", "draw", *draws[0].dims))


def _join(chunks: list[xr.DataArray | None], rows: list[int]) -> xr.DataArray:
    """Joins the rows of chunks. Where a row lacks a variable, or a part of it, there is NaN."""
    there = [chunk for chunk in chunks if chunk is not None]
    if "row" not in there[0].dims:
        return there[0]
    axis = there[0].dims.index("row")
    shapes = [chunk.shape[:axis] + chunk.shape[axis + 1 :] for chunk in there]
    if len(there) == len(chunks) and len(set(shapes)) == 1:
        return xr.concat(there, dim="row")
    largest = tuple(map(max, *shapes)) if len(shapes) > 1 else shapes[0]
    parts = []
    for chunk, n in zip(chunks, rows, strict=True):
        part = np.full((*largest[:axis], n, *largest[axis:]), np.nan)
        if chunk is not None:
            part[tuple(map(slice, chunk.shape))] = chunk.values
        parts.append(part)
    return xr.DataArray(np.concatenate(parts, axis), dims=there[0].dims)


def _log_likelihood(
    evaluation: Evaluation, observed: list[str], num_draws: int
) -> dict[str, xr.DataArray]:
    values = evaluation.log_likelihood.values.double().numpy()
    bad = evaluation.unreliable.numpy()
    spread = np.where(bad, _spread(num_draws, 2.0)[:, None], _spread(num_draws, -1.0)[:, None])
    note = f"log p(x) of the trained parameters; equal draws spread over {_SPREAD:g} nats for PSIS"
    if missing := evaluation.log_likelihood.missing:
        note += f"; {missing}"
    name = observed[0] if len(observed) == 1 else "joint"
    return {
        name: xr.DataArray(
            (values + spread)[None],
            dims=("chain", "draw", "row"),
            attrs={"unit": "nats", "description": note},
        )
    }


def _spread(num: int, shape: float) -> np.ndarray[Any, Any]:
    """Small numbers around 0 whose lower tail is Pareto's: k-hat of `exp(-x)` is the shape."""
    if num == 1:
        return np.zeros(1)
    rest = 1 - (np.arange(num) + 0.5) / num
    quantiles = (rest**-shape - 1) / shape
    quantiles -= quantiles.mean()
    return -_SPREAD * quantiles / np.ptp(quantiles)


def _sample_stats(evaluation: Evaluation) -> dict[str, xr.DataArray]:
    parts = {name: getattr(evaluation, name) for name in ("elbo", "rate", "distortion")}
    stats = {
        **{name: (of.values, "nats") for name, of in evaluation.measure.of(parts).items()},
        "log_likelihood_error": (evaluation.log_likelihood_error, "nats"),
        "ess": (evaluation.ess, "samples"),
        "khat": (evaluation.khat, "1"),
        "unreliable": (evaluation.unreliable, "1"),
    }
    return {
        name: xr.DataArray(values.numpy(), dims=("row",), attrs={"unit": unit})
        for name, (values, unit) in stats.items()
    }


def _assemble(groups: Groups, evaluation: Evaluation) -> Any:
    version = importlib.metadata.version("arviz")
    attrs = {
        "created_at": datetime.now(UTC).isoformat(),
        "creation_library": "ppl_vae",
        "creation_library_version": __version__,
        "creation_library_language": "Python",
        "inference_library": "ppl_vae",
        "inference_library_version": __version__,
        "pyro_version": pyro.__version__,
        "torch_version": str(torch.__version__),
        "arviz_version": version,
        "importance_samples": evaluation.num_samples,
    }
    for name in ("notes", "warnings"):  # of log p(x), which the data hold
        if texts := getattr(evaluation, name):
            attrs[name] = "\n".join(texts)
    order = ("posterior", "posterior_predictive", "prior", "prior_predictive")
    datasets: dict[str, Any] = {
        group: _dataset(groups[group], attrs)
        for group in (*order, "log_likelihood", "sample_stats", "observed_data")
        if group in groups
    }
    if int(version.split(".")[0]) >= 1:
        tree = xr.DataTree.from_dict(datasets)
        tree.attrs = attrs
        return tree
    with warnings.catch_warnings():
        # ArviZ 0.23 warns about its successor when it is imported.
        warnings.simplefilter("ignore", FutureWarning)
        try:
            import arviz
        except OSError as error:  # it makes a folder for itself in the user's
            raise OSError(
                f"ArviZ cannot be imported ({error.filename}: {error.strerror}): set XDG_CACHE_HOME to a "
                "folder that can be written"
            ) from error
    return arviz.InferenceData(attrs=attrs, **datasets)


def _dataset(variables: dict[str, xr.DataArray], attrs: dict[str, Any]) -> xr.Dataset:
    dataset = xr.Dataset(variables, attrs=attrs)
    return dataset.assign_coords({name: np.arange(size) for name, size in dataset.sizes.items()})
