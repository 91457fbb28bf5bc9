"""Potts fields on trees of regions, and of superpixels, against the sum over all segmentations."""

from __future__ import annotations

import copy
import itertools
import logging
import pickle
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Independent, kl_divergence
from torch.nn.functional import one_hot

from ppl_vae import check, diagnose, evaluate, fit
from ppl_vae.data import simulated_regions
from ppl_vae.distributions import PottsTree, RegionTrees, ScanLines
from ppl_vae.guides import Exact, SegmentationEncoder
from ppl_vae.models import LatentColors, Palette, TreeSegments
from ppl_vae.models.colorization import superpixels as module
from ppl_vae.models.colorization.superpixels import remembered, superpixels
from ppl_vae.networks import UNet
from ppl_vae.objectives import ElementwiseELBO
from ppl_vae.pairs import Pair, find_layout

K = 3
SMALL = UNet((4, 8))

FORESTS = {
    "pixels": ([[0, 1, 2], [3, 4, 5], [6, 7, 8]], [4, 4, 1, 0, -1, 4, 3, 6, 7]),
    "two trees of pixels": ([[8, 1, 2], [3, 4, 5], [6, 7, 0]], [-1, 0, 1, 0, -1, 4, 4, 8, 5]),
    "regions": ([[3, 3, 1], [0, 3, 1], [0, 2, 4]], [3, 2, -1, 2, 1]),
    "regions without an edge": ([[0, 0, 1], [0, 2, 1], [2, 2, 1]], [-1, -1, -1]),
    "one region": ([[0, 0, 0], [0, 0, 0], [0, 0, 0]], [-1]),
    "fewer than there is room for": ([[1, 1, 1], [4, 4, 1], [4, 4, 4]], [-1, -1, -1, -1, 1, -1]),
}


def forest(name: str) -> RegionTrees:
    regions, parents = FORESTS[name]
    return RegionTrees(torch.tensor(regions), torch.tensor(parents))


def field_on(trees: RegionTrees, seed: int = 0) -> PottsTree:
    generator = torch.Generator().manual_seed(seed)
    shape = (*trees.regions.shape, K)
    unary = 2 * torch.randn(*shape, generator=generator, dtype=torch.float64)
    couplings = torch.randn(trees.parents.shape, generator=generator, dtype=torch.float64)
    return PottsTree(unary, 2 * couplings, trees)


def all_segmentations() -> Tensor:
    return torch.tensor(list(itertools.product(range(K), repeat=9))).reshape(-1, 3, 3)


def scores(field: PottsTree) -> tuple[Tensor, Tensor]:
    """All segmentations that are constant in each region, and the logarithms of what they weigh."""
    every = all_segmentations()
    regions, parents = field.trees.regions, field.trees.parents
    keep = torch.ones(len(every), dtype=torch.bool)
    for r in regions.unique():
        own = every[:, regions == r]
        keep &= (own == own[:, :1]).all(1)
    every = every[keep]
    unary = field.unary.expand(len(every), -1, -1, -1)
    score = unary.gather(-1, every.unsqueeze(-1)).squeeze(-1).sum((1, 2))
    for r, above in enumerate(parents.tolist()):
        if above >= 0:
            same = every[:, regions == r][:, 0] == every[:, regions == above][:, 0]
            score = score + field.couplings[r] * same
    return every, score


@pytest.mark.parametrize("name", FORESTS)
def test_a_tree_against_the_sum_over_all_segmentations(name: str) -> None:
    torch.manual_seed(0)
    trees = forest(name)
    field = field_on(trees)
    every, score = scores(field)
    assert len(every) == K ** len(trees.regions.unique())
    p = score.softmax(0)
    assert torch.allclose(field.log_partition, score.logsumexp(0), atol=1e-10)
    assert torch.allclose(field.log_prob(every), score.log_softmax(0), atol=1e-10)
    # All others are impossible.
    log_p = field.log_prob(all_segmentations())
    assert int(log_p.isfinite().sum()) == len(every)
    assert log_p.exp().sum().item() == pytest.approx(1.0, abs=1e-10)
    marginals = (p[:, None, None, None] * one_hot(every, K)).sum(0)
    assert torch.allclose(field.marginals, marginals, atol=1e-10)
    together = (p[:, None, None] * field.agreement(every)).sum(0)
    assert torch.allclose(field.agreement_probs, together, atol=1e-10)
    assert field.entropy().item() == pytest.approx(-(p * p.log()).sum().item(), abs=1e-10)
    of_q = field_on(trees, seed=1).log_prob(every)
    exact = (of_q.exp() * (of_q - field.log_prob(every))).sum()
    found = kl_divergence(field_on(trees, seed=1), field)
    assert found.item() == pytest.approx(exact.item(), abs=1e-10)
    draws = field.sample(torch.Size([50_000]))
    assert bool(field.log_prob(draws).isfinite().all())
    assert torch.allclose(one_hot(draws, K).double().mean(0), marginals, atol=0.012)
    assert torch.allclose(field.agreement(draws).double().mean(0), together, atol=0.012)


@pytest.mark.parametrize("name", FORESTS)
def test_the_kl_from_independent_pixels(name: str) -> None:
    torch.manual_seed(0)
    field = field_on(forest(name))
    q = Independent(Categorical(logits=torch.randn(3, 3, K).double()), 2)
    if not field.trees.of_pixels:
        with pytest.raises(ValueError, match="their KL is infinite"):
            kl_divergence(q, field)
        return
    every = all_segmentations()
    of_q = q.log_prob(every)
    exact = (of_q.exp() * (of_q - field.log_prob(every))).sum()
    assert kl_divergence(q, field).item() == pytest.approx(exact.item(), abs=1e-10)


@pytest.mark.parametrize("name", FORESTS)
def test_slopes_are_marginals_and_have_slopes(name: str) -> None:
    """Fisher's identity; and what is trained through."""
    start = field_on(forest(name))
    trees = start.trees
    unary, couplings = (t.clone().requires_grad_() for t in (start.unary, start.couplings))
    field = PottsTree(unary, couplings, trees)
    slopes = torch.autograd.grad(field.log_partition, (unary, couplings), materialize_grads=True)
    assert torch.allclose(slopes[0], field.marginals, atol=1e-10)
    assert torch.allclose(slopes[1], field.agreement_probs.squeeze(-2), atol=1e-10)

    def all_of(u: Tensor, s: Tensor) -> tuple[Tensor, ...]:
        one, other = PottsTree(u, s, trees), PottsTree(u.flip(-1), s.flip(-1), trees)
        return one.marginals, one.agreement_probs, one.entropy(), kl_divergence(one, other)

    assert torch.autograd.gradcheck(all_of, (unary, couplings), atol=1e-6)


@pytest.mark.parametrize("name", FORESTS)
def test_the_names_of_segments_do_not_matter(name: str) -> None:
    field = field_on(forest(name))
    order = torch.tensor([2, 0, 1])
    renamed = PottsTree(field.unary[..., order], field.couplings, field.trees)
    assert torch.allclose(renamed.log_partition, field.log_partition, atol=1e-10)
    assert torch.allclose(renamed.marginals, field.marginals[..., order], atol=1e-10)
    assert torch.allclose(renamed.agreement_probs, field.agreement_probs, atol=1e-10)


def padded() -> tuple[RegionTrees, list[RegionTrees]]:
    """Pictures with different trees and numbers of regions, together and one at a time."""
    most = max(len(parents) for _, parents in FORESTS.values())
    regions = torch.tensor([regions for regions, _ in FORESTS.values()])
    parents = torch.tensor([p + [-1] * (most - len(p)) for _, p in FORESTS.values()])
    one_by_one = [RegionTrees(r, p) for r, p in zip(regions, parents, strict=True)]
    return RegionTrees(regions, parents), one_by_one


def test_a_batch_of_trees_equals_one_at_a_time() -> None:
    trees, one_by_one = padded()
    field = field_on(trees)
    other = PottsTree(field.unary.flip(-1), field.couplings + 1, trees)
    z = field.sample(torch.Size([4]))
    together = (
        *(field.log_partition, field.marginals, field.agreement_probs, field.entropy()),
        *(kl_divergence(field, other), field.log_prob(z).T, field.agreement(z).transpose(0, 1)),
    )
    for i, own in enumerate(one_by_one):
        single = PottsTree(field.unary[i], field.couplings[i], own)
        of_other = PottsTree(other.unary[i], other.couplings[i], own)
        alone = (
            *(single.log_partition, single.marginals, single.agreement_probs, single.entropy()),
            *(kl_divergence(single, of_other), single.log_prob(z[:, i]), single.agreement(z[:, i])),
        )
        for one, of_batch in zip(alone, together, strict=True):
            assert torch.allclose(one, of_batch[i], atol=1e-10)


def test_further_dimensions_of_a_batch() -> None:
    """Those of samples: each has the same trees."""
    trees, _ = padded()
    n = len(FORESTS)
    unary = torch.randn(4, n, 3, 3, K, dtype=torch.float64)
    couplings = torch.randn(n, trees.parents.shape[-1], dtype=torch.float64)
    field = PottsTree(unary, couplings, trees)
    assert field.batch_shape == (4, n)
    assert field.sample(torch.Size([2])).shape == (2, 4, n, 3, 3)
    for j in range(4):
        single = PottsTree(unary[j], couplings, trees)
        assert torch.allclose(field.log_partition[j], single.log_partition)
        assert torch.allclose(field.marginals[j], single.marginals)
        assert torch.allclose(field.agreement_probs[j], single.agreement_probs)
        assert torch.allclose(field.entropy()[j], single.entropy())
        larger = single.expand([5, n])
        assert torch.allclose(larger.marginals[3], single.marginals)
        assert torch.allclose(larger.log_prob(larger.sample())[3].exp() > 0, torch.tensor(True))
    # One picture for a batch of them.
    one = PottsTree(unary[0, :1], couplings[:1], RegionTrees(trees.regions[:1], trees.parents[:1]))
    several = one.expand([5])
    z = several.sample()
    assert torch.allclose(several.log_prob(z), one.log_prob(z))
    assert torch.allclose(several.entropy(), one.entropy().expand(5))
    assert torch.allclose(kl_divergence(several, one), torch.zeros(5).double(), atol=1e-10)


def test_lines_are_trees() -> None:
    lines = ScanLines(torch.randn(4, 6, K).double(), torch.randn(4, 5).double())
    regions = torch.arange(24).reshape(4, 6)
    parents = torch.where(regions % 6 == 0, -1, regions - 1).flatten()
    couplings = torch.nn.functional.pad(lines.same, (1, 0)).flatten()
    tree = PottsTree(lines.unary, couplings, RegionTrees(regions, parents))
    assert torch.allclose(tree.log_partition, lines.log_partition, atol=1e-10)
    assert torch.allclose(tree.marginals, lines.marginals, atol=1e-10)
    assert torch.allclose(tree.entropy(), lines.entropy(), atol=1e-10)
    z = lines.sample()
    assert torch.allclose(tree.log_prob(z), lines.log_prob(z), atol=1e-10)


def test_large_numbers_in_single_precision() -> None:
    torch.manual_seed(0)
    found = superpixels(np.arange(400.0).reshape(20, 20) % 37, 4)
    trees = RegionTrees(torch.from_numpy(found.regions.astype(int)), torch.tensor(found.parents))
    unary, couplings = 1000 * torch.randn(20, 20, K), torch.tensor([-8.0, 70.0]).repeat(500)
    unary.requires_grad_()
    couplings = couplings[: len(found.sizes)].requires_grad_()
    field = PottsTree(unary, couplings, trees)
    exact = PottsTree(unary.double(), couplings.double(), trees)
    assert field.log_partition.item() == pytest.approx(exact.log_partition.item(), rel=1e-6)
    assert torch.allclose(field.marginals.double(), exact.marginals, atol=1e-3)
    total = field.log_partition + field.entropy() + field.agreement_probs.sum()
    for slope in torch.autograd.grad(total, (unary, couplings)):
        assert bool(slope.isfinite().all())


def test_trees_that_are_none_are_refused() -> None:
    regions = torch.tensor([[0, 0, 1]])
    for parents, text in (
        ([1, 0], "in a cycle"),
        ([0, -1], "in a cycle"),
        ([-1], "regions must be from 0 to 0"),
        ([-1, 2], "parents from -1"),
        ([-1, 2, 0], "a region without pixels has a parent or is one"),
        ([-1, 0, 0], "a region without pixels has a parent or is one"),
        ([[-1, 0]], "got .1, 3. and .1, 2."),
    ):
        with pytest.raises(ValueError, match=text):
            RegionTrees(regions, torch.tensor(parents))
    trees = RegionTrees(regions, torch.tensor([-1, 0]))
    with pytest.raises(
        ValueError, match=r"`couplings` of shape \(\*batch, 2\) for trees of 2 regions"
    ):
        PottsTree(torch.zeros(1, 3, 2), torch.zeros(3), trees)
    others = RegionTrees(regions, torch.tensor([1, -1]))
    fields = [PottsTree(torch.zeros(1, 3, 2), torch.zeros(2), of) for of in (trees, others)]
    with pytest.raises(NotImplementedError, match="other neighbors"):
        kl_divergence(*fields)


# Superpixels.


def test_the_tree_is_the_one_of_the_most_alike() -> None:
    """Of all spanning trees of 2 x 3 pixels it has the least sum of differences."""
    rng = np.random.default_rng(0)
    edges = [(0, 1), (1, 2), (3, 4), (4, 5), (0, 3), (1, 4), (2, 5)]
    for levels in (2, 4, 200):
        for _ in range(10):
            luma = rng.integers(0, levels, (2, 3)).astype(float)
            found = superpixels(luma, 1)
            flat = luma.ravel()
            least = np.inf
            for tree in itertools.combinations(edges, 5):
                joined = np.arange(6)
                for a, b in tree:
                    joined[joined == joined[a]] = joined[b]
                if len(set(joined)) == 1:
                    least = min(least, sum(abs(flat[a] - flat[b]) for a, b in tree))
            above = [(i, int(p)) for i, p in enumerate(found.parents) if p >= 0]
            assert len(above) == 5
            assert all(tuple(sorted(edge)) in edges for edge in above)
            assert sum(abs(flat[a] - flat[b]) for a, b in above) == least
            assert found.differences.sum() == least


@pytest.mark.parametrize("shape", [(1, 1), (1, 30), (30, 1), (2, 2), (3, 3), (20, 14)])
@pytest.mark.parametrize("kind", ["noise", "constant"])
@pytest.mark.parametrize("size", [1, 2, 9, 36])
def test_pictures_of_all_kinds_have_superpixels(
    shape: tuple[int, int], kind: str, size: int
) -> None:
    luma = np.full(shape, 77.0)
    if kind == "noise":
        luma = np.random.default_rng(0).integers(0, 256, shape).astype(float)
    found = superpixels(luma, size)
    count = len(found.sizes)
    if size == 1:
        assert count == luma.size
    assert max(1, luma.size / size / 2.5) <= count <= max(1, 2.5 * luma.size / size)
    assert found.sizes.sum() == luma.size
    assert int((found.parents < 0).sum()) == 1
    regions = torch.from_numpy(found.regions.astype(np.int64))
    RegionTrees(regions, torch.from_numpy(found.parents))  # a tree
    again = superpixels(luma.copy(), size)
    assert np.array_equal(again.regions, found.regions)
    assert np.array_equal(again.parents, found.parents)
    torch.manual_seed(0)
    model = TreeSegments(2, network=UNet((4,)), superpixel_size=size)
    x = torch.from_numpy(luma).float().unsqueeze(0)
    assert bool(model.log_evidence(torch.zeros(1, *shape, 2), x).isfinite().all())


def test_pictures_that_are_none() -> None:
    model = TreeSegments(2, network=UNet((4,)))
    x = torch.zeros(0, 12, 12)
    assert model.log_evidence(torch.zeros(0, 12, 12, 2), x).shape == (0,)
    assert model.prior(x).sample().shape == (0, 12, 12)
    x = torch.full((1, 12, 12), torch.nan)
    with pytest.raises(ValueError, match="luma of a picture is NaN or infinite"):
        model.log_evidence(torch.zeros(1, 12, 12, 2), x)


def apart(module: nn.Module) -> Any:
    module = module.double()
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return module


def pictures(count: int = 2, size: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(7)
    y = torch.randint(-3, 4, (count, size, size, 2), generator=generator).double()
    return y, torch.randint(100, 150, (count, size, size), generator=generator).double()


@pytest.mark.parametrize("size", [2, 3, 5, 36])
def test_the_model_against_the_sum_over_constant_segmentations(size: int) -> None:
    torch.manual_seed(0)
    y, x = pictures()
    model = apart(TreeSegments(K, Palette(), SMALL, superpixel_size=size))
    every = all_segmentations().unsqueeze(1).expand(-1, 2, -1, -1)
    regions = model.superpixels(x)
    found = [remembered(each, size) for each in x.numpy().astype(np.float32)]
    logits = model.segmenter((x.unsqueeze(1) - 128) / 64).movedim(1, -1).log_softmax(-1)
    log_prior = []
    for i, own in enumerate(found):
        score = torch.zeros(len(every)).double()
        for r, above in enumerate(own.parents.tolist()):
            inside = regions[i] == r
            z = every[:, i][:, inside]
            score = score + logits[i][inside].mean(0)[z[:, 0]]  # the mean, not the sum
            score = score.masked_fill((z != z[:, :1]).any(1), -torch.inf)
            if above >= 0:
                beside = regions[i] == above
                away = (x[i][inside].mean() - x[i][beside].mean()).abs()
                s = model.coupling[0, 0] + model.coupling[0, 1] * torch.exp(-away / 10)
                score = score + s * (z[:, 0] == every[:, i][:, beside][:, 0])
        log_prior.append(score.log_softmax(0))
    prior = torch.stack(log_prior, 1)
    assert torch.allclose(model.prior(x).log_prob(every), prior, atol=1e-10)
    log_joint = prior + model.decode(every, x).log_prob(y)
    log_p = model.log_evidence(y, x)
    assert torch.allclose(log_p, log_joint.logsumexp(0), atol=1e-10)
    posterior = model.posterior(y, x).log_prob(every)
    assert torch.allclose(posterior, log_joint - log_p, atol=1e-10)
    q = posterior.exp().detach()
    expected = (q * log_joint.masked_fill(q == 0, 0.0)).sum()
    slopes = [
        torch.autograd.grad(of, list(model.parameters()), retain_graph=True, allow_unused=True)
        for of in (log_p.sum(), expected)
    ]
    for one, other in zip(*slopes, strict=True):
        assert (one is None) == (other is None)
        assert one is None or torch.allclose(one, other, atol=1e-9)


@pytest.mark.parametrize("beta", [1.0, 0.3])
def test_elbo_and_evaluation_of_superpixels(beta: float) -> None:
    torch.manual_seed(0)
    y, x = pictures(size=12)
    model = apart(TreeSegments(K, Palette(), SMALL, superpixel_size=9))
    guide = Exact(model, beta=beta)
    found = evaluate(model, guide, (y, x), num_samples=4, seed=0, progress=False)
    assert torch.allclose(found.log_likelihood.values, model.log_evidence(y, x), atol=1e-8)
    rate = kl_divergence(guide.encode(y, x), model.prior(x))
    assert torch.allclose(found.rate.values, rate, atol=1e-8)
    assert not found.cautions
    pair = Pair(model, guide)
    with pair.scope():
        loss = ElementwiseELBO()(pair, find_layout(pair, (y, x)), (y, x), beta)
    unary, likelihoods = model.unary(x), model.log_likelihoods(y, x)
    best = model.log_partition(unary + likelihoods / beta, x) - model.log_partition(unary, x)
    assert torch.allclose(-loss.loss, beta * best.mean(), atol=1e-10)


def test_pictures_with_other_numbers_of_superpixels_in_a_batch() -> None:
    torch.manual_seed(0)
    x = simulated_regions(count=6, size=24, segments=3, seed=0)[1].double()
    y = torch.randint(-9, 9, (6, 24, 24, 2))
    model = apart(TreeSegments(K, LatentColors(), SMALL))
    regions = model.superpixels(x)
    assert len({int(each.max()) for each in regions}) > 1
    shifts = torch.randn(4, 6, K, 2).double()
    log_p = model.log_evidence(y, x, shifts)
    for i in range(6):
        alone = model.log_evidence(y[i : i + 1], x[i : i + 1], shifts[:, i : i + 1])
        assert torch.allclose(log_p[:, i : i + 1], alone, atol=1e-9)


def test_superpixels_are_remembered_by_content(monkeypatch: pytest.MonkeyPatch) -> None:
    known = module._Remembered()
    luma = np.random.default_rng(0).integers(0, 256, (5, 12, 12)).astype(np.float32)
    first = known(luma[0], 9)
    assert known(luma[0].copy(), 9) is first
    assert known(luma[0], 4) is not first
    assert known(luma[0].reshape(6, 24), 9) is not first
    monkeypatch.setattr(module, "MOST_PIXELS", 3 * 144)
    for each in luma[1:4]:
        known(luma[0], 9)
        known(each, 9)
    assert known(luma[0], 9) is first  # it was used all the time
    assert len(known._known) <= 3
    assert known._pixels == sum(each.regions.size for each in known._known.values())


def test_the_model_is_copied_and_pickled_without_them() -> None:
    y, x = pictures(size=12)
    model = TreeSegments(K, network=SMALL, superpixel_size=9).double()
    size = len(pickle.dumps(model))
    log_p = model.log_evidence(y, x)
    assert len(pickle.dumps(model)) == size
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other.log_evidence(y, x), log_p)
    assert set(model.state_dict()) == {*dict(model.named_parameters())}


def test_without_scikit_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage.segmentation", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'ppl_vae\[colorize\]'"):
        superpixels(np.zeros((12, 12)), 9)
    assert len(superpixels(np.zeros((12, 12)), 1).sizes) == 144


def test_the_size_of_superpixels_is_looked_at() -> None:
    with pytest.raises(ValueError, match="superpixel_size"):
        TreeSegments(superpixel_size=0)
    with pytest.raises(TypeError, match="superpixel_size"):
        TreeSegments(superpixel_size=4.5)  # type: ignore[arg-type]


def test_independent_pixels_are_told_that_they_do_not_fit() -> None:
    y, x = (rows.float() for rows in pictures(count=6, size=12))
    model, guide = TreeSegments(K, network=SMALL), SegmentationEncoder(K, SMALL)
    text = "all pixels of a region are of one segment"
    assert text in str(check(model, guide, (y, x)))
    for ask in (fit, evaluate, diagnose):
        with pytest.raises(ValueError, match=text):
            ask(model, guide, (y, x), progress=False)


@pytest.mark.slow
def test_no_step_is_recorded_with_the_trees_of_another_batch(
    caplog: pytest.LogCaptureFixture,
) -> None:
    _, x = simulated_regions(count=24, size=12, segments=3, seed=0)
    y = torch.randint(-20, 20, (24, 12, 12, 2), generator=torch.Generator().manual_seed(0)).float()
    found, values = [], []
    for use in (True, False):
        torch.manual_seed(0)
        model = TreeSegments(K, network=UNet((4,)), superpixel_size=9)
        guide = Exact(model)
        options: dict[str, Any] = {"seed": 0, "capture": use, "progress": False}
        with caplog.at_level(logging.WARNING):
            fit(model, guide, (y, x), max_epochs=10, batch_size=4, **options)  # 60 steps
        found.append([p.detach().clone() for p in model.parameters()])
        values.append(evaluate(model, guide, (y, x), num_samples=2, **options).elbo.values)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))
    assert torch.equal(*values)
    messages = [r.getMessage() for r in caplog.records if "capture is off" in r.getMessage()]
    assert len(messages) == 1
    assert "read tensors outside of torch" in messages[0]
