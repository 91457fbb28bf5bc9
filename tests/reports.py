"""A pair of normals with vectors as rows, and what a report of `check` on a pair must say."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ppl_vae.checks import Problem, Report
from ppl_vae.pairs import PairError

X = torch.randn(12, 3, generator=torch.Generator().manual_seed(0))


def model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def guide(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x / 2, 0.7).to_event(1))


def only(report: Report) -> Problem:
    assert len(report.problems) == 1, str(report)
    return report.problems[0]


def found(report: Report, severity: str, site: str, words: tuple[str, ...]) -> None:
    problem = only(report)
    assert problem.severity == severity
    assert problem.site == site
    for word in words:
        assert word in problem.message, problem.message
    assert not report.ok


def error(report: Report, site: str, *words: str) -> None:
    found(report, "error", site, words)
    assert not report
    with pytest.raises(PairError, match=r".+"):
        report.raise_errors()


def warning(report: Report, site: str, *words: str) -> None:
    found(report, "warning", site, words)
    assert report
    report.raise_errors()  # does nothing
