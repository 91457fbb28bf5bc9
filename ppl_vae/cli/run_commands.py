"""The subcommands that take a run: `evaluate`, `gaps`, `diagnose`, `sample`, `compare`, `export`."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse import ArgumentParser, Namespace

from ppl_vae.checks import device_for
from ppl_vae.cli.common import (
    ELSEWHERE,
    evaluate_training_rows,
    keep_and_show,
    keep_result,
    require_writable,
    rows_of,
    stored_evaluation,
    warn_of_other_rows,
    writing,
)
from ppl_vae.cli.mistakes import UsageError
from ppl_vae.cli.output import counted, say, show, show_lines
from ppl_vae.cli.output_files import output_file, require_no_data
from ppl_vae.cli.overfitting import with_remedies
from ppl_vae.cli.own_modules import trust_of
from ppl_vae.cli.reached import fit_of, last_beta, objective_of
from ppl_vae.cli.results import with_levels
from ppl_vae.cli.samples import as_pictures, sampled, sampled_sentences
from ppl_vae.cli.setup import checked, load_rows
from ppl_vae.cli.text_source import read_test_rows
from ppl_vae.data import Data
from ppl_vae.diagnosis import Gaps, diagnose as diagnose_pair, inference_gaps
from ppl_vae.evaluation import (
    Annealed,
    annealed_importance_sampling,
    evaluate as evaluate_pair,
    to_arviz,
)
from ppl_vae.pairs import Batch, Batches, Pair, Program, num_rows, take_rows
from ppl_vae.plots import comparison_plot, dark_paper, gaps_plot, prior_samples
from ppl_vae.runs import (
    ANNEALED,
    DIAGNOSIS,
    EVALUATION,
    GAPS,
    PLOTS,
    PLOTS_DARK,
    POSTERIOR,
    SAMPLES,
    VOCABULARY,
    WEIGHTS_KEY,
    Comparison,
    Run,
    as_netcdf,
    load_run,
    made_by,
    require_weights,
)
from ppl_vae.runtime import (
    own_folder,
    replacing,
    require_count,
    require_file,
    resolve_device,
    write_bytes,
)
from ppl_vae.tasks import without_observed

PICTURES = (".png", ".pdf", ".svg", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".eps", ".ps")
"""How the name of a picture may end."""

MOST_ROWS = 1000
"""Most test rows that `sample` looks at: they say what the model is called with."""

MOST_SAMPLED = 1_000_000
"""Most samples that `sample` writes: all of them are held in memory."""


def evaluate(parser: ArgumentParser, given: Namespace) -> int:
    """Evaluates a run's test rows, by importance sampling or by annealed importance sampling."""
    options, run, data = _open_run(parser, given)
    x = _first_rows(data, options)
    file = run.path / (ANNEALED if options.method == "ais" else EVALUATION)
    _require_results(options, file, file.with_suffix(".csv"))
    _to_device(run, options.device, x)
    rows = rows_of(data, num_rows(x))
    if options.method == "ais":
        start = None if options.from_prior else run.guide
        annealed = with_levels(_anneal(run, start, x, options), data)
        keep_and_show(
            annealed,
            lambda: keep_result(run, ANNEALED, options.overwrite, annealed=annealed, rows=rows),
        )
        return 0
    evaluation = evaluate_pair(
        run.model,
        run.guide,
        x,
        num_samples=options.num_samples,
        method="guide" if options.method == "importance" else options.method,
        seed=options.seed,
        progress=False if options.quiet else None,
    )
    evaluation = with_levels(evaluation, data)
    keep_and_show(
        evaluation,
        lambda: keep_result(run, EVALUATION, options.overwrite, evaluation=evaluation, rows=rows),
    )
    return 0


def gaps(parser: ArgumentParser, given: Namespace) -> int:
    """Says where a run's bound is lost: log p(x), the best ELBO in the guide's family, the ELBO."""
    options, run, data = _open_run(parser, given)
    x = _first_rows(data, options)
    picture = run.path / PLOTS / "gaps.png"
    _require_results(options, run.path / GAPS, (run.path / GAPS).with_suffix(".csv"), picture)
    _to_device(run, options.device, x)
    truth = _anneal(run, run.guide, x, options) if options.truth == "ais" else None
    found = inference_gaps(
        run.model,
        run.guide,
        x,
        truth=truth,
        num_samples=options.num_samples,
        seed=options.seed,
        progress=False if options.quiet else None,
    )

    def keep() -> None:
        keep_result(run, GAPS, options.overwrite, gaps=found, rows=rows_of(data, num_rows(x)))
        if options.overwrite or not picture.exists():
            with writing(run, picture):
                _draw_gaps(run, found, picture, options.overwrite)
                with dark_paper():
                    _draw_gaps(run, found, run.path / PLOTS_DARK / picture.name, True)
            say(f"written: {picture}")

    keep_and_show(found, keep)
    return 0


def _draw_gaps(run: Run, found: Gaps, file: Path, overwrite: bool) -> None:
    figure = gaps_plot({type(run.guide).__name__: found})
    own_folder(file.parent)
    with replacing(file, overwrite=overwrite) as temporary:
        figure.savefig(temporary, metadata={WEIGHTS_KEY: run.weights_sha256})


def diagnose(parser: ArgumentParser, given: Namespace) -> int:
    """Diagnoses a run on its test rows, with what is known of their evaluation and of some training rows."""
    options, run, data = _open_run(parser, given)
    _require_results(options, run.path / DIAGNOSIS)
    _to_device(run, options.device, data.test)
    beta, fitted = None, None
    if (
        options.text is None or "objective" in run.config
    ):  # a run of sentences was saved from Python
        objective = objective_of(run, trust_of(given, options.run))
        beta, fitted = last_beta(run, objective), fit_of(run, objective)
    require_weights(run.path, run.weights_sha256)  # that beta may be of another run by now
    progress = False if options.quiet else None
    evaluation = stored_evaluation(run, data)
    train = evaluate_training_rows(
        run.model,
        run.guide,
        data,
        None if evaluation is None else evaluation.elbo,
        num_samples=run.config.get("num_samples", 1000),
        seed=options.seed,
        progress=progress,
    )
    diagnosis = diagnose_pair(
        run.model,
        run.guide,
        data.test,
        train=train,
        evaluation=evaluation,
        fit=fitted,
        beta=beta,
        seed=options.seed,
        progress=progress,
    )
    diagnosis = replace(diagnosis, run=str(options.run))
    if made_by(run.config) == "em":
        diagnosis = with_remedies(diagnosis, run.config, data)
    keep_and_show(
        diagnosis, lambda: keep_result(run, DIAGNOSIS, options.overwrite, diagnosis=diagnosis)
    )
    return 0


def sample(parser: ArgumentParser, given: Namespace) -> int:
    """Draws from a run's model."""
    options, run = _options_and_run(parser, given)
    try:
        require_count("--num", options.num, most=MOST_SAMPLED)
    except ValueError as error:
        raise UsageError(str(error)) from error
    writes = isinstance(getattr(run.model, "words", None), int) and run.vocabulary is not None
    if writes and not _names(options.output, (*PICTURES, ".npz")):
        return _write_sentences(run, options)
    data = _rows_of_run(options, run)
    output = output_file(options, run.path / SAMPLES, (*PICTURES, ".npz"))
    require_no_data(output, run.config)
    like = without_observed(run.model, take_rows(data.test, slice(MOST_ROWS)))
    arrays, told = sampled(run, like, options)
    with (
        writing(run, output, ELSEWHERE),
        replacing(output, overwrite=options.overwrite) as file,
    ):
        if output.suffix.lower() == ".npz":
            with file.open("wb") as opened:  # NumPy would add .npz to the name x.NPZ
                np.savez_compressed(opened, **arrays)
        else:
            known = {WEIGHTS_KEY: run.weights_sha256} if output.suffix.lower() == ".png" else None
            shown = as_pictures(arrays, run)
            figure = prior_samples(shown.get("x"), means=shown.get("mean"))
            figure.savefig(file, metadata=known)
            if output.resolve() == (run.path / SAMPLES).resolve():  # which a report shows
                night = own_folder(run.path / PLOTS_DARK) / SAMPLES
                with dark_paper(), replacing(night) as dark:
                    prior_samples(shown.get("x"), means=shown.get("mean")).savefig(
                        dark, metadata=known
                    )
    say(f"{options.num} samples from the prior: {told}")
    show(output)
    return 0


def _write_sentences(run: Run, options: Namespace) -> int:
    """Draws sentences, which need no data."""
    output = None if options.output is None else output_file(options)
    if output is not None:
        require_no_data(output, run.config)
    lines = sampled_sentences(run, options)
    if output is None:
        show_lines(lines)
        return 0
    content = "".join(f"{line}\n" for line in lines).encode()
    with writing(run, output, ELSEWHERE):
        write_bytes(output, content, overwrite=options.overwrite)
    say(f"{counted(len(lines), 'sentence')} drawn from the model")
    show(output)
    return 0


def _names(output: str | None, kinds: Collection[str]) -> bool:
    """Whether an output is named, and is one of these kinds."""
    return output is not None and Path(output).suffix.lower() in kinds


def compare(parser: ArgumentParser, given: Namespace) -> int:
    """Compares runs with the first of them."""
    options = _complete_options(parser, given)
    output = output_file(options, Path("comparison.png"), PICTURES)
    runs = [load_run(path, trust=trust_of(given, path)) for path in options.runs]
    for run in runs:
        require_no_data(output, run.config)
    comparison = Comparison.of(runs)

    def draw() -> None:
        with (
            writing(None, output, ELSEWHERE),
            replacing(output, overwrite=options.overwrite) as file,
        ):
            comparison_plot(comparison).savefig(file)

    keep_and_show(comparison, draw)
    show(f"\npicture: {output}")
    return 0


def export(parser: ArgumentParser, given: Namespace) -> int:
    """Writes a run's draws, data and log p(x) for ArviZ."""
    options, run, data = _open_run(parser, given)
    output = output_file(options, run.path / POSTERIOR)
    require_no_data(output, run.config)
    exported = to_arviz(
        run.model, run.guide, data.test, num_samples=options.num_samples, seed=options.seed
    )
    content = as_netcdf(exported, run.weights_sha256)
    with writing(run, output, ELSEWHERE):
        write_bytes(output, content, overwrite=options.overwrite)
    show(output)
    return 0


def _complete_options(parser: ArgumentParser, given: Namespace) -> Namespace:
    """The options given, and the defaults of the others."""
    options = parser.get_defaults()
    options.update(given)
    return options


def _open_run(parser: ArgumentParser, given: Namespace) -> tuple[Namespace, Run, Data[Any]]:
    """The options of a command that takes a run, the run, and its data."""
    options, run = _options_and_run(parser, given)
    if options.get("text") is None:
        if given.get("too_long") is not None:
            raise UsageError(
                "--too_long is of the lines of --text FILE: leave it out, or give a text"
            )
        return options, run, _rows_of_run(options, run)
    _require_writable(options, run)
    return options, run, read_test_rows(run, options.text, cut=options.too_long == "cut")


def _options_and_run(parser: ArgumentParser, given: Namespace) -> tuple[Namespace, Run]:
    options = _complete_options(parser, given)
    return options, load_run(options.run, trust=trust_of(given, options.run), results=False)


def _rows_of_run(options: Namespace, run: Run) -> Data[Any]:
    """The data of a run that may be written, or of which nothing is."""
    _require_writable(options, run)
    sentences = (run.path / VOCABULARY).is_file()
    data = load_rows(checked(run.path, run.config), options.data_dir, sentences=sentences)
    warn_of_other_rows(run.path, data)
    return data


def _require_writable(options: Namespace, run: Run) -> None:
    """Raises an error now, not after the work, if the result is to go into a run that may not be written."""
    if options.get("output") is None:
        require_writable(run.path, ELSEWHERE if "output" in options else None)


def _require_results(options: Namespace, *files: Path) -> None:
    """Raises an error now, not after the work, if a result is to be written where there is something else."""
    for file in files if options.overwrite else ():
        if not file.is_symlink():  # a link is replaced, not what it leads to
            require_file(file)


def _anneal(run: Run, guide: Program | None, x: Batch, options: Namespace) -> Annealed:
    """log p(x) by annealed importance sampling, from the guide or, if that is None, from the prior."""
    return annealed_importance_sampling(
        run.model,
        guide,
        x,
        num_chains=options.num_chains,
        num_steps=options.num_steps,
        seed=options.seed,
        progress=False if options.quiet else None,
    )


def _first_rows(data: Data[Any], options: Namespace) -> Batch:
    """The test rows, or the first of them."""
    if options.max_rows is not None and options.max_rows < 1:
        raise UsageError(f"--max_rows must be at least 1, got {options.max_rows}")
    return take_rows(data.test, slice(options.max_rows))


def _to_device(run: Run, device: str, x: Batch) -> None:
    """Moves the pair of a run to the device of this name; with `auto`, to one on which it runs."""
    pair = Pair.of(run.model, run.guide)
    pair.to(resolve_device(device_for(pair, Batches(x, pair), device)))
