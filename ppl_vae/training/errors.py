"""Why a training stops."""

from __future__ import annotations

import torch

from ppl_vae.checks import large_values, rows_not_finite
from ppl_vae.objectives import Loss
from ppl_vae.pairs import Batch, first_bad_site, kl_between, latent_sites, observed_sites
from ppl_vae.runs import CHECKPOINTS, RunFolder
from ppl_vae.training.progress import Progress


class DivergenceError(RuntimeError):
    """The loss or its gradient became NaN or infinite; says at which step, and at which site first.

    Attributes:
        step: Optimizer steps taken before.
        site: The first site, in the order of execution, that is not finite (None: the gradient alone).
    """

    def __init__(self, message: str, step: int, site: str | None) -> None:
        super().__init__(message)
        self.step = step
        self.site = site

    def __reduce__(self) -> tuple[type[DivergenceError], tuple[str, int, str | None]]:
        return type(self), (str(self), self.step, self.site)


def divergence(
    what: str,
    loss: Loss | None,
    batch: Batch | None,
    dim: int | None,
    progress: Progress,
    folder: RunFolder | None,
) -> DivergenceError:
    """The error for a step that is not finite.

    Args:
        what: What became NaN or infinite.
        loss: The loss, with the traces in which a site may not be finite; None if a recording ran.
        batch: The rows of the step; None if this process had none.
        dim: Where the plate over the rows is.
        progress: The steps taken before.
        folder: The run folder with the checkpoints, if there is one.
    """
    site = None if loss is None else first_bad_site(loss.traces)
    where = f"the first site that is not finite is {site[1]}" if site else "all sites are finite"
    if site is None and loss is not None and (name := _infinite_kl(loss)):
        where = f"the KL of '{name}' is infinite: the guide draws where the prior is 0"
    advice = "A smaller learning rate, clip_grad_norm, or a bounded scale may help"
    large = "" if batch is None else large_values(batch, name="the batch")
    if large:
        advice = f"The likely cause are the data: {large}; repair or rescale them"
    for model_trace, _ in loss.traces if loss is not None else []:
        data = observed_sites(model_trace).get(site[0]) if site else None
        if data is not None and not bool(torch.isfinite(data["value"]).all()):
            rows = rows_not_finite(data, dim)
            shown = ", ".join(map(str, rows[:10])) + (", ..." if len(rows) > 10 else "")
            where_in = f"rows {shown} of the batch, counted from 0" if rows else "the batch"
            advice = f"They are in {where_in}: remove or repair these rows, or the transform"
            break
    kept = (
        f"; the last good checkpoint is in {folder.path / CHECKPOINTS}"
        if folder and folder.keeps
        else ""
    )
    return DivergenceError(
        f"{what} became NaN or infinite at step {progress.step + 1} (epoch {progress.epoch + 1}); "
        f"{where}{kept}. {advice}",
        progress.step,
        site[0] if site else None,
    )


def _infinite_kl(loss: Loss) -> str | None:
    """The first latent whose analytic KL is infinite, though the densities at its draws are finite."""
    for model_trace, guide_trace in loss.traces:
        for name, site in latent_sites(model_trace).items():
            try:
                kl = kl_between(guide_trace.nodes[name]["fn"], site["fn"])
            except (KeyError, NotImplementedError):
                continue
            if bool(torch.isinf(kl).any()):
                return str(name)
    return None


def read_only_once(name: str, epoch: int) -> ValueError:
    """The error for an iterable that gave no batches."""
    return ValueError(f"{name} gave no batches in epoch {epoch}: it can be read only once")
