"""The guide of a class and a style: a classifier, and an encoder that reads the class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_vae.distributions import HIDDEN
from ppl_vae.guides.amortized import Amortized
from ppl_vae.guides.categorical import CategoricalEncoder
from ppl_vae.guides.mean_field import MeanField
from ppl_vae.networks import MLP, Labels, Network, Rebuildable, require_one_each


class SemiSupervised(Rebuildable, nn.Module):
    """q(y, z | x) = q(y | x) q(z | x, y): the guide of a `SemiSupervisedVAE`.

    "Semi-Supervised Learning with Deep Generative Models" (arXiv:1406.5298). A row with a label has q(y) = 1 at
    its label. So the ELBO alone trains the classifier q(y | x) on rows without labels only: the objective
    `SemiSupervisedELBO` adds the term that trains it on the others.

    The sites are `y`, marked for enumeration, and `z`, inside `pyro.plate("data", n, dim=-1)`. The encoder of z
    runs once for each class.

    Args:
        data_shape: Shape of one row of the data.
        latent_dim: Number of dimensions of z, the model's.
        classes: Number of classes, the model's.
        network: What the classifier and the encoder are built from.
        latent_guide: q(z | x, y), built with `context=Labels(classes)`; a `MeanField` guide if none is given.

    Raises:
        TypeError: `latent_guide` is not built with these labels as context.
        ValueError: `latent_dim` is not positive, or `classes` is less than 2.

    Example:
        >>> guide = SemiSupervised((1, 8, 8), latent_dim=2, classes=10)
        >>> guide.classify(torch.rand(5, 1, 8, 8)).probs.shape
        torch.Size([5, 10])
    """

    def __init__(
        self,
        data_shape: Sequence[int],
        latent_dim: int = 10,
        classes: int = 10,
        network: Network = MLP(),  # frozen
        latent_guide: Amortized[Any] | None = None,
    ) -> None:
        super().__init__()
        labels = Labels(classes)
        self.classifier = CategoricalEncoder(data_shape, classes, network)
        if latent_guide is None:
            latent_guide = MeanField(data_shape, latent_dim, network, labels)
        if getattr(latent_guide, "context", None) != labels:
            raise TypeError(
                f"SemiSupervised.latent_guide must read the class, too: build it with context=Labels({classes})"
            )
        self.latent_dim = latent_guide.latent_dim
        self.latent_guide = latent_guide

    def forward(self, x: Tensor, labels: Tensor | None = None) -> None:
        """Runs the guide on rows and their labels.

        Args:
            x: `(n, *data_shape)`.
            labels: `(n,)`, -1 where a row has none; None if no row has one.

        Raises:
            ValueError: There is not one label for each row.
        """
        q = self.classify(x)
        if labels is not None:
            require_one_each(self, Labels(self.classifier.components), labels, x.shape[0])
            values = torch.arange(self.classifier.components, device=x.device)
            possible = labels.unsqueeze(-1) == values
            # Hidden, or no class, which the model refuses.
            possible |= ~possible.any(-1, keepdim=True)
            q = dist.Categorical(logits=q.logits.where(possible, -torch.inf))
        with pyro.plate("data", x.shape[0], dim=-1):
            y = pyro.sample("y", q, infer={"enumerate": "parallel"})
            pyro.sample("z", self.latent_guide.encode(x, y))

    def label_log_prob(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        """log q(y = label | x) of each row, in nats; 0 where the label is hidden: `(n,)`."""
        if labels is None:
            return x.new_zeros(x.shape[0])
        scores: Tensor = self.classify(x).log_prob(labels.clamp(min=0))
        return scores.where(labels != HIDDEN, 0.0)

    def classify(self, x: Tensor) -> dist.Categorical:
        """q(y | x) for data `(*batch, *data_shape)`, without any label: batch shape `batch`."""
        return self.classifier.encode(x)
