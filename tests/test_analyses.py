"""Every script in analyses/ runs with a tiny setting, and what it prints makes sense."""

from __future__ import annotations

import importlib
import io
import math
import os
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from matplotlib.image import imread
from scripts import (
    ROOT,
    Row,
    mean,
    rows,
    run,
    run_alone,
    write_mnist,
)
from test_analyses_of_autoencoders import CHECKS as OF_AUTOENCODERS
from test_analyses_of_codes import CHECKS as OF_CODES
from test_analyses_of_colors import CHECKS as OF_COLORS
from test_analyses_of_translation import CHECKS as OF_TRANSLATION


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
    lines = ["pixels, logistic regression", "pixels, nearest neighbor", "PCA, probe", "M2"]
    lines += ["from scratch, fine-tuned", "VAE, fine-tuned", "VQ-VAE, probe", "M1 + M2"]
    sizes = ("--sizes.latent_dim=4", "--sizes.hidden=[16]", "--sizes.max_epochs=1")
    codes = ("--sizes.codes=8", "--sizes.dim=2", "--sizes.grid.channels=8")
    few = ["--labels=[10,40]", "--draws=2", "--max_rows=150", "--runs=kept"]
    few += ["--learning.num_steps=20", "--m2.epochs=1"]
    chosen = f"--rows={lines}".replace("'", '"')
    printed = run("few_labels.py", chosen, *sizes, *codes, *few, cwd=folder)
    table = rows(printed)
    shares = {row["learns"]: row for row in table[: len(lines)]}
    assert list(shares) == lines
    for row in shares.values():
        assert all(0 <= mean(row[f"{k} labels"]) <= 100 for k in (10, 40))
    for name in lines[:3]:
        assert mean(shares[name]["10 labels"]) > 20  # with a row or four of each class
        assert mean(shares[name]["40 labels"]) > mean(shares[name]["10 labels"])
    beside = [*lines[:4], "VAE, fine-tuned", "M1 + M2"]
    first = len(lines) + 2  # behind its header
    second = first + len(beside) + 2
    for part, names, others in (
        (table[first : second - 2], beside, lines[4:5]),
        (table[second:], lines[2:], lines[:2]),  # the better of the two
    ):
        differences = {row["learns"]: row for row in part}
        assert list(differences) == names
        for name, row in differences.items():
            for k in ("10 labels", "40 labels"):
                other = max(mean(shares[each][k]) for each in others)
                assert mean(row[k]) == pytest.approx(mean(shares[name][k]) - other, abs=0.11)
    # What is there is not found again; other numbers of labels are.
    kept = folder / "kept" / "scores.csv"
    content = kept.read_text()
    again = run("few_labels.py", chosen, *sizes, *codes, *few, cwd=folder)
    assert again == printed
    assert kept.read_text() == content


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


def decipherment(folder: Path) -> None:
    sizes = ("--lengths=[800]", "--num_keys=3", "--restarts=8", "--guide_lengths=[800]")
    small = ("--guide_keys=1", "--guide_restarts=2", "--max_steps=20", "--hidden=4", "--seed=1")
    printed = run("decipherment.py", *sizes, *small, cwd=folder)
    entropy = float(printed.split("one before is ")[1].split()[0])
    table = {row["method"]: row for row in rows(printed)}
    assert [*table] == [
        *("by frequency", "EM, one start", "EM", "guide, one start", "guide"),
        *("back-translation", "back-translation after EM"),
    ]
    true = {
        name: mean(row["log p(x)"]) - mean(row["less that of the true key"])
        for name, row in table.items()
    }
    # Under the true key a letter costs the entropy of the language, up to the noise of 2400 letters.
    assert true["EM"] == pytest.approx(-entropy, abs=0.1)
    assert mean(table["by frequency"]["less that of the true key"]) < -0.5
    assert mean(table["EM"]["read right, %"]) > 90
    assert table["EM"]["solved"] == "3 of 3"
    assert mean(table["EM"]["less that of the true key"]) > 0
    # 20 steps find nothing, and take little away.
    for name in ("guide", "back-translation"):
        assert mean(table[name]["read right, %"]) < 50
    # The better start by log p(x), of which one is the first.
    best = mean(table["guide"]["less that of the true key"])
    assert best >= mean(table["guide, one start"]["less that of the true key"])
    assert mean(table["back-translation after EM"]["key right, %"]) > 80
    assert imread(folder / "decipherment.png").std() > 0.05  # not an empty canvas
    text = "Der schnelle braune Fuchs springt über den faulen Hund.\n" * 40
    (folder / "plain.txt").write_text(text, encoding="utf-8")
    options = ("--plain=plain.txt", "--rows=[by frequency,EM]", "--num_keys=2", "--lengths=[200]")
    tiny = ("--restarts=2", "--output=of_file.png")
    of_file = run("decipherment.py", *options, *tiny, cwd=folder)
    assert of_file.startswith("31 letters")
    assert [row["method"] for row in rows(of_file)] == ["by frequency", "EM"]


# Add a check here for a new script, or beside it in test_analyses_of_codes.py and test_analyses_of_colors.py.
CHECKS: dict[str, Callable[[Path], None]] = {
    "banana.py": banana,
    "collapse.py": collapse,
    "context_window.py": context_window,
    "decipherment.py": decipherment,
    "em_vs_vae.py": em_vs_vae,
    "few_labels.py": few_labels,
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
}


SHARED = (  # what the scripts import
    "autoencoder_densities.py",
    "autoencoder_pairs.py",
    "autoencoder_road.py",
    "back_translation_finite.py",
    "colorization_annealing.py",
    "colorization_baselines.py",
    "colorization_points.py",
    "few_labels_encoders.py",
    "kept_pairs.py",
    "kept_scores.py",
    "photo_codecs.py",
    "photo_scores.py",
    "planted_pairs.py",
    "progress.py",
    "secret_methods.py",
    "secret_texts.py",
    "translation_baselines.py",
    "translation_bounds.py",
    "translation_pairs.py",
    "translation_texts.py",
    "vae_gan_measures.py",
    "vae_gan_pairs.py",
    "vq_vae_ablation.py",
    "vq_vae_pairs.py",
    "vq_vae_quantizers.py",
    "vq_vae_samples.py",
    "vq_vae_sweep.py",
)


SCRIPTS = sorted({path.name for path in (ROOT / "analyses").glob("*.py")} - {*SHARED})


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


SLOW = (  # ten seconds to half a minute each
    *(
        "collapse.py",
        "context_window.py",
        "decipherment.py",
        "em_vs_vae.py",
        "few_labels.py",
        "indeterminacy.py",
        "inference_gaps.py",
        "lagging.py",
        "mnist.py",
        "planted_causes.py",
        "priors.py",
        "rate_distortion.py",
    ),
)


@pytest.mark.slow(but=("mutual_information.py", "swap_guides.py"))
@pytest.mark.parametrize(
    "script",
    [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in CHECKS],
)
def test_script(script: str, tmp_path: Path) -> None:
    CHECKS[script](tmp_path)


def test_every_script_has_a_check() -> None:
    assert sorted([*CHECKS, *OF_AUTOENCODERS, *OF_CODES, *OF_COLORS, *OF_TRANSLATION]) == SCRIPTS, (
        "add one to a table CHECKS"
    )


COMMANDS = {
    "autoencoders.py": ("sizes", "road", "densities"),
    "back_translation.py": ("translating", "finite"),
    "faces.py": ("manifold", "moves"),
    "colorization_files.py": ("bytes", "diversity"),
    "em_vs_vae.py": ("digits", "mnist", "pca", "hmm"),
    "vq_vae.py": ("table", "quantizers", "sweep", "ablation", "samples"),
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
    assert time.process_time() - started < 120  # less than a minute where processors are fast
    assert printed.startswith("QUICK TRIAL")
    said = [line for line in capsys.readouterr().err.splitlines() if " after " in line]
    assert len(said) >= 2
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
    for script in SCRIPTS:
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
        "decipherment.py": [],
    }
    (tmp_path / "mine.png").write_text("mine")
    for name, options in scripts.items():
        with pytest.raises(FileExistsError, match=r"mine\.png is there already"):
            run(name, *options, "--output=mine.png", cwd=tmp_path)
    assert (tmp_path / "mine.png").read_text() == "mine"


EMPTY = "is empty: give at least one, or leave the option out"

WRONG = {
    "autoencoders.py": {
        "sizes --codes=[]": f"--codes {EMPTY}",
        "road --sigmas=[1,0.5,1]": "--sigmas has 1.0 twice",
        "densities --components=[10,10]": "--components has 10 twice",
    },
    "collapse.py": {
        "--linear=[1,1]": "--linear has 1.0 twice",
        "--mlp=[1,1]": "--mlp has 1.0 twice",
        "--autoregressive=[1,1]": "--autoregressive has 1.0 twice",
        "--num_seeds=0": "--num_seeds must be at least 1, got 0",
    },
    "colorization.py": {
        "--betas=[1,1]": "--betas has 1.0 twice",
        "--num_seeds=0": "--num_seeds must be at least 1, got 0",
    },
    "colorization_files.py": {
        "diversity --temperatures=[0.5,0.5]": "--temperatures has 0.5 twice",
    },
    "colorization_inference.py": {"--num_seeds=0": "--num_seeds must be at least 1, got 0"},
    "context_window.py": {
        "--windows=[]": f"--windows {EMPTY}",
        "--num_starts=0": "--num_starts must be at least 1, got 0",
    },
    "few_labels.py": {
        "--labels=[10,10]": "--labels has 10 twice",
        "--draws=0": "--draws must be at least 1, got 0",
    },
    "hard_em_to_vq.py": {
        "--shown=[1,1]": "--shown has 1.0 twice",
        "--of_critical=[1,1]": "--of_critical has 1.0 twice",
        "--temperatures=[]": f"--temperatures {EMPTY}",
    },
    "indeterminacy.py": {
        "--betas=[]": f"--betas {EMPTY}",
        "--num_seeds=0": "--num_seeds must be at least 1, got 0",
    },
    "lagging.py": {
        "--epochs=[]": f"--epochs {EMPTY}",
        "--num_seeds=-1": "--num_seeds must be at least 1, got -1",
    },
    "mutual_information.py": {"--rows=[]": f"--rows {EMPTY}"},
    "planted_causes.py": {
        "--causes=[]": f"--causes {EMPTY}",
        "--causes=[magic]": "--causes: no line is called 'magic': expected some of ['none', ",
        "--num_seeds=0": "--num_seeds must be at least 1, got 0",
    },
    "rate_distortion.py": {"--betas=[4,4]": "--betas has 4.0 twice"},
    "ring.py": {"--guides=[]": f"--guides {EMPTY}"},
    "vae_gan.py": {
        "--models=[]": f"--models {EMPTY}",
        "--models=[magic]": "--models: no line is called 'magic': expected some of ['VAE', ",
    },
    "vq_vae.py": {
        "sweep --codes=[4,4]": "--codes has 4 twice",
        "sweep --commitments=[1,1]": "--commitments has 1.0 twice",
        "sweep --betas=[1,1]": "--betas has 1.0 twice",
        "ablation --num_seeds=0": "--num_seeds must be at least 1, got 0",
        "quantizers --num_seeds=0": "--num_seeds must be at least 1, got 0",
    },
}


@pytest.mark.parametrize("script", WRONG)
def test_wrong_options_are_told(script: str, tmp_path: Path) -> None:
    """Before anything is read, printed or made, and by the name of the option."""
    for typed, told in WRONG[script].items():
        printed = io.StringIO()
        with pytest.raises(ValueError, match=f"^{re.escape(told)}"):
            run(script, *typed.split(), cwd=tmp_path, printed=printed)
        assert printed.getvalue() == ""
        assert not [*tmp_path.iterdir()]
