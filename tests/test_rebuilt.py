"""A run says by itself how its pair is built: our classes, and those that derive from ours.

`test_contract` does it for every row of the catalogue.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from torch import Tensor, nn

from ppl_vae import fit, load_run, save_run
from ppl_vae.codes import VectorQuantizer
from ppl_vae.guides import Exact, FullCovariance, MeanField, QuantizingEncoder
from ppl_vae.likelihoods import Binomial, Gaussian
from ppl_vae.models import VAE, VQVAE, ProbabilisticPCA, VampPrior
from ppl_vae.networks import MLP, Convolutional, Slots, recipe_of
from ppl_vae.pairs import attach_guide, keep_guide
from ppl_vae.runs import UntrustedError
from ppl_vae.runs.building import describe

X = (torch.rand(20, 1, 8, 8, generator=torch.Generator().manual_seed(0)) > 0.5).float()

OWN = '''
from ppl_vae.models import VAE
from ppl_vae.networks import MLP

class Small(VAE):
    """With a default of its own, and an option that VAE does not have."""
    def __init__(self, data_shape, width: int = 5, latent_dim: int = 2):
        self.width = width
        super().__init__(data_shape, latent_dim, MLP((width,)))
'''


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "own_of_rebuilt.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    yield __import__("own_of_rebuilt")
    sys.modules.pop("own_of_rebuilt", None)


def test_what_is_remembered_is_what_was_given() -> None:
    hidden = [32, 16]
    network = MLP(hidden, activation=nn.Tanh)
    model = VAE((1, 8, 8), 3, network=network, likelihood=Binomial(16), prior=VampPrior(5))
    hidden.append(99)
    assert describe(model) == {
        "class_path": "ppl_vae.models.VAE",
        "init_args": {
            "data_shape": [1, 8, 8],
            "latent_dim": 3,
            "network": {
                "class_path": "ppl_vae.networks.MLP",
                "init_args": {
                    "hidden": [32, 16],
                    "activation": "torch.nn.Tanh",
                    "skip": False,
                    "output": None,
                },
            },
            "likelihood": {
                "class_path": "ppl_vae.likelihoods.Binomial",
                "init_args": {"total_count": 16},
            },
            "prior": {
                "class_path": "ppl_vae.models.VampPrior",
                "init_args": {"components": 5, "low": 0.0, "high": 1.0},
            },
        },
    }
    assert describe(Exact(ProbabilisticPCA((3,)))) == {
        "class_path": "ppl_vae.guides.Exact",
        "init_args": {"beta": 1.0},
    }


def test_what_was_changed_afterwards_is_remembered(own: Any, tmp_path: Path) -> None:
    """A setting is an attribute: what is saved is what the pair does, not what it did when it was built."""
    network = Slots(4, MLP((8,)))
    model: Any = VQVAE((1, 8, 8), VectorQuantizer(8, 2), network, Gaussian(0.5))
    guide = QuantizingEncoder(model, network, temperature=2.0)
    guide.temperature = 0.0
    model.likelihood = Gaussian(1.5)
    model.quantizer.codebook.decay = 0.5  # as `diagnose` advises where codes lag
    save_run(tmp_path / "run", model, guide)
    saved: Any = load_run(tmp_path / "run")
    assert saved.guide.temperature == 0
    assert saved.model.likelihood.sigma == 1.5
    assert saved.model.quantizer.codebook.decay == 0.5
    z = torch.zeros(1, 4, dtype=torch.long)
    assert torch.equal(saved.model.decode(z).log_prob(X[:1]), model.decode(z).log_prob(X[:1]))
    kept = own.Small((3,), width=7)
    recipe: Any = recipe_of(kept)
    assert recipe.arguments["width"] == 7
    kept.width = 9
    recipe = recipe_of(kept)
    assert recipe.arguments == {"data_shape": [3], "width": 9, "latent_dim": 2}


def test_a_class_that_derives_from_ours(own: Any, tmp_path: Path) -> None:
    model, guide = own.Small((1, 8, 8), width=7), MeanField((1, 8, 8), 2, Convolutional((4,), 8))
    save_run(tmp_path / "run", model, guide)
    with pytest.raises(UntrustedError, match=r"own_of_rebuilt\.Small"):
        load_run(tmp_path / "run")
    run: Any = load_run(tmp_path / "run", trust=["own_of_rebuilt"])
    assert type(run.model) is own.Small
    assert run.model.width == 7
    for one, other in zip(run.model.parameters(), model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_what_cannot_be_written_is_said(tmp_path: Path) -> None:
    class Local(VAE):
        pass

    odd = MLP((8,), activation=partial(nn.LeakyReLU, 0.3))  # type: ignore[arg-type]
    for model in (Local((1, 8, 8), 2), VAE((1, 8, 8), 2, odd)):
        assert describe(model) is None
        save_run(tmp_path / "run", model, MeanField((1, 8, 8), 2), overwrite=True)
        with pytest.raises(ValueError, match="does not say how the model was built"):
            load_run(tmp_path / "run")
        assert load_run(tmp_path / "run", model=model).model is model


def test_a_guide_that_the_model_keeps(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = VAE((1, 8, 8), 2, MLP((8,)), prior=VampPrior(4))
    attach_guide(model, MeanField((1, 8, 8), 2, MLP((8,))))
    assert keep_guide(model)
    save_run(tmp_path / "run", model, FullCovariance((1, 8, 8), 2, MLP((6,))))
    run: Any = load_run(tmp_path / "run")
    assert type(run.model.prior.kept) is MeanField
    assert type(run.guide) is FullCovariance
    z = torch.randn(9, 2)
    assert torch.equal(run.model.prior().log_prob(z), model.prior().log_prob(z))


def test_double_precision_is_not_rounded(tmp_path: Path) -> None:
    model, guide = VAE((1, 8, 8), 2).double(), MeanField((1, 8, 8), 2).double()
    save_run(tmp_path / "run", model, guide)
    run: Any = load_run(tmp_path / "run")
    for one, other in zip(run.model.parameters(), model.parameters(), strict=True):
        assert one.dtype == torch.float64
        assert torch.equal(one, other)


def test_a_wrong_argument_is_told_by_the_constructor() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'latent_dims'"):
        VAE((3,), latent_dims=2)  # type: ignore[call-arg]
    with pytest.raises(ValueError, match="latent_dim must be at least 1"):
        VAE((3,), latent_dim=0)


def test_no_object_is_kept_alive_by_what_is_remembered() -> None:
    def tensors(told: Any) -> bool:
        if isinstance(told, dict | list):
            return any(map(tensors, told.values() if isinstance(told, dict) else told))
        return isinstance(told, Tensor | nn.Module)

    model = VAE((3,), 2, likelihood=Binomial(4))
    recipe = recipe_of(model)
    assert recipe is not None
    assert not tensors(recipe.arguments)


def test_a_part_that_was_replaced_is_not_forgotten(tmp_path: Path) -> None:
    """The weights would fit, and nothing would say that x is binary no more."""
    model, guide = VAE((1, 8, 8), 2), MeanField((1, 8, 8), 2)
    model.likelihood = Binomial(4)
    save_run(tmp_path / "run", model, guide)
    with pytest.raises(ValueError, match="does not say how the model was built"):
        load_run(tmp_path / "run")
    run: Any = load_run(tmp_path / "run", model=model)
    assert type(run.guide) is MeanField


def test_constructors_of_every_kind(tmp_path: Path) -> None:
    """What is not built again alike is not described; nothing fails while it is saved."""

    class Anything(VAE):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)

    class Given(VAE):
        def __init__(self, shape: Any, make: Any) -> None:
            super().__init__(shape, make())

    for i, model in enumerate((Anything((1, 8, 8), 2), Given((1, 8, 8), lambda: 2))):
        save_run(tmp_path / f"{i}", model, MeanField((1, 8, 8), 2))
        with pytest.raises(ValueError, match="does not say how the model was built"):
            load_run(tmp_path / f"{i}")
    assert recipe_of(Given((1, 8, 8), lambda: 2)) is None  # no closure is kept alive
    noise = VAE((1, 8, 8), 2, likelihood=Gaussian(np.float64(0.3)))
    save_run(tmp_path / "numpy", noise, MeanField((1, 8, 8), np.int64(2)))  # type: ignore[arg-type]
    run: Any = load_run(tmp_path / "numpy")
    z = torch.randn(3, 2)
    assert torch.equal(run.model.decode(z).stddev, noise.decode(z).stddev)


def test_the_programs_of_a_fit_are_described(tmp_path: Path) -> None:
    model = VAE((1, 8, 8), 2, MLP((8,)))

    def guide(x: Tensor) -> None:
        loc = pyro.param("loc", torch.zeros(2))
        with pyro.plate("data", len(x)):
            pyro.sample("z", pyro.distributions.Normal(loc, 1.0).to_event(1))

    fitted = fit(model, guide, X, max_epochs=1, seed=0, progress=False)
    save_run(tmp_path / "run", fitted.model, fitted.guide)
    run: Any = load_run(tmp_path / "run", guide=guide)
    assert type(run.model) is VAE
    for one, other in zip(run.model.parameters(), model.parameters(), strict=True):
        assert torch.equal(one, other)
