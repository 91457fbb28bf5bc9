"""What makes rows for wanted labels: a model with labels, or a model or a density of codes for each class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ppl_vae.evaluation import PriorGuide
from ppl_vae.pairs import DataArguments, DataLike, Pair, Program, as_tensor
from ppl_vae.runtime import classes_in_words, described, empty_classes, require_flags
from ppl_vae.tasks.labelled_rows import LabelledRows
from ppl_vae.tasks.sampling import sample
from ppl_vae.training import refit_prior

Generator = Callable[[Tensor], Any]
"""Maps labels `(n,)` to one row for each, `(n, *shape)`."""


def class_conditional(
    model: Program,
    *,
    name: str | None = None,
    like: DataLike | None = None,
    means: bool = False,
) -> Generator:
    """A generator of a model that is given labels: x ~ p(x | z, label) with z ~ p(z).

    Args:
        model: Pyro program that takes rows and their labels, such as a trained `ConditionalVAE`.
        name: The argument of the model that holds the labels; by default the one that it takes beside the
            rows. Or a latent, if labels are one: `"y"` for a `SemiSupervisedVAE`.
        like: Some rows and labels to call the model with; a model with a `data_shape`, as ours have, needs
            none.
        means: Whether rows are E[x | z, label], not draws of x: without the noise of the likelihood.

    Returns:
        A function of labels `(n,)` that draws a row for each, `(n, *shape)`, by torch's global generator.

    Raises:
        TypeError: There is no name, and the model does not take rows and one more argument.

    Example:
        >>> from ppl_vae.models import ConditionalVAE
        >>> model = ConditionalVAE((1, 8, 8), latent_dim=2)
        >>> class_conditional(model)(torch.tensor([3, 3, 7])).shape
        torch.Size([3, 1, 8, 8])
    """
    require_flags(means=means)
    place = _argument_of_labels(model) if name is None else name

    def generator(labels: Tensor) -> Any:
        return sample(
            model, len(labels), like=like, given={place: labels}, means=means, progress=False
        )

    return generator


def _argument_of_labels(model: Program) -> str:
    """The name of what a model takes beside the rows.

    Raises:
        TypeError: It is not one argument, or may be left out.
    """
    takes = DataArguments.of(Pair.of(model, PriorGuide(model)))
    if takes.names is None or len(takes.names) != 2:
        given = "any number of arguments" if takes.names is None else ", ".join(takes.names)
        raise TypeError(
            f"a class-conditional model takes rows and labels, model(x, y), but {described(model)} takes "
            f"{given}: name what holds the labels, class_conditional(model, name=...), or write a function of "
            "labels"
        )
    if takes.required < 2:
        raise TypeError(
            f"{described(model)} takes {takes.names[1]}, which may be left out, so that the class is drawn: "
            "name the latent, class_conditional(model, name='y')"
        )
    return takes.names[1]


def model_per_class(
    models: Sequence[Program], *, like: DataLike | None = None, means: bool = False
) -> Generator:
    """A generator of one model for each class: the first model draws the rows of label 0, and so on.

    Args:
        models: Pyro programs of p(x, z), each trained on the rows of its class.
        like: Some rows to call the models with; models with a `data_shape`, as ours have, need none.
        means: Whether rows are E[x | z], not draws of x.

    Returns:
        A function of labels `(n,)` that draws a row for each, `(n, *shape)`, by torch's global generator.

    Raises:
        ValueError: There are fewer than two models; when it is called, a label has none.

    Example:
        >>> from ppl_vae.models import ProbabilisticPCA
        >>> models = [ProbabilisticPCA((3,), latent_dim=2) for _ in range(4)]
        >>> model_per_class(models)(torch.tensor([3, 0, 3])).shape
        torch.Size([3, 3])
    """
    require_flags(means=means)
    models = [*models]
    if len(models) < 2:
        raise ValueError(
            f"models must hold one model for each of two classes or more, got {len(models)}"
        )

    def generator(labels: Tensor) -> Any:
        outside = labels[(labels < 0) | (labels >= len(models))]
        if len(outside):
            raise ValueError(
                f"models has one for each label from 0 to {len(models) - 1}, but label {int(outside[0])} is "
                "wanted: give a model for each class"
            )
        drawn: Tensor | None = None
        for label in labels.unique().tolist():
            places = labels == label
            count = int(places.sum())
            rows = as_tensor(sample(models[label], count, like=like, means=means, progress=False))
            if drawn is None:
                drawn = torch.empty(len(labels), *rows.shape[1:], dtype=rows.dtype)
            drawn[places] = rows
        return drawn

    return generator


def prior_per_class(
    model: Any,
    guide: Program,
    train: Any,
    prior: Any,
    *,
    num_draws: int = 10,
    means: bool = False,
    seed: int | None = None,
) -> Generator:
    """A generator of a pair that knows no labels: z ~ p_y(z), a density for each class, and x ~ p(x | z).

    p_y is fitted by `refit_prior` to what the guide makes of the rows with the label y. The decoder stays as it
    is, one for all classes. If decoder and guide are linear and lose nothing, draws of a class have the density
    that the same family has if it is fitted to the rows of the class themselves, and the noise of p(x | z).

    Args:
        model: The model; its `model.prior` is the module whose `forward()` is p(z).
        guide: The guide, which reads rows alone.
        train: Rows and their labels, `(x, y)`: whole numbers `(n,)` from 0 without gaps, -1 where a label is
            hidden.
        prior: What is fitted for each class, such as `FullNormal()` or `MixturePrior(5)`.
        num_draws: Draws from each row's q(z | x).
        means: Whether rows are E[x | z], not draws of x.
        seed: Seed of the draws and of the fits; None draws from torch's global generator.

    Returns:
        A function of labels `(n,)` that draws a row for each, `(n, *shape)`, by torch's global generator.

    Raises:
        TypeError: An argument is of the wrong kind; as from `refit_prior`.
        ValueError: There is not one label for each row, a class has no rows, or there is one class only; as
            from `refit_prior`.
        PairError: The guide needs the labels, or fails on the rows.

    Example:
        >>> from ppl_vae.guides import DeltaEncoder
        >>> from ppl_vae.models import Autoencoder, FullNormal
        >>> pair = Autoencoder((3,), 2, linear=True), DeltaEncoder((3,), 2, linear=True)
        >>> train = torch.randn(100, 3), torch.arange(100) % 2
        >>> prior_per_class(*pair, train, FullNormal())(torch.tensor([1, 0, 1])).shape
        torch.Size([3, 3])
    """
    require_flags(means=means)
    rows = LabelledRows.of("train", train, Pair.of(model, guide))
    if gaps := empty_classes(rows.labels, rows.classes):
        raise ValueError(
            f"train: no row is of {classes_in_words(gaps)}, but labels reach to {rows.classes - 1}: give rows "
            "of each class, to which a density of its codes can be fitted"
        )
    models = [
        refit_prior(
            *(model, guide, rows.rows((rows.labels == label).nonzero().flatten()), prior),
            num_draws=num_draws,
            seed=seed,
            progress=False,
        )
        for label in range(rows.classes)
    ]
    return model_per_class(models, means=means)
