"""`ppl-vae colorize`: train, evaluate, apply."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ppl_vae.cli import main
from ppl_vae.cli.samples import as_pictures
from ppl_vae.coloring import color_picture, score_photos, segment_picture
from ppl_vae.colors import split_colors
from ppl_vae.data import load_patches, load_photos, read_photo
from ppl_vae.guides import Exact
from ppl_vae.models import IndependentSegments
from ppl_vae.runs import load_run

TINY = (
    *("--longest", "60", "--patch_size", "16", "--patches", "24", "--max_epochs", "2"),
    *("--model.segments", "3", "--model.network.widths", "[4,6]", "--device", "cpu", "--quiet"),
)


def photo(size: tuple[int, int], seed: int) -> Image.Image:
    """A colored one."""
    noise = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with photos, and segments beside one of them."""
    folder = tmp_path_factory.mktemp("photos")
    for part, seeds in (("train", range(4)), ("val", range(4, 6))):
        (folder / part).mkdir()
        for seed in seeds:
            photo((70, 50) if seed % 2 else (40, 60), seed).save(folder / part / f"{seed}.png")
    segments = np.arange(60)[:, None] // 30 + np.zeros((60, 40), int) + 1
    Image.fromarray(segments.astype(np.uint8)).save(folder / "val" / "4.seg.png")
    return folder


@pytest.fixture(scope="module")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained run."""
    folder = tmp_path_factory.mktemp("runs") / "colors"
    assert (
        main(["colorize", "train", "--data", f"folder:{photos}", "--run_dir", str(folder), *TINY])
        == 0
    )
    return folder


@pytest.mark.slow
def test_a_run_holds_what_was_measured_on_photos(run: Path, photos: Path) -> None:
    held_out = load_photos(f"folder:{photos}", longest=60).test
    loaded = load_run(run)
    assert isinstance(loaded.model, IndependentSegments)
    scores = score_photos(loaded.model, Exact(loaded.model), held_out, progress=False)
    kept = json.loads((run / "colors.json").read_text())
    assert kept["bits"]["mean"] == pytest.approx(scores.bits.mean, rel=1e-6)
    assert kept["rand_with_colors"]["mean"] == pytest.approx(scores.rand_with_colors.mean)
    table = (run / "colors.csv").read_text().splitlines()
    assert len(table) == 3
    assert "4.png" in table[1]
    assert {"colorings.png", "learning_curves.png"} == {f.name for f in (run / "plots").iterdir()}
    page = (run / "report.html").read_text()
    assert "Colorings" in page
    assert "IndependentSegments with Exact" in page
    assert "No collapse: of 256 elements with 3 values" in page
    assert f"{scores.bits.mean:.3f} ± " in page
    assert "log p(x) is log p(y | x)" in page


def test_other_commands_take_the_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(run), "--num_samples", "2", "--quiet"]) == 0
    assert "exact" in capsys.readouterr().out
    assert main(["diagnose", str(run), "--quiet", "--overwrite"]) == 0
    assert "z, of 256 elements" in capsys.readouterr().out
    folder = run / "other"
    folder.mkdir()
    assert main(["compare", str(run), str(run), "--output", str(folder / "c.png")]) == 0
    assert "log p(x) exact" in capsys.readouterr().out


def test_samples_of_the_run_are_colored_pictures(run: Path, tmp_path: Path) -> None:
    drawn, arrays = tmp_path / "samples.png", tmp_path / "samples.npz"
    given = ["sample", str(run), "--num", "4", "--quiet", "--output"]
    assert main([*given, str(arrays)]) == 0
    assert main([*given, str(drawn)]) == 0
    with np.load(arrays) as file:
        found = dict(file)
    shown = as_pictures(dict(found), load_run(run))
    luma = torch.from_numpy(found["label"])
    assert shown["x"].shape == shown["mean"].shape == (4, 3, 16, 16)
    rgb = torch.from_numpy(255 * shown["x"]).round().to(torch.uint8).movedim(1, -1)
    again, chroma = split_colors(rgb)
    assert (again == luma).all()
    assert (chroma == torch.from_numpy(found["x"])).all()
    with Image.open(drawn) as picture:
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    assert (
        pixels.max(1) - pixels.min(1) > 5
    ).mean() > 0.05  # colors, between black letters and white paper


@pytest.mark.slow
def test_a_training_goes_on(run: Path, tmp_path: Path, photos: Path) -> None:
    """Two epochs and then one more are three epochs, bit by bit."""
    begun = shutil.copytree(run, tmp_path / "begun")
    assert main(["colorize", "train", "--resume", str(begun), "--max_epochs", "3", "--quiet"]) == 0
    at_once = tmp_path / "at_once"
    options = [*TINY, "--max_epochs", "3"]
    given = ["--data", f"folder:{photos}", "--run_dir", str(at_once), *options]
    assert main(["colorize", "train", *given]) == 0
    models: list[Any] = [load_run(folder).model for folder in (begun, at_once)]
    one, other = (model.state_dict() for model in models)
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_evaluate_measures_other_photos(
    run: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (run / "colors.json").read_bytes()
    others = f"folder:{photos / 'train'}"
    assert (
        main(["colorize", "evaluate", str(run), "--data", others, "--longest", "30", "--quiet"])
        == 0
    )
    told = capsys.readouterr()
    assert "bits per pixel" in told.out
    assert "no photo has a segmentation beside it" in told.out
    assert "this run was trained on 4 of these 4 photos" in told.err
    other = f"folder:{photos / 'val'}"
    assert main(["colorize", "evaluate", str(run), "--data", other, "--quiet"]) == 0
    assert "was trained on" not in capsys.readouterr().err
    assert (run / "colors.json").read_bytes() == before
    assert main(["colorize", "evaluate", str(run), "--overwrite", "--quiet"]) == 0
    assert json.loads((run / "colors.json").read_text())["num_rows"] == 2


@pytest.mark.filterwarnings("always::ppl_vae.data.BrokenPhotoWarning")
@pytest.mark.parametrize("longest", [(), ("--longest", "30")])
def test_evaluate_names_broken_photos_once(
    longest: tuple[str, ...],
    run: Path,
    photos: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """And none of those that the run was trained on."""
    own = shutil.copytree(photos, tmp_path / "photos")
    (own / "train" / "broken.png").write_text("no picture")
    others = shutil.copytree(photos / "train", tmp_path / "others")
    (others / "other.png").write_text("no picture")
    copy = shutil.copytree(run, tmp_path / "run")
    config = (copy / "config.yaml").read_text().replace(str(photos), str(own))
    (copy / "config.yaml").write_text(config)
    given = [str(copy), "--data", f"folder:{others}", *longest]
    assert main(["colorize", "evaluate", *given, "--quiet"]) == 0
    told = capsys.readouterr().err
    assert told.count("it is left out") == 1
    assert "other.png cannot be read" in told
    assert "broken.png" not in told
    assert "this run was trained on 4 of these 4 photos" in told


def test_evaluate_does_without_the_photos_of_scikit_image(
    run: Path,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    config = (copy / "config.yaml").read_text().replace(f"folder:{photos}", "skimage")
    (copy / "config.yaml").write_text(config)
    monkeypatch.setattr(sys.modules[load_photos.__module__], "find_spec", lambda _: None)
    given = [str(copy), "--data", f"folder:{photos / 'val'}", "--quiet"]
    assert main(["colorize", "evaluate", *given]) == 0
    assert "bits per pixel" in capsys.readouterr().out


def test_apply_writes_colorings_of_the_size_of_the_photo(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photo((130, 90), 9).save(tmp_path / "large.png")
    photo((30, 20), 8).convert("L").save(tmp_path / "gray.jpg")
    (tmp_path / "other").mkdir()
    photo((9, 8), 6).save(tmp_path / "other" / "$\\frac$.png")  # no formula
    photo((20, 20), 7).save(tmp_path / "other" / "large.png")
    (tmp_path / "broken.png").write_text("no picture")
    names = (
        "large.png",
        "gray.jpg",
        "other/large.png",
        "other/$\\frac$.png",
        "broken.png",
        "other",
    )
    out = tmp_path / "new" / "out"
    arguments = [*(str(tmp_path / name) for name in names), "--run", str(run), "--out", str(out)]
    assert main(["colorize", "apply", *arguments, "--draws", "1", "--quiet"]) == 1
    told = capsys.readouterr()
    assert "broken.png cannot be read" in told.err
    assert "other is a folder: give the photos in it" in told.err
    assert "4 of 6 photos colored" in told.out
    stems = ("gray", "large", "large-2", "$\\frac$")
    kinds = ("draw1", "mean", "mode", "segments")
    files = {f"{stem}.{kind}.png" for stem in stems for kind in kinds}
    assert {f.name for f in out.iterdir()} == {*files, "contact_sheet.png"}
    model = load_run(run).model
    assert isinstance(model, IndependentSegments)
    luma, _ = split_colors(read_photo(tmp_path / "large.png"))
    found = color_picture(model, luma, longest=60)
    assert torch.equal(read_photo(out / "large.mean.png"), found.rgb(found.mean))
    with Image.open(out / "large.segments.png") as image:
        assert torch.equal(torch.from_numpy(np.array(image)), found.segments)
    # Nothing is replaced unasked.
    assert main(["colorize", "apply", *arguments[:1], *arguments[6:], "--quiet"]) == 2
    assert "large.mean.png is there already: choose another --out" in capsys.readouterr().err
    assert (
        main(["colorize", "apply", *arguments[:1], *arguments[6:], "--overwrite", "--longest", "0"])
        == 0
    )
    full = color_picture(model, luma)
    assert torch.equal(read_photo(out / "large.mean.png"), full.rgb(full.mean))


def test_apply_replaces_no_photo_that_it_reads(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [str(tmp_path / name) for name in ("cat.png", "cat.mean.png", "contact_sheet.png")]
    for name in names:
        photo((20, 20), 7).save(name)
    options = ["--run", str(run), "--out", str(tmp_path), "--overwrite", "--quiet"]
    for given, lost in ((names[:2], names[1]), (names[::2], names[2])):
        assert main(["colorize", "apply", *given, *options]) == 2
        told = f"--out: {lost} is read and would be lost: choose another --out"
        assert told in capsys.readouterr().err
    assert sorted(map(str, tmp_path.iterdir())) == sorted(names)


def test_a_large_picture_is_colored_at_a_small_size(run: Path) -> None:
    """The luma stays; the chroma is that of the reduced picture, enlarged."""
    model = load_run(run).model
    assert isinstance(model, IndependentSegments)
    luma = torch.full((90, 120), 100)
    luma[:, 60:] = 30
    small = color_picture(model, luma[::3, ::3], draws=2)
    large = color_picture(model, luma, longest=40, draws=2)
    assert torch.equal(large.luma, luma.short())
    assert large.mean.shape == (90, 120, 2)
    assert large.draws.shape == (2, 90, 120, 2)
    assert torch.equal(large.segments[1::3, 1::3], small.segments)
    away = (large.mean[1::3, 1::3] - small.mean).abs()
    assert float(away.max()) < 1e-3  # the middle of each block of pixels is the small pixel
    rgb = torch.randint(0, 256, (90, 120, 3), dtype=torch.uint8)
    luma, chroma = split_colors(rgb)
    assert segment_picture(model, luma, chroma, longest=40).shape == (90, 120)


WRONG: tuple[tuple[tuple[str, ...], int, str], ...] = (
    ((), 2, "ACTION is missing: choose from train, evaluate, apply"),
    (
        ("trian",),
        2,
        "invalid ACTION 'trian': choose from train, evaluate, apply (did you mean train?)",
    ),
    (("apply", "--run", "RUN", "--out", "o"), 2, "PHOTO is missing"),
    (("apply", "a.png", "--out", "o"), 2, "--run is missing: give the folder of a run"),
    (("apply", "a.png", "--run", "RUN"), 2, "--out is missing: give the folder to write into"),
    (("apply", "a.png", "--run", "RUN", "--out", "o"), 1, "none of the 1 photos can be read"),
    (
        ("apply", "a.png", "--run", "RUN", "--out", "o", "--draws", "-1"),
        1,
        "--draws must be at least 0",
    ),
    (("evaluate",), 2, "RUN is missing"),
    (("evaluate", "nix"), 1, "nix"),
    (("evaluate", "RUN", "--data", "folder:nix"), 1, "there is no folder"),
    (("evaluate", "RUN", "--num_samples", "0"), 1, "--num_samples must be at least 1"),
    (("train", "--model.segments", "300"), 1, "has 300 segments: use fewer"),
    (
        ("train", "--guide", "SegmentationEncoder", "--guide.segments", "2"),
        1,
        "build the guide with segments=8",
    ),
    (
        ("train", "--model", "PottsSegments", "--model.colors", "LatentColors"),
        1,
        "use ScanLineSegments with LatentColors and the guide WithinPicture",
    ),
    (
        ("train", "--guide", "SegmentationEncoder", "--model.colors", "LatentColors"),
        1,
        "which SegmentationEncoder does not sample: use WithinPicture(model) as the guide",
    ),
    (("train", "--data", "photos"), 1, "there are no photos named 'photos'"),
    (("train", "--model", "VAE"), 2, "--model VAE: there is no model of this name; known are"),
    (("train", "--patch_size", "500"), 1, "choose a patch_size of at most"),
    (("train", "--model.segments", "0"), 1, "segments"),
    (("train", "--model", "PottsSegments", "--guide", "Exact"), 1, "StructuredMeanField"),
)


@pytest.mark.slow(
    only=(
        "arguments13-1-use ScanLineSegments with LatentColors and the guide WithinPicture",
        "arguments19-1-StructuredMeanField",
    )
)
@pytest.mark.parametrize(("arguments", "code", "told"), WRONG)
def test_what_is_wrong_is_said_in_a_line(
    arguments: tuple[str, ...],
    code: int,
    told: str,
    run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["colorize", *(str(run) if word == "RUN" else word for word in arguments)]) == code
    said = capsys.readouterr().err
    assert told in said
    assert "Traceback" not in said
    assert not (tmp_path / "runs").exists()  # nothing was trained


@pytest.mark.parametrize("command", ["refit", "train"])
def test_a_guide_of_colors_is_known_elsewhere(
    command: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [str(run)] if command == "refit" else []
    assert main([command, *given, "--guide", "SegmentationEncoder"]) == 2
    told = capsys.readouterr().err
    assert "it is for models of colors, which `ppl-vae colorize train` trains" in told
    assert "full name, ppl_vae.guides.SegmentationEncoder" in told


@pytest.mark.parametrize(
    ("options", "guide"),
    [
        (("--model.colors", "LatentColors"), "WithinPicture"),
        (("--model", "PottsSegments"), "StructuredMeanField"),
        (("--guide", "SegmentationEncoder"), "SegmentationEncoder"),
        (
            ("--model", "ScanLineSegments", "--objective.beta", "0.5", "--guide.beta", "0.5"),
            "Exact",
        ),
    ],
)
def test_each_model_gets_a_guide_that_suits(
    options: tuple[str, ...], guide: str, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert (
        main(["colorize", "train", "--data", f"folder:{photos}", *TINY, *options, "--print_config"])
        == 0
    )
    assert f"class_path: ppl_vae.guides.{guide}" in capsys.readouterr().out


def test_patches_keep_photos_apart(photos: Path) -> None:
    data = load_patches(f"folder:{photos}", longest=None, patch_size=16, patches=30, seed=3)
    assert [len(rows[0]) for rows in (data.train, data.validation, data.test)] == [30, 16, 16]
    assert data.photos is not None
    again = load_patches(f"folder:{photos}", longest=None, patch_size=16, patches=30, seed=4)
    assert torch.equal(data.test[0], again.test[0])
    assert not torch.equal(data.train[0], again.train[0])

    def sources(rows: tuple[Tensor, Tensor]) -> set[int]:
        """Which of the training photos the patches are parts of."""
        assert data.photos is not None
        return {
            i
            for i, each in enumerate(data.photos.train)
            for x in rows[1]
            if bool(
                (each.luma.float().unfold(0, 16, 1).unfold(1, 16, 1) == x).all(-1).all(-1).any()
            )
        }

    assert sources(data.train)
    assert sources(data.validation)
    assert not sources(data.train) & sources(data.validation)
    assert not sources(data.test)
    assert "30 training, 16 validation and 16 test patches of 16 x 16 pixels" in repr(data)


@pytest.fixture
def once(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """How often colors were started at clusters."""
    calls: list[int] = []
    start = IndependentSegments.initialize

    def counted(self: IndependentSegments, y: Tensor, x: Tensor, seed: int = 0) -> None:
        calls.append(seed)
        start(self, y, x, seed)

    monkeypatch.setattr(IndependentSegments, "initialize", counted)
    return lambda: len(calls)


@pytest.mark.slow
def test_colors_start_at_clusters(once: Callable[[], int], photos: Path, tmp_path: Path) -> None:
    options = ["--data", f"folder:{photos}", "--run_dir", str(tmp_path / "r"), *TINY]
    assert main(["colorize", "train", *options, "--report", "false"]) == 0
    assert once() == 1
