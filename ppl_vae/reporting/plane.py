"""The rate-distortion plane of a sweep, with the values of a point where the mouse is. Vega-Lite draws it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

from ppl_vae.reporting.markup import Markup, paragraph
from ppl_vae.sweeps import METRICS, SweepTable, SweptPoint

_COLORS = ["#0072B2", "#D55E00", "#CC79A7", "#56B4E9", "#009E73", "#E69F00"]
"""Those of Okabe and Ito, as in the other pictures."""

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
    text: {color: ink},
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


def plane(table: SweepTable) -> tuple[list[Markup], str]:
    """The parts of a page that show the plane, and the script that draws it; empty without points.

    Args:
        table: What the sweep has found.

    Raises:
        ReportExtraError: vl-convert-python, which has Vega-Lite inside, is not installed.
    """
    library = _library()
    points = list(_points(table))
    if not points:
        return [], ""
    data = json.dumps(_chart(points, list(_seeds(table)))).replace("<", "\\u003c")
    inside = Markup(
        f'<script type="application/json" id="plane-data">{data}</script>'
        '<div class="plane"><div id="plane" role="img" aria-label="Rate against distortion of each point of '
        'the sweep; the table of means has the numbers."></div></div>'
    )
    return [
        inside,
        paragraph(
            "Each point is a mean over seeds, with bars of two standard errors; small points are single runs. "
            "Point at one, and its numbers are shown. Along a line from the upper left to the lower right the "
            "ELBO is the same: lower and further left is better, and how far down a pair stands on its line is "
            "what beta chooses.",
        ),
    ], library.javascript_bundle(_SCRIPT).replace("</script", "<\\/script")


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
                **{called: _numbers(point, name) for name, called in METRICS.items()},
            }


def _order(point: SweptPoint, axis: str | None) -> float:
    return 0.0 if axis is None else float(point.varied[axis])


def _numbers(point: SweptPoint, name: str) -> str:
    estimate = point.estimate(name)
    return "-" if math.isnan(estimate.mean) else estimate.numbers(".2f")


def _seeds(table: SweepTable) -> Iterator[dict[str, Any]]:
    for row in table.rows:
        if math.isfinite(row["rate"]) and math.isfinite(row["distortion"]):
            numbers = {called: f"{row[name]:.2f}" for name, called in METRICS.items()}
            yield {"point": row["run"], "D": row["distortion"], "R": row["rate"], **numbers}


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0


def _chart(points: list[dict[str, Any]], seeds: list[dict[str, Any]]) -> dict[str, Any]:
    """The picture in the language of Vega-Lite."""
    several = len({point["series"] for point in points}) > 1
    x: dict[str, Any] = {
        "field": "D",
        "type": "quantitative",
        "title": "distortion D (nats per row)",
    }
    y: dict[str, Any] = {"field": "R", "type": "quantitative", "title": "rate R (nats per row)"}
    x |= {"axis": {"tickCount": 6}}
    y |= {"axis": {"tickCount": 6}}
    free = {"scale": {"zero": False, "nice": True}}
    color = {
        "field": "series",
        "type": "nominal",
        "scale": {"range": _COLORS},
        "legend": {"title": None, "orient": "top", "columns": 1, "labelLimit": 0}
        if several
        else None,
    }
    told = [{"field": name} for name in ("point", "seeds", *METRICS.values())]
    of_run = [{"field": "point", "title": "run"}, *({"field": name} for name in METRICS.values())]
    layers: list[dict[str, Any]] = [
        {
            "mark": {"type": "line", "strokeWidth": 1.5, "opacity": 0.5},
            "encoding": {"x": x | free, "y": y, "color": color, "order": {"field": "order"}},
        },
        {
            "mark": {"type": "rule", "strokeWidth": 2},
            "encoding": {
                "x": x | {"field": "left"} | free,
                "x2": {"field": "right"},
                "y": y,
                "color": color,
            },
        },
        {
            "mark": {"type": "rule", "strokeWidth": 2},
            "encoding": {
                "x": x | free,
                "y": y | {"field": "low"},
                "y2": {"field": "high"},
                "color": color,
            },
        },
        {
            "data": {"values": seeds},
            "mark": {
                "type": "point",
                "filled": True,
                "size": 30,
                "opacity": 0.6,
                "color": "#8c8c8c",
            },
            "encoding": {"x": x | free, "y": y, "tooltip": of_run},
        },
        {
            "mark": {"type": "point", "filled": True, "size": 160, "opacity": 1},
            "encoding": {
                "x": x | free,
                "y": y,
                "color": color,
                "shape": {"field": "series", "type": "nominal", "legend": None},
                "tooltip": told,
            },
        },
        {
            "mark": {"type": "text", "align": "left", "dx": 9, "dy": -10, "fontSize": 13},
            "encoding": {"x": x | free, "y": y, "text": {"field": "name"}},
        },
    ]
    if len({point["order"] for point in points}) == 1:  # no order along which a line makes sense
        del layers[0]
    return {
        "$schema": "https://vega.github.io/schema/vega-lite/v6.json",
        "width": "container",
        "height": "container",
        "autosize": {"type": "fit", "contains": "padding"},
        "data": {"values": points},
        "layer": layers,
    }
