"""Modalities that come and go: arguments with the default None, of which any may get nothing."""

from __future__ import annotations

import warnings
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ppl_vae import diagnose, evaluate, fit
from ppl_vae.checks import check
from ppl_vae.diagnosis import inference_gaps
from ppl_vae.evaluation import annealed_importance_sampling, bidirectional_monte_carlo
from ppl_vae.objectives import ImportanceWeightedELBO, TraceELBO
from ppl_vae.pairs import Pair, SomeArguments, as_args
from ppl_vae.pairs.batches import Batches, transformed

IMAGE = torch.randn(40, generator=torch.Generator().manual_seed(0))
TEXT = torch.randn(40, generator=torch.Generator().manual_seed(1))


def model(image: Tensor | None = None, text: Tensor | None = None) -> None:
    """z ~ N(0, 1), image ~ N(z, 1), text ~ N(z, 1 / 4)."""
    given = image if image is not None else text
    assert given is not None
    loc = pyro.param("loc", torch.tensor(0.0))
    with pyro.plate("data", len(given)):
        z = pyro.sample("z", dist.Normal(loc, 1.0))
        if image is not None:
            pyro.sample("image", dist.Normal(z, 1.0), obs=image)
        if text is not None:
            pyro.sample("text", dist.Normal(z, 0.5), obs=text)


def product_of_experts(image: Tensor | None = None, text: Tensor | None = None) -> None:
    """The exact posterior."""
    precision, total = torch.tensor(1.0), torch.tensor(0.0)
    if image is not None:
        precision, total = precision + 1, total + image
    if text is not None:
        precision, total = precision + 4, total + 4 * text
    with pyro.plate("data", len(total)):
        pyro.sample("z", dist.Normal(total / precision, precision**-0.5))


def log_evidence(image: Tensor | None, text: Tensor | None) -> Tensor:
    fn: Any
    if text is None:
        fn, x = torch.distributions.Normal(0.0, 2**0.5), image
    elif image is None:
        fn, x = torch.distributions.Normal(0.0, 1.25**0.5), text
    else:
        covariance = torch.tensor([[2.0, 1.0], [1.0, 1.25]])
        fn = torch.distributions.MultivariateNormal(torch.zeros(2), covariance)
        x = torch.stack([image, text], -1)
    density: Tensor = fn.log_prob(x)
    return density


A, B, C = slice(0, 15), slice(15, 30), slice(30, 40)
ALL = torch.cat(
    [
        log_evidence(IMAGE[A], TEXT[A]),
        log_evidence(IMAGE[B], None),
        log_evidence(None, TEXT[C]),
    ]
)
KINDS: dict[str, list[Any]] = {
    "dicts": [
        {"image": IMAGE[A], "text": TEXT[A]},
        {"image": IMAGE[B]},
        {"text": TEXT[C]},
    ],
    "dicts with None": [
        {"image": IMAGE[A], "text": TEXT[A]},
        {"image": IMAGE[B], "text": None},
        {"image": None, "text": TEXT[C]},
    ],
    "tuples": [(IMAGE[A], TEXT[A]), (IMAGE[B], None), (None, TEXT[C])],
    "arrays": [(IMAGE[A].numpy(), TEXT[A].numpy()), IMAGE[B].numpy(), (None, TEXT[C].numpy())],
}


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)], ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_every_row_is_right(kind: str, order: tuple[int, ...]) -> None:
    parts = (A, B, C)
    x = [KINDS[kind][i] for i in order]
    wanted = torch.cat([ALL[parts[i]] for i in order])
    assert check(model, product_of_experts, x).ok
    found = evaluate(model, product_of_experts, x, num_samples=4)
    torch.testing.assert_close(found.log_likelihood.values, wanted, atol=1e-5, rtol=0)
    torch.testing.assert_close(found.elbo.values, wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("capture", [True, False], ids=["captured", "in Pyro"])
@pytest.mark.parametrize("objective", [TraceELBO(), ImportanceWeightedELBO(num_particles=2)])
def test_training(objective: Any, capture: bool) -> None:
    """The parameters do not move; in 60 steps of three kinds, all are recorded."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fitted = fit(
            model,
            product_of_experts,
            KINDS["dicts"],
            objective=objective,
            max_epochs=20,
            learning_rate=1e-9,
            capture=capture,
            seed=0,
            progress=False,
        )
    for row in fitted.history:
        assert row["loss"] == pytest.approx(-float(ALL.mean()), abs=1e-5)


@pytest.mark.slow
def test_other_tools() -> None:
    x = KINDS["dicts"]
    annealed = annealed_importance_sampling(model, product_of_experts, x, num_chains=4, num_steps=3)
    torch.testing.assert_close(annealed.log_likelihood.values.float(), ALL, atol=1e-4, rtol=0)
    few = [{"image": IMAGE[A][:2], "text": TEXT[A][:2]}, {"text": TEXT[C][:2]}]
    gaps = inference_gaps(model, product_of_experts, few, num_samples=20, max_steps=20)
    wanted = torch.cat([ALL[A][:2], ALL[C][:2]])
    torch.testing.assert_close(gaps.log_likelihood.values.float(), wanted, atol=0.02, rtol=0)
    assert diagnose(model, product_of_experts, x).active_units == 1
    sandwich = bidirectional_monte_carlo(
        model, product_of_experts, x[2:], num_chains=2, num_steps=3
    )
    torch.testing.assert_close(sandwich.lower.values, sandwich.upper.values, atol=1e-3, rtol=0)


def test_in_memory_and_from_a_loader() -> None:
    text_alone = {"text": TEXT}
    found = evaluate(model, product_of_experts, text_alone, num_samples=4)
    torch.testing.assert_close(
        found.log_likelihood.values, log_evidence(None, TEXT), atol=1e-5, rtol=0
    )
    rows: Any = [{"text": t, "name": "a"} for t in TEXT]
    loader: Any = DataLoader(rows, batch_size=16)
    found = evaluate(model, product_of_experts, loader, num_samples=4)
    torch.testing.assert_close(
        found.log_likelihood.values, log_evidence(None, TEXT), atol=1e-5, rtol=0
    )


def test_a_transform_is_for_the_first_argument() -> None:
    batch = SomeArguments.at([1], [TEXT])
    assert as_args(transformed(batch, torch.zeros_like))[1] is TEXT
    doubled, text = as_args(transformed((IMAGE, TEXT), lambda x: 2 * x))
    torch.testing.assert_close(doubled, 2 * IMAGE)
    assert text is TEXT


@pytest.mark.parametrize(
    ("x", "error"),
    [
        ({"sound": TEXT}, "the keys 'sound'; the model's arguments are 'image', 'text'"),
        ({"image": None, "text": None}, "gives nothing for any argument of the model"),
        ([(IMAGE, TEXT), (None, None)], "gives nothing for any argument of the model"),
    ],
    ids=["no key", "nothing", "nothing in a later batch"],
)
def test_nothing_for_any_argument_is_refused(x: Any, error: str) -> None:
    with pytest.raises((TypeError, ValueError), match=error):
        evaluate(model, product_of_experts, x)


def test_an_argument_without_a_default_needs_data() -> None:
    def needs_image(image: Tensor, text: Tensor | None = None) -> None: ...

    for x in ({"image": None, "text": TEXT}, (None, TEXT)):
        with pytest.raises(TypeError, match="is a NoneType, but the model needs a tensor there"):
            Batches(x, Pair(needs_image, needs_image))
    with pytest.raises(TypeError, match="use these names as keys"):
        Batches({"text": TEXT}, Pair(needs_image, needs_image))
