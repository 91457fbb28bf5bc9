"""`ppl-vae refit-prior`: a new prior for the pair of a run, and a run that all other commands take."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from ppl_vae import diagnose, evaluate, load_run, models
from ppl_vae.cli import main
from ppl_vae.cli.known import known
from ppl_vae.cli.reached import fit_of
from ppl_vae.models.priors import CodePrior, Prior
from ppl_vae.runs import command_again
from ppl_vae.runtime import content_digest
from ppl_vae.training import code_prior, prior_checkpoints

QUICK = ("--posterior", "never", "--report", "false", "--quiet", "--num_samples", "64")
STEPS = ("--max_epochs", "3", "--learning_rate", "1e-2", "--batch_size", "20")


@pytest.fixture(scope="module", autouse=True)
def _without_pictures() -> Iterator[None]:
    """Pictures take most of the time; tests of the commands that draw them are elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ppl_vae.cli.finish.draw_run", lambda *_: [])
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with binary pictures of three kinds, and runs on them."""
    folder = tmp_path_factory.mktemp("priors")
    generator = torch.Generator().manual_seed(0)
    centers, labels = torch.rand(3, 1, 4, 4, generator=generator), torch.arange(90) % 3
    x = torch.bernoulli(centers[labels], generator=generator)
    np.savez(folder / "rows.npz", x=x.numpy(), y=labels.numpy())
    code = ("--model.quantizer.codes", "8", "--model.quantizer.dim", "2")
    grid = (
        *("--model.network", "ConvolutionalGrid", "--model.network.channels", "6"),
        *("--model.network.halvings", "1", "--model.network.blocks", "0"),
    )
    pyramid = ("--model.network.channels", "6", "--model.network.halvings", "[1,1]")
    for name, options in {
        "levels": ("VQVAE2", *pyramid, "--model.network.blocks", "0"),
        "labels": ("ConditionalVQVAE", *grid, *code, "--labels", "true", "--learning_rate", "2e-3"),
        "vectors": ("VAE", "--model.latent_dim", "2"),
    }.items():
        data = ("--data", str(folder / "rows.npz"), "--run_dir", str(folder / name))
        where = (*data, "--max_epochs", "2", *QUICK)
        assert main(["train", "--model", *options, *where]) == 0
    return folder


def refit_prior(run: Path, to: Path, *options: str) -> int:
    return main(["refit-prior", str(run), "--run_dir", str(to), *QUICK, *options])


def test_a_run_of_two_levels(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, run = place / "levels", place / "levels-2"
    before = {file: file.read_bytes() for file in source.rglob("*") if file.is_file()}
    prior = ("--prior", "PixelCNNPrior", "--prior.channels", "4", "--prior.layers", "1")
    assert refit_prior(source, run, *prior, *STEPS) == 0
    shown = capsys.readouterr().out
    for words in ("z1 given z2", "ELBO, prior before", "ELBO, new prior", "gained"):
        assert words in shown
    assert {f: f.read_bytes() for f in source.rglob("*") if f.is_file()} == before
    # The pair is that of the source, with another prior.
    old, new = load_run(source), load_run(run)
    assert {n: p for n, p in new.config.items() if n in ("seed", "data", "guide")} == {
        n: p for n, p in old.config.items() if n in ("seed", "data", "guide")
    }
    assert new.config["made_by"] == "refit-prior"
    assert new.config["refit_of"] == str(source.resolve())
    assert new.config["fit_of_prior"]["max_epochs"] == 3
    state: Any = new.model
    for name, value in old.model.state_dict().items():  # type: ignore[attr-defined]
        assert torch.equal(state.state_dict()[name], value), name
    # What was found is what an evaluation of the rows finds.
    found = json.loads((run / "fit.json").read_text())
    with np.load(place / "rows.npz") as rows:
        assert len(rows["x"]) == 90
    for name, pair in (("elbo_before", old), ("elbo_after", new)):
        stored = evaluate(pair.model, pair.guide, _test_rows(pair.config))
        assert found[name]["mean"] == pytest.approx(stored.elbo.mean, abs=1e-4)
    summary = json.loads((run / "evaluation.json").read_text())
    assert summary["elbo"]["mean"] == pytest.approx(found["elbo_after"]["mean"], abs=1e-4)
    assert found["elbo_after"]["mean"] > found["elbo_before"]["mean"] + 0.3
    # The epochs of the prior follow those of the pair.
    with (run / "metrics.csv").open() as file:
        lines = list(csv.DictReader(file))
    assert [line["epoch"] for line in lines] == ["1", "2", "3", "4", "5"]
    for line in lines[2:]:
        rate = float(line["rate_z1"]) + float(line["rate_z2"])
        assert float(line["validation_rate"]) == pytest.approx(rate)
        bound = -rate - float(line["validation_distortion"])
        assert float(line["validation_elbo"]) == pytest.approx(bound)
    least = min(float(line["validation_rate"]) for line in lines[2:])
    assert found["validation_rate"]["mean"] <= least + 1e-4


def _test_rows(config: Any) -> Any:
    from ppl_vae.cli.setup import load_rows

    return load_rows(config).test


@pytest.mark.slow
def test_other_commands_take_it(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert refit_prior(place / "labels", run, "--prior.channels", "4", *STEPS) == 0
    for command in ("evaluate", "diagnose"):
        assert main([command, str(run), "--overwrite", "--quiet"]) == 0
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "ppl-vae refit-prior" in page
    assert "pair of" in page
    output = tmp_path / "drawn.npz"
    drawn = ("--num", "5", "--label", "2,0", "--output", str(output))
    assert main(["sample", str(run), *drawn]) == 0
    with np.load(output) as arrays:
        assert arrays["label"].tolist() == [2, 0, 2, 0, 2]
        assert arrays["z"].shape == (5, 4)
    capsys.readouterr()
    assert main(["train", "--resume", str(run)]) == 2
    assert f"which continues it: ppl-vae refit-prior --resume {run}" in capsys.readouterr().err


@pytest.mark.slow
def test_levels_of_rows_with_labels(place: Path, tmp_path: Path) -> None:
    """A training, new priors of both levels, and rows of wanted labels."""
    first, run, output = tmp_path / "first", tmp_path / "run", tmp_path / "drawn.npz"
    pyramid = ("--model.network.channels", "6", "--model.network.halvings", "[1,1]")
    options = ("--labels", "true", *pyramid, "--model.network.blocks", "0", "--max_epochs", "2")
    where = ("--data", str(place / "rows.npz"), "--run_dir", str(first), *QUICK)
    assert main(["train", "--model", "ConditionalVQVAE2", *options, *where]) == 0
    prior = ("--prior", "PixelCNNPrior", "--prior.channels", "4", "--prior.layers", "1")
    assert refit_prior(first, run, *prior, *STEPS) == 0
    loaded: Any = load_run(run)
    assert type(loaded.guide).__name__ == "HierarchicalQuantizingEncoder"
    assert loaded.model.context.classes == 3
    assert [type(each).__name__ for each in loaded.model.prior] == ["_PixelCNN"] * 2
    found = json.loads((run / "fit.json").read_text())
    assert [*found["levels"]] == ["z1", "z2"]
    assert found["elbo_after"]["mean"] > found["elbo_before"]["mean"]
    drawn = ("--num", "5", "--label", "2,0", "--output", str(output))
    assert main(["sample", str(run), *drawn]) == 0
    with np.load(output) as arrays:
        assert arrays["label"].tolist() == [2, 0, 2, 0, 2]
        assert arrays["x"].shape == (5, 1, 4, 4)
        assert arrays["z"].shape == (5, 5)  # one code above, and 2 x 2


@pytest.mark.slow
def test_whether_the_fit_of_the_prior_had_ended(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It had, if an earlier epoch was kept. That of the pair, of two epochs, had not: it is told apart."""
    prior = ("--prior.channels", "4", "--prior.layers", "1")
    few, many = tmp_path / "few", tmp_path / "many"
    steps = ("--max_epochs", "3", "--learning_rate", "1e-2", "--batch_size", "5")
    assert refit_prior(place / "labels", few, *prior, *steps) == 0
    longer = [
        "--max_epochs",
        "40",
        "--patience",
        "2",
        "--learning_rate",
        "0.1",
        "--batch_size",
        "20",
    ]
    assert refit_prior(place / "labels", many, *prior, *longer) == 0
    fitted = json.loads((many / "fit.json").read_text())
    assert fitted["best_epoch"] < fitted["epochs"]
    capsys.readouterr()
    for run, had_ended in ((few, False), (many, True)):
        told_by: list[Any] = [load_run(run).diagnosis]
        assert main(["diagnose", str(run), "--overwrite", "--quiet"]) == 0
        told_by.append(load_run(run).diagnosis)
        for faults in (each["faults"] for each in told_by):
            assert (
                "The training of the pair had not ended: after 2 epochs" in faults["still training"]
            )
            told = faults.get("prior still fitting", "")
            assert bool(told) != had_ended
            assert "prior not fitted" not in faults
            if told:
                assert "after 3 epochs of the prior the held-out rate still falls" in told
                assert "give `ppl-vae refit-prior` a larger --max_epochs" in told
        out = capsys.readouterr().out
        assert "train the pair for longer" in out
        assert "; train for longer" not in out


@pytest.mark.slow
def test_a_prior_that_was_never_below_its_start_is_told(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Steps that are too large: the weights of the start are kept, which is no early stop that is fine."""
    run = tmp_path / "run"
    steps = ("--max_epochs", "3", "--learning_rate", "30", "--batch_size", "20")
    prior = ("--prior", "PixelCNNPrior", "--prior.channels", "4", "--prior.layers", "1")
    assert refit_prior(place / "levels", run, *prior, *steps) == 0
    told = capsys.readouterr()
    assert "so that the prior is not fitted: give a smaller learning_rate" in told.out + told.err
    assert main(["diagnose", str(run), "--overwrite", "--quiet"]) == 0
    diagnosis = load_run(run).diagnosis
    assert diagnosis is not None
    faults = diagnosis["faults"]
    assert "in none of 3 epochs" in faults["prior not fitted"]
    assert "a smaller --learning_rate" in faults["prior not fitted"]
    assert "prior still fitting" not in faults


def test_a_run_that_is_read_says_what_its_fit_has_said(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `diagnose` types depends on it: in the end of `refit-prior` as in `ppl-vae diagnose`."""
    found: list[Any] = []

    def kept(*args: Any, fit: Any, **options: Any) -> Any:
        found.append(fit)
        return diagnose(*args, fit=fit, **options)

    monkeypatch.setattr("ppl_vae.cli.finish.diagnose", kept)
    run = tmp_path / "run"
    prior = ("--prior.channels", "4", "--prior.layers", "1")
    assert refit_prior(place / "labels", run, *prior, *STEPS) == 0
    (said,) = found
    loaded = load_run(run)
    read = fit_of(loaded, said.objective)
    for name in ("epochs", "best_epoch", "prior_epochs", "batch_size", "learning_rate"):
        assert getattr(read, name) == getattr(said, name), name
    assert said.learning_rate == 2e-3


def test_vectors_have_a_prior_of_vectors(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--prior", "MixturePrior", "--prior.components", "3")
    assert refit_prior(place / "vectors", tmp_path / "run", *options) == 0
    assert "ELBO, new prior" in capsys.readouterr().out
    loaded: Any = load_run(tmp_path / "run")
    assert loaded.model.prior().component_distribution.batch_shape == (3,)
    again = command_again(loaded.config, tmp_path / "run")
    assert "--prior MixturePrior --prior.components 3" in again


@pytest.mark.slow
@pytest.mark.parametrize("source", ["labels", pytest.param("levels", marks=pytest.mark.slow)])
def test_a_fit_that_was_killed_goes_on(
    source: str,
    place: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """To the same weights, metrics and results; also after more epochs than it was begun with."""
    prior = ("--prior.channels", "4", "--prior.layers", "1", "--learning_rate", "1e-2")
    run, whole = tmp_path / "run", tmp_path / "whole"
    monkeypatch.setattr(prior_checkpoints, "CHECKPOINT_SECONDS", -1.0)
    real: Callable[..., float] = code_prior._epoch
    count = 0

    def killed(*arguments: Any) -> float:
        nonlocal count
        count += 1
        if count == 5:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(code_prior, "_epoch", killed)
        where = (str(place / source), "--run_dir", str(run), "--max_epochs", "6", *QUICK)
        assert main(["refit-prior", *where, *prior]) == 130
    assert f"continue with: ppl-vae refit-prior --resume {run}" in capsys.readouterr().err
    typed: Any
    for typed, message in (
        (("--resume", str(run), "--learning_rate", "1e-3"), "leave out --learning_rate"),
        ((str(place / source), "--resume", str(run)), "or --resume RUN"),
        (("--resume", str(place / source)), f"ppl-vae train --resume {place / source}"),
        ((), "RUN is missing"),
    ):
        assert main(["refit-prior", *typed]) != 0
        assert message in capsys.readouterr().err
    config = run / "config.yaml"
    text, marker = config.read_text(), tmp_path / "marker"
    attack = {"class_path": "subprocess.Popen", "init_args": {"args": ["touch", str(marker)]}}
    wrong: Any
    for wrong, message in (
        ({"prior": attack}, "names code from outside of ppl_vae"),
        ({"prior": [1]}, "config.yaml: prior does not say how the prior is fitted"),
        ({"fit_of_prior": 3}, "config.yaml: fit_of_prior does not say"),
        ({"refit_of": "a\0b"}, "config.yaml: refit_of does not say"),
        ({"refit_of": "/nowhere"}, "if it has moved, write its new place there"),
    ):
        config.write_text(yaml.safe_dump(yaml.safe_load(text) | wrong))
        assert main(["refit-prior", "--resume", str(run)]) != 0
        assert message in capsys.readouterr().err
    assert not marker.exists()
    moved = tmp_path / "moved"
    shutil.copytree(place / source, moved)
    config.write_text(yaml.safe_dump(yaml.safe_load(text) | {"refit_of": str(moved)}))
    again = ("refit-prior", "--resume", str(run), *QUICK[:-2])
    assert main([*again]) == 0
    assert refit_prior(place / source, whole, *prior, "--max_epochs", "6") == 0
    require_same_runs(run, whole)
    assert main([*again]) == 0  # there is nothing more to do
    require_same_runs(run, whole)
    capsys.readouterr()
    code = main([*again, "--max_epochs", "8"])
    if source == "levels":  # whose lower level would have had more, too
        assert code != 0
        assert "max_epochs=8" in capsys.readouterr().err
    else:
        assert code == 0
        assert refit_prior(place / source, whole, *prior, "--max_epochs", "8", "--overwrite") == 0
        require_same_runs(run, whole)


def require_same_runs(run: Path, other: Path) -> None:
    weights, expected = (content_digest(each / "weights.safetensors") for each in (run, other))
    assert weights == expected
    one, two = ({**load_run(each).config, "refit_of": ""} for each in (run, other))
    assert one == two
    lines, others = (
        list(csv.DictReader((each / "metrics.csv").read_text().splitlines()))
        for each in (run, other)
    )
    for line in [*lines, *others]:
        assert float(line.pop("seconds")) > 0
    assert lines == others
    for name in ("evaluation.json", "fit.json"):
        found, there = (json.loads((each / name).read_text()) for each in (run, other))
        for part in (found, there):
            part.pop("seconds", None)
        assert found == there


@pytest.mark.slow
def test_one_of_the_same_settings_is_the_same(place: Path, tmp_path: Path) -> None:
    options = ("--prior", "TransformerPrior", "--prior.width", "8", "--prior.layers", "1")
    for name in ("a", "b"):
        assert refit_prior(place / "labels", tmp_path / name, *options, *STEPS) == 0
    one, two = (content_digest(tmp_path / name / "weights.safetensors") for name in ("a", "b"))
    assert one == two


def test_the_priors_that_are_known_are_those_that_can_be_fitted() -> None:
    fitted = set()
    for name in dir(models):
        kind = getattr(models, name)
        if isinstance(kind, type) and issubclass(kind, CodePrior) and kind is not CodePrior:
            module = kind().build_codes((2, 2), 3)
            if hasattr(module, "fit_to_codes") or [*module.parameters()]:
                fitted.add(name)
        of_vectors = isinstance(kind, type) and issubclass(kind, Prior) and kind is not Prior
        if of_vectors and name != "VampPrior" and hasattr(kind().build((3,), 2), "fit_to"):
            fitted.add(name)
    assert set(known("prior")) == fitted


WRONG: dict[str, tuple[str, int, str]] = {
    "no run": ("nowhere --run_dir new", 1, "there is no run folder nowhere"),
    "nothing": ("", 2, "RUN is missing"),
    "no prior": (
        "labels --prior Wrong",
        2,
        "there is no prior of this name; known are DiagonalNormal",
    ),
    "no argument": ("labels --prior.chanels 4", 2, "did you mean --prior.channels?"),
    "a wrong argument": (
        "labels --prior.channels 0",
        2,
        "PixelCNNPrior.channels must be at least 1",
    ),
    "a model": ("labels --prior ppl_vae.networks.MLP", 2, "no description of a prior"),
    "vectors": ("labels --prior MixturePrior --run_dir new", 1, "choose IndependentCodes()"),
    "codes": ("vectors --run_dir new", 1, "the latents of a row are not codes"),
    "steps of vectors": (
        "vectors --prior MixturePrior --max_epochs 3 --run_dir new",
        2,
        "--max_epochs is for priors of codes",
    ),
    "itself": (
        "labels --run_dir labels --overwrite",
        2,
        "whose encoder and decoder are kept, and would",
    ),
    "inside": ("labels --run_dir labels/in", 2, "is inside of labels"),
    "another": ("labels --run_dir levels", 1, "there is a run in levels already"),
    "a resumed one": ("labels --resume labels", 2, "or --resume RUN"),
    "no epochs": ("labels --max_epochs 0 --run_dir new", 1, "max_epochs must be at least 1"),
    "no prior in the model": (
        "plain --run_dir new",
        2,
        "which has no prior that could be replaced",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said(
    name: str, place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    line, code, words = WRONG[name]
    if line.startswith("plain") and not (place / "plain").exists():
        _without_prior(place)
    assert main(["refit-prior", *line.split(), "--quiet"]) == code
    assert words in " ".join(capsys.readouterr().err.split())
    assert not (place / "new").exists()


def _without_prior(place: Path) -> None:
    options = ("--model", "ProbabilisticPCA", "--model.latent_dim", "2", "--guide", "Exact")
    where = ("--data", str(place / "rows.npz"), "--run_dir", str(place / "plain"))
    assert main(["train", *options, *where, "--max_epochs", "1", *QUICK]) == 0


def test_the_page_of_a_run_that_was_killed_says_how_it_is_made_anew(
    place: Path, tmp_path: Path
) -> None:
    run = tmp_path / "killed"
    run.mkdir()
    config = yaml.safe_load((place / "labels" / "config.yaml").read_text())
    prior = {"class_path": "ppl_vae.models.PixelCNNPrior", "init_args": {"channels": 4}}
    config |= {"made_by": "refit-prior", "refit_of": str(place / "labels"), "prior": prior}
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(["report", str(run)]) == 0
    page = (run / "report.html").read_text()
    assert "--prior PixelCNNPrior --prior.channels 4" in page
    shutil.rmtree(run)
    again: Callable[..., str] = command_again
    assert again({"made_by": "train"}, Path("a")) == "ppl-vae train --resume a"


@pytest.mark.parametrize(
    ("options", "place_of", "expected"),
    [
        ("--model VQVAE --model.quantizer.codes 64", "quantizer", "ppl_vae.codes.VectorQuantizer"),
        (
            "--model ConditionalVQVAE --labels true --model.quantizer.dim 3",
            "quantizer",
            "ppl_vae.codes.VectorQuantizer",
        ),
    ],
)
def test_an_argument_of_a_documented_default_needs_no_class(
    options: str, place_of: str, expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *options.split(), "--print_config"]) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["model"]["init_args"][place_of]["class_path"] == expected
    assert config["guide"]["class_path"] == "ppl_vae.guides.QuantizingEncoder"
