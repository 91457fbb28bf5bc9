"""The curves behind the points of a sweep: those of the library, of the rows and the run that they name."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch

from ppl_vae import plots
from ppl_vae.cli import main
from ppl_vae.cli.mistakes import UsageError
from ppl_vae.cli.sweep_curves import backdrop_of, check_picture
from ppl_vae.data import load_data
from ppl_vae.plots import sweep_plane
from ppl_vae.rate_distortion import linear_optimum
from ppl_vae.sweeps import (
    METRICS,
    Backdrop,
    CurvePlace,
    SweepFolder,
    SweepSpec,
    SweepTable,
    SweptPoint,
    wrong_entropy,
)
from ppl_vae.sweeps.folder import write_record

TEXT = """
base: {data: x.npy, max_epochs: 2, model: ProbabilisticPCA, model.learn_sigma: false, model.sigma: 0.5}
grid: {objective.beta: [1, 4]}
picture: {entropy_bound: 6.5, exact: linear, frozen: "beta=4,seed=0"}
"""


@pytest.fixture
def spec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SweepSpec:
    """A sweep whose two runs are done, in the folder `swept`."""
    monkeypatch.chdir(tmp_path)
    np.save("x.npy", np.random.default_rng(0).normal(size=(300, 4)) * [3.0, 2.0, 1.0, 0.2])
    spec = SweepSpec.of(TEXT)
    monkeypatch.setattr("ppl_vae.cli.finish.draw_run", lambda *_, **__: [])
    for run in spec.runs():
        place = Path("swept") / run.name
        quick = ["--quiet", "--report=false", "--posterior=never", "--num_samples=20"]
        assert main(["train", *run.arguments(), *quick, f"--run_dir={place}"]) == 0
        write_record(place, run.options, "done", 1.0)
    return spec


@pytest.mark.slow
def test_curves_are_those_of_the_library_and_are_kept(spec: SweepSpec, capsys: Any) -> None:
    runs, path = spec.runs(), Path("swept")
    found = backdrop_of(SweepFolder(path, runs), spec.picture, runs, [])
    assert (found.entropy, found.entropy_bound) == (None, 6.5)
    frozen, exact = (
        found.curves["decoder of beta=4,seed=0, any guide"],
        found.curves["exact, of the training rows"],
    )
    train = load_data("x.npy", seed=0).train.double()
    eigenvalues = torch.linalg.eigvalsh(train.T.cov(correction=0))
    for place, beta in ((exact[0], 0.5), (exact[-1], 8.0)):
        best = linear_optimum(eigenvalues, 0.25, beta, latent_dim=2)
        assert place.rate == pytest.approx(best.rate, rel=1e-4)
        assert place.distortion == pytest.approx(best.distortion, rel=1e-4)
    assert [p.rate for p in frozen] == sorted(p.rate for p in frozen)
    # They are drawn, and not found again.
    figure = plots.sweep_plane(SweepTable.of(SweepFolder(path, runs), runs), found)
    assert figure is not None
    labels = [line.get_label() for line in figure.axes[0].lines]
    assert {*found.curves, "a bound of H − D"} <= {*labels}
    with patch("ppl_vae.cli.sweep_curves.frozen_decoder_curve", side_effect=AssertionError):
        assert backdrop_of(SweepFolder(path, runs), spec.picture, runs, []).curves == found.curves
    assert Backdrop.of(path, spec.picture).curves == found.curves
    capsys.readouterr()
    # What cannot be found costs the curve alone.
    (path / "curves.json").unlink()
    with patch("ppl_vae.cli.sweep_curves.frozen_decoder_curve", side_effect=ValueError("no")):
        assert (
            "exact, of the training rows"
            not in backdrop_of(SweepFolder(path, runs), spec.picture, runs, []).curves
        )
    assert "the picture lacks curves: no" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("before", "after", "told"),
    [
        ("model: ProbabilisticPCA", "model: VAE", "is known for `model: ProbabilisticPCA`"),
        ("sigma: false", "sigma: true", "with `model.learn_sigma: false` in all runs"),
        (
            "objective.beta: [1, 4]",
            "objective.beta: [1, 4], model.latent_dim: [1, 2]",
            "model.latent_dim differs between the runs",
        ),
    ],
)
def test_an_exact_curve_of_another_model_is_refused(before: str, after: str, told: str) -> None:
    spec = SweepSpec.of(TEXT.replace(before, after).replace(', frozen: "beta=4,seed=0"', ""))
    with pytest.raises(UsageError, match="picture: exact: linear") as error:
        check_picture("s.yaml", spec.picture, spec.runs())
    assert told in str(error.value)


def test_an_entropy_that_cannot_be_is_not_drawn() -> None:
    """H = 10.3 says that no ELBO is above -10.3; one of -8.8 shows that this is not the entropy."""
    values: dict[str, list[float]] = {name: [1.0] for name in METRICS}
    points = [
        SweptPoint(
            {"objective.beta": beta}, values | {"rate": [rate], "distortion": [8.8 - rate]}, 1
        )
        for beta, rate in ((1, 4.0), (2, 2.0))
    ]
    table = SweepTable([], points)
    said = wrong_entropy(10.3, table)
    assert said.startswith(
        "picture: entropy is 10.3, so that no ELBO is above -10.3, and that of beta 1 is -8.80"
    )
    assert (
        wrong_entropy(8.7, table) == wrong_entropy(8.9, table) == wrong_entropy(None, table) == ""
    )


def test_the_legend_of_a_plane_is_within_its_picture() -> None:
    points = [
        SweptPoint(
            {"objective.beta": beta},
            {name: [1.0, 1.1] for name in METRICS} | {"rate": [4 / beta, 4.1 / beta]},
            2,
        )
        for beta in (1, 2)
    ]
    curve = [CurvePlace(1.0, 3.0), CurvePlace(2.0, 2.0)]
    names = ("decoder of objective.beta=1,seed=0, any guide", "exact, of the training rows")
    figure = sweep_plane(SweepTable([], points), Backdrop(3.0, None, dict.fromkeys(names, curve)))
    assert figure is not None
    figure.draw_without_rendering()
    box = figure.legends[0].get_window_extent()
    assert 0 <= box.x0 < box.x1 <= figure.bbox.x1
