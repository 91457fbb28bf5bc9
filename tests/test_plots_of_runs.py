"""The pictures of a run show what the tasks give; every picture can be read in a light and in a dark style."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import matplotlib.style
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from matplotlib.artist import Artist
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.image import imread
from matplotlib.lines import Line2D
from matplotlib.patches import Circle
from matplotlib.text import Text
from torch import Tensor

import ppl_vae
from ppl_vae import plots
from ppl_vae.diagnosis import Gaps, guide_on_grid, posterior_grid
from ppl_vae.guides import Exact, MeanField
from ppl_vae.models import VAE, FlowPrior, HierarchicalVAE, MixturePrior, ProbabilisticPCA
from ppl_vae.networks import MLP
from ppl_vae.plots.drawing import BLUE
from ppl_vae.plots.run import is_standard_normal
from ppl_vae.rate_distortion import linear_optimum
from ppl_vae.stats import Estimate
from ppl_vae.sweeps import METRICS as SWEPT, SweepTable, SweptPoint
from ppl_vae.tasks import Outliers

X = torch.randn(300, 4, 4, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(300) // 30


@pytest.fixture(scope="module")
def model() -> ProbabilisticPCA:
    torch.manual_seed(0)
    return ProbabilisticPCA((4, 4), latent_dim=3, sigma=0.5)


@pytest.fixture(scope="module")
def given(model: ProbabilisticPCA, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What each picture of a run was given, by the name of its function."""
    calls: dict[str, Any] = {}

    def recording(name: str) -> Callable[..., Figure]:
        real = getattr(plots.run, name)

        def record(*arguments: Any, **options: Any) -> Figure:
            calls[name] = (arguments, options)
            figure: Figure = real(*arguments, **options)
            return figure

        return record

    names = ["reconstructions", "worst_reconstructions", "prior_samples", "traversals"]
    names += ["interpolations", "aggregate_posterior", "codes"]
    recorded: Any = {name: recording(name) for name in names}
    guide = Exact(model)
    folder = tmp_path_factory.mktemp("plots")
    evaluation = ppl_vae.evaluate(model, guide, X, num_samples=20, seed=0, progress=False)
    diagnosis = ppl_vae.diagnose(model, guide, X, seed=0, progress=False)
    history = [{"epoch": 1, "elbo": -1.0}]
    calls["diagnosis"], calls["evaluation"] = diagnosis, evaluation
    with patch.multiple(plots.run, **recorded):
        results = (history, evaluation, diagnosis)
        assert plots.draw_run(folder, model, guide, X, *results, LABELS, "digest", 5) == []
    assert imread(folder / "traversals.png").std() > 0.05
    return calls


def rows_of(x: Tensor) -> list[int]:
    """Which rows these are."""
    return [int((row == X).flatten(1).all(1).nonzero()) for row in x]


def test_rows_are_chosen_at_random(given: dict[str, Any], model: ProbabilisticPCA) -> None:
    x, means = given["reconstructions"][0]
    index = rows_of(x)
    assert len(set(index)) == 24
    assert len(set(LABELS[index].tolist())) > 5  # the first 24 would be of one class
    # Of a linear decoder, the mean of E[x | z] over draws is near that at the mean of z.
    exact = decoded(model, model.posterior(x).mean)
    assert float((means - exact).abs().mean()) < 0.5 * float((x - exact).abs().mean())


def decoded(model: ProbabilisticPCA, z: Tensor) -> Tensor:
    return (z @ model.weight.T + model.mean).detach().reshape(*z.shape[:-1], 4, 4)


def test_the_worst_rows_are_those_of_the_evaluation(given: dict[str, Any]) -> None:
    x, _, worst = given["worst_reconstructions"][0]
    elbo = given["evaluation"].elbo.values
    assert rows_of(x) == worst.index.tolist() == elbo.argsort()[:8].tolist()
    torch.testing.assert_close(worst.elbo.values, elbo.sort().values[:8])


def test_draws_and_means_are_of_the_same_latents(
    given: dict[str, Any], model: ProbabilisticPCA
) -> None:
    (draws,), options = given["prior_samples"]
    noise = (draws - options["means"]).var() / (2 * model.log_sigma.detach()).exp()
    assert float(noise) == pytest.approx(1, abs=0.3)
    assert len(rows_of(options["data"])) == len(draws) == len(options["means"])


def test_traversals_start_at_a_row(given: dict[str, Any], model: ProbabilisticPCA) -> None:
    (paths, kl), options = given["traversals"]
    row = options["row"]
    (_,) = rows_of(row[None])
    names = options["names"]
    order = given["diagnosis"].kl.argsort(descending=True).tolist()
    assert names == [f"z[{i}]" for i in order]
    torch.testing.assert_close(kl, given["diagnosis"].kl[order])
    z = model.posterior(row[None]).mean.detach()
    for dimension, path in zip(order, paths, strict=True):
        moved = z.repeat(9, 1)
        moved[:, dimension] = torch.linspace(-3, 3, 9)
        torch.testing.assert_close(path, decoded(model, moved), atol=1e-5, rtol=1e-5)


def test_interpolations_lead_from_row_to_row(
    given: dict[str, Any], model: ProbabilisticPCA
) -> None:
    (paths,), options = given["interpolations"]
    a, b = options["a"], options["b"]
    assert len(set(rows_of(a)) | set(rows_of(b))) == 10
    for end, rows in ((0, a), (-1, b)):
        torch.testing.assert_close(
            paths[:, end], decoded(model, model.posterior(rows).mean), atol=1e-5, rtol=1e-5
        )


def test_codes_have_their_labels(given: dict[str, Any], model: ProbabilisticPCA) -> None:
    (z,), options = given["codes"]
    torch.testing.assert_close(z, model.posterior(X).mean.detach())
    assert torch.equal(options["labels"], LABELS)
    (draws, prior, _), options = given["aggregate_posterior"]
    assert prior is None
    assert draws.shape == (300, 3)
    assert torch.equal(options["labels"], LABELS)


def test_a_prior_is_standard_only_if_it_is_exactly() -> None:
    x = torch.zeros(3, 5)
    sizes: Any = ((5,), (4, 3), MLP((8,)), MLP((8,)))
    assert is_standard_normal(VAE((5,), 2), x)
    for prior in (MixturePrior(3), FlowPrior()):
        assert not is_standard_normal(VAE((5,), 2, prior=prior), x)
    assert not is_standard_normal(HierarchicalVAE(*sizes), x)

    def written(fn: Any) -> Callable[[Tensor], None]:
        def model(x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", fn)
                pyro.sample("x", dist.Normal(z.sum(-1, keepdim=True), 1.0).to_event(1), obs=x)

        return model

    zero, one = torch.zeros(2), torch.eye(2)
    assert is_standard_normal(written(dist.MultivariateNormal(zero, one)), x[:, :1])
    for fn in (
        dist.Normal(zero, torch.tensor([1.0, 1.001])).to_event(1),
        dist.Normal(torch.tensor([0.001, 0.0]), 1.0).to_event(1),
        dist.LogNormal(zero, 1.0).to_event(1),  # made of N(0, 1), but none
        dist.MultivariateNormal(zero, 2 * one),
    ):
        assert not is_standard_normal(written(fn), x[:, :1])


def test_what_a_pair_cannot_show_is_left_out(tmp_path: Path) -> None:
    """Categories have no paths between them; the other pictures are there."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Categorical(torch.ones(3)))
            pyro.sample("x", dist.Normal(torch.tensor([-1.0, 0.0, 2.0])[k], 1.0), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Categorical(torch.ones(len(x), 3)))

    x = torch.randn(50)
    evaluation = ppl_vae.evaluate(model, guide, x, num_samples=10, seed=0, progress=False)
    diagnosis = ppl_vae.diagnose(model, guide, x, seed=0, progress=False)
    history = [{"epoch": 1, "elbo": -1.0}]
    told = plots.draw_run(tmp_path, model, guide, x, history, evaluation, diagnosis)
    assert [line.partition(" ")[0] for line in told] == ["traversals.png", "interpolations.png"]
    assert all("'k' is discrete: there is no path between values" in line for line in told)
    assert (tmp_path / "prior_samples.png").is_file()


# -- styles -----------------------------------------------------------------------------------------------

ROWS = torch.rand(6, 4, 4, generator=torch.Generator().manual_seed(1))


def worst() -> Outliers:
    values = Estimate(-torch.arange(6.0).double())
    return Outliers(torch.arange(6), values, values, values, "elbo", 6)


def gaps() -> Gaps:
    model = ProbabilisticPCA((3,), 2)
    found = ppl_vae.inference_gaps(model, Exact(model), X[:5, 0, :3], num_samples=10, seed=0)
    return Gaps(**{**found.__dict__, "unreliable": found.converged | True})


def posterior(draw: Callable[..., Figure]) -> Figure:
    model, guide = ProbabilisticPCA((3,), 2), MeanField((3,), 2, MLP((8,)))
    x = X[:2, 0, :3]
    grid = posterior_grid(model, guide, x, size=65)
    log_q = guide_on_grid(model, guide, x, grid)
    return draw(
        grid,
        {"one": log_q, "other": log_q},
        **({"rows": [0]} if "contours" in draw.__name__ else {}),
    )


HISTORY = [
    {"epoch": e, "elbo": -900.0 / e, "validation_elbo": -950.0 / e, "rate": 1.0 * e, "beta": e / 20}
    | {"active_units": 3}
    for e in range(1, 41)
]
BOUNDS = [
    {"iteration": i, "bound": -1e5 / (i + 1) ** 4, "log_likelihood": -1e4 / (i + 1) ** 4}
    for i in range(30)
]
AT = linear_optimum([4.0, 1.0], 0.5, 1.0)


def drawn(figure: Figure | None) -> Figure:
    assert figure is not None
    return figure


def swept() -> SweepTable:
    """Two guides at three weights of the KL, with three seeds each."""
    return SweepTable(
        [],
        [
            SweptPoint(
                {"guide": guide, "objective.beta": beta},
                {name: [beta + i, beta + i + 2.0, beta + i + 7.0] for i, name in enumerate(SWEPT)},
                3,
            )
            for guide in ("A", "B")
            for beta in (0.1, 1.0, 4.0)
        ],
    )


PICTURES: dict[str, Callable[[], Figure]] = {
    "sweep_metrics": lambda: drawn(plots.sweep_metrics(swept())),
    "sweep_plane": lambda: drawn(plots.sweep_plane(swept())),
    "learning_curves": lambda: plots.learning_curves(HISTORY),
    "khat_histogram": lambda: plots.khat_histogram([0.1, 0.9, np.inf], 100),
    "bound_curves": lambda: plots.bound_curves({str(i): BOUNDS for i in range(7)}),
    "components": lambda: plots.components(ROWS, torch.full((6,), 1 / 6)),
    "gaps_plot": lambda: plots.gaps_plot({"one": gaps()}),
    "posterior_contours": lambda: posterior(plots.posterior_contours),
    "guides_over_posterior": lambda: posterior(plots.guides_over_posterior),
    "kl_per_dimension": lambda: plots.kl_per_dimension([1.0, 0.0], [1.0, 0.0]),
    "worth_of_units": lambda: plots.worth_of_units([1.0, 0.0], [True, False]),
    "aggregate_posterior": lambda: plots.aggregate_posterior(
        X[:, 0], None, torch.ones(4), labels=LABELS
    ),
    "aggregate_posterior of draws": lambda: plots.aggregate_posterior(
        X[:, 0], X[:, 1], torch.ones(4)
    ),
    "codes": lambda: plots.codes(X[:, 0], labels=LABELS),
    "use_of_codes": lambda: plots.use_of_codes({"z, level 1": [9, 0, 3], "z, level 2": [1, 1, 1]}),
    "reconstructions": lambda: plots.reconstructions(ROWS, ROWS),
    "worst_reconstructions": lambda: plots.worst_reconstructions(ROWS, ROWS, worst()),
    "prior_samples": lambda: plots.prior_samples(ROWS, means=ROWS, data=ROWS),
    "manifold": lambda: plots.manifold(lambda z: z[:, :1, None].expand(-1, 3, 3), size=3),
    "manifold of curves": lambda: plots.manifold(lambda z: z.repeat(1, 3), size=3),
    "traversals": lambda: plots.traversals(ROWS[None].repeat(2, 1, 1, 1), [1.0, 2.0], row=ROWS[0]),
    "traversals of curves": lambda: plots.traversals(ROWS[None, :, 0], [1.0]),
    "interpolations": lambda: plots.interpolations(ROWS[:, None], a=ROWS, b=ROWS),
    "rate_distortion": lambda: plots.rate_distortion(
        {"beta-VAE": {"β = 1": AT}, "others": [AT]}, curves={"exact": [AT, AT]}, entropy=20.0
    ),
}
NOT_HERE = {
    "contact_sheet",  # photos: tests/test_colorize.py
    "draw_colors",
    "segment_colors",
    "draw_run",
    "draw_rows",
    "comparison_plot",
    "RatePoint",
    "dark_paper",
}
"""Pictures that are drawn into files, one of runs on disk, whose colors are those of others, and a style."""


def test_every_picture_is_among_them() -> None:
    offered = {
        name for name in dir(plots) if not name.startswith("_") and callable(getattr(plots, name))
    }
    assert offered - NOT_HERE == {name.partition(" ")[0] for name in PICTURES}


def lightness(color: Any) -> float:
    """Relative luminance, as in the contrast of WCAG."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(color)]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


def contrast(color: Any, other: Any) -> float:
    low, high = sorted((lightness(color), lightness(other)))
    return (high + 0.05) / (low + 0.05)


def artists(figure: Figure) -> Iterator[tuple[Artist, Any]]:
    """All that is written, and all lines and outlines, with their colors."""
    for artist in figure.findobj():
        if not artist.get_visible():
            continue
        words = isinstance(artist, Text) and artist.get_text()
        line = isinstance(artist, Line2D) and artist.get_linestyle() != "None"
        if words or (line and np.size(artist.get_xdata())):  # type: ignore[attr-defined]
            yield artist, artist.get_color()  # type: ignore[attr-defined]


def colors_of(artist: Artist) -> set[str]:
    """The colors of a line, a patch or points."""
    names = ("get_color", "get_facecolor", "get_edgecolor", "get_markerfacecolor")
    found = [getattr(artist, name)() for name in names if hasattr(artist, name)]
    plain = [color for color in found if isinstance(color, str | tuple)]
    many = [
        tuple(row) for each in found if isinstance(each, np.ndarray) for row in np.atleast_2d(each)
    ]
    return {to_hex(color).upper() for color in [*plain, *many] if color not in ("none", "auto", ())}


STYLES: dict[str, Callable[[], AbstractContextManager[None]]] = {
    "default": lambda: matplotlib.style.context("default"),
    "dark_background": lambda: matplotlib.style.context("dark_background"),
    "dark paper of reports": plots.dark_paper,
}


# On white each picture, and on dark paper too: ours or that of a style of matplotlib, in turn.
@pytest.mark.slow(only=("sweep_metrics-dark_background", "gaps_plot-default"))
@pytest.mark.parametrize(
    ("name", "style"),
    [
        pytest.param(name, style, marks=() if j in (0, 1 + i % 2) else pytest.mark.slow)
        for i, name in enumerate(PICTURES)
        for j, style in enumerate(STYLES)
    ],
)
def test_nothing_is_invisible(name: str, style: str) -> None:
    torch.manual_seed(0)
    with STYLES[style]():
        figure = PICTURES[name]()
    figure.savefig(io.BytesIO())  # outside of the style, as a caller may save it later
    background = figure.get_facecolor()
    assert (lightness(background) < 0.1) == ("dark" in style)
    seen = list(artists(figure))
    assert len(seen) > 3
    for artist, color in seen:
        assert contrast(color, background) > 2, f"{artist} in {color}"
    for axes in figure.axes:
        for patch_ in axes.patches:
            if isinstance(patch_, Circle):
                assert contrast(patch_.get_edgecolor(), background) > 2
    # The dark blue of white paper is hardly seen on a dark one: bars, patches and points of it, too.
    if "dark" in style:
        assert not [artist for artist in figure.findobj() if BLUE in colors_of(artist)]


@pytest.mark.parametrize("name", PICTURES)
def test_words_are_large_enough_for_a_thumbnail(name: str) -> None:
    """300 pixels wide, words of the labels are at least 6 pixels high."""
    torch.manual_seed(0)
    figure = PICTURES[name]()
    figure.savefig(io.BytesIO())
    pixels_per_point = 300 / (72 * figure.get_figwidth())
    words = [artist for artist, _ in artists(figure) if isinstance(artist, Text)]
    assert min(float(word.get_fontsize()) for word in words) * pixels_per_point > 6
