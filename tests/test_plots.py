"""The pictures show what they were given: in the right place, in the right order, with names."""

from __future__ import annotations

import io
from typing import Any

import matplotlib.colors
import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ppl_vae import plots
from ppl_vae.plots.drawing import BLUE, ORANGE


def draw(figure: Figure) -> None:
    """Everything that goes wrong only when drawn goes wrong here; warnings are errors."""
    figure.savefig(io.BytesIO(), format="png")


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


def test_learning_curves_without_anything_to_draw_say_so() -> None:
    with pytest.raises(ValueError, match=r"any of elbo, rate.*got 1 epochs"):
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


def test_traversals_move_one_latent_a_row_in_the_order_of_the_kl() -> None:
    figure = plots.traversals(plane, torch.tensor([0.25, 3.0, 1.0]))
    draw(figure)
    axes = figure.axes[0]
    assert ticks(axes, "y") == ["z[1]: 3.0", "z[2]: 1.0", "z[0]: 0.2"]
    assert ticks(axes, "x") == ["-3.0", "-1.5", "0", "+1.5", "+3.0"]
    for column, value in enumerate(np.linspace(-3, 3, 9)):
        np.testing.assert_allclose(tile(axes, 0, column, (2, 3)), [[0] * 3, [value] * 3])
        np.testing.assert_allclose(tile(axes, 1, column, (2, 3)), np.zeros((2, 3)))
        np.testing.assert_allclose(tile(axes, 2, column, (2, 3)), [[value] * 3, [0] * 3])


def test_traversals_show_the_ten_largest() -> None:
    figure = plots.traversals(plane, np.arange(30.0))
    assert ticks(figure.axes[0], "y")[::9] == ["z[29]: 29.0", "z[20]: 20.0"]


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

    figure = plots.traversals(line, [0.5, 2.0])
    draw(figure)
    first, second, bar = figure.axes
    assert [first.get_ylabel(), second.get_ylabel()] == ["z[1]\n2.0\nnats", "z[0]\n0.5\nnats"]
    (flat,), (steep,) = first.collections, second.collections
    np.testing.assert_allclose(curves(steep)[-1], [[0.0, 3.0], [1.0, 6.0], [2.0, 9.0]])
    np.testing.assert_allclose(curves(flat)[0], [[0.0, -3.0], [1.0, -3.0], [2.0, -3.0]])
    assert bar.get_ylabel() == "value of the latent, the others at 0"

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
    np.testing.assert_array_equal(scatter.get_offsets(), z[:, [1, 3]].double())
    assert [text.get_text() for text in axes.texts] == ["0", "1", "2"]
    # Around a share p of a standard normal in the plane: the circle of radius sqrt(-2 log(1 - p)).
    outer, inner = (np.hypot(*points.T) for points in curves(contours))
    assert np.median(inner) == pytest.approx(np.sqrt(-2 * np.log(0.5)), abs=0.1)
    assert np.median(outer) == pytest.approx(np.sqrt(-2 * np.log(0.05)), abs=0.15)
    # Both marginals are densities on the same bins.
    areas = [bar.get_height() * bar.get_width() for bar in bars(above)[:40]]
    assert sum(areas) == pytest.approx(1, abs=1e-6)
    assert len(beside.patches) == len(above.patches)


def test_aggregate_posterior_of_one_dimension_is_its_marginal() -> None:
    figure = plots.aggregate_posterior(torch.randn(50, 1), torch.randn(90, 1), [1.0])
    draw(figure)
    (axes,) = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("z[0]", "density")


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


def test_khat_histogram_of_an_exact_guide_has_no_bars() -> None:
    figure = plots.khat_histogram(torch.full((9,), -torch.inf), 100)
    draw(figure)
    assert figure.axes[0].get_title() == "k-hat too high: 0 of 9 rows"


def test_no_picture_touches_pyplot() -> None:
    import subprocess
    import sys

    program = (
        "import sys; from ppl_vae import plots; plots.khat_histogram([0.1], 9);"
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
