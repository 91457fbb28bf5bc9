"""Every script in analyses/ runs with a tiny setting, and what it prints makes sense."""

from __future__ import annotations

import importlib
import io
import json
import math
import os
import re
import runpy
import struct
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from matplotlib.image import imread
from PIL import Image
from scripts import ROOT, Row, mean, rows, run, run_alone
from torch import Tensor

from ppl_vae.cli import main as cli
from ppl_vae.data import Data


def check_elbo(row: Row, log_p: str) -> None:
    """The ELBO is minus rate and distortion, and at most log p(x)."""
    assert mean(row["ELBO"]) == pytest.approx(
        -mean(row["rate"]) - mean(row["distortion"]), abs=0.02
    )
    assert mean(row["ELBO"]) <= mean(row[log_p]) + 0.01
    assert mean(row["rate"]) > 0


def swap_guides(folder: Path) -> None:
    printed = run(
        "swap_guides.py", "--max_epochs=2", "--max_rows=64", "--num_samples=50", cwd=folder
    )
    table = {row["model, guide"]: row for row in rows(printed)}
    normals = ["MeanField", "LowRank", "FullCovariance"]
    pca = [f"ProbabilisticPCA, {guide}" for guide in (*normals, "Exact")]
    vae = [f"VAE, {guide}" for guide in (*normals, "MixtureOfGaussians")]
    assert list(table) == [*pca, *vae]
    for name, row in table.items():
        check_elbo(row, "log p(x)")
        assert 0 <= mean(row["unreliable"]) <= 100
        # Nothing is lost by the posterior, which is not trained, and something by all others.
        exact = name.endswith("Exact")
        assert row["gap"] == "0.000 ± 0.000" if exact else mean(row["gap"]) > 0.05
        assert row["seconds"] == "0" or not exact
    # The gaps are those to one truth, which the exact guide knows.
    truth = table[pca[-1]]
    assert mean(truth["ELBO"]) == pytest.approx(mean(truth["log p(x)"]), abs=0.0006)
    for name in pca:
        difference = mean(truth["ELBO"]) - mean(table[name]["ELBO"])
        assert mean(table[name]["gap"]) == pytest.approx(difference, abs=0.0011)
    assert imread(folder / "swap_guides.png").std() > 0.05  # not an empty canvas


def inference_gaps(folder: Path) -> None:
    sizes = ("--max_epochs=2", "--guide_epochs=2", "--max_rows=64", "--max_test_rows=10")
    small = ("--latent_dim=2", "--hidden=[16]", "--num_samples=100", "--max_steps=60")
    printed = run("inference_gaps.py", *sizes, *small, "--temperatures=20", cwd=folder)
    table = {row["guide"]: row for row in rows(printed)}
    normals = ["MeanField", "LowRank", "FullCovariance", "MixtureOfGaussians"]
    flows = ["MaskedAutoregressive", "InverseAutoregressive", "NeuralSpline"]
    assert list(table) == [*normals, *flows, "SemiAmortized", "PerRow (MeanField)"]
    annealed = float(printed.split("log p(x) by AIS: ")[1].split()[0])
    for row in table.values():
        approximation, amortization = (
            mean(row[f"{name} gap"]) for name in ("approximation", "amortization")
        )
        # All gaps are to the one log p(x) of the decoder.
        assert mean(row["ELBO"]) + approximation + amortization == pytest.approx(annealed, abs=0.02)
        difference = mean(row["log p(x), IS"]) - annealed
        assert mean(row["IS − AIS"]) == pytest.approx(difference, abs=0.02)
        assert abs(mean(row["ladder − AIS"])) < 0.5
        assert 0 <= mean(row["unreliable"]) <= 100
        assert mean(row["ms per step"]) > 0
    # Quadrature, to which two dimensions give way, finds the same log p(x).
    quadrature = float(printed.split("log p(x) by quadrature: ")[1].split()[0])
    assert annealed == pytest.approx(quadrature, abs=0.15)
    # Sixty steps are too few for the best q of some rows; the script names their guides.
    assert "- MeanField, LowRank, FullCovariance" in printed
    assert "raise max_steps" in printed
    (held,) = (line for line in printed.splitlines() if "which are held fixed" in line)
    assert held.startswith(f"- {', '.join(flows)}: ")
    for picture in ("inference_gaps.png", "inference_gaps_posteriors.png"):
        assert imread(folder / picture).std() > 0.05  # not an empty canvas


def mnist(folder: Path) -> None:
    write_mnist(folder / "some data", 100, 20)
    arguments = (
        "--data_dir",
        "some data",
        "--max_epochs=2",
        "--num_samples=50",
        "--trusted_samples=120",
    )
    printed = run_alone(str(ROOT / "analyses" / "mnist.py"), *arguments, cwd=folder)
    (row,) = rows(printed)
    check_elbo(row, "log p(x), K = 120")
    assert row["binarization"] == "dynamic"
    assert mean(row["epochs (best)"]) == 2
    bits = -mean(row["log p(x), K = 120"]) / (784 * math.log(2))
    assert mean(row["bits/dim"]) == pytest.approx(bits, abs=1e-4)
    assert 0 <= mean(row["active units"]) <= 50
    assert row["active units"].endswith(" of 50")
    # At most log n, about which the aggregate posterior of n rows can tell.
    assert mean(row["mutual information"]) <= math.log(20) + 0.005
    for name in ("unreliable", "unreliable, K = 120"):
        assert 0 <= mean(row[name]) <= 100
    assert mean(row["ELBO"]) < mean(row["log p(x), the guide's 50 samples"])
    assert "20 test rows" in printed
    script = ROOT / "analyses" / "mnist.py"
    assert (
        f"{script} --data_dir 'some data' --max_epochs=2 --num_samples=50 --trusted_samples=120`"
        in printed
    )
    assert f"torch {torch.__version__}" in printed


def hard_em_to_vq(folder: Path) -> None:
    few = ("--rows=400", "--drawn=12", "--temperatures=[0,2]", "--epochs=3", "--max_rows=150")
    printed = run("hard_em_to_vq.py", *few, cwd=folder)
    first, second = (rows(part) for part in printed.split("k-means moves")[:2])
    moved, critical = (
        float(printed.split(said)[1].split()[0].rstrip("."))
        for said in ("k-means moves the codes of T = 0 by ", "critical temperature is ")
    )
    assert moved < 1e-12
    posterior = 2 * 0.7**2
    columns = ("T", "codes apart", "distortion", "entropy", "distortion - T entropy", "ELBO")
    last = None
    for row in first:
        t, apart, distortion, entropy, free, elbo = (mean(row[name]) for name in columns)
        assert mean(row["moved by EM"]) < 1e-8  # at sigma^2 = T / 2, hard EM at 0
        assert free == pytest.approx(distortion - t * entropy, abs=2e-3)
        # The ELBO is log p(x) where q is the posterior: there, and where all codes are one.
        tight = t == pytest.approx(posterior) or t > critical
        gap = mean(row["log p(x)"]) - elbo
        assert (abs(gap) < 2e-4) == tight
        assert gap > -2e-4
        # Above the critical temperature, codes are one, and just below they are not.
        assert apart < 1e-3 if t > critical else apart > 1
        if t > critical:
            assert entropy == pytest.approx(math.log(4), abs=1e-4)
        if last is not None:
            assert distortion >= last[0] - 1e-4
            assert entropy >= last[1] - 1e-4
            assert free < last[2]
        last = distortion, entropy, free
    assert [mean(row["T"]) / critical for row in first][-3:-1] == pytest.approx(
        [0.98, 1.02], rel=1e-4
    )
    assert first[0]["entropy"] == "0.0000"
    for row in second:  # two codes of 16 each, under a uniform prior
        rate, entropy, elbo = (mean(row[name]) for name in ("rate", "entropy", "ELBO"))
        assert rate == pytest.approx(2 * math.log(16) - entropy, abs=0.0021)
        assert elbo < mean(row["log p(x)"])
        assert (entropy > 0.01) == (row["T"] == "2")
    assert imread(folder / "hard_em_to_vq.png").std() > 0.05


def em_vs_vae(folder: Path) -> None:
    settings = {
        "digits": ("--components=3", "--max_rows=80", "--epochs=4"),
        "mnist": ("--data_dir=.", "--dimensions=2", "--components=2", "--epochs=3"),
        "pca": ("--latent_dim=2", "--max_rows=80", "--epochs=4"),
        "hmm": ("--states=2", "--steps=4", "--rows=40", "--epochs=3"),
    }
    write_mnist(folder, 100, 20)
    by_svi = ["SVI, exact q", "SVI, amortized q", "SVI, q learns first"]
    for problem, options in settings.items():
        printed = run("em_vs_vae.py", problem, *options, cwd=folder)
        table = {row["method"]: row for row in rows(printed)}
        hard = [] if problem == "pca" else ["hard EM"]  # where z is continuous, it climbs no bound
        assert list(table) == ["EM", *hard, "gradient EM", *by_svi]
        for name, row in table.items():
            bound, log_p, kl = (mean(row[column]) for column in ("bound", "log p(x)", "KL"))
            assert bound == pytest.approx(log_p - kl, abs=0.0016)
            assert mean(row["then EM"]) >= log_p - 0.001
            if name in ("EM", "gradient EM", "SVI, exact q"):
                assert row["KL"] == row["test KL"] == "0.000"
            elif name in by_svi:
                assert min(kl, mean(row["test KL"])) > 0
        gradients = {name: int(row["gradients"]) for name, row in table.items()}
        epochs = int(options[-1].rpartition("=")[2])
        assert gradients["EM"] == 0
        assert gradients["SVI, exact q"] == gradients["SVI, amortized q"] == epochs
        assert gradients["SVI, q learns first"] == epochs + 1
        assert imread(folder / f"em_vs_vae_{problem}.png").std() > 0.05
        if problem == "pca":  # Nothing is above the closed form, and EM reaches it
            best = float(printed.rpartition("by eigenvalues: ")[2].split()[0])
            assert mean(table["EM"]["log p(x)"]) == pytest.approx(best, abs=0.01)
            assert all(mean(row["log p(x)"]) <= best + 0.001 for row in table.values())


def write_mnist(folder: Path, train: int, test: int) -> None:
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, n in (("train", train), ("t10k", test)):
        blobs = torch.zeros(n, 28, 28, dtype=torch.uint8)
        blobs[:, 8:20, 8:20] = torch.randint(0, 256, (n, 12, 12), dtype=torch.uint8)
        write_idx(raw / f"{part}-images-idx3-ubyte", blobs)
        write_idx(raw / f"{part}-labels-idx1-ubyte", torch.arange(n, dtype=torch.uint8) % 10)


def write_idx(path: Path, values: Tensor) -> None:
    """The format of the MNIST files: two zeros, type, number of dimensions, big-endian sizes, bytes."""
    header = struct.pack(f">BBBB{values.ndim}I", 0, 0, 8, values.ndim, *values.shape)
    path.write_bytes(header + values.numpy().tobytes())


def priors(folder: Path) -> None:
    sizes = ("--max_epochs=2", "--max_rows=64", "--max_test_rows=20", "--components=3")
    printed = run("priors.py", *sizes, "--num_samples=50", "--hidden=[16]", cwd=folder)
    table = {row["prior"]: row for row in rows(printed)}
    trained = ["StandardNormal", "MixturePrior", "VampPrior", "FlowPrior"]
    refitted = ["DiagonalNormal", "MixturePrior", "FlowPrior"]
    assert list(table) == [*trained, *(f"{name}, refitted" for name in refitted)]
    for row in table.values():
        check_elbo(row, "log p(x), K = 50")
        assert 0 <= mean(row["unreliable"]) <= 100
        assert row["active"].endswith(" of 8")
        # At most log n, about which the aggregate posterior of n rows can tell.
        assert mean(row["mutual information"]) <= math.log(20) + 0.005
    # What is refitted is the prior: neither the guide nor the decoder.
    plain = mean(table["StandardNormal"]["distortion"])
    for name in refitted:
        again = table[f"{name}, refitted"]
        assert mean(again["distortion"]) == pytest.approx(plain, abs=0.006)
    better = table["DiagonalNormal, refitted"]
    assert mean(better["rate"]) < mean(table["StandardNormal"]["rate"])
    assert "20 test rows" in printed
    assert imread(folder / "priors.png").std() > 0.05  # not an empty canvas


def banana(folder: Path) -> None:
    printed = run("banana.py", "--num_rows=64", "--max_epochs=3", "--num_particles=2", cwd=folder)
    table = {row["guide"]: row for row in rows(printed)}
    assert list(table) == [
        *("mean-field", "full covariance", "mixture of 8 Gaussians", "neural spline flow")
    ]
    for row in table.values():
        assert mean(row["ELBO, all rows"]) < 0
        assert mean(row["KL(q ǁ p(z given x)), the row drawn"]) > 0.1  # three epochs are few
    assert "over 64 rows" in printed
    assert imread(folder / "guides_over_posteriors.png").std() > 0.05  # not an empty canvas


def few_labels(folder: Path) -> None:
    sizes = ("--seeds=2", "--max_epochs=1", "--hidden=8", "--max_rows=150")
    printed = run("few_labels.py", "--labels=[20,40]", *sizes, cwd=folder)
    few, more = rows(printed)
    assert [few["labels"], more["labels"]] == ["20", "40"]
    for row in (few, more):
        shares = [mean(row[name]) for name in ("M2", "logistic regression", "nearest neighbor")]
        assert all(0 <= share <= 100 for share in shares)
        assert shares[1] > 60  # with two or four rows of each class
        # The better of the two is chosen for each seed.
        assert mean(row["M2 - the better of the two"]) <= shares[0] - max(shares[1:]) + 0.11
    assert "Percent of 150 test rows" in printed


def classification_accuracy(folder: Path) -> None:
    few = ("--max_rows=300", "--seeds=2", "--max_epochs=2", "--latent_dim=2", "--hidden=[16]")
    printed = run(
        "classification_accuracy.py",
        *few,
        "--codes=8",
        "--grid.channels=8",
        "--num_steps=60",
        "--channels=[8,16]",
        cwd=folder,
    )
    table = {row["trained on"]: row for row in rows(printed)}
    vaes = ["reconstructions, VAE", "draws, ConditionalVAE", "means, ConditionalVAE"]
    coded = ["reconstructions, VQ-VAE", "draws, ConditionalVQVAE", "means, ConditionalVQVAE"]
    of_classes = ["draws, a VAE for each class", "draws, PCA for each class"]
    shuffled = "real rows, labels shuffled"
    assert list(table) == ["real rows", *vaes, *coded, *of_classes, shuffled]
    real = mean(table.pop("real rows")["accuracy"])
    assert mean(table["draws, PCA for each class"]["accuracy"]) > 50
    assert real > 50
    assert mean(table[shuffled]["accuracy"]) < 30  # 10 by chance, and shuffles differ
    for row in table.values():
        difference = mean(row["accuracy"]) - real
        assert mean(row["minus real rows"]) == pytest.approx(difference, abs=0.011)
        least, most = (float(row["by seed"].split(" to ")[i]) for i in (0, 1))
        assert least - 0.05 <= mean(row["accuracy"]) <= most + 0.05
        assert mean(row["lowest (class)"].split()[0]) <= most
    assert "60 steps of 128 rows" in printed


def test_held_out_rows_are_of_all_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of a folder come class by class, of which the first ones would be a single class."""
    monkeypatch.syspath_prepend(ROOT / "analyses")
    script = runpy.run_path(str(ROOT / "analyses" / "classification_accuracy.py"))
    train, held_out = (
        (torch.zeros(10 * n, 2), torch.arange(10).repeat_interleave(n)) for n in (360, 40)
    )
    data = Data("sorted", train, held_out, held_out, levels=256)
    setting = script["Setting"](data, 10, 2, script["MLP"](), 8, None, 1, 64, 0)
    x, y = setting.held_out
    assert len(x) == len(y) <= 360
    assert y.bincount().tolist() == [20] * 10


def rate_distortion(folder: Path) -> None:
    sizes = ("--betas=[1,4]", "--num_rows=100", "--max_epochs=250", "--num_samples=200")
    printed = run("rate_distortion.py", *sizes, "--num_chains=16", "--num_steps=200", cwd=folder)
    first, second = printed.strip().split("\n\n")[:2]
    learned, own = rows(first), rows(second)
    losses = ["β-VAE", "rate + λ distortion, λ = 1/β"]
    assert [(row["loss"], row["beta"]) for row in learned] == [
        (loss, beta) for beta in "14" for loss in losses
    ]
    assert [row["active"] for row in learned] == ["6", "6", "4", "4"]
    for row in learned:
        assert mean(row["best rate"]) == {"1": 7.278, "4": 3.466}[row["beta"]]
        assert mean(row["rate"]) == pytest.approx(mean(row["best rate"]), rel=0.1)
        # Nothing is below the curve, and 250 steps come near it.
        assert -0.3 < mean(row["rate above the curve"].replace("%", " %").split()[0]) < 5
    slopes = [mean(row["slope 1 / beta"]) for row in own]
    assert slopes == sorted(slopes)
    assert 0.25 in slopes
    for row in own:
        for name in ("rate", "distortion"):
            assert mean(row[name]) == pytest.approx(mean(row[f"exact {name}"]), rel=0.05)
    assert imread(folder / "rate_distortion.png").std() > 0.05  # not an empty canvas


def collapse(folder: Path) -> None:
    write_mnist(folder / "some data", 100, 20)
    data = ("--data_dir=some data", "--linear=[1,1e6]", "--mlp=[1e6]", "--autoregressive=[1e6]")
    small = ("rows=80", "latents=2", "epochs=3", "hidden=8", "channels=2", "layers=1", "window=1")
    sizes = [f"--sizes.{size}" for size in small]
    fewer = ("--autoregressive_rows=50", "--autoregressive_epochs=2", "--num_test=20")
    options = (*data, *sizes, *fewer, "--linear_epochs=150", "--num_seeds=2")
    printed = run("collapse.py", *options, cwd=folder)
    one, many, mlp, reading = rows(printed)
    assert [one["active"], one["exact"], many["active"], many["exact"]] == ["2.0", "2", "0.0", "0"]
    assert mean(one["rate"]) == pytest.approx(mean(one["exact rate"]), rel=0.3)
    for row in (many, mlp, reading):  # a rate costs a million times what it gives
        assert mean(row["active"]) == 0
        assert mean(row["rate"]) < 0.3
    assert mlp["active"] == reading["active"] == "0.0 ± 0.0"  # over two seeds
    assert imread(folder / "collapse.png").std() > 0.05  # not an empty canvas
    # What is known is not trained again, unless it was trained otherwise.
    file = folder / "collapse.csv"
    before = file.read_text()
    assert len(before.splitlines()) == 7
    assert rows(run("collapse.py", *options, "--overwrite=true", cwd=folder)) == rows(printed)
    assert file.read_text() == before
    run("collapse.py", *options, "--sizes.latents=1", "--overwrite=true", cwd=folder)
    assert len(file.read_text().splitlines()) == 13
    printed = run("collapse.py", *options, "--num_test=15", "--overwrite=true", cwd=folder)
    assert "15 test rows" in printed
    assert (
        len(file.read_text().splitlines()) == 17
    )  # but for the linear ones, which see none of them


def lagging(folder: Path) -> None:
    sizes = ("--epochs=[1,3]", "--num_rows=200", "--length=6", "--window=6", "--num_seeds=1")
    printed = run("lagging.py", *sizes, "--num_shown=20", cwd=folder)
    table = rows(printed)
    own = float(printed.split("own log p(x) is ")[1].split(";")[0])
    assert [row["training"] for row in table] == ["both at each step", "aggressive updates"]
    for row in table:
        assert mean(row["ELBO"]) <= mean(row["log p(x)"]) + 0.001
        assert mean(row["log p(x)"]) < own
        assert mean(row["rate"]) > 0
        assert mean(row["largest spread of model's means"]) >= mean(row["spread at the end, model"])
    assert imread(folder / "lagging.png").std() > 0.05  # not an empty canvas


def context_window(folder: Path) -> None:
    sizes = ("--length=4", "--windows=[1,3]", "--num_starts=1", "--max_epochs=500")
    printed = run("context_window.py", *sizes, cwd=folder)
    table = {(row["source"], int(row["window"])): row for row in rows(printed)}
    assert [*table] == [("mirror", 1), ("mirror", 3), ("Markov, order 2", 1)]
    for (source, window), row in table.items():
        exact, learned = mean(row["outside, exact"]), mean(row["I(x; z), learned"])
        assert exact == pytest.approx([2, 1, 1, 0][window] * math.log(2), abs=0.0006)
        if source == "mirror":  # one start of the other may end with a z that tells more
            assert learned == pytest.approx(exact, abs=0.03)
        assert exact - 0.03 < learned < 2 * math.log(2) + 0.001
        assert -0.04 < mean(row["ELBO + H(x)"]) < 0.001
        assert mean(row["lost without z, exact"]) >= exact
    assert imread(folder / "context_window.png").std() > 0.05  # not an empty canvas


def indeterminacy(folder: Path) -> None:
    sizes = ("--betas=[0.5,1,2]", "--num_seeds=2", "--max_epochs=60")
    printed = run("indeterminacy.py", *sizes, cwd=folder)
    first, second = (part for part in printed.split("\n\n") if part.startswith("|"))
    entropy = float(printed.split("H(y) = ")[1].split()[0])
    encoders = rows(first)
    for row in encoders:
        assert abs(mean(row["ELBO + H(y)"])) < 1e-12
        total = mean(row["I(y; z)"]) + mean(row["distortion"])
        assert total == pytest.approx(entropy, abs=1e-4)
    known = [mean(row["I(y; z)"]) for row in encoders]
    assert known[0] == 0
    assert max(known) == pytest.approx(entropy, abs=1e-4)
    low, one, high = rows(second)
    assert mean(low["rate, largest"]) > 0.9 * entropy
    assert mean(high["rate, largest"]) < 0.05
    assert mean(one["rate, largest"]) - mean(one["rate, least"]) > 0.1
    for row in (low, one, high):
        assert mean(row["loss, least"]) == pytest.approx(mean(row["best loss"]), abs=0.05)
        assert mean(row["loss, least"]) >= mean(row["best loss"]) - 0.001
    assert imread(folder / "indeterminacy.png").std() > 0.05  # not an empty canvas


def planted_causes(folder: Path) -> None:
    sizes = ("--num_seeds=1", "--num_rows=400", "--max_epochs=60")
    printed = run("planted_causes.py", "--causes=[none,dead encoder]", *sizes, cwd=folder)
    healthy, dead = rows(printed)
    assert [healthy["planted"], healthy["named"]] == ["none", "8 of 8"]
    assert [dead["planted"], dead["named"], dead["pairs mended"]] == [
        "dead encoder",
        "5 of 5",
        "5 of 5",
    ]
    assert healthy["pairs mended"] == "-"
    back, of = dead["dimensions back"].split(" of ")
    assert 5 <= int(back) <= int(of) == 15


def mutual_information(folder: Path) -> None:
    printed = run("mutual_information.py", "--rows=[50,400]", cwd=folder)
    for row in rows(printed):
        low, high = map(float, row["interval"].split(" to "))
        exact = float(row["exact"])
        assert low <= exact <= high
        assert mean(row["aggregate posterior"]) <= float(row["log n"])
        assert mean(row["leave one out"]) >= mean(row["aggregate posterior"])
        assert mean(row["rate"]) == pytest.approx(exact, rel=0.1)
    assert imread(folder / "mutual_information.png").std() > 0.05  # not an empty canvas


def ring(folder: Path) -> None:
    sizes = ("--num_rows=1000", "--num_test=100", "--max_epochs=60", "--grid=250", "--hidden=32")
    printed = run("ring.py", "--guides=[MeanField]", *sizes, cwd=folder)
    (row,) = rows(printed)
    exact = mean(row["log p(x), quadrature"])
    assert mean(row["log p(x), samples"]) == pytest.approx(exact, abs=0.03)
    assert mean(row["ELBO"]) < exact < mean(row["the data's own log p(x)"])
    # The entropy of the radius 1 + r / 10 and of the angle, by quadrature.
    r = torch.linspace(1e-4, 12, 100_001, dtype=torch.float64)
    density = r * (-r.square() / 2).exp()
    log_density = (density * 10).log() - (2 * math.pi * (1 + r / 10)).log()
    own = float(torch.trapezoid(density * log_density, r))
    assert mean(row["the data's own log p(x)"]) == pytest.approx(own, abs=0.3)
    assert imread(folder / "ring.png").std() > 0.05  # not an empty canvas


def write_photos(folder: Path) -> None:
    """Two halves with noise, whose segments stand beside them."""
    generator = torch.Generator().manual_seed(0)
    for part, count in (("train", 3), ("test", 2)):
        (folder / part).mkdir(parents=True)
        for i in range(count):
            colors = torch.tensor([[120, 40, 30], [150, 190, 220]]).repeat_interleave(24, 0)
            noise = torch.randint(-9, 10, (40, 48, 3), generator=generator)
            rgb = (colors + noise).to(torch.uint8)
            Image.fromarray(rgb.numpy()).save(folder / part / f"{i}.png")
            segments = torch.zeros(40, 48, dtype=torch.uint8)
            segments[:, 24:] = 1
            Image.fromarray(segments.numpy()).save(folder / part / f"{i}.seg.png")


SMALL_COLORS = {"patches": 16, "patch": 32, "epochs": 1, "widths": "[4,6]", "segments": 3}


def colorization(folder: Path) -> None:
    write_photos(folder / "photos")
    small = [f"--base.{name}={value}" for name, value in SMALL_COLORS.items()]
    few = ("--data=folder:photos", "--betas=[1]", "--num_seeds=1", "--ablations=false")
    options = (*few, "--base.colors=palette", "--base.longest=60", *small)
    printed = run("colorization.py", *options, cwd=folder)
    first, second = (part for part in printed.split("\n\n") if part.startswith("|"))
    table = {row["model"]: row for row in rows(first)}
    names = ["(a) palette", "(b) latent colors", "(c) local luma", "(d) all of x"]
    one = "the same U-Net, one component"
    simple = [
        "the same U-Net, a mixture of 3 without z",
        "mean chroma",
        "histogram of chroma given luma",
        "nearest patch",
    ]
    assert list(table)[:10] == [*names, one, *simple, "one segment"]
    assert len(table) == 14
    for name in (*names, one, *simple):
        assert mean(table[name]["bits per pixel"]) > 0
        assert mean(table[name]["PSNR of mean, dB"]) > 0
    assert mean(table[one]["I(z; y given x), bits"]) == 0
    for name in (one, "one segment"):
        assert mean(table[name]["Rand index by gray"]) == 0
        assert mean(table[name]["variation of information"]) == pytest.approx(math.log(2), abs=1e-3)
        assert mean(table[name]["covering"]) == 0.5
    seen = next(row for name, row in table.items() if name.startswith("k-means on Lab"))
    assert mean(seen["with colors"]) == 1
    of_betas = rows(second)
    assert [(row["model"], row["beta"]) for row in of_betas] == [(name, "1") for name in names]
    for row in of_betas:
        assert row["bits per pixel"] == table[row["model"]]["bits per pixel"]
    assert imread(folder / "colorization.png").std() > 0.05  # not an empty canvas
    # What is there is not trained again.
    before = time.process_time()
    again = run("colorization.py", *options, "--train=false", "--overwrite=true", cwd=folder)
    assert again == printed
    assert time.process_time() - before < 30


def colorization_files(folder: Path) -> None:
    write_photos(folder / "photos")
    tiny = ("--patch_size=16", "--patches=24", "--max_epochs=2", "--model.network.widths=[4,6]")
    train = ("colorize", "train", f"--data=folder:{folder / 'photos'}", "--model.segments=3")
    assert cli([*train, f"--run_dir={folder / 'run'}", *tiny, "--device=cpu", "--quiet"]) == 0
    printed = run("colorization_files.py", "bytes", "--run=run", "--data=folder:photos", cwd=folder)
    table = {row["codec"]: row for row in rows(printed)}
    lossless = ["-log2 P(y given x)", "this model", "PNG", "WebP, lossless"]
    assert list(table)[:4] == lossless
    assert len(table) == 7
    for name, row in table.items():
        size, bits = mean(row["bytes per photo"]), mean(row["bits per pixel"])
        assert bits == pytest.approx(8 * size / (40 * 48), abs=0.0025)
        assert (row["RMSE"] == "0") == (name in lossless)
        assert name in lossless or mean(row["RMSE"]) > 0
    exact, own = (mean(table[name]["bytes per photo"]) for name in lossless[:2])
    assert exact < own < 1.01 * exact + 37 + 5  # a header, and what is rounded
    assert mean(table[lossless[0]]["of -log2 P"]) == 1
    assert mean(table["this model"]["of -log2 P"]) == pytest.approx(own / exact, abs=0.01)
    assert imread(folder / "colors_bytes.png").std() > 0.05  # not an empty canvas
    photo = Image.open(folder / "photos" / "test" / "0.png")
    photo.convert("L").save(folder / "gray.png")
    files = "--photos=[photos/test/0.png,gray.png]"
    printed = run("colorization_files.py", "diversity", "--run=run", files, cwd=folder)
    assert "Means over photos with colors: 1." in printed
    colorings = {row["coloring"]: row for row in rows(printed)}
    draws = [f"draw {i}" for i in (1, 2, 3)]
    assert list(colorings) == ["truth", "mean", "T = 0.5", "T = 0.2", "mode", *draws]
    assert colorings["truth"]["RMSE"] == "0.0"
    for name in list(colorings)[1:]:
        assert mean(colorings[name]["RMSE"]) > 0
        assert mean(colorings[name]["vividness"]) > 0
    assert imread(folder / "diversity.png").std() > 0.05


def colorization_inference(folder: Path) -> None:
    write_photos(folder / "photos")
    tiny = ("--longest=60", "--widths=[4,6]", "--patches=8", "--epochs=2", "--num_rows=4")
    printed = run(
        "colorization_inference.py", "--data=folder:photos", "--num_seeds=1", *tiny, cwd=folder
    )
    table = rows(printed)
    assert [row["P(z given x)"] for row in table] == ["independent pixels"] * 5 + ["Potts grid"] * 3
    for row in table:
        bits, bound, lost = (
            mean(row[name]) for name in ("-log2 P(y given x), bits", "-ELBO, bits", "lost")
        )
        assert lost == pytest.approx(bound - bits, abs=0.0015)
        if row["inference"].startswith("exact sum"):
            assert lost == 0
            assert row["time"].startswith("1.00")
        elif row["inference"].startswith("encoder"):
            assert lost > 0.1  # it has hardly been trained
        else:
            assert 0 <= lost < 0.1  # the best lines, without a training


def bits_back(folder: Path) -> None:
    write_mnist(folder / "data", 60, 20)
    for pixels in ("binary", "raw"):
        printed = run("bits_back.py", f"--pixels={pixels}", "--max_epochs=1", cwd=folder)
        table = {row["code"]: row for row in rows(printed)}
        size = float(table["bits-back, whole file"]["bytes"])
        bits = mean(table["bits-back, whole file"]["bits per dimension"])
        assert bits == pytest.approx(8 * size / (20 * 784), abs=1e-4)
        assert bits > mean(table["-ELBO / (D ln 2)"]["bits per dimension"])
        for name in ("PNG", "WebP"):
            each, one = (
                float(table[f"{name}, {kind}"]["bytes"])
                for kind in ("a file each", "one picture of all")
            )
            assert 0 < one < each
        assert "the rows are the same" in printed


def vq_vae(folder: Path) -> None:
    small = ("--data=digits", "--sizes.codes=4", "--sizes.dim=2", "--sizes.channels=8")
    short = ("--sizes.max_epochs=2", "--sizes.prior_epochs=1", "--sizes.prior.channels=8")
    tiny = (*small, *short, "--sizes.latent_dim=2", "--sizes.hidden=[16]", "--sizes.max_rows=100")
    printed = run("vq_vae.py", "table", *tiny, "--max_test_rows=20", cwd=folder)
    bounds, losses = (rows(part) for part in printed.split("20 test rows"))
    table = {row["model"]: row for row in bounds}
    for row in table.values():
        total = -mean(row["rate"]) - mean(row["distortion"])
        assert mean(row["ELBO"]) == pytest.approx(total, abs=0.011)
        gain = mean(row["ELBO"]) - mean(table["VAE, N(0, I)"]["ELBO"])
        assert mean(row["more than the VAE's ELBO"]) == pytest.approx(gain, abs=0.011)
    # Four positions of 4 x 4 pixels, and sixteen of 2 x 2 beside them.
    for name, positions in (("VQ-VAE", 4), ("VQ-VAE-2", 20)):
        uniform, learned = table[f"{name}, uniform"], table[f"{name}, PixelCNN"]
        assert mean(uniform["rate"]) == pytest.approx(positions * math.log(4), abs=0.006)
        assert uniform["distortion"] == learned["distortion"]
        if positions > 4:
            assert uniform["log p(x)"] == "at least the ELBO"
        else:  # of 4^4 codes, all are summed over
            assert mean(uniform["log p(x)"]) > mean(uniform["ELBO"])
    assert table["VQ-VAE, counted"]["distortion"] == table["VQ-VAE, uniform"]["distortion"]
    assert mean(table["autoregressive"]["rate"]) == 0
    assert table["autoregressive"]["ELBO"] == table["autoregressive"]["log p(x)"]
    for row in losses:
        difference = mean(row["held-out rows"]) - mean(row["training rows"])
        assert mean(row["difference"]) == pytest.approx(difference, abs=0.011)
    again = run("vq_vae.py", "table", *tiny, "--max_test_rows=20", cwd=folder)  # from the folder
    assert again == printed

    few = ("--codes=[2,4]", "--commitments=[0.25]", "--betas=[1]")
    table = {row["pair"]: row for row in rows(run("vq_vae.py", "sweep", *tiny, *few, cwd=folder))}
    assert len(table) == 3
    for row in table.values():
        assert mean(row["ELBO"]) == pytest.approx(
            -mean(row["rate, PixelCNN"]) - mean(row["distortion"]), abs=0.011
        )
    for codes in (2, 4):
        row = table[f"VQ-VAE, K = {codes}, commitment 0.25"]
        assert mean(row["rate, uniform"]) == pytest.approx(4 * math.log(codes), abs=0.006)
        assert 1 <= mean(row["perplexity"]) <= codes
    assert imread(folder / "vq_vae_sweep.png").std() > 0.05

    options = ("ablation", *tiny, "--num_seeds=2")
    printed = run("vq_vae.py", *options, cwd=folder)
    found = rows(printed)
    assert len(found) == 16
    for row in found:
        assert 1 <= mean(row["perplexity"]) <= 4 - mean(row["dead codes"]) + 0.05
    assert len((folder / "vq_vae_ablation.jsonl").read_text().splitlines()) == 32
    assert run("vq_vae.py", *options, cwd=folder) == printed  # from the file

    run("vq_vae.py", "samples", *tiny, "--num_rows=2", cwd=folder)
    assert imread(folder / "vq_vae_samples.png").std() > 0.05


def compression(folder: Path) -> None:
    write_photos(folder / "photos")
    small = ("--settings.channels=8", "--settings.prior.channels=8", "--settings.patch=4")
    few = ("--settings.max_epochs=1", "--settings.prior_epochs=1", "--patches=1")
    options = ("--data=folder:photos", *small, *few, '--points=[{"halvings": 2, "codes": 8}]')
    printed = run("compression.py", *options, cwd=folder)
    table = rows(printed.split("\nBits that")[0])
    (own, *others) = table
    assert own["codec"] == "VQ-VAE"
    assert {"JPEG", "WebP"} <= {row["codec"] for row in others}
    for row in table:
        assert 0 < mean(row["without headers"]) <= mean(row["bits per pixel, file"])
        assert mean(row["PSNR, dB"]) > 0
    # Three bits for a code of 16 pixels, about, with a prior that has hardly been trained.
    assert mean(own["without headers"]) == pytest.approx(3 / 16, rel=0.2)
    for codec in ("JPEG", "WebP"):
        bits, quality = (
            [mean(row[name]) for row in others if row["codec"] == codec]
            for name in ("bits per pixel, file", "PSNR, dB")
        )
        assert bits[-1] > 1.5 * bits[0]
        assert quality[-1] > quality[0] + 1
    assert imread(folder / "compression.png").std() > 0.05
    again = run("compression.py", *options, "--overwrite=true", cwd=folder)  # from the folder
    assert again == printed.replace(
        printed[: printed.index("| codec")], again[: again.index("| codec")]
    )


def test_bd_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Twice the bits at the same PSNR are + 100 %."""
    monkeypatch.syspath_prepend(ROOT / "analyses")
    script = runpy.run_path(str(ROOT / "analyses" / "compression.py"))
    score = script["Score"]
    scores = [
        score(codec, f"{q}", i, factor * 2.0**q * (1 + i), factor * 2.0**q, 25.0 + 3 * q + i, 0.9)
        for codec, factor in (("JPEG", 1.0), ("VQ-VAE", 2.0))
        for q in range(4)
        for i in range(5)
    ]
    for of in ("bits", "payload"):
        rate, error = script["bd_rate"](scores, "JPEG", of, draws=20)
        assert rate == pytest.approx(100, abs=1e-6)
        assert error == pytest.approx(
            0, abs=1e-6
        )  # paired: pictures differ, and the ratio does not
    apart = [
        replace(s, psnr=s.psnr + 40) if s.codec == "JPEG" else s  # no PSNR in common
        for s in scores
    ]
    assert script["bd_rate"](apart, "JPEG", "bits") is None
    alone = [s for s in scores if s.picture == 0]
    assert math.isnan(script["bd_rate"](alone, "JPEG", "bits", draws=5)[1])


def test_the_error_of_a_bd_rate_is_that_of_a_ratio_of_means(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Pictures of other sizes, each with a ratio of its own: the error by the delta method, paired."""
    monkeypatch.syspath_prepend(ROOT / "analyses")
    script = runpy.run_path(str(ROOT / "analyses" / "compression.py"))
    generator = torch.Generator().manual_seed(0)
    theirs = torch.rand(60, generator=generator, dtype=torch.float64) + 0.2
    ours = theirs * (1.5 + 0.3 * torch.randn(60, generator=generator, dtype=torch.float64))
    scores = [
        script["Score"](codec, f"{q}", i, float(of[i]) * 2.0**q, 1.0, 25.0 + 3 * q, 0.9)
        for codec, of in (("JPEG", theirs), ("VQ-VAE", ours))
        for q in range(3)
        for i in range(60)
    ]
    rate, error = script["bd_rate"](scores, "JPEG", "bits", draws=150)
    ratio = ours.mean() / theirs.mean()
    assert rate == pytest.approx(100 * float(ratio - 1), abs=1e-6)
    paired = (ours - ratio * theirs).std() / 60**0.5 / theirs.mean()
    assert error == pytest.approx(100 * float(paired), rel=0.2)  # 150 draws: to 6 percent
    variances = [(of.std() / of.mean()) ** 2 / 60 for of in (ours, theirs)]
    apart = ratio * (variances[0] + variances[1]) ** 0.5
    assert error < 0.7 * 100 * float(apart)


def test_payloads_and_measures_of_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "analyses")
    script = runpy.run_path(str(ROOT / "analyses" / "compression.py"))
    # By the rule of torchmetrics the side over (scales - 1)^2 is more than 10 pixels.
    sides = {28: 2, 32: 2, 44: 3, 160: 4, 161: 4, 176: 5, 500: 5}
    for side, scales in sides.items():
        assert script["_num_scales"](torch.zeros(side, 600)) == scales
    gray = torch.randint(256, (44, 48), dtype=torch.uint8)
    assert script["ms_ssim"](gray, gray) == pytest.approx(1.0)
    assert script["ms_ssim"](gray, 255 - gray) < 0.2
    # A point with more bits that is no better is not on the curve.
    rate, quality = script["_rising"](
        torch.tensor([1.0, 3.0, 2.0]), torch.tensor([10.0, 12.0, 9.0])
    )
    assert rate.tolist() == [1, 3]
    assert quality.tolist() == [10, 12]

    picture = Image.fromarray(torch.randint(256, (24, 40, 3), dtype=torch.uint8).numpy())
    written = io.BytesIO()
    picture.save(written, "JPEG", quality=50, progressive=False)
    data = written.getvalue()
    scan = data.rindex(b"\xff\xda")  # of the only one
    length = int.from_bytes(data[scan + 2 : scan + 4])
    expected = len(data) - scan - 2 - length - len(b"\xff\xd9")
    assert script["payload_of"](data, "JPEG") == expected
    written = io.BytesIO()
    picture.save(written, "JPEG", quality=50, progressive=True, optimize=True)
    progressive = written.getvalue()
    assert progressive.count(b"\xff\xda") > 1
    # The same numbers in other words: within a fifth.
    assert script["payload_of"](progressive, "JPEG") == pytest.approx(expected, rel=0.2)
    assert script["payload_of"](progressive, "JPEG") < len(progressive) - 100
    written = io.BytesIO()
    picture.save(written, "WEBP", quality=50)
    webp = written.getvalue()
    # RIFF, a size, WEBP, then the name and the size of the chunk that is all of the rest.
    assert script["payload_of"](webp, "WebP") in (len(webp) - 20, len(webp) - 21)
    box = (20).to_bytes(4) + b"ftyp" + bytes(12)
    media = (8 + 5).to_bytes(4) + b"mdat" + bytes(5)
    assert script["payload_of"](box + media, "AVIF") == 5
    assert (
        script["payload_of"](box + bytes(4) + b"mdat" + bytes(7), "AVIF") == 7
    )  # to the end of the file


# Add a check here for a new script.
CHECKS: dict[str, Callable[[Path], None]] = {
    "banana.py": banana,
    "bits_back.py": bits_back,
    "classification_accuracy.py": classification_accuracy,
    "collapse.py": collapse,
    "colorization.py": colorization,
    "colorization_files.py": colorization_files,
    "colorization_inference.py": colorization_inference,
    "compression.py": compression,
    "context_window.py": context_window,
    "em_vs_vae.py": em_vs_vae,
    "few_labels.py": few_labels,
    "hard_em_to_vq.py": hard_em_to_vq,
    "indeterminacy.py": indeterminacy,
    "inference_gaps.py": inference_gaps,
    "lagging.py": lagging,
    "mnist.py": mnist,
    "mutual_information.py": mutual_information,
    "planted_causes.py": planted_causes,
    "priors.py": priors,
    "rate_distortion.py": rate_distortion,
    "ring.py": ring,
    "swap_guides.py": swap_guides,
    "vq_vae.py": vq_vae,
}


SHARED = (  # what the scripts import
    "colorization_annealing.py",
    "colorization_baselines.py",
    "colorization_points.py",
    "kept_pairs.py",
    "planted_pairs.py",
    "progress.py",
)

SCRIPTS = sorted({path.name for path in (ROOT / "analyses").glob("*.py")} - {*SHARED})


PUBLISHED = ROOT / "analyses" / "published"


def test_the_published_iwae_goes_on_where_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_mnist(tmp_path / "data", 60, 10)
    options = ("--theirs.num_samples=120", "--trusted_samples=110")
    for name in ("vae_1", "iwae_5"):
        config = f"--config={PUBLISHED / name}.yaml"
        for epochs in (1, 2):
            printed = run(
                "published/iwae.py", name, config, *options, f"--max_epochs={epochs}", cwd=tmp_path
            )
            (row,) = rows(printed)
            assert row["epochs"] == f"{epochs}"
            assert "table 1" in printed
            assert "Differs 3:" in printed
        assert mean(row["ELBO"]) < mean(row["log p(x), trusted"])
        found = json.loads((tmp_path / name / "published.json").read_text())["ours"]
        gap = torch.tensor(found["trusted"]) - torch.tensor(found["their_way"])
        assert mean(row["the estimator's part"]) == pytest.approx(float(gap.mean()), abs=0.0006)
    vae, iwae = rows(run("published/table.py", "vae_1", "iwae_5", cwd=tmp_path))
    assert vae["gain"] == ""
    first = json.loads((tmp_path / "vae_1" / "published.json").read_text())["ours"]
    gain = torch.tensor(found["trusted"]) - torch.tensor(first["trusted"])
    assert mean(iwae["gain"]) == pytest.approx(float(gain.mean()), abs=0.006)
    assert iwae["gain, theirs"] == "1.22"
    monkeypatch.syspath_prepend(PUBLISHED)
    script = runpy.run_path(str(PUBLISHED / "iwae.py"))
    rates = [script["learning_rate"](epoch) for epoch in range(3280)]
    lengths = [rates.count(rate) for rate in dict.fromkeys(rates)]
    assert lengths == [3**i for i in range(8)]
    assert rates[0] == 1.0
    assert rates[-1] == pytest.approx(0.1)


@pytest.mark.parametrize("name", ["standard_prior", "vampprior"])
def test_the_published_vampprior(tmp_path: Path, name: str) -> None:
    write_mnist(tmp_path / "data", 60, 10)
    options = ("--theirs.num_samples=120", "--trusted_samples=110", "--components=4")
    config = f"--config={PUBLISHED / name}.yaml"
    short = ("--max_epochs=2", "--warmup_epochs=1")
    printed = run("published/vampprior.py", "run", config, *options, *short, cwd=tmp_path)
    (row,) = rows(printed)
    assert row["log p(x), theirs"] in ("-88.56", "-85.57")
    assert mean(row["ELBO"]) < mean(row["log p(x), their way"])


def test_the_published_collapse(tmp_path: Path) -> None:
    options = ("--sigmas=[0.6,1.8]", "--latent_dim=6", "--max_rows=400", "--max_epochs=60")
    wide, narrow = rows(run("published/ppca.py", *options, "--num_samples=200", cwd=tmp_path))
    assert wide["theirs"] == "6" == wide["active units"]
    assert 0 < mean(narrow["theirs"]) < 6
    for row in (wide, narrow):
        exact = mean(row["exact log p(x) of the trained model"])
        assert mean(row["log p(x), K = 200"]) == pytest.approx(exact, abs=0.05)
        assert exact <= mean(row["log p(x) at the optimum, theirs"]) + 1e-3
        assert mean(row["ELBO"]) <= exact + 1e-3


@pytest.mark.parametrize("name", ["gaussian", pytest.param("flow", marks=pytest.mark.slow)])
def test_the_published_gaps(tmp_path: Path, name: str) -> None:
    write_mnist(tmp_path / "data", 60, 10)
    options = ("--theirs.num_samples=120", "--trusted_samples=110", "--max_test_rows=8")
    short = ("--max_epochs=2", "--warmup_epochs=1", "--gap_rows=3", "--gap_steps=20")
    config = f"--config={PUBLISHED / f'{name}_guide.yaml'}"
    printed = run("published/suboptimality.py", "run", config, *options, *short, cwd=tmp_path)
    (row,) = rows(printed)
    assert row["log p(x), theirs"] == ""
    gaps = json.loads((tmp_path / "run" / "gaps.json").read_text())
    log_p, best, elbo = (torch.tensor(gaps[key]) for key in ("log_likelihood", "best_elbo", "elbo"))
    assert len(elbo) == 3
    difference = float((best - elbo - (log_p - best)).mean())
    line = re.search("amortization gap - approximation gap: (.*) ±", printed)
    assert line is not None
    assert float(line[1]) == pytest.approx(difference, abs=0.006)
    assert "Claim 1: The amortization gap is larger" in printed


def test_every_published_row_says_what_is_theirs() -> None:
    files = sorted(PUBLISHED.glob("*.yaml"))
    assert len(files) >= 6
    readme = (PUBLISHED / "README.md").read_text()
    for file in files:
        theirs = yaml.safe_load(file.read_text())["theirs"]
        assert "arXiv" in theirs["paper"]
        assert theirs["differs"]
        assert file.name in readme


STARTS = """
import os, runpy, sys, traceback
import pyro, torch  # once, because it takes seconds; no script does without them

for path in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            sys.argv = [path, "--help"]
            sys.path[0] = os.path.dirname(path)
            runpy.run_path(path, run_name="__main__")
        except SystemExit as end:
            code = end.code or 0
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, path
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="the operating system cannot fork")
def test_scripts_start_alone(tmp_path: Path) -> None:
    """In the interpreter of the tests, a module that another script has imported would be there."""
    scripts = [
        str(ROOT / "analyses" / name) for name in SCRIPTS if name != "mnist.py"
    ]  # alone anyway
    printed = run_alone("-c", STARTS, *scripts, cwd=tmp_path)
    assert [line.split()[:2] for line in printed.splitlines() if line.startswith("usage: ")] == [
        ["usage:", Path(script).name] for script in scripts
    ]
    assert not any(tmp_path.iterdir())


SLOW = (  # half a minute each
    *(
        "vq_vae.py",
        "collapse.py",
        "context_window.py",
        "inference_gaps.py",
        "planted_causes.py",
        "priors.py",
    ),
)


@pytest.mark.parametrize(
    "script",
    [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in SCRIPTS],
)
def test_script(script: str, tmp_path: Path) -> None:
    assert script in CHECKS, f"analyses/{script} has no check: add one to CHECKS"
    CHECKS[script](tmp_path)


COMMANDS = {
    "colorization_files.py": ("bytes", "diversity"),
    "em_vs_vae.py": ("digits", "mnist", "pca", "hmm"),
    "vq_vae.py": ("table", "sweep", "ablation", "samples"),
}
QUICK = [(name, command) for name in SCRIPTS for command in COMMANDS.get(name, ("",))]


def settings(script: str, command: str, *options: str, cwd: Path) -> dict[str, object]:
    """The settings with which a script would run."""
    typed = [*filter(None, [command]), *options, "--print_config"]
    printed = io.StringIO()
    with pytest.raises(SystemExit, match=r"^0$"):
        run(script, *typed, cwd=cwd, printed=printed)
    text = printed.getvalue()
    announced, _, config = text.partition("\n\n") if "QUICK" in text else ("", "", text)
    assert ("--quick" in options) == announced.startswith("QUICK TRIAL, --")
    found: dict[str, object] = yaml.safe_load(config)
    return found


@pytest.mark.parametrize(("script", "command"), QUICK)
def test_each_script_has_tiny_settings(script: str, command: str, tmp_path: Path) -> None:
    """Each is an option that it has; what is typed replaces them; a picture has a name of its own."""
    plain = settings(script, command, cwd=tmp_path)
    quick = settings(script, command, "--quick", cwd=tmp_path)
    typed = (
        settings(script, command, "--max_rows=7", "--quick", cwd=tmp_path)
        if "max_rows" in plain
        else {}
    )
    assert quick.keys() == plain.keys()
    changed = {name for name in quick if quick[name] != plain[name]}
    assert len(changed) >= 4
    assert ("output" in changed) == ("output" in plain)
    assert typed.get("max_rows", 7) == 7
    if typed:
        assert {**typed, "max_rows": quick["max_rows"]} == quick


@pytest.mark.slow
@pytest.mark.parametrize(("script", "command"), QUICK)
def test_a_quick_trial_runs(
    script: str, command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_mnist(tmp_path / "data", 100, 20)
    started = time.process_time()
    printed = run(script, *filter(None, [command]), "--quick", cwd=tmp_path)
    assert time.process_time() - started < 60
    assert printed.startswith("QUICK TRIAL")
    said = [line for line in capsys.readouterr().err.splitlines() if " after " in line]
    assert len(said) >= 3
    assert " left" in said[0]
    assert said[-1].endswith("that was the last")


def test_a_table_says_what_is_done_and_how_long_the_rest_takes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(ROOT / "analyses")
    progress = importlib.import_module("progress")
    clock = iter([0.0, 10.0, 600.0, 900.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    table = progress.Table(["a", "b"], steps=3)
    table.head()
    for name in ("one", "two", "three"):
        table.row([name, "1"])
        table.step(name)
    shown = capsys.readouterr()
    (row, *_) = rows(shown.out)
    assert row == {"a": "one", "b": "1"}
    assert shown.err.splitlines() == [
        "one: 1 of 3 after 10 s, about 20 s left",
        "two: 2 of 3 after 10 min, about 5 min left",
        "three: 3 of 3 after 15 min, that was the last",
    ]


def test_every_script_is_in_the_readme() -> None:
    readme = (ROOT / "analyses" / "README.md").read_text()
    for script in CHECKS:
        assert f"python analyses/{script}" in readme


def test_no_script_replaces_a_picture(tmp_path: Path) -> None:
    """It is refused before the work, with the options that each script has."""
    scripts = {
        "banana.py": ["--max_epochs=1"],
        "colorization.py": [],
        "colorization_files.py": ["bytes"],
        "swap_guides.py": ["--max_epochs=1"],
        "inference_gaps.py": [],
        "priors.py": [],
        "hard_em_to_vq.py": [],
        "em_vs_vae.py": ["digits"],
        "rate_distortion.py": [],
        "indeterminacy.py": [],
        "context_window.py": [],
        "collapse.py": [],
        "lagging.py": [],
        "vq_vae.py": ["sweep"],
        "compression.py": [],
    }
    (tmp_path / "mine.png").write_text("mine")
    for name, options in scripts.items():
        with pytest.raises(FileExistsError, match=r"mine\.png is there already"):
            run(name, *options, "--output=mine.png", cwd=tmp_path)
    assert (tmp_path / "mine.png").read_text() == "mine"
