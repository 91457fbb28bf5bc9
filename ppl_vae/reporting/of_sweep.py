"""The page of a sweep."""

from __future__ import annotations

import io
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ppl_vae.pairs import AT_POINT, ELBO_MEASURE
from ppl_vae.plots import dark_paper, sweep_metrics, sweep_plane
from ppl_vae.reporting.frame import framed
from ppl_vae.reporting.markup import (
    Markup,
    element,
    folded,
    joined,
    listed,
    paragraph,
    section,
    table,
    to_type,
)
from ppl_vae.reporting.pictures import Caption, figure, in_grid, unread_told
from ppl_vae.reporting.plane import has_repetitions, plane
from ppl_vae.runs import DIAGNOSIS, read_result
from ppl_vae.runtime import CorruptFileError, as_typed
from ppl_vae.sweeps import (
    METRICS,
    SPEC,
    Backdrop,
    SweepFolder,
    SweepPicture,
    SweepRun,
    SweepTable,
    SweptPoint,
    read_spec,
    wrong_entropy,
)

_REPEATED = {
    "rate_distortion": " Bars are two standard errors over seeds.",
    "metrics": " Bars are two standard errors; small points are single seeds. Where bars overlap, the "
    "difference may be chance.",
}
"""What is added where points have several seeds."""

_CAPTIONS = {
    "rate_distortion": Caption(
        "Rate, distortion and ELBO",
        "The same plane on paper.",
    ),
    "metrics": Caption(
        "Each number against the option",
        "Means over seeds.",
    ),
}

_THE_HIGHER_THE_BETTER = (ELBO_MEASURE.name, AT_POINT.name, "log_likelihood")
"""Metrics whose highest value is told, of those that a sweep has."""

_OF_OTHER_UNITS = ("active_units", "unreliable", "seconds")


def sweep_page(path: Path, version: str) -> str:
    """The page of a sweep, of what its runs have found so far.

    Args:
        path: The folder, as it is to be typed.
        version: That of ppl_vae.
    """
    spec = read_spec(path / SPEC)
    runs = spec.runs()
    folder = SweepFolder(path, runs, lenient=True)
    found = SweepTable.of(folder, runs)
    name = path.resolve().name
    backdrop = _backdrop(path, spec.picture, found)
    drawn, script = plane(found, backdrop)
    parts = [
        section(
            "What was found",
            *_headline(found),
            *_causes(folder, runs, found),
            *_undone(found, path),
            *unread_told([*folder.unread, *found.unread]),
        ),
        section("Means over seeds", *_means(found)),
        section("Rate and distortion", *drawn),
        section("Pictures", in_grid(dict(_pictures(found, backdrop)))),
        section("Runs", _runs(found)),
        section("How it was made", *_made(path, spec.text)),
    ]
    made = time.strftime("%Y-%m-%d %H:%M")
    below = paragraph(
        f"Made by `ppl-vae report` (ppl_vae {version}) on {made}. Values are in nats per row, means over seeds "
        "± one standard error, where nothing else is said."
    )
    about = f"A sweep over {_listed(found.varying) or 'seeds'}, by ppl_vae"
    above = joined([element("h1", name), paragraph(about, kind="about")])
    return framed(name, above, parts, below, scripts=[script] if script else [])


def _listed(words: Sequence[str]) -> str:
    *others, last = words or [""]
    return f"{', '.join(others)} and {last}" if others else last


def _headline(found: SweepTable) -> Iterator[Markup]:
    done = [point for point in found.points if point.values["elbo"]]
    count = Counter(row["state"] for row in found.rows)
    ended = f"{count['done']} of {len(found.rows)} runs have ended well"
    yield paragraph(f"{ended}, at {len(done)} of {len(found.points)} points.", kind="headline")
    if len(done) < 2:
        return
    best = [
        f"The highest {METRICS[metric]} is {point.estimate(metric).numbers('.2f')} nats, at "
        f"{_named(point, found)}"
        for metric in _THE_HIGHER_THE_BETTER
        if (point := _best(done, metric)) is not None
    ]
    if not best:
        return
    yield listed(best)
    yield paragraph(
        "Differences of less than two standard errors may be chance; `ppl-vae compare` compares two runs row "
        "by row.",
        kind="soft",
    )


def _best(points: Sequence[SweptPoint], metric: str) -> SweptPoint | None:
    """The point with the highest mean; None if none has one."""
    means = {i: point.estimate(metric).mean for i, point in enumerate(points)}
    known = {i: mean for i, mean in means.items() if mean == mean}
    return points[max(known, key=lambda i: known[i])] if known else None


def _named(point: SweptPoint, found: SweepTable) -> str:
    return point.short(found.varying) or "the only point"


def _causes(folder: SweepFolder, runs: Sequence[SweepRun], found: SweepTable) -> Iterator[Markup]:
    """What the diagnoses of the runs of each point say."""
    rows = []
    for point in found.points:
        of_point = [run for run in runs if run.varied == point.varied]
        told = Counter[str]()
        done = 0
        for run in of_point:
            if folder.state(run) != "done":
                continue
            try:
                diagnosis = read_result(folder.of(run) / DIAGNOSIS) or {}
            except (OSError, CorruptFileError):  # which the table tells
                continue
            done += 1
            told.update(set(_names(diagnosis)))
        words = ", ".join(
            f"{name} ({number} of {done} runs)" for name, number in told.most_common()
        )
        cell = words or ("nothing" if done else "not known yet")
        rows.append([_named(point, found), cell])
    yield paragraph("What the diagnoses of the runs name, by point:")
    head = ["point", "what is wrong"]
    yield table(head, rows, "What the diagnoses name", words=[1])


def _names(diagnosis: Mapping[str, Any]) -> Iterator[str]:
    """The causes of unused dimensions, and the other faults, by name."""
    for part in ("causes", "faults"):
        given = diagnosis.get(part)
        for name, value in given.items() if isinstance(given, Mapping) else ():
            if part == "faults":
                yield str(name)
            elif isinstance(value, Mapping):
                yield f"unused dimensions: {value.get('name')}"


def _undone(found: SweepTable, path: Path) -> Iterator[Markup]:
    """Runs that have failed, or have not ended."""
    failed = [row for row in found.rows if row["state"] == "failed"]
    left = [row for row in found.rows if row["state"] in ("missing", "interrupted")]
    for row in failed:
        yield paragraph(element("b", f"{row['run']} failed: "), row["error"], kind="warn")
    if left:
        names = ", ".join(f"{row['run']} ({row['state']})" for row in left[:8])
        more = f" and {len(left) - 8} more" if len(left) > 8 else ""
        yield paragraph(element("b", "Not done: "), f"{names}{more}.", kind="warn")
    if left or failed:
        again = " --retry_failed" if failed else ""
        yield paragraph("This does what is missing:")
        yield to_type(f"ppl-vae sweep {as_typed(path / SPEC)} --sweep_dir {as_typed(path)}{again}")


def _means(found: SweepTable) -> Iterator[Markup]:
    lines = [line.strip("|").split(" | ") for line in found.to_markdown().splitlines()]
    head, _, *rows = [[cell.strip().replace("\\|", "|") for cell in line] for line in lines]
    yield table(head, rows, "Means over seeds")
    in_nats = _listed([text for name, text in found.metrics.items() if name not in _OF_OTHER_UNITS])
    yield paragraph(
        f"Means over seeds ± one standard error. {in_nats} are in nats per row; unreliable is the share of the "
        "rows whose log p(x) is not to be trusted."
    )


def _backdrop(path: Path, picture: SweepPicture, found: SweepTable) -> Backdrop:
    """What is drawn behind the points; without what is wrong, and without curves that cannot be read."""
    if wrong_entropy(picture.entropy, found):
        picture = replace(picture, entropy=None)
    try:
        return Backdrop.of(path, picture)
    except (OSError, CorruptFileError):
        return Backdrop(picture.entropy, picture.entropy_bound)


def _pictures(found: SweepTable, backdrop: Backdrop) -> Iterator[tuple[str, Markup]]:
    repeated = has_repetitions(found)
    draws: dict[str, Callable[[SweepTable], Figure | None]] = {
        "rate_distortion": partial(sweep_plane, backdrop=backdrop),
        "metrics": sweep_metrics,
    }
    for name, draw in draws.items():
        light = draw(found)
        if light is None:
            continue
        with dark_paper():
            dark = draw(found)
            night = None if dark is None else _as_png(dark)
        caption = _CAPTIONS[name]
        if repeated:
            caption = caption._replace(sentence=caption.sentence + _REPEATED[name])
        yield name, figure(_as_png(light), night, caption)


def _as_png(drawn: Figure) -> bytes:
    content = io.BytesIO()
    drawn.savefig(content, format="png")
    return content.getvalue()


def _runs(found: SweepTable) -> Markup:
    head = ["run", "state", *found.metrics.values()]
    rows = [
        [row["run"], row["state"], *(_number(row[name]) for name in found.metrics)]
        for row in found.rows
    ]
    return folded(f"All {len(rows)} runs", table(head, rows, "Runs of the sweep", words=[1]))


def _number(value: float) -> str:
    return "-" if value != value else f"{value:.2f}"


def _made(path: Path, text: str) -> Iterator[Markup]:
    yield element("dl", element("dt", "folder"), element("dd", str(path.resolve())))
    yield paragraph("The same sweep, which does what is missing:")
    yield to_type(f"ppl-vae sweep {as_typed(path / SPEC)} --sweep_dir {as_typed(path)}")
    yield folded("Its description (sweep.yaml)", element("pre", text, tabindex=0))
