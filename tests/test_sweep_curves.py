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
from ppl_vae.rate_distortion import linear_optimum
from ppl_vae.sweeps import Backdrop, SweepFolder, SweepSpec, SweepTable
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
    for run in spec.runs():
        place = Path("swept") / run.name
        quick = ["--quiet", "--report=false", "--posterior=never", "--num_samples=20"]
        assert main(["train", *run.arguments(), *quick, f"--run_dir={place}"]) == 0
        write_record(place, run.options, "done", 1.0)
    return spec


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
