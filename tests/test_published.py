"""The scripts that repeat published experiments run with tiny settings."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path

import pytest
import torch
import yaml
from scripts import (
    ROOT,
    mean,
    rows,
    run,
    write_mnist,
)

PUBLISHED = ROOT / "analyses" / "published"


@pytest.mark.slow
def test_the_published_iwae_goes_on_where_it_was_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_mnist(tmp_path / "data", 60, 10)
    options = ("--theirs.num_samples=120", "--trusted_samples=110")
    for name in ("vae_1", "iwae_5"):
        config = f"--config={PUBLISHED / name}.yaml"
        for epochs in (1, 2):
            printed = run(
                "published/iwae.py", name, config, *options, f"--max_epochs={epochs}", cwd=tmp_path
            )
            (row,) = rows(printed)
            assert row["epochs"] == f"{epochs}"
            assert "table 1" in printed
            assert "Differs 3:" in printed
        assert mean(row["ELBO"]) < mean(row["log p(x), trusted"])
        found = json.loads((tmp_path / name / "published.json").read_text())["ours"]
        gap = torch.tensor(found["trusted"]) - torch.tensor(found["their_way"])
        assert mean(row["the estimator's part"]) == pytest.approx(float(gap.mean()), abs=0.0006)
    vae, iwae = rows(run("published/table.py", "vae_1", "iwae_5", cwd=tmp_path))
    assert vae["gain"] == ""
    first = json.loads((tmp_path / "vae_1" / "published.json").read_text())["ours"]
    gain = torch.tensor(found["trusted"]) - torch.tensor(first["trusted"])
    assert mean(iwae["gain"]) == pytest.approx(float(gain.mean()), abs=0.006)
    assert iwae["gain, theirs"] == "1.22"
    monkeypatch.syspath_prepend(PUBLISHED)
    script = runpy.run_path(str(PUBLISHED / "iwae.py"))
    rates = [script["learning_rate"](epoch) for epoch in range(3280)]
    lengths = [rates.count(rate) for rate in dict.fromkeys(rates)]
    assert lengths == [3**i for i in range(8)]
    assert rates[0] == 1.0
    assert rates[-1] == pytest.approx(0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["vampprior", pytest.param("standard_prior", marks=pytest.mark.slow)]
)
def test_the_published_vampprior(tmp_path: Path, name: str) -> None:
    write_mnist(tmp_path / "data", 60, 10)
    options = ("--theirs.num_samples=120", "--trusted_samples=110", "--components=4")
    config = f"--config={PUBLISHED / name}.yaml"
    short = ("--max_epochs=2", "--warmup_epochs=1")
    printed = run("published/vampprior.py", "run", config, *options, *short, cwd=tmp_path)
    (row,) = rows(printed)
    assert row["log p(x), theirs"] in ("-88.56", "-85.57")
    assert mean(row["ELBO"]) < mean(row["log p(x), their way"])


@pytest.mark.slow
def test_the_published_collapse(tmp_path: Path) -> None:
    options = ("--sigmas=[0.6,1.8]", "--latent_dim=6", "--max_rows=400", "--max_epochs=60")
    wide, narrow = rows(run("published/ppca.py", *options, "--num_samples=200", cwd=tmp_path))
    assert wide["theirs"] == "6" == wide["active units"]
    assert 0 < mean(narrow["theirs"]) < 6
    for row in (wide, narrow):
        exact = mean(row["exact log p(x) of the trained model"])
        assert mean(row["log p(x), K = 200"]) == pytest.approx(exact, abs=0.05)
        assert exact <= mean(row["log p(x) at the optimum, theirs"]) + 1e-3
        assert mean(row["ELBO"]) <= exact + 1e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gaussian", "flow"])
def test_the_published_gaps(tmp_path: Path, name: str) -> None:
    write_mnist(tmp_path / "data", 60, 10)
    options = ("--theirs.num_samples=120", "--trusted_samples=110", "--max_test_rows=8")
    short = ("--max_epochs=2", "--warmup_epochs=1", "--gap_rows=3", "--gap_steps=20")
    config = f"--config={PUBLISHED / f'{name}_guide.yaml'}"
    printed = run("published/suboptimality.py", "run", config, *options, *short, cwd=tmp_path)
    (row,) = rows(printed)
    assert row["log p(x), theirs"] == ""
    gaps = json.loads((tmp_path / "run" / "gaps.json").read_text())
    log_p, best, elbo = (torch.tensor(gaps[key]) for key in ("log_likelihood", "best_elbo", "elbo"))
    assert len(elbo) == 3
    difference = float((best - elbo - (log_p - best)).mean())
    line = re.search("amortization gap - approximation gap: (.*) ±", printed)
    assert line is not None
    assert float(line[1]) == pytest.approx(difference, abs=0.006)
    assert "Claim 1: The amortization gap is larger" in printed


def test_every_published_row_says_what_is_theirs() -> None:
    files = sorted(PUBLISHED.glob("*.yaml"))
    assert len(files) >= 6
    readme = (PUBLISHED / "README.md").read_text()
    for file in files:
        theirs = yaml.safe_load(file.read_text())["theirs"]
        assert "arXiv" in theirs["paper"]
        assert theirs["differs"]
        assert file.name in readme
