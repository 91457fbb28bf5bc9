"""The curves of a sweep's picture: of one frozen decoder, and the exact one of a linear model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from ppl_vae.cli.mistakes import UsageError
from ppl_vae.cli.output import say, warn
from ppl_vae.cli.own_modules import reach_typed
from ppl_vae.cli.setup import checked, load_rows
from ppl_vae.models import ProbabilisticPCA
from ppl_vae.pairs import take_rows, tensors_of
from ppl_vae.rate_distortion import frozen_decoder_curve, linear_optimum
from ppl_vae.runs import Run, load_run
from ppl_vae.runtime import preserve_random_state
from ppl_vae.sweeps import (
    Backdrop,
    CurvePlace,
    SweepFolder,
    SweepPicture,
    SweepRun,
    read_curves,
    write_curves,
)

ROWS = 100
"""Most test rows of the frozen decoder's curve."""

_BETA = "objective.beta"
_CLASS = "ProbabilisticPCA"
_ALIKE = ("model.sigma", "model.latent_dim", "data")


def check_picture(file: object, picture: SweepPicture, runs: Sequence[SweepRun]) -> None:
    """Raises an error if an exact curve is asked for, and the swept model has none.

    Raises:
        UsageError: It has none.
    """
    if not picture.exact:
        return
    for run in runs:
        model = str(run.options.get("model", ""))
        fixed = _is_false(run.options.get("model.learn_sigma", True))
        if model.rpartition(".")[2] != _CLASS or not fixed:
            raise UsageError(
                f"{file}: picture: exact: linear is known for `model: {_CLASS}` with `model.learn_sigma: "
                f"false` in all runs, and {run.name} is another one: leave exact out"
            )
    for name in _ALIKE:
        if len({str(run.options.get(name)) for run in runs}) > 1:
            raise UsageError(
                f"{file}: picture: exact: linear is one curve, and {name} differs between the runs: leave "
                "exact out, or make a sweep for each"
            )


def _is_false(value: object) -> bool:
    return value is False or str(value).lower() == "false"


def backdrop_of(
    folder: SweepFolder, picture: SweepPicture, runs: Sequence[SweepRun], packages: Sequence[str]
) -> Backdrop:
    """What is drawn behind the points; curves that are not in the folder yet are found and kept there.

    A curve that cannot be found is left out, and that is said.

    Args:
        folder: The folder of the sweep.
        picture: What its description asks for.
        runs: Its runs.
        packages: Packages of the user's own that it names.
    """
    done = {run.name: run for run in runs if folder.state(run) == "done"}
    betas = [
        b for run in runs if isinstance(b := run.options.get(_BETA, 1.0), int | float) and b > 0
    ]
    span = (min(betas, default=1.0) / 2, max(betas, default=1.0) * 2)
    wanted = {"frozen": picture.frozen, "exact": picture.exact and next(iter(done), "")}
    if not (picture.frozen or picture.exact):
        return Backdrop(picture.entropy, picture.entropy_bound)
    sources = {name: done[run] for name, run in wanted.items() if run in done}
    for name in ("frozen", "exact"):
        if getattr(picture, name) and name not in sources:
            warn(f"the picture has no curve for `{name}` yet: its run is not done")
    curves: dict[str, Sequence[CurvePlace]] = {}
    try:
        opened = {name: _opened(folder, run, packages) for name, run in sources.items()}
        weights = {name: f"{run.path.name} {run.weights_sha256}" for name, run in opened.items()}
        of = f"{sorted(weights.items())} {span}"
        kept, there = read_curves(folder.path)
        if kept == of:
            return Backdrop(picture.entropy, picture.entropy_bound, there)
        if "frozen" in opened:
            say(f"the curve of the decoder of {picture.frozen}, by annealed importance sampling")
            curves[f"decoder of {picture.frozen}, any guide"] = _frozen(opened["frozen"], span)
        if "exact" in opened:
            curves["exact, of the training rows"] = _exact(opened["exact"], span)
        if opened:
            write_curves(folder.path, of, curves)
    except Exception as error:  # of a model of the user's own, too; the results are safe
        warn(f"the picture lacks curves: {error}")
    return Backdrop(picture.entropy, picture.entropy_bound, curves)


def _opened(folder: SweepFolder, run: SweepRun, packages: Sequence[str]) -> Run:
    reach_typed(run.arguments())
    return load_run(folder.of(run), trust=list(packages), results=False)


def _frozen(run: Run, span: tuple[float, float]) -> list[CurvePlace]:
    data = load_rows(checked(run.path, run.config))
    low, high = (math.log(beta) for beta in span)
    slopes = [math.exp(-(low + (high - low) * i / 7)) for i in range(8)]
    x = take_rows(data.test, slice(ROWS))
    found = frozen_decoder_curve(run.model, x, slopes=slopes, num_steps=500, seed=0)
    for doubt in found.doubts():
        warn(f"the curve of the decoder: {doubt}")
    return [CurvePlace(p.distortion.mean, p.rate.mean) for p in found]


def _exact(run: Run, span: tuple[float, float]) -> list[CurvePlace]:
    """The optimum of each beta for the covariance of the training rows."""
    model: Any = run.model
    if not isinstance(model, ProbabilisticPCA):
        raise TypeError(
            f"exact: linear is known for ProbabilisticPCA, and {run.path} has another model"
        )
    data = load_rows(checked(run.path, run.config))
    x = tensors_of(data.train)[0]
    if data.transform is not None:
        with preserve_random_state():
            torch.manual_seed(0)
            x = data.transform(x)
    rows = x.reshape(len(x), -1).double()
    eigenvalues = torch.linalg.eigvalsh(rows.T.cov(correction=0).reshape(rows.shape[1], -1))
    variance = float(model.log_sigma.detach().double().exp()) ** 2
    dimensions = model.weight.shape[1]
    low, high = (math.log(beta) for beta in span)
    found = [
        linear_optimum(
            eigenvalues, variance, math.exp(low + (high - low) * i / 40), latent_dim=dimensions
        )
        for i in range(41)
    ]
    return [CurvePlace(each.distortion, each.rate) for each in found]
