"""The classifiers of a classification accuracy: a network with a training of fixed length, or an estimator."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ppl_vae.networks import MLP, Convolutional, Network, linear_head
from ppl_vae.pairs import as_tensor, parts_of
from ppl_vae.runtime import (
    apart_from_data,
    described,
    require_count,
    require_number,
    seed_everything,
)

Predict = Callable[[Tensor], Tensor]
"""The predicted label of each row, `(n,)`."""

_SEEDS = 2**32
"""How many seeds numpy takes, and with it scikit-learn."""

_EXPECTED = (
    "a NetworkClassifier, an estimator with fit and predict such as LogisticRegression(), or a function "
    "of a seed that makes one"
)


@dataclass(frozen=True)
class NetworkClassifier:
    """A network with one output per class, trained by cross entropy for a number of steps.

    Adam with weight decay ("Decoupled Weight Decay Regularization", arXiv:1711.05101), whose steps shrink to 0
    along a cosine. The length is fixed before: nothing stops the training early, and it looks at no other rows.

    Rows are shifted and scaled by the mean and the standard deviation of the real training rows: of all
    numbers of a picture together, of each number of a vector. On one device and with one number of threads, the
    seed says all of it.

    Args:
        network: What the layers below the outputs are built from: its `encoder`. None is `Convolutional()` for
            pictures, `(*channels, height, width)`, and `MLP()` for vectors. `MLP(hidden=())` is logistic
            regression.
        num_steps: Steps of the optimizer.
        batch_size: Rows per step; fewer if there are fewer.
        learning_rate: Size of the first steps.
        weight_decay: Share of the weights, times the learning rate, that a step takes away.

    Raises:
        TypeError: The network has no encoder, a count is no whole number, or a rate no number.
        ValueError: A count is not positive, or a rate is negative.

    Example:
        >>> NetworkClassifier(MLP(hidden=()), num_steps=500, batch_size=100).describe((2,), 1000)
        'MLP(hidden=(), activation=ReLU), 500 steps of 100 rows (50 epochs)'
    """

    network: Network | None = None
    num_steps: int = 2000
    batch_size: int = 128
    learning_rate: float = 1e-3
    weight_decay: float = 0.01

    def __post_init__(self) -> None:
        if self.network is not None and not hasattr(self.network, "encoder"):
            raise TypeError(
                f"NetworkClassifier.network must be a network such as MLP(), got {described(self.network)}"
            )
        require_count("NetworkClassifier.num_steps", self.num_steps)
        require_count("NetworkClassifier.batch_size", self.batch_size)
        for name in ("learning_rate", "weight_decay"):
            value = getattr(self, name)
            require_number(f"NetworkClassifier.{name}", value)
            if not 0 <= value < math.inf:
                raise ValueError(
                    f"NetworkClassifier.{name} must be finite and at least 0, got {value}"
                )

    def describe(self, shape: tuple[int, ...], num_rows: int) -> str:
        """The network and the length of its training, in words."""
        network, size = self._network(shape), min(self.batch_size, num_rows)
        # A switch is told where it is not as usual.
        of: Any = network
        fields = dataclasses.fields(of) if dataclasses.is_dataclass(of) else ()
        usual = {field.name: field.default for field in fields}
        parts = {
            name: v
            for name, v in vars(network).items()
            if v is not None and not (isinstance(v, bool) and v == usual.get(name, False))
        }
        shown = (
            f"{k}={v.__name__ if inspect.isclass(v) else v}"
            for k, v in parts.items()
            if not k.startswith("_")
        )
        epochs = self.num_steps / (num_rows // size)
        return (
            f"{type(network).__name__}({', '.join(shown)}), {self.num_steps} steps of {size} rows "
            f"({epochs:.3g} epochs)"
        )

    def train(
        self,
        x: Tensor,
        y: Tensor,
        seed: int,
        *,
        like: Tensor | None = None,
        device: torch.device | None = None,
    ) -> Predict:
        """Trains a network from new weights.

        Args:
            x: Rows, `(n, *shape)`.
            y: Their labels, `(n,)`; there are as many classes as the largest says.
            seed: Seed of the weights and of the order of the rows, by torch's global generator.
            like: Rows whose mean and standard deviation scale the inputs; `x` by default.
            device: Where to train.

        Returns:
            A function of rows `(m, *shape)`, which gives labels `(m,)` on the CPU.
        """
        shape, classes = tuple(x.shape[1:]), 1 + int(y.max())
        device = torch.device("cpu") if device is None else device
        torch.manual_seed(apart_from_data(seed))
        encoder = self._network(shape).encoder(shape)
        scaled = _Scaled(x if like is None else like)
        net = nn.Sequential(scaled, encoder, linear_head(encoder, classes)).to(device)
        optimizer = torch.optim.AdamW(
            net.parameters(), lr=self.learning_rate, weight_decay=self.weight_decay
        )
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.num_steps)
        size, order = min(self.batch_size, len(x)), torch.empty(0, dtype=torch.long)
        net.train()
        for _ in range(self.num_steps):
            if len(order) < size:  # an epoch has whole batches only
                order = torch.randperm(len(x))
            batch, order = order[:size], order[size:]
            optimizer.zero_grad()
            logits = net(x[batch].to(device, torch.float32))
            nn.functional.cross_entropy(logits, y[batch].to(device)).backward()
            optimizer.step()
            schedule.step()
        net.eval()

        def predict(rows: Tensor) -> Tensor:
            with torch.no_grad():
                parts = [
                    net(rows[part].to(device, torch.float32)).argmax(-1).cpu()
                    for part in parts_of(len(rows), max(size, 512))
                ]
            return torch.cat(parts)

        return predict

    def _network(self, shape: tuple[int, ...]) -> Network:
        if self.network is not None:
            return self.network
        return Convolutional() if len(shape) > 1 else MLP()


class _Scaled(nn.Module):
    """Rows minus a mean, divided by a standard deviation: of all numbers of pictures, of each of a vector.

    Numbers that do not vary are not scaled.
    """

    center: Tensor
    scale: Tensor

    def __init__(self, like: Tensor) -> None:
        super().__init__()
        numbers = like if like.dim() == 2 else like.reshape(-1, 1)
        variance, mean = torch.var_mean(numbers, 0, correction=0)
        self.register_buffer("center", mean.float())
        self.register_buffer("scale", torch.where(variance > 0, variance, 1.0).sqrt().float())

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.center) / self.scale


@dataclass(frozen=True)
class Trainer:
    """Trains one kind of classifier.

    Attributes:
        train: Maps rows, labels and a seed to what predicts labels.
        description: The classifier and the length of its training, in words.
    """

    train: Callable[[Tensor, Tensor, int], Predict]
    description: str

    @classmethod
    def of(cls, classifier: Any, real: Tensor, device: torch.device) -> Trainer:
        """What trains a classifier that a user gave.

        Args:
            classifier: None for the default, a `NetworkClassifier`, an estimator, or a function of a seed that
                makes one.
            real: The real training rows.
            device: Where networks are trained.

        Raises:
            TypeError: It is something else.
        """
        if classifier is None:
            classifier = NetworkClassifier()
        if isinstance(classifier, NetworkClassifier):
            network = classifier

            def train(x: Tensor, y: Tensor, seed: int) -> Predict:
                return network.train(x, y, seed % _SEEDS, like=real, device=device)

            return cls(train, network.describe(tuple(real.shape[1:]), len(real)))
        if inspect.isclass(classifier):
            raise TypeError(
                f"classifier is {described(classifier)}: give {_EXPECTED}, that is, write parentheses, or "
                f"lambda seed: {classifier.__name__}(...)"
            )
        if _is_estimator(classifier):
            return cls(_trained_by(lambda seed: _copy_of(classifier, seed)), _in_words(classifier))
        if not callable(classifier):
            raise TypeError(f"classifier must be {_EXPECTED}, got {described(classifier)}")
        return cls(_trained_by(classifier), described(classifier))


def _trained_by(make: Callable[[int], Any]) -> Callable[[Tensor, Tensor, int], Predict]:
    """Fits an estimator that is made for the seed; rows are flat arrays of numpy, as for scikit-learn."""

    def train(x: Tensor, y: Tensor, seed: int) -> Predict:
        seed_everything(seed % _SEEDS)
        estimator = make(seed % _SEEDS)
        if not _is_estimator(estimator):
            raise TypeError(
                f"classifier: the function made {described(estimator)}, which has no fit and predict; give "
                f"{_EXPECTED}"
            )
        fitted = estimator.fit(_flat(x), y.numpy())
        fitted = estimator if fitted is None else fitted

        def predict(rows: Tensor) -> Tensor:
            return _labels_of(fitted.predict(_flat(rows)), len(rows))

        return predict

    return train


def _flat(x: Tensor) -> np.ndarray[Any, Any]:
    return x.reshape(len(x), -1).cpu().numpy()


def _labels_of(predicted: Any, num_rows: int) -> Tensor:
    """What an estimator predicts, as labels.

    Raises:
        TypeError: They are no numbers.
        ValueError: There is not one for each row.
    """
    found = as_tensor(predicted, "what the classifier predicts")
    if found.shape != (num_rows,):
        hint = ": predict must give labels, as argmax(-1) of probabilities" * (found.dim() == 2)
        raise ValueError(
            f"classifier: predict gave an array of shape {tuple(found.shape)}, expected one label for each "
            f"row, ({num_rows},){hint}"
        )
    return found.cpu()


def _is_estimator(classifier: Any) -> bool:
    return callable(getattr(classifier, "fit", None)) and callable(
        getattr(classifier, "predict", None)
    )


def _copy_of(estimator: Any, seed: int) -> Any:
    """The estimator, not fitted, with the seed in each of its parameters that is called `random_state`."""
    if not hasattr(estimator, "get_params"):
        return copy.deepcopy(estimator)
    from sklearn.base import clone

    fresh: Any = clone(estimator)
    states = [name for name in fresh.get_params() if name.rpartition("__")[2] == "random_state"]
    return fresh.set_params(**dict.fromkeys(states, seed)) if states else fresh


def _in_words(estimator: Any) -> str:
    """An estimator as it was made, if it says it on a line: those of scikit-learn do."""
    shown = " ".join(repr(estimator).split())
    return (
        shown
        if shown.isprintable() and len(shown) < 200 and " at 0x" not in shown
        else described(estimator)
    )
