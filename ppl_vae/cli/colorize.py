"""The subcommands of `colorize`: `train`, `evaluate`, `apply`."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from jsonargparse import ArgumentParser, Namespace
from PIL import Image
from torch import Tensor

from ppl_vae.cli.common import (
    distinct_names,
    keep_and_show,
    keep_result,
    rows_of,
    say_of_other_weights,
)
from ppl_vae.cli.finish import dark_folder, told_of_training
from ppl_vae.cli.mistakes import UsageError
from ppl_vae.cli.options import actions_of
from ppl_vae.cli.output import show, warn
from ppl_vae.cli.output_files import require_not_read
from ppl_vae.cli.own_modules import trust_of
from ppl_vae.cli.report import write_report
from ppl_vae.cli.setup import Setup, checked, load_rows
from ppl_vae.cli.stages import Stages
from ppl_vae.cli.train import trained
from ppl_vae.coloring import (
    ModelOfColors,
    color_picture,
    require_few_segments,
    score_photos,
    segment_picture,
)
from ppl_vae.colors import split_colors, to_rgb
from ppl_vae.data import BrokenPhotoWarning, Photo, PhotoData, Photos, load_photos, read_photo
from ppl_vae.diagnosis import diagnose
from ppl_vae.evaluation import evaluate as evaluate_pair
from ppl_vae.models import colorization
from ppl_vae.pairs import Pair
from ppl_vae.plots import SHEET_PIXELS, contact_sheet, draw_colors, segment_colors
from ppl_vae.runs import (
    COLORS,
    PLOTS,
    REPORT,
    Run,
    RunFolder,
    load_run,
    write_results,
    write_weights,
)
from ppl_vae.runtime import (
    as_folder,
    digest,
    own_folder,
    progress_bar,
    replacing,
    require_count,
    require_file,
    require_samples,
    resolve_device,
)
from ppl_vae.training import Fit

_DRAWS_OF_A_BOUND = 10
"""Most samples of each patch where the ELBO of photos is known: more cost much time and say next to nothing."""

_ON_A_SHEET = 8
"""Photos on the contact sheet of a run."""

_ON_A_PAGE = 40
"""Photos on a contact sheet of `apply`; more take several."""


_TITLES = {
    "segments": "segments, by gray",
    "segments_with_colors": "segments, by colors",
    "mean": "mean color",
    "mode": "mode",
}
"""Titles of columns."""


def colorize(parser: ArgumentParser, given: Namespace) -> int:
    """What is typed without an action.

    Raises:
        UsageError: Always.
    """
    raise UsageError(f"ACTION is missing: choose from {', '.join(actions_of('colorize'))}")


def train(parser: ArgumentParser, given: Namespace) -> int:
    """Trains a model of colors, measures it on photos, saves and draws."""
    return trained("colorize train", parser, given, _finish, _start)


def _start(setup: Setup) -> None:
    """Lets the colors of the segments start as those of clusters of pixels.

    Raises:
        ValueError: There are more segments than the pictures that follow the training can show.
    """
    if isinstance(setup.model, ModelOfColors):
        require_few_segments(setup.model)
    if isinstance(setup.model, colorization.SegmentedColors):
        y, x = setup.data.train
        setup.model.initialize(y, x, seed=setup.config["seed"])


def _finish(run: RunFolder, setup: Setup, fitted: Fit, given: Namespace, stages: Stages) -> None:
    """Everything that follows the training of a run."""
    progress = False if given.get("quiet") else None
    told_of_training(fitted)
    photos = _photos_of(setup.data)
    seed, num_samples = setup.config["seed"], setup.config["num_samples"]
    model: Any = fitted.model
    guide = fitted.guide
    with stages.stage("saving", told=False):
        weights = write_weights(run.path, model, guide, epochs=len(fitted.history))
    with stages.stage("photos"):
        scores = score_photos(
            model, guide, photos.test, num_samples=num_samples, seed=seed, progress=progress
        )
    with stages.stage("evaluation of patches"):
        evaluation = evaluate_pair(
            *(model, guide, setup.data.test),
            num_samples=min(num_samples, _DRAWS_OF_A_BOUND) if scores.is_bound else num_samples,
            method="guide",
            seed=seed,
            progress=progress,
        )
    with stages.stage("diagnosis"):
        diagnosis = diagnose(
            *(model, guide, setup.data.test),
            evaluation=evaluation,
            fit=fitted,
            beta=fitted.beta,
            seed=seed,
            progress=progress,
        )
    folder = run.path
    with stages.stage("saving", told=False):
        write_results(
            folder,
            evaluation=evaluation,
            diagnosis=diagnosis,
            colors=scores,
            rows=rows_of(setup.data),
            weights=weights,
        )
    reported = bool(given.get("report", True))
    with stages.stage("pictures"):
        Pair.of(model, guide).to(torch.device("cpu"))
        columns, names = _sheet_of_run(cast(colorization.SegmentedColors, model), photos.test)
        failed = draw_colors(
            folder / PLOTS, fitted.history, columns, names, weights, dark_folder(folder, reported)
        )
    if reported:
        with stages.stage("report"):
            failed += write_report(folder)
    say_of_other_weights(folder, weights)
    show(scores)
    show(f"\n{diagnosis.summary()}")
    show(f"\nrun folder: {folder}\npictures:   {folder / PLOTS}")
    if reported:
        show(f"report:     {folder / REPORT}")
    for line in failed:
        warn(line)
    stages.tell()


def evaluate(parser: ArgumentParser, given: Namespace) -> int:
    """Measures a run on its test photos, or on others."""
    options, run = _opened(parser, given)
    config = checked(run.path, run.config)
    require_samples("--num_samples", options.num_samples)
    if options.longest is not None:
        require_count("--longest", options.longest, 0)
    longest = config.get("longest") if options.longest is None else options.longest or None
    if options.data is None and options.longest is None:
        photos = _photos_of(load_rows(config)).test
    elif options.data is None:
        photos = load_photos(config["data"], longest=longest).test
    else:
        photos = load_photos(options.data, longest=longest, split=False).test
        same_size = longest == config.get("longest")
        _warn_of_training_photos(config, options.data, photos if same_size else None)
    progress = False if options.quiet else None
    model: Any = run.model
    scores = score_photos(
        model,
        run.guide,
        photos,
        num_samples=options.num_samples,
        seed=options.seed,
        progress=progress,
    )
    if options.data is None and options.longest is None:
        keep_and_show(scores, lambda: keep_result(run, COLORS, options.overwrite, colors=scores))
    else:
        show(scores)
    return 0


def _warn_of_training_photos(config: Mapping[str, Any], data: str, given: Photos | None) -> None:
    """Says how many of other photos are ones that a run was trained on, by their pixels.

    Without the photos that it was trained on nothing is said. Those that cannot be read were named before, or
    are none of the photos that are measured.

    Args:
        config: The options of the run.
        data: The name of the other photos.
        given: These, if they were read at the size of the run's photos.
    """
    size = config.get("longest")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", BrokenPhotoWarning)
        try:
            trained_on = load_photos(config["data"], longest=size).train
            if given is None:
                given = load_photos(data, longest=size, split=False).test
        except (ImportError, OSError, ValueError):  # they are no longer there
            return
    known = {digest([*photo.rows]) for photo in trained_on}
    same = sum(digest([*photo.rows]) in known for photo in given)
    if same:
        warn(
            f"this run was trained on {same} of these {len(given)} photos: expect worse numbers on photos that "
            "it has not seen"
        )


def apply(parser: ArgumentParser, given: Namespace) -> int:
    """Colors photos of any size.

    Returns:
        0; 1 if a photo could not be read: it is named in a warning, and the others are written.

    Raises:
        UsageError: An option is missing, or a file is there already.
        ValueError: None of the photos can be read.
    """
    if not given.get("photos"):
        raise UsageError("PHOTO is missing: give one or more files to color")
    for name, what in (("run", "folder of a run"), ("out", "folder to write into")):
        if given.get(name) is None:
            raise UsageError(f"--{name} is missing: give the {what}")
    options, run = _opened(parser, given)
    require_count("--draws", options.draws, 0, most=100)
    longest = run.config.get("longest") if options.longest is None else options.longest
    require_count("--longest", longest or 0, 0)
    out = as_folder(options.out, "out")
    model = cast(colorization.SegmentedColors, run.model)
    files = distinct_names([Path(name) for name in options.photos])
    written = [out / f"{stem}.{name}.png" for stem in files for name in _files(options.draws)]
    written += _sheets(out, len(files))
    require_not_read("--out", written, {str(file): file for file in files.values()})
    out.parent.mkdir(parents=True, exist_ok=True)
    own_folder(out)
    for file in written:
        require_file(file)
        if file.exists() and not options.overwrite:
            raise UsageError(f"{file} is there already: choose another --out, or pass --overwrite")
    page: list[tuple[str, dict[str, Tensor | None]]] = []
    done = 0
    sheets = iter(_sheets(out, len(files)))
    with progress_bar(len(files), "coloring", "photo", False if options.quiet else None) as bar:
        for stem, path in files.items():
            try:
                rgb = read_photo(path)
            except (OSError, ValueError) as error:
                warn(f"{error}; it is left out")
            else:
                luma, chroma = split_colors(rgb)
                photo = Photo(path.name, chroma, luma)
                pictures = _pictures(model, photo, longest or None, options.draws, options.seed)
                for name in _files(options.draws):
                    picture = pictures[name]
                    assert picture is not None
                    _save(name, picture, out / f"{stem}.{name}.png", options.overwrite)
                page.append((path.name, _for_sheet(pictures)))
                done += 1
            bar.update()
            if len(page) == _ON_A_PAGE:
                _save_sheet(page, next(sheets), options.overwrite)
                page = []
    if page:
        _save_sheet(page, next(sheets), options.overwrite)
    if not done:
        raise ValueError(f"none of the {len(files)} photos can be read")
    of = "" if done == len(files) else f" of {len(files)}"
    show(f"{done}{of} photo{'' if len(files) == 1 else 's'} colored: {out}")
    return 0 if done == len(files) else 1


def _opened(parser: ArgumentParser, given: Namespace) -> tuple[Namespace, Run]:
    """The options, and the run with its model on the device."""
    options = parser.get_defaults()
    options.update(given)
    run = load_run(options.run, trust=trust_of(given, options.run), results=False)
    if not isinstance(run.model, colorization.SegmentedColors):
        raise UsageError(
            f"{options.run} is a run of {type(run.model).__name__}, which is no model of colors: give a run of "
            "`ppl-vae colorize train`"
        )
    Pair.of(run.model, run.guide).to(resolve_device(options.device))
    return options, run


def _photos_of(data: Any) -> PhotoData:
    photos = data.photos
    assert isinstance(photos, PhotoData)
    return photos


def _sheet_of_run(
    model: colorization.SegmentedColors, photos: Photos
) -> tuple[dict[str, list[Tensor | None]], list[str]]:
    """Columns and names of the contact sheet of some photos."""
    step = max(1, len(photos) // _ON_A_SHEET)
    chosen = [photos[i] for i in range(0, len(photos), step)][:_ON_A_SHEET]
    columns: dict[str, list[Tensor | None]] = {}
    for photo in chosen:
        for title, picture in _for_sheet(_pictures(model, photo, None, draws=0, seed=0)).items():
            columns.setdefault(title, []).append(picture)
    return columns, [photo.name for photo in chosen]


def _pictures(
    model: colorization.SegmentedColors, photo: Photo, longest: int | None, draws: int, seed: int
) -> dict[str, Tensor | None]:
    """Colorings and segments of a photo, and the photo, by what they are called."""
    found = color_picture(model, photo.luma, longest=longest, draws=draws, seed=seed)
    is_gray = not bool(photo.chroma.any())
    pictures: dict[str, Tensor | None] = {
        "gray": photo.luma.to(torch.uint8),
        "segments": found.segments,
        "segments_with_colors": None,
        "mean": found.rgb(found.mean),
        "mode": found.rgb(found.mode),
    }
    for i, chroma in enumerate(found.draws):
        pictures[f"draw{i + 1}"] = found.rgb(chroma)
    if not is_gray:
        pictures["segments_with_colors"] = segment_picture(
            model, photo.luma, photo.chroma, longest=longest
        )
    pictures["truth"] = None if is_gray else to_rgb(photo.luma, photo.chroma)
    return pictures


def _for_sheet(pictures: dict[str, Tensor | None]) -> dict[str, Tensor | None]:
    """The columns of a contact sheet, small enough to be kept."""
    found = {}
    for name, picture in pictures.items():
        if picture is not None:
            step = -(-max(picture.shape[:2]) // SHEET_PIXELS)
            picture = picture[::step, ::step].clone()
            picture = segment_colors(picture) if name.startswith("segments") else picture
        found[_TITLES.get(name, name)] = picture
    return found


def _files(draws: int) -> list[str]:
    """What is written of each photo."""
    return ["mean", "mode", "segments", *(f"draw{i + 1}" for i in range(draws))]


def _save(name: str, picture: Tensor, file: Path, overwrite: bool) -> None:
    """Writes a picture; segments are numbers with a palette, so that they can be read again."""
    image = Image.fromarray(picture.numpy())
    if name == "segments":
        image.putpalette(segment_colors(torch.arange(256)).flatten().tolist())
    with replacing(file, overwrite=overwrite) as temporary:
        image.save(temporary, format="PNG")


def _sheets(out: Path, count: int) -> list[Path]:
    """The contact sheets of so many photos."""
    pages = -(-count // _ON_A_PAGE)
    return [out / f"contact_sheet{f'_{i + 1}' if pages > 1 else ''}.png" for i in range(pages)]


def _save_sheet(
    page: Sequence[tuple[str, dict[str, Tensor | None]]], file: Path, overwrite: bool
) -> None:
    titles = list(page[0][1])
    columns = {title: [pictures[title] for _, pictures in page] for title in titles}
    shown = {
        title: column for title, column in columns.items() if any(p is not None for p in column)
    }
    with replacing(file, overwrite=overwrite) as temporary:
        contact_sheet(shown, [name for name, _ in page]).savefig(temporary, format="png")
