"""On what log p(x) depends: arguments of a user's own pair that its model does not observe."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.poutine as poutine
import pytest
import torch
from torch import Tensor

from ppl_vae import annealed_importance_sampling, evaluate, inference_gaps
from ppl_vae.distributions import Given

MEANS = torch.tensor([-2.0, 0.0, 3.0])


def selected(x: Tensor, labels: Tensor) -> None:
    """x ~ N(z + mean of the label, 1): log p(x | label) is that of N(mean, 2)."""
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z + MEANS[labels], 1.0), obs=x)


def guide(x: Tensor, *others: Any) -> None:
    loc = MEANS[others[0]] if others and others[0] is not None and len(others) == 1 else 0.0
    with pyro.plate("rows", len(x)):
        pyro.sample("z", dist.Normal((x - loc) / 2, 0.5**0.5))


def prior_guide(x: Tensor, *others: Any) -> None:
    with pyro.plate("rows", len(x)):
        pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))


def given(x: Tensor, labels: Tensor) -> None:
    with pyro.plate("rows", len(x)):
        t = pyro.sample("which", Given(labels, dist.constraints.integer_interval(0, 2)), obs=labels)
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z + MEANS[t], 1.0), obs=x)


def unused(x: Tensor, labels: Tensor) -> None:
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def observed(x: Tensor, labels: Tensor) -> None:
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        pyro.sample("y", dist.Categorical(torch.ones(3) / 3), obs=labels)


def observed_in_other_words(x: Tensor, labels: Tensor) -> None:
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        pyro.sample("y", dist.Bernoulli(0.5), obs=(labels > 0).float())


def masked(x: Tensor, labels: Tensor) -> None:
    with pyro.plate("rows", len(x)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        present: Any = labels > 0
        with poutine.mask(mask=present):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def rows(n: int = 30) -> tuple[Tensor, Tensor]:
    return torch.randn(n, generator=torch.Generator().manual_seed(0)), torch.arange(n) % 3


@pytest.mark.parametrize(
    ("model", "its_guide", "conditional"),
    [
        (selected, guide, True),
        (given, guide, True),
        (masked, prior_guide, True),
        (unused, prior_guide, False),
        (observed, prior_guide, False),
        (observed_in_other_words, prior_guide, False),
    ],
)
def test_an_argument_that_is_not_modeled_is_named(
    model: Callable[..., None], its_guide: Callable[..., None], conditional: bool
) -> None:
    found = evaluate(model, its_guide, rows(), num_samples=5, seed=0)
    said = "the model is given 'labels' beside the data and does not model it: log p(x) is log p(x | labels)"
    assert [note for note in found.notes if "log p(x) is" in note] == [said] * conditional
    assert (f"note: {said}" in str(found)) == conditional


def test_it_is_what_the_note_says() -> None:
    """The guide is exact, so every value is log N(x; mean of the label, 2), in closed form."""
    x, labels = rows()
    found = evaluate(selected, guide, (x, labels), num_samples=5, seed=0)
    exact = dist.Normal(MEANS[labels], 2**0.5).log_prob(x)
    torch.testing.assert_close(found.log_likelihood.values.float(), exact, atol=1e-4, rtol=0)
    (note,) = found.notes
    few = (x[:4], labels[:4])
    annealed = annealed_importance_sampling(selected, None, few, num_steps=2, num_chains=2, seed=0)
    assert note in annealed.notes
    assert note in inference_gaps(selected, guide, few, num_samples=5, max_steps=2).notes


def test_labels_in_the_order_of_classes_are_named_too() -> None:
    """On the first rows, which are looked at, all labels are the same."""
    x, _ = rows(300)
    found = evaluate(selected, guide, (x, torch.arange(300) // 100), num_samples=2, seed=0)
    assert "log p(x | labels)" in found.notes[0]


def test_what_is_not_given_is_not_named() -> None:
    def optional(x: Tensor, labels: Tensor | None = None) -> None:
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            loc = z if labels is None else z + MEANS[labels]
            pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    x, labels = rows()
    assert evaluate(optional, guide, x, num_samples=5, seed=0).notes == ()
    assert "log p(x | labels)" in evaluate(optional, guide, (x, labels), num_samples=5).notes[0]


def test_the_draws_are_the_same_as_without_looking() -> None:
    x, labels = rows()
    torch.manual_seed(0)
    first = evaluate(selected, prior_guide, (x, labels), num_samples=5)
    state = torch.get_rng_state()
    torch.manual_seed(0)
    again = evaluate(given, prior_guide, (x, labels), num_samples=5)
    assert torch.equal(state, torch.get_rng_state())
    torch.testing.assert_close(first.elbo.values, again.elbo.values)
