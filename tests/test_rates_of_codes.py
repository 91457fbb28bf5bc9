"""Codes beside what no code can beat: the curve of Blahut and Arimoto, and that of a normal source."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from ppl_vae import evaluate, fit, refit_prior
from ppl_vae.codes import EMA, FSQ, KMeansStart, Quantizer, RandomStart, VectorQuantizer
from ppl_vae.guides import QuantizingEncoder
from ppl_vae.likelihoods import Gaussian
from ppl_vae.models import VQVAE, IndependentCodes
from ppl_vae.networks import MLP, Slots
from ppl_vae.objectives import QuantizedELBO
from ppl_vae.rate_distortion import DiscretePoint, blahut_arimoto

# -- a source of eight numbers ---------------------------------------------------------------------------

VALUES = torch.tensor([-2.0, -1.4, -1.0, -0.3, 0.2, 0.9, 1.5, 2.3])
COUNTS = torch.tensor([4, 10, 8, 14, 12, 6, 7, 3])
SOURCE = COUNTS / COUNTS.sum()
ROWS = VALUES.repeat_interleave(COUNTS).reshape(-1, 1)
SIGMA = 0.4
GRID = torch.linspace(-2.4, 2.4, 49).double()
COSTS = (VALUES.double().unsqueeze(1) - GRID).square()


class Point(NamedTuple):
    """What codes cost, nats, and the mean squared error of what they stand for."""

    rate: float
    distortion: float


@pytest.fixture(scope="module")
def curve() -> list[DiscretePoint]:
    slopes = (0.5, 1.0, 2.0, 4.0, 8.0, 20.0, 60.0)
    return [blahut_arimoto(SOURCE, COSTS, slope, tolerance=2e-3) for slope in slopes]


def above(point: Point, curve: list[DiscretePoint]) -> float:
    """How far a point is above the curve, at most: above its tangents, which are certified."""
    tangents = [at.lower_bound - at.slope * (point.distortion - at.distortion) for at in curve]
    return point.rate - max(0.0, *tangents)


def on_grid(rate: float, q: Tensor, decoded: Tensor) -> Point:
    """The point of a channel `(8, K)` whose codes stand for the places of the grid next to `decoded`."""
    places = (decoded.double().unsqueeze(1) - GRID).abs().argmin(1)
    error = (SOURCE.double().unsqueeze(1) * q.double() * COSTS[:, places]).sum()
    return Point(rate, float(error))


@pytest.mark.parametrize(("codes", "gap"), [(1, 1e-6), (2, 0.18), (3, 0.1), (5, 0.2), (8, 1e-3)])
def test_quantizers_are_above_the_curve(codes: int, gap: float, curve: list[DiscretePoint]) -> None:
    """K-means with its codes counted: the gap is what a code for one number at a time loses."""
    quantizer = VectorQuantizer(codes, 1, EMA(decay=0.0), KMeansStart(steps=1), restarts=0)
    prior: Any = IndependentCodes(1e-6).build_codes((1,), codes)
    for _ in range(30):
        quantizer.gather(ROWS, quantizer.nearest(ROWS))
        quantizer.learn()
    z = quantizer.nearest(ROWS).unsqueeze(1)
    prior.fit_to_codes(z)
    q = torch.nn.functional.one_hot(quantizer.nearest(VALUES.unsqueeze(1)), codes)
    rate = -float(prior().log_prob(z).detach().mean())
    found = above(on_grid(rate, q, quantizer.points()[:, 0]), curve)
    assert -1e-6 < found < gap
    assert found > 0.8 * gap or codes in (1, 8)  # at both ends, codes are as good as anything


@pytest.mark.parametrize(
    ("beta", "temperature", "gap"),
    [
        (1.0, 0.0, 0.4),
        pytest.param(*(1.0, 1.0, 0.17), marks=pytest.mark.slow),
        pytest.param(4.0, 1.0, 0.17, marks=pytest.mark.slow),
    ],
)
def test_trained_pairs_are_above_the_curve(
    beta: float, temperature: float, gap: float, curve: list[DiscretePoint]
) -> None:
    """A VQ-VAE with its prior: codes that are certain, and codes that are drawn, which come nearer."""
    torch.manual_seed(0)
    network = Slots(1, MLP(hidden=(32,)))
    quantizer = VectorQuantizer(5, 2, EMA(decay=0.8), KMeansStart(steps=5))
    model: Any = VQVAE((1,), quantizer, network, Gaussian(SIGMA), IndependentCodes(1e-6))
    guide = QuantizingEncoder(model, network, temperature)
    options: Any = {"max_epochs": 150, "batch_size": len(ROWS), "learning_rate": 0.02, "seed": 0}
    fit(model, guide, ROWS, objective=QuantizedELBO(beta=beta), progress=False, **options)
    if not temperature:
        model = refit_prior(model, guide, ROWS, IndependentCodes(1e-6), progress=False)
    with torch.no_grad():
        decoded = model.decode(torch.arange(5).unsqueeze(1)).mean.flatten()
        q = guide.encode(VALUES.unsqueeze(1)).base_dist
        table = q.probs[:, 0] if temperature else guide.codes(VALUES.unsqueeze(1))
    if not temperature:
        table = torch.nn.functional.one_hot(table[:, 0], 5)
    rate = float(evaluate(model, guide, ROWS).rate.mean)
    found = above(on_grid(rate, table, decoded), curve)
    assert -1e-6 < found < gap


# -- a normal source -------------------------------------------------------------------------------------

NORMAL = torch.special.ndtri((torch.arange(50_000).double() + 0.5) / 50_000).unsqueeze(1)
"""Quantiles of N(0, 1): means over them are integrals."""


def bits_above(quantizer: Quantizer, scale: float) -> float:
    """Entropy of the codes of scale x, counted, less R(D) = log2(1 / D) / 2, in bits."""
    prior: Any = IndependentCodes(1e-6).build_codes((1,), quantizer.codes).double()
    z = quantizer.nearest(scale * NORMAL)
    prior.fit_to_codes(z.unsqueeze(1))
    with torch.no_grad():
        rate = -float(prior().log_prob(z.unsqueeze(1)).mean()) / math.log(2)
        error = float((NORMAL - quantizer.embed(z).double() / scale).square().mean())
    return rate - math.log2(1 / error) / 2


@pytest.mark.parametrize("levels", [127, 255])
def test_a_uniform_quantizer_is_a_quarter_of_a_bit_above_the_curve_of_a_normal_source(
    levels: int,
) -> None:
    """log2(2 pi e / 12) / 2 = 0.2546 at high rates, and no scalar quantizer less (Gish and Pierce, 1968)."""
    least = math.log2(2 * math.pi * math.e / 12) / 2
    assert bits_above(FSQ((levels,)), 1 / 6) == pytest.approx(least, abs=1e-3)
    codebook: Any = VectorQuantizer(levels, 1, start=RandomStart()).double()
    codebook.codebook.place(FSQ((levels,)).points().double(), torch.ones(levels, dtype=torch.bool))
    assert bits_above(codebook, 1 / 6) == pytest.approx(least, abs=1e-3)


def test_k_means_of_a_normal_source_is_not_made_for_counted_codes() -> None:
    """Its codes lie as densely as p^(1/3) (Panter and Dite, 1951).

    With that density, the rate at an error is higher than that of the uniform quantizer by
    log2(3) / 4 - 1 / (6 log 2) = 0.156 bits at high rates.
    """
    codes = 96
    codebook: Any = VectorQuantizer(codes, 1, EMA(decay=0.0), RandomStart(), restarts=0).double()
    at = 3**0.5 * torch.special.ndtri((torch.arange(codes).double() + 0.5) / codes)
    codebook.codebook.place(at.unsqueeze(1), torch.ones(codes, dtype=torch.bool))
    for _ in range(10):
        codebook.gather(NORMAL, codebook.nearest(NORMAL))
        codebook.learn()
    more = math.log2(3) / 4 - 1 / (6 * math.log(2))
    least = math.log2(2 * math.pi * math.e / 12) / 2
    assert bits_above(codebook, 1.0) == pytest.approx(least + more, abs=0.02)
