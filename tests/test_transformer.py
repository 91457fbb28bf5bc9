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
from sklearn.utils.estimator_checks import parametrize_with_checks

from ppl_vae import evaluate
from ppl_vae.guides import Exact, MeanField
from ppl_vae.likelihoods import Bernoulli, Gaussian
from ppl_vae.models import VAE, ProbabilisticPCA
from ppl_vae.networks import MLP
from ppl_vae.objectives import ELBO
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
