"""Pictures of one run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from torch import Tensor

from ppl_vae.diagnosis import Diagnosis
from ppl_vae.evaluation import Evaluation, Generator
from ppl_vae.pairs import as_tensor
from ppl_vae.plots.curves import khat_histogram, learning_curves
from ppl_vae.plots.latents import aggregate_posterior, kl_per_dimension
from ppl_vae.plots.samples import manifold, prior_samples, reconstructions, traversals
from ppl_vae.runs import WEIGHTS_KEY
from ppl_vae.runtime import own_folder, replacing

_DRAWS = 2000
"""Draws from the prior, in the picture of the aggregate posterior."""

_MOST_NUMBERS = 2**26
"""Numbers of all drawn rows together above which there are fewer draws: each comes with a whole row."""


def draw_run(
    folder: Path,
    generator: Generator,
    history: Sequence[Mapping[str, float]],
    evaluation: Evaluation,
    diagnosis: Diagnosis,
    labels: Tensor | None = None,
    weights: str | None = None,
) -> list[str]:
    """Draws a run's pictures into a folder.

    A picture that has no meaning for a pair (such as a model whose rows are not pictures of the data's shape)
    is left out.

    Args:
        folder: The folder; it is made if it is not there. Pictures of the same names are replaced.
        generator: The pair, and the rows that are drawn.
        history: One mapping per epoch.
        evaluation: What `evaluate` returned.
        diagnosis: What `diagnose` returned.
        labels: The labels of the rows, if there are any.
        weights: The digest of the pair's weights, which is written into each picture.

    Returns:
        One line for each picture that could not be drawn, with the reason.
    """
    try:
        own_folder(folder)
    except OSError as error:  # a full disk, or a file of this name
        return [f"no pictures were drawn: {error}"]

    def aggregate() -> Figure:
        z, _ = generator.reconstruct()
        rows = as_tensor(generator.x)
        most = _MOST_NUMBERS * len(rows) // max(1, rows.numel())
        prior, _, _ = generator.from_prior(max(64, min(_DRAWS, most)))
        return aggregate_posterior(z, prior, diagnosis.kl, labels=labels)

    def latent_space() -> Figure:
        if len(diagnosis.kl) == 2:
            return manifold(generator.decode)
        return traversals(generator.decode, diagnosis.kl)

    pictures: dict[str, Callable[[], Figure]] = {
        "learning_curves": lambda: learning_curves(history),
        "reconstructions": lambda: reconstructions(
            as_tensor(generator.x), generator.reconstruct()[1]
        ),
        "prior_samples": lambda: prior_samples(generator.from_prior(64)[1]),
        "manifold" if len(diagnosis.kl) == 2 else "traversals": latent_space,
        "kl_per_dimension": lambda: kl_per_dimension(diagnosis.kl, diagnosis.mean_variance),
        "aggregate_posterior": aggregate,
        "khat": lambda: khat_histogram(evaluation.khat, evaluation.num_samples),
    }
    known = {} if weights is None else {WEIGHTS_KEY: weights}
    failed = []
    for name, draw in pictures.items():
        try:
            with replacing(folder / f"{name}.png") as file:
                draw().savefig(file, metadata=known)
        except Exception as error:  # the user's programs may raise anything; the results are safe
            failed.append(f"{name}.png was not drawn: {error}")
    return failed
