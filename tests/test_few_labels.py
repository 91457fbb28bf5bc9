"""Classifiers of a few labels: probes and fine-tuning beside scikit-learn and exact accuracies."""

from __future__ import annotations

import copy
import math
import runpy
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.stats import norm
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from ppl_vae import encode, fine_tune, fit, load_data, probe
from ppl_vae.codes import VectorQuantizer
from ppl_vae.data import few_labels
from ppl_vae.guides import (
    Exact,
    InverseAutoregressive,
    MeanField,
    PerRow,
    QuantizingEncoder,
    SemiSupervised,
)
from ppl_vae.likelihoods import Gaussian
from ppl_vae.models import (
    VAE,
    VQVAE,
    ConditionalVAE,
    GaussianMixture,
    ProbabilisticPCA,
    SemiSupervisedVAE,
)
from ppl_vae.networks import MLP, Labels, Slots
from ppl_vae.pairs import PairError
from ppl_vae.tasks.probing import CS, LogisticProbe, _folds

D = 4
SPREAD = torch.tensor([3.0, 1.0, 0.5, 0.5])
"""Standard deviation of each number in a class."""


def two_classes(n: int, axis: int, shift: float, seed: int) -> tuple[Tensor, Tensor]:
    """Normals whose means differ by 2 shift along one axis; half of the rows are of each class."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 2
    x = SPREAD * torch.randn(n, D, generator=generator)
    x[:, axis] += shift * (2 * y - 1)
    return x, y


def linear(axes: list[int]) -> tuple[ProbabilisticPCA, MeanField]:
    """A pair whose guide's means are some of the numbers of a row as they are."""
    guide = MeanField((D,), len(axes), MLP(hidden=()))
    with torch.no_grad():
        guide.head.weight.zero_()
        guide.head.bias.zero_()
        guide.head.weight[range(len(axes)), axes] = 1.0
    return ProbabilisticPCA((D,), len(axes)), guide


def small_vae(seed: int = 0) -> tuple[VAE, MeanField]:
    torch.manual_seed(seed)
    network = MLP(hidden=(8,))
    return VAE((D,), 2, network, Gaussian(1.0)), MeanField((D,), 2, network)


TRAIN, TEST = two_classes(400, 0, 3.0, seed=1), two_classes(4000, 0, 3.0, seed=2)


def state_of(*modules: nn.Module) -> list[Tensor]:
    return [t.clone() for m in modules for t in m.state_dict().values()]


# -- probe ------------------------------------------------------------------------------------------------


def test_a_probe_is_logistic_regression_on_standardized_encodings() -> None:
    model, guide = small_vae()
    rows = TRAIN[0], few_labels(TRAIN[1], 30, seed=4)
    found = probe(model, guide, rows, TEST, Cs=[0.3], scale_each=True)
    known = rows[1] >= 0
    z, held = (encode(model, guide, x)["z"].double().numpy() for x in (rows[0][known], TEST[0]))
    center, scale = z.mean(0), z.std(0)
    by_hand = LogisticRegression(C=0.3).fit((z - center) / scale, rows[1][known].numpy())
    expected = by_hand.predict((held - center) / scale)
    assert 0.6 < (expected == TEST[1].numpy()).mean() < 1  # so that there is something to get right
    assert np.array_equal(found.predicted[0].numpy(), expected)
    assert found.accuracy.mean == pytest.approx((expected == TEST[1].numpy()).mean())
    assert found.num_labels == 30
    assert found.dimensions == 2
    # Other scales give other weights long before they give other classes.
    own = LogisticProbe.fit(
        z, rows[1][known].numpy(), [0.3], np.random.default_rng(0), scale_each=True
    )
    assert own.weight[1] - own.weight[0] == pytest.approx(by_hand.coef_[0], rel=1e-3)
    assert own.bias[1] - own.bias[0] == pytest.approx(by_hand.intercept_[0], rel=1e-3)
    assert own.scale == pytest.approx(scale)
    assert np.array_equal(own.predict(held), found.predicted[0].numpy())


def test_a_probe_of_several_classes_is_scikit_learn_s() -> None:
    x = torch.randn(90, D, generator=torch.Generator().manual_seed(3))
    y = torch.arange(90) % 3
    x[:, 0] += 2.0 * (y == 1)
    x[:, 1] += 2.0 * (y == 2)
    pair = linear([0, 1, 2])
    found = probe(*pair, (x[:45], y[:45]), (x[45:], y[45:]), Cs=[1.0])
    z = x[:, :3].double().numpy()
    center, scale = z[:45].mean(0), z[:45].std(0)
    by_hand = LogisticRegression().fit((z[:45] - center) / scale, y[:45].numpy())
    assert np.array_equal(found.predicted[0], by_hand.predict((z[45:] - center) / scale))


def test_the_accuracy_is_that_of_the_bayes_classifier() -> None:
    """Phi(shift / spread) along the axis that the encoder keeps, with 400 labels."""
    exact = norm.cdf(3.0 / 3.0)
    found = probe(*linear([0, 1]), TRAIN, TEST)
    assert found.accuracy.mean == pytest.approx(
        exact, abs=4 * math.sqrt(exact * (1 - exact) / 4000)
    )


def test_an_encoder_that_drops_the_class_is_at_chance_until_it_is_fine_tuned() -> None:
    train, test = two_classes(400, 1, 2.0, seed=5), two_classes(4000, 1, 2.0, seed=6)
    pair = linear([0])  # the first principal axis, which says nothing of the class
    chance = probe(*pair, train, test)
    assert chance.accuracy.mean == pytest.approx(0.5, abs=0.05)
    tuned = fine_tune(*pair, train, test, num_steps=300, learning_rate=0.03)
    exact = norm.cdf(2.0)
    assert tuned.accuracy.mean == pytest.approx(exact, abs=0.01)
    assert tuned.minus(chance).mean == pytest.approx(exact - 0.5, abs=0.05)


@pytest.mark.slow
def test_the_penalty_is_that_of_scikit_learn_s_grid_search() -> None:
    """With our folds, of 8 rows each. Of 30 numbers one tells the class."""
    generator = torch.Generator().manual_seed(7)
    x, y = torch.randn(1000, 30, generator=generator), torch.arange(1000) % 2
    x[:, 0] += 1.5 * (2 * y - 1)
    guide = MeanField((30,), 30, MLP(hidden=()))
    with torch.no_grad():
        guide.head.weight[:30] = torch.eye(30)
        guide.head.bias.zero_()
    pair = ProbabilisticPCA((30,), 30), guide
    rows, test = (x[:100], y[:100]), (x[100:], y[100:])
    found = probe(*pair, rows, test, labels=40, draws=3, scale_each=True)
    for seed, C in zip(found.seeds, found.C, strict=True):
        known = few_labels(rows[1], 40, seed) >= 0
        z, told = rows[0][known].double().numpy(), rows[1][known].numpy()
        folds = _folds(told, np.random.default_rng(seed))
        assert np.bincount(folds).tolist() == [8] * 5
        search = GridSearchCV(
            make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000)),
            {"logisticregression__C": CS},
            scoring="neg_log_loss",
            cv=[(np.flatnonzero(folds != i), np.flatnonzero(folds == i)) for i in range(5)],
        )
        assert search.fit(z, told).best_params_["logisticregression__C"] == C
    assert len({*found.C}) > 1


def test_all_numbers_may_have_one_scale() -> None:
    pair = linear([0, 1])
    found = probe(*pair, TRAIN, TEST, Cs=[1e-3], scale_each=False)
    z, held = TRAIN[0][:, :2].double().numpy(), TEST[0][:, :2].double().numpy()
    scale = np.sqrt(z.var(0).mean())
    by_hand = LogisticRegression(C=1e-3).fit((z - z.mean(0)) / scale, TRAIN[1].numpy())
    assert np.array_equal(found.predicted[0], by_hand.predict((held - z.mean(0)) / scale))
    tuned = fine_tune(*pair, TRAIN, num_steps=0, scale_each=False).classifier
    assert float(tuned.get_buffer("scale")[0]) == pytest.approx(scale, rel=1e-5)
    with pytest.raises(TypeError, match="scale_each must be True or False"):
        probe(*pair, TRAIN, TEST, scale_each="no")  # type: ignore[arg-type]


def test_one_label_of_each_class_is_enough() -> None:
    found = probe(*linear([0, 1]), TRAIN, TEST, labels=2, draws=20)
    assert found.C == (1.0,) * 20  # nothing can be held out
    # The plane between the two rows, which are drawn: right more often than not.
    assert 0.6 < found.accuracy.mean < norm.cdf(1.0)


def test_a_class_with_one_row_is_never_held_out() -> None:
    y = torch.full((400,), -1)
    y[:11] = torch.tensor([0, 1, 0, 1, 0, 1, 0, 1, 0, 0, 2])
    found = probe(*linear([0, 1]), (TRAIN[0], y), (TEST[0], TEST[1]))
    assert found.num_labels == 11


def test_draws_of_labels_are_those_of_load_data() -> None:
    every = load_data("digits", labels=True, seed=3)
    told = load_data("digits", labels=40, seed=3)
    assert torch.equal(few_labels(every.train[1], 40, seed=3), told.train[1])
    assert torch.equal(told.train[1][told.train[1] >= 0].bincount(), torch.full((10,), 4))


def test_draws_are_those_of_their_seeds() -> None:
    pair = linear([0, 1])
    both = probe(*pair, TRAIN, TEST, labels=6, draws=2, seed=8)
    for i, seed in enumerate(both.seeds):
        rows = TRAIN[0], few_labels(TRAIN[1], 6, seed)
        assert torch.equal(probe(*pair, rows, TEST, seed=seed).predicted[0], both.predicted[i])
    assert not torch.equal(*both.predicted)
    assert both.minus(both).mean == 0


def test_test_labels_do_not_change_what_is_predicted() -> None:
    pair = linear([0, 1])
    found = probe(*pair, TRAIN, TEST, labels=20)
    others = probe(*pair, TRAIN, (TEST[0], 1 - TEST[1]), labels=20)
    assert torch.equal(found.predicted, others.predicted)
    assert others.accuracy.mean == pytest.approx(1 - found.accuracy.mean)
    with pytest.raises(ValueError, match="other labels, or have other test rows"):
        found.minus(others)


def test_hidden_labels_are_left_out() -> None:
    pair = linear([0, 1])
    some = torch.arange(4000) < 3000
    found = probe(*pair, TRAIN, (TEST[0], TEST[1].where(some, -1)), labels=20)
    every = probe(*pair, TRAIN, TEST, labels=20)
    assert torch.equal(found.predicted, every.predicted)
    assert found.accuracy.mean == pytest.approx(float(every.correct[:, some].double().mean()))
    assert torch.equal(found.rows()["accuracy"].isnan(), ~some)
    assert found.to_dict()["accuracy"]["mean"] == found.accuracy.mean


def test_codes_are_probed_by_their_vectors() -> None:
    torch.manual_seed(0)
    network = Slots(3, MLP(hidden=(8,)))
    model = VQVAE((D,), VectorQuantizer(codes=8, dim=2), network, Gaussian(1.0))
    guide = QuantizingEncoder(model, network)
    found = probe(model, guide, TRAIN, TEST, Cs=[1e-3])
    assert found.dimensions == 6
    z = model.quantizer.embed(guide.codes(TRAIN[0])).detach().flatten(1).double().numpy()
    held = model.quantizer.embed(guide.codes(TEST[0])).detach().flatten(1).double().numpy()

    def by_hand(scale: Any) -> Any:
        fitted = LogisticRegression(C=1e-3).fit((z - z.mean(0)) / scale, TRAIN[1])
        return fitted.predict((held - z.mean(0)) / scale)

    assert np.array_equal(by_hand(np.sqrt(z.var(0).mean())), found.predicted[0])
    own = np.where(z.std(0) > 0, z.std(0), 1.0)
    assert not np.array_equal(by_hand(own), found.predicted[0])  # so that the scale is seen


# -- fine_tune --------------------------------------------------------------------------------------------


def test_without_steps_it_is_the_probe() -> None:
    pair = small_vae()
    tuned = fine_tune(*pair, TRAIN, TEST, labels=30, draws=2, num_steps=0)
    probed = probe(*pair, TRAIN, TEST, labels=30, draws=2)
    assert (tuned.predicted == probed.predicted).double().mean() > 0.999  # in float32
    assert tuned.compared_with == probed.compared_with


def test_one_step_is_that_of_adam_on_the_cross_entropy() -> None:
    """By hand, with a copy of the guide and autograd."""
    model, guide = small_vae()
    x, y = TRAIN[0][:20], TRAIN[1][:20]
    start: Any = fine_tune(model, guide, (x, y), num_steps=0).classifier
    found: Any = fine_tune(
        model, guide, (x, y), num_steps=1, learning_rate=0.01, encoder_rate=0.002, weight_decay=0.1
    ).classifier
    copied, layer = copy.deepcopy(guide), copy.deepcopy(start.layer)
    optimizer = torch.optim.AdamW(
        [
            {"params": copied.parameters(), "lr": 0.002},
            {"params": layer.parameters(), "lr": 0.01},
        ],
        weight_decay=0.1,
    )
    logits = layer((copied.encode(x).mean - start.center) / start.scale)
    torch.testing.assert_close(start(x), logits)
    nn.functional.cross_entropy(logits, y).backward()
    optimizer.step()
    expected = layer((copied.encode(x).mean - start.center) / start.scale)
    torch.testing.assert_close(found(x), expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(found(x), start(x), atol=1e-3)


def test_the_pair_stays_as_it_is() -> None:
    torch.manual_seed(0)
    network = Slots(3, MLP(hidden=(8,)))
    model = VQVAE((D,), VectorQuantizer(codes=8, dim=2), network, Gaussian(1.0))
    guide = QuantizingEncoder(model, network)
    fit(model, guide, TRAIN[0], max_epochs=1, seed=0, progress=False)
    before = state_of(model, guide)
    modes = [m.training for m in (*model.modules(), *guide.modules())]
    state = torch.get_rng_state()
    found = fine_tune(model, guide, TRAIN, TEST, labels=50, num_steps=60, learning_rate=0.01)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(before, state_of(model, guide), strict=True))
    assert modes == [m.training for m in (*model.modules(), *guide.modules())]
    assert all(p.grad is None for p in (*model.parameters(), *guide.parameters()))
    assert model.quantizer._gathered is None  # what it would learn from
    moved = [*guide.parameters()]
    copies: Any = found.classifier
    assert any(not torch.equal(a, b) for a, b in zip(copies.features.weights, moved, strict=True))
    assert found.accuracy.mean > 0.75


def test_the_encoder_is_trained_only_if_it_has_a_rate() -> None:
    pair = small_vae()
    own = [p.detach() for p in pair[1].parameters()]
    frozen: Any
    trained: Any
    frozen, trained = (
        fine_tune(
            *pair,
            TRAIN,
            labels=40,
            num_steps=30,
            encoder_rate=rate,
            learning_rate=0.01,
            weight_decay=0,
        ).classifier
        for rate in (0.0, 0.01)
    )
    for kept, moved, before in zip(
        frozen.features.weights, trained.features.weights, own, strict=True
    ):
        assert torch.equal(kept, before)
        assert not torch.equal(moved, before)


def test_a_seed_says_all_of_it() -> None:
    pair = small_vae()
    options: dict[str, Any] = {"labels": 60, "num_steps": 10, "batch_size": 16, "draws": 2}
    first, same, other = (fine_tune(*pair, TRAIN, TEST, seed=s, **options) for s in (1, 1, 2))
    for i in range(2):
        torch.testing.assert_close(
            first.classifiers[i](TEST[0]), same.classifiers[i](TEST[0]), rtol=0, atol=0
        )
    assert torch.equal(first.predicted, same.predicted)
    assert not torch.allclose(first.classifier(TEST[0]), other.classifier(TEST[0]))
    # The second draw of the first is the first of the other: draws do not depend on each other.
    torch.testing.assert_close(first.classifiers[1](TEST[0]), other.classifiers[0](TEST[0]))


def test_held_out_rows_choose_the_step() -> None:
    """With noise for labels the cross entropy of other rows is least where nothing was learned."""
    noise = torch.randint(2, (400,), generator=torch.Generator().manual_seed(9))
    pair = small_vae()
    options: dict[str, Any] = {"labels": 40, "num_steps": 200, "learning_rate": 0.03}
    stopped = fine_tune(*pair, (TRAIN[0], noise), held_out=0.5, **options)
    through = fine_tune(*pair, (TRAIN[0], noise), **options)
    assert stopped.steps[0] < 100
    assert through.steps == (200,)
    assert stopped.losses[0] > through.losses[0] + 0.1


def encoder_of_functions() -> tuple[Any, Any, nn.Module]:
    """A stranger's pair: functions, a module by `pyro.module`, a `pyro.param`, other names."""
    torch.manual_seed(3)
    net = nn.Sequential(nn.Linear(D, 8), nn.Dropout(0.2), nn.Tanh(), nn.Linear(8, 2))

    def model(rows: Tensor) -> None:
        with pyro.plate("people", len(rows)):
            code = pyro.sample("code", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            mean = code.repeat(1, D // 2)
            pyro.sample("seen", dist.Normal(mean, 3.0).to_event(1), obs=rows)

    def guide(rows: Tensor) -> None:
        pyro.module("net", net)
        stretch = pyro.param("stretch", torch.tensor(2.0), dist.constraints.positive)
        with pyro.plate("people", len(rows)):
            pyro.sample("code", dist.Normal(stretch * net(rows), 0.1).to_event(1))

    return model, guide, net


@pytest.mark.parametrize("trained", [pytest.param(False, marks=pytest.mark.slow), True])
def test_a_stranger_s_functions_are_fine_tuned(trained: bool) -> None:
    model, guide, net = encoder_of_functions()
    if trained:
        fitted = fit(
            model, guide, TRAIN[0], max_epochs=2, learning_rate=0.05, seed=0, progress=False
        )
        model, guide = fitted.model, fitted.guide
        bound: Any = guide
        stretch = float(bound.store["params"]["stretch"].detach())
        assert stretch != pytest.approx(math.log(2.0))
    before = state_of(net)
    found = fine_tune(model, guide, TRAIN, TEST, labels=100, num_steps=150, learning_rate=0.02)
    probed = probe(model, guide, TRAIN, TEST, labels=100)
    assert all(torch.equal(a, b) for a, b in zip(before, state_of(net), strict=True))
    assert "stretch" not in pyro.get_param_store()
    copies: Any = found.classifier
    stored = dict(zip(copies.features._stored, copies.features.weights[len(before) :], strict=True))
    assert stored.keys() == {"stretch"}
    assert float(stored["stretch"].detach()) != pytest.approx(
        stretch if trained else math.log(2.0), abs=1e-4
    )
    assert found.accuracy.mean > 0.78  # Phi(1) = 0.84 is the best
    assert found.accuracy.mean > probed.accuracy.mean - 0.05
    found.classifier.eval()
    assert torch.equal(found.classifier(TEST[0]), found.classifier(TEST[0]))
    found.classifier.train()  # then the dropout of the copy draws
    assert not torch.equal(found.classifier(TEST[0]), found.classifier(TEST[0]))
    assert net.training


def test_flows_and_classes_have_gradients() -> None:
    x, y = TRAIN
    torch.manual_seed(0)
    network = MLP(hidden=(8,))
    flow = VAE((D,), 2, network, Gaussian(1.0)), InverseAutoregressive((D,), 2, network, 1, (8,))
    mixed = (
        SemiSupervisedVAE((D,), latent_dim=2, classes=3, network=network, likelihood=Gaussian(1.0)),
        SemiSupervised((D,), latent_dim=2, classes=3, network=network),
    )
    for (model, guide), dimensions in ((flow, 2), (mixed, 5)):
        found = fine_tune(model, guide, (x, y), TEST, labels=100, num_steps=100, learning_rate=0.02)
        copies: Any = found.classifier
        assert copies.features_in == dimensions
        assert found.accuracy.mean > 0.75
        assert torch.equal(found.classifier(x), found.classifier(x))  # the noise is always the same


def test_an_exact_guide_has_nothing_to_train() -> None:
    model = ProbabilisticPCA((D,), 2).maximum_likelihood(TRAIN[0])
    probe(model, Exact(model), TRAIN, TEST)
    with pytest.raises(PairError, match="no gradient reaches the guide"):
        fine_tune(model, Exact(model), TRAIN)


# -- what is wrong ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("train", "options", "error", "words"),
    [
        (TRAIN[0], {}, TypeError, r"train must be rows and their labels, \(x, y\)"),
        ((TRAIN[0], TRAIN[1][:5]), {}, ValueError, "one label for each row"),
        ((TRAIN[0], nn.functional.one_hot(TRAIN[1])), {}, ValueError, r"write y.argmax\(-1\)"),
        ((TRAIN[0], TRAIN[1] + 0.5), {}, ValueError, "whole numbers from 0, but one is 0.5"),
        ((TRAIN[0], TRAIN[1] - 2), {}, ValueError, "labels count from 0.*a label is -2"),
        ((TRAIN[0], 0 * TRAIN[1] - 1), {}, ValueError, r"all 400 labels are hidden \(-1\)"),
        ((TRAIN[0], 0 * TRAIN[1]), {}, ValueError, "all 400 labels .* are 0, so that there is"),
        (TRAIN, {"labels": 1}, ValueError, "nothing to tell apart"),
        (TRAIN, {"labels": 500}, ValueError, "labels=500: train has only 400"),
        (TRAIN, {"labels": 0}, ValueError, "labels must be at least 1"),
        (TRAIN, {"draws": 3}, ValueError, "draws=3 of all labels are all the same"),
        (TRAIN, {"seed": "one"}, TypeError, "seed must be a whole number"),
    ],
)
def test_wrong_labels_are_told(
    train: Any, options: dict[str, Any], error: type[Exception], words: str
) -> None:
    for function in (probe, fine_tune):
        with pytest.raises(error, match=words):
            function(*linear([0]), train, TEST, **options)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"held_out": 1.0}, "held_out is a share of the labelled rows below 1"),
        ({"labels": 2, "held_out": 0.2}, "class 0 has one labelled row"),
        ({"num_steps": -1}, "num_steps must be at least 0"),
        ({"learning_rate": math.inf}, "learning_rate must be finite"),
    ],
)
def test_wrong_settings_are_told(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        fine_tune(*linear([0]), TRAIN, **options)
    with pytest.raises(ValueError, match="Cs must hold positive numbers"):
        probe(*linear([0]), TRAIN, TEST, Cs=[0.0])


def test_pairs_that_cannot_encode_are_told() -> None:
    conditional = (
        ConditionalVAE((D,), 2, MLP((8,)), Gaussian(1.0), context=Labels(2)),
        MeanField((D,), 2, MLP((8,)), context=Labels(2)),
    )
    mixture = GaussianMixture((D,), components=2)

    def nothing(x: Tensor) -> None: ...

    per_row = small_vae()[0], PerRow(small_vae()[1], TRAIN[0])
    for function in (probe, fine_tune):
        with pytest.raises(PairError, match="its encodings tell what is to be learned"):
            function(*conditional, TRAIN, TEST)
        with pytest.raises(PairError, match="the guide draws no latents of rows"):
            function(mixture, nothing, TRAIN, TEST)
        with pytest.raises(PairError, match="keeps parameters for each row"):
            function(*per_row, TRAIN, TEST)


def test_classes_without_a_labelled_row_are_told() -> None:
    y = TEST[1].clone()
    y[:100] = 3
    found = probe(*linear([0]), TRAIN, (TEST[0], y), labels=10, draws=2)
    assert "no labelled row is of classes 2 and 3 in 2 of 2 draws" in str(found)
    assert "one draw of labels" in " ".join(probe(*linear([0]), TRAIN, TEST).warnings)


# -- the tables of analyses/few_labels.py ------------------------------------------------------------------

PIXELS = ["pixels, logistic regression", "pixels, nearest neighbor"]
SHARES = {
    "from scratch, fine-tuned": ([0.4, 0.5, 0.6], [0.9, 0.9, 0.9]),
    "AE, fine-tuned": ([0.5, 0.6, 0.7], [0.9, 0.8, 0.7]),
    PIXELS[0]: ([0.3, 0.3, 0.3], [0.8, 0.8, 0.8]),
    PIXELS[1]: ([0.6, 0.6, 0.6], [0.5, 0.5, 0.5]),
}
"""Of each line the shares of three draws, with 10 labels and with 30."""


@pytest.fixture
def differences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[list[str]], list[str]]:
    """What the script prints of made-up scores, line by line."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "analyses")
    script = runpy.run_path(str(Path(__file__).parents[1] / "analyses" / "few_labels.py"))
    scores = script["Scores"](tmp_path / "scores.csv", dict.fromkeys(SHARES, "made up"))
    for name, by_labels in SHARES.items():
        for labels, shares in zip((10, 30), by_labels, strict=True):
            for draw, share in enumerate(shares):
                scores.add(name, labels, draw, numbers=[share])

    def printed(chosen: list[str]) -> list[str]:
        script["_differences"](chosen, scores, (10, 30), 3)
        return [line for line in capsys.readouterr().out.splitlines() if line]

    return printed


def test_differences_are_those_of_the_same_draws(
    differences: Callable[[list[str]], list[str]],
) -> None:
    head = ["| learns | 10 labels | 30 labels |", "| --- | --- | --- |"]
    # Of 10, 20, 30 the standard error is 10 / sqrt(3); a difference that is the same in each draw has none.
    assert differences([*SHARES]) == [
        "Minus training from scratch, fine-tuned, with the same labels:",
        *head,
        "| AE, fine-tuned | +10.0 ± 0.0 | -10.0 ± 5.8 |",
        f"| {PIXELS[0]} | -20.0 ± 5.8 | -10.0 ± 0.0 |",
        f"| {PIXELS[1]} | +10.0 ± 5.8 | -40.0 ± 0.0 |",
        "Minus the better of the two on pixels, with the same labels:",
        *head,
        "| from scratch, fine-tuned | -10.0 ± 5.8 | +10.0 ± 0.0 |",
        "| AE, fine-tuned | +0.0 ± 5.8 | +0.0 ± 5.8 |",
    ]


def test_differences_are_from_lines_that_were_asked_for(
    differences: Callable[[list[str]], list[str]],
) -> None:
    assert differences(["AE, fine-tuned", PIXELS[1]]) == [
        "Minus pixels, with the same labels:",
        "| learns | 10 labels | 30 labels |",
        "| --- | --- | --- |",
        "| AE, fine-tuned | +0.0 ± 5.8 | +30.0 ± 5.8 |",
    ]
    assert differences(PIXELS) == []
    assert differences(["AE, fine-tuned"]) == []


def test_a_table_that_was_stopped_goes_on_with_the_draws_that_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "analyses")
    script = runpy.run_path(str(Path(__file__).parents[1] / "analyses" / "few_labels.py"))
    drawn = []

    def line(labels: int, draws: range) -> Iterator[float]:
        for draw in draws:
            if (labels, draw) == (20, 1) and (20, 1) not in drawn:
                drawn.append((labels, draw))
                raise KeyboardInterrupt
            drawn.append((labels, draw))
            yield 0.5 + 0.1 * draw

    main = script["main"]
    monkeypatch.setitem(main.__globals__, "methods_of", lambda *_: {"M2": line})
    table = partial(main, "digits", labels=(10, 20), runs=tmp_path)
    with pytest.raises(KeyboardInterrupt):
        table(draws=2)
    table(draws=2)
    assert drawn == [(10, 0), (10, 1), (20, 0), (20, 1), (20, 1)]
    capsys.readouterr()
    table(draws=3)
    assert drawn[5:] == [(10, 2), (20, 2)]
    assert "| M2 | 60.0 ± 5.8 | 60.0 ± 5.8 |" in capsys.readouterr().out
    table(draws=1)
    assert len(drawn) == 7
    assert "| M2 | 50.0 | 50.0 |" in capsys.readouterr().out
