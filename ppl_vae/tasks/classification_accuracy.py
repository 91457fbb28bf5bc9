"""classification_accuracy_score(): are generated rows as good as real ones to learn the classes from?"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ppl_vae.pairs import as_tensor, is_array
from ppl_vae.runtime import (
    HIDDEN,
    apart_from_data,
    classes_in_words,
    described,
    digest,
    empty_classes,
    preserve_random_state,
    progress_bar,
    require_count,
    require_progress,
    require_seed,
    resolve_device,
    seed_everything,
)
from ppl_vae.tasks.classification_result import ClassificationAccuracy
from ppl_vae.tasks.classifiers import Trainer
from ppl_vae.tasks.generators import class_conditional

Labeled = tuple[Tensor, Tensor]
"""Rows and their labels."""

_NUMBER_ANEW = (
    "number the labels anew, from 0 without gaps: numpy.unique(y, return_inverse=True)[1]"
)

_OTHER_UNITS = 10.0
"""Ratio of the largest numbers beyond which generated rows look as if they were in other units."""


def classification_accuracy_score(
    generator: Any,
    train: Any,
    test: Any,
    *,
    classifier: Any = None,
    seeds: int = 5,
    seed: int = 0,
    reference: ClassificationAccuracy | None = None,
    device: str = "auto",
    progress: bool | None = None,
) -> ClassificationAccuracy:
    """The accuracy, on real test rows, of a classifier that was trained on generated rows alone.

    A row is generated for each label of the real training rows, once. Classifiers are trained on the
    generated rows, and as many on the real ones, with the same seeds and settings. If x ~ p(x | y) is
    that of the data, both have the same accuracy but for chance; classes that are confused, and modes that are
    left out, cost accuracy. Noise that does not hide the class costs little, so the score does not say how real
    rows look. (Ravuri & Vinyals, "Classification Accuracy Score for Conditional Generative Models",
    arXiv:1905.10887; Razavi, van den Oord & Vinyals, "Generating Diverse High-Fidelity Images with VQ-VAE-2",
    arXiv:1906.00446.)

    The standard errors are those of means over test rows and over seeds, both of which are random
    (`ppl_vae.stats.CrossedEstimate`); that of the difference is paired by row and seed. They do not say how
    much another draw of the generated rows, or other real training rows, would change: call again with another
    `seed` for other generated rows.

    The training of the default classifier has a fixed length. Test rows are used for nothing but accuracies.

    Args:
        generator: A function that maps labels `(n,)`, int64, to one row for each, `(n, *shape)`; it is called
            once, and may draw by torch's, numpy's or Python's global generator. Or a trained pair
            `(model, guide)` of rows and labels, such as a `ConditionalVAE` and its guide: see
            `ppl_vae.tasks.class_conditional`. Or rows that are there already, `(rows, labels)`, such as
            reconstructions: they need the class counts of `train`.
        train: Real rows and their labels, `(x, y)`: `x` is `(n, *shape)`, `y` whole numbers `(n,)` from 0
            without gaps, such as `load_data(..., labels=True).train`.
        test: Real rows and labels for the accuracies.
        classifier: None is `NetworkClassifier()`: convolutions for pictures, an MLP for vectors. Or one with
            other settings; or an estimator with `fit` and `predict`, such as those of scikit-learn, which is
            copied and gets the seed as its `random_state`; or a function of a seed that makes one. Estimators
            read rows as flat arrays of numpy, `(n, numbers)`.
        seeds: How many classifiers are trained on each set.
        seed: Seed of the generated rows, and of the first classifier; those that follow have the next seeds.
        reference: An earlier result with the same `train`, `test`, classifier and seeds, whose classifiers of
            real rows are taken over: they are not trained again.
        device: Where networks are trained: `auto` (a CUDA GPU if there is one, otherwise the CPU), `cpu`,
            `cuda`, ...
        progress: Whether to show a progress bar; None shows it on a terminal.

    Returns:
        Accuracies by seed, row and class, beside those of real rows.

    Raises:
        TypeError: An argument is of the wrong kind.
        ValueError: Labels are hidden, have gaps, or do not fit to `train`; there is one class only; rows are
            not finite or have another shape than those of `train`; the generated rows have other class counts;
            or `reference` belongs to other data or settings.

    Example:
        >>> from sklearn.linear_model import LogisticRegression
        >>> def two_normals(y):
        ...     return torch.randn(len(y), 2) + 2.0 * y[:, None]
        >>> torch.manual_seed(0)
        <torch._C.Generator object at ...>
        >>> y = torch.arange(500) % 2
        >>> train, test = (two_normals(y), y), (two_normals(y), y)
        >>> found = classification_accuracy_score(
        ...     two_normals, train, test, classifier=LogisticRegression(), seeds=2
        ... )
        >>> found.accuracy  # the best is Phi(sqrt(2)) = 92.1 %
        CrossedEstimate(92.20 ± 1.20 %, 2 repeats, 500 rows)
    """
    require_count("seeds", seeds)
    require_seed(seed)
    require_progress(progress)
    if reference is not None and not isinstance(reference, ClassificationAccuracy):
        raise TypeError(
            "reference must be what classification_accuracy_score has returned, got "
            f"{described(reference)}"
        )
    real, y = _training_rows(train)
    shape, classes = tuple(real.shape[1:]), 1 + int(y.max())
    rows, labels = _test_rows(test, shape, classes)
    trainer = Trainer.of(classifier, real, resolve_device(device))
    numbers = tuple(range(int(seed), int(seed) + int(seeds)))
    key = f"{digest([real, y, rows, labels])} {numbers} {trainer.description}"
    if reference is not None:
        _require_same(reference, key)
    with preserve_random_state():
        seed_everything(apart_from_data(seed))
        made, its_labels = _generated(generator, real, y)
        work = int(seeds) * (2 if reference is None else 1)
        with progress_bar(work, "classification accuracy", "classifier", progress) as bar:

            def correct(x: Tensor, its: Tensor) -> Tensor:
                found = []
                for each in numbers:
                    found.append(trainer.train(x, its, each)(rows) == labels)
                    bar.update(1)
                return torch.stack(found)

            of_generated = correct(made, its_labels)
            of_real = correct(real, y) if reference is None else reference.real_correct
    return ClassificationAccuracy(
        of_generated,
        of_real,
        labels,
        y.bincount(minlength=classes),
        numbers,
        trainer.description,
        key,
        notes=_notes(of_generated, of_real),
        cautions=_units(made, real),
    )


def _notes(of_generated: Tensor, of_real: Tensor) -> tuple[str, ...]:
    notes = [
        "the errors are over test rows and seeds of the classifier; other draws of the training rows would "
        "change the accuracies, too"
    ]
    share = float(of_generated.double().mean())
    if share in (0, 1):
        notes.append(
            f"all test rows are {'right' if share else 'wrong'}, which leaves no spread: of other rows, up to "
            f"{min(1.0, 3 / of_generated.shape[1]):.1%} may not be (95 %)"
        )
    alike = all(bool((each == each[0]).all()) for each in (of_generated, of_real))
    if alike and len(of_generated) > 1:
        notes.append("all seeds gave the same: the classifier draws nothing, and seeds=1 would do")
    return tuple(notes)


def _units(made: Tensor, real: Tensor) -> tuple[str, ...]:
    """A caution, if generated rows hold far larger or far smaller numbers than real ones."""
    theirs, ours = (float(x.abs().max()) for x in (made, real))
    if ours / _OTHER_UNITS <= theirs <= ours * _OTHER_UNITS:
        return ()
    return (
        f"the numbers of generated rows reach to {theirs:.3g}, those of train to {ours:.3g}: make sure that "
        "both are in the same units, such as intensities from 0 to 1",
    )


def _training_rows(train: Any) -> Labeled:
    """The real training rows and their labels.

    Raises:
        ValueError: A class has no rows, or there is one class only.
    """
    x, y = _rows_and_labels("train", train)
    classes = 1 + int(y.max())
    if gaps := empty_classes(y, classes):
        raise ValueError(
            f"train: no row is of {classes_in_words(gaps)}, but labels reach to {classes - 1}: give rows of "
            f"each class, or {_NUMBER_ANEW}"
        )
    if classes == 1:
        raise ValueError(
            "train: all rows are of class 0, so that there is nothing to tell apart: give rows of two classes "
            "or more"
        )
    return x, y


def _test_rows(test: Any, shape: tuple[int, ...], classes: int) -> Labeled:
    """The test rows and their labels.

    Raises:
        ValueError: They do not fit to the training rows.
    """
    x, y = _rows_and_labels("test", test)
    _require_shape("test", "rows", x, shape)
    if int(y.max()) >= classes:
        raise ValueError(
            f"test: a row has the label {int(y.max())}, but those of train are 0 to {classes - 1}: leave such "
            "rows out, or give training rows of each class"
        )
    return x, y


def _generated(generator: Any, real: Tensor, y: Tensor) -> Labeled:
    """The generated rows and their labels.

    Raises:
        TypeError: The generator is none.
        ValueError: Its rows do not have the shape or the class counts of the real ones, or are not finite.
    """
    shape = tuple(real.shape[1:])
    two = isinstance(generator, (tuple, list)) and len(generator) == 2
    if two and all(callable(each) and not is_array(each) for each in generator):
        generator = class_conditional(generator[0], like=(real[:2], y[:2]))
        two = False
    if two:
        x, labels = _rows_and_labels("generator", generator)
        _require_shape("generator", "generated rows", x, shape)
        _require_counts(labels, y)
        return x, labels
    if not callable(generator):
        raise TypeError(
            "generator must be a function of labels, a trained pair (model, guide) of rows and labels, or "
            f"generated (rows, labels), got {described(generator)}"
        )
    x = _as_rows("generator", generator(y.clone()))
    if len(x) != len(y):
        raise ValueError(
            f"generator: {len(y)} labels were given, and {len(x)} rows came: expected one row for each label, "
            f"{(len(y), *shape)}"
        )
    _require_shape("generator", "generated rows", x, shape)
    _require_finite("generator", x, y)
    return x, y


def _rows_and_labels(name: str, given: Any) -> Labeled:
    """Rows and labels as tensors on the CPU, checked apart from others.

    Raises:
        TypeError: They are no two arrays.
        ValueError: There is not one label for each row, a label is none, or a row is not finite.
    """
    if not isinstance(given, (tuple, list)) or len(given) != 2:
        raise TypeError(
            f"{name} must be rows and their labels, (x, y), got {described(given)}: with load_data, ask for "
            "labels=True"
        )
    x = _as_rows(name, given[0])
    y = as_tensor(given[1], f"{name}[1]").cpu()
    if y.shape != (len(x),):
        raise ValueError(
            f"{name}: {len(x)} rows came with labels of shape {tuple(y.shape)}, expected one label for each "
            f"row, ({len(x)},)" + ": write y.argmax(-1) for one-hot vectors" * (y.dim() == 2)
        )
    if not bool((y == y.round()).all() if y.is_floating_point() else True):
        raise ValueError(
            f"{name}: labels must be whole numbers, but one is {_first_odd(y):g}: {_NUMBER_ANEW}"
        )
    if bool((y < 0).any()):
        hidden = int((y == HIDDEN).sum())
        told = f"{hidden} labels are hidden ({HIDDEN})" if hidden else f"a label is {int(y.min())}"
        raise ValueError(f"{name}: {told}: leave such rows out, as in x[y >= 0], y[y >= 0]")
    _require_finite(name, x, y)
    return x, y.long()


def _first_odd(y: Tensor) -> float:
    return float(y[y != y.round()][0])


def _as_rows(name: str, given: Any) -> Tensor:
    """Rows as a tensor of real numbers on the CPU.

    Raises:
        ValueError: There are none.
    """
    x = as_tensor(given, name if name == "generator" else f"{name}[0]").cpu()
    if x.dim() < 2 or not x.numel():
        raise ValueError(
            f"{name}: expected rows of shape (n, numbers) or (n, *channels, height, width), got "
            f"{tuple(x.shape)}" + ": write x[:, None] for one number per row" * (x.dim() == 1)
        )
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _require_shape(name: str, what: str, x: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(x.shape[1:]) != shape:
        same = x[0].numel() == torch.Size(shape).numel()
        raise ValueError(
            f"{name}: {what} have the shape {tuple(x.shape[1:])}, expected {shape}, that of a row of train"
            + f": write x.reshape(-1, {', '.join(map(str, shape))})" * same
        )


def _require_finite(name: str, x: Tensor, y: Tensor) -> None:
    bad = (~torch.isfinite(x)).reshape(len(x), -1).any(1).nonzero().flatten()
    if len(bad):
        first = int(bad[0])
        raise ValueError(
            f"{name}: {len(bad)} of {len(x)} rows hold NaN or infinite numbers, the first of them row {first}, "
            f"of label {float(y[first]):g}: "
            + (
                "a model that has diverged draws such rows"
                if name == "generator"
                else "leave them out"
            )
        )


def _require_counts(labels: Tensor, y: Tensor) -> None:
    """Refuses generated rows that have other class counts than the real ones."""
    classes = 1 + int(y.max())
    if int(labels.max()) >= classes:
        raise ValueError(
            f"generator: a generated row has the label {int(labels.max())}, but those of train are 0 to "
            f"{classes - 1}"
        )
    there, wanted = labels.bincount(minlength=classes), y.bincount(minlength=classes)
    if bool((there == wanted).all()):
        return
    rule = (
        "the sets that are compared have the same number of rows of each class, so generate a row for each "
        "label of train, generator=(rows, train[1])"
    )
    if gaps := empty_classes(labels, classes):
        raise ValueError(f"generator: no generated row is of {classes_in_words(gaps)}: {rule}")
    first = int((there != wanted).nonzero()[0])
    raise ValueError(
        f"generator: {int(there[first])} generated rows are of class {first}, where train has "
        f"{int(wanted[first])}: {rule}"
    )


def _require_same(reference: ClassificationAccuracy, key: str) -> None:
    if reference.compared_with == key:
        return
    theirs, _, its_settings = reference.compared_with.partition(" ")
    ours, _, settings = key.partition(" ")
    other = "data" if theirs != ours else "settings"
    detail = "" if other == "data" else f" ({its_settings}, here {settings})"
    raise ValueError(
        f"reference is a result of other {other}{detail}: give one with the same train, test, classifier, "
        "seeds and seed, or leave it out"
    )
