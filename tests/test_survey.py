"""What a run of a pair shows of it: its layout, and the densities of its rows against direct computation."""

from __future__ import annotations

import programs
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch import Tensor, nn

from ppl_vae.pairs import (
    Layout,
    Pair,
    PairError,
    Program,
    RowDensities,
    find_layout,
    posterior_means,
    sample_rows,
    stated_moment,
)


def look(model: Program, guide: Program, x: Tensor) -> Layout:
    pair = Pair(model, guide)
    with pair.scope():
        return find_layout(pair, x)


def draw(
    model: Program, guide: Program, x: Tensor, num_samples: int
) -> tuple[Layout, RowDensities]:
    pair = Pair(model, guide)
    with pair.scope(), torch.no_grad():
        layout = find_layout(pair, x)
        return layout, sample_rows(pair, layout, x, num_samples)


model, guide = programs.everything, programs.everything_guide


def test_the_layout_of_a_pair_with_everything() -> None:
    assert look(model, guide, torch.randn(5, 3)) == Layout(
        plate="rows",
        dim=-2,
        latents=("z", "v"),
        shared=("mu",),
        enumerated=(),
        guide_sites=("helper", "z", "v"),
        draws=("helper", "z", "v"),
        points=(),
        observed=("x", "label"),
        nesting=2,
        vectorizes=True,
    )


@pytest.mark.parametrize("num_samples", [1, 4])
def test_densities_of_rows_are_those_of_single_rows(num_samples: int) -> None:
    """Every (sample, row) recomputed by hand from the values drawn."""
    x = torch.randn(5, 3)
    _, rows = draw(model, guide, x, num_samples)
    z, v, helper = rows.latents["z"], rows.latents["v"], rows.draws["helper"]
    assert z.shape == (num_samples, 5, 2)
    assert v.shape == (num_samples, 5, 3)
    assert helper.shape == (num_samples, 5)
    mu = rows.guide_trace.nodes["mu"]["value"].reshape(num_samples, 1)
    log_prior = dist.Normal(mu[..., None], 1.0).log_prob(z).sum(-1)
    log_prior = log_prior + dist.Normal(z[..., :1], 1.0).log_prob(v).sum(-1)
    log_likelihood = dist.Normal(v + z[..., 1:], 0.5).log_prob(x).sum(-1) + torch.tensor(0.3).log()
    loc = torch.stack([x.mean(-1) + mu + helper, x[:, 0].expand(num_samples, 5)], -1)
    log_guide = (
        dist.Normal(0.0, 1.0).log_prob(helper)
        + dist.Normal(loc, 0.7).log_prob(z).sum(-1)
        + dist.Normal(z[..., :1] + x, 0.4).log_prob(v).sum(-1)
    )
    torch.testing.assert_close(rows.log_prior, log_prior)
    torch.testing.assert_close(rows.log_likelihood, log_likelihood)
    torch.testing.assert_close(rows.log_guide, log_guide)
    torch.testing.assert_close(rows.log_weights, log_likelihood + log_prior - log_guide)


def test_given_values_are_scored_and_not_drawn() -> None:
    x = torch.tensor([0.5, -1.0])

    pair = Pair(programs.normal, programs.normal_guide(1.0, 2.0))
    values = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    with pair.scope():
        layout = find_layout(pair, x)
        rows = sample_rows(pair, layout, x, 3, values={"z": values})
    assert torch.equal(rows.latents["z"], values)
    torch.testing.assert_close(rows.log_guide, dist.Normal(x, 2.0).log_prob(values))


def test_posterior_means_and_stated_moments() -> None:
    x = torch.randn(6, 3)
    layout, rows = draw(model, guide, x, 50)
    mean = stated_moment(rows, layout, "z", "mean")
    variance = stated_moment(rows, layout, "z", "variance")
    assert mean is not None
    assert variance is not None
    torch.testing.assert_close(mean[..., 1], x[:, 0].expand(50, 6))
    torch.testing.assert_close(variance, torch.full((50, 6, 2), 0.49))
    means = posterior_means(rows, layout)
    assert means.shape == (6, 2 + 3)  # z, then v of three pixels
    torch.testing.assert_close(means[:, 1].float(), x[:, 0])
    torch.testing.assert_close(means[:, 0], mean[..., 0].double().mean(0))


def test_survey_changes_nothing() -> None:
    """Neither the generator nor running statistics, and dropout does not look like a need to loop."""
    network = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 1))

    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Tensor) -> None:
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Normal(self.network(x)[:, 0], 1.0))

    def decoder(x: Tensor) -> None:
        programs.normal(x[:, 0])

    encoder = Encoder()
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    x = torch.randn(20, 3)
    state = torch.get_rng_state()
    layout = look(decoder, encoder, x)
    assert layout.vectorizes
    assert torch.equal(torch.get_rng_state(), state)
    assert encoder.training
    for name, value in encoder.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_pair_that_mixes_samples_up_is_looped_over() -> None:
    """A decoder that normalizes over its first dimension runs on two samples, and gives other densities."""

    def decoder(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z - z.mean(0, keepdim=True), 1.0), obs=x)

    assert not look(decoder, programs.normal_guide(1.0, 1.0), torch.randn(5)).vectorizes


def test_looped_samples_are_stacked() -> None:
    def decoder(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z.reshape(len(x)), 1.0), obs=x)

    x = torch.randn(5)
    layout, rows = draw(decoder, programs.normal_guide(1.0, 1.0), x, 3)
    assert not layout.vectorizes
    z = rows.latents["z"]
    assert z.shape == (3, 5)
    assert float((z[0] - z[1]).abs().min()) > 0
    torch.testing.assert_close(rows.log_likelihood, dist.Normal(z, 1.0).log_prob(x))
    torch.testing.assert_close(rows.log_guide, dist.Normal(x, 1.0).log_prob(z))


def test_a_plate_that_is_missing_is_told_with_those_there_are() -> None:
    def without(x: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def other(x: Tensor) -> None:
        with pyro.plate("columns", 3):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x[:, None].expand(-1, 3))

    def nothing(x: Tensor) -> None:
        """Never reached beyond the model's observed sites."""

    with pytest.raises(PairError, match=r"'x' are not inside a plate over the 5 rows .* none"):
        look(without, nothing, torch.zeros(5))
    with pytest.raises(PairError, match=r"5 rows .*the plates found are 'columns' of size 3"):
        look(other, nothing, torch.zeros(5))


def test_an_autoguide_is_made_of_auxiliary_draws() -> None:
    x = torch.rand(4)
    auto = AutoNormal(programs.positive, init_scale=0.5)
    layout, rows = draw(programs.positive, auto, x, 3)
    assert layout.latents == ("z",)
    assert set(layout.guide_sites) == {"z", "z_unconstrained"}
    assert layout.draws == ("z_unconstrained",)
    # z = exp(u), so that log q(z) = log N(u) - u
    u = rows.draws["z_unconstrained"]
    torch.testing.assert_close(rows.latents["z"], u.exp())
    normal = dist.Normal(auto.locs.z.detach(), auto.scales.z.detach())
    torch.testing.assert_close(rows.log_guide, normal.log_prob(u) - u)
