"""The rate-distortion plane of a sweep, with the values of a point where the mouse is. Vega-Lite draws it."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterator
from typing import Any

from ppl_vae.pairs import AT_POINT
from ppl_vae.reporting.markup import Markup, paragraph
from ppl_vae.sweeps import METRICS, Backdrop, SweepTable, SweptPoint

_COLORS = ["#0072B2", "#D55E00", "#CC79A7", "#56B4E9", "#009E73", "#E69F00"]
"""Those of Okabe and Ito, as in the other pictures."""

_TOLD = {name: called for name, called in METRICS.items() if name != AT_POINT.name}
"""What is told of a pair in the plane, which has a rate."""

_SCRIPT = """
const given = JSON.parse(document.getElementById("plane-data").textContent)
const place = document.getElementById("plane")
const dark = matchMedia("screen and (prefers-color-scheme: dark)")
function draw() {
  const style = getComputedStyle(document.documentElement)
  const ink = style.getPropertyValue("--ink").trim(), line = style.getPropertyValue("--line").trim()
  const words = {labelColor: ink, titleColor: ink, labelFontSize: 13, titleFontSize: 14}
  const config = {
    background: "transparent", view: {stroke: null}, font: "system-ui, sans-serif",
    axis: {...words, gridColor: line, domainColor: ink, tickColor: ink, grid: true}, legend: words,
    text: {color: ink}, title: {color: ink},
  }
  vegaEmbed(place, {...given, config}, {
    actions: false, ast: true, renderer: "svg", tooltip: {theme: dark.matches ? "dark" : "light"},
  })
}
draw()
dark.addEventListener("change", draw)
"""


class ReportExtraError(ImportError):
    """The page of a sweep needs a package that is not installed."""


def plane(table: SweepTable, backdrop: Backdrop) -> tuple[list[Markup], str]:
    """The parts of a page that show the plane, and the script that draws it; empty without points.

    Args:
        table: What the sweep has found.
        backdrop: Curves, and the entropy of the data.

    Raises:
        ReportExtraError: vl-convert-python, which has Vega-Lite inside, is not installed.
    """
    library = _library()
    points = list(_points(table))
    if not points:
        return [], ""
    repeated = has_repetitions(table)
    chart = _chart(points, list(_seeds(table)) if repeated else [], backdrop)
    data = json.dumps(chart).replace("<", "\\u003c")
    inside = Markup(
        f'<script type="application/json" id="plane-data">{data}</script>'
        '<div class="plane"><div id="plane" role="img" aria-label="Rate against distortion of each point of '
        'the sweep; the table of means has the numbers."></div></div>'
    )
    return [
        inside,
        paragraph(" ".join(_told(points, repeated, backdrop))),
    ], _script(library)


@functools.cache
def _script(library: Any) -> str:
    """The script with Vega-Lite in it, which takes a second to put together and is always the same."""
    bundle: str = library.javascript_bundle(_SCRIPT)
    return bundle.replace("</script", "<\\/script")


def _told(points: list[dict[str, Any]], repeated: bool, backdrop: Backdrop) -> Iterator[str]:
    """What stands below the plane: of what is in it, and of nothing else."""
    if repeated:
        yield (
            "Each point is a mean over seeds, with bars of two standard errors; small points are single runs."
        )
    else:
        yield "Each point is one run."
    yield "Point at one, and its numbers are shown."
    if _is_line(points):
        yield "The thin lines join the points in the order of the option that varies."
    yield (
        "On each dotted line the ELBO is the same, and stands at its upper end: a point on a lower one has a "
        "higher ELBO, and where on its dotted line a pair stands is what beta chooses."
    )
    if backdrop.entropy is not None:
        yield "No pair is below the gray line H − D; where it ends, z has collapsed under a perfect decoder."
    if backdrop.entropy_bound is not None:
        yield "The gray dashed line bounds H − D, below which no pair is: H − D itself is on it or below."


def has_repetitions(table: SweepTable) -> bool:
    """Whether a point has results of several seeds."""
    return any(len(values) > 1 for point in table.points for values in point.values.values())


def _is_line(points: list[dict[str, Any]]) -> bool:
    return len({point["order"] for point in points}) > 1


def _library() -> Any:
    try:
        import vl_convert
    except ImportError as error:
        raise ReportExtraError(
            "the page of a sweep needs vl-convert-python, for its rate-distortion picture: "
            "pip install 'ppl_vae[sweep]'"
        ) from error
    return vl_convert


def _points(table: SweepTable) -> Iterator[dict[str, Any]]:
    axis = table.axis()
    for series, members in table.series(axis).items():
        for point in members:
            rate, distortion = point.rate, point.distortion
            if not (math.isfinite(rate.mean) and math.isfinite(distortion.mean)):
                continue
            x, y = (2 * _finite(e.standard_error) for e in (distortion, rate))
            yield {
                "series": series or "means over seeds",
                "point": point.short(table.varying) or "the only point",
                "name": point.short(table.varying if axis is None else [axis]),
                "D": distortion.mean,
                "R": rate.mean,
                "left": distortion.mean - x,
                "right": distortion.mean + x,
                "low": rate.mean - y,
                "high": rate.mean + y,
                "order": _order(point, axis),
                "seeds": f"{len(point.values['elbo'])} of {point.runs}",
                **{called: _numbers(point, name) for name, called in _TOLD.items()},
            }


def _order(point: SweptPoint, axis: str | None) -> float:
    return 0.0 if axis is None else float(point.varied[axis])


def _numbers(point: SweptPoint, name: str) -> str:
    estimate = point.estimate(name)
    return "-" if math.isnan(estimate.mean) else estimate.numbers(".2f")


def _seeds(table: SweepTable) -> Iterator[dict[str, Any]]:
    for row in table.rows:
        if math.isfinite(row["rate"]) and math.isfinite(row["distortion"]):
            numbers = {called: f"{row[name]:.2f}" for name, called in _TOLD.items()}
            yield {"point": row["run"], "D": row["distortion"], "R": row["rate"], **numbers}


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0


def _chart(
    points: list[dict[str, Any]], seeds: list[dict[str, Any]], backdrop: Backdrop
) -> dict[str, Any]:
    """The picture in the language of Vega-Lite."""
    several = len({point["series"] for point in points}) > 1
    left, right, bottom, top = _limits(points, seeds, backdrop)
    x: dict[str, Any] = {
        "field": "D",
        "type": "quantitative",
        "title": "distortion D (nats per row)",
        "axis": {"tickCount": 6, "grid": False},
        "scale": {"domain": [left, right], "nice": False, "zero": False},
    }
    y: dict[str, Any] = {
        "field": "R",
        "type": "quantitative",
        "title": "rate R (nats per row)",
        "axis": {"tickCount": 6, "grid": False},
        "scale": {"domain": [bottom, top], "nice": False, "zero": False},
    }
    color = {
        "field": "series",
        "type": "nominal",
        "scale": {"range": _COLORS},
        "legend": {"title": None, "orient": "top", "columns": 1, "labelLimit": 0}
        if several
        else None,
    }
    told: Any = [{"field": name} for name in ("point", "seeds", *_TOLD.values())]
    of_run: Any = [
        {"field": "point", "title": "run"},
        *({"field": name} for name in _TOLD.values()),
    ]
    layers: list[dict[str, Any]] = [*_behind((left, right, bottom, top), backdrop, x, y)]
    if _is_line(points):  # an order along which a line makes sense
        line = {"type": "line", "strokeWidth": 1.5, "opacity": 0.5}
        encoding = {"x": x, "y": y, "color": color, "order": {"field": "order"}}
        layers.append({"mark": line, "encoding": encoding})
    bar = {"type": "rule", "strokeWidth": 2}
    across = {"x": x | {"field": "left"}, "x2": {"field": "right"}, "y": y, "color": color}
    along = {"x": x, "y": y | {"field": "low"}, "y2": {"field": "high"}, "color": color}
    layers += [{"mark": bar, "encoding": across}, {"mark": bar, "encoding": along}]
    if seeds:
        small: dict[str, Any] = {
            "type": "point",
            "filled": True,
            "size": 30,
            "opacity": 0.6,
            "color": "#8c8c8c",
        }
        encoding = {"x": x, "y": y, "tooltip": of_run}
        layers.append({"data": {"values": seeds}, "mark": small, "encoding": encoding})
    layers.append(
        {
            "mark": {"type": "point", "filled": True, "size": 160, "opacity": 1},
            "encoding": {
                "x": x,
                "y": y,
                "color": color,
                "shape": {"field": "series", "type": "nominal", "legend": None},
                "tooltip": told,
            },
        }
    )
    middle = (left + right) / 2
    for align, where in (("left", "<="), ("right", ">")):  # to the side where there is room
        text: dict[str, Any] = {"type": "text", "align": align, "dy": -10, "fontSize": 13}
        layer: dict[str, Any] = {"mark": text | {"dx": 9 if align == "left" else -9}}
        layer["transform"] = [{"filter": f"datum.D {where} {middle!r}"}]
        layer["encoding"] = {"x": x, "y": y, "text": {"field": "name"}}
        layers.append(layer)
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "width": "container",
        "height": "container",
        "autosize": {"type": "fit", "contains": "padding"},
        "title": {
            "text": "ELBO (nats per row), along the dotted lines",
            "fontSize": 13,
            "fontWeight": "normal",
            "offset": 20,
        },
        "data": {"values": points},
        "layer": layers,
    }


def _limits(
    points: list[dict[str, Any]], seeds: list[dict[str, Any]], backdrop: Backdrop
) -> tuple[float, float, float, float]:
    """The left, right, lower and upper end of the plane, so that all points, bars and curves are in sight."""
    places = [place for curve in backdrop.curves.values() for place in curve]
    of_x = [p[end] for p in points for end in ("left", "right")] + [p["D"] for p in seeds]
    of_y = [p[end] for p in points for end in ("low", "high")] + [p["R"] for p in seeds]
    of_x += [place.distortion for place in places]
    of_y += [place.rate for place in places]
    corner = backdrop.entropy if backdrop.entropy is not None else backdrop.entropy_bound
    of_x += [] if corner is None else [corner]
    width = (max(of_x) - min(of_x)) or max(1.0, abs(of_x[0]))
    return (
        min(of_x) - 0.08 * width,
        max(of_x) + 0.12 * width,
        min(0.0, *of_y),
        1.12 * max(1e-3, *of_y),
    )


def _behind(
    limits: tuple[float, float, float, float],
    backdrop: Backdrop,
    x: dict[str, Any],
    y: dict[str, Any],
) -> Iterator[dict[str, Any]]:
    """Lines of equal ELBO with their values above them, the line H − D, and curves."""
    left, right, bottom, top = limits
    ends: list[dict[str, Any]] = []
    for total in _ticks(left + bottom, right + top):  # the sum of rate and distortion
        lowest, highest = max(bottom, total - right), min(top, total - left)
        if highest > lowest:
            line = {"elbo": f"{-total:g}".replace("-", "−"), "total": total}
            ends += [{**line, "D": total - rate, "R": rate} for rate in (lowest, highest)]
    gray = "#8c8c8c"
    yield {
        "data": {"values": ends},
        "mark": {"type": "line", "strokeDash": [2, 4], "strokeWidth": 1.2, "color": gray},
        "encoding": {"x": x, "y": y, "detail": {"field": "total", "type": "nominal"}},
    }
    # The upper end of each line is at the upper edge, or else at the left one.
    for at_top in (True, False):
        named = [end for end in ends[1::2] if (end["R"] == top) == at_top]
        place = {"dy": -8} if at_top else {"align": "left", "dx": 6, "dy": -4}
        yield {
            "data": {"values": named},
            "mark": {"type": "text", "fontSize": 12, **place},
            "encoding": {"x": x, "y": y, "text": {"field": "elbo"}},
        }
    known = backdrop.entropy is not None
    entropy = backdrop.entropy if known else backdrop.entropy_bound
    if entropy is not None:
        rates = (max(0.0, bottom), min(top, entropy - left))
        border = [{"D": entropy - rate, "R": rate} for rate in rates]
        dash = {} if known else {"strokeDash": [8, 5]}
        yield {
            "data": {"values": border},
            "mark": {"type": "line", "strokeWidth": 2.5, "color": gray, **dash},
            "encoding": {"x": x, "y": y},
        }
        word = "collapse" if known else "a bound of H"
        yield {
            "data": {"values": [{"D": entropy, "R": 0.0, "word": word}]},
            "mark": {"type": "text", "align": "right", "dx": -6, "dy": -8, "fontSize": 12},
            "encoding": {"x": x, "y": y, "text": {"field": "word"}},
        }
    dashes = [[1, 0], [7, 4], [7, 3, 2, 3]]
    for number, (name, curve) in enumerate(backdrop.curves.items()):
        values: list[dict[str, Any]] = [
            {"D": p.distortion, "R": p.rate, "curve": name} for p in curve
        ]
        of_curve = {"strokeDash": dashes[number % len(dashes)]}
        of_line = _COLORS[(number + 2) % len(_COLORS)]
        yield {
            "data": {"values": values},
            "mark": {"type": "line", "strokeWidth": 2.5, "color": of_line, **of_curve},
            "encoding": {"x": x, "y": y, "tooltip": {"field": "curve"}},
        }
        if values:
            end_of_curve = min(values, key=lambda value: value["R"])
            text: dict[str, Any] = {
                "type": "text",
                "align": "right",
                "dy": 14,
                "fontSize": 12,
                "color": of_line,
            }
            yield {
                "data": {"values": [end_of_curve]},
                "mark": text,
                "encoding": {"x": x, "y": y, "text": {"field": "curve"}},
            }


def _ticks(low: float, high: float, most: int = 9) -> list[float]:
    """Round numbers between two others."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= rough * (1 - 1e-9))
    return [step * i for i in range(math.ceil(low / step), math.floor(high / step) + 1)]
