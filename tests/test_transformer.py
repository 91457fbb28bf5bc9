"""PairTransformer: scikit-learn's own checks, pipelines, and the numbers of pPCA."""

from __future__ import annotations

import pickle
import re
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.utils import check_random_state
from sklearn.utils.estimator_checks import parametrize_with_checks

import ppl_vae
from ppl_vae import evaluate, fit
from ppl_vae.guides import Exact, MeanField, SemiSupervised
from ppl_vae.likelihoods import Bernoulli, Gaussian
from ppl_vae.models import VAE, ConditionalVAE, ProbabilisticPCA, SemiSupervisedVAE
from ppl_vae.networks import MLP, Labels
from ppl_vae.objectives import ELBO, SemiSupervisedELBO
from ppl_vae.pairs import PairError
from ppl_vae.tasks import PairTransformer
from ppl_vae.tasks.categories import expected

RNG = np.random.default_rng(0)
X = RNG.normal(size=(80, 2)) @ RNG.normal(size=(2, 6)) + 0.3 * RNG.normal(size=(80, 6)) + 4.0


class SmallPair:
    """Prints the same in every process, because the names of scikit-learn's tests hold it."""

    def __call__(self, shape: tuple[int, ...]) -> tuple[Any, Any]:
        network = MLP((8,))
        return VAE(shape, 2, network, likelihood=Gaussian()), MeanField(shape, 2, network)

    def __repr__(self) -> str:
        return "small_pair"


small_pair = SmallPair()


def exact_pair(shape: tuple[int, ...]) -> tuple[Any, Any]:
    model = ProbabilisticPCA(shape, latent_dim=2)
    return model, Exact(model)


@parametrize_with_checks(  # type: ignore[untyped-decorator]
    [PairTransformer(small_pair, max_epochs=2, random_state=0)]
)
def test_scikit_learns_checks(estimator: Any, check: Any) -> None:
    check(estimator)


def test_arrays_that_are_not_writable() -> None:
    """As those of a table are: torch would warn."""
    fixed = X.astype(np.float32)
    fixed.flags.writeable = False
    found = PairTransformer(small_pair, max_epochs=1, random_state=0).fit(fixed)
    codes = found.transform(fixed)
    codes.flags.writeable = False
    assert found.inverse_transform(codes).shape == fixed.shape


def test_numbers_are_those_of_the_model() -> None:
    found = PairTransformer(exact_pair, max_epochs=400, learning_rate=0.05, random_state=0).fit(X)
    model: Any = found.model_
    x = torch.as_tensor(X, dtype=torch.float32)
    z = found.transform(X)
    np.testing.assert_allclose(z, model.posterior(x).mean.detach(), atol=1e-5)
    decoded = torch.as_tensor(z) @ model.weight.T + model.mean
    np.testing.assert_allclose(found.inverse_transform(z), decoded.detach(), atol=1e-4)
    assert found.score(X) == pytest.approx(float(model.log_evidence(x).mean().detach()), abs=1e-3)
    # With the best weights, log p(x) is that of the maximum-likelihood solution.
    best = exact_pair((6,))[0].maximum_likelihood(x)
    assert found.score(X) == pytest.approx(float(best.log_evidence(x).mean().detach()), abs=0.1)
    assert found.score(X, None) < float(best.log_evidence(x).mean().detach()) + 1e-3


def classes_and_style(shape: tuple[int, ...]) -> tuple[Any, Any]:
    network = MLP((16,))
    model = SemiSupervisedVAE(shape, 2, 2, network, Gaussian())
    return model, SemiSupervised(shape, 2, 2, network)


def conditional_pair(shape: tuple[int, ...]) -> tuple[Any, Any]:
    network = MLP((8,))
    model = ConditionalVAE(shape, 2, network, Gaussian(), context=Labels(2))
    return model, MeanField(shape, 2, network, context=Labels(2))


def test_labels_train_a_pair_that_takes_them() -> None:
    """As `fit` does with rows and labels, from the same seed."""
    y = (X.sum(1) > 24).astype(int)
    y[::2] = -1
    few: dict[str, Any] = {"max_epochs": 2, "random_state": 0}
    few["fit_options"] = {"objective": SemiSupervisedELBO(classification=5.0)}
    found = PairTransformer(classes_and_style, **few).fit(X, y)
    seed = int(check_random_state(0).randint(2**31 - 1))
    torch.manual_seed(seed)
    model, guide = classes_and_style((6,))
    x, labels = torch.as_tensor(X, dtype=torch.float32), torch.as_tensor(y)
    options: dict[str, Any] = {
        "objective": SemiSupervisedELBO(classification=5.0),
        "batch_size": 128,
    }
    fit(model, guide, (x, labels), max_epochs=2, learning_rate=1e-3, seed=seed, **options)
    z = found.transform(X)
    np.testing.assert_allclose(z[:, :2], guide.classify(x).probs.detach(), atol=1e-6)
    assert z.shape == (80, 4)
    expected = evaluate(model, guide, (x, labels), num_samples=100, method="guide", seed=seed)
    assert found.score(X, y) == pytest.approx(expected.elbo.mean, abs=1e-4)
    alone = PairTransformer(classes_and_style, **few).fit(X)
    assert np.abs(alone.transform(X)[:, :2] - z[:, :2]).max() > 1e-3


def test_a_pair_that_needs_labels_says_so() -> None:
    y = (X.sum(1) > 24).astype(int)
    found = PairTransformer(conditional_pair, max_epochs=1, random_state=0).fit(X, y)
    assert np.isfinite(found.score(X, y))
    with pytest.raises(
        PairError, match=r"ConditionalVAE also needs c of the rows: use ppl_vae\.encode"
    ):
        found.transform(X)
    for wrong, words in (
        (None, "ConditionalVAE takes c beside the rows: fit and score pass it y"),
        (y[:3], r"a number for each of 80 rows, .* shape \(3,\)"),
        (np.array(["a", "b"] * 40), "LabelEncoder numbers other labels"),
    ):
        with pytest.raises(ValueError, match=words):
            PairTransformer(conditional_pair, max_epochs=1).fit(X, wrong)


class ByAnyName(torch.nn.Module):
    """`SemiSupervisedVAE` or its guide, whose second argument has another name."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor, kind: torch.Tensor | None = None) -> None:
        self.inner(x, kind)


class WithMask(ByAnyName):
    def forward(
        self, x: torch.Tensor, mask: torch.Tensor | None = None, y: torch.Tensor | None = None
    ) -> None:
        assert mask is None
        self.inner(x, y)


@pytest.mark.filterwarnings("ignore:.*do not train the classifier")
@pytest.mark.parametrize("kind", [pytest.param(ByAnyName, marks=pytest.mark.slow), WithMask])
def test_y_reaches_the_argument_that_is_for_it(kind: Any) -> None:
    """It was dropped without a word, unless the first argument beside the rows was called y or labels."""
    y = (X.sum(1) > 24).astype(int)
    few: dict[str, Any] = {"max_epochs": 2, "random_state": 0}
    wanted = PairTransformer(classes_and_style, **few).fit(X, y)

    def renamed(shape: tuple[int, ...]) -> tuple[Any, Any]:
        model, guide = classes_and_style(shape)
        return kind(model), kind(guide)

    found = PairTransformer(renamed, **few).fit(X, y)
    np.testing.assert_allclose(found.transform(X), wanted.transform(X), atol=1e-6)
    assert found.score(X, y) == pytest.approx(wanted.score(X, y), abs=1e-4)
    alone = PairTransformer(renamed, **few).fit(X)
    assert np.abs(alone.transform(X) - found.transform(X)).max() > 1e-3


class Several(ByAnyName):
    def forward(
        self, x: torch.Tensor, mask: torch.Tensor | None = None, lengths: Any = None
    ) -> None:
        self.inner(x)


class AnyNumber(ByAnyName):
    def forward(self, x: torch.Tensor, *others: Any) -> None:
        self.inner(x)


class ByKeyword(ByAnyName):
    def forward(self, x: torch.Tensor, *, y: Any = None) -> None:  # type: ignore[override]
        self.inner(x)


class TwoNeeded(ByAnyName):
    def forward(self, x: torch.Tensor, lengths: Any, c: Any) -> None:  # type: ignore[override]
        self.inner(x)


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Several, "Several takes mask, lengths beside the rows, and PairTransformer has y alone"),
        (TwoNeeded, "TwoNeeded takes lengths, c beside the rows, and PairTransformer has y alone"),
        (AnyNumber, r"AnyNumber takes any number of arguments, .* write model\(x, y=None\)"),
        (ByKeyword, r"ByKeyword takes y by keyword alone .* so that y would be lost"),
    ],
)
def test_a_y_of_no_clear_use_is_refused(kind: Any, words: str) -> None:
    def renamed(shape: tuple[int, ...]) -> tuple[Any, Any]:
        model, guide = classes_and_style(shape)
        return kind(model), kind(guide)

    with pytest.raises(TypeError, match=words):
        PairTransformer(renamed, max_epochs=1, random_state=0).fit(X, np.zeros(80, dtype=int))
    if kind is not TwoNeeded:
        PairTransformer(renamed, max_epochs=1, random_state=0).fit(X)


@pytest.mark.slow(but=("conditional_pair-uint8", "classes_and_style-bool"))
@pytest.mark.filterwarnings("ignore:.*do not train the classifier")
@pytest.mark.parametrize(
    ("pair", "dtype"),
    [
        pytest.param(pair, dtype, marks=pytest.mark.slow if (i + j) % 2 else ())
        for i, pair in enumerate((conditional_pair, classes_and_style))
        for j, dtype in enumerate(
            ("uint8", "uint16", "uint32", "uint64", "int8", "bool", "float64")
        )
    ],
)
def test_labels_of_any_dtype_are_the_same_labels(pair: Any, dtype: str) -> None:
    y = (X.sum(1) > 24).astype(int)
    few: dict[str, Any] = {"max_epochs": 1, "random_state": 0}
    wanted = PairTransformer(pair, **few).fit(X, y).score(X, y)
    other = y.astype(dtype)
    found = PairTransformer(pair, **few).fit(X, other)
    assert found.score(X, other) == pytest.approx(wanted, abs=1e-4)


@pytest.mark.filterwarnings("ignore:.*do not train the classifier")
def test_probabilities_of_classes_are_averaged_over() -> None:
    """By hand: sum_y q(y) E[x | z, y]."""
    y = (X.sum(1) > 24).astype(int)
    found = PairTransformer(classes_and_style, max_epochs=2, random_state=0).fit(X, y)
    z = found.transform(X)
    style, q = torch.as_tensor(z[:, 2:]), torch.as_tensor(z[:, :2])
    model: Any = found.model_
    means = model.decode(style[:, None], torch.arange(2)).mean.detach()
    by_hand = (q[:, :, None] * means).sum(1)
    assert (means[:, 0] - means[:, 1]).abs().max() > 1e-3
    np.testing.assert_allclose(found.inverse_transform(z), by_hand, atol=1e-5)
    z[3, 0] = 0.7
    z[3, 1] = 0.7
    with pytest.raises(ValueError, match=r"columns of 'y' are the probabilities .* row 3 do not"):
        found.inverse_transform(z)


def test_too_many_combinations_of_classes_are_named() -> None:
    with pytest.raises(PairError, match=r"latents y have 59,049 combinations .* ppl_vae.sample"):
        expected(lambda given: given["y"], {"y": torch.full((2, 10, 3), 1 / 3)}, ["y"])
    first_two = expected(
        lambda given: given["y"].float(), {"y": torch.tensor([[[0.5, 0.5], [0.0, 1.0]]])}, ["y"]
    )
    assert first_two.tolist() == [[0.5, 1.0]]


def test_a_pair_that_needs_labels_says_how_latents_are_decoded() -> None:
    """And what it says to type works."""
    y = (X.sum(1) > 24).astype(int)
    fitted = PairTransformer(conditional_pair, max_epochs=1, random_state=0).fit(X, y)
    n, z, c = 3, torch.zeros(3, 2), torch.tensor([0, 1, 1])
    with pytest.raises(PairError, match="ConditionalVAE also needs c of the rows") as raised:
        fitted.inverse_transform(z)
    typed = re.search(r"use (ppl_vae\.sample\(.*means=True\))", str(raised.value))
    assert typed is not None
    found = eval(typed[1], {"ppl_vae": ppl_vae}, {"fitted": fitted, "n": n, "z": z, "c": c})
    model: Any = fitted.model_
    torch.testing.assert_close(found, model.decode(z, c).mean.detach())


@pytest.mark.slow
def test_a_pipeline_with_a_classifier_and_pickle() -> None:
    y = (X.sum(1) > 24).astype(int)
    pipeline = make_pipeline(
        PairTransformer(exact_pair, max_epochs=100, learning_rate=0.05, random_state=0),
        LogisticRegression(),
    ).fit(X, y)
    assert pipeline.score(X, y) > 0.9
    again = pickle.loads(pickle.dumps(pipeline))
    np.testing.assert_array_equal(again.predict(X), pipeline.predict(X))
    np.testing.assert_allclose(again[0].transform(X), pipeline[0].transform(X))
    fresh = clone(pipeline[0])
    assert not hasattr(fresh, "model_")
    np.testing.assert_allclose(fresh.fit(X).transform(X), pipeline[0].transform(X), atol=1e-5)


def test_rows_may_be_pictures() -> None:
    def pictures(shape: tuple[int, ...]) -> tuple[Any, Any]:
        assert shape == (1, 2, 3)
        network = MLP((8,))
        return VAE(shape, 2, network, likelihood=Bernoulli()), MeanField(shape, 2, network)

    rows = (X > 4).astype(float)
    found = PairTransformer(pictures, row_shape=(1, 2, 3), max_epochs=2, random_state=0).fit(rows)
    assert found.transform(rows).shape == (80, 2)
    assert found.inverse_transform(found.transform(rows)).shape == (80, 6)
    x = torch.as_tensor(rows, dtype=torch.float32).reshape(-1, 1, 2, 3)
    elbo = evaluate(found.model_, found.guide_, x, num_samples=2000, seed=3, progress=False).elbo
    assert found.score(rows) == pytest.approx(elbo.mean, abs=0.05)
    with pytest.raises(ValueError, match=r"X has 6 features, but row_shape = \(5,\) has 5 numbers"):
        PairTransformer(pictures, row_shape=(5,)).fit(rows)
    with pytest.raises(ValueError, match="X has 3 latents per row, but the pair has 2"):
        found.inverse_transform(np.zeros((4, 3)))


def test_options_of_fit_reach_it() -> None:
    found = PairTransformer(
        small_pair,
        max_epochs=60,
        learning_rate=0.02,
        random_state=0,
        fit_options={"batch_size": 40},
    )
    with pytest.raises(
        TypeError, match="fit_options holds batch_size: give that to PairTransformer"
    ):
        found.fit(X)
    with pytest.raises(TypeError, match="make_pair must be a function from the shape of a row"):
        PairTransformer(None).fit(X)  # type: ignore[arg-type]
    spread = {}
    for beta in (1e-3, 1000.0):
        found.set_params(fit_options={"objective": ELBO(beta=beta)})
        spread[beta] = found.fit(X).transform(X).var(0).max()
    assert spread[1e-3] > 0.1
    assert spread[1000.0] < 0.01  # nothing but the KL matters
