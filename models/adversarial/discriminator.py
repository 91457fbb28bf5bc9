"""What tells rows from what a model makes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ppl_vae.codes import are_several, from_all
from ppl_vae.networks import (
    Network,
    Rebuildable,
    linear_head,
    require_at_least_one,
    require_data_shape,
    require_object,
)


class Discriminator(Rebuildable, nn.Module):
    """The logit of how surely a row is one of the data, and the features by which it is judged.

        D(x) = sigmoid(logit(x)),    logit(x) = w features(x) + b

    It is the discriminator of `VAEGAN`. A model of your own has one, too, as its attribute `discriminator`, and
    is trained by `VAEGANLoss`, `GANLoss` or `VAEDisLoss`.

    After each epoch `fit` logs two shares. D can tell nothing at 1/3 in VAE/GAN, where there are two kinds of
    false rows, and at 1/2 in a GAN. `accuracy_real` is the share of the rows of the data for which D is above
    that, `accuracy_false` the share of the false rows for which it is below. By chance they add up to 1, and
    to 2 if all rows are told right. Several processes count the rows of all.

    Args:
        network: What builds the trunk, as for a guide.
        data_shape: Shape of one row of the data.
        feature_layer: The hidden layer whose outputs are the features, counted from 1; None takes the last one,
            the output of the trunk. `Convolutional` has one for each of its `channels`, and one that is not
            spatial.

    Attributes:
        counts: Rows of the data and false rows since the epoch began: how many were told right, and how many
            there were, `(2, 2)`.
        waits: Whether what is counted waits for `learn_together`, as the vectors of a `Quantizer` do.

    Raises:
        TypeError: An argument is not what it must be, or `feature_layer` is given, and the trunk is no chain of
            layers.
        ValueError: The trunk has no such layer, or a size in `data_shape` is below 1.

    Example:
        >>> from ppl_vae.networks import MLP
        >>> discriminator = Discriminator(MLP((8, 4)), data_shape=(6,), feature_layer=1)
        >>> logits, features = discriminator(torch.zeros(5, 6))
        >>> logits.shape, features.shape
        (torch.Size([5]), torch.Size([5, 8]))
    """

    counts: Tensor
    waits: bool = False

    def __init__(
        self, network: Network, data_shape: Sequence[int], feature_layer: int | None = None
    ) -> None:
        super().__init__()
        require_data_shape(self, data_shape)
        require_object(self, "network", network, "encoder", "MLP()")
        self.trunk = network.encoder(data_shape)
        self.head = linear_head(self.trunk, 1)
        self.data_shape = tuple(data_shape)
        self._last = None if feature_layer is None else self._place(network, feature_layer)
        self.register_buffer("counts", torch.zeros(2, 2))
        self._waiting: Tensor | None = None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The logits `(*batch,)` and the features `(*batch, ...)` of rows `(*batch, *data_shape)`."""
        if self._last is None:
            features = self.trunk(x)
            return self.head(features).squeeze(-1), features
        batch = x.shape[: x.dim() - len(self.data_shape)]
        chain = self._chain()
        assert chain is not None
        shape: Any = self.trunk.net_shape
        h = x.reshape(batch.numel(), *shape)
        features = h
        for place, layer in enumerate(chain):
            h = layer(h)
            if place == self._last:
                features = h
        logits: Tensor = self.head(h)
        return logits.reshape(batch), features.reshape(*batch, *features.shape[1:])

    def count(self, real: Tensor, false: Tensor) -> None:
        """Counts how many rows were told right, of the data and false ones.

        Args:
            real: Logits of rows of the data, less the logit of a D that can tell nothing.
            false: The same of false rows.
        """
        found = torch.zeros_like(self.counts)
        for row, right in zip(found, (real > 0, false < 0), strict=True):
            row[0], row[1] = right.sum(), right.numel()
        self._waiting = found if self._waiting is None else self._waiting + found
        if not self.waits:
            self.learn_together()

    @torch.no_grad()
    def learn_together(self) -> None:
        """Adds what was counted since the last call to `counts`, by all processes.

        If `torch.distributed` has several processes, all of them must call it, also one that has counted
        nothing.
        """
        waiting, self._waiting = self._waiting, None
        if waiting is None:
            waiting = torch.zeros_like(self.counts)
        if self.waits and are_several():
            waiting = torch.stack(from_all(waiting)).sum(0)
        self.counts.add_(waiting)

    def epoch_metrics(self) -> dict[str, float]:
        """What `fit` logs after each epoch: the shares of rows of the data, and of false ones, that were told
        right.

        Then it starts again from 0.
        """
        shares = {
            f"accuracy_{kind}": float(right / rows)
            for kind, (right, rows) in zip(("real", "false"), self.counts.tolist(), strict=True)
            if rows
        }
        self.counts.zero_()
        return shares

    def _chain(self) -> nn.Sequential | None:
        """The layers of the trunk, if it is a chain of them."""
        net = getattr(self.trunk, "net", None)
        known = hasattr(self.trunk, "net_shape")
        return net if known and isinstance(net, nn.Sequential) else None

    def _place(self, network: Network, feature_layer: int) -> int:
        """Where a hidden layer ends in the chain: a layer with weights, and what comes before the next one."""
        require_at_least_one(self, feature_layer=feature_layer)
        chain = self._chain()
        if chain is None:
            raise TypeError(
                f"feature_layer={feature_layer} needs a network that is a chain of layers, such as MLP or "
                f"Convolutional, and {type(network).__name__} is none: leave it out, so that the features are "
                "the output of the network"
            )
        begins = [i for i, part in enumerate(chain) if isinstance(part, nn.Linear | nn.Conv2d)]
        if feature_layer > len(begins):
            raise ValueError(
                f"feature_layer is {feature_layer}, but {network!r} has {len(begins)} hidden layers: give a "
                f"number from 1 to {len(begins)}"
            )
        ends = [*begins, len(chain)][feature_layer] - 1
        return ends - isinstance(chain[ends], nn.Flatten)
