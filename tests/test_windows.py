"""What z has to tell beside a window: closed forms, enumeration, and Wyner's common information."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path

import pytest
import torch
from scripts import mean, rows, run
from torch import Tensor

from ppl_vae.rate_distortion import best_model, outside_window, windowed_model

LOG2 = math.log(2)


def table(sequences: Sequence[Sequence[int]], size: int = 2) -> Tensor:
    """p(x) if these are equally likely."""
    found = torch.zeros((size,) * len(sequences[0]), dtype=torch.float64)
    for x in sequences:
        found[tuple(x)] += 1 / len(sequences)
    return found


def coins(count: int) -> list[tuple[int, ...]]:
    return list(product(range(2), repeat=count))


def mirror(length: int) -> Tensor:
    return table([(*u, *reversed(u)) for u in coins(length // 2)])


def chain(order: int, length: int) -> Tensor:
    """x_t = x_{t - order}, after as many coins."""
    return table([(u * length)[:length] for u in coins(order)])


def some_source(*sizes: int) -> Tensor:
    return torch.rand(*sizes, dtype=torch.float64).flatten().pow(3).softmax(0).reshape(sizes)


def code(source: Tensor, of: Callable[[tuple[int, ...]], int], size: int) -> Tensor:
    """The encoder whose z is a function of x."""
    found = torch.zeros(*source.shape, size, dtype=torch.float64)
    for x in product(*map(range, source.shape)):
        found[(*x, of(x))] = 1.0
    return found


# -- exact values ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [2, 6, 8])
def test_a_mirror_leaves_the_pairs_that_are_further_apart_than_the_window(length: int) -> None:
    source = mirror(length)
    for window in range(length + 2):
        hidden = sum(distance > window for distance in range(1, length, 2))
        found = outside_window(source, window)
        assert found.entropy == pytest.approx(length / 2 * LOG2, abs=1e-12)
        assert found.information == pytest.approx(hidden * LOG2, abs=1e-12)
        assert found.lost == pytest.approx(hidden * LOG2, abs=1e-12)
        # It is enough: a code of the outer coins has the best ELBO.
        outer = windowed_model(
            source,
            code(source, lambda x: int("0" + "".join(map(str, x[:hidden])), 2), 2**hidden),  # noqa: B023
            window,
        )
        assert outer.gap == pytest.approx(0.0, abs=1e-12)
        assert outer.rate == pytest.approx(found.information, abs=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_a_markov_chain_of_copies_leaves_what_its_window_is_short_of(order: int) -> None:
    """What is told is a syndrome: with the window it gives all of the coins, wherever the window is."""
    source = chain(order, 8)
    checks: dict[tuple[int, int], list[tuple[int, ...]]] = {
        (2, 1): [(0, 1)],
        (3, 1): [(0, 2), (1, 2)],
        (3, 2): [(0, 1, 2)],
    }
    for window in range(order + 1):
        each: list[tuple[int, ...]] = [] if window else [(i,) for i in range(order)]
        sums = checks.get((order, window), each)
        assert len(sums) == order - window
        told = code(
            source,
            lambda x: sum(2**i * (sum(x[j] for j in which) % 2) for i, which in enumerate(sums)),  # noqa: B023
            2 ** len(sums),
        )
        found, reached = outside_window(source, window), windowed_model(source, told, window)
        assert found.information == pytest.approx((order - window) * LOG2, abs=1e-12)
        assert reached.rate == pytest.approx(found.information, abs=1e-12)
        assert reached.gap == pytest.approx(0.0, abs=1e-12)
        # All that comes is lost without z, and counted once for each value.
        lost = (8 - order) * LOG2 if window < order else 0.0
        assert found.lost == pytest.approx(lost, abs=1e-12)
        nothing = torch.ones(*source.shape, 1)
        assert windowed_model(source, nothing, window).gap == pytest.approx(lost, abs=1e-12)


def test_copies_of_one_coin_lose_more_than_z_has_to_tell() -> None:
    found = outside_window(chain(1, 8), 0)
    assert found.lost == pytest.approx(7 * LOG2)
    assert found.information == pytest.approx(LOG2)


def by_enumeration(source: Tensor, window: int) -> tuple[float, list[float]]:
    """What is lost, and what crosses the window at each place, by sums over pairs of conditionals."""
    length = source.dim()
    sequences = {x: float(source[x]) for x in product(*map(range, source.shape))}

    def weights(places: Sequence[int]) -> dict[tuple[int, ...], float]:
        found: dict[tuple[int, ...], float] = defaultdict(float)
        for x, p in sequences.items():
            found[tuple(x[i] for i in places)] += p
        return found

    def information(a: Sequence[int], b: Sequence[int], given: Sequence[int]) -> float:
        """E log p(a, b | c) / (p(a | c) p(b | c))."""
        parts = [([*a, *b, *given], 1), ([*given], 1), ([*a, *given], -1), ([*b, *given], -1)]
        found = [(places, sign, weights(places)) for places, sign in parts]
        return sum(
            p * sign * math.log(w[tuple(x[i] for i in places)])
            for x, p in sequences.items()
            for places, sign, w in found
        )

    lost, crossing = 0.0, []
    for t in range(length):
        seen = range(max(0, t - window), t)
        lost += information([t], range(seen.start), seen)
        crossing.append(information(range(t, length), range(seen.start), seen))
    return lost, crossing


@pytest.mark.parametrize("window", [0, 1, 2, 3, 7])
def test_any_source_by_enumeration(window: int) -> None:
    source = some_source(2, 3, 2, 2, 2)
    lost, crossing = by_enumeration(source, window)
    found = outside_window(source, window)
    assert found.lost == pytest.approx(lost, abs=1e-12)
    torch.testing.assert_close(found.crossing, torch.tensor(crossing, dtype=torch.float64))
    assert found.information == pytest.approx(max(crossing), abs=1e-12)
    assert float(found.conditional.sum()) == pytest.approx(found.entropy, abs=1e-12)
    assert found.information <= found.lost + 1e-12
    if window >= 4:
        assert abs(found.information) + abs(found.lost) < 1e-12
    json.dumps(found.to_dict())


def test_window_0_loses_the_total_correlation() -> None:
    source = some_source(2, 3, 4)
    independent = torch.einsum(
        "i,j,k->ijk", source.sum((1, 2)), source.sum((0, 2)), source.sum((0, 1))
    )
    total = float((source * (source / independent).log()).sum())
    assert outside_window(source, 0).lost == pytest.approx(total, abs=1e-12)


@pytest.mark.parametrize("window", [0, 1, 2, 3])
def test_the_best_windowed_model_of_an_encoder_by_its_tables(window: int) -> None:
    """The conditionals as tables, and the rate and distortion of that pair."""
    source, k = some_source(2, 3, 2, 2), 3
    encoder = torch.rand(*source.shape, k, dtype=torch.float64).mul(3).softmax(-1)
    joint = source.unsqueeze(-1) * encoder
    prior = joint.flatten(0, -2).sum(0)
    rate = distortion = 0.0
    for x in product(*map(range, source.shape)):
        for z in range(k):
            p = float(joint[(*x, z)])
            rate += p * math.log(encoder[(*x, z)] / prior[z])
            for t in range(source.dim()):
                fixed: list[int | slice] = [slice(None)] * source.dim()
                start = max(0, t - window)
                fixed[start:t] = x[start:t]
                given = joint[(*fixed, z)].sum()
                fixed[t] = x[t]
                distortion -= p * math.log(joint[(*fixed, z)].sum() / given)
    found = windowed_model(source, encoder, window)
    assert found.rate == pytest.approx(rate, abs=1e-12)
    assert found.distortion == pytest.approx(distortion, abs=1e-12)
    assert found.loss(2.0) == pytest.approx(distortion + 2 * rate, abs=1e-12)
    assert found.gap >= 0
    if window == 3:  # whatever the encoder: the ELBO does not say what z tells
        assert found.gap == pytest.approx(0.0, abs=1e-12)
        same = best_model(source.flatten(), encoder.flatten(0, -2))
        assert found.rate == pytest.approx(same.rate, abs=1e-12)
        assert found.elbo == pytest.approx(same.elbo, abs=1e-12)
    json.dumps(found.to_dict())
    assert f"{found.rate:.6f} nats" in str(found)


def test_noise_costs_wyners_common_information() -> None:
    """A coin and its noisy copy, window 0: z tells more than the two share.

    Wyner's closed form: log 2 + h(a) - 2 h(b), with a = 2 b (1 - b). Beside it, the least of numerical
    minimizations over encoders that make the two independent, which share no formula with it.
    """
    noise = 0.2
    source = torch.tensor([[1 - noise, noise], [noise, 1 - noise]], dtype=torch.float64) / 2
    h = torch.distributions.Bernoulli(torch.tensor(noise, dtype=torch.float64)).entropy().item()
    b = (1 - math.sqrt(1 - 2 * noise)) / 2
    of_b = -b * math.log(b) - (1 - b) * math.log(1 - b)
    common = LOG2 + h - 2 * of_b
    shared = outside_window(source, 0)
    assert shared.information == pytest.approx(LOG2 - h, abs=1e-12)
    # Both are noisy copies of z, with the noise b.
    flip = torch.tensor([[1 - b, b], [b, 1 - b]], dtype=torch.float64)
    joint = torch.einsum("zx,zy->xyz", flip, flip) / 2
    wyner = windowed_model(source, joint / joint.sum(-1, keepdim=True), 0)
    assert wyner.gap == pytest.approx(0.0, abs=1e-12)
    assert wyner.rate == pytest.approx(common, abs=1e-12)
    assert common > 1.5 * shared.information

    def parts(logits: Tensor) -> tuple[Tensor, Tensor]:
        """I(x; z), and sum_t H(x_t | z) - H(x | z)."""
        joint = source.unsqueeze(-1) * logits.softmax(-1)

        def entropy(p: Tensor) -> Tensor:
            return -torch.xlogy(p, p).sum()

        z, both = entropy(joint.sum((0, 1))), entropy(joint)
        separate = entropy(joint.sum(1)) + entropy(joint.sum(0)) - z
        return entropy(source) + z - both, separate - both

    least = math.inf
    for _ in range(4):
        logits = torch.randn(2, 2, 3, dtype=torch.float64).requires_grad_()
        for weight in (10.0, 100.0, 1000.0):
            optimizer = torch.optim.LBFGS([logits], max_iter=400, line_search_fn="strong_wolfe")

            def loss() -> Tensor:
                optimizer.zero_grad()  # noqa: B023
                information, gap = parts(logits)  # noqa: B023
                total = information + weight * gap  # noqa: B023
                total.backward()
                return total

            optimizer.step(loss)
        information, gap = parts(logits.detach())
        assert float(gap) < 1e-3
        assert float(information) > 0.98 * common
        least = min(least, float(information))
    assert least == pytest.approx(common, rel=0.02)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: outside_window([0.5, 0.6], 0), ValueError, "source must hold probabilities"),
        (lambda: outside_window("x", 0), TypeError, "source must be an array of numbers"),
        (
            lambda: outside_window(0.5, 0),
            ValueError,
            r"source must have the shape \(m_1, ..., m_T\)",
        ),
        (lambda: outside_window([1.0], -1), ValueError, "window must be at least 0, got -1"),
        (
            lambda: outside_window([1.0], "all"),  # type: ignore[arg-type]
            TypeError,
            "window must be a whole number",
        ),
        (
            lambda: windowed_model([[0.5, 0.5]], torch.ones(2, 1, 3) / 3, 0),
            ValueError,
            r"encoder must have the shape .* \(1, 2, k\), got \(2, 1, 3\)",
        ),
        (
            lambda: windowed_model([[0.5, 0.5]], torch.ones(1, 2, 3), 0),
            ValueError,
            "encoder must hold probabilities",
        ),
    ],
)
def test_what_is_refused(call: Callable[[], object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


# -- what is learned -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_what_is_learned_is_what_is_outside(tmp_path: Path) -> None:
    """All windows, with the numbers of docs/collapse.md."""
    for row in rows(run("context_window.py", cwd=tmp_path)):
        exact = mean(row["outside, exact"])
        assert mean(row["I(x; z), learned"]) == pytest.approx(exact, abs=0.03)
        assert -0.03 < mean(row["ELBO + H(x)"]) <= 0.001
