"""Options of the command line that are wrong: each answer names the option and what was expected."""

from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
import yaml
from bad_inputs import run as run, saved as saved
from forked import in_time

from ppl_vae.cli import main
from ppl_vae.runtime import seed_everything

LONG = "x" * 300


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["train", "--overwrite=yes"], 2, "--overwrite takes no value, got 'yes'"),
        (["train", "-help"], 2, "--help takes no value, got 'elp'"),
        (["--quiet", "train"], 2, "write ppl-vae train --quiet ..."),
        (["train", "--model", ""], 2, "--model: expected the name of a class, got an empty text"),
        (["train", "--seed="], 2, "--seed: expected int, got an empty text"),
        (["train", "--report", "maybe"], 2, "--report: expected true or false, got maybe"),
        (["train", "--run_dir", ""], 2, "--run_dir: expected str, got an empty text"),
        (["train", "--run_dir=~/x"], 1, "run_dir='~/x': ~ is for the shell"),
        (
            ["evaluate", "run/config.yaml"],
            1,
            "config.yaml is a file: give the folder of a run, such as run",
        ),
        (["train", "--num_processes", "1000"], 1, "num_processes=1,000 is more than this machine"),
        (
            ["train", "--lr_scheduler", "StepLR"],
            2,
            "--lr_scheduler.step_size is missing: StepLR needs it",
        ),
        (["train", "--lr_scheduler.step_size", "3"], 2, "--lr_scheduler: the class is missing"),
        (
            ["train", "--lr_scheduler", "StepLR", "--lr_scheduler.step_size", "often"],
            2,
            "--lr_scheduler.step_size: expected int, got often\n",
        ),
        (
            ["train", "--optimizer", "torch.nn.Linear"],
            2,
            "'torch.nn.Linear' to be a subclass of Optimizer\n",
        ),
        (
            ["train", "--objective.beta", "LinearWarmup", "--objective.beta.epochs", "0"],
            1,
            "error: LinearWarmup: epochs must be positive, got 0.0\n",
        ),
        (
            ["train", "--objective.beta", "TargetRate", "--objective.beta.nats", "-2"],
            1,
            "error: TargetRate: nats must be positive, got -2.0\n",
        ),
        (
            ["train", "--model", "./my_pair.Model"],
            2,
            "is not a full name such as package.module.Class",
        ),
        (
            ["train", "--model.latent_dim", str(10**12)],
            1,
            "MLP would hold 1,000,000,000,000 x 256 numbers, which take 953,674 GiB of memory",
        ),
        (
            ["sample", "run", "-o", "x.foo"],
            2,
            "--output x.foo: expected a name that ends with .png",
        ),
        (
            ["compare", "run", "run", "-o", "x"],
            2,
            "--output x: expected a name that ends with .png",
        ),
        (
            ["train", "--optimizer", "SGD", "--optimizer.momentum", "-1", "--max_rows", "20"],
            1,
            "optimizer is a partial of the class SGD, which raised ValueError",
        ),
        (["train", "--data", "folder:"], 1, "folder: names no folder: write folder:PATH"),
        (["train", "--max_epocs", "3"], 2, "--max_epocs 3 (did you mean --max_epochs?)"),
        (["train", "--model.latnt_dim", "3"], 2, "(did you mean --model.latent_dim?)"),
        (["train", "--model.network.hiden", "[3]"], 2, "(did you mean --model.network.hidden?)"),
        (["train", "--objective.betta", "3"], 2, "(did you mean --objective.beta?)"),
        (["train", "--gide", "MeanField"], 2, "(did you mean --guide?)"),
        (["evaluate", "run", "--nm_samples", "3"], 2, "(did you mean --num_samples?)"),
        (["train", "--num_samples", "1e12"], 1, "they take 231 days for each row"),
        (["train", "--num_samples=1.5e0"], 2, "--num_samples: expected int"),
        (["train", "--num_samples", "0"], 1, "num_samples must be at least 1, got 0"),
        (["train", "--num_samples", str(10**12)], 1, "num_samples must be at most 100,000,000"),
        (["train", "--seed", "9" * 23], 1, "seed must be a whole number of 64 bits"),
        (["train", "--num_processes", "0"], 1, "num_processes must be at least 1, got 0"),
        (["train", "--guide.latent_dim", "4"], 1, "10 dimensions in the model and 4 dimensions"),
        (["sample", "run", "--num", str(10**12)], 2, "--num must be at most 1,000,000"),
        (["evaluate", "run", "--num_samples", str(10**12)], 1, "num_samples must be at most"),
        (["train", "--resume", "run", "--seed", "3"], 2, "leave out --seed"),
        (["train", "--model.prior.components", "3"], 2, "--model.prior: the class is missing"),
        (
            ["train", "--model", "VQVAE", "--model.network", "MLP"],
            2,
            "--model.network: expected the name of a known class, of which VQVAE takes ConvolutionalGrid",
        ),
        (
            ["train", "--model", "VQVAE2", "--model.network", "Slots"],
            2,
            "--model.network: VQVAE2 takes GridPyramid alone, so that no class is named",
        ),
        (["train", "--model.prior.components", "3"], 2, "write --model.prior MixturePrior"),
        (
            ["train", "--model.likelihood.levels", "3"],
            2,
            "--model.likelihood: the class is missing",
        ),
        (["train", "--objective.beta.epochs", "3"], 2, "write --objective.beta LinearWarmup"),
        (["train", "--optimizer.lr", "0.1"], 2, "write --optimizer Adam"),
        (
            ["train", "--optimizer", "SGD", "--optimizer.lr", "x"],
            2,
            "--optimizer.lr: expected float, got x\n",
        ),
        (
            ["train", "--optimizer", "SGD", "--optimizer.momentum", "x"],
            2,
            "--optimizer.momentum: expected float, got x\n",
        ),
        (
            ["train", "--optimizer", "SGD", "--optimizer.lr", "0.1", "--learning_rate", "0.5"],
            2,
            "--optimizer.lr 0.1 and --learning_rate 0.5 are two step sizes: give one of the two",
        ),
        (
            ["train", "--learning_rate", "inf"],
            2,
            "--learning_rate: expected a finite number, got inf",
        ),
        (["train", "--learning_rate=-.inf"], 2, "expected a finite number, got -.inf"),
        (["train", "--clip_grad_norm", "nan"], 2, "--clip_grad_norm: expected a finite number"),
        (["em", "--tolerance", "nan"], 2, "--tolerance: expected a finite number, got nan"),
        (["train", "--objective.beta", "inf"], 2, "--objective.beta: expected a finite number"),
        (
            ["train", "--model", "{"],
            2,
            "--model {: this is not YAML that can be read; write the name",
        ),
        (["train", "--optimizer", "[a"], 2, "--optimizer [a: this is not YAML that can be read"),
        (["train", "--model.network", "{"], 2, "--model.network {: this is not YAML"),
        (["train", "--max_rows", "{"], 2, "--max_rows: expected int, got {"),
        (
            ["em", "--guide", "MeanField"],
            2,
            "(em takes none: the model knows p(z | x); ppl-vae train",
        ),
        (
            ["evaluate", "run", "--max_epochs", "3"],
            2,
            "an option of ppl-vae train, ppl-vae refit, ppl-vae refit-prior, ppl-vae colorize train, and",
        ),
        (["train", "--no-download"], 2, "(write --download false)"),
        (["translate", "a.txt", "--run"], 2, "argument --run: expected one argument"),
        (["translate", "a.txt", "--beam", "3", "--run", "run"], 2, "(did you mean --beams?)"),
        (["translate", "a.txt", "--run", "run"], 1, "a.txt does not exist"),
        (
            ["translate", "run/config.yaml", "--run", "run"],
            1,
            "run holds VAE and MeanField, which do",
        ),
        (["translate", "run", "--run", LONG], 1, "error: --run xxx"),
        (["em", "--no_hard"], 2, "(write --hard false)"),
        (["train", "--no-overwrite"], 2, "(leave out --overwrite)"),
        (["train", "--max-epochs", "3"], 2, "(did you mean --max_epochs?)"),
        (["sample", "run", "-o", LONG], 2, "--output xxx"),
        (["sample", "run", "-o", f"{LONG}.png"], 1, "File name too long: choose a shorter one"),
        (["export", "run", "-o", LONG], 1, "error: --output xxx"),
        (["train", "--data", f"{LONG}.npy"], 1, "error: --data xxx"),
        (["train", "--data", f"folder:{LONG}"], 1, "error: --data xxx"),
        (["train", "--resume", LONG], 1, "error: --resume xxx"),
        (["evaluate", LONG], 1, "error: RUN xxx"),
        (
            ["train", "--model", "torch.nn.LSTM"],
            2,
            "--model.input_size and --model.hidden_size are missing: LSTM needs them",
        ),
        (
            ["train", "--guide", "torch.nn.LSTM", "--guide.input_size", "3"],
            2,
            "--guide.hidden_size is missing: LSTM needs it",
        ),
        (
            ["train", "--model", '{"class_path": "torch.nn.LSTM", "init_args": {}}'],
            2,
            "--model.input_size and --model.hidden_size are missing",
        ),
        (
            ["em", "--model.components", "3000"],
            1,
            "3,000 components need at least as many rows",
        ),
        (
            ["train", "--model", "GaussianMixture", "--dequantize", "true"],
            1,
            "site 'z' is discrete in the model, Categorical, and not in the guide, Normal: `ppl-vae em",
        ),
        *(
            (
                ["train", "--model", name, *options],
                1,
                f"`ppl-vae em --model {name}` fits it; `ppl-vae train` t",
            )
            for name, *options in (
                ("GaussianMixture", "--dequantize", "true"),
                ("GaussianHMM", "--dequantize", "true"),
                ("BernoulliMixture", "--binarize", "threshold"),
            )
        ),
        (["train", "--model", "GaussianMixture"], 1, "with --guide Exact or --guide Enumerated"),
        (
            ["train", "--model.latent_dim", "5", "--guide.latent_dim", "10"],
            1,
            "in the guide: the two must be the same; give both one latent_dim, 5 or 10 (on the command line "
            "--model.latent_dim alone: the guide takes it from there)\n",
        ),
    ],
)
def test_options_of_commands(
    arguments: list[str], code: int, words: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(run.parent.rglob("*"))
    assert main([*arguments, "--quiet"]) == code
    said = capsys.readouterr().err
    assert words in said
    assert "Traceback" not in said
    assert said.count("\n") < 4
    assert sorted(run.parent.rglob("*")) == before


def test_seeds_of_any_size_are_taken() -> None:
    seeds: list[Any] = [0, -5, 2**32 + 1, 2**63 - 1, np.int64(3)]
    for seed in seeds:
        seed_everything(seed)
        first = torch.rand(3)
        seed_everything(seed)
        assert torch.equal(torch.rand(3), first)


CONFIGS = {
    "absent": (b"max_epoks: 3\n", "there is no option 'max_epoks' (did you mean max_epochs?)"),
    "a list": (b"- 1\n- 2\n", "expected lines `option: value`"),
    "nothing": (b"", "expected lines `option: value`"),
    "Latin-1": ("data: \xfcber\n".encode("latin1"), "this is not text in UTF-8"),
    "half": (b"model: [\n", "this is not YAML that can be read"),
    "a tag": (b"seed: !!python/object/apply:os.system [x]\n", "this is not YAML that can be read"),
    "a bomb": (
        b"a0: &a0 [1, 1]\n"
        + b"".join(b"a%d: &a%d [*a%d, *a%d, *a%d]\n" % (i, i, *[i - 1] * 3) for i in range(1, 40)),
        "its aliases stand for more than",
    ),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_configuration_file_is_named(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, words = CONFIGS[case]
    (tmp_path / "mine.yaml").write_bytes(content)
    assert main(["train", "--config", str(tmp_path / "mine.yaml")]) == 2
    said = capsys.readouterr().err
    assert f"--config {tmp_path / 'mine.yaml'}: " in said
    assert words in said
    assert said.count("\n") < 4


@in_time
def test_a_pipe_is_no_configuration_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert main(["train", "--config", str(tmp_path / "pipe")]) == 2
    assert "no file that can be read, but a folder or a pipe" in capsys.readouterr().err


MODULES = {
    "not_whole": ("import not_there_at_all\n", "(ModuleNotFoundError: No module named 'not_there_"),
    "no_python": ("def f(:\n", "module 'no_python' cannot be imported (SyntaxError: "),
    "that_ends": ("raise SystemExit(3)\n", "(SystemExit: it ends the program): repair it"),
}


@pytest.mark.parametrize("name", MODULES)
def test_a_module_that_cannot_be_imported(
    name: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content, words = MODULES[name]
    (run.parent / f"{name}.py").write_text(content)
    assert main(["train", "--model", f"{name}.Model"]) == 2
    said = capsys.readouterr().err
    assert f"--model {name}.Model: module '{name}' cannot be imported" in said
    assert words in said


@pytest.mark.parametrize("command", ["sample", "export"])
@pytest.mark.parametrize("name", ["config.yaml", "weights.safetensors", "checkpoints/step-1.npz"])
def test_no_output_replaces_a_file_of_a_run(
    command: str, name: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`export -o RUN/config.yaml --overwrite` lost the configuration."""
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    assert main([command, "run", "-o", f"run/{name}", "--overwrite"]) == 2
    said = capsys.readouterr().err
    assert "belongs to a run" in said or "expected a name that ends with .png" in said
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before


def test_a_project_with_a_configuration_of_its_own_may_hold_outputs(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("config.yaml").write_text("my: project")
    assert main(["export", "run", "-o", "posterior.nc", "--num_samples", "2"]) == 0
    assert Path("posterior.nc").is_file()


def on_command_line(run: Path, *arguments: str, **environment: str) -> tuple[int, str]:
    """A command in a process of its own: the exit code, and what it says on both streams."""
    command = [sys.executable, "-P", "-m", "ppl_vae.cli", *arguments]
    root = str(Path(__file__).parent.parent)
    with (run.parent / "said").open("wb") as said:
        done = subprocess.run(
            command,
            cwd=run.parent,
            env=os.environ | {"PYTHONPATH": root} | environment,
            stdout=said,
            stderr=said,
            timeout=300,
            check=False,
        )
    return done.returncode, (run.parent / "said").read_text()


@pytest.mark.usefixtures("run")
def test_a_terminal_that_knows_ascii_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command failed at its end, after the work, because of the sign in `1.0 ± 0.1`."""
    arguments = ["evaluate", "run", "--num_samples", "2", "--overwrite"]
    written = io.BytesIO()
    for name in ("stdout", "stderr"):  # as Python opens them where PYTHONIOENCODING is ascii
        errors = "strict" if name == "stdout" else "backslashreplace"
        terminal = io.TextIOWrapper(written, "ascii", errors, write_through=True)
        monkeypatch.setattr(sys, name, terminal)
    code = main(arguments)
    said = written.getvalue().decode("ascii")
    assert code == 0, said
    assert "\\xb1" in said
    assert "written: run/evaluation.json" in said


@pytest.mark.slow
def test_a_process_on_a_terminal_that_knows_ascii_alone(run: Path) -> None:
    arguments = ["evaluate", "run", "--num_samples", "2", "--overwrite"]
    code, said = on_command_line(run, *arguments, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert code == 0, said
    assert "\\xb1" in said
    assert "written: run/evaluation.json" in said


def test_an_error_of_the_system_is_told_in_words(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, told in (("file", "file"), ("a" * 200, f"{'a' * 40}...{'a' * 20}")):
        error = PermissionError(13, "Permission denied", name)
        with patch("ppl_vae.cli.run_commands.load_run", side_effect=error):
            assert main(["evaluate", "run"]) == 1
        assert capsys.readouterr().err == f"ppl-vae: error: {told}: Permission denied\n"


def test_endings_in_capital_letters_are_taken(run: Path) -> None:
    assert main(["sample", "run", "--num", "4", "-o", "x.NPZ"]) == 0
    with np.load("x.NPZ") as found:
        assert found["x"].shape[0] == 4


def test_a_text_for_a_configuration_file_may_be_long(capsys: pytest.CaptureFixture[str]) -> None:
    """It is no name of a file: the system would say that it is too long."""
    assert main(["train", "--config", "max_epochs: 1 #" + "a" * 300, "--print_config"]) == 0
    assert "max_epochs: 1\n" in capsys.readouterr().out


def test_an_unknown_backend_of_matplotlib_is_named(run: Path) -> None:
    code, said = on_command_line(run, "sample", "run", "--num", "4", MPLBACKEND="nonsense")
    assert code == 1
    assert said.startswith("ppl-vae: error: MPLBACKEND=nonsense is no backend of matplotlib: unset")


@pytest.mark.parametrize(
    ("arguments", "option", "value"),
    [
        (["--max_epochs", "1e2"], "max_epochs", 100),
        (["--max_rows=1e2"], "max_rows", 100),
        (["--model.latent_dim", "1.2e1"], "model.latent_dim", 12),
        (["--model.network.hidden", "[1e1, 7]"], "model.network.hidden", [10, 7]),
        (["--model.network", "MLP", "--model.network.hidden+=1e1"], "model.network.hidden", [10]),
    ],
)
def test_whole_numbers_are_read_alike(
    arguments: list[str], option: str, value: object, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *arguments, "--print_config"]) == 0
    found = yaml.safe_load(capsys.readouterr().out)
    for name in option.split("."):
        found = found[name]
        found = found.get("init_args", found) if isinstance(found, dict) else found
    assert found == value or found[-1:] == value


@pytest.mark.parametrize("value", ["1.5e0", "2.5", "1e-3"])
def test_other_numbers_are_no_whole_ones(value: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--model.latent_dim", value]) == 2
    assert "--model.latent_dim: expected int, got" in capsys.readouterr().err


def test_a_step_size_that_is_typed_replaces_that_of_the_run(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    sgd = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}}
    (run / "config.yaml").write_text(yaml.safe_dump({**config, "optimizer": sgd}))
    quick = ["--max_epochs", "3", "--num_samples", "2", "--quiet"]
    options = ["--trust", "--run_dir", "a", "--learning_rate", "0.5"]
    with patch("ppl_vae.cli.finish.draw_run", return_value=[]):
        assert main(["refit", "run", *options, *quick, "--posterior=never", "--report=false"]) == 0
    found = yaml.safe_load(Path("a/config.yaml").read_text())
    assert found["learning_rate"] == 0.5
    assert "lr" not in found["optimizer"]["init_args"]


def test_a_step_size_is_no_other_one_if_it_is_the_default_of_the_class(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def watched(*_: Any, **options: Any) -> Any:
        seen.update(options)
        raise KeyboardInterrupt

    monkeypatch.setattr("ppl_vae.cli.train.fit", watched)
    typed = ["--optimizer", "SGD", "--optimizer.momentum", "0.9", "--learning_rate", "0.5"]
    assert main(["train", "--max_rows", "20", *typed, "--quiet"]) == 130
    assert seen["learning_rate"] == 0.5
    assert "lr" not in seen["optimizer"].keywords
    assert seen["optimizer"].keywords["momentum"] == 0.9
