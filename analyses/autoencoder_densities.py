"""Densities of the code of an autoencoder: what they say of held-out codes and rows, and what they draw."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from autoencoder_pairs import (
    SMALL,
    Pair,
    Rows,
    Sizes,
    picture_of_rows,
    trained,
)
from progress import Table, require_list
from torch import Tensor

from ppl_vae import evaluate, refit_guide, refit_prior
from ppl_vae.guides import DeltaEncoder, MeanField
from ppl_vae.likelihoods import OptimalGaussian
from ppl_vae.models import Autoencoder, DiagonalNormal, FlowPrior, FullNormal, MixturePrior
from ppl_vae.runtime import replacing, require_output
from ppl_vae.stats import Estimate
from ppl_vae.tasks import sample


def densities(
    data: str = "MNIST",
    data_dir: Path = Path("data"),
    runs: Path = Path("autoencoder_densities"),
    code: int = 8,
    components: tuple[int, ...] = (10, 100),
    training: Sizes = SMALL,
    guide_epochs: int = 10,
    test_rows: int = 500,
    num_samples: int = 500,
    output: Path = Path("autoencoder_densities.png"),
    overwrite: bool = False,
) -> None:
    """Fits densities to the codes of a linear and of a deep autoencoder, and draws rows from them.

    log p(x) of the linear one is exact where the density is made of normals. For the deep one, a guide that
    samples is trained for each density, and log p(x) comes from importance samples, with better proposals for
    the rows that need them; *unreliable* is the share of rows for which they are not to be trusted even so. The
    noise is the best one, the root mean squared error.

    Args:
        data: Name of the data, as for `load_data`.
        data_dir: Folder of the data, in torchvision's layout.
        runs: Folder that keeps the trained pairs; an interrupted training continues.
        code: Size of the code.
        components: Numbers of components of mixtures.
        training: Networks and trainings.
        guide_epochs: Passes over the training rows for a guide that samples.
        test_rows: For log p(x): how many of the test rows, the first ones.
        num_samples: Importance samples per row.
        output: Where to save the draws.
        overwrite: Whether a picture that is there is replaced.
    """
    require_output(output, overwrite=overwrite)
    require_list("--components", components, may_be_empty=True)
    rows = Rows.of(data, data_dir, training)
    priors: dict[str, Any] = {"diagonal normal": DiagonalNormal(), "normal": FullNormal()}
    priors |= {f"mixture of {k}": MixturePrior(k) for k in components}
    priors["flow"] = FlowPrior()
    columns = ["autoencoder", "density of the codes", "log p(z)", "log p(x)", "by", "unreliable"]
    shown = Table(columns, steps=2 * len(priors))
    shown.head()
    sheet: dict[str, Tensor] = {"test rows": rows.test[:10]}
    x = rows.test[:test_rows]
    for kind in ("linear", "deep"):
        made = partial(calibrated, rows, code, training, kind == "linear")
        model, guide = trained(runs, f"{kind}-code={code}", made, rows, training)
        codes = guide.eval().encode(rows.test).mean.detach()
        for name, prior in priors.items():
            refitted = refit_prior(model, guide, rows.train, prior, seed=0, progress=False)
            refitted.eval()
            log_z = refitted.prior().log_prob(codes).detach()
            exact = kind == "linear" and name != "flow"
            if exact:
                log_x, by = refitted.log_evidence(x).detach(), ["closed form", "0.0%"]
            else:
                sampling = MeanField(rows.shape, code, training.network)
                refit_guide(
                    *(refitted, sampling, rows.train),
                    max_epochs=guide_epochs,
                    batch_size=training.batch_size,
                    seed=0,
                    progress=False,
                )
                found = evaluate(
                    *(refitted, sampling, x),
                    num_samples=num_samples,
                    method="auto",
                    seed=0,
                    progress=False,
                )
                log_x = found.log_likelihood.values
                by = ["samples", f"{found.unreliable.double().mean():.1%}"]
            shown.row([kind, name, _of(log_z), _of(log_x), *by])
            shown.step(f"{kind}, {name}")
            sheet[f"{kind}, {name}"] = sample(refitted, 10, seed=0, means=True)
    with replacing(output, overwrite=overwrite) as file:
        picture_of_rows(sheet).savefig(file)
    print(
        f"\nNats per row of {rows.name}, {len(rows.test)} test rows (log p(x): the first {len(x)}), means "
        f"and standard errors over rows. Codes of {code}, {training.max_epochs} epochs of {len(rows.train)} "
        f"rows, {guide_epochs} of the guides that sample. The draws, means of p(x | z), are {output}."
    )


def calibrated(rows: Rows, latent_dim: int, sizes: Sizes, linear: bool) -> Pair:
    """An autoencoder whose noise is its root mean squared error."""
    network = sizes.network
    return (
        Autoencoder(rows.shape, latent_dim, network, OptimalGaussian(), linear=linear),
        DeltaEncoder(rows.shape, latent_dim, network, linear=linear),
    )


def _of(values: Tensor) -> str:
    return Estimate(values).numbers(".2f")
