"""The page of a run."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from ppl_vae.pairs import HELD_OUT, Measure, measure_in, measure_of_result
from ppl_vae.reporting.frame import framed
from ppl_vae.reporting.markup import (
    Markup,
    element,
    folded,
    joined,
    paragraph,
    section,
    to_type,
)
from ppl_vae.reporting.numbers import (
    Row,
    best_epoch,
    epoch_table,
    number_table,
    of_annealed,
    of_colors,
    of_diagnosis,
    of_evaluation,
    of_gaps,
    title_of_worst,
    worst_rows,
)
from ppl_vae.reporting.pictures import TRAINING, Found, in_grid, pictures_of, unread_told
from ppl_vae.reporting.verdict import codebook_table, doubts, latent_table, verdict
from ppl_vae.runs import (
    ANNEALED,
    CHECKPOINTS,
    COLORS,
    CONFIG,
    DIAGNOSIS,
    EVALUATION,
    FIT,
    GAPS,
    METRICS,
    WEIGHTS,
    command_again,
    made_by,
    read_config,
    read_csv,
    read_history,
    read_result,
    read_rows,
    results_of_other_weights,
    what_history_lacks,
)
from ppl_vae.runtime import MOST_YAML, CorruptFileError, as_typed, content_digest, read_text

T = TypeVar("T")

_ADDED_BY = {
    EVALUATION: "ppl-vae evaluate",
    DIAGNOSIS: "ppl-vae diagnose",
    ANNEALED: "ppl-vae evaluate --method ais",
    GAPS: "ppl-vae gaps",
}


@dataclass
class Content:
    """What of a run is there and can be read.

    Attributes:
        run: Its folder, as it is typed.
        config: The content of config.yaml.
        weights: The digest of its weights; None if there are none.
        stale: The results and pictures of other weights, each with the command that makes it again.
        unread: A line for each file that is there and cannot be read.
    """

    run: Path
    config: Mapping[str, Any]
    weights: str | None = None
    stale: Mapping[str, str] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, run: Path) -> Content:
        """Reads config.yaml, and which weights there are.

        Raises:
            FileNotFoundError: There is no run.
            CorruptFileError: Its config.yaml cannot be read.
        """
        content = cls(run, read_config(run))
        content.weights = content.read(lambda: content_digest(run / WEIGHTS))
        if content.weights is not None:
            content.stale = results_of_other_weights(run, content.weights)
        return content

    def read(self, reader: Callable[[], T]) -> T | None:
        """What is read from a file; None if it is not there or cannot be read, which is noted."""
        try:
            return reader()
        except FileNotFoundError:
            return None
        except (OSError, CorruptFileError) as error:
            self.unread.append(str(error))
            return None

    def result(self, name: str) -> dict[str, Any] | None:
        """A result of the weights that are there."""
        return None if name in self.stale else self.read(lambda: read_result(self.run / name))

    def history(self) -> list[dict[str, float]]:
        """The epochs, up to those of the weights."""
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore"
            )  # of epochs behind the weights: the page says what is missing
            if self.weights is None:
                return self.read(lambda: read_csv(self.run / METRICS)) or []
            found = self.read(lambda: read_history(self.run))
        if found is not None and (lacks := self.read(lambda: what_history_lacks(self.run))):
            keeps = "data" in self.config and (self.run / CHECKPOINTS).is_dir()
            again = command_again(self.config, self.run)
            self.unread.append(f"{lacks}{f'; `{again}` writes it again' * keeps}")
        return found or []


def run_page(run: Path, version: str) -> str:
    """The page of a run, of what is in its folder.

    Args:
        run: The folder, as it is to be typed.
        version: That of ppl_vae.
    """
    content = Content.of(run)
    evaluation, diagnosis = content.result(EVALUATION), content.result(DIAGNOSIS)
    rows = None if evaluation is None else content.read(lambda: read_rows(run))
    history = content.history()
    pictures = pictures_of(run, content.stale)
    others = {n: f for n, f in pictures.figures.items() if n not in TRAINING}
    name = run.resolve().name
    # EM has no diagnosis at its end: what it warns of is the first thing to know.
    first = made_by(content.config) == "em"
    results = _results(content, evaluation, diagnosis, history)
    doubted = doubts([found for found, _ in results])
    parts = [
        section("Warnings and notes", doubted if first else Markup("")),
        section("Diagnosis", _diagnosis(content, diagnosis)),
        section("Numbers", _numbers(results), Markup("") if first else doubted),
        section("Training", _training(history, pictures)),
        section("Pictures", in_grid(others) if others else _no_pictures(content)),
        section("Tables", _tables(diagnosis, rows, measure_of_result(evaluation))),
        section("How it was made", _made(content, history)),
        section("What is not shown", *_missing(content, pictures, evaluation, diagnosis)),
    ]
    return framed(
        name,
        joined([element("h1", name), paragraph(_about(content), kind="about")]),
        parts,
        _footer(version),
        content.weights,
    )


def _about(content: Content) -> str:
    """What was trained on what."""
    names = [_class_of(content.config.get(role)) for role in ("model", "guide")]
    pair = " with ".join(filter(None, names))
    data = content.config.get("data")
    return f"{pair or 'A pair'}{f' on {data}' if data is not None else ''}, by ppl_vae"


def _class_of(spec: object) -> str:
    path = spec.get("class_path") if isinstance(spec, Mapping) else None
    return path.rpartition(".")[2] if isinstance(path, str) else ""


def _diagnosis(content: Content, diagnosis: Mapping[str, Any] | None) -> Markup:
    if diagnosis is not None:
        return verdict(diagnosis, content.run)
    if content.weights is None:
        return joined(_unfinished(content))
    return joined(
        [
            paragraph("This run has no diagnosis that can be shown. This adds one:"),
            _adding(content, DIAGNOSIS),
        ]
    )


def _unfinished(content: Content) -> list[Markup]:
    """Of a run without weights: that its training has not ended, and how it goes on."""
    again = command_again(content.config, content.run)
    goes_on = "--resume" in again
    finishes = "This finishes it, from its last checkpoint:" if goes_on else "This makes it anew:"
    return [
        paragraph("This run is not finished: it has no weights.", kind="headline"),
        paragraph(f"Its training goes on, or was interrupted. {finishes}"),
        to_type(again),
    ]


def _adding(content: Content, name: str) -> Markup:
    """The command that adds a result."""
    there = (content.run / name).exists()
    again = " --overwrite" if there else ""
    return to_type(f"{_ADDED_BY[name]} {as_typed(content.run)}{again}")


def _results(
    content: Content,
    evaluation: Mapping[str, Any] | None,
    diagnosis: Mapping[str, Any] | None,
    history: Sequence[Mapping[str, float]],
) -> list[tuple[Mapping[str, Any], Callable[[Mapping[str, Any]], Iterable[Row]]]]:
    """The results that are there, each with what makes rows of its numbers."""
    known = (found.get("beta") for found in (diagnosis, *history[-1:]) if found is not None)
    beta = next((float(b) for b in known if isinstance(b, int | float) and math.isfinite(b)), 1.0)
    given = (
        (content.result(FIT), lambda found: ()),  # texts alone
        (evaluation, partial(of_evaluation, beta=beta)),
        (diagnosis, of_diagnosis),
        (content.result(ANNEALED), of_annealed),
        (content.result(GAPS), of_gaps),
        (content.result(COLORS), of_colors),
    )
    return [(found, of) for found, of in given if found is not None]


def _numbers(
    results: Sequence[tuple[Mapping[str, Any], Callable[[Mapping[str, Any]], Iterable[Row]]]],
) -> Markup:
    return number_table([row for found, of in results for row in of(found)])


def _training(history: Sequence[Mapping[str, float]], pictures: Found) -> Markup:
    if not history:
        return joined(pictures.figures[name] for name in TRAINING if name in pictures.figures)
    seconds = history[-1].get("seconds")
    unit = "epoch" if "epoch" in history[-1] else "iteration"
    told = f"{len(history)} {unit}{'' if len(history) == 1 else 's'}"
    if seconds is not None:
        told = f"{told} in {seconds:.0f} s"
    best = best_epoch(history)
    if best is not None:
        what = measure_in(history, HELD_OUT).text
        told = f"{told}. The best held-out {what} is that of epoch {history[best].get('epoch', best + 1):.0f}"
    shown = {name: pictures.figures[name] for name in TRAINING if name in pictures.figures}
    below = element("div", *shown.values(), element("div", epoch_table(history)), class_="beside")
    return joined([paragraph(f"{told}."), below])


def _no_pictures(content: Content) -> Markup:
    if content.weights is None or "data" not in content.config:
        return Markup("")
    again = command_again(content.config, content.run)
    return joined(
        [paragraph("This run has no pictures that can be shown. This draws them:"), to_type(again)]
    )


def _tables(
    diagnosis: Mapping[str, Any] | None,
    rows: Mapping[str, Sequence[Any]] | None,
    measure: Measure,
) -> Markup:
    latents = Markup("") if diagnosis is None else latent_table(diagnosis)
    worst = Markup("") if rows is None else worst_rows(rows, measure)
    told = []
    codes = Markup("") if diagnosis is None else codebook_table(diagnosis)
    if codes:
        told += [
            element("h3", "Codebooks"),
            paragraph(
                "Error: the quantization error, as a share of the variance of the encoder's vectors. Lag: the "
                "part of it by which codes are away from the means of their vectors."
            ),
            codes,
        ]
    elif latents:
        told += [
            element("h3", "Latent dimensions"),
            paragraph(
                "Those that take the most nats first. A dimension is active if its posterior means vary from "
                "row to row."
            ),
            latents,
        ]
    if worst:
        told += [
            element("h3", title_of_worst(rows, measure)),
            paragraph("The numbers of rows count from 0, nats; evaluation.csv has all of them."),
            worst,
        ]
    return joined(told)


def _made(content: Content, history: Sequence[Mapping[str, float]]) -> Markup:
    config, run = content.config, content.run
    maker = made_by(config)
    facts: list[tuple[str, object]] = [("folder", str(run.resolve()))]
    if "made_by" in config or "data" in config:
        facts.append(("command", f"ppl-vae {maker}"))
    if "refit_of" in config:
        facts.append(("pair of" if maker == "refit-prior" else "model of", config["refit_of"]))
    if config.get("start_from") is not None:
        facts.append(("started from", config["start_from"]))
    facts += [(name, config[name]) for name in ("data", "seed", "device") if name in config]
    facts.append(("begun", _date(run / CONFIG)))
    if content.weights is not None:
        facts += [("weights of", _date(run / WEIGHTS)), ("their digest", content.weights[:16])]
    versions = config.get("versions")
    if isinstance(versions, Mapping):
        facts.append(("versions", ", ".join(f"{name} {v}" for name, v in versions.items())))
    told = [element("dl", *(joined([element("dt", n), element("dd", v)]) for n, v in facts))]
    if "data" in config and maker in ("train", "em"):
        told += [
            paragraph("The same training again:"),
            to_type(f"ppl-vae {maker} --config {as_typed(run / CONFIG)}"),
        ]
    text = content.read(lambda: read_text(run / CONFIG, MOST_YAML)) or ""
    told.append(folded("All settings (config.yaml)", element("pre", text, tabindex=0)))
    return joined(told)


def _date(file: Path) -> str:
    """When a file was written, as far as the disk knows."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(file.stat().st_mtime))


def _missing(
    content: Content,
    pictures: Found,
    evaluation: Mapping[str, Any] | None,
    diagnosis: Mapping[str, Any] | None,
) -> list[Markup]:
    """What the page does not show, and why."""
    told = unread_told([*content.unread, *pictures.unread])
    for name, command in content.stale.items():
        if not name.endswith(".html"):
            said = f"{name} belongs to the weights before. This makes it again:"
            told += [paragraph(said), to_type(command)]
    if content.weights is not None and "data" in content.config:
        there = {EVALUATION: evaluation, DIAGNOSIS: diagnosis}
        for name, found in there.items():
            if found is None and name not in content.stale:
                told += [
                    paragraph(f"There is no {name} that can be read. This adds it:"),
                    _adding(content, name),
                ]
        if not (content.run / GAPS).exists():
            told += [
                paragraph(
                    "Where the bound is lost, by the family of the guide or by its network, is added by:"
                ),
                _adding(content, GAPS),
            ]
    return told


def _footer(version: str) -> Markup:
    made = time.strftime("%Y-%m-%d %H:%M")
    return paragraph(
        f"Made by `ppl-vae report` (ppl_vae {version}) on {made}. Values are in nats per row, with the "
        "standard error over rows, where nothing else is said. Dates are those of the files."
    )
