"""The command line as a user meets it: real commands, killed and resumed runs, and what is said of mistakes."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import catalogue
import numpy as np
import pytest
import torch
import yaml

from ppl_vae.cli import main
from ppl_vae.cli.results import result_table
from ppl_vae.data import load_data
from ppl_vae.diagnosis import Diagnosis, diagnose
from ppl_vae.evaluation import Evaluation, evaluate
from ppl_vae.guides import MeanField
from ppl_vae.models import VAE
from ppl_vae.plots import prior_samples
from ppl_vae.runs import save_run
from ppl_vae.runs.contents import holds_others
from ppl_vae.runtime import read_tensors
from ppl_vae.stats import Estimate

ROOT = Path(__file__).parent.parent
SMALL, NETWORK = catalogue.SMALL_RUN, catalogue.SMALL_NETWORK
PICTURES = {
    *("learning_curves", "reconstructions", "worst_reconstructions", "prior_samples", "traversals"),
    *("interpolations", "kl_per_dimension", "aggregate_posterior", "codes", "khat"),
}


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "ppl_vae.cli", *arguments]


def environment(*folders: Path) -> dict[str, str]:
    """One thread, as in the tests' own process; no checkout on the path but this one."""
    path = os.pathsep.join(str(folder) for folder in (ROOT, *folders))
    return os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments), cwd=cwd, env=environment(), capture_output=True, text=True, timeout=300
    )


@contextlib.contextmanager
def numbers_alone() -> Iterator[None]:
    """Neither pictures nor posterior.nc: they take most of a run's time, and `first` has them."""
    with (
        patch("ppl_vae.cli.finish.draw_run", return_value=[]),
        patch("ppl_vae.cli.finish.to_arviz", return_value=None),
    ):
        yield


def train(folder: Path, *arguments: str) -> None:
    """A run in this process."""
    with numbers_alone():
        assert main(["train", "--run_dir", str(folder), *SMALL, *NETWORK, *arguments]) == 0


def same_weights(*folders: Path) -> bool:
    first, second = (read_tensors(folder / "weights.safetensors")[0] for folder in folders)
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def config_of(folder: Path) -> dict[str, Any]:
    return dict(yaml.safe_load((folder / "config.yaml").read_text()))


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("workplace")


@pytest.fixture(scope="module")
def done(workplace: Path) -> subprocess.CompletedProcess[str]:
    """A training by the real command, in a process of its own."""
    done = run("train", "--run_dir", "first", "--max_epochs", "2", *SMALL, *NETWORK, cwd=workplace)
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def first(workplace: Path, done: subprocess.CompletedProcess[str]) -> Path:
    """The run that it made."""
    return workplace / "first"


@pytest.fixture(scope="module")
def second(workplace: Path) -> Path:
    """Another guide on the same rows."""
    train(workplace / "second", "--max_epochs", "2", "--guide", "FullCovariance")
    return workplace / "second"


# -- train -----------------------------------------------------------------------------------------------


def test_train_leaves_a_whole_run(first: Path, done: subprocess.CompletedProcess[str]) -> None:
    assert {p.name for p in first.iterdir()} == {
        *("config.yaml", "weights.safetensors", "metrics.csv", "evaluation.json"),
        *("evaluation.csv", "diagnosis.json", "posterior.nc", "plots", "checkpoints"),
        *("plots_dark", "report.html"),
    }
    assert {p.stem for p in (first / "plots").iterdir()} == PICTURES
    assert not holds_others(first)  # `--overwrite` replaces all of them
    for words in ("ELBO", "rate", "distortion", "log p(x), 20 samples", "bits per dimension"):
        assert words in done.stdout
    for words in ("ESS", "Pareto k-hat", "active units", "mutual information", "±", "first/plots"):
        assert words in done.stdout
    diagnosis = json.loads((first / "diagnosis.json").read_text())
    assert diagnosis["summary"] in done.stdout
    with (first / "metrics.csv").open() as lines:
        assert [row["epoch"] for row in csv.DictReader(lines)] == ["1", "2"]


def test_without_a_terminal_there_is_no_bar(done: subprocess.CompletedProcess[str]) -> None:
    assert "\r" not in done.stderr
    assert "%|" not in done.stderr
    assert "Traceback" not in done.stderr


def test_without_a_terminal_each_stage_is_told(done: subprocess.CompletedProcess[str]) -> None:
    told = done.stderr.splitlines()
    stages = [
        "trained 2 epochs",
        "evaluation: ",
        "diagnosis: ",
        "writing posterior.nc",
        "pictures: ",
    ]
    found = [next(i for i, line in enumerate(told) if line.startswith(words)) for words in stages]
    assert found == sorted(found)
    (start,) = (i for i, line in enumerate(told) if re.fullmatch(r"took .* m?i?n?s?:", line))
    listed = [re.match(r"  (\S.*?)  +[\d.]+ (s|min .*)$", line) for line in told[start + 1 :]]
    assert [match and match[1] for match in listed] == [
        *("data and pair", "checks", "training", "saving"),
        *("evaluation", "evaluation of training rows", "diagnosis", "posterior.nc", "pictures"),
        "report",
    ]


@pytest.mark.parametrize(
    ("posterior", "large", "written"),
    [
        pytest.param("auto", False, True, marks=pytest.mark.slow),
        ("auto", True, False),
        pytest.param("always", True, True, marks=pytest.mark.slow),
        ("never", False, False),
    ],
)
def test_a_large_posterior_is_written_if_it_is_asked_for(
    posterior: str,
    large: bool,
    written: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    monkeypatch.setattr("ppl_vae.cli.finish.draw_run", lambda *_: [])
    if large:
        monkeypatch.setattr("ppl_vae.cli.finish.LARGE_POSTERIOR", 1000)
    options = ("--max_epochs", "1", "--posterior", posterior)
    assert main(["train", "--run_dir", str(run), *SMALL, *NETWORK, *options]) == 0
    told = capsys.readouterr().err
    assert (run / "posterior.nc").is_file() is written
    left_out = [line for line in told.splitlines() if "posterior.nc is left out" in line]
    assert bool(left_out) is (posterior == "auto" and large)
    if left_out:
        assert f"`ppl-vae export {run}` writes it (so does --posterior always)" in left_out[0]
        assert main(["export", str(run), "--num_samples", "2"]) == 0
        assert (run / "posterior.nc").is_file()
    assert "posterior" not in config_of(run)
    assert main(["evaluate", str(run), "--num_samples", "5", "--overwrite"]) == 0


def test_the_configuration_is_resolved(first: Path) -> None:
    config = config_of(first)
    model, guide = config["model"], config["guide"]
    assert (model["class_path"], guide["class_path"]) == (
        "ppl_vae.models.VAE",
        "ppl_vae.guides.MeanField",
    )
    assert model["init_args"]["data_shape"] == guide["init_args"]["data_shape"] == [1, 8, 8]
    assert model["init_args"]["network"] == guide["init_args"]["network"]
    assert guide["init_args"]["network"]["init_args"]["hidden"] == [16]
    assert model["init_args"]["latent_dim"] == guide["init_args"]["latent_dim"] == 10
    assert model["init_args"]["likelihood"] == {
        "class_path": "ppl_vae.likelihoods.Binomial",
        "init_args": {"total_count": 16},
    }
    assert config["objective"]["init_args"]["beta"] == 1.0
    assert config["data"] == "digits"
    assert config["seed"] == 0
    assert config["versions"]["torch"] == str(torch.__version__)
    assert not {"run_dir", "resume", "quiet", "debug", "overwrite"} & set(config)


def test_the_configuration_of_a_run_starts_another(first: Path, tmp_path: Path) -> None:
    again = tmp_path / "again"
    with numbers_alone():
        assert main(["train", "--config", str(first / "config.yaml"), "--run_dir", str(again)]) == 0
    assert config_of(again) == config_of(first)
    assert same_weights(first, again)
    assert (first / "evaluation.json").read_bytes() == (again / "evaluation.json").read_bytes()


MINE = """
    from __future__ import annotations

    from collections.abc import Sequence

    import pyro
    import pyro.distributions as dist
    import torch
    from torch import Tensor, nn


    class MyGuide:
        '''A guide that derives from nothing.

        Args:
            depth: Number of hidden layers.
        '''

        def __init__(self, data_shape: Sequence[int], latent_dim: int, depth: int = 1) -> None:
            layers: list[nn.Module] = [nn.Flatten()]
            width = torch.Size(data_shape).numel()
            for _ in range(depth):
                layers += [nn.Linear(width, 8), nn.ReLU()]
                width = 8
            self.net = nn.Sequential(*layers, nn.Linear(width, 2 * latent_dim))

        def __call__(self, x: Tensor) -> None:
            loc, scale = self.net(x).chunk(2, -1)
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(loc, scale.exp()).to_event(1))


    decoder = nn.Linear(2, 64)
    encoder = nn.Linear(64, 4)


    def model(x: Tensor) -> None:
        pyro.module("decoder", decoder)
        rate = pyro.param("rate", torch.tensor(1.0), constraint=dist.constraints.positive)
        with pyro.plate("rows", len(x)):
            z = pyro.sample("code", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            mean = (decoder(z).exp() * rate).clamp_max(1e3).reshape(-1, 1, 8, 8)
            pyro.sample("counts", dist.Poisson(mean).to_event(3), obs=x)


    def guide(x: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("rows", len(x)):
            loc, scale = encoder(x.flatten(1) / 16).chunk(2, -1)
            pyro.sample("code", dist.Normal(loc, scale.exp()).to_event(1))
    """


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of the user's own, on PYTHONPATH."""
    (tmp_path / "my_programs.py").write_text(textwrap.dedent(MINE))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_programs", raising=False)
    return "my_programs"


def test_a_class_of_ones_own(mine: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(tmp_path / "run", "--max_epochs", "1", "--guide", f"{mine}.MyGuide", "--guide.depth", "3")
    assert config_of(tmp_path / "run")["guide"] == {
        "class_path": f"{mine}.MyGuide",
        "init_args": {"data_shape": [1, 8, 8], "latent_dim": 10, "depth": 3},
    }
    assert main(["train", "--guide", f"{mine}.MyGuide", "--guide.depth", "deep"]) == 2
    assert "--guide.depth: expected int, got deep" in capsys.readouterr().err
    assert main(["train", f"--guide.help={mine}.MyGuide"]) == 0
    assert "Number of hidden layers" in capsys.readouterr().out
    assert main(["evaluate", str(tmp_path / "run"), "--trust_packages", mine]) == 0


@pytest.mark.slow
def test_functions_of_ones_own(
    mine: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Pyro's way of writing a pair, with modules, a pyro.param, and names that are not ours."""
    folder = str(tmp_path / "run")
    arguments = ["--max_epochs", "2", "--model", f"{mine}.model", "--guide", f"{mine}.guide"]
    assert main(["train", "--run_dir", folder, *SMALL, *arguments]) == 0
    assert (tmp_path / "run" / "plots" / "manifold.png").is_file()
    drawn = {file.stem for file in (tmp_path / "run" / "plots").iterdir()}
    assert drawn == PICTURES - {"traversals", "codes"} | {"manifold"}  # z is a plane
    assert not holds_others(tmp_path / "run")  # `--overwrite` replaces all of them
    capsys.readouterr()
    trained = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    del sys.modules[mine]  # a new process would import it again, with other initial weights
    assert main(["evaluate", folder, "--num_samples", "20", "--overwrite", "--trust"]) == 0
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text()) == trained


class Terminal(io.StringIO):
    """A standard error that says that it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("quiet", [pytest.param(False, marks=pytest.mark.slow), True])
def test_the_bar_on_a_terminal(
    quiet: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    train(tmp_path / "run", "--max_epochs", "1", *(["--quiet"] if quiet else []))
    shown = terminal.getvalue()
    assert ("\r" in shown) is not quiet
    for word in ("elbo=", "rate=", "distortion=", "active="):
        assert (word in shown) is not quiet
    assert ("took " in shown) is not quiet
    assert "evaluation: " not in shown, "the bar has shown it"


class _Clock:
    """A clock of which each look takes some seconds."""

    def __init__(self, seconds: float) -> None:
        self.now, self.seconds = 0.0, seconds

    def monotonic(self) -> float:
        self.now += self.seconds
        return self.now


@pytest.mark.parametrize(
    ("quiet", "seconds", "most", "least"),
    [
        (False, 2.0, 10, 8),
        pytest.param(False, 1e-3, 0, 0, marks=pytest.mark.slow),
        pytest.param(True, 2.0, 0, 0, marks=pytest.mark.slow),
    ],
)
def test_a_training_without_a_terminal_tells_how_far_it_is(
    quiet: bool,
    seconds: float,
    most: int,
    least: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A line each tenth, with the ELBO and the time left; none of what is done at once, and none if quiet."""
    monkeypatch.setattr("ppl_vae.runtime.progress.time", _Clock(seconds))
    small = tuple(option for option in SMALL if option != "--quiet")
    with numbers_alone():
        options = (*small, *NETWORK, *(["--quiet"] if quiet else []), "--max_epochs", "40")
        assert main(["train", "--run_dir", str(tmp_path / "run"), *options]) == 0
    told = capsys.readouterr().err
    lines = [line for line in told.splitlines() if line.startswith("fit, ")]
    assert least <= len(lines) <= most
    for line in lines:
        assert re.fullmatch(
            r"fit, \d\d %: epoch \d+, elbo -?[\d.]+, rate .*; .* so far, about [\d.]+ (s|min.*) left",
            line,
        )
    assert ("took " in told) is not quiet
    assert ("evaluation: " in told) is not quiet


# -- killed and resumed ----------------------------------------------------------------------------------


def epochs_of(folder: Path) -> int:
    """The epochs that a training has finished so far."""
    file = folder / "metrics.csv"
    return len(file.read_text().splitlines()) - 1 if file.is_file() else 0


def wait_for(folder: Path, epochs: int, process: subprocess.Popen[str]) -> None:
    """Until a running training has finished more epochs than that, and has a checkpoint to go on from."""
    deadline = time.monotonic() + 120
    while epochs_of(folder) <= epochs or not any((folder / "checkpoints").glob("*.safetensors")):
        assert process.poll() is None, "the training ended before it could be killed"
        assert time.monotonic() < deadline, "the training did not get there in two minutes"
        time.sleep(0.02)


@pytest.mark.slow  # tests/test_kill.py kills forked processes, which need not import torch
def test_killed_and_resumed_ends_with_the_same_bits(tmp_path: Path) -> None:
    """Both are to go on forever, so that no machine is too slow to kill them in time."""
    never, killed = tmp_path / "never killed", tmp_path / "killed"
    options = ("--binarize", "dynamic", "--compile", "false")
    forever = ("--max_epochs", "1000000", "--patience", "1000000")
    start = ("train", "--run_dir", str(killed), *SMALL, *NETWORK, *options, *forever)
    resume = ("train", "--resume", str(killed))
    for arguments, how in ((start, signal.SIGKILL), (resume, signal.SIGINT)):
        before = epochs_of(killed)
        process = subprocess.Popen(
            command(*arguments),
            cwd=tmp_path,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            # Where the tests run in the background, a shell has the signal ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        try:
            wait_for(killed, before + 2, process)
            process.send_signal(how)
            _, errors = process.communicate(timeout=60)
        finally:
            process.kill()  # it would train on forever
        if how == signal.SIGINT:
            assert process.returncode == 130
            assert f"ppl-vae train --resume {killed}" in errors.replace("'", "")
            assert "Traceback" not in errors
        else:
            assert process.returncode == -signal.SIGKILL
        assert not (killed / "weights.safetensors").exists()
    epochs = ("--max_epochs", str(epochs_of(killed) + 3))
    with numbers_alone():
        assert main([*resume, *epochs]) == 0
    train(never, *options, *forever, *epochs)
    assert same_weights(killed, never)
    assert (killed / "evaluation.json").read_bytes() == (never / "evaluation.json").read_bytes()
    histories = []
    for folder in (killed, never):
        with (folder / "metrics.csv").open() as lines:
            histories.append([{**row, "seconds": ""} for row in csv.DictReader(lines)])
    assert histories[0] == histories[1]


def test_an_interrupted_run_is_finished_without_further_options(tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    train(whole, "--max_epochs", "4")
    with patch("ppl_vae.training.metrics.MetricsLog.add", side_effect=[None, KeyboardInterrupt]):
        start = ["train", "--run_dir", str(cut), *SMALL, *NETWORK, "--max_epochs", "4"]
        assert main(start) == 130
    assert not (cut / "weights.safetensors").exists()
    with numbers_alone():
        assert main(["train", "--resume", str(cut)]) == 0
    assert epochs_of(cut) == 4
    assert same_weights(cut, whole)


@pytest.mark.slow
def test_a_finished_run_can_be_continued_for_longer(tmp_path: Path) -> None:
    train(tmp_path / "short", "--max_epochs", "1")
    train(tmp_path / "long", "--max_epochs", "3")
    assert not same_weights(tmp_path / "short", tmp_path / "long")
    with numbers_alone():
        assert main(["train", "--resume", str(tmp_path / "short"), "--max_epochs", "3"]) == 0
    assert config_of(tmp_path / "short")["max_epochs"] == 3
    assert same_weights(tmp_path / "short", tmp_path / "long")


def test_a_finished_run_is_evaluated_again_with_another_number_of_samples(tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(run, "--max_epochs", "1")
    with numbers_alone():
        assert main(["train", "--resume", str(run), "--num_samples", "7"]) == 0
    assert config_of(run)["num_samples"] == 7
    assert json.loads((run / "evaluation.json").read_text())["num_samples"] == 7


def test_resuming_with_other_options_is_refused(
    first: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--resume", str(first), "--batch_size", "7", "--model.latent_dim", "3"]
    assert main(["train", *arguments]) == 2
    may = "only --max_epochs, --patience, --num_samples may change"
    assert f"leave out --batch_size, --model ({may})" in capsys.readouterr().err


# -- commands on runs ------------------------------------------------------------------------------------


def test_evaluate_repeats_the_numbers_of_the_training(
    first: Path, done: subprocess.CompletedProcess[str], capsys: pytest.CaptureFixture[str]
) -> None:
    before = (first / "evaluation.json").read_bytes()
    assert main(["evaluate", str(first), "--num_samples", "20"]) == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines()[0] in done.stdout
    assert "is left as it was (--overwrite replaces it)" in shown.err
    assert main(["evaluate", str(first), "--num_samples", "20", "--overwrite"]) == 0
    assert (first / "evaluation.json").read_bytes() == before


def test_diagnose(first: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = json.loads((first / "diagnosis.json").read_text())
    assert main(["diagnose", str(first), "--overwrite"]) == 0
    assert json.loads((first / "diagnosis.json").read_text()) == before
    shown = capsys.readouterr().out
    assert before["summary"] in shown
    table = [line.split() for line in shown.splitlines() if line.startswith("z[")]
    assert len(table) == 10
    sizes = [float(line[1]) for line in table]
    assert sizes == sorted(sizes, reverse=True)


def test_diagnose_reads_the_evaluation_that_the_run_holds(
    first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of these weights and rows, undamaged; and it evaluates training rows as those were evaluated."""
    run = tmp_path / "run"
    shutil.copytree(first, run)
    stored = json.loads((run / "evaluation.json").read_text())

    def given() -> dict[str, Any]:
        with patch("ppl_vae.cli.run_commands.diagnose_pair", wraps=diagnose) as asked:
            assert main(["diagnose", str(run), "--quiet"]) == 0
        return dict(asked.call_args.kwargs)

    options = given()
    assert options["evaluation"].elbo.mean == pytest.approx(stored["elbo"]["mean"])
    assert len(options["evaluation"].method) == stored["num_rows"]
    assert options["train"].num_samples == stored["num_samples"]
    assert 0 < options["train"].num_rows <= 200
    (run / "evaluation.csv").write_text("elbo\n1.0\n")
    assert given()["evaluation"] is None
    assert "the diagnosis goes without the evaluation" in capsys.readouterr().err
    (run / "evaluation.json").write_text(json.dumps({**stored, "weights_sha256": "0" * 64}))
    assert given()["evaluation"] is None
    (run / "evaluation.json").unlink()
    assert given()["evaluation"] is None


@pytest.mark.parametrize("saturated", [False, True])
def test_a_saturated_mutual_information_is_a_bound(saturated: bool) -> None:
    """20 rows can show log 20 = 3.00 nats: within a nat of that, the estimate is only a lower bound."""
    values = torch.tensor([2.5, 2.9] if saturated else [1.5, 1.9]).repeat(10)
    one, none, yes = torch.ones(1), torch.tensor([False]), torch.tensor([True])
    diagnosis = Diagnosis(("z[0]",), one, one, yes, none, *(4 * (Estimate(values),)), {}, 20)
    shown = "≥ 2.70 nats" if saturated else "1.700 ± 0.046 nats"
    assert ("mutual information", shown) in diagnosis.lines()
    x = torch.ones(20)
    e = Estimate(x)
    evaluation = Evaluation(e, e, e, e, x, x, 0 * x, num_samples=1000, num_values=3)
    lines = result_table(
        [*evaluation.lines(), *diagnosis.lines()], evaluation, diagnosis
    ).splitlines()
    (line,) = (line for line in lines if line.startswith("mutual information"))
    assert line.split("  ")[-1] == shown


def test_sample(first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arrays, picture = tmp_path / "draws.npz", tmp_path / "draws.png"
    assert main(["sample", str(first), "--num", "70", "-o", str(arrays)]) == 0
    with np.load(arrays) as draws:
        assert draws["z"].shape == (70, 10)
        assert draws["mean"].shape == draws["x"].shape == (70, 1, 8, 8)
        assert np.array_equal(draws["x"], draws["x"].round())
        assert 0 <= draws["x"].min() < draws["x"].max() <= 16
        # Binomial(16): the squared distance from the mean is 16 p (1 - p) on average.
        p = draws["mean"] / 16
        ratio = ((draws["x"] - draws["mean"]) ** 2).mean() / (16 * p * (1 - p)).mean()
        assert abs(ratio - 1) < 0.15
    assert "70 samples from the prior: draws of x and means of p(x | z) of the same z" in (
        capsys.readouterr().err
    )
    assert main(["sample", str(first), "--num", "9", "-o", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert main(["sample", str(first), "-o", str(picture)]) == 1
    assert "--overwrite" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("what", "said", "names"),
    [("draws", "draws of x", {"z", "x"}), ("means", "means of p(x | z)", {"z", "mean"})],
)
def test_sample_says_what_it_writes(
    what: str,
    said: str,
    names: set[str],
    first: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["sample", str(first), "--num", "5", "--what", what, "-o"]
    assert main([*words, str(tmp_path / "s.npz")]) == 0
    told = capsys.readouterr()
    assert f"5 samples from the prior: {said}\n" in told.err
    assert told.out == f"{tmp_path / 's.npz'}\n"
    with np.load(tmp_path / "s.npz") as found:
        assert set(found) == names
    with patch("ppl_vae.cli.run_commands.prior_samples", wraps=prior_samples) as drawn:
        assert main([*words, str(tmp_path / "s.png")]) == 0
    given = {"draws": drawn.call_args.args[0], "means": drawn.call_args.kwargs["means"]}
    assert [name for name, rows in given.items() if rows is not None] == [what]


def test_compare_pairs_the_rows(
    first: Path, second: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture = tmp_path / "comparison.png"
    assert main(["compare", str(first), str(second), "-o", str(picture)]) == 0
    shown = capsys.readouterr().out
    assert picture.read_bytes().startswith(b"\x89PNG")
    line = next(line for line in shown.splitlines() if line.startswith("second"))
    differences = re.findall(r"([+-]\d+\.\d+) ± (\d+\.\d+)", line)
    for (mean, error), name in zip(differences, ("elbo", "log_likelihood"), strict=True):
        a, b = (
            np.genfromtxt(f / "evaluation.csv", names=True, delimiter=",")[name]
            for f in (first, second)
        )
        assert float(mean) == pytest.approx((b - a).mean(), abs=0.0051)
        assert float(error) == pytest.approx((b - a).std(ddof=1) / len(a) ** 0.5, abs=0.0051)


def test_runs_on_other_rows_are_not_compared(
    first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path / "other", "--max_epochs", "1", "--binarize", "threshold")
    output = str(tmp_path / "c.png")
    assert main(["compare", str(first), str(tmp_path / "other"), "-o", output]) == 1
    assert "was evaluated on other rows than" in capsys.readouterr().err
    (tmp_path / "other" / "evaluation.json").unlink()
    assert main(["compare", str(first), str(tmp_path / "other"), "-o", output]) == 1
    assert "ppl-vae evaluate" in capsys.readouterr().err
    assert not Path(output).exists()


def test_a_run_saved_from_python_is_told_what_it_lacks(
    first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of what is advised, all is to work."""
    sizes = {"data_shape": [1, 8, 8], "latent_dim": 2}
    config = {
        "model": {"class_path": "ppl_vae.models.VAE", "init_args": sizes},
        "guide": {"class_path": "ppl_vae.guides.MeanField", "init_args": sizes},
    }
    model, guide = VAE((1, 8, 8), 2), MeanField((1, 8, 8), 2)
    x = load_data("digits", max_rows=60, binarize="threshold").test
    evaluation = evaluate(model, guide, x, num_samples=5, seed=0, progress=False)
    saved, output = tmp_path / "saved", str(tmp_path / "c.png")
    save_run(saved, model, guide, config=config, evaluation=evaluation)
    assert main(["compare", str(first), str(saved), "-o", output]) == 1
    shown = capsys.readouterr().err
    assert "save_run(..., evaluation=evaluate(model, guide, x), rows=x)" in shown
    assert "ppl-vae evaluate" not in shown
    again: dict[str, Any] = {"config": config, "rows": x, "overwrite": True}
    save_run(saved, model, guide, evaluation=evaluation, **again)
    assert main(["compare", str(saved), str(saved), "-o", str(tmp_path / "b.png")]) == 0
    save_run(saved, model, guide, evaluation=evaluation.to_dict(), **again)
    assert main(["compare", str(first), str(saved), "-o", str(tmp_path / "d.png")]) == 1
    assert "has no per-row values" in capsys.readouterr().err
    assert main(["evaluate", str(saved)]) == 1
    assert "config.yaml names no data" in capsys.readouterr().err
    data = {"data": "digits", "max_rows": 60, "binarize": "threshold"}
    save_run(saved, model, guide, config=config | data, evaluation=evaluation, overwrite=True)
    assert main(["compare", str(saved), str(saved), "-o", output]) == 1
    assert f"`ppl-vae evaluate {saved} --overwrite`" in capsys.readouterr().err
    assert main(["evaluate", str(saved), "--num_samples", "5", "--overwrite"]) == 0
    assert main(["compare", str(saved), str(saved), "-o", output]) == 0


def test_dequantized_bits_are_told_with_their_levels(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(tmp_path / "run", "--max_epochs", "1", "--dequantize", "true")
    trained = capsys.readouterr().out
    bits = json.loads((tmp_path / "run" / "evaluation.json").read_text())["bits_per_dim"]["mean"]
    (note,) = (line for line in trained.splitlines() if line.startswith("note: the data are"))
    assert note.endswith(f"{bits:.4f} + log2(17) = {bits + np.log2(17):.4f} bits per dimension")
    assert main(["evaluate", str(tmp_path / "run"), "--num_samples", "20"]) == 0
    assert note in capsys.readouterr().out


def test_export(first: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import xarray

    file = tmp_path / "run.nc"
    assert main(["export", str(first), "-o", str(file), "--num_samples", "20"]) == 0
    rows = np.genfromtxt(first / "evaluation.csv", names=True, delimiter=",")
    with xarray.open_dataset(file, group="log_likelihood") as group:
        (variable,) = group.data_vars.values()
        assert variable.mean(("chain", "draw")).values == pytest.approx(
            rows["log_likelihood"], abs=1e-4
        )
    assert main(["export", str(first)]) == 1
    assert "posterior.nc is there already" in capsys.readouterr().err


# -- mistakes --------------------------------------------------------------------------------------------

MISTAKES = [
    (["train", "--guide", "MeanFeild"], 2, "known are BottomUp, CategoricalEncoder, "),
    (["train", "--guide", "nowhere.Guide"], 2, "no module 'nowhere'"),
    (["train", "--guide", "ppl_vae.guides.Nothing"], 2, "no class or function 'Nothing'"),
    (
        ["train", "--objective", "ppl_vae.models.VAE"],
        2,
        "no subclass of ppl_vae.objectives.Objective",
    ),
    (["train", "--max_epochs", "many"], 2, "--max_epochs: expected int, got many"),
    (["train", "--model.latent_dim", "x"], 2, "--model.latent_dim: expected int, got x"),
    (["train", "--model.depth", "3"], 2, "--model: option 'depth' is not accepted (--model.help"),
    (["train", "--model.network", "Foo"], 2, "--model.network: expected the name of a known class"),
    (["train", "--binarize", "no"], 2, "one of 'threshold', 'static', 'dynamic', got no"),
    (["train", "--epochs", "3"], 2, "unrecognized arguments: --epochs 3"),
    (["train", "--objective.beta", "LinearWarmup"], 2, "--objective.beta.epochs is missing"),
    (["train", "--device", "cuda"], 1, "device='cuda', but torch sees no GPU: use device='auto'"),
    (["train", "--device", "cuda:1"], 1, "device='cuda:1', but torch sees no GPU"),
    (["train", "--device", "gpu"], 1, "device='gpu': expected 'auto', 'cpu', 'cuda'"),
    (["evaluate", "{first}", "--device", "cuda"], 1, "device='cuda', but torch sees no GPU"),
    (["diagnose", "{first}", "--device", "cuda:x"], 1, "the GPU's number is expected"),
    (["train", "--model.latent_dim", "-3"], 1, "VAE.latent_dim must be at least 1, got -3"),
    (["train", "--config", "nothing.yaml"], 2, "--config: file does not exist"),
    (["train", "--data", "digit"], 1, "Did you mean 'digits'?"),
    (["train", "--guide", "Exact"], 1, "Exact needs a model with a closed-form posterior(x)"),
    (
        ["train", "--guide.latent_dim", "3", "--run_dir", "new"],
        1,
        "give both one latent_dim, 10 or 3",
    ),
    (["train", "--max_epochs", "0", "--run_dir", "new"], 1, "max_epochs must be at least 1"),
    (["train", "--objective.beta", "-1"], 1, "beta is a weight of the KL and must be >= 0"),
    (["train", "--run_dir", "{first}"], 1, "overwrite=True (--overwrite on the command line)"),
    (["train", "--run_dir", "{first}", "--data", "digit"], 1, "there is a run in"),
    (["train", "--run_dir", "{workplace}", "--overwrite"], 1, "is not a run folder"),
    (["train", "--resume", "nothing"], 1, "there is no run folder nothing"),
    (["evaluate"], 2, "RUN is missing"),
    (["evaluate", "{workplace}"], 1, "is not a run: it holds no config.yaml"),
    (["compare", "{first}"], 2, "give two runs or more"),
    (["sample", "{first}", "--num", "0", "-o", "x.png"], 2, "--num must be at least 1"),
    (["export", "{first}", "-o", "nowhere/x.nc"], 1, "there is no folder nowhere"),
    (["tarin"], 2, "invalid choice: 'tarin'"),
    ([], 2, "COMMAND"),
]


@pytest.mark.parametrize(
    ("arguments", "code", "message"), MISTAKES, ids=[" ".join(m[0]) or "nothing" for m in MISTAKES]
)
def test_mistakes_are_told_in_a_line(
    arguments: list[str],
    code: int,
    message: str,
    first: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    weights = (first / "weights.safetensors").read_bytes()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)  # as on a machine without a GPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.chdir(tmp_path)
    filled = [a.format(first=first, workplace=first.parent) for a in arguments]
    assert main(filled) == code
    shown = capsys.readouterr()
    assert shown.out == ""
    assert message in shown.err
    assert "Traceback" not in shown.err
    assert "Namespace" not in shown.err
    assert not any(tmp_path.iterdir()), "a mistake must not leave a folder behind"
    assert (first / "weights.safetensors").read_bytes() == weights


def test_corrupted_weights_are_named_and_debug_shows_the_traceback(
    second: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.yaml").write_bytes((second / "config.yaml").read_bytes())
    data = (second / "weights.safetensors").read_bytes()
    (broken / "weights.safetensors").write_bytes(data[: len(data) // 2])
    assert main(["evaluate", str(broken)]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    (line,) = said.err.splitlines()
    assert line.startswith(f"ppl-vae: error: {broken}/weights.safetensors: the file is truncated")
    assert "train the run again" in line
    with pytest.raises(ValueError, match="truncated"):
        main(["evaluate", str(broken), "--debug"])


def test_overwrite_replaces_a_run(tmp_path: Path) -> None:
    train(tmp_path / "run", "--max_epochs", "2")
    (tmp_path / "run" / "notes.txt").write_text("mine")
    train(tmp_path / "run", "--max_epochs", "1", "--seed", "3", "--overwrite")
    assert config_of(tmp_path / "run")["seed"] == 3
    assert len((tmp_path / "run" / "metrics.csv").read_text().splitlines()) == 2
    assert (tmp_path / "run" / "notes.txt").read_text() == "mine"


def test_the_default_folder_names_data_model_and_guide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with numbers_alone():
        assert main(["train", "--max_epochs", "1", *SMALL, *NETWORK]) == 0
    (folder,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"digits-VAE-MeanField-\d{8}-\d{6}", folder.name)
