"""The subcommand `em`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentParser, Namespace
from matplotlib.figure import Figure
from torch import Tensor

from ppl_vae.cli.common import rows_of, say_of_other_weights
from ppl_vae.cli.finish import dark_folder
from ppl_vae.cli.mistakes import UsageError
from ppl_vae.cli.options import EM, names
from ppl_vae.cli.output import say, show, warn
from ppl_vae.cli.overfitting import with_doubt
from ppl_vae.cli.report import write_report
from ppl_vae.cli.results import result_table, with_levels
from ppl_vae.cli.setup import Setup, set_up
from ppl_vae.cli.stages import Stages
from ppl_vae.cli.start import check_setup, options_of, started
from ppl_vae.em import EMFit, check_start, fit_em
from ppl_vae.evaluation import Evaluation, evaluate
from ppl_vae.models import BernoulliMixture, CategoricalHMM, GaussianMixture
from ppl_vae.pairs import Pair
from ppl_vae.plots import bound_curves, components, draw_rows
from ppl_vae.runs import (
    PLOTS,
    REPORT,
    TYPED,
    require_free,
    write_results,
    write_weights,
)
from ppl_vae.runtime import as_folder, preserve_random_state, resolve_device

_DISCRETE = (BernoulliMixture, CategoricalHMM)
"""Models of data that are discrete."""


def em(parser: ArgumentParser, given: Namespace) -> int:
    """Fits a model with closed forms by EM, evaluates it with its exact posterior, saves and draws."""
    resumed = given.get("resume")
    stages = Stages(bool(given.get("quiet")))
    options, trust = options_of("em", parser, given)
    options = {**options, "guide": "ppl_vae.guides.Exact"}
    options.setdefault("model", "ppl_vae.models.GaussianMixture")
    resolve_device(options["device"])
    if resumed is None and given.get("run_dir") is not None:
        target = as_folder(given.run_dir, "run_dir")
        require_free(target, overwrite=bool(given.get("overwrite")))
    kind = trust.get("model", TYPED).resolve(_class_path(options["model"]), "model")
    if not hasattr(kind, "posterior"):
        raise UsageError(
            f"--model {kind.__name__}: EM needs a model that knows its posterior(x), such as GaussianMixture; "
            "train the others by `ppl-vae train`"
        )
    with stages.stage("data and model", told=False):
        setup = set_up(options, trust=trust)
    if given.get("print_config"):
        show(yaml.safe_dump(setup.config, sort_keys=False), end="")
        return 0
    discrete = setup.data.levels is not None and not options.get("binarize")
    if discrete and not isinstance(setup.model, _DISCRETE):
        # At values that repeat, a density may rise without bound: it would fit the levels, not the data.
        say(f"the {setup.data.levels} levels of the data are dequantized, for a density")
        setup = set_up({**setup.config, "dequantize": True}, trust=trust)
    x, transform = setup.data.train, setup.data.transform
    if transform is not None:
        # EM needs rows that stay: one draw of what a training would draw for each batch.
        with preserve_random_state():
            torch.manual_seed(options["seed"])
            x = transform(x)
    if resumed is None:
        check_start(setup.model, x)
    with stages.stage("checks", told=False):
        check_setup(setup)
    progress = False if given.get("quiet") else None
    reported = bool(given.get("report", True))
    with started("em", setup, given) as (folder, resume):
        with stages.stage("EM"):
            fitted = fit_em(
                setup.model,
                x,
                seed=options["seed"],
                run_dir=folder,
                resume=resume,
                progress=progress,
                **{name: options[name] for name in names(EM) if name in options},
            )
        folder.begin()  # a finished run has taken no steps: its new options are written here
        weights = write_weights(folder.path, fitted.model, setup.guide, epochs=len(fitted.history))
        with stages.stage("evaluation"):
            evaluation = evaluate(
                fitted.model,
                setup.guide,
                setup.data.test,
                num_samples=64,
                seed=0,
                progress=progress,
            )
        evaluation = with_levels(evaluation, setup.data)
        fitted = with_doubt(fitted, evaluation, setup.config, setup.data)
        # For a report, and for those who read it later.
        told = {"notes": list(fitted.notes), "warnings": list(fitted.warnings)}
        rows = rows_of(setup.data)
        write_results(folder.path, fit=told, evaluation=evaluation, rows=rows, weights=weights)
        evaluation = replace(
            evaluation,
            notes=(*fitted.notes, *evaluation.notes),
            cautions=(*fitted.warnings, *evaluation.cautions),
        )
        with stages.stage("pictures"):
            failed = _draw(folder.path, setup, fitted, evaluation, weights, reported)
        unwritten = []
        if reported:
            with stages.stage("report"):
                unwritten = write_report(folder.path)
        say_of_other_weights(folder.path, weights)
        test = ("log p(x), test rows", str(evaluation.log_likelihood))
        show(result_table([*fitted.lines(), test], evaluation))
    plots = folder.folder / PLOTS
    drawn = ", ".join(sorted(file.stem for file in plots.glob("*.png"))) or "none"
    show(f"\nrun folder: {folder.folder}\npictures:   {plots}\n            {drawn}")
    if reported and not unwritten:
        show(f"report:     {folder.folder / REPORT}")
    for line in [*failed, *unwritten]:
        warn(line)
    stages.tell()
    return 0


def _class_path(spec: Any) -> str:
    return str(spec["class_path"] if isinstance(spec, dict) else spec)


def _draw(
    folder: Path,
    setup: Setup,
    fitted: EMFit,
    evaluation: Evaluation,
    weights: str,
    reported: bool,
) -> list[str]:
    """Draws the pictures; what failed is returned, because it costs no results."""
    Pair.of(fitted.model, setup.guide).to(torch.device("cpu"))
    pictures: dict[str, Callable[[], Figure]] = {
        "learning_curve": lambda: bound_curves({"": fitted.history})
    }
    parts = _components(fitted.model)
    if parts is not None:
        pictures["components"] = lambda: components(*parts)
    rows = (fitted.model, setup.guide, setup.data.test, evaluation)
    dark = dark_folder(folder, reported)
    return draw_rows(folder / PLOTS, *rows, pictures, weights, setup.config["seed"], dark)


@torch.no_grad()
def _components(model: Any) -> tuple[Tensor, Tensor] | None:
    """Means and weights of a mixture's components; None for other models."""
    prior = model.prior() if isinstance(model, GaussianMixture | BernoulliMixture) else None
    if prior is None:
        return None
    means = model.decode(torch.arange(len(prior.probs), device=prior.probs.device)).mean
    return means.cpu(), prior.probs.cpu()
