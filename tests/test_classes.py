"""Classes: which labels are some, classes that no row has, and a classifier that labels do not train."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy
import numpy as np
import pyro.infer
import pytest
import torch
import yaml
from catalogue import SMALL_NETWORK
from labelled import CLASSES, LINEAR, SIGMA, D, linear_conditional, rows, semi_supervised
from torch.utils.data import DataLoader, TensorDataset

import ppl_vae
from ppl_vae import check, evaluate, fit, load_data, load_run, objectives
from ppl_vae.checks import PairWarning
from ppl_vae.cli import main
from ppl_vae.data import oversample_labelled
from ppl_vae.guides import MeanField, SemiSupervised
from ppl_vae.likelihoods import Gaussian
from ppl_vae.models import SemiSupervisedVAE
from ppl_vae.networks import Attributes, Labels
from ppl_vae.objectives import (
    ELBO,
    EnumELBO,
    ImportanceWeightedELBO,
    Objective,
    SemiSupervisedELBO,
    TraceELBO,
)
from ppl_vae.runtime import classes_in_words, empty_classes

N = 60


def saved(folder: Path, y: Any, name: str = "rows.npz") -> Path:
    """An array file of 60 rows of 16 numbers and their labels."""
    np.savez(folder / name, x=np.random.default_rng(0).normal(size=(N, 4)), y=y)
    return folder / name


WHOLE = np.arange(N) % 3


# -- what is a class -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "y",
    [
        WHOLE.astype("float64"),
        WHOLE.astype("float32"),
        WHOLE.astype("uint16"),
        WHOLE[:, None],
        np.eye(3)[WHOLE],
        np.eye(3, dtype=int)[WHOLE],
        np.eye(3, dtype=bool)[WHOLE],
    ],
    ids=["float64", "float32", "uint16", "column", "one-hot floats", "one-hot", "one-hot bools"],
)
def test_whole_numbers_and_one_hot_vectors_are_classes(y: Any, tmp_path: Path) -> None:
    """They were one attribute, and several, of which no label could be hidden."""
    plain = load_data(saved(tmp_path, WHOLE, "plain.npz"), labels=True)
    found = load_data(saved(tmp_path, y), labels=True)
    for split in ("train", "validation", "test"):
        assert torch.equal(getattr(found, split)[1], getattr(plain, split)[1])
        assert getattr(found, split)[1].dtype == torch.int64
    some = load_data(saved(tmp_path, y), labels=6).train[1]
    assert some[some >= 0].bincount().tolist() == [2, 2, 2]


def test_a_missing_label_is_a_hidden_one(tmp_path: Path) -> None:
    """pandas holds whole numbers with missing ones as real numbers with NaN."""
    y = WHOLE.astype(float)
    y[::4] = np.nan
    hidden = np.where(np.isnan(y), -1, y).astype(int)
    found, plain = (load_data(saved(tmp_path, each), labels=True).train[1] for each in (y, hidden))
    assert torch.equal(found, plain)


@pytest.mark.parametrize(
    ("y", "shape"),
    [
        (WHOLE + 0.5, (1,)),
        (WHOLE[:, None].astype(float), (1,)),
        (1000.0 * WHOLE, (1,)),  # more classes than rows
        (-2.0 - WHOLE, (1,)),
        (np.ones((N, 3)), (3,)),
        (np.full(N, np.nan), (1,)),
    ],
    ids=["fractions", "a column", "large", "negative", "several", "NaN"],
)
def test_other_numbers_are_attributes(y: Any, shape: tuple[int, ...], tmp_path: Path) -> None:
    found = load_data(saved(tmp_path, y), labels=True).train[1]
    assert found.is_floating_point()
    assert found.shape[1:] == shape
    with pytest.raises(ValueError, match=r"labels=5: .* not classes .* as attributes to a Cond"):
        load_data(saved(tmp_path, y), labels=5)


def test_one_attribute_of_each_row_is_a_column() -> None:
    x, y = rows()
    pair = linear_conditional(Attributes(1)), MeanField((D,), 2, LINEAR, context=Attributes(1))
    with pytest.raises(ValueError, match=r"shape \(30,\): expected .* such as c\[:, None\] of one"):
        evaluate(*pair, (x, y.float()), num_samples=2)
    c = y.float()
    evaluate(*pair, (x, c[:, None]), num_samples=2)


SMALL = ("--max_epochs", "1", "--num_samples", "5", "--quiet", "--device", "cpu")


@pytest.mark.parametrize(
    ("y", "options", "words"),
    [
        (
            WHOLE + 0.5,
            ("--labels", "true", "--model", "SemiSupervisedVAE"),
            "SemiSupervisedVAE is built with Labels(classes=10), a class of each row, but the labels of .* are "
            "attributes, of shape (43, 1): save whole numbers from 0 as y, one for each row, or choose --model "
            "ConditionalVAE",
        ),
        (
            WHOLE + 0.5,
            ("--labels", "5", "--model", "SemiSupervisedVAE"),
            "the labels of .* are real numbers .* not classes",
        ),
        (
            WHOLE,
            ("--labels=true", "--model", "ConditionalVAE", "--model.context", "Attributes"),
            "--model.context.count is missing",
        ),
    ],
    ids=["attributes", "some attributes", "no count"],
)
def test_the_message_fits_the_model(
    y: Any,
    options: tuple[str, ...],
    words: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = saved(tmp_path, y)
    command = ["train", "--data", str(file), *options, *SMALL, *SMALL_NETWORK]
    assert main([*command, "--run_dir", str(tmp_path / "run")]) in (1, 2)
    told = " ".join(capsys.readouterr().err.split())
    pattern = re.escape(words).replace(r"\.\*", ".*")
    assert re.search(pattern, told), told


# -- classes that no row has -----------------------------------------------------------------------------


def test_empty_classes_are_counted_and_named() -> None:
    runs = empty_classes(torch.tensor([0, 5, 9, -1, 12]), 12)
    assert [*map(list, runs)] == [[1, 2, 3, 4], [6, 7, 8], [10, 11]]
    assert classes_in_words(runs) == "classes 1 to 4, 6 to 8, 10 and 11"
    assert empty_classes(torch.arange(3), 3) == []
    assert (
        classes_in_words(empty_classes(torch.tensor([10**12]), 10**12 + 1))
        == f"classes 0 to {10**12 - 1}"
    )
    many = empty_classes(torch.arange(1, 40, 2), 40)
    assert classes_in_words(many) == "20 classes (0, 2, 4, 6, ...)"


LABELS: list[tuple[Any, str]] = [
    (WHOLE + 1, "is of class 0, which a model of 4 classes has: .* subtract 1 from all labels"),
    (WHOLE + 7, "is of classes 0 to 6, .* subtract 7 from all"),
    (np.array([0, 5, 9])[WHOLE], r"classes 1 to 4 and 6 to 8, .*return_inverse=True\)\[1\]\. If"),
    (
        np.array([0, 5, 9, -1])[np.arange(N) % 4],
        r"classes 1 to 4 and 6 to 8, .*return_inverse=True\)\[1\] - 1\. If",
    ),
]


@pytest.mark.parametrize(("y", "words"), LABELS, ids=["from 1", "from 7", "gaps", "hidden"])
def test_labels_with_gaps_are_warned_of(y: Any, words: str, tmp_path: Path) -> None:
    """And what is said to type ends the warning."""
    file = saved(tmp_path, y)
    for labels in (True, 9):
        with pytest.warns(UserWarning, match=words) as told:
            load_data(file, labels=labels)
    load_data(file)
    said = str(told[0].message)
    typed = re.search(r"numpy\.unique\(.*?\)\[1\](?: - 1)?", said)
    shift = re.search(r"subtract (\d+)", said)
    renumbered = y - int(shift[1]) if shift else eval(typed[0], {"numpy": numpy, "y": y})  # type: ignore[index]
    assert sorted({*renumbered.tolist()} - {-1}) == [0, 1, 2]
    assert ((renumbered == -1) == (y == -1)).all()
    load_data(saved(tmp_path, renumbered), labels=True)


def test_too_few_labels_are_warned_of() -> None:
    with pytest.warns(
        UserWarning, match=r"labels=3 tells no training row of digits of .*: ask for 10 labels"
    ):
        load_data("digits", labels=3)
    load_data("digits", labels=10)
    with pytest.warns(UserWarning, match=r"labels=True tells no .*: take more rows \(max_rows\)"):
        load_data("digits", labels=True, max_rows=4)


def built_for(classes: int, kind: str) -> tuple[Any, Any]:
    if kind == "conditional":
        context = Labels(classes)
        return linear_conditional(context), MeanField((D,), 2, LINEAR, context=context)
    model = SemiSupervisedVAE((D,), 2, classes, LINEAR, Gaussian(SIGMA))
    return model, SemiSupervised((D,), 2, classes, LINEAR)


@pytest.mark.parametrize("kind", ["conditional", "semi-supervised"])
def test_a_training_names_classes_without_rows(kind: str) -> None:
    x, y = rows()
    options: dict[str, Any] = {"max_epochs": 1, "batch_size": 10}
    if kind == "semi-supervised":
        options["objective"] = SemiSupervisedELBO()
    said = r"no training row is known to be of class 0 \('(c|labels)'\), .* subtract 1 .* for 3 classes"
    with pytest.warns(PairWarning, match=said):
        found = fit(*built_for(4, kind), (x, y + 1), **options)
    assert len(found.warnings) == 1
    assert re.search(said, found.warnings[0])
    report = check(*built_for(4, kind), (x, y + 1), objective=options.get("objective"))
    assert report
    assert re.search(said, str(report))
    with pytest.warns(
        PairWarning, match=r"of classes 3 to 6 .*: tell a label of each|.*numpy.uniq"
    ):
        fit(*built_for(7, kind), {"x": x, "c": y, "labels": y}, **options)
    assert fit(*built_for(3, kind), (x, y), **options).warnings == ()
    # All rows count, not those of the first batch.
    sorted_by_class = y.argsort(stable=True)
    ordered = x[sorted_by_class], y[sorted_by_class]
    assert fit(*built_for(3, kind), ordered, **options).warnings == ()
    loader = DataLoader(TensorDataset(*ordered), batch_size=10)
    assert fit(*built_for(3, kind), loader, **options).warnings == ()


def test_no_label_at_all_is_no_warning() -> None:
    x, y = rows()
    assert fit(*semi_supervised(), (x, torch.full_like(y, -1)), max_epochs=1).warnings == ()
    assert fit(*semi_supervised(), x, max_epochs=1).warnings == ()


# -- a classifier that labels do not train ---------------------------------------------------------------


class WithScores(Objective):
    """An objective of a user, which may have the term."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return SemiSupervisedELBO()(*args, **kwargs)


PLAIN: list[Callable[[], Any]] = [
    lambda: None,
    ELBO,
    EnumELBO,
    TraceELBO,
    lambda: ImportanceWeightedELBO(num_particles=2),
    lambda: pyro.infer.TraceEnum_ELBO(),
]


@pytest.mark.parametrize("make", PLAIN)
def test_labels_that_do_not_train_the_classifier_are_warned_of(make: Any) -> None:
    """Its gradient is exactly 0 where all labels are known; the warning says once what to type."""
    x, y = rows()
    y[:10] = -1
    model, guide = semi_supervised()
    said = (
        r"the 20 of 30 rows with a label do not train the classifier q\(y \| x\) of SemiSupervised: .*"
        r"objective=(SemiSupervisedELBO\(classification=100 \* 30 / 20\))"
    )
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = fit(model, guide, (x, y), objective=make(), max_epochs=2, batch_size=10)
    assert sum(re.search(said, str(each.message)) is not None for each in told) == 1
    (text,) = (text for text in found.warnings if "classifier" in text)
    typed = re.search(said, text)
    assert typed is not None
    objective = eval(typed[1], vars(objectives) | {"SemiSupervisedELBO": SemiSupervisedELBO})
    assert objective.classification == 150.0
    assert fit(model, guide, (x, y), objective=objective, max_epochs=1).warnings == ()
    assert re.search(said, str(check(model, guide, (x, y), objective=make())))


def test_the_warning_is_of_labels_and_of_plain_objectives_alone() -> None:
    x, y = rows()
    known = semi_supervised()
    before = [p.detach().clone() for p in known[1].classifier.parameters()]
    with pytest.warns(PairWarning, match="the 30 of 30 rows with a label"):
        fit(*known, (x, y), max_epochs=3)
    after = known[1].classifier.parameters()
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))  # as it says
    for objective in (SemiSupervisedELBO(), SemiSupervisedELBO(classification=0.0), WithScores()):
        assert fit(*semi_supervised(), (x, y), objective=objective, max_epochs=1).warnings == ()
    loader = DataLoader(TensorDataset(x, y), batch_size=15)
    with pytest.warns(PairWarning, match="the 15 of 15 rows with a label"):
        fit(*semi_supervised(), loader, max_epochs=1)
    pair = linear_conditional(Labels(CLASSES)), MeanField((D,), 2, LINEAR, context=Labels(CLASSES))
    assert fit(*pair, (x, y), max_epochs=1).warnings == ()


@pytest.mark.filterwarnings("always::ppl_vae.checks.PairWarning")
def test_the_command_line_says_both(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ppl_vae.cli.finish.draw_run", lambda *_, **__: [])
    file = saved(tmp_path, np.array([0, 5, 9])[WHOLE])
    command = ["train", "--data", str(file), "--labels", "9", "--model", "SemiSupervisedVAE"]
    plain = (
        "--objective",
        "ELBO",
        "--posterior",
        "never",
        "--report=false",
        *SMALL,
        *SMALL_NETWORK,
    )
    run = tmp_path / "run"
    assert main([*command, *plain, "--run_dir", str(run)]) == 0
    told = " ".join(capsys.readouterr().err.split())
    assert told.count("classes 1 to 4 and 6 to 8") == 1
    assert told.count("--objective SemiSupervisedELBO on the command line") == 1
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"]["init_args"]["classes"] == 10
    assert main(["sample", str(run), "--num", "2", "-o", str(tmp_path / "some.npz")]) == 0
    assert "classes 1 to 4" not in capsys.readouterr().err


def test_a_label_for_a_model_of_attributes_is_explained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was told to train a ConditionalVAE, which it is."""
    file, run = saved(tmp_path, WHOLE + 0.5), tmp_path / "run"
    command = ["train", "--data", str(file), "--labels", "true", "--model", "ConditionalVAE"]
    with patch("ppl_vae.cli.finish.draw_run", return_value=[]):
        assert main([*command, *SMALL, *SMALL_NETWORK, "--run_dir", str(run)]) == 0
    capsys.readouterr()
    output = ("--num", "4", "-o", str(tmp_path / "some.npz"))
    assert main(["sample", str(run), "--label", "1", *output]) == 2
    told = " ".join(capsys.readouterr().err.split())
    assert "ConditionalVAE was trained with c of the rows, and these are no labels" in told
    assert "train a ConditionalVAE" not in told
    typed = re.search(r"ppl_vae\.sample\(.*?\}\)", told)
    assert typed is not None
    data = load_data(file, labels=True)
    names = {"model": load_run(run).model, "n": 4, "x": data.test}
    code = typed[0].replace("...", "torch.ones(4, 1)")
    assert eval(code, {"ppl_vae": ppl_vae, "torch": torch}, names).shape == (4, 4)
    assert main(["sample", str(run), *output]) == 0
    assert "with what the test rows come with, in turn" in capsys.readouterr().err


# -- labels that most batches have none of ---------------------------------------------------------------


def test_labels_that_most_batches_lack_are_warned_of() -> None:
    """Until the rows with a label are repeated; what other objectives make of them is not known."""
    x, y = rows()
    y[[i for i in range(30) if i not in {int((y == c).int().argmax()) for c in range(3)}]] = -1
    pair = semi_supervised()
    how: dict[str, Any] = {"objective": SemiSupervisedELBO(), "max_epochs": 1, "progress": False}
    said = (
        "3 of 30 rows have a label, so that most batches of 6 rows have none, .*oversample_labelled"
    )
    with pytest.warns(PairWarning, match=said):
        found = fit(*pair, (x, y), batch_size=6, **how)
    assert len(found.warnings) == 1
    assert "weigh the labels less" not in found.warnings[0]
    heavy = how | {"objective": SemiSupervisedELBO(classification=100.0)}
    with pytest.warns(PairWarning, match=r"--objective\.classification 10"):
        fit(*pair, (x, y), batch_size=6, **heavy)
    report = check(*pair, (x, y), objective=SemiSupervisedELBO(), batch_size=6)
    assert re.search(said, str(report))
    assert "most batches" not in str(check(*pair, (x, y), objective=SemiSupervisedELBO()))
    # One of ten rows: two of three batches of ten have one, and one of two batches of seven.
    assert fit(*pair, (x, y), batch_size=10, **how).warnings == ()
    repeated = oversample_labelled(x, y, share=0.2)
    assert fit(*pair, repeated, batch_size=6, **how).warnings == ()
    assert fit(*pair, (x, y), batch_size=6, **(how | {"objective": WithScores()})).warnings == ()
