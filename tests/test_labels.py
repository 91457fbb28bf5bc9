"""Rows with labels and attributes: conditional and semi-supervised pairs, against closed forms."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyro.distributions as dist
import pytest
import torch
import yaml
from catalogue import SMALL_NETWORK, SMALL_RUN
from torch import Tensor, nn

from ppl_vae import (
    annealed_importance_sampling,
    check,
    diagnose,
    encode,
    evaluate,
    fit,
    inference_gaps,
    interpolate,
    load_data,
    load_run,
    reconstruct,
    sample,
    traverse,
)
from ppl_vae.cli import main
from ppl_vae.cli.report import with_accuracy
from ppl_vae.data import Data
from ppl_vae.distributions import Given, Revealed
from ppl_vae.guides import FullCovariance, MeanField, NeuralSpline, SemiAmortized, SemiSupervised
from ppl_vae.likelihoods import Gaussian
from ppl_vae.models import VAE, ConditionalVAE, SemiSupervisedVAE, VampPrior
from ppl_vae.networks import MLP, Attributes, Convolutional, Labels
from ppl_vae.objectives import EnumELBO, SemiSupervisedELBO
from ppl_vae.pairs import Batches, Layouts, Pair, PairError
from ppl_vae.tasks import partners

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


@pytest.mark.parametrize("context", [Labels(CLASSES), Attributes(2)], ids=["labels", "attributes"])
def test_log_p_of_a_conditional_model_is_exact(context: Any) -> None:
    x, y = rows()
    c = y if isinstance(context, Labels) else torch.stack([y.cos(), y.sin()], 1)
    model = linear_conditional(context)
    guide = MeanField((D,), 2, LINEAR, context=context)
    make_exact(model, guide)
    exact = given_vector(model, context(c)).log_prob(x)
    found = evaluate(model, guide, (x, c), num_samples=10, seed=0)
    torch.testing.assert_close(found.elbo.values, exact, atol=2e-3, rtol=0)
    torch.testing.assert_close(found.log_likelihood.values, exact, atol=2e-3, rtol=0)
    with torch.no_grad():
        guide.head.bias.add_(0.2)
    found = evaluate(model, guide, (x, c), num_samples=5000, seed=0)
    assert found.log_likelihood.mean == pytest.approx(exact.mean().item(), abs=0.01)
    assert found.elbo.mean < exact.mean() - 0.01
    few = (x[:5], c[:5])
    gaps = inference_gaps(model, guide, few, seed=0)
    assert gaps.approximation_gap.mean == pytest.approx(0.0, abs=0.02)
    missing = exact[:5].mean().item() - found.elbo.values[:5].mean().item()
    assert gaps.amortization_gap.mean == pytest.approx(missing, abs=0.1)


@pytest.mark.parametrize("context", [Labels(CLASSES), Attributes(2)], ids=["labels", "attributes"])
def test_steps_lead_to_the_exact_posterior_of_a_label(context: Any) -> None:
    x, y = rows()
    c = y if isinstance(context, Labels) else torch.stack([y.cos(), y.sin()], 1)
    model, exact = linear_conditional(context), MeanField((D,), 2, LINEAR, context=context)
    make_exact(model, exact)
    guide = SemiAmortized(
        model, (D,), 2, LINEAR, 100, num_samples=4, differentiable=False, context=context
    )
    found, expected = guide.encode(x, c), exact.encode(x, c)
    torch.testing.assert_close(found.mean, expected.mean, atol=5e-3, rtol=0)
    torch.testing.assert_close(found.stddev, expected.stddev, atol=5e-3, rtol=0)
    every = c[:CLASSES, None]  # all labels of all rows
    together = guide.encode(x, every).mean
    torch.testing.assert_close(together, exact.encode(x, every).mean, atol=5e-3, rtol=0)
    log_p = given_vector(model, context(c)).log_prob(x)
    bound = evaluate(model, guide, (x, c), num_samples=10, method="guide", seed=0).elbo.values
    torch.testing.assert_close(bound, log_p, atol=1e-2, rtol=0)
    guide = SemiAmortized(model, (D,), 2, LINEAR, steps=1, context=context)
    fit(model, guide, (x, c), max_epochs=1)


@pytest.mark.parametrize("network", [MLP(hidden=(6,)), Convolutional((4,), 6)])
def test_an_encoder_reads_both_and_broadcasts(network: Any) -> None:
    torch.manual_seed(0)
    guide = MeanField((2, 4, 4), 3, network, context=Labels(5)).eval()
    x, every = torch.randn(6, 2, 4, 4), torch.arange(5)
    together = guide.encode(x, every[:, None]).mean  # every label of every row
    assert together.shape == (5, 6, 3)
    for label in range(5):
        alone = guide.encode(x, torch.full((6,), label)).mean
        torch.testing.assert_close(together[label], alone)
    assert (together[0] - together[1]).abs().min() > 0
    moved = guide.encode(x + 1, every[:, None]).mean
    assert (together - moved).abs().min() > 0


def test_one_hot_vectors_and_what_is_given() -> None:
    assert torch.equal(Labels(3)(torch.tensor([[2], [0]])), torch.eye(3)[torch.tensor([[2], [0]])])
    given = Given(torch.tensor([1, 2]), Labels(3).support)
    assert torch.equal(given.sample(torch.Size([2])), torch.tensor([[1, 2], [1, 2]]))
    assert torch.equal(given.log_prob(torch.tensor([0, 2])), torch.zeros(2))
    attributes = Given(torch.randn(5, 2), Attributes(2).support).expand([4, 5])
    assert (attributes.batch_shape, attributes.event_shape) == ((4, 5), (2,))
    revealed = Revealed(torch.tensor([0, 1, 2]), 3).expand([2, 3])
    label = torch.tensor([0, -1, 1])
    assert revealed.log_prob(label).tolist() == [[0, 0, -math.inf]] * 2


def test_draws_are_of_the_labels_that_are_given() -> None:
    x, y = rows()
    model = linear_conditional(Labels(CLASSES))
    wanted = torch.full((4000,), 2)
    drawn = sample(model, 4000, like=(x, y), given={"c": wanted}, seed=0)
    of_two = given_vector(model, Labels(CLASSES)(torch.tensor(2)))
    torch.testing.assert_close(drawn.mean(0), of_two.mean, atol=0.1, rtol=0)
    torch.testing.assert_close(drawn.T.cov(), of_two.covariance_matrix, atol=0.15, rtol=0)
    alone = sample(model, 4000, given={"c": wanted}, seed=0)  # nothing else is needed
    torch.testing.assert_close(alone.mean(0), of_two.mean, atol=0.1, rtol=0)
    guide = FullCovariance((D,), 2, LINEAR, context=Labels(CLASSES))
    assert reconstruct(model, guide, (x, y), seed=0).shape == x.shape
    assert reconstruct(model, guide, (x.numpy(), y.numpy()), seed=0).shape == x.shape


def test_paths_are_of_one_label() -> None:
    """With the exact posterior means of a linear model, by hand."""
    x, y = rows(12)
    model, guide = (
        linear_conditional(Labels(CLASSES)),
        MeanField((D,), 2, LINEAR, context=Labels(CLASSES)),
    )
    same = (x[:3], y[:3]), (x[3:6], y[3:6])
    found = interpolate(model, guide, *same, steps=3, seed=0)
    za, zb = (guide.encode(*end).mean.detach() for end in same)
    expected = model.decode((za + zb) / 2, y[:3]).mean.detach()
    torch.testing.assert_close(found[:, 1], expected)
    other = (x[:3], y[:3]), (x[4:7], y[4:7])
    with pytest.raises(
        PairError, match=r"different values of 'c', such as row 0, .*given=\{'c': v"
    ):
        interpolate(model, guide, *other, seed=0)
    twos = torch.full((3,), 2)
    found = interpolate(model, guide, *other, steps=3, given={"c": twos}, seed=0)
    zb = guide.encode(*other[1]).mean.detach()
    torch.testing.assert_close(found[:, 1], model.decode((za + zb) / 2, twos).mean.detach())
    with pytest.raises(ValueError, match=r"one value for each of the 3 paths"):
        interpolate(model, guide, *other, given={"c": twos[:2]}, seed=0)
    one, two = partners(model, guide, (x, y), 5)
    assert torch.equal(y[one], y[two])
    assert len({*one.tolist(), *two.tolist()}) == 10
    with pytest.raises(PairError, match="no two of 3 rows"):
        partners(model, guide, (x[:3], y[:3]), 5)


@pytest.mark.parametrize("known", [True, False])
def test_paths_are_of_one_class(known: bool) -> None:
    model, guide = semi_supervised(exact=True)
    x, y = rows()
    y = guide.classify(x).probs.argmax(-1)
    order = y.argsort(stable=True)[: 2 * int((y == 0).sum() // 2)]
    a, b = order[::2], order[1::2]
    told = y if known else torch.full((30,), -1)
    found = interpolate(model, guide, (x[a], told[a]), (x[b], told[b]), steps=3, seed=0)
    za, zb = (encode(model, guide, (x[r], told[r]), seed=0)["z"] for r in (a, b))
    middle = model.decode((za + zb) / 2, y[a]).mean.detach()
    torch.testing.assert_close(found[:, 1], middle, atol=1e-4 if known else 0.5, rtol=0)
    other = y.argmax()
    ends = (x[a[:1]], told[a[:1]]), (x[other, None], told[other, None])
    with pytest.raises(
        PairError, match=r"'y' is discrete: .*row 0 of a has 0 where row 0 of b has"
    ):
        interpolate(model, guide, *ends, seed=0)
    one = torch.ones(1, dtype=torch.long)
    found = interpolate(model, guide, *ends, steps=2, given={"y": one}, seed=0)
    z = encode(model, guide, ends[1], seed=0)["z"]
    expected = model.decode(z, one).mean.detach()
    torch.testing.assert_close(found[:, 1], expected, atol=1e-4 if known else 0.5, rtol=0)


def test_what_log_p_is_of_is_said() -> None:
    """And labels are beside the data, also in bits per dimension."""
    x, y = rows()
    model, guide = linear_conditional(Labels(CLASSES)), MeanField((D,), 2, context=Labels(CLASSES))
    found = evaluate(model, guide, (x, y), num_samples=5, seed=0)
    assert "log p(x) is log p(x | context)" in found.notes[0]
    assert "log p(x) is log p(x | context)" in str(found)
    assert found.num_values == D
    few = (x[:3], y[:3])
    annealed = annealed_importance_sampling(model, None, few, num_steps=2, num_chains=2, seed=0)
    assert found.notes[0] in annealed.notes
    assert found.notes[0] in inference_gaps(model, guide, few, num_samples=5, max_steps=2).notes
    of_two, its_guide = semi_supervised()
    said = []
    for known in (30, 12, 0):
        told = y.clone()
        told[known:] = -1
        result = evaluate(of_two, its_guide, (x, told), num_samples=5, seed=0, method="guide")
        assert result.num_values == D
        said.append([note for note in result.notes if "log p(x) is" in note])
    assert said[0] == ["the model observes 'label': log p(x) is log p(x, label)"]
    assert said[1][0].endswith("log p(x, label) on the 12 of 30 rows with a label")
    assert said[2] == []


@pytest.mark.parametrize("bad", [3, -1])
def test_a_label_that_is_none_is_named(bad: int) -> None:
    x, y = rows()
    y[7] = bad
    model, guide = linear_conditional(Labels(CLASSES)), MeanField((D,), 2, context=Labels(CLASSES))
    with pytest.raises(PairError, match=r"row 7 .*'context'.*integers from 0 to 2"):
        evaluate(model, guide, (x, y))
    with pytest.raises(PairError, match=r"row 7 .*'context'.*integers from 0 to 2"):
        fit(model, guide, (x, y), max_epochs=1)


WRONG_LABELS: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "huge": (
        lambda y: y + 1000,
        "row 0 .* such as 1000, .* labels count from 0, .* built for 3 of them",
    ),
    "one is huge": (lambda y: y.index_fill(0, torch.tensor(7), 1000), "row 7 .* such as 1000"),
    "below": (lambda y: y.index_fill(0, torch.tensor(7), -5), "row 7 .* such as -5"),
    "from 1": (lambda y: y + 1, "such as 3, .* labels count from 0: subtract 1"),
    "fractions": (lambda y: y + 0.5, "such as 0.5, .* labels are whole numbers"),
    "one-hot": (
        lambda y: torch.eye(3)[y],
        r"\(30, 3\): expected one number .* labels.argmax\(-1\)",
    ),
    "a column": (lambda y: y[:, None], r"shape \(30, 1\): expected one number for each of 30 rows"),
}


@pytest.mark.parametrize("of_all", [True, False], ids=["conditional", "semi-supervised"])
@pytest.mark.parametrize("case", WRONG_LABELS)
def test_labels_that_no_pair_takes_are_explained(case: str, of_all: bool) -> None:
    x, y = rows()
    change, words = WRONG_LABELS[case]
    model: Any = linear_conditional(Labels(CLASSES))
    guide: Any = MeanField((D,), 2, context=Labels(CLASSES))
    if not of_all:
        model, guide = semi_supervised()
    with pytest.raises(PairError, match=words):
        evaluate(model, guide, (x, change(y)))
    with pytest.raises(PairError, match=words):
        fit(model, guide, (x, change(y)), max_epochs=1)


def test_what_does_not_fit_together_is_named() -> None:
    x, y = rows()
    model = linear_conditional(Labels(CLASSES))
    with pytest.raises(Exception, match="was built to read the data alone"):
        fit(model, MeanField((D,), 2), (x, y), max_epochs=1)
    with pytest.raises(TypeError, match=r"was built with context=Labels\(classes=3\)"):
        MeanField((D,), 2, context=Labels(3)).encode(x)
    with pytest.raises(TypeError, match="read the data alone"):
        SemiAmortized(VAE((D,), 2), (D,), 2).encode(x, y)
    with pytest.raises(TypeError, match="VampPrior is made of a guide"):
        ConditionalVAE((D,), prior=VampPrior(5))
    with pytest.raises(TypeError, match="VampPrior is made of a guide"):
        SemiSupervisedVAE((D,), prior=VampPrior(5))
    with pytest.raises(TypeError, match=r"build it with context=Labels\(3\)"):
        SemiSupervised((D,), 2, 3, latent_guide=MeanField((D,), 2))
    with pytest.raises(TypeError, match=r"must be an object such as Labels\(10\)"):
        MeanField((D,), 2, context=10)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least 2"):
        Labels(1)
    attributes = linear_conditional(Attributes(2))
    with pytest.raises(Exception, match=r"attributes have shape \(30, 3\): expected \(n, 2\)"):
        check(
            attributes, MeanField((D,), 2, context=Attributes(2)), (x, torch.randn(30, 3))
        ).raise_errors()


# -- semi-supervised -------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("labels", ["some", "all", "none"])
def test_log_p_of_rows_with_and_without_labels_is_exact(labels: str) -> None:
    model, guide = semi_supervised(exact=True)
    x, y = rows()
    hidden = {"some": torch.arange(30) % 2 == 0, "all": torch.zeros(30), "none": torch.ones(30)}
    hides = hidden[labels].bool()
    joint = log_joint(model, x)
    exact = torch.where(hides, joint.logsumexp(1), joint[torch.arange(30), y])
    told = y.masked_fill(hides, -1)
    found = evaluate(model, guide, (x, told), num_samples=10, seed=0)
    torch.testing.assert_close(found.elbo.values, exact, atol=2e-3, rtol=0)
    torch.testing.assert_close(found.log_likelihood.values, exact, atol=2e-3, rtol=0)
    if labels == "none":
        again = evaluate(model, guide, x, num_samples=10, seed=0)
        torch.testing.assert_close(again.elbo.values, exact, atol=2e-3, rtol=0)
    with torch.no_grad():  # too narrow, and off by more than a deviation
        guide.latent_guide.head.bias[:2] += 1.0
        guide.latent_guide.head.bias[2:] -= 2.0
    poor = evaluate(model, guide, (x, told), num_samples=500, seed=0, method="guide")
    assert poor.unreliable.float().mean() > 0.5
    found = evaluate(model, guide, (x, told), num_samples=500, seed=0)
    assert not bool(found.unreliable.any())
    assert found.method.count("refined") > 15
    error = (found.log_likelihood.values - exact).abs()
    assert bool((error < 5 * found.log_likelihood_error + 1e-3).all())
    few = (x[:4], told[:4])
    annealed = annealed_importance_sampling(model, None, few, num_steps=100, num_chains=32, seed=0)
    torch.testing.assert_close(annealed.log_likelihood.values.float(), exact[:4], atol=0.15, rtol=0)


def test_the_class_of_a_row_with_a_label_is_certain() -> None:
    model, guide = semi_supervised()
    x, y = rows()
    told = y.clone()
    told[10:] = -1
    classes = encode(model, guide, (x, told), seed=0)["y"]
    assert torch.equal(classes[:10], torch.eye(CLASSES)[y[:10]])
    torch.testing.assert_close(classes[10:], guide.classify(x[10:]).probs)


@pytest.mark.parametrize("capture", [True, False])
def test_the_loss_is_the_elbo_and_the_classifier_s_score(capture: bool) -> None:
    """With one label hidden of two. The term is computed by hand; the ELBO is EnumELBO's."""
    _, guide = semi_supervised()
    x, y = rows()
    told = y.masked_fill(torch.arange(30) % 2 == 0, -1)
    known = told >= 0
    score = guide.classify(x).logits.log_softmax(-1)[torch.arange(30), y][known].sum() / 30
    losses = {}
    for name, objective in (("elbo", EnumELBO()), ("both", SemiSupervisedELBO(classification=5.0))):
        fitted = fit(
            *semi_supervised(),
            (x, told),
            objective=objective,
            max_epochs=1,
            batch_size=30,
            learning_rate=1e-12,
            seed=0,
            capture=capture,
        )
        losses[name] = fitted.history[-1]
    assert losses["both"]["elbo"] == pytest.approx(losses["elbo"]["elbo"], abs=1e-4)
    difference = losses["both"]["loss"] - losses["elbo"]["loss"]
    assert difference == pytest.approx(-5.0 * score.item(), abs=1e-4)


def test_the_gradient_of_the_classifier_is_exact() -> None:
    """The ELBO of one label alone does not reach the classifier; the term does, by softmax minus one-hot."""
    model, guide = semi_supervised()
    x, y = rows()
    pair = Pair.of(model, guide)
    batch = Batches((x, y), pair).first(30)
    found = {}
    for weight in (0.0, 2.0):
        guide.zero_grad()
        objective = SemiSupervisedELBO(classification=weight)
        with pair.scope():
            Layouts(pair).run(batch, partial(objective, pair, batch=batch)).loss.backward()
        found[weight] = guide.classifier.head.bias.grad
    assert found[0.0] is None or found[0.0].abs().max() < 1e-6
    expected = 2.0 * (guide.classify(x).probs - torch.eye(CLASSES)[y]).mean(0)
    assert found[2.0] is not None
    torch.testing.assert_close(found[2.0], expected.detach())


def test_steps_with_infinite_terms_are_recorded(capsys: pytest.CaptureFixture[str]) -> None:
    """A label excludes classes: log p = -inf where q = 0, which Pyro leaves out of the sum."""
    x, y = rows()
    told = y.masked_fill(torch.arange(30) % 2 == 0, -1)
    trained = []
    for capture in (True, False):
        model, guide = semi_supervised()
        objective = SemiSupervisedELBO()
        fit(model, guide, (x, told), objective=objective, max_epochs=3, seed=0, capture=capture)
        trained.append([p.detach() for p in [*model.parameters(), *guide.parameters()]])
    assert "capture is off" not in capsys.readouterr().err
    for recorded, plain in zip(*trained, strict=True):
        torch.testing.assert_close(recorded, plain, atol=1e-5, rtol=1e-4)


def test_an_objective_names_what_it_needs() -> None:
    x, _ = rows()
    with pytest.raises(PairError, match="label_log_prob"):
        fit(
            VAE((D,), likelihood=Gaussian()),
            MeanField((D,)),
            x,
            objective=SemiSupervisedELBO(),
            max_epochs=1,
        )
    with pytest.raises(ValueError, match="classification must be at least 0"):
        SemiSupervisedELBO(classification=-1.0)
    with pytest.raises(ValueError, match="there are no free bits"):
        SemiSupervisedELBO(free_bits=0.1)


def test_a_dimension_of_the_style_moves_while_the_class_stays() -> None:
    model, guide = semi_supervised(exact=True)
    x, y = rows()
    told = y[:6].clone()
    told[3:] = -1
    paths = traverse(model, guide, (x[:6], told), 1, steps=3, seed=0)
    classes = told.clone()
    classes[3:] = guide.classify(x[3:6]).probs.argmax(-1)
    z = encode(model, guide, (x[:6], told), seed=0)["z"]
    for place, value in enumerate((-3.0, 0.0, 3.0)):
        moved = z.clone()
        moved[:, 1] = value
        expected = model.decode(moved, classes).mean.detach()
        torch.testing.assert_close(paths[:3, place], expected[:3])  # their q(z) has one component
        torch.testing.assert_close(paths[3:, place], expected[3:], atol=0.5, rtol=0)
    with pytest.raises(PairError, match="'y' is discrete"):
        traverse(model, guide, (x[:6], told), 0, latent="y")


def test_a_class_is_no_latent_dimension() -> None:
    """With the exact posterior of a linear model: the numbers are those of z, and I(x; y, z) is of both."""
    model, guide = semi_supervised(exact=True)
    x, y = rows(300)
    found = diagnose(model, guide, (x, y), seed=0)
    assert found.names == ("z[0]", "z[1]")
    q = guide.latent_guide.encode(x, y)
    kl = torch.distributions.kl_divergence(q.base_dist, dist.Normal(0.0, 1.0)).mean(0)
    torch.testing.assert_close(found.kl.float(), kl.detach(), atol=1e-3, rtol=1e-3)
    variance = q.mean.detach().var(0)
    torch.testing.assert_close(found.mean_variance.float(), variance, atol=1e-3, rtol=1e-2)
    rate = float(kl.detach().sum()) + math.log(CLASSES)
    assert found.mutual_information.mean + found.marginal_kl.mean == pytest.approx(rate, abs=0.3)


def test_draws_of_wanted_classes_are_of_these_or_refused() -> None:
    model, _ = semi_supervised(exact=True)
    x, y = rows()
    wanted = torch.full((4000,), 2)
    drawn = sample(model, 4000, given={"y": wanted}, seed=0)
    of_two = given_vector(model, torch.eye(CLASSES)[2])
    torch.testing.assert_close(drawn.mean(0), of_two.mean, atol=0.1, rtol=0)
    both = {"y": wanted, "labels": wanted}
    assert torch.equal(sample(model, 4000, given=both, seed=0), drawn)
    hidden = torch.full((30,), -1)
    assert sample(model, 9, like=(x, hidden), seed=0).shape == (9, D)
    says = r"the draws exclude what is observed at site 'label', .*: given=\{'y': values\}"
    with pytest.raises(PairError, match=says):
        sample(model, 50, like=(x, y), seed=0)
    with pytest.raises(PairError, match=says):
        sample(model, 4000, given={"labels": wanted}, seed=0)
    with pytest.raises(PairError, match=r"at site 'label', .* Give the latents that suit it$"):
        sample(model, 4000, given={"labels": wanted, "y": 0 * wanted}, seed=0)


@pytest.mark.parametrize("bad", [3, -1])
def test_a_wanted_class_that_is_none_is_refused(bad: int) -> None:
    x, y = rows()
    conditional, (model, _) = linear_conditional(Labels(CLASSES)), semi_supervised()
    classes = torch.tensor([0, 1, bad, 2])
    with pytest.raises(
        PairError, match=f"^{bad} is given at site 'y': expected integers from 0 to 2"
    ):
        sample(model, 4, given={"y": classes})
    with pytest.raises(PairError, match=f"{bad} is observed at site 'context': expected integers"):
        sample(conditional, 4, like=(x, y), given={"c": classes})
    with pytest.raises(ValueError, match=r"given\['y'\] holds 1.7, but .* are whole numbers"):
        sample(model, 2, given={"y": torch.tensor([1.0, 1.7])})


# -- data with labels ------------------------------------------------------------------------------------


def test_rows_come_with_their_labels() -> None:
    plain, told = load_data("digits", max_rows=200), load_data("digits", max_rows=200, labels=True)
    for split in ("train", "validation", "test"):
        x, y = getattr(told, split)
        assert torch.equal(x, getattr(plain, split))
        assert torch.equal(y, getattr(plain, f"{split}_labels"))
    assert told.shape == plain.shape == (1, 8, 8)
    assert "each with a label" in repr(told)


@pytest.mark.parametrize("num", [10, 37, 1294])
def test_so_many_labels_are_told_in_equal_numbers(num: int) -> None:
    data = load_data("digits", labels=num)
    (x, y), truth = data.train, data.train_labels
    assert truth is not None
    assert len(x) == len(y) == 1294
    known = y >= 0
    assert int(known.sum()) == num
    assert torch.equal(y[known], truth[known])
    if num < 1000:
        counts = y[known].bincount(minlength=10)
        assert int(counts.max() - counts.min()) <= 1
    assert all(bool((split[1] == -1).all()) for split in (data.validation, data.test))
    assert torch.equal(x, load_data("digits").train)
    other = load_data("digits", labels=num, seed=1)
    assert num > 1000 or not torch.equal(other.train[1] >= 0, known)


def test_labels_that_are_not_there_are_named(tmp_path: Path) -> None:
    torch.save({"x": torch.rand(50, 3)}, tmp_path / "rows.pt")
    torch.save({"x": torch.rand(50, 3), "y": torch.rand(50)}, tmp_path / "real.pt")
    with pytest.raises(ValueError, match="has no labels"):
        load_data(tmp_path / "rows.pt", labels=True)
    with pytest.raises(ValueError, match="are no classes"):
        load_data(tmp_path / "real.pt", labels=5)
    assert load_data(tmp_path / "real.pt", labels=True).train[1].shape == (36, 1)
    with pytest.raises(ValueError, match="only 1294 training rows"):
        load_data("digits", labels=2000)
    with pytest.raises(ValueError, match="labels must be at least 1"):
        load_data("digits", labels=-3)
    with pytest.raises(TypeError, match="labels must be a whole number"):
        load_data("digits", labels=0.5)  # type: ignore[call-overload]


def test_hidden_labels_of_the_data_are_no_class(tmp_path: Path) -> None:
    file = tmp_path / "rows.npz"
    y = np.array([0, 1, 2, 2, -1, -1] * 10)
    np.savez(file, train=np.random.rand(60, 3), train_labels=y)
    data = load_data(file, labels=9, validation_fraction=0.2)
    known = data.train[1][data.train[1] != -1]
    assert known.bincount().tolist() == [3, 3, 3]
    assert data.train_labels is not None
    held = int((data.train_labels != -1).sum())
    assert int((load_data(file, labels=held, validation_fraction=0.2).train[1] != -1).sum()) == held
    with pytest.raises(ValueError, match=f"only {held} training rows with a label"):
        load_data(file, labels=held + 1, validation_fraction=0.2)
    assert "4 different" not in data._repr_html_()


def test_the_accuracy_is_of_the_rows_with_a_label() -> None:
    model, guide = semi_supervised()
    x, _ = rows()
    told = guide.classify(x).probs.argmax(-1)
    told[:12] = (told[:12] + 1) % CLASSES
    told[20:] = -1
    data = Data("rows", x, x, x, test_labels=told)
    evaluation = evaluate(model, guide, x, num_samples=2, seed=0)
    (note,) = set(with_accuracy(evaluation, model, guide, data).notes) - set(evaluation.notes)
    assert "8 of 20 test rows with a label their label (40.0%)" in note
    unknown = replace(data, test_labels=torch.full((30,), -1))
    assert with_accuracy(evaluation, model, guide, unknown) is evaluation


def test_a_table_of_data_counts_rows() -> None:
    data = load_data("digits", max_rows=50, labels=True)
    table = data._repr_html_()
    assert table.count(">50</td>") == 3
    assert ">2</td>" not in table


# -- the command line ------------------------------------------------------------------------------------


def test_a_semi_supervised_run_is_trained_evaluated_and_sampled(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Guide, objective, classes and the weight of the labels are filled in; the pictures are drawn."""
    run = tmp_path / "run"
    options = ("--labels", "30", "--model", "SemiSupervisedVAE", "--model.latent_dim", "2")
    command = ["train", *options, *SMALL_RUN, *SMALL_NETWORK, "--max_epochs", "2", "--quiet"]
    assert main([*command, "--run_dir", str(run)]) == 0
    printed = capsys.readouterr()
    assert "the curve of training cannot be compared" in " ".join(printed.out.split())
    assert re.search(r"q\(y \| x\) without any label gives \d+ of 60 test rows", printed.out)
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["guide"]["class_path"].endswith("SemiSupervised")
    assert config["model"]["init_args"]["classes"] == 10
    assert config["guide"]["init_args"]["classes"] == 10
    assert config["objective"]["class_path"].endswith("SemiSupervisedELBO")
    assert config["objective"]["init_args"]["classification"] == pytest.approx(100.0 * 60 / 30)
    loaded: Any = load_run(run)
    data = load_data("digits", max_rows=60, labels=30)
    again = evaluate(loaded.model, loaded.guide, data.test, num_samples=20, seed=0)
    stored = loaded.evaluation_rows
    assert stored is not None
    torch.testing.assert_close(
        again.elbo.values, torch.tensor(stored["elbo"], dtype=torch.float32), atol=1e-3, rtol=1e-4
    )
    samples = tmp_path / "samples.npz"
    assert main(["sample", str(run), "--num", "5", "-o", str(samples)]) == 0
    drawn = np.load(samples)
    assert drawn["x"].shape == (5, 1, 8, 8)
    assert drawn["z"].shape == (5, 2)
    y = torch.tensor(drawn["label"])
    means = loaded.model.decode(torch.tensor(drawn["z"]), y).mean.detach()
    torch.testing.assert_close(torch.tensor(drawn["mean"]), means)
    for label, wanted in (("7", [7] * 5), ("1,0", [1, 0, 1, 0, 1])):
        asked = ["--num", "5", "--label", label, "-o", str(samples), "--overwrite"]
        assert main(["sample", str(run), *asked]) == 0
        assert f"of label {label}" in capsys.readouterr().err
        drawn = np.load(samples)
        assert drawn["label"].tolist() == wanted
        means = loaded.model.decode(torch.tensor(drawn["z"]), torch.tensor(wanted)).mean.detach()
        torch.testing.assert_close(torch.tensor(drawn["mean"]), means)
    assert main(["sample", str(run), "--label", "x", "-o", str(samples), "--overwrite"]) == 2
    assert "--label x: expected a label, such as 3" in capsys.readouterr().err
    assert main(["sample", str(run), "--label", "12", "-o", str(samples), "--overwrite"]) == 1
    assert "12 is given at site 'y': expected integers from 0 to 9" in capsys.readouterr().err
    diagnosis = json.loads((run / "diagnosis.json").read_text())
    assert diagnosis["names"] == ["z[0]", "z[1]"]  # y is no code
    assert any("'y' is categorical" in note for note in diagnosis["notes"])
    drawn = {file.stem for file in (run / "plots").iterdir()}
    assert {"traversals", "prior_samples", "aggregate_posterior", "interpolations"} <= drawn
    assert "manifold" not in drawn  # its decodings would be of any class
    assert main(["train", "--resume", str(run), "--max_epochs", "3", "--quiet"]) == 0


@pytest.mark.parametrize(
    ("options", "guide", "objective"),
    [
        (("--objective.beta", "0.5"), {}, {"beta": 0.5}),
        (("--guide.latent_dim=3",), {"latent_dim": 3}, {}),
        (("--objective.classification", "5"), {}, {"classification": 5.0}),
        (("--config", "m2.yaml", "--objective.num_particles", "2"), {}, {"num_particles": 2}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_one_argument_leaves_the_classes_that_suit_the_model(
    options: tuple[str, ...],
    guide: dict[str, Any],
    objective: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    named = {"class_path": "ppl_vae.models.SemiSupervisedVAE", "init_args": {"latent_dim": 3}}
    Path("m2.yaml").write_text(yaml.safe_dump({"model": named, "labels": 100}))
    model = ("--labels", "100", "--model", "SemiSupervisedVAE", "--model.latent_dim", "3")
    given = options if options[0] == "--config" else (*model, *options)
    assert main(["train", *given, "--print_config"]) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["guide"]["class_path"] == "ppl_vae.guides.SemiSupervised"
    assert config["objective"]["class_path"] == "ppl_vae.objectives.SemiSupervisedELBO"
    assert config["model"]["init_args"]["latent_dim"] == 3
    assert guide.items() <= config["guide"]["init_args"].items()
    weight = {"classification": pytest.approx(100.0 * 1294 / 100)}
    assert (weight | objective).items() <= config["objective"]["init_args"].items()


def test_a_refit_keeps_the_classes_that_suit_the_model(tmp_path: Path) -> None:
    command = ["train", *SMALL_RUN, *SMALL_NETWORK, "--model", "SemiSupervisedVAE", "--quiet"]
    run, again = tmp_path / "run", tmp_path / "again"
    options = ("--objective.beta", "0.5", "--guide.network", "MLP", "--max_epochs", "1", "--quiet")
    with patch("ppl_vae.cli.finish.draw_run", return_value=[]):
        given = ("--labels", "30", "--objective.classification", "3", "--max_epochs", "1")
        assert main([*command, *given, "--run_dir", str(run)]) == 0
        assert main(["refit", *options, str(run), "--run_dir", str(again)]) == 0
        plain = tmp_path / "plain"
        assert main(["refit", str(run), "--max_epochs", "1", "--run_dir", str(plain)]) == 0
    config = yaml.safe_load((again / "config.yaml").read_text())
    assert config["guide"]["class_path"] == "ppl_vae.guides.SemiSupervised"
    assert config["objective"]["class_path"] == "ppl_vae.objectives.SemiSupervisedELBO"
    assert config["objective"]["init_args"]["beta"] == 0.5
    config = yaml.safe_load((plain / "config.yaml").read_text())
    assert config["objective"]["init_args"]["classification"] == 3.0  # the run's own


def test_a_class_that_is_named_is_not_replaced(capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--guide", "SemiSupervised", "--objective", "EnumELBO", "--objective.beta", "0.5")
    command = ["train", "--labels", "100", "--model", "SemiSupervisedVAE", *options]
    assert main([*command, "--print_config"]) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["objective"]["class_path"] == "ppl_vae.objectives.EnumELBO"


def test_a_run_with_all_labels_is_sampled_and_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Labels that the model observes are not what its prior is drawn for."""
    run = tmp_path / "run"
    options = ("--labels", "true", "--model", "SemiSupervisedVAE", "--max_epochs", "1", "--quiet")
    command = ["train", *options, *SMALL_RUN, *SMALL_NETWORK, "--run_dir", str(run)]
    assert main(command) == 0
    assert "prior_samples.png was not drawn" not in capsys.readouterr().err
    assert (run / "plots/prior_samples.png").exists()
    samples = tmp_path / "samples.npz"
    assert main(["sample", str(run), "--num", "5", "-o", str(samples)]) == 0
    assert np.load(samples)["x"].shape == (5, 1, 8, 8)


def test_a_conditional_run_reads_the_labels_of_the_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    options = ("--labels", "true", "--model", "ConditionalVAE", "--guide", "FullCovariance")
    command = ["train", *options, *SMALL_RUN, *SMALL_NETWORK, "--max_epochs", "2", "--quiet"]
    assert main([*command, "--run_dir", str(run)]) == 0
    config = yaml.safe_load((run / "config.yaml").read_text())
    for role in ("model", "guide"):
        context = config[role]["init_args"]["context"]
        assert context == {
            "class_path": "ppl_vae.networks.Labels",
            "init_args": {"classes": 10},
        }
    assert {"reconstructions.png", "interpolations.png", "traversals.png"} <= {
        file.name for file in (run / "plots").iterdir()
    }
    capsys.readouterr()
    assert main(["evaluate", str(run), "--num_samples", "20", "--overwrite", "--quiet"]) == 0
    assert main(["diagnose", str(run), "--overwrite", "--quiet"]) == 0
    assert "log p(x)" in capsys.readouterr().out
    model: Any = load_run(run).model
    data = load_data("digits", max_rows=60, labels=True)
    samples = tmp_path / "samples.npz"
    for label, wanted in (([], data.test[1][:5]), (["--label", "3"], torch.full((5,), 3))):
        output = ("--num", "5", "-o", str(samples), "--overwrite")
        assert main(["sample", str(run), *label, *output]) == 0
        drawn = np.load(samples)
        assert drawn["label"].tolist() == wanted.tolist()
        means = model.decode(torch.tensor(drawn["z"]), wanted).mean.detach()
        torch.testing.assert_close(torch.tensor(drawn["mean"]), means)


def test_runs_with_other_labels_are_not_compared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And a training of classes without any label warns."""
    command = ["train", *SMALL_RUN, *SMALL_NETWORK, "--model", "SemiSupervisedVAE", "--quiet"]
    runs = [str(tmp_path / name) for name in ("without", "with")]
    with patch("ppl_vae.cli.finish.draw_run", return_value=[]):
        assert main([*command, "--max_epochs", "1", "--run_dir", runs[0]]) == 0
        assert "is trained without any label" in " ".join(capsys.readouterr().err.split())
        assert main([*command, "--max_epochs", "1", "--labels", "30", "--run_dir", runs[1]]) == 0
        assert "is trained without any label" not in " ".join(capsys.readouterr().err.split())
    assert main(["compare", *runs, "-o", str(tmp_path / "compared.png")]) == 1
    told = " ".join(capsys.readouterr().err.split())
    assert "different labels beside the rows (--labels 30, none)" in told


def test_a_model_of_two_layers_gets_a_guide_of_two(tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = ["train", "--model", "HierarchicalVAE", *SMALL_RUN, *SMALL_NETWORK, "--quiet"]
    with patch("ppl_vae.cli.finish.draw_run", return_value=[]):
        assert main([*command, "--max_epochs", "1", "--run_dir", str(run)]) == 0
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["guide"]["class_path"].endswith("TopDown")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--model", "ConditionalVAE"), "takes rows and what they come with (x, c): add --labels"),
        (("--labels", "true"), "VAE takes the rows alone (x): leave out --labels, or choose"),
        (("--labels", "70", "--model", "SemiSupervisedVAE"), "only 60 training rows"),
        (
            ("--labels", "30", "--model", "ConditionalVAE"),
            "some are hidden (-1): --labels true, if",
        ),
        (("--labels", "true", "--model", "GaussianMixture"), "(`ppl-vae train --model Conditional"),
        (("--labels", "yes"), "--labels: expected int, true or false, got yes"),
    ],
)
def test_what_does_not_go_with_the_labels_is_named(
    options: tuple[str, ...], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["train", *options, *SMALL_RUN, "--run_dir", str(tmp_path / "run"), "--quiet"]
    assert main(command) == 2 or main(command) == 1
    told = " ".join(capsys.readouterr().err.split())
    assert words in told
    assert not (tmp_path / "run").exists()
