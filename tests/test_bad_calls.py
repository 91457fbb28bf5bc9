"""Programs, options and parts that do not fit: each answer names the culprit and what was expected."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from bad_inputs import (
    Case,
    X,
    evaluate,
    fit,
    guide,
    in_plate,
    model,
    pair,
    refused,
)
from torch import Tensor, nn
from torch.distributions import constraints

import ppl_vae
from ppl_vae import objectives
from ppl_vae.data import load_data
from ppl_vae.guides import Exact, MeanField, NeuralSpline
from ppl_vae.likelihoods import Bernoulli, Binomial, DiscretizedLogistic
from ppl_vae.models import (
    VAE,
    CategoricalHMM,
    DiagonalNormal,
    GaussianHMM,
    GaussianMixture,
    HierarchicalVAE,
    MixtureOfPCA,
)
from ppl_vae.networks import MLP, Convolutional
from ppl_vae.pairs import PairError
from ppl_vae.plots import learning_curves
from ppl_vae.runtime import make_fabric
from ppl_vae.training import refit_prior

ITSELF = pair()[0]

COUNTS = torch.tensor([[0.0, 5.0, 16.0], [1.0, 2.0, 8.0]]).repeat(4, 1)
"""Counts from 0 to 16."""


def _fit_counts(rows: Tensor) -> None:
    fit(VAE((3,), 2, likelihood=Binomial(16)), MeanField((3,), 2), rows)


def endless(x: Tensor) -> None:
    endless(x)


def of_scale(value: float, constraint: constraints.Constraint) -> Callable[[Tensor], None]:
    """A guide whose scale is a parameter."""

    def q(x: Tensor) -> None:
        scale = pyro.param("s", torch.tensor(value), constraint=constraint)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x / 2, scale).to_event(1))

    return q


PROGRAMS: dict[str, Case] = {
    "a guide with another number of latents": (
        lambda: fit(*pair(2, of_guide=3), X),
        PairError,
        ["site 'z' has 2 dimensions in the model and 3 dimensions in the guide"],
    ),
    "the same in evaluate": (
        lambda: evaluate(*pair(1, of_guide=4), X),
        PairError,
        ["site 'z' has 1 dimension in the model and 4 dimensions in the guide"],
    ),
    "a guide without the site": (
        lambda: fit(model, lambda x: None, X),
        PairError,
        ["latent site 'z' is not sampled by the guide, which samples nothing"],
    ),
    "a plate of another size": (
        lambda: fit(model, in_plate("data", 7), X),
        PairError,
        ["'data'", "size 7", "20 rows"],
    ),
    "a plate of another name": (
        lambda: fit(model, in_plate("rows"), X),
        PairError,
        ["site 'z' is in 'data' in the model and in 'rows' in the guide"],
    ),
    "a guide of no arguments": (
        lambda: fit(model, lambda: None, X),
        PairError,
        ["the guide raised TypeError", "takes 0 positional arguments but 1 was given"],
    ),
    "a model of keywords": (
        lambda: fit(lambda *, x: None, guide, X),
        TypeError,
        ["the model takes 'x' by keyword alone"],
    ),
    "a layer as model": (
        lambda: fit(nn.Linear(3, 3), guide, X),
        PairError,
        ["the model observes nothing", "obs=x"],
    ),
    "a fit as model": (
        lambda: evaluate(fit(model, guide, X), guide, X),
        TypeError,
        ["model is a ppl_vae.Fit: pass a Pyro program"],
    ),
    "both in a tuple": (
        lambda: evaluate((model, guide), X, X),
        TypeError,
        ["model is a tuple: pass a Pyro program"],
    ),
    "a loss of torch": (
        lambda: fit(model, guide, X, objective=nn.MSELoss()),
        TypeError,
        ["objective is an object of MSELoss", "ppl_vae.objectives"],
    ),
    "a model as its own guide": (
        lambda: fit(ITSELF, ITSELF, X),
        PairError,
        ["model and guide are the same program", "samples the latents of the model and observes"],
    ),
    "evaluated by itself": (
        lambda: evaluate(ITSELF, ITSELF, X),
        PairError,
        ["model and guide are the same program"],
    ),
    "a continuous guide of a mixture": (
        lambda: fit(GaussianMixture((3,), 2), MeanField((3,), 2), X),
        PairError,
        ["site 'z' is discrete in the model, Categorical, and not in the guide, Normal", "Exact"],
    ),
    "a continuous guide of a chain": (
        lambda: fit(GaussianHMM((3,), 2), MeanField((3,), 2), X),
        PairError,
        [
            "The model's latents are discrete: take a guide of discrete latents, such as Exact",
            "or fit the model by EM (fit_em, ppl-vae em)",
        ],
    ),
    "latents of two sizes": (
        lambda: fit(VAE((3,), 5), MeanField((3,), 10), X),
        PairError,
        ["in the guide: the two must be the same; give both one latent_dim, 5 or 10"],
    ),
    **{
        f"{what} as counts": (
            partial(_fit_counts, rows),
            PairError,
            ["are outside of the support of Binomial, integers from 0 to 16:", words],
        )
        for what, rows, words in (
            ("fractions", COUNTS / 16, "they are counts divided by 16: multiply them by 16"),
            ("other fractions", COUNTS / 17, "or multiply them by 16 and round them"),
            (
                "larger counts",
                2 * COUNTS,
                "give the likelihood total_count=32 (--model.likelihood.",
            ),
            (
                "real numbers",
                0.9 * COUNTS,
                "take a likelihood of real numbers, such as LearnedGaussian",
            ),
            (
                "negative numbers",
                COUNTS - 3,
                "such as LearnedGaussian (--model.likelihood LearnedGa",
            ),
        )
    },
    "counts as levels": (
        lambda: fit(VAE((3,), 2, likelihood=DiscretizedLogistic(17)), MeanField((3,), 2), COUNTS),
        PairError,
        ["values k / 16 for k = 0, ..., 16: divide them by 16"],
    ),
    "fractions as counts, for the distribution itself": (
        lambda: (
            VAE((3,), 2, likelihood=Binomial(16)).decode(torch.zeros(8, 2)).log_prob(COUNTS / 16)
        ),
        ValueError,
        ["the data (0 to 1) are outside of the support, counts from 0 to 16: they are counts di"],
    ),
    "numbers as symbols": (
        lambda: evaluate(CategoricalHMM((3,), 2), Exact(CategoricalHMM((3,), 2)), 3 * X),
        PairError,
        ["CategoricalHMM has symbols 0, ..., 1, but x goes from -3 to 3"],
    ),
    "a model that calls itself": (
        lambda: fit(endless, guide, X),
        PairError,
        ["endless calls itself without end, in tests/test_bad_calls.py, line"],
    ),
    "a guide that calls itself": (
        lambda: evaluate(model, endless, X),
        PairError,
        ["the guide raised RecursionError", "endless calls itself without end, in tests/"],
    ),
    "a parameter that begins outside of its constraint": (
        lambda: fit(model, of_scale(-1.0, constraints.positive), X),
        PairError,
        ["the parameter 's' is NaN in 1 of its 1 numbers: it begins with a value outside of its"],
    ),
    "the same parameter in evaluate": (
        lambda: evaluate(model, of_scale(-1.0, constraints.positive), X),
        PairError,
        ["the parameter 's' is NaN in 1 of its 1 numbers: it begins with a value outside of its"],
    ),
    "a parameter that is no scale": (
        lambda: fit(model, of_scale(-1.0, constraints.real), X),
        PairError,
        ["site 'z' in the guide: the scale of Normal (the parameter 's') is -1", "above 0"],
    ),
    "no scale in evaluate": (
        lambda: evaluate(model, of_scale(-1.0, constraints.real), X),
        PairError,
        ["site 'z' in the guide: the scale of Normal (the parameter 's') is -1", "above 0"],
    ),
    "no scale in EM": (
        lambda: ppl_vae.fit_em(model, X, guide=of_scale(-1.0, constraints.real)),
        PairError,
        ["site 'z' in the guide: the scale of Normal (the parameter 's') is -1", "above 0"],
    ),
    "SVI as objective": (
        lambda: fit(model, guide, X, objective=object.__new__(pyro.infer.SVI)),
        TypeError,
        ["objective is an object of SVI", "pyro.infer.Trace_ELBO()"],
    ),
}

OPTIONS: dict[str, Case] = {
    "a trillion samples": (
        lambda: evaluate(model, guide, X, num_samples=10**12),
        ValueError,
        ["num_samples must be at most 100,000,000, got 1,000,000,000,000", "square root"],
    ),
    "half a sample": (
        lambda: evaluate(model, guide, X, num_samples=2.5),
        TypeError,
        ["num_samples must be a whole number, got 2.5"],
    ),
    "yes, samples": (
        lambda: evaluate(model, guide, X, num_samples=True),
        TypeError,
        ["num_samples must be a whole number, got True"],
    ),
    "gaps of one sample": (
        lambda: ppl_vae.inference_gaps(model, guide, X, num_samples=1),
        ValueError,
        ["num_samples must be at least 2, got 1"],
    ),
    "gaps in no steps": (
        lambda: ppl_vae.inference_gaps(model, guide, X, max_steps=0),
        ValueError,
        ["max_steps must be at least 1, got 0"],
    ),
    "too many temperatures": (
        lambda: ppl_vae.annealed_importance_sampling(model, guide, X, num_steps=10**12),
        ValueError,
        ["num_steps must be at most 1,000,000, got 1,000,000,000,000"],
    ),
    "too many draws": (
        lambda: ppl_vae.to_arviz(model, guide, X, num_draws=10**12),
        ValueError,
        ["num_draws must be at most"],
    ),
    "a word as seed": (
        lambda: fit(model, guide, X, seed="a"),
        TypeError,
        ["seed must be a whole number, got the string 'a'"],
    ),
    "a fraction as seed": (
        lambda: evaluate(model, guide, X, seed=1.5),
        TypeError,
        ["seed must be a whole number, got 1.5"],
    ),
    "a seed of 70 bits": (
        lambda: evaluate(model, guide, X, seed=2**70),
        ValueError,
        ["seed must be at most 9,223,372,036,854,775,807"],
    ),
    "data with a word as seed": (
        lambda: load_data("digits", seed="a"),  # type: ignore[call-overload]
        TypeError,
        ["seed must be a whole number, got 'a'"],
    ),
    "data with a seed of 70 bits": (
        lambda: load_data("digits", seed=2**70),
        ValueError,
        ["seed must be a whole number of 64 bits"],
    ),
    "EM with a word as seed": (
        lambda: ppl_vae.fit_em(GaussianMixture((3,), 2), X, seed="a"),  # type: ignore[arg-type]
        TypeError,
        ["seed must be a whole number, got the string 'a'"],
    ),
    "EM with a word as tolerance": (
        lambda: ppl_vae.fit_em(GaussianMixture((3,), 2), X, tolerance="low"),  # type: ignore[arg-type]
        TypeError,
        ["tolerance must be a number, got the string 'low'"],
    ),
    "EM for half an iteration": (
        lambda: ppl_vae.fit_em(GaussianMixture((3,), 2), X, max_iterations=0.5),  # type: ignore[arg-type]
        TypeError,
        ["max_iterations must be a whole number, got 0.5"],
    ),
    "the number of a device": (
        lambda: fit(model, guide, X, device=3),
        TypeError,
        ["device must be 'auto', 'cpu', 'cuda'", "got 3"],
    ),
    "a device of another name": (
        lambda: fit(model, guide, X, device="gpu"),
        ValueError,
        ["device='gpu': expected 'auto', 'cpu', 'cuda'"],
    ),
    "a name as fabric": (
        lambda: fit(model, guide, X, fabric="cuda"),
        TypeError,
        ["fabric must be a launched Lightning Fabric", "got the string 'cuda'"],
    ),
    "no processes": (
        lambda: make_fabric("cpu", num_processes=0),
        ValueError,
        ["num_processes must be at least 1, got 0"],
    ),
    "endless epochs": (
        lambda: fit(model, guide, X, max_epochs=float("inf")),
        TypeError,
        ["max_epochs must be a whole number, got inf"],
    ),
    "a check of no rows": (
        lambda: ppl_vae.check(model, guide, X, batch_size=0),
        ValueError,
        ["batch_size must be at least 1, got 0"],
    ),
    "patience without validation": (
        lambda: fit(model, guide, X, patience=3),
        ValueError,
        ["early stopping watches the held-out ELBO: give validation rows"],
    ),
    "a negative beta": (
        lambda: ppl_vae.diagnose(model, guide, X, beta=-1.0),
        ValueError,
        ["beta is a weight of the KL and must be >= 0, not -1.0"],
    ),
    "a word as beta": (
        lambda: ppl_vae.diagnose(model, guide, X, beta="one"),  # type: ignore[arg-type]
        TypeError,
        ["beta must be a number, got the string 'one'"],
    ),
    "an objective with a negative beta": (
        lambda: objectives.ELBO(beta=-1.0),
        ValueError,
        ["must be >= 0, not -1.0"],
    ),
    "a number as truth": (
        lambda: ppl_vae.inference_gaps(model, guide, X, truth=3.0),  # type: ignore[arg-type]
        TypeError,
        ["truth must be what evaluate or annealed_importance_sampling has returned", "got 3.0"],
    ),
    "a truth of other rows": (
        lambda: ppl_vae.inference_gaps(model, guide, X, truth=evaluate(model, guide, X[:5])),
        ValueError,
        ["truth holds log p(x) of 5 rows, but x has 20"],
    ),
    "a dict as evaluation": (
        lambda: ppl_vae.to_arviz(model, guide, X, evaluation={}),  # type: ignore[arg-type]
        TypeError,
        ["evaluation must be what evaluate has returned", "got an object of dict"],
    ),
    "a name as prior": (
        lambda: refit_prior(*pair(), X, "normal"),  # type: ignore[arg-type]
        TypeError,
        [
            "prior must be a description such as MixturePrior(20), or PixelCNNPrior() for codes, got",
            "the string 'normal'",
        ],
    ),
    "a class as prior": (
        lambda: refit_prior(*pair(), X, DiagonalNormal),  # type: ignore[arg-type]
        TypeError,
        ["got the class DiagonalNormal"],
    ),
    "no draws of data": (
        lambda: ppl_vae.sample(pair()[0], 0, like=X),
        ValueError,
        ["num must be at least 1, got 0"],
    ),
    "latents of another width": (
        lambda: ppl_vae.sample(pair()[0], 4, like=X, given={"z": torch.zeros(4, 5)}),
        PairError,
        ["given['z'] has rows of shape (5,), and the model's site 'z' of shape (2,)"],
    ),
    "rows without a number": (
        lambda: ppl_vae.sample(pair()[0], 4, like=X[:0]),
        ValueError,
        ["x has no rows: its shape is (0, 3)"],
    ),
    "a word as seed of draws": (
        lambda: ppl_vae.sample(pair()[0], 4, like=X, seed="a"),  # type: ignore[arg-type]
        TypeError,
        ["seed must be a whole number, got the string 'a'"],
    ),
    "no model to draw from": (
        lambda: ppl_vae.sample(None, 4, like=X),  # type: ignore[arg-type]
        TypeError,
        ["model is None: pass a Pyro program"],
    ),
    "a word as dimension": (
        lambda: ppl_vae.traverse(*pair(), X, "first"),  # type: ignore[arg-type]
        TypeError,
        ["dimension must be a whole number, or a list of them, got the string 'first'"],
    ),
    "a dimension that is not there": (
        lambda: ppl_vae.traverse(*pair(), X, [0, 2]),
        ValueError,
        ["dimension must be at most 1, got 2"],
    ),
    "two step sizes": (
        lambda: fit(model, guide, X, optimizer=partial(torch.optim.SGD, lr=0.1), learning_rate=0.5),
        ValueError,
        ["the class SGD with lr=0.1, and learning_rate=0.5: give one of the two"],
    ),
    "more components than rows": (
        lambda: ppl_vae.fit_em(GaussianMixture((3,), 10**6), X),
        ValueError,
        ["1,000,000 components need at least as many rows to start from, got 20"],
    ),
    "more components of PCA than rows": (
        lambda: ppl_vae.fit_em(MixtureOfPCA((3,), 2, 10**5), X),
        ValueError,
        ["100,000 components need at least as many rows to start from, got 20"],
    ),
    "more states than steps": (
        lambda: ppl_vae.fit_em(GaussianHMM((3,), 100), X),
        ValueError,
        ["100 states need at least as many steps to start from, got 60"],
    ),
    "an empty history": (
        lambda: learning_curves([]),
        ValueError,
        ["the history is empty", "metrics.csv is missing"],
    ),
}

PARTS: dict[str, Case] = {
    "half a latent": (
        lambda: VAE((3,), latent_dim=2.5),  # type: ignore[arg-type]
        TypeError,
        ["VAE.latent_dim must be a whole number, got 2.5"],
    ),
    "a number as shape": (
        lambda: VAE(3),  # type: ignore[arg-type]
        TypeError,
        ["VAE.data_shape must be the shape of a row, such as (5,), got 3"],
    ),
    "rows of no numbers": (
        lambda: MeanField((0,)),
        ValueError,
        ["MeanField.data_shape must hold positive numbers, got (0,)"],
    ),
    "half a column": (
        lambda: GaussianHMM((4, 0.5)),  # type: ignore[arg-type]
        TypeError,
        ["GaussianHMM.data_shape must hold whole numbers, got (4, 0.5)"],
    ),
    "the name of a network": (
        lambda: NeuralSpline((3,), network="MLP"),  # type: ignore[arg-type]
        TypeError,
        ["NeuralSpline.network must be an object such as MLP(), got 'MLP'"],
    ),
    "the class of a network": (
        lambda: HierarchicalVAE((3,), latent_network=MLP),  # type: ignore[arg-type]
        TypeError,
        ["HierarchicalVAE.latent_network must be an object such as MLP(), got the class MLP"],
    ),
    "the class of a likelihood": (
        lambda: VAE((3,), likelihood=Bernoulli),  # type: ignore[arg-type]
        TypeError,
        ["VAE.likelihood must be an object such as Bernoulli(), got the class Bernoulli"],
    ),
    "the name of a prior": (
        lambda: VAE((3,), prior="normal"),  # type: ignore[arg-type]
        TypeError,
        ["VAE.prior must be an object such as StandardNormal(), got 'normal'"],
    ),
    "one width": (
        lambda: MLP(hidden=8),  # type: ignore[arg-type]
        TypeError,
        ["MLP.hidden must be a list of widths, one for each layer, got 8"],
    ),
    "half a channel": (
        lambda: Convolutional(channels=(2.5,)),  # type: ignore[arg-type]
        TypeError,
        ["Convolutional.channels must hold whole numbers, got (2.5,)"],
    ),
}


CASES = PROGRAMS | OPTIONS | PARTS


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_answer_names_the_culprit(case: str) -> None:
    call, kind, words = CASES[case]
    refused(call, kind, *words)
