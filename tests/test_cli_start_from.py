"""`ppl-vae train --start_from RUN`: what the new pair takes from a trained one, and what is refused."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import catalogue
import pyro
import pyro.distributions as dist
import pytest
import torch
import yaml
from torch import Tensor
from torch.distributions import constraints

from ppl_vae import fit, load_data, load_run, save_run
from ppl_vae.cli import main
from ppl_vae.cli.light import command_parser
from ppl_vae.cli.mistakes import UsageError
from ppl_vae.cli.setup import Setup
from ppl_vae.cli.start_from import StartFrom
from ppl_vae.guides import MeanField
from ppl_vae.models import VAE
from ppl_vae.networks import MLP
from ppl_vae.objectives import ELBO
from ppl_vae.pairs import Pair
from ppl_vae.reporting import html_report
from ppl_vae.runs import write_weights

SMALL = (*catalogue.SMALL_RUN, "--model.network", "MLP", "--model.network.hidden")
OPTIONS = ("--model.latent_dim", "2", "--quiet", "--max_epochs", "2", "--report", "false")
OF_JUDGE = ("--model.discriminator", "MLP", "--model.discriminator.hidden", "[8]")
GAN = ("--model", "VAEGAN", *SMALL, "[16]", *OF_JUDGE, *OPTIONS)
JUDGE = "model.discriminator"
FEATURES = (*GAN, "--objective", "VAEDisLoss", "--seed", "1")

State = dict[str, Tensor]


def state_of(folder: Path) -> State:
    run = load_run(folder)
    return {name: value.clone() for name, value in Pair.of(run.model, run.guide).state().items()}


def same(one: State, other: State, *parts: str) -> bool:
    """Whether all numbers below these parts are equal bit by bit; there are some."""
    below = tuple(f"{part}." for part in parts)
    names = [name for name in one | other if name.startswith(below)]
    assert names
    return all(n in one and n in other and torch.equal(one[n], other[n]) for n in names)


def train(*arguments: str) -> None:
    """Trains, and writes the weights; what follows the training is left out."""

    def finish(folder: Any, setup: Setup, fitted: Any, *_: object) -> None:
        write_weights(folder.path, fitted.model, fitted.guide, epochs=len(fitted.history))

    with patch("ppl_vae.cli.train.finish_run", finish):
        assert main(["train", *arguments]) == 0


@pytest.fixture(scope="module")
def gan(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "gan"
    train(*GAN, "--objective", "GANLoss", "--run_dir", str(folder))
    return folder


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> State:
    """The pair of `FEATURES` ahead of its training, which starts from nothing."""
    return at_start("--run_dir", str(tmp_path_factory.mktemp("runs") / "fresh"), *FEATURES)


class _StopError(Exception):
    pass


def at_start(*arguments: str) -> State:
    """The numbers of a pair as they reach the training, which is left out."""
    found: State = {}

    def stopped(model: Any, guide: Any, *_: object, **__: object) -> None:
        found.update({n: v.clone() for n, v in Pair.of(model, guide).state().items()})
        raise _StopError

    with patch("ppl_vae.cli.train.fit", stopped):
        assert main(["train", *arguments]) == 1
    return found


# -- what is taken -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def started(gan: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run of VAE_Dis, and the copy of the GAN's run that it was started from."""
    place = tmp_path_factory.mktemp("started")
    source, folder = place / "source", place / "dis"
    shutil.copytree(gan, source)
    start = ("--start_from", str(source), "--start_parts", JUDGE)
    train(*FEATURES, *start, "--run_dir", str(folder))
    return folder, source


def test_the_discriminator_stays_that_of_the_gan(
    gan: Path, started: tuple[Path, Path], fresh: State
) -> None:
    folder, source = started
    found, then = state_of(folder), state_of(gan)
    assert same(found, then, JUDGE)
    assert not same(fresh, then, JUDGE)  # another seed
    for part in ("model.decoder", "guide.encoder", "guide.head"):
        assert not same(found, then, part)
        assert not same(found, fresh, part)  # it was trained
    assert same(state_of(source), then, "model", "guide")


def test_all_of_both_programs_are_taken(
    gan: Path, fresh: State, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = at_start(*FEATURES, "--start_from", str(gan), "--run_dir", str(tmp_path / "run"))
    told, then = capsys.readouterr().err, state_of(gan)
    assert found.keys() == then.keys() == fresh.keys()
    assert same(found, then, "model", "guide")
    assert f"starting from {gan}: model, " in told
    assert "random weights" not in told


def test_parts_are_taken_and_the_others_are_those_of_the_seed(
    gan: Path, fresh: State, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = ("guide.encoder", "model.decoder")
    start = ("--start_from", str(gan), "--start_parts", ", ".join(parts))
    found = at_start(*FEATURES, *start, "--run_dir", str(tmp_path / "run"))
    told, then = capsys.readouterr().err, state_of(gan)
    assert same(found, then, *parts)
    assert same(found, fresh, JUDGE, "guide.head")
    assert not same(then, fresh, "guide.encoder")
    # 64 x 16 + 16 into the hidden layer; 2 x 16 + 16 and 16 x 64 + 64 out of it
    assert f"starting from {gan}: guide.encoder, 2 tensors, 1,040 numbers; model.decoder, " in told
    assert "VAEDisLoss judges by the features of model.discriminator" in told


def test_random_features_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], gan: Path
) -> None:
    run_dir = ("--run_dir", str(tmp_path / "run"))
    at_start(*FEATURES, *run_dir)
    told = capsys.readouterr().err
    assert "those of random weights" in told
    assert "`ppl-vae train --model VAEGAN --objective GANLoss --run_dir runs/gan`" in told
    assert f"--start_from runs/gan --start_parts {JUDGE}" in told
    for others in (("--start_from", str(gan), "--start_parts", "model"), ("--objective", "ELBO")):
        at_start(*FEATURES, *others, *run_dir, "--overwrite")
        assert "random weights" not in capsys.readouterr().err


def test_nothing_that_the_run_names_is_imported(
    gan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    shutil.copytree(gan, run)
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["model"]["class_path"] = "of_the_run.Model"
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    for folder in (tmp_path, run):
        (folder / "of_the_run.py").write_text("raise SystemExit(99)")
    monkeypatch.chdir(tmp_path)
    found = at_start(*FEATURES, "--start_from", "run", "--run_dir", "new")
    assert same(found, state_of(gan), "model", "guide")
    assert "of_the_run" not in sys.modules


# -- the configuration, and going on -------------------------------------------------------------------


def test_the_configuration_repeats_the_run(
    gan: Path, started: tuple[Path, Path], tmp_path: Path
) -> None:
    folder, source = started
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["start_from"] == str(source.resolve())
    assert config["start_parts"] == JUDGE
    again = ("--config", str(folder / "config.yaml"), "--run_dir", str(tmp_path / "run"), "--quiet")
    assert same(at_start(*again), state_of(gan), JUDGE)
    assert f"<dt>started from</dt><dd>{source.resolve()}</dd>" in str(html_report(folder))


def test_a_relative_path_is_kept_as_an_absolute_one(
    gan: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(gan.parent)
    assert main(["train", *GAN, "--start_from", gan.name, "--print_config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["start_from"] == str(gan.resolve())


def test_a_resumed_run_does_not_read_it_again(
    started: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "dis"
    shutil.copytree(started[0], folder)
    config = folder / "config.yaml"
    text = config.read_text()
    config.write_text(text.replace(str(started[1].resolve()), str(tmp_path / "elsewhere")))
    assert "elsewhere" in config.read_text()
    resume = ("--resume", str(folder), "--max_epochs", "3", "--quiet")
    assert main(["train", *resume]) == 1
    assert "What differs: start_from = " in capsys.readouterr().err
    config.write_text(text)
    with patch("ppl_vae.cli.start_from.read_state", side_effect=AssertionError):
        train(*resume)
    told = capsys.readouterr().err
    assert "starting from" not in told
    assert "random weights" not in told
    assert same(state_of(folder), state_of(started[0]), JUDGE)
    assert not same(state_of(folder), state_of(started[0]), "guide")


def test_a_run_that_was_killed_ahead_of_its_first_checkpoint_starts_again(
    gan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = ("--start_from", str(gan), "--start_parts", JUDGE)
    assert main(["train", *FEATURES, *start, "--print_config"]) == 0
    (tmp_path / "config.yaml").write_text(f"made_by: train\n{capsys.readouterr().out}")
    assert same(at_start("--resume", str(tmp_path)), state_of(gan), JUDGE)


def test_a_damaged_configuration_is_named(
    gan: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = yaml.safe_load((gan / "config.yaml").read_text()) | {"start_from": [1]}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(["train", "--resume", str(tmp_path)]) == 1
    told = capsys.readouterr().err
    assert str(tmp_path / "config.yaml") in told
    assert "start_from" in told


def test_a_refit_was_not_started_from_it(started: tuple[Path, Path], tmp_path: Path) -> None:
    config: dict[str, Any] = {}

    def stopped(*_: object, run_dir: Any, **__: object) -> None:
        config.update(run_dir.config)
        raise _StopError

    new = ("--run_dir", str(tmp_path / "refitted"), "--quiet")
    with patch("ppl_vae.cli.refit.refit_guide", stopped):
        assert main(["refit", str(started[0]), *new]) == 1
    assert config["refit_of"] == str(started[0].resolve())
    assert not {"start_from", "start_parts"} & config.keys()


# -- programs with pyro.param --------------------------------------------------------------------------

X = torch.rand(20, 3)
POSITIVE, UNIT = constraints.positive, constraints.interval(0.0, 2.0)


def functions(scale: float, of_scale: Any = POSITIVE) -> tuple[Any, Any]:
    def model(x: Tensor) -> None:
        spread = pyro.param("spread", torch.tensor(scale), constraint=of_scale)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, spread).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        center = pyro.param("center", torch.zeros(3))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x + center, 0.5).to_event(1))

    return model, guide


@pytest.fixture(scope="module")
def of_functions(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, State]:
    folder = tmp_path_factory.mktemp("runs") / "functions"
    fitted = fit(*functions(1.5), X, max_epochs=3, learning_rate=0.1, seed=0, progress=False)
    save_run(folder, fitted.model, fitted.guide)
    return folder, Pair.of(fitted.model, fitted.guide).state()


def setup_of(model: Any, guide: Any) -> Setup:
    data = replace(load_data("digits", max_rows=40), train=X, transform=None)
    return Setup(data, model, guide, ELBO(), {}, {})


def test_parameters_of_statements_are_taken(of_functions: tuple[Path, State]) -> None:
    folder, then = of_functions
    setup, told = StartFrom(folder).load(setup_of(*functions(0.5)))
    assert told == ["param, 2 tensors, 4 numbers"]
    with torch.no_grad():  # as `fit` makes its pair of them
        pair = Pair(setup.model, setup.guide)
        with pair.scope():
            pair.parameters(X)
    found = pair.state()
    assert found.keys() == then.keys() == {"param.spread", "param.center"}
    assert all(torch.equal(found[name], then[name]) for name in then)
    setup, told = StartFrom(folder, ("param.center",)).load(setup_of(*functions(0.5)))
    assert told == ["param.center, 1 tensor, 3 numbers"]
    found = Pair(setup.model, setup.guide).state()
    assert torch.equal(found["param.center"], then["param.center"])
    assert float(found["param.spread"].exp()) == pytest.approx(0.5)


def test_another_constraint_is_another_number(of_functions: tuple[Path, State]) -> None:
    with pytest.raises(UsageError, match=r"param\.spread has another constraint in the new pair"):
        StartFrom(of_functions[0]).load(setup_of(*functions(0.5, UNIT)))


def test_numbers_keep_the_precision_of_the_new_pair(tmp_path: Path) -> None:
    programs = [m((3,), 2, MLP((4,))) for m in (VAE, MeanField)]
    save_run(tmp_path / "double", *[p.double() for p in programs])
    new = setup_of(*[m((3,), 2, MLP((4,))) for m in (VAE, MeanField)])
    StartFrom(tmp_path / "double").load(new)
    for name, value in Pair.of(new.model, new.guide).state().items():
        assert value.dtype == torch.float32
        assert torch.equal(value, Pair.of(*programs).state()[name].float())


# -- what is refused -----------------------------------------------------------------------------------

WIDER = ("--model", "VAEGAN", *SMALL, "[17]", *OF_JUDGE, *OPTIONS)
PLAIN = ("--model", "VAE", *SMALL, "[16]", *OPTIONS)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((*GAN, "--start_from", "nowhere"), ["there is no run folder nowhere: check the path"]),
        ((*GAN, "--start_from", "."), [". is not a run: it holds no config.yaml"]),
        ((*GAN, "--start_from", "bare"), ["bare has no weights.safetensors: save or train"]),
        ((*GAN, "--start_from", "bad"), ["does not match its checksum"]),
        ((*GAN, "--start_parts", JUDGE), [f"--start_parts {JUDGE}: name the run, too"]),
        (
            (*GAN, "--start_from", "{gan}", "--start_parts", f"{JUDGE},,guide"),
            ["expected dotted names with commas between them, such as model.discriminator"],
        ),
        (
            (*GAN, "--start_from", "{gan}", "--start_parts", "model.discriminatr"),
            [
                "neither the new pair nor {gan} has such a part",
                f"(did you mean {JUDGE}?); alike in both are model, model.likelihood, ",
            ],
        ),
        (
            (*PLAIN, "--start_from", "{gan}", "--start_parts", JUDGE),
            [
                f"--start_parts {JUDGE}: the new pair has no such part, and {{gan}} has it; alike",
                "alike in both are model.decoder, guide, guide.encoder, guide.head",
            ],
        ),
        (
            (*WIDER, "--start_from", "{gan}", "--start_parts", f"{JUDGE},model.decoder"),
            [
                "--start_parts model.decoder: model.decoder.net.0.weight has shape (17, 2) in the new pair, "
                "and (16, 2) in the run",
                "{gan}/config.yaml",
            ],
        ),
        (
            (*WIDER, "--start_from", "{gan}"),
            [
                "model.decoder.net.0.weight has shape (17, 2) in the new pair, and (16, 2) in the run",
                f"or take the parts that are alike: --start_parts model.likelihood,{JUDGE}\n",
            ],
        ),
        (
            (*PLAIN, "--start_from", "{gan}"),
            [
                f"the run has {JUDGE}.counts, of shape (2, 2), and the new pair has not",
                "--config {gan}/config.yaml ahead of the others",
                "--start_parts model.decoder,guide\n",
            ],
        ),
        (
            (*GAN, "--start_from", "{gan}", "--run_dir", "{gan}", "--overwrite"),
            ["is the run whose weights are taken, and would be lost"],
        ),
        (
            ("--resume", "{gan}", "--start_from", "{gan}"),
            ["--resume continues the run as it was started: leave out --start_from"],
        ),
        ((*GAN, "--start_from", "{gan}", "--trust"), ["--trust is for a RUN to resume"]),
    ],
)
def test_what_is_refused(
    arguments: tuple[str, ...],
    words: list[str],
    gan: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("bare", "bad"):
        (tmp_path / name).mkdir()
        shutil.copy(gan / "config.yaml", name)
    damaged = bytearray((gan / "weights.safetensors").read_bytes())
    damaged[-3] ^= 1
    Path("bad/weights.safetensors").write_bytes(damaged)
    before = (gan / "weights.safetensors").read_bytes()
    run_dir = () if "--resume" in arguments else ("--run_dir", "new")
    with patch("ppl_vae.cli.train.fit", side_effect=AssertionError("trained")):
        code = main(["train", *run_dir, *(word.format(gan=gan) for word in arguments)])
    assert code in (1, 2)
    told = capsys.readouterr().err
    for each in words:
        assert each.format(gan=gan) in told
    assert (gan / "weights.safetensors").read_bytes() == before
    assert not (tmp_path / "new").exists()


def test_a_pair_that_has_less_is_told_so(of_functions: tuple[Path, State]) -> None:
    plain = setup_of(*[m((3,), 2, MLP((4,))) for m in (VAE, MeanField)])
    with pytest.raises(
        UsageError, match=r"functions has no such part, and the new pair has it; no"
    ):
        StartFrom(of_functions[0], ("model.decoder",)).load(plain)


def test_the_help_tells_of_it() -> None:
    told = " ".join(command_parser("train").format_help_all().split())
    assert "--start_from RUN run whose trained weights the new pair starts from" in told
    assert "--start_parts A,B" in told
