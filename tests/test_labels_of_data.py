"""Data with labels, and what the command line makes of them."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
import yaml
from catalogue import SMALL_NETWORK, SMALL_RUN
from labelled import CLASSES, rows, semi_supervised

from ppl_vae import (
    evaluate,
    load_data,
    load_run,
)
from ppl_vae.cli import main
from ppl_vae.cli.results import with_accuracy
from ppl_vae.cli.setup import load_rows
from ppl_vae.data import Data, oversample_labelled
from ppl_vae.runs import Comparison

BARE = ("--posterior", "never", "--report", "false")
"""For runs that nobody looks at."""


def arrays_in(file: Path) -> dict[str, Any]:
    """The arrays of an .npz file, which is closed."""
    with np.load(file) as found:
        return dict(found)


def test_rows_come_with_their_labels() -> None:
    plain, told = load_data("digits", max_rows=200), load_data("digits", max_rows=200, labels=True)
    for split in ("train", "validation", "test"):
        x, y = getattr(told, split)
        assert torch.equal(x, getattr(plain, split))
        assert torch.equal(y, getattr(plain, f"{split}_labels"))
    assert told.shape == plain.shape == (1, 8, 8)
    assert "each with a label" in repr(told)


@pytest.mark.parametrize("num", [10, 37, 1294])
def test_so_many_labels_are_told_in_equal_numbers(num: int) -> None:
    data = load_data("digits", labels=num)
    (x, y), truth = data.train, data.train_labels
    assert truth is not None
    assert len(x) == len(y) == 1294
    known = y >= 0
    assert int(known.sum()) == num
    assert torch.equal(y[known], truth[known])
    if num < 1000:
        counts = y[known].bincount(minlength=10)
        assert int(counts.max() - counts.min()) <= 1
    assert all(bool((split[1] == -1).all()) for split in (data.validation, data.test))
    assert torch.equal(x, load_data("digits").train)
    other = load_data("digits", labels=num, seed=1)
    assert num > 1000 or not torch.equal(other.train[1] >= 0, known)


@pytest.mark.parametrize(
    ("share", "times"),
    [(0.0, 1), (0.05, 1), (0.1, 1), (0.25, 4), (0.52, 11), (0.9, 95)],
)
def test_rows_with_a_label_are_repeated_until_they_have_a_share(share: float, times: int) -> None:
    """r of 8 times 8 r / (8 r + 84) is nearest to the share."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(92, 3, generator=generator), torch.full((92,), -1)
    y[:40:5] = torch.arange(8)
    repeated, told = oversample_labelled(x, y, share)
    assert torch.equal(repeated[:92], x)
    assert torch.equal(told[:92], y)
    assert len(repeated) == len(told) == 92 + 8 * (times - 1)
    for label in range(8):
        of_label = repeated[told == label]
        assert len(of_label) == times
        assert torch.equal(of_label.unique(dim=0), x[5 * label][None])
    if times > 1:
        shares = [8 * r / (8 * r + 84) for r in (times - 1, times, times + 1)]
        assert min(range(3), key=lambda i: abs(shares[i] - share)) == 1


def test_shares_that_are_none_are_refused() -> None:
    x, y = torch.rand(4, 2), torch.tensor([0, -1, -1, -1])
    for share in (1.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match="from 0 to below 1, got"):
            oversample_labelled(x, y, share)
    with pytest.raises(ValueError, match=r"one label for each of 4 rows, got shape \(3,\)"):
        oversample_labelled(x, y[:3])
    with pytest.raises(ValueError, match="no row has a label"):
        oversample_labelled(x, torch.full((4,), -1))
    of_arrays = oversample_labelled(x.numpy(), y.numpy(), 0.5)
    for mine, tensor in zip(of_arrays, oversample_labelled(x, y, 0.5), strict=True):
        assert torch.equal(mine, tensor)


def test_labels_that_are_not_there_are_named(tmp_path: Path) -> None:
    torch.save({"x": torch.rand(50, 3)}, tmp_path / "rows.pt")
    torch.save({"x": torch.rand(50, 3), "y": torch.rand(50)}, tmp_path / "real.pt")
    with pytest.raises(ValueError, match="has no labels"):
        load_data(tmp_path / "rows.pt", labels=True)
    with pytest.raises(ValueError, match="not classes of which some"):
        load_data(tmp_path / "real.pt", labels=5)
    assert load_data(tmp_path / "real.pt", labels=True).train[1].shape == (36, 1)
    with pytest.raises(ValueError, match="only 1294 training rows"):
        load_data("digits", labels=2000)
    with pytest.raises(ValueError, match="labels must be at least 1"):
        load_data("digits", labels=-3)
    with pytest.raises(TypeError, match="labels must be a whole number"):
        load_data("digits", labels=0.5)  # type: ignore[call-overload]


def test_hidden_labels_of_the_data_are_no_class(tmp_path: Path) -> None:
    file = tmp_path / "rows.npz"
    y = np.array([0, 1, 2, 2, -1, -1] * 10)
    np.savez(file, train=np.random.rand(60, 3), train_labels=y)
    data = load_data(file, labels=9, validation_fraction=0.2)
    known = data.train[1][data.train[1] != -1]
    assert known.bincount().tolist() == [3, 3, 3]
    assert data.train_labels is not None
    held = int((data.train_labels != -1).sum())
    assert int((load_data(file, labels=held, validation_fraction=0.2).train[1] != -1).sum()) == held
    with pytest.raises(ValueError, match=f"only {held} training rows with a label"):
        load_data(file, labels=held + 1, validation_fraction=0.2)
    assert "4 different" not in data._repr_html_()


def test_the_accuracy_is_of_the_rows_with_a_label() -> None:
    model, guide = semi_supervised()
    x, _ = rows()
    told = guide.classify(x).probs.argmax(-1)
    told[:12] = (told[:12] + 1) % CLASSES
    told[20:] = -1
    data = Data("rows", x, x, x, test_labels=told)
    evaluation = evaluate(model, guide, x, num_samples=2, seed=0)
    (note,) = set(with_accuracy(evaluation, model, guide, data).notes) - set(evaluation.notes)
    assert "8 of 20 test rows with a label their label (40.0%)" in note
    unknown = replace(data, test_labels=torch.full((30,), -1))
    assert with_accuracy(evaluation, model, guide, unknown) is evaluation


def test_a_table_of_data_counts_rows() -> None:
    data = load_data("digits", max_rows=50, labels=True)
    table = data._repr_html_()
    assert table.count(">50</td>") == 3
    assert ">2</td>" not in table


# -- the command line ------------------------------------------------------------------------------------


def test_rows_with_a_label_are_repeated_for_the_training_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The weight of the labels follows; other commands see each row once."""
    np.savez(tmp_path / "rows.npz", x=np.random.rand(139, 4), y=np.arange(139) % 5)
    data = ["--data", str(tmp_path / "rows.npz"), "--model", "SemiSupervisedVAE"]
    command = ["train", *data, *SMALL_NETWORK, *BARE, "--max_epochs", "1", "--quiet"]
    n = len(load_data(tmp_path / "rows.npz").train)
    times = round(0.25 * (n - 10) / 10)
    assert times > 1
    numbers, weights = [], []

    def stopped(model: Any, guide: Any, rows: Any, *, objective: Any, **options: Any) -> Any:
        numbers.append(len(rows[1]))
        weights.append(objective.classification)
        raise KeyboardInterrupt

    with patch("ppl_vae.cli.train.fit", stopped):
        for share in ("0", "0.2"):
            options = ["--labels", "10", "--labelled_share", share]
            assert main([*command, *options, "--run_dir", str(tmp_path / share)]) == 130
    assert numbers == [n, n + 10 * (times - 1)]
    assert weights == pytest.approx([100 * n / 10, 100 * numbers[1] / (10 * times)])
    config = {"data": data[1], "labels": 10, "labelled_share": 0.2}
    assert len(load_rows(config).train[1]) == n
    capsys.readouterr()
    for given, said in (
        (("--labels", "true"), "each row has its label"),
        ((), "no label is told"),
        (("--labels", "10", "--labelled_share", "1.5"), "must be from 0 to below 1, got 1.5"),
    ):
        assert main([*command, "--labelled_share", "0.2", *given]) == 2
        assert said in capsys.readouterr().err


@pytest.mark.slow
def test_a_semi_supervised_run_is_trained_evaluated_and_sampled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guide, objective, classes and the weight of the labels are filled in; the pictures are drawn."""
    run = tmp_path / "run"
    options = ("--labels", "30", "--model", "SemiSupervisedVAE", "--model.latent_dim", "2")
    command = ["train", *options, *SMALL_RUN, *SMALL_NETWORK, *BARE, "--max_epochs", "2", "--quiet"]
    assert main([*command, "--run_dir", str(run)]) == 0
    printed = capsys.readouterr()
    assert "the curve of training cannot be compared" in " ".join(printed.out.split())
    assert re.search(r"q\(y \| x\) without any label gives \d+ of 60 test rows", printed.out)
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["guide"]["class_path"].endswith("SemiSupervised")
    assert config["model"]["init_args"]["classes"] == 10
    assert config["guide"]["init_args"]["classes"] == 10
    assert config["objective"]["class_path"].endswith("SemiSupervisedELBO")
    assert config["objective"]["init_args"]["classification"] == pytest.approx(100.0 * 60 / 30)
    loaded: Any = load_run(run)
    data = load_data("digits", max_rows=60, labels=30)
    again = evaluate(loaded.model, loaded.guide, data.test, num_samples=20, seed=0)
    stored = loaded.evaluation_rows
    assert stored is not None
    torch.testing.assert_close(
        again.elbo.values, torch.tensor(stored["elbo"], dtype=torch.float32), atol=1e-3, rtol=1e-4
    )
    samples = tmp_path / "samples.npz"
    assert main(["sample", str(run), "--num", "5", "-o", str(samples)]) == 0
    drawn = arrays_in(samples)
    assert drawn["x"].shape == (5, 1, 8, 8)
    assert drawn["z"].shape == (5, 2)
    y = torch.tensor(drawn["label"])
    means = loaded.model.decode(torch.tensor(drawn["z"]), y).mean.detach()
    torch.testing.assert_close(torch.tensor(drawn["mean"]), means)
    for label, wanted in (("7", [7] * 5), ("1,0", [1, 0, 1, 0, 1])):
        asked = ["--num", "5", "--label", label, "-o", str(samples), "--overwrite"]
        assert main(["sample", str(run), *asked]) == 0
        named = f"of labels {label}, in turn" if "," in label else f"of label {label}"
        assert named in capsys.readouterr().err
        drawn = arrays_in(samples)
        assert drawn["label"].tolist() == wanted
        means = loaded.model.decode(torch.tensor(drawn["z"]), torch.tensor(wanted)).mean.detach()
        torch.testing.assert_close(torch.tensor(drawn["mean"]), means)
    assert main(["sample", str(run), "--label", "x", "-o", str(samples), "--overwrite"]) == 2
    assert "--label x: expected a label, such as 3" in capsys.readouterr().err
    for wrong in ("12", "3,-1"):
        assert (
            main(["sample", str(run), f"--label={wrong}", "-o", str(samples), "--overwrite"]) == 2
        )
        said = f"--label {wrong}: the labels of this SemiSupervisedVAE are 0 to 9"
        assert said in " ".join(capsys.readouterr().err.split())
    few = ["sample", str(run), "--label", "1,2,3,4,5", "--num", "2", "-o", str(samples)]
    before = samples.read_bytes()
    assert main([*few, "--overwrite"]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "names 5 labels, and --num 2 samples cannot be of all of them: --num 5 or more" in told
    assert samples.read_bytes() == before
    assert (
        main(["sample", str(run), *few[2:4], "--num", "5", "-o", str(samples), "--overwrite"]) == 0
    )
    assert arrays_in(samples)["label"].tolist() == [1, 2, 3, 4, 5]  # as it says
    capsys.readouterr()
    diagnosis = json.loads((run / "diagnosis.json").read_text())
    assert diagnosis["names"] == ["z[0]", "z[1]"]  # y is no code
    assert any("'y' is categorical" in note for note in diagnosis["notes"])
    pictures = {file.stem for file in (run / "plots").iterdir()}
    assert {"traversals", "prior_samples", "aggregate_posterior", "interpolations"} <= pictures
    assert "manifold" not in pictures  # its decodings would be of any class
    with patch("ppl_vae.cli.finish.draw_run", return_value=[]):
        assert main(["train", "--resume", str(run), "--max_epochs", "3", "--quiet"]) == 0


@pytest.mark.parametrize(
    ("options", "guide", "objective"),
    [
        (("--objective.beta", "0.5"), {}, {"beta": 0.5}),
        (("--guide.latent_dim=3",), {"latent_dim": 3}, {}),
        (("--objective.classification", "5"), {}, {"classification": 5.0}),
        (("--config", "m2.yaml", "--objective.num_particles", "2"), {}, {"num_particles": 2}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_one_argument_leaves_the_classes_that_suit_the_model(
    options: tuple[str, ...],
    guide: dict[str, Any],
    objective: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    named = {"class_path": "ppl_vae.models.SemiSupervisedVAE", "init_args": {"latent_dim": 3}}
    Path("m2.yaml").write_text(yaml.safe_dump({"model": named, "labels": 100}))
    model = ("--labels", "100", "--model", "SemiSupervisedVAE", "--model.latent_dim", "3")
    given = options if options[0] == "--config" else (*model, *options)
    assert main(["train", *given, "--print_config"]) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["guide"]["class_path"] == "ppl_vae.guides.SemiSupervised"
    assert config["objective"]["class_path"] == "ppl_vae.objectives.SemiSupervisedELBO"
    assert config["model"]["init_args"]["latent_dim"] == 3
    assert guide.items() <= config["guide"]["init_args"].items()
    weight = {"classification": pytest.approx(100.0 * 1294 / 100)}
    assert (weight | objective).items() <= config["objective"]["init_args"].items()


@pytest.mark.slow
def test_a_refit_keeps_the_classes_that_suit_the_model(tmp_path: Path) -> None:
    command = [
        "train",
        *SMALL_RUN,
        *SMALL_NETWORK,
        *BARE,
        "--model",
        "SemiSupervisedVAE",
        "--quiet",
    ]
    run, again = tmp_path / "run", tmp_path / "again"
    options = ("--objective.beta", "0.5", "--guide.network", "MLP", "--max_epochs", "1", "--quiet")
    with patch("ppl_vae.cli.finish.draw_run", return_value=[]):
        given = ("--labels", "30", "--objective.classification", "3", "--max_epochs", "1")
        assert main([*command, *given, "--run_dir", str(run)]) == 0
        assert main(["refit", *options, str(run), "--run_dir", str(again)]) == 0
        plain = tmp_path / "plain"
        assert main(["refit", str(run), "--max_epochs", "1", "--run_dir", str(plain)]) == 0
    config = yaml.safe_load((again / "config.yaml").read_text())
    assert config["guide"]["class_path"] == "ppl_vae.guides.SemiSupervised"
    assert config["objective"]["class_path"] == "ppl_vae.objectives.SemiSupervisedELBO"
    assert config["objective"]["init_args"]["beta"] == 0.5
    config = yaml.safe_load((plain / "config.yaml").read_text())
    assert config["objective"]["init_args"]["classification"] == 3.0  # the run's own


def test_a_class_that_is_named_is_not_replaced(capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--guide", "SemiSupervised", "--objective", "EnumELBO", "--objective.beta", "0.5")
    command = ["train", "--labels", "100", "--model", "SemiSupervisedVAE", *options]
    assert main([*command, "--print_config"]) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["objective"]["class_path"] == "ppl_vae.objectives.EnumELBO"


@pytest.mark.slow
def test_a_run_with_all_labels_is_sampled_and_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Labels that the model observes are not what its prior is drawn for."""
    run = tmp_path / "run"
    options = ("--labels", "true", "--model", "SemiSupervisedVAE", "--max_epochs", "1", "--quiet")
    command = ["train", *options, *SMALL_RUN, *SMALL_NETWORK, "--run_dir", str(run)]
    assert main(command) == 0
    assert "prior_samples.png was not drawn" not in capsys.readouterr().err
    assert (run / "plots/prior_samples.png").exists()
    samples = tmp_path / "samples.npz"
    assert main(["sample", str(run), "--num", "5", "-o", str(samples)]) == 0
    assert arrays_in(samples)["x"].shape == (5, 1, 8, 8)


@pytest.mark.slow
def test_a_conditional_run_reads_the_labels_of_the_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    options = ("--labels", "true", "--model", "ConditionalVAE", "--guide", "FullCovariance")
    command = ["train", *options, *SMALL_RUN, *SMALL_NETWORK, *BARE, "--max_epochs", "2", "--quiet"]
    assert main([*command, "--run_dir", str(run)]) == 0
    config = yaml.safe_load((run / "config.yaml").read_text())
    for role in ("model", "guide"):
        context = config[role]["init_args"]["context"]
        assert context == {
            "class_path": "ppl_vae.networks.Labels",
            "init_args": {"classes": 10},
        }
    assert {"reconstructions.png", "interpolations.png", "traversals.png"} <= {
        file.name for file in (run / "plots").iterdir()
    }
    capsys.readouterr()
    assert main(["evaluate", str(run), "--num_samples", "20", "--overwrite", "--quiet"]) == 0
    assert main(["diagnose", str(run), "--overwrite", "--quiet"]) == 0
    assert "log p(x)" in capsys.readouterr().out
    model: Any = load_run(run).model
    data = load_data("digits", max_rows=60, labels=True)
    samples = tmp_path / "samples.npz"
    for label, wanted in (([], data.test[1][:5]), (["--label", "3"], torch.full((5,), 3))):
        output = ("--num", "5", "-o", str(samples), "--overwrite")
        assert main(["sample", str(run), *label, *output]) == 0
        drawn = arrays_in(samples)
        assert drawn["label"].tolist() == wanted.tolist()
        means = model.decode(torch.tensor(drawn["z"]), wanted).mean.detach()
        torch.testing.assert_close(torch.tensor(drawn["mean"]), means)


@pytest.mark.slow
def test_runs_are_compared_unless_labels_of_test_rows_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With all of these hidden, log p(x) is that of the rows alone. A training without any label warns."""
    common = [*SMALL_RUN, *SMALL_NETWORK, *BARE, "--quiet", "--max_epochs", "1"]
    options: dict[str, tuple[str, ...]] = {
        "plain": (),
        "without": ("--model", "SemiSupervisedVAE"),
        "few": ("--model", "SemiSupervisedVAE", "--labels", "30"),
        "more": ("--model", "SemiSupervisedVAE", "--labels", "40"),
        "all": ("--model", "SemiSupervisedVAE", "--labels", "true"),
        "given": ("--model", "ConditionalVAE", "--labels", "true"),
    }
    runs = {name: str(tmp_path / name) for name in options}
    with patch("ppl_vae.cli.finish.draw_run", return_value=[]):
        for name, own in options.items():
            assert main(["train", *own, *common, "--run_dir", runs[name]]) == 0
            told = " ".join(capsys.readouterr().err.split())
            assert ("is trained without any label" in told) == (name == "without")
    picture = ("-o", str(tmp_path / "compared.png"), "--overwrite")
    hidden = [runs[name] for name in ("plain", "without", "few", "more")]
    assert main(["compare", *hidden, *picture]) == 0
    assert "different quantities" not in capsys.readouterr().out
    loaded = [load_run(run) for run in hidden]
    difference = Comparison.of(loaded).difference("log_likelihood", 2).values
    columns = [run.evaluation_rows for run in (loaded[2], loaded[0])]
    few, plain = (torch.tensor(rows["log_likelihood"]) for rows in columns if rows is not None)
    torch.testing.assert_close(difference.float(), few - plain)
    for other, words in (("all", "(--labels true, none)"), ("given", "(--labels true, none)")):
        assert main(["compare", runs["plain"], runs[other], *picture]) == 1
        assert f"different labels beside the rows {words}" in " ".join(
            capsys.readouterr().err.split()
        )
    assert main(["compare", runs["given"], runs["all"], *picture]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "log p(x) of different quantities" in told
    assert "given: log p(x | c), all: log p(x, label)" in told


@pytest.mark.slow
def test_a_model_of_two_layers_gets_a_guide_of_two(tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = ["train", "--model", "HierarchicalVAE", *SMALL_RUN, *SMALL_NETWORK, "--quiet"]
    with patch("ppl_vae.cli.finish.draw_run", return_value=[]):
        assert main([*command, "--max_epochs", "1", "--run_dir", str(run)]) == 0
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["guide"]["class_path"].endswith("TopDown")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--model", "ConditionalVAE"), "takes rows and what they come with (x, c): add --labels"),
        (("--labels", "true"), "VAE takes the rows alone (x): leave out --labels, or choose"),
        (("--labels", "70", "--model", "SemiSupervisedVAE"), "only 60 training rows"),
        (
            ("--labels", "30", "--model", "ConditionalVAE"),
            "some are hidden (-1): --labels true, if",
        ),
        (("--labels", "true", "--model", "GaussianMixture"), "(`ppl-vae train --model Conditional"),
        (("--labels", "yes"), "--labels: expected int, true or false, got yes"),
    ],
)
def test_what_does_not_go_with_the_labels_is_named(
    options: tuple[str, ...], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", *options, *SMALL_RUN, "--run_dir", str(tmp_path / "run"), "--quiet"]
    assert main(command) == 2 or main(command) == 1
    told = " ".join(capsys.readouterr().err.split())
    assert words in told
    assert not (tmp_path / "run").exists()
