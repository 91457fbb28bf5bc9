"""What do rows without labels add to a few labels? M2 beside classifiers that see the labels alone."""

from __future__ import annotations

from typing import Any

import torch
from progress import Table, start
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from ppl_vae import fit, load_data
from ppl_vae.guides import SemiSupervised
from ppl_vae.likelihoods import Binomial
from ppl_vae.models import SemiSupervisedVAE
from ppl_vae.networks import MLP
from ppl_vae.objectives import SemiSupervisedELBO
from ppl_vae.stats import Estimate

CLASSES, LATENT = 10, 10


def main(
    labels: list[int] = [20, 50, 100, 200, 500],  # noqa: B006 - not changed
    seeds: int = 5,
    weight: float = 100.0,
    max_epochs: int = 100,
    hidden: int = 256,
    max_rows: int | None = None,
) -> None:
    """Trains on the digits with few labels, and prints the share of the test rows that get their label.

    Each seed chooses other rows that keep their label, as many of each class, and another start.

    Args:
        labels: Numbers of rows with a label.
        seeds: How many seeds.
        weight: The classifier's term, as a multiple of the mean over the rows with a label.
        max_epochs: Passes over the rows.
        hidden: Width of the two hidden layers.
        max_rows: Maximum number of rows per split, for a quick trial.
    """
    names = ("M2", "logistic regression", "nearest neighbor", "M2 - the better of the two")
    table = Table(["labels", *names], steps=len(labels) * seeds)
    table.head()
    for number in labels:
        found: dict[str, list[Tensor]] = {name: [] for name in names}
        for seed in range(seeds):
            data = load_data("digits", labels=number, max_rows=max_rows, seed=seed)
            x, truth = data.test[0], data.test_labels
            assert truth is not None
            rows, given = data.train
            known = given >= 0
            torch.manual_seed(seed)
            network = MLP(hidden=(hidden, hidden))
            sizes: dict[str, Any] = {"latent_dim": LATENT, "classes": CLASSES, "network": network}
            model = SemiSupervisedVAE(data.shape, likelihood=Binomial(16), **sizes)
            guide = SemiSupervised(data.shape, **sizes)
            fit(
                model,
                guide,
                data.train,
                objective=SemiSupervisedELBO(classification=weight * len(rows) / number),
                batch_size=64,
                max_epochs=max_epochs,
                seed=seed,
                progress=False,
            )
            right = {"M2": guide.classify(x).probs.argmax(-1) == truth}
            for name, classifier in (
                ("logistic regression", LogisticRegression(max_iter=1000)),
                ("nearest neighbor", KNeighborsClassifier(1)),
            ):
                classifier.fit(rows[known].flatten(1) / 16, given[known])
                predicted = torch.from_numpy(classifier.predict(x.flatten(1) / 16))
                right[name] = predicted == truth
            shares = {name: r.double().mean() for name, r in right.items()}
            shares[names[3]] = shares["M2"] - max(shares[name] for name in names[1:3])
            for name, share in shares.items():
                found[name].append(100 * share)
            table.step(f"{number} labels, seed {seed}")
        cells = [Estimate(torch.stack(values)).numbers(".1f") for values in found.values()]
        table.row([f"{number}", *cells])
    print(f"\nPercent of {len(x)} test rows, mean ± standard error over {seeds} seeds.")


if __name__ == "__main__":
    start(
        main,
        quick={"labels": "[20]", "seeds": 2, "max_epochs": 2, "hidden": 16, "max_rows": 200},
    )
