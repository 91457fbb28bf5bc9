"""The scripts about autoencoders run with tiny settings, and their tables make sense."""

from __future__ import annotations

import importlib
import math
import sys
import warnings
from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from scipy.stats import multivariate_normal
from scripts import ROOT, mean, rows, run
from sklearn.decomposition import PCA as SklearnPCA
from sklearn.neighbors import NearestNeighbors
from torch import Tensor
from torch.distributions import kl_divergence

from ppl_vae import evaluate
from ppl_vae.checks import PairWarning
from ppl_vae.guides import DeltaEncoder, Exact
from ppl_vae.models import Autoencoder, ProbabilisticPCA
from ppl_vae.rate_distortion import reverse_water_filling
from ppl_vae.tasks import sample

DATA = ROOT.parent / "shared" / "data"
"""Data in torchvision's layout, where they are kept beside the repository."""


def script(name: str) -> Any:
    """A script as a module."""
    with patch.object(sys, "path", [str(ROOT / "analyses"), *sys.path]):
        return importlib.import_module(name)


def autoencoders(folder: Path) -> None:
    printed = run("autoencoders.py", "sizes", "--quick", "--training.max_epochs=20", cwd=folder)
    few, more = rows(printed)
    assert (few["code"], more["code"]) == ("2", "4")
    # PCA is the best linear one, and its error falls with each component.
    assert mean(few["PCA, training rows"]) > mean(more["PCA, training rows"]) > 0
    for row in (few, more):
        gain = mean(row["PCA"]) - mean(row["autoencoder"])
        assert mean(row["PCA - autoencoder"]) == pytest.approx(gain, abs=0.02)
    assert imread(folder / "autoencoders_quick.png").ndim == 3
    again = run(
        *("autoencoders.py", "sizes", "--quick", "--training.max_epochs=20"),
        "--overwrite=true",
        cwd=folder,
    )
    assert rows(again) == [few, more]  # what is trained is kept

    table = rows(run("autoencoders.py", "road", "--quick", cwd=folder))
    assert [row["sigma"] for row in table] == ["0.5", "0.1", "autoencoder"]
    road(folder, *table)
    assert few["PCA"] == table[-1]["linear, error"]  # of the same rows, which `road` compares

    table = rows(run("autoencoders.py", "densities", "--quick", cwd=folder))
    kinds = ["diagonal normal", "normal", "mixture of 2", "flow"]
    assert [row["density of the codes"] for row in table] == 2 * kinds
    assert [row["by"] for row in table] == [*["closed form"] * 3, *["samples"] * 5]
    assert [row["unreliable"] for row in table[:3]] == ["0.0%"] * 3
    # x = W z + b + noise, z from the normal of the codes of the training rows.
    of, densities = script("autoencoder_pairs"), script("autoencoder_densities")
    sizes = of.Sizes(hidden=(16,), max_epochs=1, max_rows=60)
    digits = of.Rows.of("digits", folder, sizes)
    train, test = digits.train, digits.test[:10]
    made = partial(densities.calibrated, digits, 2, sizes, True)
    runs = folder / "autoencoder_densities_quick"
    model, guide = of.trained(runs, "linear-code=2", made, digits, sizes)  # kept
    with torch.no_grad():
        z = guide.eval().encode(train).mean.double()
        b, *columns = model.eval().decode(torch.eye(3, 2).roll(1, 0)).mean.flatten(1).double()
        variance = float(model.likelihood.variance)
    w = torch.stack(columns, 1) - b[:, None]
    covariance = w @ torch.cov(z.T, correction=0) @ w.T + variance * torch.eye(len(b))
    exact = multivariate_normal(b + w @ z.mean(0), covariance).logpdf(test.flatten(1).double())
    assert mean(table[1]["log p(x)"]) == pytest.approx(exact.mean(), abs=0.02)


def road(folder: Path, wide: Any, narrow: Any, last: Any) -> None:
    """The columns against the kept pairs, by formulas and draws of its own."""
    of, module = script("autoencoder_pairs"), script("autoencoder_road")
    sizes = of.Sizes(hidden=(16,), max_epochs=1, max_rows=60)
    digits = of.Rows.of("digits", folder, sizes)
    x, runs = digits.test.double(), folder / "autoencoder_road_quick"
    assert last["rate"] == "not defined"

    def error(found: Tensor) -> Tensor:
        squares: Tensor = (x - found.double()).square()
        return squares.flatten(-3).sum(-1)

    for row, sigma in ((wide, 0.5), (narrow, 0.1)):
        made = partial(module.vae, digits, 2, sigma, sizes)
        model, guide = of.trained(runs, f"code=2-sigma={sigma:g}", made, digits, sizes)
        with torch.no_grad():
            q, p = guide.eval().encode(digits.test), model.eval().prior()
            kl = kl_divergence(q, p)
            drawn = error(model.decode(q.sample((500,))).mean).mean(0)
            means = error(model.decode(q.mean).mean)
        assert mean(row["rate"]) == pytest.approx(float(kl.mean()), abs=0.1)  # by draws
        assert mean(row["squared error"]) == pytest.approx(float(drawn.mean()), rel=0.02)
        assert mean(row["of the means"]) == pytest.approx(float(means.mean()), abs=0.006)
        assert mean(row["of the means"]) < mean(row["squared error"])
        # The test below compares it with others.
        linear = module.LinearVAE(module.PCA(digits.train), 2, sigma)
        assert mean(row["linear, rate"]) == pytest.approx(float(linear.rates(x).mean()), abs=0.006)
        assert mean(row["linear, error"]) == pytest.approx(
            float(linear.errors(x).mean()), abs=0.006
        )
    made = partial(of.autoencoder, digits, 2, sizes)
    model, guide = of.trained(runs, "code=2", made, digits, sizes)
    with torch.no_grad():
        found = error(model.eval().decode(guide.eval().encode(digits.test).mean).mean)
    assert mean(last["squared error"]) == pytest.approx(float(found.mean()), abs=0.006)
    flat = digits.train.flatten(1).double().numpy()
    of_test = SklearnPCA(2).fit(flat)
    kept = torch.from_numpy(of_test.inverse_transform(of_test.transform(x.flatten(1).numpy())))
    assert mean(last["linear, error"]) == pytest.approx(
        float(error(kept.reshape(x.shape)).mean()), abs=0.006
    )


def test_pca_is_that_of_scikit_learn() -> None:
    of = script("autoencoder_pairs")
    digits = of.Rows.of("digits", Path(), of.Sizes())
    pca = of.PCA(digits.train)
    train, test = (part.flatten(1).double().numpy() for part in (digits.train, digits.test))
    for components in (1, 5, 30):
        other = SklearnPCA(components, svd_solver="full").fit(train)
        expected = other.inverse_transform(other.transform(test))
        found = pca.reconstruct(digits.test, components).flatten(1).numpy()
        np.testing.assert_allclose(found, expected, atol=1e-6)
        variances = other.explained_variance_ * (len(train) - 1) / len(train)
        np.testing.assert_allclose(pca.variances[:components].numpy(), variances, rtol=1e-6)
        errors = of.squared_errors(digits.test, pca.reconstruct(digits.test, components))
        np.testing.assert_allclose(errors.numpy(), ((test - expected) ** 2).sum(1), atol=1e-6)


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "MNIST").is_dir(), reason="MNIST is not there")
def test_pca_of_mnist_has_the_error_of_hinton_and_salakhutdinov() -> None:
    """13.87 with 30 components, on the test rows ("Reducing the Dimensionality of Data ...", 2006)."""
    of = script("autoencoder_pairs")
    rows_of = of.Rows.of("MNIST", DATA, of.Sizes())
    assert (len(rows_of.train), len(rows_of.test)) == (60_000, 10_000)
    found = of.PCA(rows_of.train).reconstruct(rows_of.test, 30)
    assert float(of.squared_errors(rows_of.test, found).mean()) == pytest.approx(13.87, abs=0.005)


@pytest.mark.parametrize("sigma", [0.6, 0.3, 0.05])
def test_the_linear_vae_of_the_road_is_that_of_evaluate(sigma: float) -> None:
    """On rows it was not made of, by draws from the posterior of probabilistic PCA with its weights."""
    of, module = script("autoencoder_pairs"), script("autoencoder_road")
    digits = of.Rows.of("digits", Path(), of.Sizes(max_rows=200))
    pca, code = module.PCA(digits.train), 5
    linear = module.LinearVAE(pca, code, sigma)
    model = ProbabilisticPCA((1, 8, 8), code, sigma=sigma)
    weights = pca.directions[:, :code] * (pca.variances[:code] - sigma**2).clamp_min(0).sqrt()
    left_whole = bool((weights == 0).all(0).any())
    assert left_whole == (sigma == 0.6)
    with torch.no_grad():
        model.weight.copy_(weights)
        model.mean.copy_(pca.mean.reshape(model.mean.shape))
    x = digits.test[:50]
    found = evaluate(model, Exact(model), x, num_samples=4000, seed=0, progress=False)
    rates = linear.rates(x)
    constant = 32 * math.log(2 * math.pi * sigma**2)
    errors = 2 * sigma**2 * (found.distortion.values.double() - constant)
    torch.testing.assert_close(found.rate.values.double(), rates, atol=0.15, rtol=0.01)
    assert found.rate.mean == pytest.approx(float(rates.mean()), abs=0.02)
    torch.testing.assert_close(errors, linear.errors(x), atol=0.05 * sigma, rtol=0.01)
    assert float(errors.mean()) == pytest.approx(float(linear.errors(x).mean()), rel=2e-3)
    # On its own rows it is reverse water-filling.
    best = reverse_water_filling(pca.variances, sigma**2, latent_dim=code)
    assert float(linear.rates(digits.train).mean()) == pytest.approx(best.rate, rel=1e-6)
    assert float(linear.errors(digits.train).mean()) == pytest.approx(best.distortion, rel=1e-6)


def faces(folder: Path) -> None:
    generator = np.random.default_rng(0)
    video = generator.integers(0, 256, (60, 1, 8, 6), dtype=np.uint8)
    np.save(folder / "video.npy", video)
    of_video = ("--data=video.npy", "--training.hidden=[8]", "--training.max_epochs=2")
    (row,) = rows(run("faces.py", "manifold", *of_video, "--size=3", cwd=folder))
    assert row["rows"] == "12"  # one of five
    assert row["unreliable"].endswith("%")
    assert "±" not in row["ELBO"]  # a single stretch
    names = ["rows", "ELBO", "log p(x)", "unreliable", "rate", "squared error"]
    assert [*row] == names
    mouth = "--mouth=[5,7,2,4]"
    printed = run("faces.py", "moves", *of_video, mouth, "--latent_dim=3", cwd=folder)
    _, directions = printed.split("\n\n")[:2]
    found = {row["direction"]: row["share of the change"] for row in rows(directions)}
    assert [*found] == ["smile", "turn", "nod"]
    assert all(0 < mean(share) <= 100 for share in found.values())
    assert imread(folder / "faces_moves.png").ndim == 3
    np.save(folder / "floats.npy", video.astype(np.float32))
    with pytest.raises(ValueError, match=r"floats\.npy must hold pictures of bytes"):
        run("faces.py", "moves", "--data=floats.npy", "--overwrite=true", cwd=folder)


def test_errors_of_a_video_are_those_over_stretches() -> None:
    module = script("faces")
    generator = torch.Generator().manual_seed(0)
    of_stretch = torch.randn(40, 1, generator=generator)
    values = (of_stretch + 0.1 * torch.randn(40, module.STRETCH, generator=generator)).flatten()
    found = module.over_stretches(values, "video.npy")
    means = values.double().reshape(40, -1).mean(1)
    assert found.mean == pytest.approx(float(values.double().mean()))
    assert found.standard_error == pytest.approx(float(means.std()) / 40**0.5)
    assert found.standard_error > 7 * module.over_stretches(values, "MNIST").standard_error
    # The last stretch is cut: three frames change little.
    cut = module.over_stretches(torch.cat([values, values[:3]]), "video.npy")
    assert cut.mean == pytest.approx(float(torch.cat([values, values[:3]]).double().mean()))
    assert cut.standard_error == pytest.approx(found.standard_error, rel=0.03)
    assert module.over_stretches(values[:30], "video.npy").numbers(".2f").count("±") == 0


def test_the_table_of_faces_has_these_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = script("faces")
    monkeypatch.setattr(module, "STRETCH", 3)
    generator = np.random.default_rng(0)
    np.save(tmp_path / "video.npy", generator.integers(0, 256, (60, 1, 4, 4), dtype=np.uint8))
    sizes = module.Sizes(hidden=(4,))
    video = module.frames(str(tmp_path / "video.npy"), sizes)
    model, guide = module.vae(video, 2, sizes)
    found = evaluate(model, guide, video.test, num_samples=5, seed=0, progress=False)
    monkeypatch.setattr(module, "evaluate", lambda *_, **__: found)
    count, *cells = module._measured(model, guide, video, "video.npy", 10**6)
    assert count == "12"  # four stretches of three
    measured = (found.elbo, found.log_likelihood, found.rate)
    for cell, each in zip((cells[0], cells[1], cells[3]), measured, strict=True):
        means = each.values.double().reshape(4, 3).mean(1)
        assert cell == f"{float(means.mean()):.2f} ± {float(means.std()) / 2:.2f}"
    assert cells[2] == f"{float(found.unreliable.double().mean()):.1%}"


def test_directions_that_are_planted_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decoder that is linear in four latents: the mouth, shifts to the side and upwards, all of the face."""
    monkeypatch.syspath_prepend(ROOT / "analyses")
    module: Any = importlib.import_module("faces")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 1, 10, 8, generator=generator).cumsum(2).cumsum(3)
    side, up = torch.gradient(x, dim=-1)[0], torch.gradient(x, dim=-2)[0]
    mouth = torch.zeros_like(x)
    mouth[..., 7:9, 2:6] = torch.randn(2, 4, generator=generator)
    everything = torch.randn(x.shape, generator=generator)
    moved: list[Tensor] = [mouth, side, up, everything]
    slopes = torch.stack([part.flatten() / part.norm() for part in moved], -1)[None]
    mixed, _ = torch.linalg.qr(torch.randn(4, 4, generator=generator))
    found = module.directions(slopes @ mixed, x, (7, 9, 2, 6))
    for number, name in enumerate(("smile", "turn", "nod")):
        share, w = found[name]
        assert share > 0.9, name
        # Others may help where they overlap.
        assert abs(float((mixed @ w)[number])) > 0.9, name


def vae_gan(folder: Path) -> None:
    names = ["VAE", "VAE_Dis", "VAE/GAN", "GAN"]
    printed = run("vae_gan.py", "--quick", "--accuracy=true", cwd=folder)
    _, first, second = printed.split("\n\n")[:3]
    table, over_seeds = ({row["model"]: row for row in rows(part)} for part in (first, second))
    assert [*table] == [*over_seeds] == names
    module = script("vae_gan")
    tiny = {"hidden": (16,), "channels": (4, 8), "max_epochs": 1, "max_rows": 60}
    sizes = replace(module.USUAL, **tiny)
    digits = module.frames("digits", sizes, folder)
    x = digits.test
    of = module.Setting(
        digits, 2, sizes, None, None, 2, False, folder / "vae_gan_quick"
    )  # all is kept there
    judge = replace(of, sizes=replace(sizes, seed=1000)).gan()[0].discriminator.eval()
    features = judge(x)[1].flatten(1).detach().double()
    spread = features.var(0, correction=0).sum()
    number = features.shape[1]
    assert f"gamma = {1 / number:g} for {number} features" in printed
    for name in names[:3]:
        model, guide = module.MODELS[name](of)
        with torch.no_grad():
            seen = model.eval().decode(guide.eval().encode(x).mean).mean
        error = float((x - seen).double().square().flatten(1).sum(1).mean())
        # Means of one draw of z are near those at its mean: after one epoch z says little.
        assert mean(table[name]["squared error"]) == pytest.approx(error, rel=0.05), name
        far = (judge(seen)[1].flatten(1).detach().double() - features).square().sum(1).mean()
        assert mean(table[name]["feature distance"]) == pytest.approx(float(far / spread), rel=0.1)
    log_p = {name: mean(row["log p(x)"]) for name, row in table.items()}
    for name, row in table.items():
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "the noise had not settled", PairWarning)  # so soon
            model, guide = script("vae_gan_pairs").fitted_to(of, module.MODELS[name](of)[0], 2)
        at = torch.linspace(0, len(x) - 1, 10).round().long()
        z = guide.eval().encode(digits.train).mean
        # After one epoch z says little: means at draws of it are near those at its means.
        with torch.no_grad():
            means = model.decode(z).mean
            noise = (means - digits.train).square().mean()
            alone = torch.distributions.Normal(means.mean(0), noise.sqrt())  # as if it said nothing
            exact = alone.log_prob(x[at]).flatten(1).sum(1).mean()
        assert float(model.likelihood.variance) == pytest.approx(float(noise), rel=0.05), name
        assert log_p[name] == pytest.approx(float(exact), abs=0.5), name
        assert mean(row["ELBO"]) <= log_p[name]
        drawn = sample(model, 500, seed=0, means=True).flatten(1)
        nearest = NearestNeighbors(n_neighbors=1).fit(digits.train.flatten(1))
        found = len(np.unique(nearest.kneighbors(drawn)[1]))
        assert float(row["distinct"]) == pytest.approx(found / len(digits.train), abs=0.01), name
        assert mean(over_seeds[name]["log p(x)"]) == log_p[name]
        if name != "VAE":
            difference = log_p[name] - log_p["VAE"]
            assert mean(row["minus VAE"]) == pytest.approx(difference, abs=0.011), name
            assert mean(over_seeds[name]["minus VAE"]) == mean(row["minus VAE"]), name
    assert table["VAE"]["collapsed"] == "yes"  # after one epoch
    assert over_seeds["VAE"]["collapsed"] == "1 of 1"
    for row in table.values():
        assert 0 <= mean(row["unreliable"]) <= 100
        for column in ("accuracy, reconstructions", "accuracy, draws"):
            assert 0 <= mean(row[column]) <= 100
    assert imread(folder / "vae_gan_quick.png").ndim == 3
    # What was measured is kept, and measured anew for other settings.
    measured = folder / "vae_gan_quick" / "digits" / "measured"
    written = {file: file.stat().st_mtime_ns for file in measured.iterdir()}
    assert len(written) == len(names)
    again = run("vae_gan.py", "--quick", "--accuracy=true", "--overwrite=true", cwd=folder)
    assert again == printed
    assert {file: file.stat().st_mtime_ns for file in measured.iterdir()} == written
    other = run("vae_gan.py", "--quick", "--overwrite=true", "--num_samples=20", cwd=folder)
    assert rows(other.split("\n\n")[1])[0]["log p(x)"] != table["VAE"]["log p(x)"]
    kept = {run.parent.name for run in (folder / "vae_gan_quick").rglob("metrics.csv")}
    assert {"vae-seed=0", "gan-layer=2-seed=0", "vae_gan-layer=2-seed=0"} <= kept
    np.save(folder / "video.npy", np.zeros((60, 1, 8, 8), dtype=np.uint8))
    with pytest.raises(ValueError, match="--accuracy needs labels, and video has none"):
        run(
            "vae_gan.py",
            "--quick",
            "--data=video.npy",
            "--accuracy=true",
            "--overwrite=true",
            cwd=folder,
        )


def test_a_training_that_was_stopped_before_its_first_steps_starts_again(tmp_path: Path) -> None:
    """Its folder is there, and has no checkpoint; then it has one, and is not trained again."""
    of = script("autoencoder_pairs")
    sizes = of.Sizes(hidden=(4,), max_epochs=1, max_rows=60)
    rows = of.Rows.of("digits", tmp_path, sizes)
    (tmp_path / "pair").mkdir()

    def train() -> Any:
        make = partial(of.autoencoder, rows, 2, sizes)
        return of.trained(tmp_path, "pair", make, rows, sizes)[0].state_dict()

    first, metrics = train(), (tmp_path / "pair" / "metrics.csv").read_text()
    again = train()
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert (tmp_path / "pair" / "metrics.csv").read_text() == metrics


def test_measures_of_draws_are_those_of_known_ones(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(ROOT / "analyses")
    module: Any = importlib.import_module("vae_gan_measures")
    train = torch.eye(8)
    assert module.variance(train) == pytest.approx(1 - 1 / 8)  # 1 for each row, its mean 8 / 64
    assert module.share_distinct(train * 0.9, train) == 1
    two = train[torch.arange(40) % 2]  # of two kinds: much spread, few kinds
    assert module.share_distinct(two, train) == pytest.approx(2 / 8)
    assert module.share_distinct(train[:4], train) == 1  # no more than there are draws
    assert module.spread_over(5, 3).tolist() == [0, 2, 4]
    assert module.spread_over(3, 200).tolist() == [0, 1, 2]

    def measured(spread: float, distinct: float) -> Any:
        rest = dict.fromkeys((each.name for each in fields(module.Measured)), torch.ones(1))
        of = {"spread": torch.tensor(spread), "distinct": torch.tensor(distinct)}
        return module.Measured(**(rest | of))

    shares = ((0.9, 0.5), (0.4, 0.5), (0.9, 0.05))
    assert [measured(*each).collapsed for each in shares] == [False, True, True]
    file = tmp_path / "measured.safetensors"
    assert float(module.kept(file, "one", lambda: measured(0.9, 0.5)).spread) == pytest.approx(0.9)
    assert float(module.kept(file, "one", lambda: measured(0.1, 0.5)).spread) == pytest.approx(0.9)
    assert float(module.kept(file, "two", lambda: measured(0.1, 0.5)).spread) == pytest.approx(0.1)


def test_the_price_of_an_adversary_is_paired_by_row_and_seed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(ROOT / "analyses")
    module: Any = importlib.import_module("vae_gan")

    def measured(log_p: list[float], spread: float) -> Any:
        rest = dict.fromkeys((each.name for each in fields(module.Measured)), torch.ones(1))
        rest["unreliable"] = torch.tensor([spread < 0.2, False])
        own = {
            "log_p": torch.tensor(log_p),
            "at": torch.tensor([0, 1, 70]),
            "accuracy": torch.empty(0),
        }
        return module.Measured(**(rest | own | {"spread": torch.tensor(spread)}))

    found = {
        ("VAE", 0): measured([1.0, 2.0, 3.0], 0.9),
        ("VAE", 1): measured([3.0, 2.0, 1.0], 0.9),
        ("GAN", 0): measured([0.0, 1.0, 1.0], 0.1),  # -1, -1 and -2
        ("GAN", 1): measured([1.0, 0.0, -1.0], 0.8),  # -2 everywhere
    }
    over_rows = partial(module.over_stretches, data="digits")
    of_video = partial(module.over_stretches, data="faces.npy")  # rows 0 and 1 are of one stretch
    assert module._minus_vae(over_rows, found, "GAN", 0) == "-1.33 ± 0.33"
    assert module._minus_vae(over_rows, found, "GAN", 1) == "-2.00 ± 0.00"
    assert module._minus_vae(of_video, found, "GAN", 0).startswith("-1.33 ± 0.4")
    assert module._minus_vae(over_rows, found, "VAE", 0) == ""
    module._over_seeds(found)
    vae, gan = rows(capsys.readouterr().out)
    assert (vae["minus VAE"], vae["collapsed"]) == ("", "0 of 2")
    assert (gan["log p(x)"], gan["minus VAE"]) == ("0.33 ± 0.33", "-1.67 ± 0.33")
    assert (gan["spread of draws"], gan["collapsed"]) == ("0.45 ± 0.35", "1 of 2")
    assert "lower bounds at best: GAN (25% of the rows)." in module._unreliable(found)
    assert module._unreliable({("VAE", 0): found["VAE", 0]}) == ""


def test_accuracy_is_that_of_separable_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them, if reconstructions are the rows; none, if each is like one of the other class."""
    monkeypatch.syspath_prepend(ROOT / "analyses")
    module: Any = importlib.import_module("vae_gan_measures")
    y = torch.arange(60) % 2
    x = torch.where(y == 1, 0.9, 0.1)[:, None, None, None].expand(60, 1, 8, 8).clone()
    both = module.Rows("separable", x, x, y, y)
    model: Any = Autoencoder((1, 8, 8), 1, linear=True)
    guide = DeltaEncoder((1, 8, 8), 1, linear=True)
    with (
        torch.no_grad()
    ):  # z is the mean of a row, and a row is z everywhere, or the other way round
        guide.head.weight.fill_(1 / 64)
        guide.head.bias.zero_()
    for found, slope, expected in ((x, 1.0, 1.0), (1 - x, -1.0, 0.0)):
        with torch.no_grad():
            model.decoder.net[0].weight.fill_(slope)
            model.decoder.net[0].bias.fill_(0.0 if slope > 0 else 1.0)
        monkeypatch.setattr(module, "reconstructed", lambda pair, rows, found=found: found)
        seen, drawn = module.accuracies_of(both, None, (model, guide), 20)
        assert (seen.mean, drawn.mean) == (expected, expected)


CHECKS: dict[str, Callable[[Path], None]] = {
    "autoencoders.py": autoencoders,
    "faces.py": faces,
    "vae_gan.py": vae_gan,
}


@pytest.mark.parametrize(
    "script",
    [pytest.param(n, marks=() if n == "faces.py" else pytest.mark.slow) for n in CHECKS],
)
def test_script(script: str, tmp_path: Path) -> None:
    CHECKS[script](tmp_path)
