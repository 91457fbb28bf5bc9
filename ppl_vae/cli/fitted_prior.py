"""The subcommand `refit-prior`."""

from __future__ import annotations

import copy
import inspect
import math
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse import ArgumentParser, Namespace

from ppl_vae.checks import device_for
from ppl_vae.cli.common import warn_of_other_rows
from ppl_vae.cli.finish import finish_run
from ppl_vae.cli.known import DEFAULTS_OF_PRIORS
from ppl_vae.cli.mistakes import UsageError
from ppl_vae.cli.options import PRIOR, names
from ppl_vae.cli.output import warn
from ppl_vae.cli.own_modules import trust_of
from ppl_vae.cli.reached import epochs_of_levels, objective_of, step_size_of_run
from ppl_vae.cli.setup import Setup, checked, load_rows, missing_arguments, of_photos
from ppl_vae.cli.stages import Stages
from ppl_vae.cli.start import config_of_run, require_apart, started
from ppl_vae.data import Data
from ppl_vae.evaluation import Evaluation, evaluate
from ppl_vae.pairs import ELBO_MEASURE, Batch, Batches, Measure, Pair, num_rows, transformed
from ppl_vae.runs import (
    CONFIG,
    MAY_CHANGE,
    TYPED,
    Run,
    Trust,
    UntrustedError,
    build,
    load_run,
    read_history,
    require_free,
    write_history,
    write_results,
    write_weights,
)
from ppl_vae.runtime import (
    CorruptFileError,
    as_folder,
    preserve_random_state,
    require_samples,
    require_seed,
    resolve_device,
    seed_everything,
)
from ppl_vae.stats import Estimate, Result
from ppl_vae.training import Fit, LevelsFit, PriorFit, margins, refit_prior as fit_prior

_OF_STEPS = ("max_epochs", "patience", "batch_size", "learning_rate")
"""Options of priors that learn by steps."""

_FEW = 64
"""Samples for an ELBO that is not exact."""


@dataclass(frozen=True)
class RefittedPrior(Result):
    """What a new prior has changed.

    Attributes:
        prior: The name of the prior.
        found: What `refit_prior` has found; None of a prior of vectors, which has no rates of its own.
        before: The ELBO of the test rows with the prior before; of points log p(x, z) at them.
        after: The same with the new one.
        margin: How many pixels were around the patches to whose codes it was fitted.
        measure: What `before` and `after` are called.
    """

    prior: str
    found: PriorFit | LevelsFit | None
    before: Estimate
    after: Estimate
    margin: int = 0
    measure: Measure = ELBO_MEASURE

    def lines(self) -> list[tuple[str, str]]:
        """See `Result.lines`."""
        found = [("prior", self.prior)] if self.found is None else self.found.lines()
        gain = Estimate(self.after.values - self.before.values)
        name = f"{self.measure.text}{self.measure.at}"
        gained = [("gained", f"{gain.numbers('+.3f')} nats, test rows")]
        return [
            *found,
            (f"{name}, prior before", str(self.before)),
            (f"{name}, new prior", str(self.after)),
            *([] if self.before.missing else gained),
        ]

    def doubts(self) -> Iterator[str]:
        """See `Result.doubts`."""
        if self.found is not None:
            yield from self.found.doubts()

    def caption(self) -> list[str]:
        """See `Result.caption`."""
        if not self.margin:
            return []
        return [
            f"The rates are of patches with {self.margin} pixels around them, as in photos. The ELBOs are of "
            "patches alone, whose codes at the border are others."
        ]

    def summary_numbers(self) -> dict[str, Any]:
        """See `Result.summary_numbers`."""
        found: dict[str, Any] = (
            {"prior": self.prior} if self.found is None else self.found.summary_numbers()
        )
        found["margin"] = self.margin
        both = {"before": self.before.to_dict(), "after": self.after.to_dict()}
        return found | {f"{self.measure.name}_{when}": of for when, of in both.items()}


def refit_prior(parser: ArgumentParser, given: Namespace) -> int:
    """Fits a new prior for the pair of a run, which is left as it is; the result is a run of its own."""
    if (given.get("resume") is None) == (given.get("run") is None):
        raise UsageError(
            "name either the RUN whose encoder and decoder are kept, or --resume RUN, which continues an "
            "interrupted fit"
        )
    stages = Stages(bool(given.get("quiet")))
    options, spec, trust = _options_of(parser, given)
    source = Path(options.run)
    resolve_device(options.device)
    require_samples("num_samples", options.num_samples)
    require_seed(options.seed)
    if given.get("run_dir") is not None:
        target = Path(options.run_dir)
        require_apart(target, source, "the run whose encoder and decoder are kept")
        require_free(as_folder(options.run_dir, "run_dir"), overwrite=bool(options.overwrite))
    prior, spec = _prior_of(spec, trust)
    with stages.stage("data and pair", told=False):
        setup, run = _loaded(source, given, options, spec)
        around, margin = _with_margin(setup, run)
    model = _model_with_prior(run)
    of_codes = hasattr(prior, "build_codes")
    if typed := [name for name in _OF_STEPS if name in given and not of_codes]:
        raise UsageError(
            f"--{typed[0]} is for priors of codes, which learn by steps; {type(prior).__name__} is fitted to "
            f"vectors otherwise: leave out {', '.join(f'--{name}' for name in typed)}"
        )
    pair = Pair.of(run.model, run.guide)
    pair.to(resolve_device(device_for(pair, Batches(setup.data.test, pair), options.device)))
    progress = False if options.quiet else None
    how = {name: options[name] for name in names(PRIOR)}
    begun = time.monotonic()
    with started("refit-prior", setup, given) as (folder, resume):
        with stages.stage("fit of the prior", told=False):  # the end is told in other words
            refitted: Any = fit_prior(
                model,
                run.guide,
                _as_trained(around, options.seed),
                prior,
                **({"validation": around.validation, "run_dir": folder} if of_codes else {}),
                **how,
                resume=resume,
                seed=options.seed,
                progress=progress,
            )
        found: PriorFit | LevelsFit | None = getattr(refitted.prior, "fitted", None)
        seconds = _seconds(found) or time.monotonic() - begun
        measured = {"num_samples": _FEW, "seed": options.seed, "progress": progress}
        with stages.stage("test rows before and after", told=False):
            before, after = (
                evaluate(model, run.guide, setup.data.test, method="guide", **measured)
                for model in (model, refitted)
            )
            held_out = evaluate(
                refitted, run.guide, setup.data.validation, method="guide", **measured
            )
        epochs = _epochs(found, None if margin else held_out)
        if not epochs and (typed := [name for name in _OF_STEPS if name in given]):
            warn(f"--{typed[0]} had no use: {type(prior).__name__} is counted, and takes no steps")
        history = _continued(read_history(source), epochs, seconds)
        weights = write_weights(folder.path, refitted, run.guide, epochs=len(history))
        write_history(folder.path, history)
        result = RefittedPrior(
            *(type(prior).__name__, found, before.elbo, after.elbo, margin, after.measure)
        )
        write_results(folder.path, fit=result.to_dict(), weights=weights)
        folder.begin()
        fitted = _fit_of(setup, refitted, run, history, found, epochs, seconds)
        finish_run(folder, setup, fitted, given, stages, result)
    return 0


def _options_of(parser: ArgumentParser, given: Namespace) -> tuple[Namespace, Any, Trust]:
    """All options, those that were typed or those of the run that is to go on; the prior that they name.

    Returns:
        The options, the prior as it was typed or written, and how far it may be trusted.

    Raises:
        UsageError: The options do not go together, another command made the run, or it has nothing to go on
            with.
        UntrustedError: The run's config.yaml names what it may not name.
        CorruptFileError: It does not say how the prior is fitted.
    """
    options = parser.get_defaults()
    if given.get("resume") is None:
        options.update(given)
        spec: Any = {"class_path": DEFAULTS_OF_PRIORS["prior"]}
        if given.get("prior") is not None:
            spec = yaml.safe_load(parser.dump(given.clone(), skip_validation=True))["prior"]
        return options, spec, TYPED
    path = Path(given.resume)
    config = config_of_run("refit-prior", parser, given)
    trust = trust_of(given, path)
    trust.check(config)
    config = checked(path, config)
    how, spec, source = (config.get(name) for name in ("fit_of_prior", "prior", "refit_of"))
    for name, good in (
        ("fit_of_prior", isinstance(how, Mapping)),
        ("prior", isinstance(spec, Mapping) and "class_path" in spec),
        ("refit_of", isinstance(source, str) and "\0" not in source),
    ):
        if not good:
            raise CorruptFileError(
                path / CONFIG,
                f"{name} does not say how the prior is fitted: fit it again from the start",
            )
    assert isinstance(how, Mapping)
    if not (Path(str(source)) / CONFIG).exists():
        raise UsageError(
            f"{path / CONFIG} names the run of the pair, refit_of: {source}, but there is no run: if it has "
            "moved, write its new place there"
        )
    options["run"] = source
    for name in (*names(PRIOR), "seed"):
        options[name] = how.get(name, options[name])
    for name in ("num_samples", "device", "data_dir"):
        options[name] = config.get(name, options[name])
    for name in MAY_CHANGE:
        if name in given:
            options[name] = given[name]
    return options, spec, trust


def _prior_of(spec: Any, trust: Trust) -> tuple[Any, dict[str, Any]]:
    """The description of a prior, and the same as plain values.

    Raises:
        UsageError: It lacks an argument, or has one that it cannot have.
    """
    if isinstance(spec, str):
        spec = {"class_path": spec}
    name = str(spec["class_path"]).rpartition(".")[2]
    try:
        prior, spec = build(spec, role="prior", trust=trust)
    except UntrustedError:
        raise
    except (TypeError, ValueError) as error:
        if missing := missing_arguments(error, spec["class_path"]):
            listed = " and ".join(f"--prior.{argument}" for argument in missing)
            raise UsageError(f"{listed} is missing: {name} needs it") from error
        raise UsageError(f"--prior {name}: {error}") from error
    if not (hasattr(prior, "build_codes") or hasattr(prior, "build")):
        raise UsageError(
            f"--prior {name}: this is no description of a prior, which has a method build_codes (of codes) or "
            "build (of vectors): take PixelCNNPrior or MixturePrior, say"
        )
    return prior, spec


def _loaded(
    source: Path, given: Namespace, options: Namespace, spec: dict[str, Any]
) -> tuple[Setup, Run]:
    """What is to be fitted: the data and the pair of a run, and the configuration of the new one."""
    trust = trust_of(given, source)
    run = load_run(source, trust=trust, results=False)
    config = checked(source, run.config)
    if of_photos(config):
        raise UsageError(
            f"{source} is a run of `ppl-vae colorize train`, whose segments have a prior of their own kind: "
            "refit-prior takes runs of `ppl-vae train`"
        )
    data = load_rows(config, options.data_dir)
    warn_of_other_rows(source, data)
    model = dict(config["model"]) if isinstance(config.get("model"), Mapping) else {}
    model["init_args"] = {**(model.get("init_args") or {}), "prior": copy.deepcopy(spec)}
    left_out = (
        *("versions", "made_by", "refit_of", "start_from", "start_parts"),
        *("model", "prior", "fit_of_prior"),
    )
    new = {
        **{name: value for name, value in config.items() if name not in left_out},
        "model": model,
        "num_samples": options.num_samples,
        "device": options.device,
        "refit_of": str(source.resolve()),
        "prior": spec,
        "fit_of_prior": {
            **{name: options[name] for name in names(PRIOR)},
            "seed": options.seed,
        },
    }
    if options.data_dir is not None:
        new["data_dir"] = options.data_dir
    new.setdefault("seed", 0)
    return Setup(data, run.model, run.guide, objective_of(run, trust), {}, new), run


def _with_margin(setup: Setup, run: Run) -> tuple[Data[Any], int]:
    """The data of a run; if they are patches of photos, with as much around them as the encoder sees.

    Codes of a patch alone depend on the zeros beyond its border, and are not those of a photo.

    Returns:
        The data, and how many pixels are around each patch.
    """
    size, smallest = setup.config.get("patch_size"), setup.data.smallest_side
    if size is None or smallest is None:
        return setup.data, 0
    sizes = margins(run.guide)
    for margin in sizes:
        if size + 2 * margin > smallest:
            continue
        if margin < sizes[0]:
            _warn_of_margin(f"with a margin of {margin} pixels, but the encoder sees {sizes[0]}")
        return load_rows({**setup.config, "patch_size": size + 2 * margin}), margin
    if sizes:
        _warn_of_margin("without a margin, as the photos have no room for one")
    return setup.data, 0


def _warn_of_margin(what: str) -> None:
    warn(
        f"the prior is fitted to patches {what}: so in photos it predicts codes near the border of a block "
        "less well. Larger photos, or a smaller --patch_size in `ppl-vae train`, leave more room"
    )


def _model_with_prior(run: Run) -> torch.nn.Module:
    """The model of a run, whose prior can be replaced.

    Raises:
        UsageError: It has none.
    """
    name = type(run.model).__name__
    arguments = inspect.signature(type(run.model)).parameters
    has_prior = isinstance(getattr(run.model, "prior", None), torch.nn.Module)
    if isinstance(run.model, torch.nn.Module) and has_prior and "prior" in arguments:
        return run.model
    raise UsageError(
        f"{run.path} is a run of {name}, which has no prior that could be replaced: refit-prior takes runs of "
        "models with an argument `prior`, such as VAE, ConditionalVAE, VQVAE, ConditionalVQVAE, VQVAE2 and "
        "ConditionalVQVAE2"
    )


def _as_trained(data: Data[Any], seed: int) -> Batch:
    """The training rows: where each batch of a training is binarized or dequantized anew, one draw of that."""
    if data.transform is None:
        rows: Batch = data.train
        return rows
    with preserve_random_state():
        seed_everything(seed)
        return transformed(data.train, data.transform)


def _epochs(
    found: PriorFit | LevelsFit | None, held_out: Evaluation | None
) -> list[dict[str, float]]:
    """The rates of each epoch, nats per row, as metrics; a level that has stopped keeps its best epoch's.

    The distortion stays what it is. It is left out, and the ELBO with it, if the rates are of other rows.
    """
    if found is None:
        return []
    levels = found.levels if isinstance(found, LevelsFit) else {"": found}
    count = max(len(level.history) for level in levels.values())
    epochs = []
    for i in range(count):
        each = {name: _rates_in(level, i) for name, level in levels.items()}
        rate = sum(train for train, _ in each.values())
        validation = sum(apart for _, apart in each.values())
        of_levels = {f"rate_{name}": apart for name, (_, apart) in each.items() if name}
        row = {"rate": rate, "validation_rate": validation, **of_levels}
        if held_out is not None:
            distortion = held_out.distortion.mean
            row["validation_elbo"] = -(validation + distortion)
            row["validation_distortion"] = distortion
        epochs.append(row)
    return epochs


def _seconds(found: PriorFit | LevelsFit | None) -> float:
    """What the epochs took, with those before the fit was resumed; 0 if there were none."""
    if found is None:
        return 0.0
    levels = found.levels.values() if isinstance(found, LevelsFit) else [found]
    return sum(level.seconds for level in levels)


def _rates_in(level: PriorFit, epoch: int) -> tuple[float, float]:
    """The rates of training and held-out rows in an epoch, which counts from 0."""
    if epoch >= len(level.history):
        epoch = level.best_epoch - 1
    if epoch < 0:
        assert level.validation_rate is not None
        return level.rate.mean, level.validation_rate.mean
    row = level.history[epoch]
    return row["rate"], row["validation_rate"]


def _continued(
    history: list[dict[str, float]], epochs: list[dict[str, float]], seconds: float
) -> list[dict[str, float]]:
    """The history of a pair, and the epochs of its prior behind it."""
    last = history[-1] if history else {}
    kept: dict[str, float] = {
        name: last[name] for name in ("step", "beta", "codes_used", "perplexity") if name in last
    }
    before = last.get("seconds", 0.0)
    added = [
        {
            "epoch": len(history) + i + 1,
            **kept,
            **row,
            "seconds": before + seconds * (i + 1) / len(epochs),
        }
        for i, row in enumerate(epochs)
    ]
    whole = ("epoch", "step")
    return [
        {name: int(value) if name in whole else value for name, value in row.items()}
        for row in [*history, *added]
    ]


def _fit_of(
    setup: Setup,
    refitted: Any,
    run: Run,
    history: list[dict[str, float]],
    found: PriorFit | LevelsFit | None,
    epochs: list[dict[str, float]],
    seconds: float,
) -> Fit:
    """What was trained, as `fit` says it."""
    size, steps, best = 0, 0, len(history)
    if found is not None and epochs:
        levels = [*found.levels.values()] if isinstance(found, LevelsFit) else [found]
        size = math.ceil(num_rows(setup.data.train) / setup.config["fit_of_prior"]["batch_size"])
        steps = size * sum(len(level.history) for level in levels)
        of_levels = [(len(level.history), level.best_epoch) for level in levels]
        best = len(history) - len(epochs) + epochs_of_levels(of_levels)[1]
    return Fit(
        model=refitted,
        guide=run.guide,
        history=history,
        objective=setup.objective,
        epochs=len(history),
        steps=steps,
        best_epoch=best,
        stopped="",
        seconds=seconds,
        batch_size=setup.config.get("batch_size"),
        learning_rate=step_size_of_run(setup.config),
        prior_epochs=len(epochs),
    )
