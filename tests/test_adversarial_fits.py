"""Trainings with an adversary: their bits, resumed, in several processes, on the command line; errors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import catalogue
import pyro
import pyro.distributions as dist
import pytest
import torch
from adversaries import NET, Affine, D, Latent, X, each_turn, lost, normed, pair
from ranks import Ranks
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from trainings import same, weights

from ppl_vae import fit, load_run, refit_guide
from ppl_vae.capture import CapturedLoss
from ppl_vae.cli import main
from ppl_vae.cli.reached import fit_of
from ppl_vae.guides import MeanField
from ppl_vae.likelihoods import Categorical, LearnedGaussian
from ppl_vae.models import VAE, VAEGAN, Discriminator
from ppl_vae.networks import MLP, Convolutional
from ppl_vae.objectives import (
    ELBO,
    GANLoss,
    LinearWarmup,
    Loss,
    MeanFieldELBO,
    Objective,
    TraceELBO,
    VAEDisLoss,
    VAEGANLoss,
)
from ppl_vae.objectives.judged_rows import seen_through
from ppl_vae.pairs import Pair, PairError
from ppl_vae.runs import read_history
from ppl_vae.runtime import make_fabric

# -- trainings -------------------------------------------------------------------------------------------

ROWS = X.float()


def small(**settings: Any) -> tuple[VAEGAN, MeanField]:
    model, guide = pair(**settings)
    return model.float(), guide.float()


def test_the_default_objective_is_that_of_a_vae_gan() -> None:
    model, guide = small()
    assert ELBO(beta=0.5).resolve(Pair(model, guide), ROWS) == VAEGANLoss(beta=0.5)
    landing = ELBO(stick_the_landing=True).resolve(Pair(model, guide), ROWS)
    assert landing == TraceELBO(stick_the_landing=True)
    fitted = fit(model, guide, ROWS, batch_size=5, max_epochs=2, seed=0)
    assert (fitted.objective, fitted.resolved) == (ELBO(), VAEGANLoss())
    assert repr(fitted).endswith("stopped='reached max_epochs = 2', objective=VAEGANLoss)")
    assert "objective, for this pair" in fitted._repr_html_()
    assert "VAEGANLoss(beta=1.0" in fitted._repr_html_()
    row = fitted.history[-1]
    assert {"loss_pair", "loss_discriminator", "accuracy_real", "accuracy_false"} <= row.keys()
    assert row["loss"] == pytest.approx(row["loss_pair"] + row["loss_discriminator"], rel=1e-5)
    assert row["elbo"] == pytest.approx(-row["rate"] - row["distortion"], rel=1e-5)
    assert fitted.steps == 6
    # A frozen model has no discriminator to be trained: it is the ELBO.
    before = weights(model, model)
    refitted = refit_guide(model, guide, ROWS, max_epochs=1, seed=0)
    assert "loss_pair" not in refitted.history[0]
    assert same(weights(model, model), before)


@dataclass(frozen=True, kw_only=True)
class Doubled(MeanFieldELBO):
    """An objective of a user's own."""

    def __call__(self, pair: Pair, layout: Any, batch: Any, beta: float = 1.0) -> Loss:
        found = super().__call__(pair, layout, batch, beta)
        return Loss(2 * found.loss, found.elbo, found.rate, found.distortion, found.traces)


@dataclass(frozen=True, kw_only=True)
class OwnELBO(ELBO):
    """An ELBO that chooses another estimator."""

    def resolve(self, pair: Pair, batch: Any) -> Objective:
        found = super().resolve(pair, batch)
        return Doubled(beta=self.beta) if isinstance(found, MeanFieldELBO) else found


@dataclass(frozen=True, kw_only=True)
class SameELBO(ELBO):
    """An ELBO that changes nothing."""


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (OwnELBO, Doubled(beta=0.5)),
        (SameELBO, MeanFieldELBO(beta=0.5)),
        ("VAEGANLoss", VAEGANLoss(beta=0.5)),
        (VAEGANLoss, VAEGANLoss(beta=0.5)),
        (Doubled, Doubled(beta=0.5)),
        (None, MeanFieldELBO(beta=0.5)),
        ("ELBO", MeanFieldELBO(beta=0.5)),
    ],
)
def test_a_model_asks_for_an_objective(asked: Any, expected: Objective) -> None:
    model: Any = Affine(1.0, 0.5)
    model.default_objective = asked
    x = torch.zeros(4, 1)
    assert ELBO(beta=0.5).resolve(Pair(model, Latent()), x) == expected
    given = OwnELBO(beta=0.5)  # which was chosen, so that the model is not asked
    assert given.resolve(Pair(model, Latent()), x) == Doubled(beta=0.5)


def test_a_module_of_the_name_discriminator_chooses_nothing() -> None:
    """A model of a user's own that has one is trained by the ELBO, and by an adversary if that is asked for."""

    class Own(Affine):
        def forward(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
                loc = self.affine[0] + self.affine[1] * z + self.discriminator(z)[0][..., None]
                pyro.sample("x", dist.Normal(loc, 0.1).to_event(1), obs=x)

    x = torch.randn(8, 1, generator=torch.Generator().manual_seed(0))
    fitted = fit(Own(1.0, 0.5), Latent(), x, max_epochs=1, seed=0)
    assert fitted.resolved == MeanFieldELBO()
    assert "loss_discriminator" not in fitted.history[0]
    assert repr(fitted).endswith("', objective=MeanFieldELBO)")
    given = fit(Own(1.0, 0.5), Latent(), x, objective=MeanFieldELBO(), max_epochs=1, seed=0)
    assert repr(fitted) == repr(given)[:-1] + ", objective=MeanFieldELBO)"
    assert "for this pair" not in given._repr_html_()


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ("VAEGANLos", "default_objective = 'VAEGANLos', which must be the name of an objective"),
        ("adversarial", "default_objective = 'adversarial'"),
        ("Turn", "default_objective = 'Turn'"),
        ("Alternating", "'Alternating', which must be .* a class that .* has all of its methods"),
        (Objective, "the class Objective, which must be the name"),
        (VAEGANLoss(), "an object of VAEGANLoss, which must be the name .* or a class"),
        (print, "default_objective = .*, which must be"),
    ],
)
def test_a_model_that_asks_for_no_objective(asked: Any, told: str) -> None:
    model: Any = Affine(1.0, 0.5)
    model.default_objective = asked
    with pytest.raises(PairError, match=told):
        fit(model, Latent(), torch.zeros(4, 1), max_epochs=1)


def test_a_model_that_asks_for_an_adversary_needs_one() -> None:
    model: Any = VAE((D,), 2, NET, LearnedGaussian())
    model.default_objective = "VAEGANLoss"
    with pytest.raises(PairError, match="VAEGANLoss needs a model with a module `discriminator`"):
        fit(model, MeanField((D,), 2, NET), ROWS, max_epochs=1)


def test_an_adversarial_loss_is_not_taken_for_the_elbo() -> None:
    """By default as well: a training that watches that they agree would tell of an error after 20 steps."""
    model, guide = small()
    fitted = fit(model, guide, ROWS, batch_size=4, max_epochs=10, seed=0)
    assert fitted.steps == 30
    assert fitted.warnings == ()


@pytest.mark.parametrize(
    ("make", "objective", "kept"),
    [
        (VAEGAN, ELBO(), 3),
        (VAEGAN, VAEGANLoss(), 3),
        (VAEGAN, MeanFieldELBO(), 2),
        (VAE, ELBO(), 2),
    ],
)
def test_the_last_weights_of_a_run_are_those_of_an_adversary(
    make: Any, objective: Objective, kept: int, tmp_path: Path
) -> None:
    """Of a run that could stop early: its best epoch by the ELBO, unless the loss is no ELBO."""
    history = [
        {"step": 5.0 * i, "elbo": e, "validation_elbo": e}
        for i, e in ((1, -3.0), (2, -1.0), (3, -2.0))
    ]
    run: Any = SimpleNamespace(
        path=tmp_path, config={"patience": 5}, model=make((D,), 2, NET), guide=None
    )
    with patch("ppl_vae.cli.reached.read_history", return_value=history):
        found = fit_of(run, objective)
    assert found.best_epoch == kept
    asks = make is VAEGAN and objective == ELBO()
    assert found.resolved == (VAEGANLoss() if asks else None)


@pytest.mark.parametrize(
    ("config", "objective", "kept"),
    [
        ({}, ELBO(), 1),
        ({}, ELBO(beta=LinearWarmup(epochs=2)), 3),
        ({}, ELBO(beta=LinearWarmup(epochs=3)), 3),
        ({}, ELBO(beta=LinearWarmup(epochs=30)), 4),  # it has not stopped early
        ({"fit_noise": True}, ELBO(), 3),
    ],
)
def test_epochs_before_the_last_beta_and_noise_are_not_the_best_of_a_run(
    config: dict[str, Any], objective: Objective, kept: int, tmp_path: Path
) -> None:
    """As in the training. The noise was found once, before the third epoch."""
    history = [
        {"step": 5.0, "elbo": elbo, "validation_elbo": elbo, "sigma": sigma}
        for elbo, sigma in ((-1.0, 3.0), (-3.0, 3.0), (-2.0, 2.0), (-2.5, 2.0))
    ]
    run: Any = SimpleNamespace(
        path=tmp_path, config={"patience": 5, **config}, model=VAE((D,), 2, NET), guide=None
    )
    with patch("ppl_vae.cli.reached.read_history", return_value=history):
        assert fit_of(run, objective).best_epoch == kept


def test_a_plateau_of_a_gan_is_refused() -> None:
    with pytest.raises(
        ValueError, match="a higher ELBO is not what GANLoss is after: give a schedule"
    ):
        fit(*pair(), X, objective=GANLoss(), lr_scheduler=ReduceLROnPlateau, max_epochs=1)


class Said(Discriminator):
    """Its logits are the first number of each row."""

    def __init__(self) -> None:
        super().__init__(NET, (1,))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x[:, 0], x


def test_accuracy_is_that_of_a_discriminator_beside_chance() -> None:
    """With two kinds of false rows, D = 1/3 tells nothing: logit -0.69. With one, D = 1/2."""
    real = torch.tensor([[0.2], [-0.5], [-0.6], [-0.8]])  # D = 0.55, 0.38, 0.35, 0.31
    first, second = torch.tensor([[-0.8], [-0.5]]), torch.tensor([[-0.9], [-2.0]])
    judge = Said()
    seen_through(judge, real, first, second)
    assert judge.epoch_metrics() == {"accuracy_real": 0.75, "accuracy_false": 0.75}
    seen_through(judge, real, second)
    assert judge.epoch_metrics() == {"accuracy_real": 0.25, "accuracy_false": 1.0}
    # What tells nothing says the same of all kinds: the shares add up to 1.
    seen_through(judge, real, real, real)
    told = judge.epoch_metrics()
    assert told == {"accuracy_real": 0.75, "accuracy_false": 0.25}
    judge.eval()
    seen_through(judge, real, first, second)
    assert judge.epoch_metrics() == {}


def test_accuracy_is_that_of_the_logits() -> None:
    judge = Discriminator(NET, (D,))
    judge.count(torch.tensor([1.0, -1.0, 2.0]), torch.tensor([-1.0, 3.0]))
    judge.count(torch.tensor([1.0]), torch.tensor([-1.0, -3.0]))
    assert judge.epoch_metrics() == {"accuracy_real": 0.75, "accuracy_false": 0.75}
    assert judge.epoch_metrics() == {}


def accuracies(rank: int, count: int) -> list[dict[str, float]]:
    """Of a D that does not move, by so many processes: 33 rows, the last of which is a batch of its own."""
    model, guide = Affine(1.0, 0.0), Latent()
    x = torch.randn(33, 1, generator=torch.Generator().manual_seed(0))
    model.discriminator = judge = Discriminator(NET, (1,))  # type: ignore[assignment]
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in judge.parameters():
            nn.init.normal_(parameter)
        judge.head.bias.sub_(judge(x)[0].median())
    expected = float((judge(x)[0] > 0).double().mean()), float(judge(torch.ones(1, 1))[0] < 0)
    fitted = fit(
        *(model, guide, x),
        objective=GANLoss(),
        optimizer=torch.optim.SGD,
        learning_rate=1e-9,
        batch_size=16,
        max_epochs=2,
        seed=0,
        fabric=make_fabric("cpu", num_processes=count),
        progress=False,
    )
    found = [(row["accuracy_real"], row["accuracy_false"]) for row in fitted.history]
    return [dict(zip(("real", "false"), each, strict=True)) for each in (expected, *found)]


def test_accuracy_of_two_processes_is_that_of_all_rows(tmp_path: Path) -> None:
    """The first process has 17 of the 33 rows, so that its own shares are others."""
    for expected, *found in (
        accuracies(0, 1),
        *Ranks(lambda rank: accuracies(rank, 2), tmp_path).end(60),
    ):
        assert 0.4 < expected["real"] < 0.6
        for row in found:
            assert row == pytest.approx(expected, abs=1e-6)


def test_a_gan_leaves_the_guide_and_vae_dis_the_discriminator() -> None:
    model, guide = small()
    before = weights(model, guide)
    fit(model, guide, ROWS, objective=GANLoss(), max_epochs=2, seed=0)
    after = weights(model, guide)
    for name, value in after.items():
        moved = name.startswith(("model.decoder", "model.discriminator", "model.likelihood"))
        assert torch.equal(value, before[name]) != (moved and "counts" not in name), name
    fit(model, guide, ROWS, objective=VAEDisLoss(), max_epochs=2, seed=0)
    last = weights(model, guide)
    for name, value in last.items():
        moved = name.startswith(("model.decoder", "guide", "model.likelihood"))
        assert torch.equal(value, after[name]) != moved, name
    assert all(p.grad is None for p in model.discriminator.parameters())


def judge() -> Discriminator:
    torch.manual_seed(0)
    return Discriminator(NET, (D,))


class OwnModel(nn.Module):
    """z ~ N(0, I), x ~ N(loc + z, 0.5^2 I); loc is a parameter or a `pyro.param`."""

    def __init__(self, of_pyro: bool) -> None:
        super().__init__()
        self.discriminator = judge()
        if not of_pyro:
            self.loc = nn.Parameter(torch.full((D,), 0.1))

    def forward(self, x: Tensor) -> None:
        loc = getattr(self, "loc", None)
        loc = pyro.param("loc", torch.full((D,), 0.1)) if loc is None else loc
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(D), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(loc + z, 0.5).to_event(1), obs=x)


class OwnGuide(nn.Module):
    """z ~ N(slope x, 0.8^2 I)."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.full((D,), 0.5))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(self.slope * x, 0.8).to_event(1))


def of_functions() -> tuple[Any, Any]:
    """The same programs as functions, with a discriminator that is an attribute of the model."""

    def model(x: Tensor) -> None:
        loc = pyro.param("loc", torch.full((D,), 0.1))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(D), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(loc + z, 0.5).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        slope = pyro.param("slope", torch.full((D,), 0.5))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(slope * x, 0.8).to_event(1))

    program: Any = model
    program.discriminator = judge()
    return program, guide


@pytest.mark.parametrize(
    ("objective", "kept"),
    [(VAEGANLoss(), ""), (GANLoss(), "slope"), (VAEDisLoss(), "discriminator")],
)
@pytest.mark.parametrize("make", [lambda: (OwnModel(True), OwnGuide()), of_functions])
def test_numbers_of_pyro_param_are_trained_as_parameters_are(
    make: Any, objective: Objective, kept: str
) -> None:
    """Of a module and of a function: after six steps they are those of a module that has parameters."""

    def trained(model: Any, guide: Any) -> dict[str, Tensor]:
        options: dict[str, Any] = {"batch_size": 4, "max_epochs": 2, "learning_rate": 0.01}
        fitted = fit(model, guide, ROWS, objective=objective, seed=0, **options)
        state = Pair(fitted.model, fitted.guide).state()
        return {name.partition(".")[2]: value.clone() for name, value in state.items()}

    expected = trained(OwnModel(False), OwnGuide())
    assert {"loc", "slope", "discriminator.head.weight"} <= expected.keys()
    found = trained(*make())
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value)
    start = {"loc": torch.full((D,), 0.1), "slope": torch.full((D,), 0.5)}
    start |= {f"discriminator.{name}": p for name, p in judge().named_parameters()}
    for name, value in start.items():
        assert torch.equal(found[name], value) == bool(kept and name.startswith(kept)), name


def test_an_objective_that_trains_nothing_says_what_to_do() -> None:
    model, guide = small()
    model.requires_grad_(False)
    with pytest.raises(PairError, match=r"moves nothing: .* Call requires_grad_\(\) of it"):
        fit(model, guide, ROWS, objective=GANLoss(), max_epochs=1, seed=0)
    guide.requires_grad_(False)
    model.discriminator.requires_grad_()
    with pytest.raises(
        ValueError, match=r"VAEDisLoss leaves all .* call requires_grad_\(\) of what it"
    ):
        fit(model, guide, ROWS, objective=VAEDisLoss(), max_epochs=1, seed=0)
    guide.requires_grad_()
    fit(model, guide, ROWS, objective=VAEDisLoss(), max_epochs=1, seed=0)


def test_vae_dis_is_captured_and_sees_the_discriminator_as_it_is_evaluated() -> None:
    """With batch norm in the discriminator: the same numbers by a recording, and its statistics stay."""
    network, x = (
        Convolutional((3,), 4),
        torch.rand(20, 1, 4, 4, generator=torch.Generator().manual_seed(0)),
    )

    recorded: list[CapturedLoss] = []
    record = CapturedLoss._record

    def noted(self: CapturedLoss, *given: Any) -> Any:
        recorded.append(self)
        return record(self, *given)

    def run(capture: bool) -> dict[str, Tensor]:
        torch.manual_seed(0)
        model = VAEGAN((1, 4, 4), 2, MLP((4,)), discriminator=network)
        guide = MeanField((1, 4, 4), 2, MLP((4,)))
        options: dict[str, Any] = {"batch_size": 5, "max_epochs": 10, "seed": 0}
        with patch.object(CapturedLoss, "_record", noted):
            fit(model, guide, x, objective=VAEDisLoss(), capture=capture, compile=False, **options)
        assert int(model.discriminator.trunk.net[1].num_batches_tracked) == 0  # type: ignore[index, union-attr]
        return weights(model, guide)

    assert same(run(True), run(False))
    (loss,) = recorded
    assert loss.comparisons >= 3  # with Pyro, and none of them has turned it off


@pytest.mark.parametrize("make", [pair, normed])
def test_a_resumed_vae_gan_ends_at_the_same_bits(make: Any, tmp_path: Path) -> None:
    def small() -> tuple[nn.Module, nn.Module]:
        model, guide = make()
        return model.float(), guide.float()

    options: dict[str, Any] = {"objective": VAEGANLoss(discriminator_every=2), "batch_size": 5}
    options |= {"seed": 0, "learning_rate": 0.01}
    whole = small()
    fitted = fit(*whole, ROWS, max_epochs=3, **options)
    parts = small()
    fit(*parts, ROWS, max_epochs=1, run_dir=tmp_path / "run", **options)
    parts = small()
    resumed = fit(*parts, ROWS, max_epochs=3, run_dir=tmp_path / "run", resume=True, **options)
    assert same(weights(*parts), weights(*whole))
    for mine, truth in zip(resumed.history, fitted.history, strict=True):
        assert {**mine, "seconds": 0} == {**truth, "seconds": 0}


@pytest.mark.parametrize("own", [False, True])
def test_a_run_of_other_features_is_not_resumed(own: bool, tmp_path: Path) -> None:
    """Also in a model of a user's own: the layer has no weights, by which it could be told."""

    def made(layer: int) -> tuple[Any, Any]:
        network = MLP((6, 6))
        if not own:
            model: Any = VAEGAN((D,), 2, NET, discriminator=network, feature_layer=layer)
            return model, MeanField((D,), 2, NET)
        model = OwnModel(False)
        model.discriminator = Discriminator(network, (D,), layer)
        return model, OwnGuide()

    options: dict[str, Any] = {"objective": VAEGANLoss(), "seed": 0, "run_dir": tmp_path / "run"}
    fit(*made(1), ROWS, max_epochs=1, **options)
    assert fit(*made(1), ROWS, max_epochs=2, resume=True, **options).epochs == 2
    name = "model.discriminator" if own else "model"
    told = rf"settings\.{name}\.feature_layer = 1, now it is 2"
    with pytest.raises(ValueError, match=told):
        fit(*made(2), ROWS, max_epochs=3, resume=True, **options)


# -- errors ----------------------------------------------------------------------------------------------


class Wrong(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.sum(1)


@pytest.mark.parametrize("objective", [VAEGANLoss(), GANLoss(), VAEDisLoss()])
def test_pairs_that_do_not_suit(objective: Objective) -> None:
    guide = MeanField((D,), 2, NET)
    name = type(objective).__name__
    with pytest.raises(PairError, match=f"{name} needs a model with a module `discriminator`"):
        fit(VAE((D,), 2, NET, LearnedGaussian()), guide, ROWS, objective=objective, max_epochs=1)
    model, _ = small(likelihood=Categorical(3))
    with pytest.raises(PairError, match=r"sees the mean of .*, Categorical, states none"):
        fit(model, guide, (3 * ROWS).floor(), objective=objective, max_epochs=1)
    model, _ = small()
    model.discriminator = Wrong()  # type: ignore[assignment]
    if objective != VAEDisLoss():  # which keeps no parameter of it
        with pytest.raises(PairError, match="moves nothing"):
            fit(model, guide, ROWS, objective=objective, max_epochs=1)
    model.discriminator.weight = nn.Parameter(torch.zeros(1))
    n, at_once = {
        "VAEGANLoss": (36, r" \(12 \+ 12 \+ 12 at once\)"),
        "GANLoss": (24, r" \(12 \+ 12 at once\)"),
        "VAEDisLoss": (12, ""),
    }[name]
    with pytest.raises(
        PairError,
        match=rf"must return logits \({n},\) and features .* of {n} rows{at_once}, .* an objective that does",
    ):
        fit(model, guide, ROWS, objective=objective, max_epochs=1)


class Masked(OwnModel):
    """Its rows, or their numbers, are left out where a mask says so."""

    def __init__(self, of_rows: bool, whole: bool) -> None:
        super().__init__(False)
        self.of_rows, self.whole = of_rows, whole

    def forward(self, x: Tensor) -> None:
        mask: Any = torch.full_like(x, True, dtype=torch.bool)
        mask[0, 0] = self.whole
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(D), 1.0).to_event(1))
            p = dist.Normal(self.loc + z, 0.5)
            if self.of_rows:
                with pyro.poutine.mask(mask=mask.all(1)):
                    pyro.sample("x", p.to_event(1), obs=x)
            else:
                pyro.sample("x", p.mask(mask).to_event(1), obs=x)


@pytest.mark.parametrize("of_rows", [True, False])
@each_turn
def test_rows_with_something_left_out_are_refused(
    objective: Objective, turn: str | None, of_rows: bool
) -> None:
    """D would be shown what the model does not see."""
    assert lost(Masked(of_rows, True), OwnGuide(), objective, turn, ROWS).loss.isfinite()
    with pytest.raises(PairError, match="sees whole rows, and masks leave out numbers of site 'x'"):
        lost(Masked(of_rows, False), OwnGuide(), objective, turn, ROWS)


def test_a_latent_without_a_gradient_is_refused() -> None:
    class Discrete(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.discriminator = Discriminator(NET, (D,))
            self.means = nn.Parameter(torch.randn(3, D))

        def forward(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                z = pyro.sample("z", dist.Categorical(torch.ones(3) / 3))
                pyro.sample("x", dist.Normal(self.means[z], 1.0).to_event(1), obs=x)

    class Chosen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(D, 3)

        def forward(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Categorical(logits=self.head(x)))

    for objective in (VAEGANLoss(), VAEDisLoss()):
        with pytest.raises(PairError, match="'z' is drawn from Categorical, which has no reparam"):
            fit(Discrete(), Chosen(), ROWS, objective=objective, max_epochs=1)
    with pytest.raises(PairError, match="'z' is drawn from Categorical, which has no reparam"):
        lost(Discrete(), Chosen(), VAEGANLoss(), "pair", ROWS)
    fitted = fit(Discrete(), Chosen(), ROWS, objective=GANLoss(), max_epochs=1, seed=0)
    assert math.isfinite(fitted.history[0]["loss_generator"])


@pytest.mark.parametrize(
    ("kind", "settings", "told"),
    [
        (
            VAEGANLoss,
            {"gamma": -1.0},
            "gamma must be finite and >= 0, or None for 1 /",
        ),
        (VAEGANLoss, {"gamma": "1"}, "gamma"),
        (VAEGANLoss, {"feature_sigma": 0.0}, "feature_sigma must be positive and finite, or None"),
        (VAEDisLoss, {"feature_sigma": "1"}, "feature_sigma"),
        (VAEGANLoss, {"free_bits": 0.1}, "no free bits with adversarial losses"),
        (VAEGANLoss, {"saturating": 1}, "saturating"),
        (VAEGANLoss, {"discriminator_every": 0}, "discriminator_every must be at least 1"),
        (GANLoss, {"discriminator_lr": -1.0}, "discriminator_lr must be finite and >= 0"),
        (GANLoss, {"beta": 2.0}, "leave beta at 1, got 2.0"),
        (GANLoss, {"num_particles": 2}, "leave num_particles at 1, got 2"),
        (VAEDisLoss, {"free_bits": 0.1}, "no free bits"),
    ],
)
def test_settings(kind: Any, settings: dict[str, Any], told: str) -> None:
    with pytest.raises((ValueError, TypeError), match=told):
        kind(**settings)


# -- the command line ------------------------------------------------------------------------------------

OPTIONS = (*catalogue.SMALL_RUN, *catalogue.SMALL_NETWORK, "--quiet", "--max_epochs", "1")


@pytest.mark.slow(only=("GANLoss",))
@pytest.mark.parametrize(
    "objective",
    [
        pytest.param("ELBO", marks=pytest.mark.slow),
        "GANLoss",
        pytest.param("VAEDisLoss", marks=pytest.mark.slow),
    ],
)
def test_the_command_line(objective: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    options = ("--model.latent_dim", "2", "--objective", objective)
    with patch("ppl_vae.cli.finish.draw_run", return_value=[]):
        run_dir = ("--run_dir", str(folder))
        assert main(["train", "--model", "VAEGAN", *run_dir, *options, *OPTIONS]) == 0
    run = load_run(folder)
    model: Any = run.model
    assert type(model) is VAEGAN
    assert type(model.likelihood).__name__ == "OptimalGaussian"
    parts = [*model.discriminator.modules()]
    assert any(isinstance(part, nn.Conv2d) for part in parts)
    assert not any(isinstance(part, nn.BatchNorm2d) for part in parts)
    row = read_history(folder)[0]
    assert ("loss_discriminator" in row) == (objective != "VAEDisLoss")
    assert main(["diagnose", str(folder), "--quiet", "--overwrite"]) == 0
    if objective == "GANLoss":
        other = ("--run_dir", str(tmp_path / "refitted"), "--max_epochs", "1", "--quiet")
        with patch("ppl_vae.cli.finish.draw_run", return_value=[]):
            assert main(["refit", str(folder), *other]) == 0
        refitted = load_run(tmp_path / "refitted")
        assert refitted.config["objective"]["class_path"].endswith(".ELBO")
        assert same(weights(refitted.model, nn.Identity()), weights(model, nn.Identity()))
