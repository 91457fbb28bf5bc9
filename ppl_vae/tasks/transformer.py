"""PairTransformer: a pair as a scikit-learn transformer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from ppl_vae.evaluation import evaluate
from ppl_vae.pairs import (
    DISTORTION,
    Batch,
    DataArguments,
    Pair,
    PairError,
    Program,
    SomeArguments,
    as_tensor,
    take_rows,
)
from ppl_vae.runtime import described, preserve_random_state
from ppl_vae.tasks.categories import expected
from ppl_vae.tasks.encoding import encode
from ppl_vae.tasks.ends import discrete_latents
from ppl_vae.tasks.sampling import sample
from ppl_vae.training import fit

MakePair = Callable[[tuple[int, ...]], tuple[Program, Program]]
"""From the shape of one row, a model and a guide with new parameters."""

_LABELS = ("y", "labels")
"""What the argument for labels is called, where there are several."""


class PairTransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Trains a pair in `fit` and gives posterior means in `transform`, as scikit-learn's pipelines need it.

    A pair that takes one more argument beside the rows, whatever its name, is trained with `y`: for labels,
    numbers from 0, -1 where a label is hidden. A `SemiSupervisedVAE` then transforms X alone; give its
    objective in `fit_options`. For a `ConditionalVAE`, whose guide needs the labels, there is no `transform`:
    use `ppl_vae.encode` with `model_` and `guide_`. A pair that takes the rows alone does not use `y`.

    Args:
        make_pair: A function from the shape of one row to a model and a guide, which is called for each `fit`.
            In a script, define it with `def`, so that the transformer can be pickled.
        row_shape: Shape of one row for the pair, such as `(1, 28, 28)`; None is `(features,)`, as in the table.
        max_epochs: Passes over the rows.
        learning_rate: Step size of Adam.
        batch_size: Rows of a step.
        random_state: Seed of the weights, the order of the rows and all draws: an int, a generator of numpy,
            or None.
        fit_options: More options of `ppl_vae.fit`, such as `{"objective": ELBO(beta=4.0)}`.

    Attributes:
        model_: The trained model.
        guide_: The trained guide.
        fit_: What `ppl_vae.fit` returned.
        latents_: Name and shape of each latent site; `transform` puts them side by side.
        n_features_in_: Columns of the table.

    Example:
        >>> from sklearn.linear_model import LogisticRegression
        >>> from sklearn.pipeline import make_pipeline
        >>> from ppl_vae.guides import MeanField
        >>> from ppl_vae.likelihoods import Gaussian
        >>> from ppl_vae.models import VAE
        >>> def make_pair(shape):
        ...     return VAE(shape, latent_dim=2, likelihood=Gaussian()), MeanField(shape, latent_dim=2)
        >>> rows, labels = np.random.default_rng(0).normal(size=(60, 4)), np.arange(60) % 2
        >>> encoder = PairTransformer(make_pair, max_epochs=2, random_state=0)
        >>> pipeline = make_pipeline(encoder, LogisticRegression()).fit(rows, labels)
        >>> pipeline[:-1].transform(rows).shape, encoder.get_feature_names_out().tolist()
        ((60, 2), ['pairtransformer0', 'pairtransformer1'])
    """

    def __init__(
        self,
        make_pair: MakePair,
        *,
        row_shape: Sequence[int] | None = None,
        max_epochs: int = 100,
        learning_rate: float = 1e-3,
        batch_size: int = 128,
        random_state: Any = None,
        fit_options: dict[str, Any] | None = None,
    ) -> None:
        self.make_pair = make_pair
        self.row_shape = row_shape
        self.max_epochs = max_epochs
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.random_state = random_state
        self.fit_options = fit_options

    def fit(self, X: ArrayLike, y: object = None) -> Self:
        """Builds a new pair and trains it.

        Args:
            X: Rows, `(n, features)`.
            y: Labels, `(n,)`, or attributes, `(n, count)`, for a pair that takes them; not used for one that
                takes the rows alone.

        Raises:
            TypeError: `make_pair` is no function, or an option is given twice; or the pair takes several
                arguments beside the rows, or any number of them, so that it is unclear which one y is.
            ValueError: The rows are not finite numbers, or do not fit `row_shape`; or the pair needs labels,
                and there is no number for each row.
            PairError: The programs do not fit the rows.
        """
        if not callable(self.make_pair):
            raise TypeError(
                "make_pair must be a function from the shape of a row to a model and a guide, got "
                f"{described(self.make_pair)}"
            )
        options = self.fit_options or {}
        if twice := sorted(options.keys() & self.get_params().keys()):
            raise TypeError(
                f"fit_options holds {', '.join(twice)}: give that to PairTransformer itself"
            )
        rows = self._rows(X, reset=True)
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        with preserve_random_state():
            torch.manual_seed(seed)
            model, guide = self.make_pair(tuple(rows.shape[1:]))
        batch = self._with_labels(model, guide, rows, y)
        self.fit_ = fit(
            model,
            guide,
            batch,
            max_epochs=self.max_epochs,
            learning_rate=self.learning_rate,
            batch_size=self.batch_size,
            seed=seed,
            **({"progress": False} | options),
        )
        self.model_, self.guide_, self._seed = self.fit_.model, self.fit_.guide, seed
        few = take_rows(batch, slice(2))
        means = encode(self.model_, self.guide_, few, seed=seed, progress=False)
        self.latents_ = {name: tuple(mean.shape[1:]) for name, mean in means.items()}
        discrete = partial(discrete_latents, self.model_, self.guide_, few)
        self._discrete, self._categorical = {*discrete()}, {*discrete(categorical=True)}
        self._n_features_out = sum(math.prod(shape) for shape in self.latents_.values())
        return self

    def transform(self, X: ArrayLike) -> NDArray[Any]:
        """Posterior means of the latents, side by side: `(n, dimensions)`; see `encode`.

        Raises:
            PairError: The guide needs more than the rows, such as their labels.
        """
        rows = self._rows(X)
        if names := _needed(DataArguments.of(Pair.of(self.model_, self.guide_))):
            raise PairError(
                f"transform takes X alone, but {_name_of(self.model_)} also needs {', '.join(names)} of "
                "the rows: use ppl_vae.encode(fitted.model_, fitted.guide_, (x, labels))"
            )
        means = encode(self.model_, self.guide_, rows, seed=self._seed, progress=False)
        return np.concatenate([mean.reshape(len(mean), -1).numpy() for mean in means.values()], 1)

    def inverse_transform(self, X: ArrayLike) -> NDArray[Any]:
        """E[x | z] for latents `(n, dimensions)`: rows `(n, features)`.

        Of a latent with categories, whose columns are probabilities, it is the mean over them: for a
        `SemiSupervisedVAE`, sum_y q(y) E[x | z, y].

        Raises:
            ValueError: There are other numbers of latents, or the columns of a latent with categories are no
                probabilities.
            PairError: The model needs more than latents, such as labels; or a latent is discrete and has no
                categories, so that its mean is no value of it.
        """
        check_is_fitted(self)
        name = _name_of(self.model_)
        if needed := _needed(DataArguments.of(Pair.of(self.model_, self.guide_))):
            given = ", ".join(f"'{each}': {each}" for each in (*self.latents_, *needed))
            like = "" if hasattr(self.model_, "data_shape") else ", like=(x, labels)"
            raise PairError(
                f"inverse_transform takes latents alone, but {name} also needs {', '.join(needed)} of the "
                f"rows: use ppl_vae.sample(fitted.model_, n{like}, given={{{given}}}, means=True), with a "
                "value for each of n rows"
            )
        z = as_tensor(check_array(X, dtype=np.float32))
        if z.shape[1] != self._n_features_out:
            raise ValueError(
                f"X has {z.shape[1]} latents per row, but the pair has {self._n_features_out}"
            )
        sizes = [math.prod(shape) for shape in self.latents_.values()]
        latents = {
            name: part.reshape(len(z), *shape)
            for (name, shape), part in zip(self.latents_.items(), z.split(sizes, 1), strict=True)
        }
        for name in self._discrete - self._categorical:
            if bool((latents[name] != latents[name].round()).any()):
                raise PairError(
                    f"the values of latent '{name}' are whole numbers, and transform gives their mean, which "
                    f"is none of them: round the columns of '{name}'"
                )
        found: NDArray[Any] = expected(self._decoded, latents, self._categorical).flatten(1).numpy()
        return found

    def _decoded(self, latents: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """E[x | z] for values of all latents."""
        has_shape = hasattr(self.model_, "data_shape")
        means: torch.Tensor = sample(
            self.model_,
            len(next(iter(latents.values()))),
            like=None if has_shape else torch.zeros(2, *self._row_shape()),
            given=latents,
            means=True,
            seed=self._seed,
            progress=False,
        )
        return means

    def score(self, X: ArrayLike, y: object = None) -> float:
        """The mean ELBO of the rows, in nats per row: the higher, the better.

        Of a pair that has no ELBO, as an autoencoder's p(z) is improper, minus the distortion; where the
        guide gives points, log p(x, z) at them.

        Args:
            X: Rows, `(n, features)`.
            y: As in `fit`; with labels, the ELBO is that of log p(x, y), or of log p(x | y).
        """
        rows = self._rows(X)
        found = evaluate(
            self.model_,
            self.guide_,
            self._with_labels(self.model_, self.guide_, rows, y),
            num_samples=100,
            method="guide",
            seed=self._seed,
            progress=False,
        )
        return -found.distortion.mean if found.measure is DISTORTION else found.elbo.mean

    def _with_labels(self, model: Program, guide: Program, rows: torch.Tensor, y: object) -> Batch:
        """What the pair is called with: the rows, and their labels if it takes labels.

        Raises:
            TypeError: There are labels, and it is unclear for which argument.
            ValueError: It needs labels, and there is no number for each row.
        """
        takes = DataArguments.of(Pair.of(model, guide))
        needed = _needed(takes)
        if y is None:
            if not needed:
                return rows
            raise ValueError(
                f"{_name_of(model)} takes {', '.join(needed)} beside the rows: fit and score pass it y, the "
                "labels of the rows"
            )
        place = _place_of_labels(_name_of(model), takes)
        if place is None:
            return rows
        labels = np.asarray(y)
        if labels.dtype.kind not in "iufb" or labels.shape[:1] != (len(rows),):
            raise ValueError(
                f"y must hold a number for each of {len(rows)} rows, a label from 0 or -1 where it is hidden, "
                f"got an array of shape {labels.shape} and type {labels.dtype}; scikit-learn's LabelEncoder "
                "numbers other labels"
            )
        if labels.dtype.kind == "u":  # of which torch computes with few
            labels = labels.astype(np.int64)
        return SomeArguments.at([0, place], [rows, as_tensor(labels)])

    def _rows(self, x: ArrayLike, reset: bool = False) -> torch.Tensor:
        """The rows as the pair takes them, `(n, *row_shape)`."""
        if not reset:
            check_is_fitted(self)
        least = 2 if reset else 1
        table = validate_data(self, x, dtype=np.float32, reset=reset, ensure_min_samples=least)
        shape = self._row_shape()
        if math.prod(shape) != table.shape[1]:
            raise ValueError(
                f"X has {table.shape[1]} features, but row_shape = {shape} has {math.prod(shape)} numbers"
            )
        return as_tensor(table).reshape(-1, *shape)

    def _row_shape(self) -> tuple[int, ...]:
        return (self.n_features_in_,) if self.row_shape is None else tuple(self.row_shape)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags


def _name_of(model: Program) -> str:
    """The name of a function, or of an object's class."""
    return str(getattr(model, "__name__", type(model).__name__))


def _needed(takes: DataArguments) -> tuple[str, ...]:
    """The names of what a pair needs beside the rows."""
    return (takes.names or ())[1 : takes.required]


def _place_of_labels(model: str, takes: DataArguments) -> int | None:
    """The number of the argument that is given y; None for a pair that takes the rows alone.

    It is the only one that is needed, or else the only one that there is, or the only one named as labels are.

    Raises:
        TypeError: There are several, or it cannot be given.
    """
    one = "write model(x, y=None), and the guide likewise"
    if takes.names is None:
        raise TypeError(
            f"{model} takes any number of arguments, so that it is unclear whether y is one: {one}"
        )
    if hidden := [name for name in takes.by_keyword if name in _LABELS]:
        raise TypeError(
            f"{model} takes {hidden[0]} by keyword alone (it stands after *), but programs are called with "
            f"their data by position, so that y would be lost: {one}"
        )
    names, needed = takes.names[1:], _needed(takes)
    named = [name for name in names if name in _LABELS]
    for candidates in (needed, names, named):
        if len(needed) < 2 and len(candidates) == 1:
            return 1 + names.index(candidates[0])
    if not names:
        return None
    raise TypeError(
        f"{model} takes {', '.join(names)} beside the rows, and PairTransformer has y alone: train such a pair "
        "with ppl_vae.fit, or let make_pair return programs of the rows and one more argument"
    )
