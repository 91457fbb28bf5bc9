"""PairTransformer: scikit-learn's own checks, pipelines, and the numbers of pPCA."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.utils import check_random_state
from sklearn.utils.estimator_checks import parametrize_with_checks

from ppl_vae import evaluate, fit
from ppl_vae.guides import Exact, MeanField, SemiSupervised
from ppl_vae.likelihoods import Bernoulli, Gaussian
from ppl_vae.models import VAE, ConditionalVAE, ProbabilisticPCA, SemiSupervisedVAE
from ppl_vae.networks import MLP, Labels
from ppl_vae.objectives import ELBO, SemiSupervisedELBO
from ppl_vae.pairs import PairError
from ppl_vae.tasks import PairTransformer

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


def test_numbers_are_those_of_the_model() -> None:
    found = PairTransformer(exact_pair, max_epochs=1000, learning_rate=0.05, random_state=0).fit(X)
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


def test_a_pipeline_with_a_classifier_and_pickle() -> None:
    y = (X.sum(1) > 24).astype(int)
    pipeline = make_pipeline(
        PairTransformer(exact_pair, max_epochs=300, learning_rate=0.05, random_state=0),
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
