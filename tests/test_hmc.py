"""Leapfrog trajectories, transitions and step sizes of Hamiltonian Monte Carlo, against exact Gaussians."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppl_vae.evaluation import hmc
from ppl_vae.evaluation.hmc import Densities, Point, leapfrog, sigmoidal, transition

PRECISION = torch.tensor([[2.0, 1.2], [1.2, 1.0]], dtype=torch.float64)
CENTER = torch.tensor([1.0, -2.0], dtype=torch.float64)


def gaussian_path(u: Tensor) -> Point:
    """From N(0, I) to N(CENTER, PRECISION^-1); not normalized."""
    away = u - CENTER
    end, d_end = -0.5 * ((away @ PRECISION) * away).sum(-1), -away @ PRECISION
    base, d_base = -0.5 * u.square().sum(-1), -u
    return Point(u, base, end - base, d_base, d_end - d_base)


def double_well(u: Tensor) -> Point:
    """A density with two modes, whose leapfrog map is not linear."""
    zero = torch.zeros_like(u)
    return Point(u, -(u.square() - 1).square().sum(-1), zero[..., 0], -4 * u * (u**2 - 1), zero)


@pytest.mark.parametrize("densities", [gaussian_path, double_well])
def test_leapfrog_goes_back_the_way_it_came(densities: Densities) -> None:
    u = torch.randn(50, 3, 2, dtype=torch.float64)
    momentum = torch.randn_like(u)
    step = torch.tensor([[0.1, 0.2], [0.05, 0.1], [0.15, 0.02]], dtype=torch.float64)
    end, turned = leapfrog(densities, densities(u), momentum, 0.7, step, 10)
    assert float((end.u - u).abs().min(0).values.max()) > 1e-3
    back, restored = leapfrog(densities, end, -turned, 0.7, step, 10)
    torch.testing.assert_close(back.u, u, atol=1e-10, rtol=0.0)
    torch.testing.assert_close(restored, -momentum, atol=1e-10, rtol=0.0)


def test_leapfrog_keeps_volume_and_nearly_energy() -> None:
    def flow(state: Tensor) -> Tensor:
        u, momentum = state.reshape(2, 1, 1, 2)
        end, new = leapfrog(double_well, double_well(u), momentum, 1.0, torch.tensor(0.05), 10)
        return torch.cat([end.u.flatten(), new.flatten()])

    state = torch.randn(4, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(flow, state)
    assert float(torch.linalg.det(jacobian)) == pytest.approx(1.0, abs=1e-9)

    def energy(state: Tensor) -> float:
        potential = -double_well(state[:2].reshape(1, 1, 2)).base
        return float(potential + 0.5 * state[2:].square().sum())

    assert abs(energy(flow(state)) - energy(state)) < 0.05


@pytest.mark.parametrize("beta", [0.4, 1.0])
def test_transitions_leave_a_gaussian_as_it_is(beta: float) -> None:
    precision = beta * PRECISION + (1 - beta) * torch.eye(2, dtype=torch.float64)
    covariance = torch.linalg.inv(precision)
    mean = covariance @ (beta * PRECISION @ CENTER)
    exact = dist.MultivariateNormal(mean, covariance)
    point = gaussian_path(exact.sample((20_000, 1)))
    step = torch.tensor(
        [[0.9, 1.3]], dtype=torch.float64
    )  # large: without rejection it would be wrong
    total = 0.0
    for _ in range(15):
        point, acceptance = transition(gaussian_path, point, beta, step, 3)
        total += float(acceptance.mean()) / 15
    assert 0.3 < total < 0.9
    u = point.u[:, 0]
    error = covariance.diagonal().sqrt() / math.sqrt(len(u))
    assert (((u.mean(0) - mean) / error).abs() < 4).all()
    # Var of a sample covariance entry: (s_ii s_jj + s_ij^2) / n.
    scales = torch.outer(covariance.diagonal(), covariance.diagonal())
    error = ((scales + covariance.square()) / len(u)).sqrt()
    assert (((u.T.cov() - covariance) / error).abs() < 4).all()
    # E[u'Au] = number of dimensions; its fourth moment sees tails that a covariance does not.
    radius = (((u - mean) @ precision) * (u - mean)).sum(-1)
    assert float(radius.square().mean()) == pytest.approx(8.0, abs=4 * math.sqrt(320 / len(u)))


def test_transitions_move_away_from_where_they_were() -> None:
    point = gaussian_path(torch.full((4000, 1, 2), 5.0, dtype=torch.float64))
    for _ in range(60):
        point, _ = transition(gaussian_path, point, 1.0, torch.full((1, 2), 0.4), 5)
    error = torch.linalg.inv(PRECISION).diagonal().sqrt() / math.sqrt(4000)
    assert (((point.u[:, 0].mean(0) - CENTER) / error).abs() < 5).all()


def test_a_trajectory_that_leaves_the_numbers_is_refused() -> None:
    point = double_well(torch.full((3, 2, 2), 50.0))
    new, acceptance = transition(double_well, point, 1.0, torch.full((2, 2), 1e3), 10)
    assert torch.equal(new.u, point.u)
    assert torch.equal(acceptance, torch.zeros(3, 2))


def test_steps_are_tuned_to_each_row() -> None:
    scales = torch.tensor([0.01, 1.0, 30.0]).reshape(1, 3, 1)

    def widths(u: Tensor) -> Point:
        zero = torch.zeros_like(u)
        return Point(u, -0.5 * (u / scales).square().sum(-1), zero[..., 0], -u / scales**2, zero)

    start = widths(scales * torch.randn(16, 3, 5))
    steps = hmc.tune(widths, start, sigmoidal(60), torch.ones(3, 5), 10)
    relative = steps.at(1.0)[:, 0] / scales.flatten()
    assert float(relative.max() / relative.min()) < 1.5
    accepted: Any = 0.0
    point = start
    for _ in range(50):
        point, acceptance = transition(widths, point, 1.0, steps.at(1.0), 10)
        accepted = accepted + acceptance.mean(0) / 50
    assert ((accepted - hmc.TARGET_ACCEPTANCE).abs() < 0.15).all()


def test_steps_between_temperatures_are_interpolated_and_beyond_them_kept() -> None:
    log_steps = torch.tensor([[0.0], [2.0], [4.0]])
    steps = hmc.StepSizes([0.2, 0.4, 0.8], log_steps, torch.ones(1, 1))
    for beta, expected in ((0.0, 0.0), (0.2, 0.0), (0.3, 1.0), (0.6, 3.0), (0.8, 4.0), (1.0, 4.0)):
        assert float(steps.at(beta).log()) == pytest.approx(expected, abs=1e-5)


def test_the_schedule_rises_from_0_to_1_like_a_logistic_function() -> None:
    betas = torch.tensor(sigmoidal(100), dtype=torch.float64)
    assert len(betas) == 101
    assert betas[0] == 0.0
    assert betas[-1] == 1.0
    steps = betas.diff()
    assert (steps > 0).all()
    torch.testing.assert_close(steps, steps.flip(0))
    assert steps[50] / steps[0] == pytest.approx(0.25 / (0.9820137 * 0.0179862), rel=0.05)
    assert sigmoidal(1) == [0.0, 1.0]
