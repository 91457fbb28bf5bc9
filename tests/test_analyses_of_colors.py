"""The scripts about colors run with tiny settings, and their tables make sense."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from matplotlib.image import imread
from PIL import Image
from scripts import (
    mean,
    rows,
    run,
    write_photos,
)

from ppl_vae.cli import main as cli

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


CHECKS: dict[str, Callable[[Path], None]] = {
    "colorization.py": colorization,
    "colorization_files.py": colorization_files,
    "colorization_inference.py": colorization_inference,
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "script",
    [
        pytest.param(n, marks=() if n == "colorization_files.py" else pytest.mark.slow)
        for n in CHECKS
    ],
)
def test_script(script: str, tmp_path: Path) -> None:
    CHECKS[script](tmp_path)
