"""Can colorization be used to learn segmentation? What latent segments carry, and whether people see them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from colorization_baselines import (
    SEGMENTERS,
    Histogram,
    MeanChroma,
    NearestPatch,
    best_of,
    compared,
    one_segment,
)
from colorization_points import Point
from matplotlib.figure import Figure
from progress import Table, require_list, start

from ppl_vae.data import PhotoData, Photos, load_photos
from ppl_vae.runtime import replacing, require_count, require_output
from ppl_vae.stats import Estimate

TITLES = {
    "palette": "(a) palette",
    "latent": "(b) latent colors",
    "luma": "(c) local luma",
    "picture": "(d) all of x",
}
MARKERS = {"palette": "o", "latent": "D", "luma": "s", "picture": "^"}
HUES = {"palette": "#0072B2", "latent": "#009E73", "luma": "#CC79A7", "picture": "#D55E00"}
BESIDE = {"palette": (6, 5), "latent": (6, -14), "luma": (-24, 5), "picture": (-24, -14)}
"""Where a point's weight of the KL stands, so that those of points at one place do not hide each other."""

GRAY = "#8C8C8C"

BASE = Point("palette")

ABLATIONS: dict[str, Mapping[str, Any]] = {
    "4 segments": {"segments": 4},
    "16 segments": {"segments": 16},
    "chain along lines": {"rung": "lines"},
    "tree over superpixels": {"rung": "tree"},
    "tree over superpixels, 4 segments": {"rung": "tree", "segments": 4},
    "32 segments": {"segments": 32},
    "Potts grid": {"rung": "potts"},
    "colors that start apart at random": {"start": "apart"},
    "four times as long": {"epochs": 16},
    "less context (widths 16, 32)": {"widths": (16, 32)},
    "photos of twice the size": {"longest": 240, "patch": 96, "batch_size": 1, "patches": 500},
}
"""What is changed of a model, by what it is called."""

CHANGED = {
    "palette": tuple(ABLATIONS),
    "latent": tuple(ABLATIONS)[:5],
}
"""Of which models."""

NUMBERS = {
    "nats": "nats per pixel",
    "bits": "bits per pixel",
    "information": "I(z; y given x), bits",
    "used": "used segments",
    "rand": "Rand index by gray",
    "rand_with_colors": "with colors",
    "variation": "variation of information",
    "covering": "covering",
    "psnr_mean": "PSNR of mean, dB",
    "psnr_mode": "of mode",
    "rmse_mean": "RMSE of mean",
    "rmse_mode": "of the mode",
}
"""What is measured, and its title."""


def points_of(
    base: Point, betas: Sequence[float], seeds: Sequence[int], ablations: bool
) -> Iterator[Point]:
    """All models that are trained, the most important ones first."""
    for seed in seeds:
        for colors in TITLES:
            yield replace(base, colors=colors, seed=seed)
    for seed in seeds:
        yield replace(base, colors="picture", segments=1, seed=seed)
        yield replace(base, colors="mixture", seed=seed)
    for seed in seeds:
        for beta in betas:
            for colors in TITLES:
                if beta != 1.0:
                    yield replace(base, colors=colors, beta=beta, seed=seed)
    for seed in seeds if ablations else ():
        for colors, changes in CHANGED.items():
            for changed in changes:
                yield replace(base, colors=colors, seed=seed, **ABLATIONS[changed])


def found_of(
    points: Sequence[Point], runs: Path, photos: Mapping[int, PhotoData]
) -> dict[str, Estimate] | None:
    """Means of each number over photos, one for each training that is there; None if there is none.

    Args:
        points: One for each seed.
        runs: Folder of the trainings.
        photos: By their longest side.
    """
    rows = []
    for point in points:
        scores = point.scores(photos[point.longest], runs / point.name)
        if scores is not None:
            found = scores["mean"]
            nats = math.log(2) * found["bits"]["mean"]
            rows.append({**found, "nats": {"mean": nats}, "used": {"mean": found["used_segments"]}})
    if not rows:
        return None
    return {
        name: Estimate(torch.tensor([float(row[name]["mean"]) for row in rows]), "")
        for name in NUMBERS
    }


def main(
    data: str = "skimage",
    runs: Path = Path("colorization"),
    betas: tuple[float, ...] = (0.1, 0.3, 1, 3, 10),
    num_seeds: int = 3,
    base: Point = BASE,
    ablations: bool = True,
    train: bool = True,
    most_photos: int | None = None,
    output: Path = Path("colorization.png"),
    overwrite: bool = False,
) -> None:
    """Trains models of the colors of photos, and compares their segments with those of people.

    All numbers are of photos that no model was trained on: means over them, with standard errors over seeds for
    what is trained, and over photos for what is not.

    Args:
        data: Photos, as for `ppl_vae.data.load_photos`.
        runs: Folder of the trainings: those that are there are not done again, and one that was stopped goes
            on.
        betas: Weights of the KL.
        num_seeds: Trainings of each model.
        base: What all models share.
        ablations: Whether the palette is trained with other settings, too.
        train: Whether what is missing is trained; if not, the tables are of what is there.
        most_photos: Only the first so many photos of each part.
        output: Where to save the picture.
        overwrite: Whether a picture that is there is replaced.
    """
    require_output(output, overwrite=overwrite)
    require_list("--betas", betas, may_be_empty=True)
    require_count("--num_seeds", num_seeds)
    seeds = range(num_seeds)
    points = list(points_of(base, betas, seeds, ablations))
    photos = {
        longest: _first(load_photos(data, longest=longest), most_photos)
        for longest in dict.fromkeys(point.longest for point in points)
    }
    table = Table(["model", *NUMBERS.values()], steps=len(points))
    for point in points if train else ():
        point.train(photos[point.longest], runs / point.name)
        table.step(point.name)
    of_base = photos[base.longest]
    table.head()
    rows = {
        **{
            title: [replace(base, colors=name, seed=s) for s in seeds]
            for name, title in TITLES.items()
        },
        "the same U-Net, one component": [
            replace(base, colors="picture", segments=1, seed=s) for s in seeds
        ],
    }
    mixture = f"the same U-Net, a mixture of {base.segments} without z"
    rows[mixture] = [replace(base, colors="mixture", seed=s) for s in seeds]
    for title, of_row in rows.items():
        found = found_of(of_row, runs, photos)
        _row(table, _of_seeds(title, found, num_seeds), found)
    for title, baseline in (
        ("mean chroma", MeanChroma(of_base.train)),
        ("histogram of chroma given luma", Histogram(of_base.train)),
        ("nearest patch", NearestPatch(of_base.train)),
    ):
        measured = [baseline(photo) for photo in of_base.test]
        bits = Estimate(torch.tensor([each.bits for each in measured]), "")
        psnr = Estimate(torch.tensor([_decibels(each.rmse) for each in measured]), "")
        rmse = Estimate(torch.tensor([each.rmse for each in measured]), "")
        nats = Estimate(torch.tensor([math.log(2) * each.bits for each in measured]), "")
        _row(table, title, {"nats": nats, "bits": bits, "psnr_mean": psnr, "rmse_mean": rmse})
    lines = _segment_rows(table, of_base)
    print()
    of_betas = Table(["model", "beta", *list(NUMBERS.values())[1:8]], steps=1)
    of_betas.head()
    curves: dict[str, list[tuple[float, Mapping[str, Estimate]]]] = {}
    for name, title in TITLES.items():
        for beta in sorted(betas):
            found = found_of(
                [replace(base, colors=name, beta=beta, seed=s) for s in seeds], runs, photos
            )
            if found is not None:
                of_betas.row([_of_seeds(title, found, num_seeds), f"{beta:g}", *_cells(found)[1:8]])
                curves.setdefault(name, []).append((beta, found))
    if ablations:
        print()
        other = Table(["model, with", *NUMBERS.values()], steps=1)
        other.head()
        for name, changes in CHANGED.items():
            for title in changes:
                changed = [replace(base, colors=name, seed=s, **ABLATIONS[title]) for s in seeds]
                found = found_of(changed, runs, photos)
                _row(other, _of_seeds(f"{TITLES[name][:3]}, {title}", found, num_seeds), found)
    with replacing(output, overwrite=overwrite) as file:
        picture(curves, lines).savefig(file)
    print(f"\nThe picture is {output}.")


def _of_seeds(title: str, found: Mapping[str, Estimate] | None, num_seeds: int) -> str:
    """A title that says how many of the trainings are there, if some are missing."""
    there = len(found["bits"].values) if found else 0
    return title if there in (0, num_seeds) else f"{title} ({there} of {num_seeds} seeds)"


def _first(photos: PhotoData, most: int | None) -> PhotoData:
    return photos if most is None else PhotoData(photos.train[:most], photos.test[:most])


def _decibels(rmse: float) -> float:
    """The PSNR; without an error it is infinite."""
    return 20 * math.log10(255 / rmse) if rmse else math.inf


def _cells(found: Mapping[str, Estimate]) -> list[str]:
    places = {
        "used": ".1f",
        **dict.fromkeys(("psnr_mean", "psnr_mode", "rmse_mean", "rmse_mode"), ".2f"),
    }
    return [found[n].numbers(places.get(n, ".3f")) if n in found else "" for n in NUMBERS]


def _row(table: Table, title: str, found: Mapping[str, Estimate] | None) -> None:
    if found is not None:
        table.row([title, *_cells(found)])


def _segment_rows(table: Table, photos: PhotoData) -> dict[str, tuple[Estimate, bool]]:
    """Rows of ways of segmenting that learn nothing: their Rand indices, and whether they see the colors."""
    if all(photo.segments is None for photo in photos.test):
        return {}
    with_segments = Photos([photo for photo in photos.test if photo.segments is not None])
    chosen_on = Photos([photo for photo in photos.train if photo.segments is not None][:40])
    found = {}
    _row(table, "one segment", _named(compared(one_segment, with_segments), colors=False))
    here = "" if len(chosen_on) else " (chosen on these photos)"
    for name in SEGMENTERS:
        value, way = best_of(name, chosen_on if len(chosen_on) else with_segments)
        numbers = compared(way, with_segments)
        colors = "colors" in name
        found[name] = numbers["rand"], colors
        _row(table, f"{name}, {value}{here}", _named(numbers, colors=colors))
    return found


def _named(numbers: Mapping[str, Estimate], colors: bool) -> dict[str, Estimate]:
    rand = "rand_with_colors" if colors else "rand"
    return {
        rand: numbers["rand"],
        "variation": numbers["variation"],
        "covering": numbers["covering"],
    }


PANELS = {"rand": "segments of the gray picture", "rand_with_colors": "segments given the colors"}


def picture(
    curves: Mapping[str, Sequence[tuple[float, Mapping[str, Estimate]]]],
    lines: Mapping[str, tuple[Estimate, bool]],
) -> Figure:
    """The Rand index of segments against what the colors say of them, for each view of the decoder.

    Args:
        curves: By decoder, for each weight of the KL, what was measured.
        lines: By way of segmenting, its Rand index, and whether it sees the colors.
    """
    figure = Figure(figsize=(12, 5.6), dpi=100, layout="constrained")
    for axes, (number, title) in zip(
        figure.subplots(1, 2, sharex=True, sharey=True), PANELS.items(), strict=True
    ):
        for name, points in curves.items():
            _curve(
                axes, name, [(beta, found["information"], found[number]) for beta, found in points]
            )
        for name, (value, sees_colors) in lines.items():
            if sees_colors == (number == "rand_with_colors"):
                _line(axes, name.partition(" (")[0], value.mean)
        axes.set_title(title, fontsize=15)
        axes.set_xlabel("I(z; y | x), bits per pixel", fontsize=14)
        axes.tick_params(labelsize=12)
        axes.spines[["top", "right"]].set_visible(False)
    first, second = figure.axes
    first.set_ylabel("adjusted Rand index with people's segments", fontsize=14)
    if curves:
        second.legend(
            title="(numbers: weight of the KL)", fontsize=12, frameon=False, loc="lower right"
        )
    return figure


def _curve(axes: Any, name: str, points: Sequence[tuple[float, Estimate, Estimate]]) -> None:
    xs, ys = [x for _, x, _ in points], [y for _, _, y in points]
    x_errors, y_errors = (
        [0.0 if math.isnan(e.standard_error) else e.standard_error for e in column]
        for column in (xs, ys)
    )
    axes.errorbar(
        *([each.mean for each in column] for column in (xs, ys)),
        xerr=x_errors,
        yerr=y_errors,
        fmt=f"{MARKERS[name]}-",
        color=HUES[name],
        capsize=3,
        markersize=8,
        label=TITLES[name],
    )
    for beta, x, y in points:
        axes.annotate(
            f"{beta:g}",
            (x.mean, y.mean),
            xytext=BESIDE[name],
            textcoords="offset points",
            fontsize=10,
            color=HUES[name],
        )


def _line(axes: Any, name: str, value: float) -> None:
    axes.axhline(value, color=GRAY, linewidth=0.9, linestyle=":", zorder=-1)
    axes.annotate(
        name,
        (0.0, value),
        xycoords=("axes fraction", "data"),
        xytext=(4, 3),
        textcoords="offset points",
        fontsize=10,
        color=GRAY,
    )


if __name__ == "__main__":
    tiny = {"patches": 16, "patch": 32, "epochs": 1, "widths": (4, 6), "longest": 60, "segments": 3}
    start(
        main,
        quick={
            **{f"base.{name}": value for name, value in tiny.items()},
            **{"base.colors": "palette", "betas": (1.0, 3.0), "num_seeds": 1, "ablations": False},
            **{"most_photos": 2, "runs": "colorization_quick", "output": "colorization_quick.png"},
        },
    )
