"""The options of the command line: what is resolved, printed and given back, and what its help says."""

from __future__ import annotations

import argparse
import os
import re
import runpy
import subprocess
import sys
import textwrap
from pathlib import Path

import catalogue
import numpy as np
import pytest
import yaml

from ppl_vae import models
from ppl_vae.cli import COMMANDS, main
from ppl_vae.cli.known import known
from ppl_vae.cli.light import LightParser, command_parser
from ppl_vae.cli.options import ACTIONS, COMMON, EXAMPLES, describe
from ppl_vae.cli.parser import make_parser
from ppl_vae.em.steps import closed_form

SMALL, NETWORK = catalogue.SMALL_RUN, catalogue.SMALL_NETWORK


@pytest.mark.parametrize(
    ("options", "likelihood"),
    [
        (("--binarize", "dynamic"), "Bernoulli"),
        (("--dequantize", "true"), "LearnedGaussian"),
        (("--model.likelihood", "Gaussian", "--model.likelihood.sigma", "3"), "Gaussian"),
    ],
)
def test_the_likelihood_suits_the_data(
    options: tuple[str, ...], likelihood: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", "--print_config", "--max_rows", "20", *options]) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    found = config["model"]["init_args"]["likelihood"]["class_path"]
    assert found == f"ppl_vae.likelihoods.{likelihood}"


def test_8_bit_pictures_get_the_discretized_logistic(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = np.random.default_rng(0).integers(0, 256, (30, 1, 6, 6), dtype=np.uint8)
    np.save(tmp_path / "pictures.npy", pictures)
    assert main(["train", "--print_config", "--data", str(tmp_path / "pictures.npy")]) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["model"]["init_args"]["likelihood"] == {
        "class_path": "ppl_vae.likelihoods.DiscretizedLogistic",
        "init_args": {"levels": 256},
    }


def test_a_printed_configuration_can_be_given_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [
        "--model.latent_dim",
        "3",
        "--guide",
        "FullCovariance",
        "--objective.beta",
        "LinearWarmup",
    ]
    options += [
        "--objective.beta.epochs",
        "4",
        "--optimizer",
        "AdamW",
        "--optimizer.weight_decay",
        "0.1",
    ]
    options += ["--lr_scheduler", "CosineAnnealingLR", "--lr_scheduler.T_max", "9", "--seed", "5"]
    assert main(["train", "--print_config", *SMALL, *NETWORK, *options]) == 0
    printed = capsys.readouterr().out
    file = tmp_path / "config.yaml"
    file.write_text(printed)
    assert main(["train", "--config", str(file), "--print_config"]) == 0
    assert capsys.readouterr().out == printed
    config = yaml.safe_load(printed)
    assert config["guide"]["class_path"] == "ppl_vae.guides.FullCovariance"
    assert config["guide"]["init_args"]["latent_dim"] == 3
    assert config["objective"]["init_args"]["beta"]["init_args"]["epochs"] == 4
    assert config["optimizer"]["init_args"]["weight_decay"] == 0.1
    assert main(["train", "--config", str(file), "--print_config", "--model.latent_dim", "7"]) == 0
    changed = yaml.safe_load(capsys.readouterr().out)
    assert changed["model"]["init_args"]["latent_dim"] == 7
    assert changed["seed"] == 5


@pytest.mark.parametrize(
    ("objective", "option"),
    [
        ("ELBO", "stick_the_landing"),
        ("TraceELBO", "stick_the_landing"),
        pytest.param("ImportanceWeightedELBO", "doubly_reparameterized", marks=pytest.mark.slow),
    ],
)
def test_gradients_are_chosen_by_an_option(
    objective: str, option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--objective", objective, f"--objective.{option}", "true"]
    assert main(["train", "--print_config", *SMALL, *NETWORK, *options]) == 0
    printed = capsys.readouterr().out
    assert yaml.safe_load(printed)["objective"]["init_args"][option] is True
    file = tmp_path / "config.yaml"
    file.write_text(printed)
    assert main(["train", "--config", str(file), "--print_config"]) == 0
    assert capsys.readouterr().out == printed
    file.write_text(printed.replace(f"    {option}: true\n", ""))  # of an earlier version
    assert main(["train", "--config", str(file), "--print_config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["objective"]["init_args"][option] is False


def test_a_configuration_may_use_short_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(
        textwrap.dedent("""
        max_rows: 20
        model:
          class_path: ProbabilisticPCA
          init_args:
            latent_dim: 4
        guide: Exact
        """)
    )
    assert main(["train", "--config", str(file), "--print_config"]) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["model"]["class_path"] == "ppl_vae.models.ProbabilisticPCA"
    assert config["guide"] == {"class_path": "ppl_vae.guides.Exact", "init_args": {"beta": 1.0}}


def test_help_comes_from_the_docstrings(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    for name, what in COMMANDS.items():
        assert name in shown
        assert what.split(",")[0] in " ".join(shown.split())
    assert main(["train", "--help-all"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "Passes over the data." in shown, "fit's docstring"
    assert "of Convolutional: Output channels of each stage" in shown, "that of a class"
    assert "Share of the training rows to hold out for validation." in shown, "load_data's"
    assert "(type: int, default: 200)" in shown
    assert main(["train", "--guide.help", "FullCovariance"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "Number d of latent dimensions" in shown
    assert re.search(r"--guide.data_shape [^()]*\(default: what fits the data", shown)
    assert main(["train", "--objective.beta.help", "LinearWarmup"]) == 0
    assert "--beta.epochs EPOCHS (required, type" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    assert COMMANDS[name] in " ".join(capsys.readouterr().out.split())


def help_of(name: str, option: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main([*name.split(), option]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("name", COMMON)
def test_help_is_short_and_shows_the_common_options(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = help_of(name, "--help", capsys)
    assert len(shown.splitlines()) < 70
    assert max(map(len, shown.splitlines())) <= 80
    for option in COMMON[name]:
        assert re.search(rf"^  --{option}\b", shown, re.MULTILINE), option
    assert "--help-all" in shown
    nested = {
        "train": ("--model.latent_dim", "--model.network", "--objective.beta"),
        "em": ("--model.components", "--model.covariance"),
        "refit": ("--objective.beta", "--objective.free_bits"),
        "refit-prior": ("--prior.channels", "--prior.layers"),
        "colorize train": (
            "--model.segments",
            "--model.colors",
            "--guide.beta",
            "--objective.beta",
        ),
    }
    for option in nested[name]:
        assert re.search(rf"^  {option} .", shown, re.MULTILINE), option
    assert "--trust" not in shown
    epochs = 10 if name == "colorize train" else 200
    assert f"(default: {epochs})" in shown, "of max_epochs or max_iterations"


@pytest.mark.parametrize("name", [*COMMANDS, *ACTIONS])
def test_help_all_shows_every_option(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    shown = help_of(name, "--help-all", capsys)
    for option, action in command_parser(name)._option_string_actions.items():
        listed = re.search(rf"(^|\s){option}\b", shown)
        assert bool(listed) == (action.help != argparse.SUPPRESS), option
    if name not in COMMON:
        assert shown == help_of(name, "--help", capsys), "which has all of them already"


def test_help_all_shows_the_arguments_of_classes(capsys: pytest.CaptureFixture[str]) -> None:
    shown = help_of("train", "--help-all", capsys)
    for option in ("--model.network.channels", "--objective.beta.epochs", "--objective.free_bits"):
        assert re.search(rf"^  {option} ", shown, re.MULTILINE), option
    words = " ".join(shown.split())
    assert re.search(r"--model.network.hidden HIDDEN of \w+: [^-]*; of \w+: ", words)


@pytest.mark.parametrize("name", [*COMMANDS, *ACTIONS])
def test_titles_in_the_help_are_titles(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    titles = re.findall(r"^(\S.*):$", help_of(name, "--help-all", capsys), re.MULTILINE)
    assert titles
    assert all(len(title.split()) <= 4 and title[0].isupper() for title in titles), titles
    if name == "train":
        assert titles == [
            *("Model, guide and objective", "Data", "Training", "Devices", "Options", "Examples")
        ]


@pytest.mark.parametrize("example", [e for listed in EXAMPLES.values() for e in listed])
def test_the_examples_in_the_help_are_accepted(example: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    program, *words = example.replace("RUN", str(tmp_path)).split()
    assert program == "ppl-vae"
    name = " ".join(words[:2]) if " ".join(words[:2]) in ACTIONS else words[0]
    arguments = words[len(name.split()) :]
    if "--run" in arguments:
        arguments[arguments.index("--run") + 1] = str(tmp_path)
    command_parser(name).check(arguments)
    make_parser(name, arguments).parse_args(arguments, defaults=False)


def test_em_offers_what_em_can_fit(capsys: pytest.CaptureFixture[str]) -> None:
    fitted = {
        name
        for name in known("model")
        if hasattr(getattr(models, name), "posterior") and closed_form(getattr(models, name))
    }
    assert {*known("model", kind="em")} == fitted
    assert "GaussianMixture" in fitted
    for option in ("--help", "--help-all"):
        shown = help_of("em", option, capsys)
        assert not re.search(r"\b(VAE|CTC|Autoregressive)\b", shown)
        assert all(name in shown for name in fitted)
    root = argparse.ArgumentParser()
    em = root.add_subparsers(parser_class=LightParser).add_parser("em")
    describe("em", em)
    em.spell_out()
    em.add_options_below()
    assert {*(em._option_string_actions["--model"].choices or ())} == fitted
    assert "--model.prior" not in em._option_string_actions
    assert main(["em", "--model", "GausianMixture"]) == 2
    told = capsys.readouterr().err
    assert "did you mean GaussianMixture?" in told
    assert "VAE" not in told


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert re.fullmatch(r"ppl-vae \d+\.\d+\.\d+\n", capsys.readouterr().out)


def test_the_package_can_be_run_as_a_module(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["ppl_vae", "--version"])
    with pytest.raises(SystemExit, match=r"^0$"):
        runpy.run_module("ppl_vae", run_name="__main__")
    assert capsys.readouterr().out.startswith("ppl-vae ")


COMMAND = """
from ppl_vae.cli import main
assert main(["train", "--model.prior", "VampPrior", "--print_config"]) == 0
"""

DESCRIPTION = """
from ppl_vae.runs import build
prior = {"class_path": "FlowPrior", "init_args": {"transforms": 2}}
spec = {"class_path": "ppl_vae.models.VAE", "init_args": {"data_shape": [3], "latent_dim": 2, "prior": prior}}
print("class_path:", build(spec)[1]["init_args"]["prior"]["class_path"])
"""


@pytest.mark.parametrize(
    ("program", "found"),
    [
        pytest.param(COMMAND, "ppl_vae.models.VampPrior", id="command", marks=pytest.mark.slow),
        pytest.param(DESCRIPTION, "ppl_vae.models.FlowPrior", id="description"),
    ],
)
def test_a_class_below_another_is_found_by_its_short_name_from_the_start(
    program: str, found: str
) -> None:
    """In a process that has imported nothing of ours: other tests have imported all classes already."""
    done = subprocess.run(
        [sys.executable, "-W", "error::DeprecationWarning", "-c", program],
        cwd=Path(__file__).parents[1],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert f"class_path: {found}" in done.stdout
