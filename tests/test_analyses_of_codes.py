"""The scripts about codes run with tiny settings, and their tables make sense."""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import math
import runpy
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.image import imread
from PIL import Image
from scripts import (
    ROOT,
    mean,
    rows,
    run,
    write_mnist,
    write_photos,
)
from torch import Tensor

from ppl_vae.data import Data


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
    # What another program wrote: here files of 100 bytes, 12 of them header, and the pictures as they are.
    mine = folder / "mine" / "3"
    mine.mkdir(parents=True)
    lines = ["picture,original,bytes,payload"]
    for file in sorted((folder / "photos" / "test").glob("?.png"), reverse=True):
        with Image.open(file) as picture:
            pixels = picture.width * picture.height
            original = hashlib.sha256(picture.convert("RGB").tobytes()).hexdigest()
        shutil.copy(file, mine)
        lines.append(f"{file.name},{original},100,88")
    (mine / "sizes.csv").write_text("\n".join(lines))
    beside = ("compression.py", *options, "--others=[mine]", "--overwrite=true")
    (row,) = (
        row
        for row in rows(run(*beside, cwd=folder).split("\nBits that")[0])
        if row["codec"] == "mine"
    )
    assert row["setting"] == "3"
    assert mean(row["bits per pixel, file"]) == pytest.approx(800 / pixels, rel=1e-3)
    assert mean(row["without headers"]) == pytest.approx(704 / pixels, rel=1e-3)
    assert mean(row["PSNR, dB"]) == 60.0  # as it was
    # It is refused before any training, where a picture is missing or is another one.
    monkeypatched = lines[1].replace(lines[1].split(",")[1], "0" * 64)
    (mine / "sizes.csv").write_text("\n".join([lines[0], monkeypatched, *lines[2:]]))
    with pytest.raises(ValueError, match="no row of test picture 1"):
        run(*beside, "--runs=new", cwd=folder)
    assert not (folder / "new").exists()
    (mine / "sizes.csv").write_text("picture,bytes\n0.png,3\n")
    with pytest.raises(ValueError, match="lacks the column 'original'"):
        run(*beside, cwd=folder)
    with pytest.raises(ValueError, match="has no folder with a table"):
        run("compression.py", *options, "--others=[photos]", "--overwrite=true", cwd=folder)
    (folder / "JPEG").mkdir()
    with pytest.raises(ValueError, match="called like a codec"):
        run("compression.py", *options, "--others=[JPEG]", "--overwrite=true", cwd=folder)


def test_k_means_of_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of four kinds of blocks come back as they were, for two bits a block."""
    monkeypatch.syspath_prepend(ROOT / "analyses")
    codecs = importlib.import_module("photo_codecs")
    torch.manual_seed(0)
    kinds = torch.randint(256, (4, 3, 4, 4))
    which = torch.randint(4, (30, 5, 6))
    pictures = kinds[which].permute(0, 3, 1, 4, 2, 5).reshape(30, 3, 20, 24)
    train = pictures[:20].float() / 255
    test = [picture.to(torch.uint8).movedim(0, -1) for picture in pictures[20:]]
    for score in codecs.of_blocks(train, test, 4, 4, "four", seed=0):
        assert score.bits == pytest.approx(2 / 16)
        assert score.psnr == 60.0
    (score,) = codecs.of_blocks(train, [test[0][:18, :23]], 4, 4, "four", seed=0)
    assert score.bits == pytest.approx(2 * 30 / (18 * 23))  # blocks at the edge are whole ones
    gray = train[:, :1]
    (score,) = codecs.of_blocks(gray, [test[0][..., 0]], 4, 4, "four", seed=0)
    assert score.psnr == 60.0


def test_a_learned_codec_keeps_what_it_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stub in place of its model: files are read again, and their pictures found by `compression.py`."""

    class Stub:
        """Writes the bytes of the padded picture."""

        def compress(self, x: Tensor) -> dict[str, Any]:
            self.shape = x.shape
            return {"strings": [[bytes((255 * x).round().byte().flatten().tolist())], [b"ab"]]}

        def decompress(self, strings: list[list[bytes]], shape: Any) -> dict[str, Tensor]:
            assert shape == (self.shape[2] // 64, self.shape[3] // 64)
            assert strings[1] == [b"ab"]
            values = torch.tensor(list(strings[0][0])).float() / 255
            return {"x_hat": values.reshape(self.shape)}

    monkeypatch.syspath_prepend(ROOT / "analyses" / "benchmarks")
    monkeypatch.syspath_prepend(ROOT / "analyses")
    codec = importlib.import_module("photo_codec")
    write_photos(tmp_path / "photos")
    held_out = codec.photos(codec.held_out(tmp_path / "photos"))
    assert [photo.shape for photo in held_out] == [(3, 40, 48)] * 2  # no segmentation among them
    codec.written(Stub(), held_out, tmp_path / "codec" / "1")
    size = (tmp_path / "codec" / "1" / "000.bin").stat().st_size
    assert size == 12 + 3 * 64 * 64 + 2
    found = importlib.import_module("photo_codecs").of_folder(
        [photo.movedim(0, -1) for photo in reversed(held_out)], tmp_path / "codec"
    )
    for score in found:
        assert score.psnr == 60.0
        assert score.bits == pytest.approx(8 * size / (40 * 48))
        assert score.payload == pytest.approx(8 * (size - 12) / (40 * 48))


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
        rate = script["bd_rate"](scores, "JPEG", of, draws=20)
        assert rate.percent == pytest.approx(100, abs=1e-6)
        assert rate.error == pytest.approx(0, abs=1e-6)  # paired: the ratio does not differ
        assert rate.apart == 0
        assert f"{rate}" == "+100 ± 0 %"
    apart = [
        replace(s, psnr=s.psnr + 40) if s.codec == "JPEG" else s  # no PSNR in common
        for s in scores
    ]
    assert script["bd_rate"](apart, "JPEG", "bits") is None
    alone = [s for s in scores if s.picture == 0]
    rate = script["bd_rate"](alone, "JPEG", "bits", draws=5)
    assert math.isnan(rate.error)
    assert f"{rate}" == "+100 %"
    # Of two pictures one alone has a PSNR in common: a draw of the other one twice has none.
    half = [
        replace(s, psnr=s.psnr + 40) if s.codec == "JPEG" and s.picture == 1 else s
        for s in scores
        if s.picture < 2 and s.setting in "0123"
    ]
    half = [replace(s, psnr=s.psnr - 16) if s.codec == "JPEG" else s for s in half]
    rate = script["bd_rate"](half, "JPEG", "bits", draws=40)
    assert rate is not None
    assert 0 < rate.apart < 40
    assert f"nothing in common in {rate.apart} of 40 draws" in f"{rate}"


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
    found = script["bd_rate"](scores, "JPEG", "bits", draws=150)
    rate, error = found.percent, found.error
    ratio = ours.mean() / theirs.mean()
    assert rate == pytest.approx(100 * float(ratio - 1), abs=1e-6)
    paired = (ours - ratio * theirs).std() / 60**0.5 / theirs.mean()
    assert error == pytest.approx(100 * float(paired), rel=0.2)  # 150 draws: to 6 percent
    variances = [(of.std() / of.mean()) ** 2 / 60 for of in (ours, theirs)]
    apart = ratio * (variances[0] + variances[1]) ** 0.5
    assert error < 0.7 * 100 * float(apart)


def test_payloads_and_measures_of_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "analyses")
    scores, codecs = (
        vars(importlib.import_module(name)) for name in ("photo_scores", "photo_codecs")
    )
    # By the rule of torchmetrics the side over (scales - 1)^2 is more than 10 pixels.
    sides = {28: 2, 32: 2, 44: 3, 160: 4, 161: 4, 176: 5, 500: 5}
    for side, scales in sides.items():
        assert scores["num_scales"](torch.zeros(side, 600)) == scales
    gray = torch.randint(256, (44, 48), dtype=torch.uint8)
    assert scores["ms_ssim"](gray, gray) == pytest.approx(1.0)
    assert scores["ms_ssim"](gray, 255 - gray) < 0.2
    # A point with more bits that is no better is not on the curve.
    rate, quality = scores["rising"](torch.tensor([1.0, 3.0, 2.0]), torch.tensor([10.0, 12.0, 9.0]))
    assert rate.tolist() == [1, 3]
    assert quality.tolist() == [10, 12]

    picture = Image.fromarray(torch.randint(256, (24, 40, 3), dtype=torch.uint8).numpy())
    written = io.BytesIO()
    picture.save(written, "JPEG", quality=50, progressive=False)
    data = written.getvalue()
    scan = data.rindex(b"\xff\xda")  # of the only one
    length = int.from_bytes(data[scan + 2 : scan + 4])
    expected = len(data) - scan - 2 - length - len(b"\xff\xd9")
    assert codecs["payload_of"](data, "JPEG") == expected
    written = io.BytesIO()
    picture.save(written, "JPEG", quality=50, progressive=True, optimize=True)
    progressive = written.getvalue()
    assert progressive.count(b"\xff\xda") > 1
    # The same numbers in other words: within a fifth.
    assert codecs["payload_of"](progressive, "JPEG") == pytest.approx(expected, rel=0.2)
    assert codecs["payload_of"](progressive, "JPEG") < len(progressive) - 100
    written = io.BytesIO()
    picture.save(written, "WEBP", quality=50)
    webp = written.getvalue()
    # RIFF, a size, WEBP, then the name and the size of the chunk that is all of the rest.
    assert codecs["payload_of"](webp, "WebP") in (len(webp) - 20, len(webp) - 21)
    box = (20).to_bytes(4) + b"ftyp" + bytes(12)
    media = (8 + 5).to_bytes(4) + b"mdat" + bytes(5)
    assert codecs["payload_of"](box + media, "AVIF") == 5
    assert (
        codecs["payload_of"](box + bytes(4) + b"mdat" + bytes(7), "AVIF") == 7
    )  # to the end of the file


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
        assert mean(row["more than the ELBO of VAE, N(0, I)"]) == pytest.approx(gain, abs=0.011)
    # Four positions of 4 x 4 pixels, and sixteen of 2 x 2 beside them, with one of two codes.
    for name, bits in (("VQ-VAE", 4 * 2), ("VQ-VAE-2", 4 * 2 + 16)):
        uniform, learned = table[f"{name}, uniform"], table[f"{name}, PixelCNN"]
        assert mean(uniform["rate"]) == pytest.approx(bits * math.log(2), abs=0.006)
        assert uniform["distortion"] == learned["distortion"]
        if name == "VQ-VAE-2":
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

    names = ["residual, 8 and 8", "FSQ, 4 x 4 x 4", "LFQ, 6 bits"]
    asked = (*tiny, "--num_seeds=2", f"--rows={json.dumps(names)}")
    found = rows(run("vq_vae.py", "quantizers", *asked, cwd=folder))
    assert [row["quantizer"] for row in found] == names
    for row in found:
        assert 1 <= mean(row["perplexity"]) <= mean(row["values used"]) + 0.05
        assert mean(row["values used"]) <= 64
        assert mean(row["rate"]) == pytest.approx(4 * math.log(64), rel=0.1)  # hardly learned
        total = mean(row["rate"]) + mean(row["distortion"])
        assert mean(row["ELBO"]) == pytest.approx(-total, abs=0.02)
        gain = mean(row["ELBO"]) - mean(found[0]["ELBO"])
        assert mean(row["more than the ELBO of residual, 8 and 8"]) == pytest.approx(gain, abs=0.02)

    few = ("--codes=[2,4]", "--commitments=[0.25]", "--betas=[1]", "--vae_epochs=2")
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
    found, changes = (rows(part) for part in printed.split("\nWhat a change does"))
    assert len(found) == 16
    for row in found:
        assert 1 <= mean(row["perplexity"]) <= 4 - mean(row["dead codes"]) + 0.05
    names = ["start", "codebook", "restarts", "gradient"]
    assert len(changes) == 32
    for row in changes:
        ends = [
            next(
                each["distortion"]
                for each in found
                if all(each[name] == (row[name] or value) for name in names)
            )
            for value in row["change"].split(" to ")
        ]
        gain = mean(ends[1]) - mean(ends[0])
        assert mean(row["distortion"]) == pytest.approx(gain, abs=0.011)
    assert len((folder / "vq_vae_ablation.jsonl").read_text().splitlines()) == 32
    assert run("vq_vae.py", *options, cwd=folder) == printed  # from the file

    run("vq_vae.py", "samples", *tiny, "--num_rows=2", cwd=folder)
    assert imread(folder / "vq_vae_samples.png").std() > 0.05


CHECKS: dict[str, Callable[[Path], None]] = {
    "bits_back.py": bits_back,
    "classification_accuracy.py": classification_accuracy,
    "compression.py": compression,
    "hard_em_to_vq.py": hard_em_to_vq,
    "vq_vae.py": vq_vae,
}


def test_two_rows_of_the_table_in_nats(tmp_path: Path) -> None:
    """A part of what is slow: rows in the order asked for, with the bounds of both."""
    names = ["VQ-VAE, counted", "VAE, N(0, I)"]
    few = ("--sizes.max_epochs=2", f"--rows={json.dumps(names)}")
    printed = run("vq_vae.py", "table", "--quick", *few, cwd=tmp_path)
    table, losses = (rows(part) for part in printed.split(" test rows of digits"))
    assert [row["model"] for row in table] == names
    for row in table:
        total = mean(row["rate"]) + mean(row["distortion"])
        assert mean(row["ELBO"]) == pytest.approx(-total, abs=0.02)
    assert mean(table[0]["rate"]) <= 4 * math.log(4) + 0.5  # four codes of four, counted elsewhere
    gain = mean(table[1]["more than the ELBO of VQ-VAE, counted"])
    assert gain == pytest.approx(mean(table[1]["ELBO"]) - mean(table[0]["ELBO"]), abs=0.02)
    assert [row["phase"] for row in losses] == ["II, IndependentCodes", "-ELBO"]
    with pytest.raises(ValueError, match="no line is called 'VAE'"):
        run("vq_vae.py", "table", "--quick", '--rows=["VAE"]', cwd=tmp_path)


SLOW = ("classification_accuracy.py", "vq_vae.py")


@pytest.mark.slow(only=("compression.py", "bits_back.py"))
@pytest.mark.parametrize(
    "script",
    [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in CHECKS],
)
def test_script(script: str, tmp_path: Path) -> None:
    CHECKS[script](tmp_path)
