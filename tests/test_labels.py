"""Rows with labels and attributes: conditional pairs against closed forms, and what does not fit."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from labelled import (
    CLASSES,
    LINEAR,
    D,
    given_vector,
    linear_conditional,
    make_exact,
    rows,
    semi_supervised,
)
from torch import Tensor

from ppl_vae import (
    annealed_importance_sampling,
    check,
    encode,
    evaluate,
    fit,
    inference_gaps,
    interpolate,
    reconstruct,
    sample,
)
from ppl_vae.distributions import Given, Revealed
from ppl_vae.guides import FullCovariance, MeanField, SemiAmortized, SemiSupervised
from ppl_vae.models import VAE, ConditionalVAE, SemiSupervisedVAE, VampPrior
from ppl_vae.networks import MLP, Attributes, Convolutional, Labels
from ppl_vae.pairs import PairError
from ppl_vae.tasks import partners


@pytest.mark.parametrize(
    "context",
    [
        pytest.param(Labels(CLASSES), id="labels"),
        pytest.param(Attributes(2), id="attributes", marks=pytest.mark.slow),
    ],
)
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


@pytest.mark.slow
@pytest.mark.parametrize(
    "context",
    [
        pytest.param(Labels(CLASSES), id="labels", marks=pytest.mark.slow),
        pytest.param(Attributes(2), id="attributes"),
    ],
)
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
    assert "log p(x) is log p(x | c)" in found.notes[0]
    assert "log p(x) is log p(x | c)" in str(found)
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
    with pytest.raises(PairError, match=r"row 7 .*argument 'c'.*integers from 0 to 2"):
        evaluate(model, guide, (x, y))
    with pytest.raises(PairError, match=r"row 7 .*argument 'c'.*integers from 0 to 2"):
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
