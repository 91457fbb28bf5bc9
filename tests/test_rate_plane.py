"""The picture of rate and distortion shows each point where it is, and says what is wrong with others."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import matplotlib.style
import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from ppl_vae import plots
from ppl_vae.plots.drawing import BLUE, ORANGE
from ppl_vae.rate_distortion import linear_optimum
from ppl_vae.stats import Estimate

# mypy: disable-error-code="arg-type,dict-item,list-item"


@dataclass
class At:
    """A point in the plane."""

    distortion: Any
    rate: Any


def draw(figure: Figure) -> list[Any]:
    """Draws a figure, where warnings are errors; the lines of its panel, by label."""
    figure.savefig(io.BytesIO(), format="png")
    return list(figure.axes[0].lines)


def line(figure: Figure, label: str) -> Any:
    (found,) = (line for line in draw(figure) if line.get_label() == label)
    return found


def texts(figure: Figure) -> dict[str, tuple[float, float]]:
    return {text.get_text(): text.xy for text in figure.axes[0].texts}  # type: ignore[attr-defined]


def test_points_have_their_place_their_name_and_their_errors() -> None:
    x = Estimate(torch.tensor([9.0, 11.0]))  # 10 ± 1
    y = Estimate(torch.tensor([2.5, 3.5]))  # 3 ± 0.5
    figure = plots.rate_distortion(
        {"beta-VAE": {"β = 1": At(x, y), "β = 4": At(14.0, 1.0)}, "others": [At(12.0, 5.0)]}
    )
    first, second = line(figure, "beta-VAE"), line(figure, "others")
    np.testing.assert_allclose(first.get_xydata(), [[10, 3], [14, 1]])
    np.testing.assert_allclose(second.get_xydata(), [[12, 5]])
    assert [to_hex(each.get_color()).upper() for each in (first, second)] == [BLUE, ORANGE]
    assert texts(figure) == {"β = 1": (10, 3), "β = 4": (14, 1)}
    bars: Any = figure.axes[0].containers[0]
    horizontal, vertical = (each.get_segments()[0] for each in bars.lines[2])
    np.testing.assert_allclose(horizontal, [[8, 3], [12, 3]])
    np.testing.assert_allclose(vertical, [[10, 2], [10, 4]])
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["beta-VAE", "others"]
    axes = figure.axes[0]
    assert axes.get_ylim()[0] == 0
    assert axes.get_xlim()[0] < 10
    assert axes.get_xlim()[1] > 14


def test_curves_are_sorted_and_in_different_styles() -> None:
    values = [5.0, 2.0, 0.4]
    curve = [linear_optimum(values, 0.5, beta) for beta in (1.0, 0.2, 3.0)]
    figure = plots.rate_distortion({}, curves={"exact": curve, "other": [At(3.0, 1.0)]})
    exact = line(figure, "exact")
    truth = sorted((point.distortion, point.rate) for point in curve)
    np.testing.assert_allclose(exact.get_xydata(), truth)
    assert exact.get_color() != line(figure, "other").get_color()


def test_the_line_of_the_entropy_and_its_corner() -> None:
    points = {"pairs": [At(0.1, 1.4), At(1.5, 0.2)]}
    figure = plots.rate_distortion(points, entropy=1.2)
    x, y = line(figure, "H − D: no pair is below").get_data()
    np.testing.assert_allclose(x + y, 1.2)
    assert texts(figure)["collapse"] == (1.2, 0)
    assert len(figure.axes[0].collections) > 2  # what is below is shaded
    shaded = len(figure.axes[0].collections)
    left, right = figure.axes[0].get_xlim()
    assert left == 0
    assert right > 1.5
    figure = plots.rate_distortion(points, entropy_bound=1.2)
    assert line(figure, "a bound of H − D").get_linestyle() == "--"
    assert len(figure.axes[0].collections) == shaded - 1


def test_diagonals_have_one_elbo_each_and_its_value_is_above() -> None:
    figure = plots.rate_distortion({"pairs": [At(20.0, 1.0), At(12.0, 9.0)]})
    lines = [each for each in draw(figure) if each.get_linestyle() == ":"]
    sums = {round(float((each.get_xdata() + each.get_ydata()).max()), 9) for each in lines}
    assert len(sums) == len(lines) > 3
    for each in lines:
        np.testing.assert_allclose(np.ptp(each.get_xdata() + each.get_ydata()), 0, atol=1e-9)
    axes = figure.axes[0]
    (above,) = axes.child_axes
    top = axes.get_ylim()[1]
    shown = [float(text.get_text().replace("−", "-")) for text in above.get_xticklabels()]
    assert len(shown) > 1
    for value in shown:
        assert -value in sums
        # Where the line meets the upper edge.
        assert axes.get_xlim()[0] <= -value - top <= axes.get_xlim()[1]
    without = plots.rate_distortion({"pairs": [At(1.0, 1.0)]}, diagonals=False)
    assert not without.axes[0].child_axes
    assert without.axes[0].get_xlabel() == "distortion D"


def test_it_follows_the_style() -> None:
    with matplotlib.style.context("dark_background"):
        figure = plots.rate_distortion({}, curves={"exact": [At(1.0, 1.0), At(2.0, 0.5)]})
        assert line(figure, "exact").get_color() == "#ffffff"


def test_names_that_would_overlap_are_left_out() -> None:
    named = {"one": At(5.0, 2.0), "two": At(5.01, 2.0), "three": At(9.0, 1.0)}
    assert texts(plots.rate_distortion({"pairs": named})).keys() == {"one", "three"}


WRONG: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "nothing": (lambda: plots.rate_distortion({}), ValueError, "at least one point"),
    "no dict": (
        lambda: plots.rate_distortion([At(1, 1)]),
        TypeError,
        "points must be a dict of points by the name of the series",
    ),
    "a point as a series": (
        lambda: plots.rate_distortion({"a": At(1, 1)}),
        TypeError,
        r"points\['a'\] must be points by name, or a list of points",
    ),
    "a number as a point": (
        lambda: plots.rate_distortion({"a": [3.0]}),
        TypeError,
        r"points\['a'\]\[0\] must have a rate and a distortion.*got 3.0",
    ),
    "not finite": (
        lambda: plots.rate_distortion({}, curves={"a": [At(1.0, float("nan"))]}),
        ValueError,
        r"curves\['a'\]\[0\].rate is not finite",
    ),
    "two entropies": (
        lambda: plots.rate_distortion({"a": [At(1, 1)]}, entropy=1.0, entropy_bound=1.0),
        ValueError,
        "not both",
    ),
    "a text as entropy": (
        lambda: plots.rate_distortion({"a": [At(1, 1)]}, entropy="H"),
        TypeError,
        "entropy must be a number",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_cannot_be_drawn_is_named(name: str) -> None:
    call, kind, told = WRONG[name]
    with pytest.raises(kind, match=told):
        call()
