"""The pictures show what they were given: in the right place, in the right order, with names."""

from __future__ import annotations

import importlib
import io
import sys
from types import ModuleType
from typing import Any

import matplotlib.colors
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.decomposition import PCA

from ppl_vae import plots
from ppl_vae.plots.drawing import BLUE, ORANGE
from ppl_vae.stats import Estimate
from ppl_vae.tasks import Outliers


def draw(figure: Figure) -> None:
    """Everything that goes wrong only when drawn goes wrong here; warnings are errors."""
    figure.savefig(io.BytesIO(), format="png")
    drawn, paper = figure.get_tightbbox(), figure.bbox_inches.padded(0.01)
    inside = paper.contains(drawn.x0, drawn.y0) and paper.contains(drawn.x1, drawn.y1)
    assert inside, f"cut off: {drawn} of {paper}"


def image(axes: Axes) -> NDArray[Any]:
    (picture,) = axes.images
    array = picture.get_array()
    assert array is not None
    return array


def tile(axes: Axes, row: int, column: int, shape: tuple[int, int]) -> NDArray[Any]:
    """The pixels around (column, row) in the axes' own coordinates: what a reader sees there."""
    (picture,) = axes.images
    left, right, bottom, top = picture.get_extent()
    pixels = image(axes)
    height, width = pixels.shape[:2]
    centre_y = (row - top) / (bottom - top) * height
    centre_x = (column - left) / (right - left) * width
    y, x = round(centre_y - shape[0] / 2), round(centre_x - shape[1] / 2)
    return pixels[y : y + shape[0], x : x + shape[1]]


def ticks(axes: Axes, axis: str) -> list[str]:
    labels = axes.get_xticklabels() if axis == "x" else axes.get_yticklabels()
    return [label.get_text() for label in labels]


def bars(axes: Axes) -> list[Any]:
    """The bars of an axes. The type is Any: the stubs call them patches."""
    return list(axes.patches)


def curves(collection: Any) -> list[NDArray[np.float64]]:
    """The points of each line of a collection, `(m, 2)`."""
    return [np.asarray(path.vertices) for path in collection.get_paths()]


def colors(axes: Axes) -> list[str]:
    return [matplotlib.colors.to_hex(bar.get_facecolor()).upper() for bar in axes.patches]


# -- learning curves -------------------------------------------------------------------------------


def test_learning_curves_draw_each_quantity_in_its_panel() -> None:
    history = [
        {"epoch": 1.0, "elbo": -30.0, "rate": 4.0, "distortion": 26.0, "beta": 0.5},
        {"epoch": 2.0, "elbo": -25.0, "rate": 5.0, "distortion": 20.0, "validation_elbo": -27.0},
        {"epoch": 3.0, "elbo": float("nan"), "rate": 6.0, "distortion": 18.0, "beta": 1.0},
    ]
    figure = plots.learning_curves(history)
    draw(figure)
    elbo, rate, distortion = figure.axes
    labels = [axes.get_ylabel().replace("\n", " ") for axes in figure.axes]
    assert labels == ["ELBO (nats per row)", "rate (nats per row)", "distortion (nats per row)"]
    training, validation = elbo.lines
    np.testing.assert_array_equal(training.get_xydata(), [[1, -30], [2, -25]])
    np.testing.assert_array_equal(validation.get_xydata(), [[2, -27]])
    np.testing.assert_array_equal(rate.lines[0].get_ydata(), [4, 5, 6])
    np.testing.assert_array_equal(distortion.lines[0].get_ydata(), [26, 20, 18])
    assert distortion.get_xlabel() == "epoch"
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["training", "validation", "β ≠ 1"]


def test_learning_curves_shade_the_epochs_with_another_beta() -> None:
    history = [{"epoch": e, "elbo": -1.0, "beta": b} for e, b in enumerate([0, 0.5, 1, 1, 2, 1], 1)]
    (axes,) = plots.learning_curves(history).axes
    spans = [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in bars(axes)]
    assert spans == [(0.5, 2.5), (4.5, 5.5)]


def test_learning_curves_fit_the_epochs_after_the_first_tenth() -> None:
    history = [{"epoch": e, "elbo": -1000.0 if e < 10 else -20.0 + e / 100} for e in range(1, 101)]
    (axes,) = plots.learning_curves(history).axes
    low, high = axes.get_ylim()
    assert -1000 < low < high < 0

    history = [{"epoch": e, "elbo": -1.0 * e} for e in range(1, 101)]
    (axes,) = plots.learning_curves(history).axes
    low, high = axes.get_ylim()
    assert low <= -100
    assert high >= -11


def test_a_spike_at_the_start_is_left_out_and_the_axis_says_so() -> None:
    """As with a rate that explodes in the first epochs of a warm-up of beta."""
    history = [{"epoch": e, "rate": 10 + 500 * 0.5**e + e / 50} for e in range(1, 61)]
    figure = plots.learning_curves(history)
    draw(figure)
    (axes,) = figure.axes
    low, high = axes.get_ylim()
    late = [row["rate"] for row in history[30:]]
    assert (max(late) - min(late)) / (high - low) > 0.15
    outside = max(int(row["epoch"]) for row in history if not low <= row["rate"] <= high)
    assert axes.get_xlabel() == f"epoch\n(until {outside}, some values lie outside)"
    # It enters the panel from its edge: nothing crosses it from below to above.
    shown = np.asarray(axes.lines[0].get_xydata())
    assert shown[0, 0] == outside
    np.testing.assert_array_equal(shown[:, 1], [row["rate"] for row in history[outside - 1 :]])
    assert axes.get_xlim()[0] < 1

    late_start = [{**row, "epoch": 100 * row["epoch"]} for row in history]
    draw(plots.learning_curves(late_start))  # the longer label is not cut off

    calm = [{"epoch": e, "rate": 10 + e / 50} for e in range(1, 61)]
    assert plots.learning_curves(calm).axes[0].get_xlabel() == "epoch"


def test_a_count_that_never_changes_needs_no_panel() -> None:
    history = [{"epoch": e, "elbo": -1.0 * e, "active_units": 10.0} for e in range(1, 4)]
    figure = plots.learning_curves(history)
    draw(figure)
    assert [axes.get_ylabel() for axes in figure.axes] == ["ELBO\n(nats per row)"]
    words = [text.get_text() for text in figure.legends[0].get_texts()]
    assert words == ["training", "active units: 10"]
    history[0]["active_units"] = 9.0
    upper, lower = plots.learning_curves(history).axes
    np.testing.assert_array_equal(lower.lines[0].get_ydata(), [9, 10, 10])
    assert lower.get_ylim()[0] == 0
    assert lower.get_position().height < upper.get_position().height
    for row in history:
        del row["elbo"]
    assert len(plots.learning_curves(history).axes) == 1


def test_learning_curves_without_anything_to_draw_say_so() -> None:
    with pytest.raises(ValueError, match=r"any of elbo, log_joint, rate.*got 1 epochs"):
        plots.learning_curves([{"epoch": 1, "loss": 3.0}])


# -- pictures --------------------------------------------------------------------------------------


@pytest.mark.parametrize("event", [(5, 7), (1, 5, 7)])
def test_reconstructions_put_each_output_below_its_input(event: tuple[int, ...]) -> None:
    x, y = torch.rand(10, *event) * 16, torch.rand(10, *event) * 16
    figure = plots.reconstructions(x, y)
    draw(figure)
    axes = figure.axes[0]
    assert ticks(axes, "y") == ["input", "output", "input", "output"]
    for n in range(10):
        row, column = divmod(n, 8)
        seen = tile(axes, 2 * row, column, (5, 7))
        np.testing.assert_array_equal(seen, x[n].reshape(5, 7).double())
        seen = tile(axes, 2 * row + 1, column, (5, 7))
        np.testing.assert_array_equal(seen, y[n].reshape(5, 7).double())
    (picture,) = axes.images
    assert picture.get_clim() == pytest.approx((0, float(x.max())))
    assert np.ma.is_masked(picture.get_array())


def test_color_pictures_keep_their_channels() -> None:
    x = torch.rand(4, 3, 6, 5)
    x[0, :, 0, 0] = 0
    x[0, :, 0, 1] = 1
    figure = plots.reconstructions(x, x + 5)
    draw(figure)
    axes = figure.axes[0]
    seen = tile(axes, 0, 2, (6, 5))
    np.testing.assert_allclose(seen, x[2].permute(1, 2, 0).double())
    # Reconstructions out of the inputs' range are clipped, not rescaled.
    np.testing.assert_array_equal(tile(axes, 1, 2, (6, 5)), np.ones((6, 5, 3)))


def test_reconstructions_of_other_rows_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\(4, 5, 5\) and \(3, 5, 5\).*same rows"):
        plots.reconstructions(torch.rand(4, 5, 5), torch.rand(3, 5, 5))


def test_prior_samples_run_from_left_to_right_and_downwards() -> None:
    x = torch.rand(11, 4, 4)
    figure = plots.prior_samples(x)
    draw(figure)
    axes = figure.axes[0]
    for n in range(11):
        np.testing.assert_array_equal(tile(axes, *divmod(n, 4), (4, 4)), x[n].double())
    assert np.isnan(np.ma.filled(image(axes), np.nan)[-5:-1, -5:-1]).all()


def plane(z: torch.Tensor) -> torch.Tensor:
    """Pictures that tell where they come from: z[0] in the upper pixels, z[1] in the lower."""
    return torch.stack([z[:, :1].expand(-1, 3), z[:, 1:2].expand(-1, 3)], 1)


def test_manifold_lies_at_the_normal_quantiles() -> None:
    figure = plots.manifold(plane, size=5)
    draw(figure)
    axes = figure.axes[0]
    quantiles = torch.distributions.Normal(0, 1).icdf(torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9]))
    for row in range(5):
        for column in range(5):
            first, second = tile(axes, row, column, (2, 3))
            np.testing.assert_allclose(first, quantiles[column], atol=1e-6)
            np.testing.assert_allclose(second, quantiles[4 - row], atol=1e-6)
    assert ticks(axes, "x") == ["-1.3", "0", "+1.3"]
    assert ticks(axes, "y") == ["+1.3", "0", "-1.3"]
    assert axes.yaxis_inverted()  # row 0, the largest z[1], is on top


def test_traversals_show_one_path_a_row_in_the_order_of_the_kl() -> None:
    paths, row = torch.rand(3, 9, 2, 3), torch.rand(2, 3)
    figure = plots.traversals(paths, torch.tensor([0.25, 3.0, 1.0]), row=row)
    draw(figure)
    axes = figure.axes[0]
    assert ticks(axes, "y") == ["z[1]: 3.0", "z[2]: 1.0", "z[0]: 0.2"]
    assert ticks(axes, "x") == ["row", "-3.0", "0", "+3.0"]
    assert list(axes.get_xticks()) == [0, 2, 6, 10]
    for line, dimension in enumerate([1, 2, 0]):
        for step in range(9):
            seen = tile(axes, line, 2 + step, (2, 3))
            np.testing.assert_array_equal(seen, paths[dimension, step].double())
    np.testing.assert_array_equal(tile(axes, 1, 0, (2, 3)), row.double())
    assert np.ma.getmaskarray(tile(axes, 0, 0, (2, 3))).all()  # the row stands there once
    assert "prior standard deviations" in axes.get_xlabel()


def test_traversals_show_the_ten_largest_by_name() -> None:
    names = [f"s[{i}]" for i in range(30)]
    figure = plots.traversals(torch.rand(30, 5, 4, 4), np.arange(30.0), names=names)
    assert ticks(figure.axes[0], "y")[::9] == ["s[29]: 29.0", "s[20]: 20.0"]


def test_interpolations_stand_between_their_rows() -> None:
    paths, a, b = torch.rand(3, 5, 2, 3), torch.rand(3, 2, 3), torch.rand(3, 2, 3)
    figure = plots.interpolations(paths, a=a, b=b)
    draw(figure)
    axes = figure.axes[0]
    assert ticks(axes, "x") == ["row a", "0", "½", "1", "row b"]
    assert list(axes.get_xticks()) == [0, 2, 4, 6, 8]
    for n in range(3):
        np.testing.assert_array_equal(tile(axes, n, 0, (2, 3)), a[n].double())
        np.testing.assert_array_equal(tile(axes, n, 8, (2, 3)), b[n].double())
        for step in range(5):
            np.testing.assert_array_equal(tile(axes, n, 2 + step, (2, 3)), paths[n, step].double())
    alone = plots.interpolations(paths).axes[0]
    assert ticks(alone, "x") == ["0", "½", "1"]
    np.testing.assert_array_equal(tile(alone, 1, 4, (2, 3)), paths[1, 4].double())


def test_the_worst_rows_stand_with_their_numbers_and_values() -> None:
    x, y = torch.rand(6, 4, 4), torch.rand(6, 4, 4)
    worst = found(torch.tensor([9, 3, 4, 0, 7, 1]), torch.tensor([-50.0, -40, -30, -20, -10, -5]))
    figure = plots.worst_reconstructions(x, y, worst)
    draw(figure)
    axes = figure.axes[0]
    assert axes.get_title() == "lowest ELBO of 1,000 rows"
    words = [text.get_text() for text in axes.texts]
    assert words[:2] == ["row 9\n−50", "row 3\n−40"]
    assert len(words) == 6
    (picture,) = axes.images
    left, right, bottom, top = picture.get_extent()
    pixels = np.ma.filled(image(axes), np.nan)
    for n, text in enumerate(axes.texts):
        column, at = text.get_position()
        line = (at - top) / (bottom - top) * pixels.shape[0]
        middle = round((column - left) / (right - left) * pixels.shape[1])
        tower = pixels[: round(line), middle - 2 : middle + 2]
        tower = tower[np.isfinite(tower).all(1)][-8:]  # what is above the words
        np.testing.assert_array_equal(tower[:4], x[n].double())
        np.testing.assert_array_equal(tower[4:], y[n].double())


def found(index: torch.Tensor, elbo: torch.Tensor, by: str = "elbo") -> Outliers:
    values = Estimate(elbo.double())
    return Outliers(index, values, Estimate(-elbo.double()), values, by, 1000)


def test_the_worst_rows_without_a_picture() -> None:
    x, y = torch.rand(2, 5), torch.rand(2, 5)
    worst = found(torch.tensor([9, 3]), torch.tensor([-50.0, -40.0]), "distortion")
    figure = plots.worst_reconstructions(x, y, worst)
    draw(figure)
    left, right = figure.axes[:2]
    np.testing.assert_array_equal(image(left), x.double())
    np.testing.assert_array_equal(image(right), y.double())
    assert ticks(left, "y") == ["9: 50", "3: 40"]
    assert left.get_ylabel() == "row: distortion (nats)"
    assert figure.get_suptitle() == "highest distortion of 1,000 rows"
    with pytest.raises(ValueError, match=r"worst holds 2 rows, and x 3: pass x\[worst.index\]"):
        plots.worst_reconstructions(torch.rand(3, 5), torch.rand(3, 5), worst)


def test_samples_say_what_they_are() -> None:
    kinds = {"data": torch.rand(9, 4, 4), "draws of x": torch.rand(9, 4, 4)}
    kinds["means of p(x | z)"] = torch.rand(9, 4, 4) / 2
    data, draws, means = kinds.values()
    figure = plots.prior_samples(draws, means=means, data=data)
    draw(figure)
    panels = figure.axes[:3]
    assert [axes.get_title() for axes in panels] == list(kinds)
    for axes, rows in zip(panels, kinds.values(), strict=True):
        for n in range(9):
            np.testing.assert_array_equal(tile(axes, *divmod(n, 8), (4, 4)), rows[n].double())
        # All on one scale: means on one of their own would be as bright as draws.
        assert axes.images[0].get_clim() == pytest.approx((0, float(data.max())))
    assert plots.prior_samples(means=means).axes[0].get_title() == "means of p(x | z)"

    many = torch.rand(70, 4, 4)
    figure = plots.prior_samples(many, means=many / 2)
    draw(figure)
    left, right = figure.axes[:2]
    titles = [axes.get_title() for axes in (left, right)]
    assert titles == ["draws of x\n(64 of 70)", "means of p(x | z)\n(64 of 70)"]
    for n in range(64):
        np.testing.assert_array_equal(tile(left, *divmod(n, 8), (4, 4)), many[n].double())
        np.testing.assert_array_equal(tile(right, *divmod(n, 8), (4, 4)), many[n].double() / 2)

    tables = plots.prior_samples(torch.rand(5, 3), means=torch.rand(5, 3), data=torch.rand(5, 3))
    draw(tables)
    words = [axes.get_title().replace("\n", " ") for axes in tables.axes[:3]]
    assert words == list(kinds)


def test_of_many_rows_some_are_chosen_at_random() -> None:
    """Sorted by class, the first rows would all be of one."""
    x = torch.arange(300.0)[:, None, None].expand(-1, 2, 2)
    chosen = {seed: shown(plots.reconstructions(x, x, seed=seed)) for seed in (0, 1)}
    for rows in chosen.values():
        assert len(set(rows)) == 24
        assert max(rows) > 200
        assert rows == sorted(rows)
    assert chosen[0] != chosen[1]
    assert chosen[0] == shown(plots.reconstructions(x, x, seed=0))


def shown(figure: Figure) -> list[float]:
    """The values of the inputs, in reading order."""
    axes = figure.axes[0]
    return [float(tile(axes, 2 * i, j, (2, 2))[0, 0]) for i in range(3) for j in range(8)]


# -- data without a picture ------------------------------------------------------------------------


def test_other_data_become_heat_maps_on_one_scale() -> None:
    x, y = torch.randn(6, 4), 3 * torch.randn(6, 4)
    figure = plots.reconstructions(x, y)
    draw(figure)
    left, right = figure.axes[:2]
    np.testing.assert_array_equal(image(left), x.double())
    np.testing.assert_array_equal(image(right), y.double())
    assert (
        left.images[0].get_clim() == right.images[0].get_clim() == (float(x.min()), float(x.max()))
    )
    assert [left.get_title(), right.get_title()] == ["input", "reconstruction"]
    assert [left.get_xlabel(), left.get_ylabel()] == ["dimension", "row"]

    samples = plots.prior_samples(x)
    draw(samples)
    np.testing.assert_array_equal(image(samples.axes[0]), x.double())


def test_other_data_become_curves() -> None:
    def line(z: torch.Tensor) -> torch.Tensor:
        return z[:, :1] * torch.tensor([1.0, 2.0, 3.0]) + z[:, 1:2]

    moved = torch.linspace(-3, 3, 9)
    flat_path = line(torch.stack([torch.zeros(9), moved], 1))
    steep_path = line(torch.stack([moved, torch.zeros(9)], 1))
    figure = plots.traversals(torch.stack([steep_path, flat_path]), [0.5, 2.0])
    draw(figure)
    first, second, bar = figure.axes
    assert [first.get_ylabel(), second.get_ylabel()] == ["z[1]\n2.0\nnats", "z[0]\n0.5\nnats"]
    (flat,), (steep,) = first.collections, second.collections
    np.testing.assert_allclose(curves(steep)[-1], [[0.0, 3.0], [1.0, 6.0], [2.0, 9.0]])
    np.testing.assert_allclose(curves(flat)[0], [[0.0, -3.0], [1.0, -3.0], [2.0, -3.0]])
    assert bar.get_ylabel() == "prior standard deviations"
    assert np.asarray(flat.get_array()) == pytest.approx(np.linspace(-3, 3, 9))

    paths = plots.interpolations(torch.stack([steep_path, flat_path]))
    draw(paths)
    assert [axes.get_ylabel() for axes in paths.axes[:2]] == ["path 0", "path 1"]
    (steep,) = paths.axes[0].collections
    np.testing.assert_allclose(curves(steep)[-1], [[0.0, 3.0], [1.0, 6.0], [2.0, 9.0]])

    grid = plots.manifold(line, size=3)
    draw(grid)
    (cells,) = grid.axes[0].collections
    across = np.array([np.ptp(cell[:, 0]) for cell in curves(cells)])
    heights = np.array([np.ptp(cell[:, 1]) for cell in curves(cells)])
    np.testing.assert_allclose(across, np.full(9, 0.8))
    # z[0] is 0 in the middle column, whose curves are flat; the others rise by 2 |z[0]| of the
    # 8 |z[0]| that lie between the least and the largest value of all.
    np.testing.assert_allclose(heights, [0.2, 0.0, 0.2] * 3, atol=1e-6)


# -- latent space ----------------------------------------------------------------------------------


def test_kl_is_sorted_and_activity_is_by_the_variance() -> None:
    kl, variance = torch.tensor([0.1, 2.0, 0.0, 1.0]), torch.tensor([0.5, 0.9, 0.0, 0.001])
    figure = plots.kl_per_dimension(kl, variance)
    draw(figure)
    upper, lower = figure.axes
    np.testing.assert_allclose([bar.get_height() for bar in bars(upper)], [2.0, 1.0, 0.1, 0.0])
    assert colors(upper) == [BLUE, ORANGE, BLUE, ORANGE]
    assert upper.get_title() == "2 of 4 latent dimensions active"
    assert upper.get_ylabel() == "KL (nats)"
    assert ticks(lower, "x") == ["1", "3", "0", "2"]
    active, inactive, threshold = lower.lines
    np.testing.assert_allclose(np.asarray(active.get_xydata()), [[0.0, 0.9], [2.0, 0.5]])
    np.testing.assert_allclose(np.asarray(inactive.get_xydata())[0], [1.0, 0.001])
    assert 0 < np.asarray(inactive.get_ydata())[1] < 0.001  # no variance at all: at the foot
    np.testing.assert_array_equal(threshold.get_ydata(), [0.01, 0.01])
    assert lower.get_yscale() == "log"


def test_aggregate_posterior_shows_the_two_dimensions_of_highest_kl() -> None:
    z, prior = torch.randn(500, 4) * 0.5, torch.randn(20000, 4)
    figure = plots.aggregate_posterior(z, prior, [0.1, 3.0, 0.0, 1.0], labels=torch.arange(500) % 3)
    draw(figure)
    axes, above, beside = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("z[1]", "z[3]")
    scatter, contours = axes.collections
    seen = np.column_stack([np.asarray(scatter.get_offsets()), scatter.get_facecolor()])
    classes = matplotlib.colormaps["tab10"](np.arange(500) % 3)
    wanted = np.column_stack([z[:, [1, 3]].double(), classes])
    # In random order, so that no class covers the others, and each point with its class.
    np.testing.assert_allclose(seen[seen[:, 0].argsort()], wanted[wanted[:, 0].argsort()])
    assert not np.array_equal(seen, wanted)
    assert [text.get_text() for text in axes.texts] == ["0", "1", "2"]
    # Around a share p of a standard normal in the plane: the circle of radius sqrt(-2 log(1 - p)).
    outer, inner = (np.hypot(*points.T) for points in curves(contours))
    assert np.median(inner) == pytest.approx(np.sqrt(-2 * np.log(0.5)), abs=0.1)
    assert np.median(outer) == pytest.approx(np.sqrt(-2 * np.log(0.05)), abs=0.15)
    # Both marginals are densities on the same bins.
    areas = [bar.get_height() * bar.get_width() for bar in bars(above)[:40]]
    assert sum(areas) == pytest.approx(1, abs=1e-6)
    assert len(beside.patches) == len(above.patches)


def test_a_standard_normal_prior_is_drawn_exactly() -> None:
    figure = plots.aggregate_posterior(torch.randn(50, 3), None, [0.1, 3.0, 1.0])
    draw(figure)
    axes, above, beside = figure.axes
    circles = bars(axes)
    assert [circle.center for circle in circles] == [(0, 0), (0, 0)]
    # P(|z| > r) = exp(-r^2 / 2) in the plane.
    outside = [np.exp(-(circle.radius**2) / 2) for circle in circles]
    assert outside == pytest.approx([0.05, 0.5])
    z, density = above.lines[0].get_data()
    assert density == pytest.approx(np.exp(-(np.asarray(z) ** 2) / 2) / np.sqrt(2 * np.pi))
    density, z = beside.lines[0].get_data()
    assert density == pytest.approx(np.exp(-(np.asarray(z) ** 2) / 2) / np.sqrt(2 * np.pi))
    low, high = axes.get_xlim()
    assert low < -2.448
    assert high > 2.448

    single = plots.aggregate_posterior(torch.randn(50, 1), None, [1.0])
    draw(single)
    assert len(single.axes[0].lines) == 1


def test_codes_are_the_principal_components() -> None:
    z = torch.randn(200, 5, generator=torch.Generator().manual_seed(0)) @ torch.randn(5, 5)
    labels = torch.arange(200) // 20
    figure = plots.codes(z, labels=labels)
    draw(figure)
    axes = figure.axes[0]
    (scatter,) = axes.collections
    ours = np.asarray(scatter.get_offsets())
    pca = PCA(2)
    theirs = pca.fit_transform(z.double().numpy())
    ours, theirs = (points[np.abs(points[:, 0]).argsort()] for points in (ours, theirs))
    np.testing.assert_allclose(np.abs(ours), np.abs(theirs), atol=1e-5)
    shares = pca.explained_variance_ratio_
    assert axes.get_xlabel() == f"PC 1 ({shares[0]:.0%} of variance)"
    assert axes.get_ylabel() == f"PC 2 ({shares[1]:.0%} of variance)"
    assert [text.get_text() for text in axes.texts] == [str(i) for i in range(10)]


def test_codes_of_two_dimensions_and_of_many_classes() -> None:
    z = torch.randn(60, 2)
    axes = plots.codes(z).axes[0]
    np.testing.assert_array_equal(axes.collections[0].get_offsets(), z.double())
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("z[0]", "z[1]")
    figure = plots.codes(z, labels=torch.arange(60) % 20)
    draw(figure)
    assert len(np.unique(figure.axes[0].collections[0].get_facecolor(), axis=0)) == 20


def test_umap_is_an_option(monkeypatch: pytest.MonkeyPatch) -> None:
    z = torch.randn(30, 4)
    monkeypatch.setitem(sys.modules, "umap", None)  # as if it were not installed
    with pytest.raises(ImportError, match="pip install umap-learn, or take method='pca'"):
        plots.codes(z, method="umap")
    module = ModuleType("umap")

    class Reducer:
        def __init__(self, random_state: int) -> None:
            self.seed = random_state

        def fit_transform(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
            return values[:, 2:] + self.seed

    module.UMAP = Reducer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "umap", module)
    axes = plots.codes(z, method="umap", seed=3).axes[0]
    np.testing.assert_allclose(np.asarray(axes.collections[0].get_offsets()), z[:, 2:].double() + 3)
    assert axes.get_xlabel() == "UMAP 1"


def test_aggregate_posterior_of_one_dimension_is_its_marginal() -> None:
    figure = plots.aggregate_posterior(torch.randn(50, 1), torch.randn(90, 1), [1.0])
    draw(figure)
    (axes,) = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("z[0]", "density")


def test_tokens_have_a_color_each_and_labels_that_differ() -> None:
    """The reconstruction has a category that the inputs do not have."""
    x = torch.tensor([[0, 1, 2], [2, 1, 0]]).double()
    elbo = Estimate(torch.tensor([-9.31, -9.42]))
    none = Estimate(torch.zeros(2))
    index = torch.tensor([4, 7])
    worst = Outliers(index, elbo, none, none, "elbo", 10)
    figure = plots.worst_reconstructions(x, x + 1, worst)
    draw(figure)
    left, right, bar = figure.axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["4: −9.3", "7: −9.4"]
    for axes, values in ((left, x), (right, x + 1)):
        image: Any = axes.images[0]
        colors = image.cmap(image.norm(values.numpy())).reshape(-1, 4)
        assert len({tuple(color) for color in colors}) == 3
    of_all: Any = left.images[0]
    assert len({tuple(c) for c in of_all.cmap(of_all.norm([0, 1, 2, 3]))}) == 4
    assert [label.get_text() for label in bar.get_yticklabels()] == ["0", "1", "2", "3"]
    assert not bar.yaxis.get_minorticklocs().size


@pytest.mark.parametrize(
    ("num_samples", "limit"), [(100, 0.5), (1000, 2 / 3), (10**6, 0.7), (2, 1 - 1 / np.log10(2))]
)
def test_khat_histogram_counts_the_rows_above_the_limit(num_samples: int, limit: float) -> None:
    khat = np.concatenate([np.linspace(-0.3, 1.4, 200), [np.nan, np.inf, -np.inf, -np.inf]])
    figure = plots.khat_histogram(khat, num_samples)
    draw(figure)
    (axes,) = figure.axes
    above = int((khat[:200] > limit).sum())
    assert axes.get_title() == f"k-hat too high: {above + 2} of 204 rows"
    heights = np.array([bar.get_height() for bar in bars(axes)])
    assert heights.sum() == 200
    assert heights[np.array(colors(axes)) == ORANGE].sum() == above
    assert np.asarray(axes.lines[0].get_xdata()) == pytest.approx([limit, limit])
    assert [text.get_text() for text in axes.texts] == ["2 rows: equal weights\n2 rows: unknown"]


def test_khat_histogram_counts_annealed_rows_apart() -> None:
    khat, annealed = np.array([0.1, 0.2, -np.inf, np.nan]), np.array([False, False, False, True])
    (axes,) = plots.khat_histogram(khat, 1000, annealed).axes
    assert axes.get_title() == "k-hat too high: 0 of 3 rows"
    assert axes.texts[0].get_text() == "1 row: equal weights\n1 row annealed,\nwithout k-hat"
    (axes,) = plots.khat_histogram(np.full(3, np.nan), 1000, np.array([True, True, False])).axes
    assert axes.get_title() == "k-hat too high: 1 of 1 row"
    assert axes.texts[0].get_text() == "1 row: unknown\n2 rows annealed,\nwithout k-hat"
    with pytest.raises(ValueError, match="khat has 4 rows, and annealed 3"):
        plots.khat_histogram(khat, 1000, annealed[:3])


def test_khat_histogram_of_an_exact_guide_has_no_bars() -> None:
    figure = plots.khat_histogram(torch.full((9,), -torch.inf), 100)
    draw(figure)
    assert figure.axes[0].get_title() == "k-hat too high: 0 of 9 rows"


def test_a_picture_is_drawn_without_pyplot(monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing it fails here, and none of our modules has it already."""
    pyplot = sys.modules.get("matplotlib.pyplot")
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError):
        importlib.import_module("matplotlib.pyplot")
    draw(plots.khat_histogram([0.1], 9))
    ours = [m for name, m in sys.modules.items() if name.partition(".")[0] == "ppl_vae"]
    assert len(ours) > 100
    assert pyplot is None or not any(pyplot is value for m in ours for value in vars(m).values())


@pytest.mark.slow
def test_no_picture_touches_pyplot() -> None:
    import subprocess

    program = (
        "import sys; from ppl_vae import plots; plots.khat_histogram([0.1], 9);"
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
