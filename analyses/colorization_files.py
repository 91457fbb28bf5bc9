"""What a model of colors is good for: files beside JPEG, WebP and PNG, and several colorings of a photo."""

from __future__ import annotations

import io
import math
import tempfile
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from colorization_annealing import annealed_mean
from colorization_points import Point
from matplotlib.figure import Figure
from PIL import Image
from progress import Table, require_list, start
from torch import Tensor

from ppl_vae import evaluate
from ppl_vae.coloring import color_error, color_picture, compress_colors, decompress_colors
from ppl_vae.colors import split_colors, to_rgb
from ppl_vae.data import Photo, PhotoData, Photos, load_photos, read_photo
from ppl_vae.models.colorization import SegmentedColors
from ppl_vae.plots import contact_sheet
from ppl_vae.runs import Run, load_run
from ppl_vae.runtime import replacing, require_output
from ppl_vae.stats import Estimate

WITHOUT = Point("palette", patches=1000, epochs=5)
"""What is trained if no run is given."""

EVIDENCE, OWN = "-log2 P(y given x)", "this model"

CODECS: dict[str, tuple[bool, dict[str, Any], dict[str, Any]]] = {
    "PNG": (True, {"format": "PNG", "optimize": True}, {}),
    "WebP, lossless": (True, {"format": "WebP", "lossless": True, "method": 6}, {}),
    "JPEG, quality 95, 4:4:4": (False, {"format": "JPEG", "quality": 95}, {"subsampling": 0}),
    "JPEG, quality 75, 4:2:0": (False, {"format": "JPEG", "quality": 75}, {"subsampling": 2}),
    "WebP, quality 75": (False, {"format": "WebP", "quality": 75}, {}),
}
"""Whether it is lossless, and its settings: those of both pictures, and those that only colors have."""


class Chroma(NamedTuple):
    """The colors of a photo as a codec writes them.

    Attributes:
        size: Bytes.
        rmse: Of the colors that are read, with the true luma, in levels.
    """

    size: float
    rmse: float


# -- bytes -----------------------------------------------------------------------------------------------


def bytes_of_colors(
    run: Path | None = None,
    data: str = "skimage",
    longest: int | None = 240,
    most_photos: int | None = None,
    without: Point = WITHOUT,
    output: Path = Path("colors_bytes.png"),
    overwrite: bool = False,
) -> None:
    """Measures what the colors of test photos cost, for somebody who has their gray pictures.

    That of a usual codec is its file of the color photo less that of the gray picture, of the same settings.
    Each file of the model is read again, and has to give the chroma that was written.
    Where colors are latent, -log2 P is a bound by samples, and the file has their values, too.

    Args:
        run: Folder of a run, such as `ppl-vae colorize train` makes it; None trains a small model first.
        data: Photos, as for `ppl_vae.data.load_photos`: its test photos are measured.
        longest: Photos are reduced to this side.
        most_photos: Only the first so many photos.
        without: What is trained if there is no run, on the photos 'skimage'.
        output: Where to save the picture.
        overwrite: Whether a picture that is there is replaced.
    """
    require_output(output, overwrite=overwrite)
    photos = load_photos(data, longest=longest).test[:most_photos]
    table = Table(
        ["codec", "bytes per photo", "bits per pixel", "of -log2 P", "RMSE"],
        steps=len(photos) + (run is None),
    )
    opened = _run_of(run, without, table)
    found: dict[str, list[Chroma]] = defaultdict(list)
    for photo in photos:
        found[EVIDENCE].append(Chroma(_evidence(opened, photo) / 8, 0.0))
        found[OWN].append(own_file(opened.model, photo))
        for name in CODECS:
            found[name].append(of_codec(photo, name))
        table.step(photo.name)
    table.head()
    pixels = torch.tensor([float(photo.luma.numel()) for photo in photos])
    rates, errors = {}, {}
    sizes = {name: torch.tensor([each.size for each in own]) for name, own in found.items()}
    for name, size in sizes.items():
        rates[name] = Estimate(8 * size / pixels, unit="")
        errors[name] = Estimate(torch.tensor([each.rmse for each in found[name]]), unit="")
        lossy = name in CODECS and not CODECS[name][0]
        table.row(
            [
                name,
                Estimate(size, unit="").numbers(".0f"),
                rates[name].numbers(),
                Estimate(size / sizes[EVIDENCE], unit="").numbers(),
                errors[name].numbers(".2f") if lossy else "0",
            ]
        )
    with replacing(output, overwrite=overwrite) as file:
        bars(rates, errors).savefig(file)
    print(
        f"\n{len(photos)} photos, {float(pixels.mean()):.0f} pixels each on average. A codec is charged for "
        f"its file of the color photo less that of the gray picture. The picture is {output}."
    )


def own_file(model: Any, photo: Photo) -> Chroma:
    """The colors of a photo as the model writes them.

    Raises:
        RuntimeError: They are not read as they were written.
    """
    data = compress_colors(model, photo)
    if not torch.equal(decompress_colors(model, photo.luma, data), photo.chroma):
        raise RuntimeError(f"{photo.name}: the file of its colors gives others")
    return Chroma(len(data), 0.0)


def of_codec(photo: Photo, name: str) -> Chroma:
    """The colors of a photo as a usual codec writes them: a key of `CODECS`.

    Raises:
        RuntimeError: It should be lossless, but is not.
    """
    lossless, shared, of_colors = CODECS[name]
    colors = _written(to_rgb(photo.luma, photo.chroma), {**shared, **of_colors})
    gray = _written(photo.luma.to(torch.uint8), shared)
    with Image.open(io.BytesIO(colors)) as image:
        chroma = split_colors(torch.from_numpy(np.array(image.convert("RGB"))))[1]
    if lossless and not torch.equal(chroma, photo.chroma):
        raise RuntimeError(f"{photo.name}: {name} gives other colors")
    return Chroma(len(colors) - len(gray), color_error(photo, chroma))


def _written(picture: Tensor, settings: Mapping[str, Any]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture.numpy()).save(file, **settings)
    return file.getvalue()


def _evidence(run: Run, photo: Photo) -> float:
    """- log2 P(y | x) in bits; of a lower bound by samples, if it is not known."""
    samples = 20  # each costs an EM
    found = evaluate(
        run.model, run.guide, photo.rows, num_samples=samples, method="guide", progress=False
    )
    return -found.log_likelihood.mean / math.log(2)


def bars(rates: Mapping[str, Estimate], errors: Mapping[str, Estimate]) -> Figure:
    """Bits per pixel of each codec, with what lossy ones lose."""
    figure = Figure(figsize=(9, 0.55 * len(rates) + 1), dpi=110, layout="constrained")
    axes = figure.subplots()
    for place, (name, rate) in enumerate(rates.items()):
        lossy = name in CODECS and not CODECS[name][0]
        color = "#8C8C8C" if lossy else "#0072B2" if name in CODECS else "#D55E00"
        error = 0.0 if math.isnan(rate.standard_error) else rate.standard_error
        axes.barh(place, rate.mean, xerr=error, color=color, height=0.6, capsize=3)
        axes.annotate(
            f"RMSE {errors[name].mean:.1f}" if lossy else "lossless",
            (max(rate.mean, 0) + error, place),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            fontsize=11,
        )
    axes.set_yticks(range(len(rates)), [name.replace(" given ", " | ") for name in rates])
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_xlabel("bits per pixel of chroma, beside the gray picture", fontsize=13)
    axes.tick_params(labelsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


# -- diversity -------------------------------------------------------------------------------------------


def diversity(
    run: Path | None = None,
    photos: tuple[Path, ...] = (),
    longest: int | None = 240,
    temperatures: tuple[float, ...] = (0.5, 0.2),
    draws: int = 3,
    seed: int = 0,
    without: Point = WITHOUT,
    output: Path = Path("diversity.png"),
    overwrite: bool = False,
) -> None:
    """Draws several colorings of each of some gray photos.

    Beside mean, mode and draws, the annealed mean of Zhang et al. (arXiv:1603.08511).

    Args:
        run: Folder of a run, such as `ppl-vae colorize train` makes it; None trains a small model first.
        photos: Files; if there are none, the test photos of 'skimage'.
        longest: Photos are reduced to this side.
        temperatures: Those of the annealed means.
        draws: How many colorings are drawn.
        seed: Seed of the draws.
        without: What is trained if there is no run, on the photos 'skimage'.
        output: Where to save the contact sheet.
        overwrite: Whether a picture that is there is replaced.
    """
    require_output(output, overwrite=overwrite)
    require_list("--temperatures", temperatures, may_be_empty=True)
    given = Photos([_photo(path, longest) for path in photos])
    chosen = given if photos else load_photos("skimage", longest=longest).test
    table = Table(["coloring", "RMSE", "vividness"], steps=len(chosen) + (run is None))
    model: Any = _run_of(run, without, table).model
    columns: dict[str, list[Tensor | None]] = defaultdict(list)
    numbers: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for photo in chosen:
        is_gray = not bool(photo.chroma.any())
        columns["gray"].append(photo.luma.to(torch.uint8))
        columns["truth"].append(None if is_gray else to_rgb(photo.luma, photo.chroma))
        if not is_gray:
            numbers["truth"].append((0.0, vividness(photo.chroma)))
        for title, chroma in colorings(model, photo.luma, temperatures, draws, seed).items():
            columns[title].append(to_rgb(photo.luma, chroma))
            if not is_gray:
                numbers[title].append((color_error(photo, chroma), vividness(chroma)))
        table.step(photo.name)
    table.head()
    for title, pairs in numbers.items():
        both = torch.tensor(pairs).unbind(-1)
        table.row([title, *(Estimate(each, unit="").numbers(".1f") for each in both)])
    shown = {name: each for name, each in columns.items() if any(p is not None for p in each)}
    with replacing(output, overwrite=overwrite) as file:
        contact_sheet(shown, [photo.name for photo in chosen]).savefig(file)
    print(
        f"\nRMSE in levels of red, green and blue; vividness is the root of the mean square of (Co, Cg). Means "
        f"over photos with colors: {len(numbers['truth'])}. The picture is {output}."
    )


def colorings(
    model: Any, luma: Tensor, temperatures: Sequence[float], draws: int, seed: int
) -> dict[str, Tensor]:
    """Chroma of mean, annealed means, mode and draws, by their titles."""
    found = color_picture(model, luma, draws=draws, seed=seed)
    annealed = {f"T = {t:g}": annealed_mean(model, luma, t) for t in temperatures}
    drawn = {f"draw {i + 1}": chroma for i, chroma in enumerate(found.draws)}
    return {"mean": found.mean, **annealed, "mode": found.mode, **drawn}


def vividness(chroma: Tensor) -> float:
    """Root of the mean squared length of (Co, Cg)."""
    return float(chroma.double().square().sum(-1).mean().sqrt())


def _photo(path: Path, longest: int | None) -> Photo:
    luma, chroma = split_colors(read_photo(path, longest))
    return Photo(path.name, chroma, luma)


# -- both ------------------------------------------------------------------------------------------------


def _run_of(path: Path | None, without: Point, table: Table) -> Run:
    """The run, or one that is trained now.

    Raises:
        ValueError: It is no run of a model of colors.
    """
    if path is None:
        photos = load_photos("skimage", longest=without.longest)
        with tempfile.TemporaryDirectory() as folder:
            # A photo to measure on is enough: nobody looks at the scores.
            without.train(PhotoData(photos.train, photos.test[:1]), Path(folder))
            found = load_run(Path(folder) / "run")
        table.step("training")
        return found
    found = load_run(path)
    if not isinstance(found.model, SegmentedColors):
        raise ValueError(
            f"{path} is a run of {type(found.model).__name__}, which is no model of colors: give a run of "
            "`ppl-vae colorize train`"
        )
    return found


if __name__ == "__main__":
    tiny = {"patches": 16, "patch": 32, "epochs": 1, "widths": (4, 6), "longest": 60, "segments": 3}
    quick = {
        **{f"without.{name}": value for name, value in tiny.items()},
        **{"without.colors": "palette", "longest": 60},
    }
    start(
        {"bytes": bytes_of_colors, "diversity": diversity},
        quick={
            "bytes": {**quick, "most_photos": 2, "output": "colors_bytes_quick.png"},
            "diversity": {**quick, "draws": 1, "output": "diversity_quick.png"},
        },
    )
