"""Two processes with half of each batch: the codebook is that of one process with the whole batch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ranks import Ranks
from torch import Tensor, nn

from ppl_vae import fit
from ppl_vae.codes import (
    EMA,
    FSQ,
    KMeansStart,
    Quantizer,
    ResidualQuantizer,
    SimVQ,
    VectorQuantizer,
)
from ppl_vae.guides import QuantizingEncoder
from ppl_vae.models import VQVAE
from ppl_vae.networks import MLP, Slots
from ppl_vae.runtime import make_fabric

START = KMeansStart(steps=3)

QUANTIZERS: dict[str, Callable[[], Quantizer]] = {
    # Few members for each code, so that codes are restarted.
    "EMA": lambda: VectorQuantizer(12, 2, EMA(decay=0.8), START, restarts=3.0),
    "SimVQ": lambda: VectorQuantizer(12, 2, SimVQ(), START, restarts=3.0),
    "residual": lambda: ResidualQuantizer(6, 2, 2, EMA(decay=0.8), START, restarts=3.0),
    "FSQ": lambda: FSQ((4, 3)),
}

STEPS = 170
"""A code is judged again some 140 steps after the start."""


def batches() -> list[Tensor]:
    """Of 17 rows with 3 vectors each; the last one has a single row, and so nothing for the second process."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(STEPS, 17, 3, 2, generator=generator, dtype=torch.float64)
    # They drift away from where codes began, so that some lose their members.
    x = x + torch.linspace(0, 8, STEPS).double()[:, None, None, None]
    return [*x[:-1], x[-1, :1]]


def by_hand(name: str, rank: int, count: int) -> dict[str, Any]:
    """A quantizer that is shown its share of each batch."""
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(rank)
    quantizer: Any = QUANTIZERS[name]()
    if count > 1:
        if not torch.distributed.is_initialized():
            torch.distributed.init_process_group("gloo", rank=rank, world_size=count)
        for tensor in quantizer.state_dict().values():
            torch.distributed.broadcast(tensor, 0)
    moved = 0
    for step, batch in enumerate(batches()):
        own = quantizer.project(batch[rank::count])
        before = _points(quantizer)
        if len(own):
            quantizer.gather(own, quantizer.nearest(own))
        for part in quantizer.modules():
            if isinstance(part, Quantizer):
                part.learn_together()
        if step >= 2 * START.steps:  # by a restart: else they move slowly, or not at all
            moved += int(((_points(quantizer) - before).norm(dim=1) > 1).sum())
    found = {"state": quantizer.state_dict(), **quantizer.epoch_metrics(), "moved": moved}
    return found


def _points(quantizer: Any) -> Tensor:
    levels = None if isinstance(quantizer, FSQ) else getattr(quantizer, "levels", None)
    parts: Any = [quantizer] if levels is None else levels
    return torch.cat([part.points() for part in parts]).detach()


def trained(name: str, rank: int, count: int) -> dict[str, Any]:
    """A pair that is fitted by so many processes: 31 rows, of which the last one is a batch of its own."""
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(rank)
    x = (torch.rand(31, 1, 4, 4, generator=torch.Generator().manual_seed(1)) > 0.5).double()
    network = Slots(3, MLP(hidden=(8,), activation=nn.Tanh))
    model = VQVAE((1, 4, 4), QUANTIZERS[name](), network)
    guide = QuantizingEncoder(model, network)
    fabric = make_fabric("cpu", num_processes=count)
    options: Any = {"seed": 3, "batch_size": 10, "max_epochs": 4, "fabric": fabric}
    done = fit(model, guide, x, progress=False, learning_rate=0.01, **options)
    keys = ("codes_used", "perplexity", "loss", "elbo")
    return {
        "state": model.state_dict() | {f"guide.{k}": v for k, v in guide.state_dict().items()},
        "history": [{key: row[key] for key in keys} for row in done.history],
        "waits": any(getattr(part, "waits", False) for part in model.modules()),
    }


def run(work: Callable[[str, int, int], Any], folder: Path, count: int) -> list[dict[str, Any]]:
    """What each process has found, by the name of the quantizer."""
    found = Ranks(
        lambda rank: {name: work(name, rank, count) for name in QUANTIZERS}, folder, count
    )
    return found.end(120)


@pytest.fixture(
    scope="module",
    params=[pytest.param(by_hand, marks=pytest.mark.slow), trained],
    ids=["by hand", "by fit"],
)
def both(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Any, list[Any]]:
    folder = tmp_path_factory.mktemp("codes")
    (one,) = run(request.param, folder / "one", 1)
    return one, run(request.param, folder / "two", 2)


def same(found: Any, expected: Any, atol: float = 1e-10) -> None:
    if isinstance(expected, Tensor):
        torch.testing.assert_close(found, expected, rtol=0, atol=atol)
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key in expected:
            same(found[key], expected[key], atol)
    elif isinstance(expected, list):
        for one, other in zip(found, expected, strict=True):
            same(one, other, atol)
    else:
        assert found == pytest.approx(expected, abs=atol)


@pytest.mark.parametrize("name", QUANTIZERS)
def test_the_codebook_is_that_of_one_process(both: tuple[Any, list[Any]], name: str) -> None:
    """After the start, running means and restarts; so are the weights of the pair, and what `fit` logs."""
    one, two = both
    for each in two:
        same(each[name], one[name])
    if "moved" in one[name]:
        assert name in ("FSQ", "residual") or one[name]["moved"] > 3
    else:
        used = [row["codes_used"] for row in one[name]["history"]]
        assert min(used) >= 3
        assert not one[name]["waits"]
