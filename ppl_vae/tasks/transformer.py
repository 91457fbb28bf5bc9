"""PairTransformer: a pair as a scikit-learn transformer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from ppl_vae.evaluation import evaluate
from ppl_vae.networks import Context
from ppl_vae.pairs import DataArguments, Pair, PairError, Program, take_rows
from ppl_vae.runtime import described, preserve_random_state
from ppl_vae.tasks.encoding import encode
from ppl_vae.tasks.sampling import sample
from ppl_vae.training import fit

MakePair = Callable[[tuple[int, ...]], tuple[Program, Program]]
"""From the shape of one row, a model and a guide with new parameters."""


class PairTransformer(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Trains a pair in `fit` and gives posterior means in `transform`, as scikit-learn's pipelines need it.

    A pair that takes labels beside the rows is trained with `y`: numbers from 0, -1 where a label is hidden. A
    `SemiSupervisedVAE` then transforms X alone; give its objective in `fit_options`. For a `ConditionalVAE`,
    whose guide needs the labels, there is no `transform`: use `ppl_vae.encode` with `model_` and `guide_`.

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
            y: Labels, `(n,)`, or attributes, `(n, count)`, for a pair that takes them; otherwise not used.

        Raises:
            TypeError: `make_pair` is no function, or an option is given twice.
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
        self._n_features_out = sum(math.prod(shape) for shape in self.latents_.values())
        return self

    def transform(self, X: ArrayLike) -> NDArray[Any]:
        """Posterior means of the latents, side by side: `(n, dimensions)`; see `encode`.

        Raises:
            PairError: The guide needs more than the rows, such as their labels.
        """
        rows = self._rows(X)
        names = _arguments(self.model_, self.guide_)[0]
        if names:
            raise PairError(
                f"transform takes X alone, but {type(self.model_).__name__} also needs {', '.join(names)} of "
                "the rows: use ppl_vae.encode(fitted.model_, fitted.guide_, (x, labels))"
            )
        means = encode(self.model_, self.guide_, rows, seed=self._seed, progress=False)
        return np.concatenate([mean.reshape(len(mean), -1).numpy() for mean in means.values()], 1)

    def inverse_transform(self, X: ArrayLike) -> NDArray[Any]:
        """E[x | z] for latents `(n, dimensions)`: rows `(n, features)`.

        Raises:
            ValueError: There are other numbers of latents.
            PairError: A latent has categories, so that its probabilities are no value of it.
        """
        check_is_fitted(self)
        z = torch.as_tensor(check_array(X, dtype=np.float32))
        if z.shape[1] != self._n_features_out:
            raise ValueError(
                f"X has {z.shape[1]} latents per row, but the pair has {self._n_features_out}"
            )
        sizes = [math.prod(shape) for shape in self.latents_.values()]
        given = {
            name: part.reshape(len(z), *shape)
            for (name, shape), part in zip(self.latents_.items(), z.split(sizes, 1), strict=True)
        }
        like = torch.zeros(2, *self._row_shape())
        means = sample(
            self.model_,
            len(z),
            like=None if hasattr(self.model_, "data_shape") else like,
            given=given,
            means=True,
            seed=self._seed,
            progress=False,
        )
        found: NDArray[Any] = means.flatten(1).numpy()
        return found

    def score(self, X: ArrayLike, y: object = None) -> float:
        """The mean ELBO of the rows, in nats per row: the higher, the better.

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
        return found.elbo.mean

    def _with_labels(
        self, model: Program, guide: Program, rows: torch.Tensor, y: object
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """What the pair is called with: the rows, and their labels if it takes labels.

        Raises:
            ValueError: It needs labels, and there is no number for each row.
        """
        required, optional = _arguments(model, guide)
        if not required and (y is None or not optional):
            return rows
        if y is None or len(required) > 1:
            raise ValueError(
                f"{type(model).__name__} takes {', '.join(required)} beside the rows: fit and score pass it y, "
                "the labels of the rows"
            )
        labels = np.asarray(y)
        if labels.dtype.kind not in "iufb" or labels.shape[:1] != (len(rows),):
            raise ValueError(
                f"y must hold a number for each of {len(rows)} rows, a label from 0 or -1 where it is hidden, "
                f"got an array of shape {labels.shape} and type {labels.dtype}; scikit-learn's LabelEncoder "
                "numbers other labels"
            )
        return rows, torch.as_tensor(labels)

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
        return torch.as_tensor(table).reshape(-1, *shape)

    def _row_shape(self) -> tuple[int, ...]:
        return (self.n_features_in_,) if self.row_shape is None else tuple(self.row_shape)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float32"]
        return tags


def _arguments(model: Program, guide: Program) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names of the arguments beside the rows that a pair needs, and of labels that it may be given."""
    found = DataArguments.of(Pair.of(model, guide))
    names = found.names or ()
    required, others = names[1 : found.required], names[max(1, found.required) :]
    has_labels = isinstance(getattr(model, "context", None), Context)
    optional = others[:1] if has_labels or others[:1] in (("y",), ("labels",)) else ()
    return required, optional
