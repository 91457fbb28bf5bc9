"""Rows of which some have a label: M2 against closed forms."""

from __future__ import annotations

import math
from functools import partial

import pyro.distributions as dist
import pytest
import torch
from labelled import CLASSES, D, given_vector, linear_conditional, log_joint, rows, semi_supervised

from ppl_vae import (
    annealed_importance_sampling,
    diagnose,
    encode,
    evaluate,
    fit,
    sample,
    traverse,
)
from ppl_vae.guides import MeanField
from ppl_vae.likelihoods import Gaussian
from ppl_vae.models import VAE
from ppl_vae.networks import Labels
from ppl_vae.objectives import EnumELBO, SemiSupervisedELBO
from ppl_vae.pairs import Batches, Layouts, Pair, PairError


@pytest.mark.parametrize(
    "labels",
    [
        "some",
        pytest.param("all", marks=pytest.mark.slow),
        pytest.param("none", marks=pytest.mark.slow),
    ],
)
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
    error = (annealed.log_likelihood.values - exact[:4]).abs()
    assert bool((error < 4 * annealed.log_likelihood_error).all())
    assert float(annealed.log_likelihood_error.max()) < 0.15


def test_the_class_of_a_row_with_a_label_is_certain() -> None:
    model, guide = semi_supervised()
    x, y = rows()
    told = y.clone()
    told[10:] = -1
    classes = encode(model, guide, (x, told), seed=0)["y"]
    assert torch.equal(classes[:10], torch.eye(CLASSES)[y[:10]])
    torch.testing.assert_close(classes[10:], guide.classify(x[10:]).probs)


@pytest.mark.filterwarnings("ignore:.*do not train the classifier")
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
    with pytest.raises(PairError, match=r"exclude given\['labels'\], .*: given=\{'y': values\}"):
        sample(model, 4000, given={"labels": wanted}, seed=0)
    with pytest.raises(
        PairError, match=r"exclude given\['labels'\], .* Give the latents that suit it$"
    ):
        sample(model, 4000, given={"labels": wanted, "y": 0 * wanted}, seed=0)


@pytest.mark.parametrize("bad", [3, -1])
def test_a_wanted_class_that_is_none_is_refused(bad: int) -> None:
    x, y = rows()
    conditional, (model, _) = linear_conditional(Labels(CLASSES)), semi_supervised()
    classes = torch.tensor([0, 1, bad, 2])
    with pytest.raises(
        PairError, match=rf"^given\['y'\] holds {bad}: expected integers from 0 to 2"
    ):
        sample(model, 4, given={"y": classes})
    with pytest.raises(PairError, match=rf"given\['c'\] holds {bad}: expected integers"):
        sample(conditional, 4, like=(x, y), given={"c": classes})
    with pytest.raises(ValueError, match=r"given\['y'\] holds 1.7, but .* are whole numbers"):
        sample(model, 2, given={"y": torch.tensor([1.0, 1.7])})
