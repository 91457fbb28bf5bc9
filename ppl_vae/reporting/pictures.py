"""The pictures of a page, inside of it: each light and dark, with a sentence."""

from __future__ import annotations

import base64
import io
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError

from ppl_vae.reporting.markup import Markup, element, paragraph, prose
from ppl_vae.runs import PLOTS, PLOTS_DARK, SAMPLES
from ppl_vae.runtime import CorruptFileError

_MOST = 2**25
"""Most bytes of a picture."""


class Caption(NamedTuple):
    """What a picture is called, and a sentence on what it shows."""

    title: str
    sentence: str


CAPTIONS = {
    "learning_curves": Caption(
        "Learning curves",
        "The numbers of each epoch, on training rows and on held-out rows. A held-out curve that gets worse "
        "while that of the training rows still gets better is overfitting; curves that still get better at the "
        "end say that a longer training would help.",
    ),
    "learning_curve": Caption(
        "Learning curve",
        "The bound after each iteration of EM. It cannot fall; a curve that is flat has converged.",
    ),
    "components": Caption(
        "Components",
        "The mean of each component of the mixture, with its weight, the largest first.",
    ),
    "reconstructions": Caption(
        "Reconstructions",
        "Rows chosen at random, and below each what the model makes of its latent: what is lost between the "
        "two is the distortion.",
    ),
    "worst_reconstructions": Caption(
        "Worst rows",
        "The rows that the model finds least likely, with their reconstructions: often odd data, or a kind "
        "of rows that the model has not learned.",
    ),
    "prior_samples": Caption(
        "Samples from the prior",
        "New rows that the model draws, beside data: what the model has learned of the data as a whole. If "
        "they are worse than the reconstructions, the prior and the latents of the data do not match.",
    ),
    "traversals": Caption(
        "Traversals",
        "One latent dimension moves in each line, from a row of the data; the others stay. A dimension that "
        "changes nothing is not used.",
    ),
    "manifold": Caption(
        "The plane of latents",
        "What the model makes of points in its two latent dimensions, spread as the prior spreads them.",
    ),
    "interpolations": Caption(
        "Paths between rows",
        "What the model makes of the points between the latents of two rows. Good paths look like data all "
        "along.",
    ),
    "kl_per_dimension": Caption(
        "KL of each latent dimension",
        "How many nats each dimension takes, the largest first, and how much its posterior means vary from "
        "row to row. A dimension with almost none of either has collapsed onto the prior.",
    ),
    "worth_of_units": Caption(
        "What each number of the code is worth",
        "By how many nats the distortion rises if the number is its mean in all rows, the largest first. One "
        "without a bar is not used.",
    ),
    "aggregate_posterior": Caption(
        "Aggregate posterior",
        "Draws of z for all rows, in the two dimensions that are used most, and the contours of the prior. "
        "Where draws are and the prior is not, or the reverse, new samples do not look like data.",
    ),
    "codes": Caption(
        "Codes",
        "The posterior means of the rows in their two main directions; colors are labels, if there are any. "
        "Labels that lie apart are told apart by the latents.",
    ),
    "use_of_codes": Caption(
        "Use of the codes",
        "How often each code of the quantizer is used, the most used first. Where all are used alike, the bars "
        "reach the line; codes without a bar are not used by these rows.",
    ),
    "colorings": Caption(
        "Colorings",
        "Photos that the model was not trained on: the gray picture, the likeliest segments given it, and "
        "given the colors too, the mean and the mode of the colors that the model expects, and the photo.",
    ),
    "khat": Caption(
        "Can log p(x) be trusted?",
        "Pareto k-hat of each row. To the left of the line, the importance samples of a row are good enough "
        "for its log p(x).",
    ),
    "gaps": Caption(
        "Where the bound is lost",
        "What the family of the guide loses (approximation gap), and what its network loses on top by not "
        "finding the best q of each row (amortization gap).",
    ),
    "samples": Caption(
        "Samples",
        "What `ppl-vae sample` has drawn from the model.",
    ),
}
"""The pictures of a run, in the order of the page."""

TRAINING = ("learning_curves", "learning_curve")
"""Those that stand beside the numbers of the training."""


class Found(NamedTuple):
    """What a page shows of the pictures of a run.

    Attributes:
        figures: For each picture that is there, its part of the page.
        unread: A line for each that cannot be read.
    """

    figures: dict[str, Markup]
    unread: list[str]


def pictures_of(run: Path, stale: Mapping[str, str]) -> Found:
    """The pictures that are in the folder of a run.

    Args:
        run: The folder.
        stale: Those that belong to other weights, by their path in the folder; they are left out.
    """
    figures, unread = dict[str, Markup](), list[str]()
    for name, caption in CAPTIONS.items():
        for place in _places(name):
            if place in stale or not (run / place).is_file():
                continue
            dark = f"{PLOTS_DARK}/{name}.png"
            try:
                light = read_picture(run / place)
            except (OSError, CorruptFileError) as error:
                unread.append(str(error))
                continue
            try:
                usable = dark not in stale and (run / dark).is_file()
                night = read_picture(run / dark) if usable else None
            except (OSError, CorruptFileError) as error:
                unread.append(str(error))
                night = None
            figures[name] = figure(light, night, caption)
    return Found(figures, unread)


def _places(name: str) -> Iterator[str]:
    """Where a picture may be in the folder of a run."""
    yield SAMPLES if f"{name}.png" == SAMPLES else f"{PLOTS}/{name}.png"


def read_picture(file: Path) -> bytes:
    """The bytes of a PNG, looked at before they are shown.

    Raises:
        CorruptFileError: It is damaged, no PNG, or too large.
        OSError: The system does not let it be read.
    """
    with file.open("rb") as opened:
        content = opened.read(_MOST + 1)
    if len(content) > _MOST:
        raise CorruptFileError(file, f"it is larger than the {_MOST >> 20} MiB that are read")
    try:
        size_of(content)
    except Exception as error:  # Pillow raises whatever the file makes it stumble over
        # Of what it does not know, it says what it was given: bytes in memory, and where these are.
        why = "" if isinstance(error, UnidentifiedImageError) else f" ({error})"
        raise CorruptFileError(
            file, f"this is not a PNG that can be read{why}; draw it again"
        ) from error
    return content


def size_of(picture: bytes) -> tuple[int, int]:
    """Width and height of a PNG, whose checksums are compared."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of pictures with too many pixels
        with Image.open(io.BytesIO(picture), formats=["PNG"]) as opened:
            width, height = opened.size
            opened.verify()
    return width, height


def figure(light: bytes, dark: bytes | None, caption: Caption) -> Markup:
    """A picture with its sentence; without a dark variant it stays on white paper."""
    width, height = size_of(light)
    shown: Markup = element(
        "img",
        src=_inside(light),
        alt=f"{caption.title}. {caption.sentence}",
        width=width,
        height=height,
    )
    shown = Markup(shown.removesuffix("</img>"))
    if dark is not None:
        scheme = "screen and (prefers-color-scheme: dark)"
        source = element("source", srcset=_inside(dark), media=scheme).removesuffix("</source>")
        shown = element("picture", Markup(source), shown)
    below = element("figcaption", prose(caption.sentence))
    kind = "white" if dark is None else "both"
    return element("figure", element("h3", caption.title), shown, below, class_=kind)


def _inside(picture: bytes) -> Markup:
    return Markup(f"data:image/png;base64,{base64.b64encode(picture).decode()}")


def in_grid(figures: Mapping[str, Markup]) -> Markup:
    """Pictures side by side, as far as there is room."""
    return element("div", *figures.values(), class_="figures") if figures else Markup("")


def unread_told(unread: list[str]) -> list[Markup]:
    """What cannot be read, as parts of the page."""
    return [paragraph(element("b", "Not shown: "), line, kind="warn") for line in unread]
