"""Quantizers against what they are: Lloyd's algorithm, bijections, entropies, and an independent library."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from sklearn.cluster import KMeans
from torch import Tensor
from torch.nn.functional import softmax
from vector_quantize_pytorch import (
    FSQ as OtherFSQ,
    LFQ as OtherLFQ,
    ResidualVQ,
    VectorQuantize,
)
from vector_quantize_pytorch.vector_quantize_pytorch import rotate_to

from ppl_vae.codes import (
    EMA,
    FSQ,
    LFQ,
    CodebookLearner,
    CodebookStart,
    Gradient,
    KMeansStart,
    RandomStart,
    ResidualQuantizer,
    SimVQ,
    VectorQuantizer,
)
from ppl_vae.models import GaussianMixture
from ppl_vae.networks import straight_through


def plain(codes: int, dim: int, learner: CodebookLearner, *, cosine: bool = False) -> Any:
    """A codebook that begins with draws, and of which no code is moved."""
    return VectorQuantizer(codes, dim, learner, RandomStart(), restarts=0, cosine=cosine).double()


def taught(quantizer: Any, vectors: Tensor) -> Tensor:
    """Lets a quantizer learn from vectors once; their codes before."""
    projected = quantizer.project(vectors)
    z: Tensor = quantizer.nearest(projected)
    quantizer.gather(projected, z)
    quantizer.learn()
    return z


def means(vectors: Tensor, labels: Tensor, codes: int) -> Tensor:
    return torch.stack([vectors[labels == k].mean(0) for k in range(codes)])


@pytest.fixture
def clusters() -> Tensor:
    """400 vectors around four centers."""
    centers = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0], [4.0, 4.0]], dtype=torch.float64)
    return (centers + torch.randn(100, 4, 2, dtype=torch.float64) * 0.7).reshape(-1, 2)


def test_running_means_without_memory_are_a_step_of_lloyd(clusters: Tensor) -> None:
    quantizer = plain(6, 2, EMA(decay=0.0))
    with torch.no_grad():
        quantizer.codebook.points[5] = torch.tensor([100.0, 100.0])  # nobody is near
    before = quantizer.points().clone()
    z = taught(quantizer, clusters)
    lloyd = KMeans(5, init=before[:5].numpy(), n_init=1, max_iter=1, tol=0).fit(clusters.numpy())
    found = quantizer.points()
    torch.testing.assert_close(found[:5], torch.as_tensor(lloyd.cluster_centers_))
    torch.testing.assert_close(found[:5], means(clusters, z, 5))
    assert torch.equal(found[5], before[5])


def test_where_running_means_and_gradients_come_to_rest_each_code_is_the_mean_of_its_members(
    clusters: Tensor,
) -> None:
    running = plain(4, 2, EMA(decay=0.5))
    for _ in range(200):
        z = taught(running, clusters)
    torch.testing.assert_close(running.points(), means(clusters, z, 4))
    learned = plain(4, 2, Gradient())
    optimizer = torch.optim.SGD(learned.parameters(), lr=0.25)
    for _ in range(300):
        z = learned.nearest(clusters)
        loss = (clusters - learned.embed(z)).square().sum() / 400
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    torch.testing.assert_close(learned.points(), means(clusters, z, 4), rtol=0, atol=1e-6)


@pytest.mark.parametrize("decay", [0.9, 0.3])
def test_a_code_without_members_stays_however_long_it_waits(decay: float, clusters: Tensor) -> None:
    quantizer = plain(5, 2, EMA(decay))
    with torch.no_grad():
        quantizer.codebook.points[4] = quantizer.codebook.sums[4] = torch.tensor([50.0, -50.0])
    for _ in range(3000):
        taught(quantizer, clusters[:40])
    torch.testing.assert_close(quantizer.points()[4], torch.tensor([50.0, -50.0]).double())


def test_running_means_weigh_steps_by_their_age(clusters: Tensor) -> None:
    quantizer = plain(1, 2, EMA(decay=0.75))
    start = quantizer.points()[0].clone()
    first, second = clusters[:100], clusters[100:150]
    taught(quantizer, first)
    taught(quantizer, second)
    sums = 0.75**2 * start + 0.75 * 0.25 * first.sum(0) + 0.25 * second.sum(0)
    count = 0.75**2 + 0.75 * 0.25 * 100 + 0.25 * 50
    torch.testing.assert_close(quantizer.points()[0], sums / count)


def test_running_means_are_those_of_another_library(clusters: Tensor) -> None:
    """It begins with a count of 0 for some of its sums, and smooths counts: in the limit of many members."""
    other = VectorQuantize(dim=2, codebook_size=4, decay=0.8, commitment_weight=0.0).double()
    quantizer = plain(4, 2, EMA(decay=0.8))
    start = means(clusters, torch.arange(400) % 4, 4) + 0.3
    with torch.no_grad():
        book = other._codebook
        book.embed.copy_(start[None])
        book.embed_avg.copy_(1e4 * start[None])
        book.cluster_size.fill_(1e4)
        quantizer.codebook.points.copy_(start)
        quantizer.codebook.sums.copy_(1e4 * start)
        quantizer.codebook.counts.fill_(1e4)
    other.train()
    for _ in range(5):
        _, z, _ = other(clusters[None])
        assert torch.equal(z[0], taught(quantizer, clusters))
    torch.testing.assert_close(book.embed[0], quantizer.points(), rtol=1e-6, atol=1e-6)


def test_angles_are_those_of_another_library(clusters: Tensor) -> None:
    """Codes, vectors and running means: where lengths do not count, nor does how members are counted."""
    vectors = clusters - clusters.mean(0)
    other = VectorQuantize(2, 8, decay=0.8, use_cosine_sim=True, commitment_weight=0.0).double()
    quantizer = plain(8, 2, EMA(decay=0.8), cosine=True)
    book = other._codebook
    with torch.no_grad():
        book.embed.copy_(quantizer.points()[None])
        book.embed_avg.copy_(quantizer.codebook.sums[None])
    other.train()
    before = quantizer.points().clone()
    for _ in range(5):
        points = quantizer.points().clone()
        read, z, _ = other(vectors[None])  # it computes in single precision
        assert torch.equal(z[0], taught(quantizer, vectors))
        torch.testing.assert_close(read[0], points[z[0]], rtol=0, atol=1e-5)
        torch.testing.assert_close(book.embed[0], quantizer.points(), rtol=0, atol=1e-5)
    assert float((quantizer.points() - before).norm(dim=1).max()) > 0.05  # they have moved


@pytest.mark.parametrize("cosine", [False, True])
@pytest.mark.parametrize(
    "learner", [EMA(), Gradient(), SimVQ()], ids=lambda each: type(each).__name__
)
def test_the_nearest_code_is_the_nearest_code(learner: CodebookLearner, cosine: bool) -> None:
    quantizer = plain(32, 3, learner, cosine=cosine)
    vectors = torch.randn(2, 50, 3, dtype=torch.float64)
    projected, points = quantizer.project(vectors), quantizer.points()
    z = quantizer.nearest(projected)
    assert torch.equal(z, torch.cdist(projected, points).argmin(-1))
    assert torch.equal(quantizer.embed(z), points[z])
    if cosine:
        torch.testing.assert_close(points.norm(dim=-1), torch.ones(32).double())
        best = torch.nn.functional.cosine_similarity(vectors[..., None, :], points, dim=-1)
        assert torch.equal(z, best.argmax(-1))


def test_all_codes_of_a_mapped_codebook_move_with_the_gradient_of_one() -> None:
    quantizer = plain(8, 3, SimVQ())
    before = quantizer.points().detach().clone()
    loss = (quantizer.embed(torch.tensor([2])) - 1).square().sum()
    loss.backward()
    torch.optim.SGD(quantizer.parameters(), lr=0.1).step()
    assert bool(((quantizer.points() - before).abs().amax(1) > 1e-3).all())


@pytest.mark.parametrize(
    "learner", [EMA(), Gradient(), SimVQ()], ids=lambda each: type(each).__name__
)
def test_codes_that_nobody_uses_are_moved_among_the_vectors(
    learner: CodebookLearner, clusters: Tensor
) -> None:
    kept: Any
    moved: Any
    kept, moved = (
        VectorQuantizer(16, 2, learner, RandomStart(), restarts=restarts).double()
        for restarts in (0.0, 1.0)
    )
    for quantizer in (kept, moved):
        with torch.no_grad():
            far = 1000.0 + torch.arange(15 * 2, dtype=torch.float64).reshape(15, 2)
            points = torch.cat([torch.full((1, 2), 2.0, dtype=torch.float64), far])
            quantizer.codebook.place(points, torch.ones(16, dtype=torch.bool))
        for _ in range(600):
            z = taught(quantizer, clusters)
        used = len(z.unique())
        if quantizer is kept:
            assert used == 1  # of 16: that is what dies
    assert used == 16
    inside = (moved.points() > clusters.min()) & (moved.points() < clusters.max())
    assert bool(inside.all())


@pytest.mark.parametrize("n", [8, 400, 40_000])
@pytest.mark.parametrize("restarts", [0.25, 1.0])
@pytest.mark.parametrize("start", [KMeansStart(steps=1), RandomStart()], ids=["k-means", "random"])
def test_a_code_that_dies_at_the_start_is_noticed_however_many_vectors_there_are(
    n: int, restarts: float, start: CodebookStart
) -> None:
    """From twice the limit down to it: ln 2 / -ln 0.99 = 69 steps.

    It was 917 for 10,000 vectors of a code from k-means, and a single one from random codes.
    """
    vectors = torch.tensor([0.0, 1.0, 2.0, 3.0]).double().repeat(n // 4).unsqueeze(1)
    quantizer: Any = VectorQuantizer(4, 1, EMA(), start, restarts).double()
    if start.steps:
        taught(quantizer, vectors)
    else:
        everywhere = torch.ones(4, dtype=torch.bool)
        quantizer.codebook.place(torch.arange(4).double().unsqueeze(1), everywhere)
    assert quantizer.nearest(vectors).unique().tolist() == [0, 1, 2, 3]
    away = torch.full((4, 1), 50.0, dtype=torch.float64)
    quantizer.codebook.place(away, torch.tensor([False, False, False, True]))
    steps = 0
    while float(quantizer.points()[3]) > 40 and steps < 100:
        taught(quantizer, vectors)
        steps += 1
    assert steps == math.ceil(math.log(2) / -math.log(0.99))


def test_a_codebook_begins_where_k_means_ends(clusters: Tensor) -> None:
    quantizer: Any = VectorQuantizer(4, 2, EMA(), KMeansStart(steps=3), restarts=0).double()
    drawn = quantizer.points().clone()
    for step in (1, 2):
        taught(quantizer, clusters)
        points = quantizer.points()
        assert not torch.equal(points, drawn)
        near = torch.cdist(points, clusters).amin(1)
        assert float(near.max()) < 1e-6, f"after {step} steps the codes are vectors of the batch"
    taught(quantizer, clusters)
    z = quantizer.nearest(clusters)
    torch.testing.assert_close(quantizer.points(), means(clusters, z, 4), rtol=0, atol=0.05)
    best = KMeans(4, n_init=10, random_state=0).fit(clusters.numpy()).inertia_
    found = float((clusters - quantizer.embed(z)).square().sum())
    assert found < 1.05 * best
    # From then on it learns.
    before = quantizer.points().clone()
    taught(quantizer, clusters + 1)
    assert not torch.equal(quantizer.points(), before)


def test_a_start_from_fewer_vectors_than_codes_has_them_all(clusters: Tensor) -> None:
    quantizer = VectorQuantizer(64, 2, EMA(), KMeansStart(steps=1)).double()
    taught(quantizer, clusters[:10].repeat(5, 1))
    assert float(torch.cdist(clusters[:10], quantizer.points()).amin(1).max()) < 1e-6
    assert len(torch.unique(quantizer.points(), dim=0)) == 64


def test_a_start_is_over_for_a_codebook_that_is_read_again(clusters: Tensor) -> None:
    made, again = (VectorQuantizer(4, 2, start=KMeansStart(steps=1)).double() for _ in range(2))
    taught(made, clusters)
    again.load_state_dict(made.state_dict())
    taught(again, clusters + 10)  # a step of running means, no start
    taught(made, clusters + 10)
    torch.testing.assert_close(made.points(), again.points())


@pytest.mark.parametrize("mode", ["evaluation", "no gradient", "no vectors"])
def test_nothing_is_learned_outside_of_training(mode: str, clusters: Tensor) -> None:
    quantizer = VectorQuantizer(4, 2, EMA(decay=0.0), KMeansStart(steps=1)).double()
    before = {name: value.clone() for name, value in quantizer.state_dict().items()}
    if mode == "evaluation":
        taught(quantizer.eval(), clusters)
    elif mode == "no gradient":
        with torch.no_grad():
            taught(quantizer, clusters)
    else:
        quantizer.learn()
    for name, value in quantizer.state_dict().items():
        assert torch.equal(value, before[name]), name


# -- gradients -------------------------------------------------------------------------------------------


def test_the_rotation_takes_the_vector_to_its_code_and_its_gradient_along() -> None:
    vectors = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    codes = torch.randn(7, 4, dtype=torch.float64)
    gradient = torch.randn(7, 4, dtype=torch.float64)
    read = straight_through(vectors, codes, rotate=True)
    assert torch.equal(read, codes)
    (found,) = torch.autograd.grad((read * gradient).sum(), vectors)
    for i in range(7):
        e, q = vectors[i].detach(), codes[i]
        a, b = e / e.norm(), q / q.norm()
        # The rotation of the plane of both, from its two sides: I + sin (b' a^T - a b'^T) + (cos - 1)(...)
        cos = a @ b
        c = (b - cos * a) / (b - cos * a).norm()
        sin = b @ c
        turn = (
            torch.eye(4).double()
            + sin * (torch.outer(c, a) - torch.outer(a, c))
            + (cos - 1) * (torch.outer(a, a) + torch.outer(c, c))
        ) * (q.norm() / e.norm())
        torch.testing.assert_close(turn @ e, q)
        torch.testing.assert_close(found[i], turn.T @ gradient[i])


def test_the_rotation_is_that_of_another_library() -> None:
    vectors = torch.randn(7, 4, dtype=torch.float64, requires_grad=True)
    codes, gradient = torch.randn(7, 4, dtype=torch.float64), torch.randn(7, 4, dtype=torch.float64)
    ours = straight_through(vectors, codes, rotate=True)
    theirs = rotate_to(vectors, codes)
    of_both = [torch.autograd.grad((read * gradient).sum(), vectors)[0] for read in (ours, theirs)]
    torch.testing.assert_close(*of_both)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("rotate", [False, True])
def test_a_gradient_passes_where_vectors_vanish(rotate: bool) -> None:
    vectors = torch.zeros(1, 3, requires_grad=True)
    read = straight_through(vectors, torch.ones(1, 3), rotate=rotate)
    (found,) = torch.autograd.grad(read.sum(), vectors)
    assert bool(found.isfinite().all())
    if not rotate:
        assert torch.equal(found, torch.ones(1, 3))


@pytest.mark.parametrize("rate", [0.1, 5.0])
def test_adam_ignores_a_weight_of_the_codebooks_term_but_not_its_rate(rate: float) -> None:
    def moved(weight: float, rate: float) -> Tensor:
        torch.manual_seed(0)
        quantizer = plain(3, 2, Gradient(rate))
        before = quantizer.points().detach().clone()
        groups = [
            {"params": [p], "lr": 1e-3 * each} for p, each in quantizer.codebook.learning_rates()
        ]
        adam = torch.optim.Adam(groups, eps=0.0)
        vectors = torch.randn(20, 2, dtype=torch.float64)
        for _ in range(10):
            adam.zero_grad()
            z = quantizer.nearest(vectors)
            (weight * (vectors - quantizer.embed(z)).square().sum()).backward()
            adam.step()
        after: Tensor = quantizer.points().detach() - before
        return after

    torch.testing.assert_close(moved(1.0, 1.0), moved(rate, 1.0))  # the weight does nothing
    first = moved(1.0, rate)
    assert not torch.allclose(first, moved(1.0, 1.0), rtol=0.3)


# -- codes without a codebook ----------------------------------------------------------------------------

LEVELS = [(2,), (3, 2), (8, 5, 5, 5), (4, 4, 3), (7, 5, 5, 5, 5), (2, 2, 2, 2, 2, 2)]


@pytest.mark.parametrize("levels", LEVELS, ids=str)
def test_levels_and_codes_are_one_to_one(levels: tuple[int, ...]) -> None:
    quantizer = FSQ(levels)
    points = quantizer.points()
    assert quantizer.codes == math.prod(levels) == len(torch.unique(points, dim=0))
    assert torch.equal(quantizer.nearest(points), torch.arange(quantizer.codes))
    for column, size in zip(points.T, levels, strict=True):
        expected = (torch.arange(size) - size // 2) / (size // 2)
        assert torch.equal(column.unique(), expected)
    # Every code is reached, by vectors of an encoder, and by those beyond all bounds.
    reached = quantizer.nearest(quantizer.project(torch.randn(200_000, len(levels)) * 3))
    assert len(reached.unique()) == quantizer.codes or quantizer.codes > 1000
    far = torch.tensor(list(itertools.product([-1e9, 1e9], repeat=len(levels))))
    corners = quantizer.nearest(quantizer.project(far))
    assert int(corners.min()) == 0
    assert int(corners.max()) == quantizer.codes - 1


@pytest.mark.parametrize("count", [1, 2, 3])
def test_each_code_of_few_levels_is_one_point_and_is_reached(count: int) -> None:
    """All levels from 2 to 5: codes and digits, counted by hand, are one to one; an encoder reaches each."""
    for levels in itertools.product((2, 3, 4, 5), repeat=count):
        quantizer = FSQ(levels).double()
        digits = [
            digits[::-1] for digits in itertools.product(*(range(size) for size in levels[::-1]))
        ]
        units = torch.tensor([size // 2 for size in levels])
        steps = torch.tensor(digits) - units
        points = steps / units
        every = torch.arange(math.prod(levels))
        assert quantizer.codes == len(every)
        assert torch.equal(quantizer.embed(every), points)
        assert torch.equal(quantizer.nearest(points), every)
        # The vectors of an encoder that are bounded to the points: h tanh(L + s) - o = step, solved for L.
        half = torch.tensor([1.001 * (size - 1) / 2 for size in levels]).double()
        offset = torch.tensor([0.0 if size % 2 else 0.5 for size in levels]).double()
        shift = torch.where(torch.tensor(levels) == 2, 0, (offset / half).atanh())
        vectors = ((steps + offset) / half).atanh() - shift
        assert torch.equal(quantizer.nearest(quantizer.project(vectors)), every)


@pytest.mark.parametrize("levels", [each for each in LEVELS if min(each) > 2], ids=str)
def test_levels_are_those_of_another_library(levels: tuple[int, ...]) -> None:
    vectors = torch.randn(500, len(levels)) * 2
    ours, theirs = FSQ(levels), OtherFSQ(list(levels))
    z = ours.nearest(ours.project(vectors))
    read, of_other = theirs(vectors[None])
    torch.testing.assert_close(ours.embed(z), read[0])
    assert torch.equal(z, of_other[0].long())


@pytest.mark.parametrize("levels", [each for each in LEVELS if min(each) > 2], ids=str)
def test_gradients_of_levels_are_those_of_another_library(levels: tuple[int, ...]) -> None:
    """Not of two levels, where it moves 0 to the border of the box, and its gradient there vanishes."""
    vectors = (2 * torch.randn(100, len(levels))).requires_grad_()
    weights = torch.randn(100, len(levels))
    ours, theirs = FSQ(levels), OtherFSQ(list(levels))
    projected = ours.project(vectors)
    read = straight_through(projected, ours.embed(ours.nearest(projected)))
    (found,) = torch.autograd.grad((read * weights).sum(), vectors)
    (expected,) = torch.autograd.grad((theirs(vectors[None])[0][0] * weights).sum(), vectors)
    torch.testing.assert_close(found, expected)


def test_gradients_of_signs_are_those_of_another_library() -> None:
    ours, theirs = (
        LFQ(bits=6),
        OtherLFQ(codebook_size=64, dim=6),
    )  # which computes in single precision
    vectors, weights = torch.randn(100, 6, requires_grad=True), torch.randn(100, 6)
    read = straight_through(vectors, ours.embed(ours.nearest(vectors)))
    (found,) = torch.autograd.grad((read * weights).sum(), vectors)
    (expected,) = torch.autograd.grad(
        (theirs.train()(vectors[None])[0][0] * weights).sum(), vectors
    )
    torch.testing.assert_close(found, expected)


def test_a_projected_vector_is_where_its_encoder_vector_is() -> None:
    """0 becomes 0, so that an encoder begins in the middle of the box; two levels meet there."""
    for levels in LEVELS:
        projected = FSQ(levels).double().project(torch.zeros(len(levels), dtype=torch.float64))
        middle = torch.tensor([-0.5 if level == 2 else 0.0 for level in levels]).double()
        torch.testing.assert_close(projected, middle, rtol=0, atol=1e-6)


def test_signs_are_those_of_another_library() -> None:
    ours, theirs = LFQ(bits=6), OtherLFQ(codebook_size=64, dim=6)
    vectors = torch.randn(100, 6)
    z = ours.nearest(vectors)
    read, _, _ = theirs.eval()(vectors[None])
    torch.testing.assert_close(ours.embed(z), read[0])
    assert torch.equal(ours.nearest(ours.points()), torch.arange(64))


@pytest.mark.parametrize("temperature", [0.5, 4.0])
def test_entropies_of_signs_are_those_of_all_codes(temperature: float) -> None:
    quantizer = LFQ(bits=5, temperature=temperature).double()
    vectors = torch.randn(30, 5, dtype=torch.float64)
    points = quantizer.points().double()
    q = softmax(-torch.cdist(vectors, points).square() / temperature, -1)
    of_each, of_mean = quantizer.entropies(vectors)
    torch.testing.assert_close(of_each, -(q * q.log()).sum(-1).mean())
    torch.testing.assert_close(of_mean, -torch.special.xlogy(q.mean(0), q.mean(0)).sum())
    other = OtherLFQ(codebook_size=32, dim=5, force_quantization_f32=False).double()
    _, losses = other(vectors[None], inv_temperature=1 / temperature, return_loss_breakdown=True)
    # It adds 1e-5 to what it takes logarithms of.
    torch.testing.assert_close(of_each, losses.per_sample_entropy, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(of_mean, losses.batch_entropy, rtol=1e-3, atol=1e-3)
    per_row = quantizer.regularizer(vectors.reshape(10, 3, 5))
    assert per_row is not None
    torch.testing.assert_close(per_row, (3 * 0.1 * (of_each - of_mean)).expand(10))


def test_the_entropy_of_many_bits_is_bound_by_that_of_each() -> None:
    few, many = LFQ(bits=12), LFQ(bits=13)
    vectors = torch.randn(64, 13).sign() * 3  # certain codes
    _, of_few = few.entropies(vectors[:, :12])
    _, of_many = many.entropies(vectors)
    assert float(of_few) == pytest.approx(math.log(64), abs=0.05)  # that many codes, each once
    p = (vectors > 0).double().mean(0)
    bound = -(p * p.log() + (1 - p) * (1 - p).log()).sum()
    assert float(of_many) == pytest.approx(float(bound), abs=1e-3)
    assert of_many > of_few


# -- several codes for a vector --------------------------------------------------------------------------


def test_a_residual_is_quantized_by_what_is_left() -> None:
    quantizer: Any = ResidualQuantizer(16, 3, depth=3).double()
    vectors = torch.randn(40, 3, dtype=torch.float64)
    z = quantizer.nearest(vectors)
    left = vectors.clone()
    for d, level in enumerate(quantizer.levels):
        of_level = torch.cdist(left, level.points()).argmin(-1)
        assert torch.equal(z[:, d], of_level)
        left = left - level.points()[of_level]
    torch.testing.assert_close(vectors - quantizer.embed(z), left)


def test_residual_codes_are_those_of_another_library(clusters: Tensor) -> None:
    other = ResidualVQ(dim=2, codebook_size=8, num_quantizers=3).double().eval()
    quantizer: Any = ResidualQuantizer(8, 2, depth=3, start=RandomStart()).double()
    for level, layer in zip(quantizer.levels, other.layers, strict=True):
        layer._codebook.embed.copy_(level.points()[None])
    read, z, _ = other(clusters[None])
    assert torch.equal(quantizer.nearest(clusters), z[0])
    torch.testing.assert_close(quantizer.embed(z[0]), read[0])


def test_residual_codebooks_learn_as_those_of_another_library(clusters: Tensor) -> None:
    """Up to how it counts members, as above. It has a commitment for each level: ours is that of their sum."""
    other = ResidualVQ(
        dim=2, codebook_size=4, num_quantizers=2, decay=0.8, commitment_weight=0.0
    ).double()
    quantizer: Any = ResidualQuantizer(4, 2, 2, EMA(0.8), RandomStart(), restarts=0).double()
    with torch.no_grad():
        for level, layer in zip(quantizer.levels, other.layers, strict=True):
            book, points = layer._codebook, level.points().clone()
            book.embed.copy_(points[None])
            book.embed_avg.copy_(1e4 * points[None])
            book.cluster_size.fill_(1e4)
            level.codebook.sums.copy_(1e4 * points)
            level.codebook.counts.fill_(1e4)
    other.train()
    for _ in range(5):
        _, z, _ = other(clusters[None])
        assert torch.equal(z[0], taught(quantizer, clusters))
    for level, layer in zip(quantizer.levels, other.layers, strict=True):
        torch.testing.assert_close(layer._codebook.embed[0], level.points(), rtol=1e-6, atol=1e-6)


def test_each_codebook_learns_from_what_those_before_have_left(clusters: Tensor) -> None:
    quantizer: Any = ResidualQuantizer(
        4, 2, 2, EMA(decay=0.0), KMeansStart(steps=1), restarts=0
    ).double()
    for _ in range(60):
        z = taught(quantizer, clusters)
    left = clusters - quantizer.levels[0].embed(z[:, 0])
    torch.testing.assert_close(quantizer.levels[1].points(), means(left, z[:, 1], 4))
    first = left.square().sum(1).mean()
    assert (clusters - quantizer.embed(z)).square().sum(1).mean() < 0.5 * first


# -- soft to hard ----------------------------------------------------------------------------------------


def test_at_twice_its_variance_the_weights_are_the_posterior_of_a_mixture(clusters: Tensor) -> None:
    """Soft assignments are the E step of spherical Gaussians with equal weights, hard ones their limit."""
    sigma = 0.8
    mixture = GaussianMixture((2,), 3, "spherical").double()
    quantizer = plain(3, 2, EMA())
    with torch.no_grad():
        mixture.means.copy_(quantizer.points())
        mixture.centre.zero_()
        for log_scale in mixture.covariance.parameters():
            log_scale.fill_(math.log(sigma))
    weights = quantizer.log_weights(clusters, 2 * sigma**2).softmax(-1)
    torch.testing.assert_close(weights, mixture.posterior(clusters).probs)
    hard = quantizer.log_weights(clusters, 1e-6).softmax(-1)
    assert torch.equal(hard.argmax(-1), quantizer.nearest(clusters))
    assert float(hard.amax(-1).min()) > 1 - 1e-9


# -- what is wrong with arguments ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: VectorQuantizer(codes=0), "VectorQuantizer.codes must be at least 1, got 0"),
        (lambda: VectorQuantizer(dim=2.5), "VectorQuantizer.dim must be a whole number"),  # type: ignore[arg-type]
        (lambda: VectorQuantizer(learner=EMA), "learner"),  # type: ignore[arg-type]
        (lambda: VectorQuantizer(start=None), "start"),  # type: ignore[arg-type]
        (lambda: VectorQuantizer(restarts=-1), "restarts must be at least 0, got -1"),
        (lambda: VectorQuantizer(codes=10**9, dim=10**4), "choose fewer codes, or a smaller dim"),
        (lambda: EMA(decay=1.0), "EMA.decay must be at least 0 and less than 1, got 1.0"),
        (lambda: Gradient(rate=0), "Gradient.rate must be"),
        (lambda: KMeansStart(steps=0), "KMeansStart.steps must be at least 1, got 0"),
        (lambda: FSQ((5, 1)), r"FSQ.levels must be at least 2 each, got \(5, 1\)"),
        (lambda: FSQ(()), "FSQ.levels"),
        (lambda: LFQ(bits=63), "at most 62"),
        (lambda: LFQ(temperature=0), "LFQ.temperature positive"),
        (lambda: ResidualQuantizer(depth=1), "ResidualQuantizer.depth must be at least 2, got 1"),
        (
            lambda: ResidualQuantizer().log_weights(torch.zeros(3, 16), 1.0),
            "has 2 codes per vector, each given those before it: choose temperature=0",
        ),
    ],
)
def test_wrong_arguments_are_told(make: object, told: str) -> None:
    assert callable(make)
    with pytest.raises((TypeError, ValueError, NotImplementedError), match=told):
        make()
