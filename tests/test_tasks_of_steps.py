"""The jobs after training where steps are sites of their own, and where the model sums latents out."""

from __future__ import annotations

import re
from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppl_vae import evaluate, plots
from ppl_vae.guides import Exact
from ppl_vae.models import CategoricalHMM, GaussianHMM, GaussianMixture, MixtureOfPCA
from ppl_vae.pairs import PairError
from ppl_vae.tasks import interpolate, reconstruct, sample, traverse

T = 4


@pytest.fixture(scope="module")
def chain() -> GaussianHMM:
    torch.manual_seed(0)
    model = GaussianHMM((T, 2), states=3)
    with torch.no_grad():
        model.initial_logits.copy_(torch.tensor([0.5, 0.3, 0.2]).log())
        model.transition_logits.copy_(torch.tensor([[8.0, 1, 1], [2, 6, 2], [1, 4, 5]]).log())
        model.means.copy_(torch.tensor([[-2.0, 0.0], [1.0, 3.0], [2.0, -1.0]]))
    return model


def rows(n: int, seed: int = 1) -> Tensor:
    return 2 * torch.randn(n, T, 2, generator=torch.Generator().manual_seed(seed))


def smoothed(model: GaussianHMM, x: Tensor) -> Tensor:
    """E[x' | x] by the sum over all 3^T paths, `(n, T, 2)`."""
    paths = torch.cartesian_prod(*[torch.arange(3)] * T)
    pi, a = model.initial_logits.softmax(0), model.transition_logits.softmax(-1)
    log_path = pi[paths[:, 0]].log()
    for t in range(1, T):
        log_path = log_path + a[paths[:, t - 1], paths[:, t]].log()
    likelihood = model.decode(torch.arange(3)).log_prob(x[:, :, None])  # (n, T, 3)
    every = torch.stack([likelihood[:, t, paths[:, t]] for t in range(T)]).sum(0)
    posterior = (every + log_path).softmax(1)
    found: Tensor = torch.einsum("np,ptd->ntd", posterior, model.means[paths]).detach()
    return found


@pytest.mark.parametrize("summed", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_steps_are_reconstructed_together(chain: GaussianHMM, summed: bool) -> None:
    x, num = rows(20), 2000 if not summed else 300
    guide = (lambda x: None) if summed else Exact(chain)
    found = reconstruct(chain, guide, x, num_samples=num, seed=0, progress=False)
    assert found.shape == x.shape
    # The means of the states differ by at most 4.
    assert float((found - smoothed(chain, x)).abs().max()) < 4 * 4 / num**0.5


def test_one_step_is_reconstructed_if_asked_for(chain: GaussianHMM) -> None:
    x = rows(5)
    all_steps = reconstruct(chain, Exact(chain), x, num_samples=1, seed=0, progress=False)
    one = reconstruct(chain, Exact(chain), x, num_samples=1, site="x_2", seed=0, progress=False)
    torch.testing.assert_close(one, all_steps[:, 2])


def test_draws_follow_the_chain(chain: GaussianHMM) -> None:
    n = 4000
    drawn, latents = sample(chain, n, return_latents=True, seed=0)
    means = sample(chain, n, means=True, seed=0)
    assert drawn.shape == means.shape == (n, T, 2)
    for t in range(T):
        torch.testing.assert_close(means[:, t], chain.means[latents[f"z_{t}"]].detach())
    pi, a = chain.initial_logits.softmax(0), chain.transition_logits.softmax(-1)
    for t in range(T):
        share = torch.bincount(latents[f"z_{t}"], minlength=3) / n
        expected = (pi @ torch.linalg.matrix_power(a, t)).detach()
        assert float((share - expected).abs().max()) < 4 * 0.5 / n**0.5
    noise = (drawn - means) / chain.decode(torch.arange(3)).stddev[latents["z_3"]][:, None]
    assert abs(float(noise[:, 3].detach().std()) - 1) < 0.05


def test_states_may_be_given(chain: GaussianHMM) -> None:
    path = torch.tensor([[0, 1, 2, 2], [2, 2, 1, 0]])
    given = {f"z_{t}": path[:, t] for t in range(T)}
    torch.testing.assert_close(
        sample(chain, 2, given=given, means=True), chain.means[path].detach()
    )


def test_categories_of_steps_stay_whole_numbers() -> None:
    torch.manual_seed(0)
    model = CategoricalHMM((T,), states=2, symbols=5)
    drawn = sample(model, 50, seed=0)
    assert drawn.shape == (50, T)
    assert set(drawn.unique().tolist()) <= {0, 1, 2, 3, 4}
    found = reconstruct(model, Exact(model), drawn, seed=0, progress=False)
    assert found.shape == drawn.shape
    assert found.dtype == torch.int64


def test_a_single_step_keeps_its_dimension() -> None:
    model = GaussianHMM((1, 2), states=2)
    assert sample(model, 3).shape == (3, 1, 2)
    assert reconstruct(model, Exact(model), torch.randn(3, 1, 2), progress=False).shape == (3, 1, 2)


def test_a_path_of_normal_states_is_decoded_step_by_step() -> None:
    """A linear Gaussian chain of a user: z_t normal, and one observed site for each step, from 1 on."""

    def model(x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            z = torch.zeros(len(x))
            for t in range(1, T + 1):
                z = pyro.sample(f"state{t}", dist.Normal(0.5 * z, 1.0))
                pyro.sample(f"seen{t}", dist.Normal(t * z, 0.1), obs=x[:, t - 1])

    def guide(x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            for t in range(1, T + 1):
                pyro.sample(f"state{t}", dist.Normal(x[:, t - 1] / t, 0.01))

    x = torch.arange(1.0, 9.0).reshape(2, T)
    torch.testing.assert_close(
        reconstruct(model, guide, x, seed=0, progress=False), x, atol=0.1, rtol=0
    )
    path = interpolate(model, guide, x[:1], x[1:], steps=3, seed=0)
    torch.testing.assert_close(path[0, 1], (x[0] + x[1]) / 2)
    moved = traverse(model, guide, x[:1], 0, latent="state2", steps=3, seed=0)
    torch.testing.assert_close(moved[0][:, [0, 2, 3]], x[0, [0, 2, 3]].expand(3, 3))
    assert float((moved[0, 2, 1] - moved[0, 0, 1]).abs()) > 1


def test_sites_that_are_no_series_are_asked_for() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            for t in (0, 2):
                pyro.sample(f"x_{t}", dist.Normal(z, 1.0), obs=x[:, t])

    def guide(x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(x[:, 0], 1.0))

    with pytest.raises(
        ValueError, match=re.escape("observes 'x_0', 'x_2': say which one is meant, as")
    ):
        reconstruct(model, guide, torch.randn(5, 3), progress=False)


def test_steps_in_another_order_are_put_in_that_of_the_rows() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 3), 1.0).to_event(1))
            for t in range(3):
                pyro.sample(f"x_{t}", dist.Normal(z[:, 2 - t], 0.1), obs=x[:, 2 - t])

    def guide(x: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(x, 0.001).to_event(1))

    x = torch.randn(20, 3)
    found = reconstruct(model, guide, x, seed=0, progress=False)
    torch.testing.assert_close(found, x, atol=0.01, rtol=0)
    for like in (x, torch.zeros(20, 3)):
        drawn = sample(model, 5, like=like, given={"z": x[:5]}, means=True)
        torch.testing.assert_close(drawn, x[:5])


def test_one_of_two_series_may_be_asked_for() -> None:
    def model(x: Tensor, y: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            for t in range(3):
                z = pyro.sample(f"z{t}", dist.Normal(torch.zeros(len(x)), 1.0))
                pyro.sample(f"a{t}", dist.Normal(z, 0.1), obs=x[:, t])
                pyro.sample(f"b{t}", dist.Normal(-z, 0.1), obs=y[:, t])

    def guide(x: Tensor, y: Tensor) -> None:
        with pyro.plate("rows", len(x)):
            for t in range(3):
                pyro.sample(f"z{t}", dist.Normal(x[:, t], 0.001))

    x = torch.randn(20, 3)
    for site, sign in (("a", 1), ("b", -1), (None, 1)):  # a0, a1 and a2 hold the first argument
        found = reconstruct(model, guide, (x, -x), site=site, seed=0, progress=False)
        torch.testing.assert_close(found, sign * x, atol=0.01, rtol=0)
    with pytest.raises(ValueError, match="say which one is meant"):
        reconstruct(model, guide, (x, x), seed=0, progress=False)


def test_a_series_of_sites_is_named_in_short(chain: GaussianHMM) -> None:
    model = GaussianHMM((9, 2), states=2)
    with pytest.raises(ValueError, match=re.escape("(it observes 'x_0', 'x_1', ... 'x_8')")):
        sample(model, 2, site="y")


@pytest.mark.slow
def test_components_that_are_summed_out_are_drawn() -> None:
    torch.manual_seed(0)
    model = MixtureOfPCA((3,), latent_dim=1, components=3)
    x = torch.randn(15, 3)
    found = reconstruct(model, Exact(model), x, num_samples=600, seed=0, progress=False)
    weights = model.responsibilities(x).probs.detach()
    noise = (2 * model.log_sigma).exp().detach()
    exact = torch.zeros(15, 3)
    for k in range(3):
        w, mean = model.weight[k].detach(), model.mean[k].detach()
        gain = w @ torch.linalg.inv(w.T @ w + noise[k] * torch.eye(1)) @ w.T
        exact += weights[:, k, None] * (mean + (x - mean) @ gain.T)
    assert float((found - exact).abs().max()) < 0.45


def test_a_class_above_the_latent_is_drawn() -> None:
    """k -> z -> x with k summed out, as in VaDE: E[x | z] = z; and x with a mean of its own for each k."""

    def above(x: Tensor, apart: float = 0.0) -> None:
        with pyro.plate("rows", len(x)):
            summed: Any = {"enumerate": "parallel"}
            k = pyro.sample("k", dist.Categorical(torch.tensor([0.3, 0.7])), infer=summed)
            z = pyro.sample("z", dist.Normal(4.0 * k - 2, 1.0))
            pyro.sample("x", dist.Normal(z + apart * k, 0.5), obs=x)

    def guide(x: Tensor, apart: float = 0.0) -> None:
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Normal(0.8 * x, 0.01))

    x = torch.linspace(-4, 4, 30)
    found = reconstruct(above, guide, x, num_samples=20, seed=0, progress=False)
    torch.testing.assert_close(found, 0.8 * x, atol=0.02, rtol=0)
    found = reconstruct(
        partial(above, apart=1.0), guide, x, num_samples=400, seed=0, progress=False
    )
    z = 0.8 * x
    log_odds = torch.log(torch.tensor(7 / 3)) + 4 * z  # of N(z; 2, 1) against N(z; -2, 1)
    log_odds += ((x - z).square() - (x - z - 1).square()) / (2 * 0.25)
    torch.testing.assert_close(found, z + log_odds.sigmoid(), atol=0.16, rtol=0)


def test_a_mixture_with_an_empty_guide_is_reconstructed() -> None:
    model = GaussianMixture((2,), components=2, covariance="spherical")
    with torch.no_grad():
        model.means.copy_(torch.tensor([[-30.0, 0.0], [30.0, 0.0]]))
    x = torch.tensor([[-30.5, 0.2], [29.0, 1.0]])
    found = reconstruct(model, lambda x: None, x, seed=0, progress=False)
    torch.testing.assert_close(found, model.means.detach())


def test_no_path_between_states(chain: GaussianHMM) -> None:
    with pytest.raises(PairError, match="'z_3' are discrete: there is no path between values"):
        traverse(chain, Exact(chain), rows(1), 0)


@pytest.mark.parametrize(("shape", "mosaic"), [((8, 8), True), ((4, 12), True), ((12, 2), False)])
def test_narrow_strips_are_heat_maps(shape: tuple[int, int], mosaic: bool) -> None:
    figure = plots.prior_samples(torch.rand(9, *shape))
    assert (figure.axes[0].get_xlabel() == "dimension") == (not mosaic)


LONG = torch.randn(6, 9, 2, generator=torch.Generator().manual_seed(3))
"""Of 3^9 paths, which are too many to sum over."""


def test_the_posterior_of_a_chain_is_trusted(chain: GaussianHMM) -> None:
    found = evaluate(chain, Exact(chain), LONG, num_samples=20, seed=0, progress=False)
    torch.testing.assert_close(
        found.log_likelihood.values.float(), chain.log_evidence(LONG).detach(), atol=1e-4, rtol=0
    )
    assert not found.cautions
    assert not bool(found.unreliable.any())


def test_a_posterior_of_another_model_is_not(chain: GaussianHMM) -> None:
    class Own(GaussianHMM):
        """Whatever this does, no test of the library has seen it."""

    own = Own((T, 2), states=3)
    own.load_state_dict(chain.state_dict())
    for model, other in ((own, own), (chain, own)):
        found = evaluate(model, Exact(other), LONG, num_samples=20, seed=0, progress=False)
        assert "log p(x) leaves out what the guide does not draw" in " ".join(found.cautions)
