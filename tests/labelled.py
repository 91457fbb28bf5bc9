"""Pairs of rows with labels, and their closed forms."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_vae.guides import MeanField, NeuralSpline, SemiSupervised
from ppl_vae.likelihoods import Gaussian
from ppl_vae.models import ConditionalVAE, SemiSupervisedVAE
from ppl_vae.networks import MLP, Labels

LINEAR = MLP(hidden=())
CLASSES, D, SIGMA = 3, 4, 0.7


def rows(n: int = 30) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    y = torch.arange(n) % CLASSES
    return torch.randn(n, D, generator=generator) + y[:, None], y


def linear_conditional(context: Any) -> ConditionalVAE:
    torch.manual_seed(0)
    return ConditionalVAE((D,), 2, LINEAR, Gaussian(SIGMA), context=context)


def given_vector(model: Any, vector: Tensor) -> dist.MultivariateNormal:
    """p(x | c) of a linear decoder: N(W_c c + b, W_z W_z^T + sigma^2)."""
    layer = next(m for m in model.decoder.modules() if isinstance(m, nn.Linear))
    weight, bias = layer.weight.detach(), layer.bias.detach()
    of_z, of_c = weight[:, :2], weight[:, 2:]
    covariance = of_z @ of_z.T + SIGMA**2 * torch.eye(D)
    return dist.MultivariateNormal(vector @ of_c.T + bias, covariance)


def make_exact(model: Any, guide: MeanField) -> None:
    """Sets a guide's head to p(z | x, c) = N(A (x - W_c c - b), S), S = (I + W_z^T W_z / sigma^2)^-1 diagonal.

    The columns of W_z are made orthogonal for that. The features are x and c, one after the other.
    """
    with torch.no_grad():
        layer = next(m for m in model.decoder.modules() if isinstance(m, nn.Linear))
        layer.weight[:, :2] = torch.linalg.qr(layer.weight[:, :2]).Q * torch.tensor([1.0, 2.0])
        weight, bias = layer.weight, layer.bias
        of_z, of_c = weight[:, :2], weight[:, 2:]
        variance = 1 / (1 + of_z.square().sum(0) / SIGMA**2)
        a = variance[:, None] * of_z.T / SIGMA**2
        guide.head.weight[:2] = torch.cat([a, -a @ of_c], 1)
        guide.head.bias[:2] = -a @ bias
        guide.head.weight[2:] = 0.0
        guide.head.bias[2:] = variance.sqrt().expm1().log()  # softplus


def semi_supervised(*, exact: bool = False) -> tuple[SemiSupervisedVAE, SemiSupervised]:
    torch.manual_seed(0)
    model = SemiSupervisedVAE((D,), 2, CLASSES, LINEAR, Gaussian(SIGMA))
    if not exact:
        flow = NeuralSpline((D,), 2, LINEAR, transforms=1, hidden=(4,), context=Labels(CLASSES))
        return model, SemiSupervised((D,), 2, CLASSES, LINEAR, latent_guide=flow)
    guide = SemiSupervised((D,), 2, CLASSES, LINEAR)
    assert isinstance(guide.latent_guide, MeanField)
    make_exact(model, guide.latent_guide)
    with torch.no_grad():  # normals of the same covariance: their logits are linear
        normals = given_vector(model, torch.eye(CLASSES))
        slopes = normals.mean @ normals.precision_matrix[0]
        guide.classifier.head.weight.copy_(slopes)
        guide.classifier.head.bias.copy_(-0.5 * (slopes * normals.mean).sum(1))
    return model, guide


def log_joint(model: SemiSupervisedVAE, x: Tensor) -> Tensor:
    """log p(x, y) for each y, `(n, classes)`."""
    found: Tensor = given_vector(model, torch.eye(CLASSES)).log_prob(x[:, None])
    return found - math.log(CLASSES)
