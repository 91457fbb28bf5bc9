"""What the subcommands of ``ppl-vae`` do. Each takes its parser and what was given; returns an exit code."""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from jsonargparse import ArgumentParser, Namespace
from torch import Tensor

from ppl_vae.ais import annealed_importance_sampling
from ppl_vae.arviz_bridge import to_arviz
from ppl_vae.check import check
from ppl_vae.data import Data
from ppl_vae.diagnosis import diagnose as diagnose_pair
from ppl_vae.evaluation import evaluate as evaluate_pair
from ppl_vae.fitting import Fit, fit, make_fabric, resolve_device
from ppl_vae.gaps import inference_gaps
from ppl_vae.objectives import Objective
from ppl_vae.options import Setup, UsageError, load_rows, set_up, with_defaults
from ppl_vae.pairs import Pair, Program
from ppl_vae.plots import prior_samples
from ppl_vae.posterior_plots import gaps_plot
from ppl_vae.reports import (
    Comparison,
    Generator,
    dequantization_note,
    dimensions_table,
    draw_run,
    information,
    result_table,
)
from ppl_vae.runs import (
    ANNEALED,
    CHECKPOINTS,
    DIAGNOSIS,
    EVALUATION,
    GAPS,
    PLOTS,
    POSTERIOR,
    Run,
    build,
    discard_folder,
    load_run,
    prepare_folder,
    read_config,
    write_config,
    write_results,
    write_weights,
)

_PICTURED = 1000  # test rows at most that go into pictures


# -- train -----------------------------------------------------------------------------------------------


def train(parser: ArgumentParser, given: Namespace) -> int:
    """Trains, evaluates, diagnoses, saves and draws."""
    resumed = given.get("resume")
    if resumed is not None:
        options, folder = _options_of_run(parser, given), Path(resumed)
    else:
        options = with_defaults(parser, given)
    if not given.get("print_config"):  # what is wrong at once is said before the data are read
        resolve_device(options["device"])
        if resumed is None and given.get("run_dir"):
            folder = Path(given.run_dir)
            prepare_folder(folder, overwrite=bool(given.get("overwrite")), dry_run=True)
    setup = set_up(options)
    if given.get("print_config"):
        print(yaml.safe_dump(setup.config, sort_keys=False), end="")
        return 0
    if resumed is None:
        folder = Path(given.get("run_dir") or new_folder(setup.config))
        check_setup(setup)  # before anything is written, and anything overwritten
    choices = ("device", "precision", "num_processes", "num_nodes")
    fabric = make_fabric(**{name: setup.fit_options.pop(name) for name in choices})
    folder = Path(fabric.broadcast(str(folder)))  # its name holds the time
    if fabric.is_global_zero:
        if resumed is None:
            prepare_folder(folder, overwrite=bool(given.get("overwrite")))
        write_config(folder, setup.config)
        say(f"{setup.data!r}\nrun folder: {folder}")
    progress = False if given.get("quiet") else None
    try:
        fitted = fit(
            setup.model,
            setup.guide,
            setup.data.train,
            objective=setup.objective,
            validation=setup.data.validation,
            transform=setup.data.transform,
            seed=setup.config["seed"],
            fabric=fabric,
            run_dir=folder,
            resume=any((folder / CHECKPOINTS).glob("step-*")),
            progress=progress,
            **setup.fit_options,
        )
        if not fabric.is_global_zero:
            return 0
        say_trained(fitted)
        write_weights(folder, fitted.model, fitted.guide)
        report_run(folder, setup, fitted.model, fitted.guide, fitted.history, progress)
    except KeyboardInterrupt:
        print(f"\ncontinue with: ppl-vae train --resume {folder}", file=sys.stderr)
        raise
    except BaseException:
        if fabric.is_global_zero and not any((folder / CHECKPOINTS).glob("step-*")):
            discard_folder(folder)  # it never began
        raise
    return 0


def say_trained(fitted: Fit) -> None:
    """How long the training took, and why it ended."""
    say(
        f"trained {fitted.epochs} epochs ({fitted.steps} steps) in {fitted.seconds:.0f} s: {fitted.stopped}"
        + (f"; kept epoch {fitted.best_epoch}" if fitted.best_epoch != fitted.epochs else "")
    )


def check_setup(setup: Setup) -> None:
    """Raises an error for a pair that can not be trained; ``fit`` will issue the warnings."""
    x = setup.data.train[: setup.config.get("batch_size") or 128]
    report = check(
        setup.model,
        setup.guide,
        x if setup.data.transform is None else setup.data.transform(x),
        objective=setup.objective,
        max_epochs=setup.config.get("max_epochs", 1),
    )
    report.raise_errors()


def report_run(
    folder: Path,
    setup: Setup,
    model: Program,
    guide: Program,
    history: list[dict[str, float]],
    progress: bool | None,
) -> None:
    """Everything after the training."""
    data, seed = setup.data, setup.config["seed"]
    evaluation = evaluate_pair(
        model,
        guide,
        data.test,
        num_samples=setup.config["num_samples"],
        seed=seed,
        progress=progress,
    )
    beta = setup.objective.beta_at(len(history))
    diagnosis = diagnose_pair(model, guide, data.test, beta=beta, seed=seed, progress=progress)
    say(f"writing {POSTERIOR} for ArviZ")
    arviz = to_arviz(model, guide, data.test, evaluation=evaluation, seed=seed)
    write_results(folder, evaluation=with_rows(evaluation, data), diagnosis=diagnosis, arviz=arviz)
    Pair.of(model, guide).to(torch.device("cpu"))
    labels = None if data.test_labels is None else data.test_labels[:_PICTURED]
    generator = Generator(model, guide, data.test[:_PICTURED], seed)
    failed = draw_run(folder / PLOTS, generator, history, evaluation, diagnosis, labels)
    print(result_table(evaluation, diagnosis) + dequantization_note(evaluation, data))
    print(f"\n{diagnosis.summary()}")
    print(f"\nrun folder: {folder}\npictures:   {folder / PLOTS}")
    for line in failed:
        print(f"ppl-vae: warning: {line}", file=sys.stderr)


def _options_of_run(parser: ArgumentParser, given: Namespace) -> dict[str, Any]:
    """The options that a run was started with."""
    changed = set(vars(given)) - {"resume", "max_epochs", "quiet", "debug"}
    if changed:
        names = ", ".join(f"--{name}" for name in sorted(changed))
        raise UsageError(
            f"--resume continues the run as it was started: leave out {names} (only --max_epochs may change)"
        )
    path = Path(given.resume)
    config = read_config(path)
    config.pop("versions", None)
    if "refit_of" in config:
        raise UsageError(
            f"{path} was made by `ppl-vae refit`, which trains the guide alone: run that again with "
            "--overwrite"
        )
    config |= {"max_epochs": given.max_epochs} if "max_epochs" in given else {}
    return config


def new_folder(config: Mapping[str, Any]) -> Path:
    """A folder below runs/ that is not there yet."""
    data = Path(str(config["data"]).removeprefix("folder:")).stem
    names = [config[role]["class_path"].rpartition(".")[2] for role in ("model", "guide")]
    stem = "-".join([data, *names, time.strftime("%Y%m%d-%H%M%S")])
    folder, number = Path("runs") / stem, 1
    while folder.exists():
        number += 1
        folder = Path("runs") / f"{stem}-{number}"
    return folder


# -- commands on a run -----------------------------------------------------------------------------------


def evaluate(parser: ArgumentParser, given: Namespace) -> int:
    """Evaluates a run's test rows, by importance sampling or by annealed importance sampling."""
    options, run, data = _open(parser, given)
    _to_device(run, options.device)
    x = _first_rows(data, options)
    if options.method == "ais":
        annealed = annealed_importance_sampling(
            run.model,
            None if options.from_prior else run.guide,
            x,
            num_chains=options.num_chains,
            num_steps=options.num_steps,
            seed=options.seed,
            progress=False if options.quiet else None,
        )
        print(f"{annealed}{dequantization_note(annealed, data)}")
        _keep(run.path / ANNEALED, options.overwrite, annealed=with_rows(annealed, data, len(x)))
        return 0
    evaluation = evaluate_pair(
        run.model,
        run.guide,
        x,
        num_samples=options.num_samples,
        seed=options.seed,
        progress=False if options.quiet else None,
    )
    print(f"{evaluation}{dequantization_note(evaluation, data)}")
    found = with_rows(evaluation, data, len(x))
    _keep(run.path / EVALUATION, options.overwrite, evaluation=found)
    return 0


def gaps(parser: ArgumentParser, given: Namespace) -> int:
    """Says where a run's bound is lost: log p(x), the best ELBO in the guide's family, the ELBO."""
    options, run, data = _open(parser, given)
    _to_device(run, options.device)
    x = _first_rows(data, options)
    progress = False if options.quiet else None
    truth = None
    if options.truth == "ais":
        truth = annealed_importance_sampling(
            run.model,
            run.guide,
            x,
            num_chains=options.num_chains,
            num_steps=options.num_steps,
            seed=options.seed,
            progress=progress,
        )
    found = inference_gaps(
        run.model,
        run.guide,
        x,
        truth=truth,
        num_samples=options.num_samples,
        seed=options.seed,
        progress=progress,
    )
    print(found)
    _keep(run.path / GAPS, options.overwrite, gaps=with_rows(found, data, len(x)))
    picture = run.path / PLOTS / "gaps.png"
    if options.overwrite or not picture.exists():
        picture.parent.mkdir(exist_ok=True)
        gaps_plot({type(run.guide).__name__: found}).savefig(picture)
        say(f"written: {picture}")
    return 0


def diagnose(parser: ArgumentParser, given: Namespace) -> int:
    """Diagnoses a run on its test rows."""
    options, run, data = _open(parser, given)
    _to_device(run, options.device)
    objective: Objective = build(run.config["objective"])[0]
    diagnosis = diagnose_pair(
        run.model,
        run.guide,
        data.test,
        beta=objective.beta_at(len(run.history)),
        seed=options.seed,
        progress=False if options.quiet else None,
    )
    print(dimensions_table(diagnosis))
    print(f"\nmutual information {information(diagnosis)}")
    print(f"marginal KL        {diagnosis.marginal_kl}\n\n{diagnosis.summary()}")
    for note in diagnosis.notes:
        print(f"note: {note}")
    _keep(run.path / DIAGNOSIS, options.overwrite, diagnosis=diagnosis)
    return 0


def sample(parser: ArgumentParser, given: Namespace) -> int:
    """Draws from a run's model."""
    options, run, data = _open(parser, given)
    if options.num < 1:
        raise UsageError(f"--num must be at least 1, not {options.num}")
    output = _output(options, run.path / "samples.png")
    generator = Generator(run.model, run.guide, data.test[:_PICTURED], options.seed)
    z, mean, x = generator.from_prior(options.num)
    if output.suffix == ".npz":
        np.savez_compressed(output, z=z.numpy(), mean=mean.numpy(), x=x.numpy())
    else:
        prior_samples(mean).savefig(output)
    print(output)
    return 0


def compare(parser: ArgumentParser, given: Namespace) -> int:
    """Compares runs with the first of them."""
    options = _complete(parser, given)
    if options.runs is None or len(options.runs) < 2:
        raise UsageError("give two runs or more")
    output = _output(options, Path("comparison.png"))
    comparison = Comparison.of([load_run(path) for path in options.runs])
    print(comparison)
    comparison.figure().savefig(output)
    print(f"\npicture: {output}")
    return 0


def export(parser: ArgumentParser, given: Namespace) -> int:
    """Writes a run's draws, data and log p(x) for ArviZ."""
    options, run, data = _open(parser, given)
    output = _output(options, run.path / POSTERIOR)
    exported = to_arviz(
        run.model, run.guide, data.test, num_samples=options.num_samples, seed=options.seed
    )
    exported.to_netcdf(output)
    print(output)
    return 0


def _complete(parser: ArgumentParser, given: Namespace) -> Namespace:
    options = parser.get_defaults()
    options.update(given)
    return options


def _open(parser: ArgumentParser, given: Namespace) -> tuple[Namespace, Run, Data]:
    options = _complete(parser, given)
    if options.run is None:
        raise UsageError("RUN is missing: the folder of a run")
    run = load_run(options.run)
    return options, run, load_rows(run.config, options.data_dir)


def _output(options: Namespace, default: Path) -> Path:
    output = default if options.output is None else Path(options.output)
    if output.exists() and not options.overwrite:
        raise FileExistsError(
            f"{output} is there already: choose another --output, or pass --overwrite"
        )
    if not output.parent.is_dir():
        raise FileNotFoundError(f"--output {output}: there is no folder {output.parent}")
    return output


def _keep(file: Path, overwrite: bool, **result: Any) -> None:
    """Writes a result into the run, unless it holds one that may not be replaced."""
    if file.exists() and not overwrite:
        say(f"{file} is left as it was (--overwrite replaces it)")
    else:
        write_results(file.parent, **result)
        say(f"written: {file}")


def _first_rows(data: Data, options: Namespace) -> Tensor:
    """The test rows, or the first of them."""
    if options.max_rows is not None and options.max_rows < 1:
        raise UsageError(f"--max_rows must be at least 1, not {options.max_rows}")
    return data.test[: options.max_rows]


def _to_device(run: Run, device: str) -> None:
    Pair.of(run.model, run.guide).to(resolve_device(device))


def with_rows(result: Any, data: Data, num: int | None = None) -> dict[str, Any]:
    """A result, and on which rows it was made: runs on the same rows can be compared row by row."""
    x = data.test[:num]
    rows = {"name": data.name, "split": "test", "num": len(x), "sha256": _digest(x)}
    return {"rows": rows, **result.to_dict()}


def _digest(x: Tensor) -> str:
    digest = hashlib.sha256(f"{x.dtype} {tuple(x.shape)}".encode())
    digest.update(x.contiguous().numpy().tobytes())
    return digest.hexdigest()


def say(line: str) -> None:
    """What is no result goes to standard error."""
    print(line, file=sys.stderr)
