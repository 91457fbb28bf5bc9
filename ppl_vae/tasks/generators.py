"""What makes rows for wanted labels: a model that is given labels, or a model for each class."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ppl_vae.evaluation import PriorGuide
from ppl_vae.pairs import DataArguments, DataLike, Pair, Program, as_tensor
from ppl_vae.runtime import described, require_flags
from ppl_vae.tasks.sampling import sample

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
