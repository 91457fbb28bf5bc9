"""Autoencoders on the command line: plain, denoising, sparse; a density of their codes; and VanillaVAE."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from ppl_vae import encode, load_data, load_run
from ppl_vae.cli import main
from ppl_vae.networks import GaussianNoise, MaskingNoise

VANILLA = Path(__file__).parents[1] / "analyses" / "configs" / "vanilla_vae.yaml"
QUICK = ("--num_samples", "2", "--posterior", "never", "--report", "false", "--quiet")
SMALL = ("--max_rows", "60", "--batch_size", "20", "--max_epochs", "2", *QUICK)
WIDTH = ("--model.network.network", "MLP", "--model.network.network.hidden", "[16]")


@pytest.fixture(scope="module", autouse=True)
def _without_pictures() -> Iterator[None]:
    """Pictures take most of the time; tests of the commands that draw them are elsewhere."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ppl_vae.cli.finish.draw_run", lambda *_: [])
        yield


def trained(run: Path, *options: str) -> Any:
    """A run of an autoencoder of the digits with six numbers in its code."""
    line = ("train", "--model", "Autoencoder", "--model.latent_dim", "6", "--run_dir", str(run))
    assert main([*line, *SMALL, *options]) == 0
    return load_run(run)


def evaluation(run: Path) -> Any:
    return json.loads((run / "evaluation.json").read_text())


def test_a_plain_autoencoder_and_a_density_of_its_codes(tmp_path: Path) -> None:
    plain, again = tmp_path / "plain", tmp_path / "again"
    loaded = trained(plain, "--model.network.hidden", "[16]", "--model.likelihood", "Gaussian")
    assert evaluation(plain)["measure"] == "distortion"
    data = load_data("digits", max_rows=60)
    means = loaded.model.decode(encode(loaded.model, loaded.guide, data.test)["z"]).mean
    squares = (means - data.test).square().flatten(1).sum(1).double().mean().detach()
    expected = float(squares) / 2 + 32 * np.log(2 * np.pi)  # of 64 pixels
    assert evaluation(plain)["distortion"]["mean"] == pytest.approx(expected, rel=1e-5)

    line = ("refit-prior", str(plain), "--prior", "FullNormal", "--run_dir", str(again))
    assert main([*line, *QUICK]) == 0
    found = load_run(again)
    assert evaluation(again)["measure"] == "log_joint"
    assert evaluation(again)["distortion"] == evaluation(plain)["distortion"]
    z = encode(loaded.model, loaded.guide, data.train)["z"]
    p = found.model.prior()  # type: ignore[attr-defined]
    torch.testing.assert_close(p.mean, z.mean(0), atol=1e-4, rtol=1e-4)
    covariance = torch.cov(z.T, correction=0)
    torch.testing.assert_close(p.covariance_matrix, covariance, atol=1e-3, rtol=1e-3)


def test_the_likelihood_of_digits_is_binomial_unless_another_is_typed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Then the distortion is no squared error."""
    line = ["train", "--model", "Autoencoder", "--print_config", "--max_rows", "20"]
    for typed, name in (((), "Binomial"), (("--model.likelihood", "Gaussian"), "Gaussian")):
        assert main([*line, *typed]) == 0
        config = yaml.safe_load(capsys.readouterr().out)
        chosen = config["model"]["init_args"]["likelihood"]
        assert chosen["class_path"] == f"ppl_vae.likelihoods.{name}"
    assert chosen["init_args"] == {"sigma": 1.0}


@pytest.mark.slow
def test_a_denoising_autoencoder(tmp_path: Path) -> None:
    noise = ("--model.network.noise", "0.3", "--model.network.masking", "0.25")
    run = trained(tmp_path / "run", "--model.network", "Denoising", *WIDTH, *noise)
    corruptions = {type(m): m for m in run.guide.modules()}
    assert corruptions[GaussianNoise].scale == 0.3
    assert corruptions[MaskingNoise].rate == 0.25
    assert not {GaussianNoise, MaskingNoise} & {type(m) for m in run.model.modules()}


@pytest.mark.slow
def test_a_sparse_autoencoder(tmp_path: Path) -> None:
    network = ("--model.network", "UnitNorm", *WIDTH[:3], "[]")
    prior = ("--model.prior", "LaplacePrior", "--model.prior.scale", "0.3")
    beta = ("--objective.beta", "LinearWarmup", "--objective.beta.epochs", "2")
    folder = tmp_path / "run"
    run = trained(folder, *network, *prior, *beta, "--guide.nonnegative", "true")
    atoms = run.model.decoder.net[0].weight
    torch.testing.assert_close(atoms.norm(dim=0), torch.ones(6))
    z = encode(run.model, run.guide, load_data("digits", max_rows=60).test)["z"]
    assert float(z.min()) == 0
    penalty = z.double().abs().sum(1).mean() / 0.3 + 6 * np.log(0.6)
    assert evaluation(folder)["neg_log_prior"]["mean"] == pytest.approx(float(penalty), rel=1e-4)
    assert run.config["objective"]["init_args"]["beta"]["init_args"]["epochs"] == 2


@pytest.mark.slow
def test_the_largest_numbers_of_codes(tmp_path: Path) -> None:
    run = trained(tmp_path / "run", "--model.network.hidden", "[16]", "--guide.top_k", "2")
    z = encode(run.model, run.guide, load_data("digits", max_rows=60).test)["z"]
    assert bool(((z != 0).sum(1) == 2).all())


@pytest.fixture
def pictures(tmp_path: Path) -> str:
    """A folder with eight pictures of 32 x 32."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for i in range(8):
        pixels = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return f"folder:{folder}"


def test_the_file_of_vanilla_vae_is_taken(
    pictures: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All of its options reach the parts, which are built; a misspelt one would be refused."""
    line = ["train", "--config", str(VANILLA), "--data", pictures, "--print_config"]
    assert main(line) == 0
    config, written = yaml.safe_load(capsys.readouterr().out), yaml.safe_load(VANILLA.read_text())

    def holds(whole: Any, part: Any) -> bool:
        if not isinstance(part, dict):
            return bool(whole == part)
        return all(holds(whole.get(name), value) for name, value in part.items())

    assert holds(config, written)
    assert main([*line, "--objective.beta", "0.384"]) == 0  # as for pictures of another size
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["objective"]["init_args"]["beta"] == 0.384
    wrong = tmp_path / "wrong.yaml"
    for name in ("refine:", "batch_size:"):
        wrong.write_text(VANILLA.read_text().replace(name, "x" + name))
        assert main(["train", "--config", str(wrong), "--data", pictures, "--print_config"]) == 2
        assert f"x{name[:-1]}" in capsys.readouterr().err


@pytest.mark.slow
def test_vanilla_vae_is_trained_by_its_file(pictures: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    line = ["train", "--config", str(VANILLA), "--data", pictures, "--run_dir", str(run)]
    assert main([*line, "--max_epochs", "1", *QUICK]) == 0
    assert np.isfinite(evaluation(run)["elbo"]["mean"])
    decoder: Any = load_run(run).model
    assert decoder.decode(torch.zeros(1, 128)).mean.shape == (1, 3, 32, 32)
