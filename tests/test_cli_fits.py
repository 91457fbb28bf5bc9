"""The command line around EM, refitted guides, annealed importance sampling and inference gaps."""

from __future__ import annotations

import csv
import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest.mock import patch

import catalogue
import pytest
import torch
import yaml

from ppl_vae.cli import main
from ppl_vae.data import load_data
from ppl_vae.runs import load_run
from ppl_vae.runs.contents import holds_others
from ppl_vae.runtime import read_tensors

SMALL, NETWORK = (*catalogue.SMALL_RUN, "--quiet"), catalogue.SMALL_NETWORK


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "trained"
    with patch("ppl_vae.cli.finish.draw_run", return_value=[]):
        options = ("--max_epochs", "3", "--model.latent_dim", "2", *SMALL, *NETWORK)
        assert main(["train", "--run_dir", str(folder), *options]) == 0
    return folder


def weights(folder: Path, role: str) -> dict[str, torch.Tensor]:
    saved = read_tensors(folder / "weights.safetensors")[0]
    return {name: value for name, value in saved.items() if name.startswith(role)}


def refit(run: Path, folder: Path, *arguments: str) -> int:
    with patch("ppl_vae.cli.finish.draw_run", return_value=[]):
        return main(["refit", str(run), "--run_dir", str(folder), "--max_epochs", "2", *arguments])


def test_refit_keeps_the_model_and_makes_a_run_of_its_own(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "refitted"
    assert refit(trained, folder, "--guide", "MixtureOfGaussians", "--guide.components", "2") == 0
    printed = capsys.readouterr()
    assert "log p(x)" in printed.out
    assert "trained 2 epochs (4 steps)" in printed.err
    before, after = weights(trained, "model"), weights(folder, "model")
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    run = load_run(folder)
    assert type(run.guide).__name__ == "MixtureOfGaussians"
    config = yaml.safe_load((folder / "config.yaml").read_text())
    of_run = yaml.safe_load((trained / "config.yaml").read_text())
    assert config["refit_of"] == str(trained.resolve())
    assert config["model"] == of_run["model"]
    assert config["guide"]["init_args"]["latent_dim"] == 2  # the model's
    assert (config["max_rows"], config["batch_size"]) == (60, 32)  # the run's, not the defaults
    with (folder / "metrics.csv").open() as lines:
        assert len(list(csv.DictReader(lines))) == 2
    assert main(["compare", str(trained), str(folder), "-o", str(tmp_path / "c.png")]) == 0


@pytest.mark.slow
def test_refit_keeps_a_vamp_prior_that_is_made_of_the_guide(tmp_path: Path) -> None:
    prior = ("--model.prior", "VampPrior", "--model.prior.components", "3")
    with patch("ppl_vae.cli.finish.draw_run", return_value=[]):
        bare = ("--posterior", "never", "--report", "false")
        options = ("--max_epochs", "1", "--model.latent_dim", "2", *SMALL, *NETWORK, *prior, *bare)
        assert main(["train", "--run_dir", str(tmp_path / "first"), *options]) == 0
    z = torch.randn(5, 2, generator=torch.Generator().manual_seed(0))
    of_run: Any = load_run(tmp_path / "first").model
    before = of_run.prior().log_prob(z)
    folder = tmp_path / "first"
    for name in ("FullCovariance", "LowRank"):  # of the second, too
        assert refit(folder, tmp_path / name, "--guide", name, "--quiet") == 0
        folder = tmp_path / name
        run = load_run(folder)
        assert type(run.guide).__name__ == name
        refitted: Any = run.model
        assert torch.equal(refitted.prior().log_prob(z), before)


@pytest.mark.slow
def test_a_refitted_run_is_not_resumed_as_a_training(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refit(trained, tmp_path / "again", "--quiet") == 0
    assert main(["train", "--resume", str(tmp_path / "again")]) == 2
    assert f"ppl-vae refit --resume {tmp_path / 'again'}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("refit",), "RUN is missing"),
        (("refit", "nowhere", "--guide", "LowRank"), "no run folder nowhere"),
        (("refit", "RUN", "--guide", "Wrong"), "known are"),
        (("gaps",), "RUN is missing"),
        (("gaps", "RUN", "--max_rows", "0"), "--max_rows must be at least 1"),
        (("gaps", "RUN", "--truth", "magic"), "invalid choice"),
        (("evaluate", "RUN", "--method", "magic"), "invalid choice"),
        (
            ("em", "--model", "VAE"),
            "EM cannot fit it, because its steps have no closed form; those",
        ),
        (("em", "--model", "VAE"), "To train VAE: ppl-vae train --model VAE"),
        (("em", "--model", "ppl_vae.models.VAE"), "EM needs a model that knows its posterior(x)"),
        (("em", "--max_iterations", "0"), "max_iterations must be at least 1"),
        (("em", "--model", "StandardNormal"), "there is no model of this name"),
    ],
)
def test_mistakes_are_told_in_a_line_and_leave_nothing(
    arguments: tuple[str, ...],
    words: str,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [str(trained) if a == "RUN" else a for a in arguments]
    assert main(given) in (1, 2)
    error = capsys.readouterr().err
    assert words in error
    assert "Traceback" not in error
    assert not [f for f in tmp_path.glob("runs/*") if any(f.iterdir())]


@pytest.mark.slow
def test_annealed_importance_sampling_of_a_run(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--num_chains", "4", "--num_steps", "10", "--max_rows", "5", "--quiet")
    assert main(["evaluate", str(trained), "--method", "ais", *options]) == 0
    assert "annealed from the guide" in capsys.readouterr().out
    found = json.loads((trained / "annealed.json").read_text())
    assert found["rows"]["num"] == 5
    assert len((trained / "annealed.csv").read_text().splitlines()) == 6
    first = (trained / "annealed.json").read_bytes()
    assert main(["evaluate", str(trained), "--method", "ais", "--from_prior", *options]) == 0
    assert "annealed from the prior" in capsys.readouterr().out
    assert (trained / "annealed.json").read_bytes() == first  # kept without --overwrite


def test_the_guide_alone_and_better_proposals(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--max_rows", "20", "--num_samples", "200", "--quiet", "--overwrite")
    printed = {}
    for method in ("importance", "auto", "annealed"):
        assert main(["evaluate", str(trained), "--method", method, *options]) == 0
        printed[method] = capsys.readouterr().out
    assert "proposals, rows" in printed["auto"]
    assert "proposals, rows" in printed["annealed"]
    assert "proposals, rows" not in printed["importance"]


@pytest.mark.parametrize("truth", ["auto", pytest.param("ais", marks=pytest.mark.slow)])
def test_gaps_of_a_run(truth: str, trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--max_rows", "4", "--num_samples", "50", "--num_steps", "5", "--overwrite")
    assert main(["gaps", str(trained), "--truth", truth, *options, "--quiet"]) == 0
    printed = capsys.readouterr().out
    assert "approximation gap" in printed
    assert "amortization gap" in printed
    assert printed.startswith("log p(x), importance sampling") == (truth == "auto")
    assert json.loads((trained / "gaps.json").read_text())["rows"]["num"] == 4
    assert (trained / "plots" / "gaps.png").stat().st_size > 0
    assert not holds_others(trained)  # `--overwrite` replaces all of them


OF_ROWS = ("prior_samples", "reconstructions", "worst_reconstructions")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "pictures"),
    [
        ("GaussianMixture", {"components", *OF_ROWS}),
        pytest.param("ProbabilisticPCA", {"interpolations", *OF_ROWS}, marks=pytest.mark.slow),
        pytest.param(*("FactorAnalysis", {"interpolations", *OF_ROWS}), marks=pytest.mark.slow),
        pytest.param(
            *("MixtureOfPCA", {*OF_ROWS}), marks=pytest.mark.slow
        ),  # it sums its components out
        pytest.param("GaussianHMM", {*OF_ROWS}, marks=pytest.mark.slow),  # a site for each step
    ],
)
def test_em_draws_what_the_model_makes_of_rows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str, pictures: set[str]
) -> None:
    folder = tmp_path / "run"
    options = ["--run_dir", str(folder), "--max_rows", "200", "--max_iterations", "3"]
    assert main(["em", "--model", model, *options]) == 0
    printed = capsys.readouterr()
    wanted = {"learning_curve", *pictures}
    assert {file.name for file in (folder / "plots").iterdir()} == {f"{n}.png" for n in wanted}
    assert f"            {', '.join(sorted(wanted))}\n" in printed.out
    assert "not drawn" not in printed.err


def test_em_leaves_a_run_that_is_evaluated_exactly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "mixture"
    options = ("--model", "BernoulliMixture", "--model.components", "3", "--binarize", "threshold")
    assert main(["em", *options, "--run_dir", str(folder), "--max_rows", "200", "--quiet"]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"^iterations +\d+, converged$", printed, re.MULTILINE)
    assert re.search(r"^log p\(x\), test rows +-\d", printed, re.MULTILINE)
    pictures = {"components", "learning_curve", *OF_ROWS}  # z is discrete: no paths
    assert {p.name for p in (folder / "plots").iterdir()} == {f"{name}.png" for name in pictures}
    assert f"pictures:   {folder / 'plots'}\n            {', '.join(sorted(pictures))}\n" in printed
    assert not holds_others(folder)  # `--overwrite` replaces all of them
    with (folder / "metrics.csv").open() as lines:
        climb = [float(row["log_likelihood"]) for row in csv.DictReader(lines)]
    assert all(b >= a - 1e-6 for a, b in pairwise(climb))
    assert main(["evaluate", str(folder), "--num_samples", "4", "--overwrite"]) == 0
    found = json.loads((folder / "evaluation.json").read_text())
    model = load_run(folder).model
    x = load_data("digits", binarize="threshold", max_rows=200, seed=0).test
    exact = model.log_evidence(x).double().mean()  # type: ignore[attr-defined]
    assert found["log_likelihood"]["mean"] == pytest.approx(float(exact.detach()), abs=1e-4)


def test_em_warns_of_a_model_that_overfits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ppl_vae.cli.em._draw", lambda *_, **__: [])
    short = ("--max_iterations", "5", "--quiet", "--run_dir")
    assert main(["em", "--model.components", "4", *short, str(tmp_path / "full")]) == 0
    (line,) = (w for w in capsys.readouterr().out.splitlines() if "overfits" in w)
    assert re.match(
        r"warning: log p\(x\) is [\d.]+ on the training rows and [\d.]+ on the test rows \([\d.]+ ±",
        line,
    )
    for words in (
        "fewer components (--model.components 2)",
        "simpler covariances (--model.covariance tied or --model.covariance diagonal)",
        "a higher floor (--model.min_scale 0.04)",
        "more rows",
    ):
        assert words in line
    for option in re.findall(r"(--model\.\w+) ([\w.]+)", line):
        assert main(["em", *option, "--print_config"]) == 0
    capsys.readouterr()
    simple = ("--model.components", "2", "--model.covariance", "spherical")
    assert main(["em", *simple, *short, str(tmp_path / "simple")]) == 0
    assert "overfits" not in capsys.readouterr().out


@pytest.mark.slow
def test_a_density_is_fitted_to_dequantized_levels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "factors"
    options = ("--model", "FactorAnalysis", "--max_rows", "100", "--max_iterations", "3", "--quiet")
    assert main(["em", *options, "--run_dir", str(folder)]) == 0
    captured = capsys.readouterr()
    assert "warning: not converged after 3 iterations: raise max_iterations" in captured.out
    note = "note: the data are dequantized, log p(x) is a density on [0, 1): the 17 levels"
    assert note in captured.out
    (kept,) = json.loads((folder / "evaluation.json").read_text())["notes"]
    assert f"note: {kept}".startswith(note)
    assert "17 levels of the data are dequantized" in captured.err
    assert yaml.safe_load((folder / "config.yaml").read_text())["dequantize"] is True
