"""The pictures of EM show what they were given."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from ppl_vae.em import fit_em
from ppl_vae.models import BernoulliMixture
from ppl_vae.plots import bound_curves, components
from ppl_vae.plots.drawing import BLUE, ORANGE
from ppl_vae.plots.em import MOST_COMPONENTS

X = (torch.rand(60, 1, 4, 4, generator=torch.Generator().manual_seed(0)) < 0.5).float()


def draw(figure: Figure) -> None:
    """Everything that goes wrong only when drawn goes wrong here; warnings are errors."""
    figure.savefig(io.BytesIO(), format="png")


def legend(figure: Figure) -> list[str]:
    return [text.get_text() for box in figure.legends for text in box.get_texts()]


def test_climb_draws_one_curve_where_bound_and_evidence_are_one() -> None:
    fitted = fit_em(BernoulliMixture((1, 4, 4), 3), X, seed=0, max_iterations=7, tolerance=0)
    figure = bound_curves({"": fitted.history})
    draw(figure)
    (axes,) = figure.axes
    (line,) = axes.lines
    values = [row["log_likelihood"] for row in fitted.history]
    np.testing.assert_array_equal(line.get_xydata(), [[i, v] for i, v in enumerate(values)])
    assert axes.get_xlabel() == "iteration"
    assert legend(figure) == []
    assert not axes.collections


def test_climb_shades_what_q_misses() -> None:
    hard = fit_em(BernoulliMixture((1, 4, 4), 3), X, seed=0, max_iterations=5, hard=True)
    exact = fit_em(BernoulliMixture((1, 4, 4), 3), X, seed=0, max_iterations=5)
    figure = bound_curves({"EM": exact.history, "hard": hard.history})
    draw(figure)
    (axes,) = figure.axes
    of_exact, bound, truth = axes.lines
    assert of_exact.get_color() == BLUE
    assert bound.get_color() == truth.get_color() == ORANGE
    assert (bound.get_linestyle(), truth.get_linestyle()) == ("-", "--")
    np.testing.assert_array_equal(bound.get_ydata(), [row["bound"] for row in hard.history])
    np.testing.assert_array_equal(
        truth.get_ydata(), [row["log_likelihood"] for row in hard.history]
    )
    (gap,) = axes.collections  # only hard EM has one
    edge = np.asarray(gap.get_paths()[0].vertices)
    for row in hard.history:
        at = edge[edge[:, 0] == row["iteration"], 1]
        assert at.min() == pytest.approx(row["bound"])
        assert at.max() == pytest.approx(row["log_likelihood"])
    assert legend(figure) == ["EM", "hard", "bound", "log p(x)", "KL(q || p(z | x))"]


def test_climb_against_several_costs() -> None:
    history = [
        {
            "passes": 3.0 * i + 1,
            "gradient_evaluations": 2.0 * i,
            "seconds": 0.1 * i,
            "bound": -5.0 + i,
        }
        | {"log_likelihood": -5.0 + i}
        for i in range(4)
    ]
    figure = bound_curves({"one": history}, against=("passes", "gradient_evaluations", "seconds"))
    draw(figure)
    labels = ["passes over the data", "gradient evaluations", "seconds"]
    assert [axes.get_xlabel() for axes in figure.axes] == labels
    for axes, scale in zip(figure.axes, (3.0, 2.0, 0.1), strict=True):
        x = np.asarray(axes.lines[0].get_xdata())
        np.testing.assert_allclose(np.diff(x), scale)
        assert axes.get_xlim()[0] <= x[0]


def test_climb_knows_no_evidence_where_it_is_nan() -> None:
    history = [
        {"iteration": float(i), "bound": -float(9 - i), "log_likelihood": math.nan}
        for i in range(5)
    ]
    figure = bound_curves({"online": history})
    draw(figure)
    assert len(figure.axes[0].lines) == 1
    assert legend(figure) == ["online"]


def test_climb_leaves_out_a_poor_start() -> None:
    values = [-1e6, -1e4, *np.linspace(-20, -10, 28)]
    history = [
        {"iteration": float(i), "bound": v, "log_likelihood": v} for i, v in enumerate(values)
    ]
    figure = bound_curves({"": history})
    low, high = figure.axes[0].get_ylim()
    assert -25 < low < -19
    assert -10 < high < -5
    # It is there as a number.
    assert [text.get_text() for text in figure.axes[0].texts] == ["▼ iteration 0: −1,000,000"]


def test_climb_shows_its_first_iteration_and_says_what_it_shows() -> None:
    fitted = fit_em(BernoulliMixture((1, 4, 4), 3), X, seed=0, max_iterations=40, tolerance=0)
    values = [row["bound"] for row in fitted.history]
    figure = bound_curves({"": fitted.history})
    draw(figure)
    (axes,) = figure.axes
    low, high = axes.get_ylim()
    assert low < values[0] < values[-1] < high
    assert not axes.texts
    assert axes.get_ylabel() == "log p(x)\n(nats per row)"
    unknown = [row | {"log_likelihood": math.nan} for row in fitted.history]
    assert bound_curves({"": unknown}).axes[0].get_ylabel() == "bound\n(nats per row)"
    apart = [row | {"log_likelihood": row["bound"] + 1} for row in fitted.history]
    assert bound_curves({"": apart}).axes[0].get_ylabel() == "bound and log p(x)\n(nats per row)"


def test_climb_draws_a_single_iteration_and_refuses_none() -> None:
    figure = bound_curves({"": [{"iteration": 0.0, "bound": -3.0, "log_likelihood": -3.0}]})
    draw(figure)
    assert figure.axes[0].lines[0].get_marker() == "o"
    with pytest.raises(ValueError, match="at least one fit"):
        bound_curves({})
    with pytest.raises(ValueError, match="at least one iteration"):
        bound_curves({"EM": []})


@pytest.mark.parametrize("shape", [(4, 4), (1, 4, 4), (3, 4, 4), (1, 2, 6)])
def test_components_are_sorted_by_weight(shape: tuple[int, ...]) -> None:
    weights = torch.tensor([0.1, 0.3, 0.2, 0.15, 0.05, 0.2])
    means = torch.arange(1, 7).reshape(6, *(1 for _ in shape)).expand(6, *shape) / 6
    figure = components(means, weights)
    draw(figure)
    axes = figure.axes[0]
    titles = {text.get_text(): text.get_position() for text in axes.texts}
    assert [text.get_text() for text in axes.texts][:3] == ["0.300", "0.200", "0.200"]
    assert titles["0.050"][0] == 0  # the sixth, first in the second line of five
    (picture,) = axes.images
    values = picture.get_array()
    assert values is not None
    array = np.ma.filled(values, np.nan)
    left, right, bottom, top = picture.get_extent()
    for text, mean in zip(axes.texts, [2, 3, 6, 4, 1, 5], strict=True):
        column, row = text.get_position()[0], round(text.get_position()[1] + 0.4)
        y = (row + 0.3 - top) / (bottom - top) * array.shape[0]  # below the middle: in the picture
        x = (column - left) / (right - left) * array.shape[1]
        pixel = np.atleast_1d(array[int(y), int(x)])
        np.testing.assert_allclose(pixel, mean / 6, rtol=1e-6)


def test_components_that_are_no_pictures() -> None:
    means, weights = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), torch.tensor([0.25, 0.75])
    figure = components(means, weights)
    draw(figure)
    axes = figure.axes[0]
    (picture,) = axes.images
    np.testing.assert_array_equal(picture.get_array(), [[4, 5, 6], [1, 2, 3]])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["0.750", "0.250"]
    assert axes.get_ylabel() == "weight"


def test_components_say_how_many_are_shown() -> None:
    many = MOST_COMPONENTS + 10
    figure = components(torch.rand(many, 5, 5), torch.full((many,), 1 / many))
    draw(figure)
    assert len(figure.axes[0].texts) == MOST_COMPONENTS
    assert figure.axes[0].get_title() == f"{MOST_COMPONENTS} of {many} components, by weight"


def test_components_refuse_weights_of_another_number() -> None:
    with pytest.raises(ValueError, match=r"weights of shape \(2,\) and means of shape \(3, 4, 4\)"):
        components(torch.rand(3, 4, 4), torch.tensor([0.5, 0.5]))
