"""Arguments of constructors that cannot be: models, guides, networks, likelihoods, priors, parts of EM.

Each argument of each of them gets values of wrong types; what is not accepted names the argument.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from bad_inputs import Case, refused
from torch import nn

import ppl_vae
from ppl_vae.em import GradientSteps, StepSize
from ppl_vae.guides import MeanField
from ppl_vae.models import VAE, CategoricalHMM, GaussianHMM, GaussianMixture, HierarchicalVAE
from ppl_vae.networks import MLP, Convolutional
from ppl_vae.training.memory import free_memory

REQUIRED = {
    "data_shape": (4, 3),
    "total_count": 3,
    "network": nn.Linear(3, 4),
    "latent_dims": (2, 2),
    "count": 2,
    "categories": 3,
    "grids": [(2, 2)],
    "codes": [3],
    "initial": [0.5, 0.5],
    "transition": [[0.5, 0.5], [1.0, 0.0]],
}
"""What the constructors need."""

OF_KIND: dict[str, dict[str, Any]] = {
    "Denoising": {"network": MLP(), "noise": 0.5},
    "UnitNorm": {"network": MLP()},
    "Discriminator": {"network": MLP()},
}
"""What some constructors need beside."""

WRONG: list[Any] = [True, "a", None, -1, 2.5, [True], 10**9 + 0.5, object()]


FACES = (ppl_vae.models, ppl_vae.guides, ppl_vae.networks, ppl_vae.codes, ppl_vae.likelihoods)
OURS_ALONE = (
    *("Recipe", "Rebuildable", "GatedLayers", "Tile", "AttentionBlock", "SentenceNetwork"),
    *("PictureDecoder", "PictureEncoder", "PyramidDecoder", "PyramidEncoder"),
)
"""What no users build."""


def _kinds() -> dict[str, type[Any]]:
    found: dict[str, type[Any]] = {}
    for face in FACES:
        for name in getattr(face, "__all__", dir(face)):
            kind = getattr(face, name)
            ours_alone = name in OURS_ALONE
            if inspect.isabstract(kind) or name.startswith("_") or ours_alone:
                continue
            here = hasattr(face, "__path__") or getattr(kind, "__module__", "") == face.__name__
            if inspect.isclass(kind) and here:  # not what a single file imports
                found[name] = kind
    own = {n: k for n, k in found.items() if k.__module__.startswith("ppl_vae.")}
    own |= {"StepSize": StepSize, "GradientSteps": GradientSteps}
    needs = {n: set(inspect.signature(k).parameters) for n, k in own.items()}
    return {n: k for n, k in own.items() if not needs[n] & {"guide", "model", "loc", "x"}}


KINDS = _kinds()


def _allowed(value: Any, annotation: str) -> bool:
    """Whether a value may be right, by the annotation."""
    if value is None:
        return "None" in annotation
    if isinstance(value, float):
        return "float" in annotation
    if isinstance(value, bool):
        return "bool" in annotation
    return isinstance(value, int) and ("float" in annotation or "int" in annotation)


def _shape_of(name: str) -> tuple[int, ...]:
    if "VQVAE" in name:  # a picture that can be halved twice
        return (1, 8, 8)
    of_steps = ("CategoricalHMM", "SubstitutionCipher", "LanguageModel", "LatentTranslation")
    return (4,) if name in of_steps else (4, 3)


def _said(kind: type[Any], arguments: dict[str, Any]) -> str | None:
    """What a constructor says to its arguments; None if it takes them."""
    try:
        kind(**arguments)
    except (TypeError, ValueError) as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", KINDS)
def test_a_wrong_argument_is_named(name: str) -> None:
    kind = KINDS[name]
    parameters = inspect.signature(kind).parameters
    given: dict[str, Any] = {
        n: REQUIRED[n] for n, p in parameters.items() if p.default is p.empty and n in REQUIRED
    }
    if "data_shape" in given:
        given["data_shape"] = _shape_of(name)
    given |= OF_KIND.get(name, {})
    kind(**given)
    for argument, parameter in parameters.items():
        for value in WRONG:
            said = _said(kind, {**given, argument: value})
            if said is None:
                assert _allowed(value, str(parameter.annotation)), (argument, value)
            else:
                assert argument in said, (argument, value, said)
                assert said.count("\n") < 3


CASES: dict[str, Case] = {
    "a function as activation": (
        lambda: MLP(activation=torch.relu),  # type: ignore[arg-type]
        TypeError,
        [
            "MLP.activation must be a class",
            "the function relu, which computes: write torch.nn.ReLU",
        ],
    ),
    "a function of torch.nn.functional": (
        lambda: MLP(activation=nn.functional.leaky_relu),  # type: ignore[arg-type]
        TypeError,
        ["the function leaky_relu, which computes: write torch.nn.LeakyReLU"],
    ),
    "a layer with arguments": (
        lambda: MLP(activation=nn.Linear),
        TypeError,
        ["got Linear, which cannot be made without arguments", "'in_features'"],
    ),
    "an object as activation": (
        lambda: MLP(activation=nn.ReLU()),  # type: ignore[arg-type]
        TypeError,
        ["got an object of ReLU: write ReLU without parentheses"],
    ),
    "another class as activation": (
        lambda: MLP(activation=int),  # type: ignore[arg-type]
        TypeError,
        ["MLP.activation must be a class such as torch.nn.ReLU, got <class 'int'>"],
    ),
    "a flag as width": (
        lambda: MLP(hidden=(True,)),
        TypeError,
        ["MLP.hidden must hold whole numbers, got (True,)"],
    ),
    "a flag as channels": (
        lambda: Convolutional(channels=(8, True)),
        TypeError,
        ["Convolutional.channels must hold whole numbers"],
    ),
    "a flag as size": (
        lambda: VAE((True,)),
        TypeError,
        ["VAE.data_shape must hold whole numbers, got (True,)"],
    ),
    "one layer of latents": (
        lambda: HierarchicalVAE((3,), 2),  # type: ignore[arg-type]
        TypeError,
        ["HierarchicalVAE.latent_dims must be two positive numbers", "got 2"],
    ),
    "a trillion latents": (
        lambda: VAE((3,), 10**12),
        ValueError,
        [
            "MLP would hold 1,000,000,000,000 x 256 numbers",
            "this machine has",
            "a smaller latent_dim",
        ],
    ),
    "a trillion latents of a guide": (
        lambda: MeanField((3,), 10**12),
        ValueError,
        ["the guide would hold 256 x 2,000,000,000,000 numbers", "choose a smaller latent_dim"],
    ),
    "a trillion columns": (
        lambda: VAE((10**12,)),
        ValueError,
        ["numbers, which take 953,674 GiB of memory", "data_shape"],
    ),
    "a picture too large": (
        lambda: VAE((3, 10**6, 10**6), network=Convolutional((8,))),
        ValueError,
        ["Convolutional would hold", "choose a smaller latent_dim, data_shape"],
    ),
    "full covariances of a million columns": (
        lambda: GaussianMixture((10**6,)),
        ValueError,
        ["GaussianMixture would hold 10 x 1,000,000,000,000 numbers", 'covariance="diagonal"'],
    ),
    "a million states": (
        lambda: CategoricalHMM((5,), states=10**6),
        ValueError,
        ["CategoricalHMM would hold 1,000,000 x 1,000,000 numbers", "choose fewer states"],
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_the_answer_names_the_culprit(case: str) -> None:
    call, kind, words = CASES[case]
    refused(call, kind, *words)


@pytest.mark.parametrize(
    "activation", [nn.Softplus, functools.partial(nn.LeakyReLU, 0.2), lambda: nn.ELU(0.5)]
)
def test_what_makes_a_layer_is_an_activation(activation: Callable[[], nn.Module]) -> None:
    network = MLP(hidden=(4,), activation=activation)  # type: ignore[arg-type]
    assert network.encoder((3,))(torch.zeros(2, 3)).shape == (2, 4)


def test_weights_without_memory_may_be_of_any_size() -> None:
    with torch.device("meta"):
        assert VAE((3,), 10**9).latent_dim == 10**9


def test_a_series_of_single_numbers_needs_no_last_dimension() -> None:
    x = torch.randn(6, 12, generator=torch.Generator().manual_seed(0)).cumsum(1)
    found = [
        ppl_vae.fit_em(GaussianHMM((12, *event), 2), rows, seed=0, progress=False).log_likelihood
        for event, rows in (((), x), ((1,), x.unsqueeze(-1)))
    ]
    assert found[0] == pytest.approx(found[1], abs=1e-9)


def test_a_training_that_the_memory_cannot_hold_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ppl_vae.training.memory._LARGE", 0)
    monkeypatch.setattr("ppl_vae.training.memory.free_memory", lambda: 100.0)
    programs = VAE((3,), 2), MeanField((3,), 2)
    refused(
        lambda: ppl_vae.fit(*programs, torch.rand(5, 3).round(), max_epochs=1, device="cpu"),
        ValueError,
        "the training needs at least",
        "weights, for gradients, the optimizer, and 0 GiB are free: choose a smaller network",
    )


def test_the_free_memory_is_known() -> None:
    assert 2**20 < free_memory() < 2**50
