"""log p(x) of each row by annealed importance sampling, with transitions of Hamiltonian Monte Carlo."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ppl_vae.evaluation.chains import AnnealingSchedule, Chunk, in_chunks
from ppl_vae.evaluation.result import DataResult
from ppl_vae.pairs import DataLike, Program
from ppl_vae.stats import Estimate, StreamingWeights, not_finite


@dataclass(frozen=True)
class Annealed(DataResult):
    """Result of `annealed_importance_sampling`, row by row, in nats.

    Attributes:
        log_likelihood: log p(x), the log of the mean weight of a row's chains: a lower bound in
            expectation.
        log_likelihood_error: Monte-Carlo standard error of each row's log p(x) (delta method), `(n,)`;
            NaN with a single chain.
        ess: Effective number of chains of each row, (sum w)^2 / sum w^2, `(n,)`.
        acceptance: Mean acceptance of each row's transitions, `(n,)`; step sizes are tuned for 0.65.
        num_chains: Chains per row.
        num_steps: Number of temperatures.
        num_leapfrog: Leapfrog steps between two temperatures.
        num_values: Numbers of data per row, for bits per dimension: those of the observed sites that masks
            leave in; one count for each row, `(n,)`, if they differ; 0 if a `pyro.factor` is a part of the
            likelihood, which has no count: bits per dimension are then NaN.
        from_prior: Whether the chains started at the prior rather than at the guide.
        counted: What such a number is called: a "dimension", or a "token" of sentences.
    """

    log_likelihood: Estimate
    log_likelihood_error: Tensor
    ess: Tensor
    acceptance: Tensor
    num_chains: int
    num_steps: int
    num_leapfrog: int
    num_values: int | Tensor
    from_prior: bool
    counted: str = "dimension"

    @property
    def unreliable(self) -> Tensor:
        """Rows whose effective number of chains is below a quarter of the chains, `(n,)`."""
        return self.ess < 0.25 * self.num_chains

    def doubts(self) -> Iterator[str]:
        """Reasons not to trust the numbers, one sentence each."""
        bad, n = int(self.unreliable.sum()), self.num_rows
        if bad:
            yield (
                f"fewer than a quarter of the {self.num_chains} chains are effective on {bad} of {n} rows: "
                f"their log p(x) is likely too low; use more than {self.num_steps} temperatures"
            )
        if self.num_chains == 1:
            yield "a single chain gives no estimate of its error; use more chains"
        stuck = int((self.acceptance < 0.3).sum())
        if stuck:
            yield (
                f"less than 30 % of the transitions are accepted on {stuck} of {n} rows: their posteriors "
                "differ too much from the start for one step size; start from a trained guide"
            )
        yield from not_finite("log p(x)", self.log_likelihood)

    def lines(self) -> list[tuple[str, str]]:
        """The printed result: name and value of each quantity."""
        start = "prior" if self.from_prior else "guide"
        error = float(self.log_likelihood_error.double().mean())
        ess, acceptance = self.ess.double(), self.acceptance.double()
        return [
            ("log p(x), annealed from the " + start, str(self.log_likelihood)),
            self.bits_line,
            (
                "Monte-Carlo error of a row, mean",
                f"{error:.3f} nats" if self.num_chains > 1 else "not known",
            ),
            ("ESS, median", f"{float(ess.median()):.1f} of {self.num_chains} chains"),
            (
                "acceptance, mean (least)",
                f"{float(acceptance.mean()):.2f} ({float(acceptance.min()):.2f})",
            ),
        ]


def annealed_importance_sampling(
    model: Program,
    guide: Program | None,
    x: DataLike,
    *,
    num_chains: int = 16,
    num_steps: int = 1000,
    num_leapfrog: int = 10,
    seed: int | None = None,
    progress: bool | None = None,
) -> Annealed:
    """log p(x) of each row by annealed importance sampling, for guides too poor for `evaluate`.

    Chains start at draws z from q(z | x), or from the prior, and move by Hamiltonian Monte Carlo along
    f_beta(z) = q(z | x)^(1 - beta) p(x, z)^beta as beta rises from 0 to 1 on a sigmoidal schedule. The mean of
    their weights w is p(x) in expectation for any number of temperatures, and log w approaches log p(x) as
    that number grows (Wu et al., "On the Quantitative Analysis of Decoder-Based Generative Models",
    arXiv:1611.04273). Starting from a guide near the posterior, about fifty temperatures reach what takes a
    thousand from the prior. `num_steps=1` is importance sampling.

    Latents with bounds are moved in unconstrained coordinates. A shorter run tunes the step sizes to an
    acceptance of 0.65 for each row and temperature. Its draws are discarded, which keeps the weights
    unbiased. The spread of its starting points sets the scale of each dimension. All chains run at once, for
    as many rows as fit in a bounded memory.

    Args:
        model: Pyro program of p(x, z).
        guide: Pyro program of q(z | x) to start from; None starts from the prior.
        x: A tensor or array `(n, *event)`, a tuple of them, or an iterable of batches; all that
            `ppl_vae.pairs.Batches` takes.
        num_chains: Chains per row.
        num_steps: Number of temperatures T. Each chain takes about 1.1 T `num_leapfrog` gradients of
            log p(x, z).
        num_leapfrog: Leapfrog steps between two temperatures.
        seed: Seed for the draws; None draws from torch's global generator.
        progress: Whether to show a progress bar; None shows one on a terminal.

    Returns:
        An `Annealed`.

    Raises:
        PairError: A latent is discrete or belongs to all rows; also in the cases listed for `evaluate`.
        ValueError: A number of chains or steps is not positive, or `x` has no rows.

    Example:
        >>> import torch, pyro, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 0.1), obs=x)
        >>> x = torch.tensor([0.0, 1.0])
        >>> found = annealed_importance_sampling(model, None, x, num_steps=200, seed=0)
        >>> truth = dist.Normal(0.0, 1.01**0.5).log_prob(x)
        >>> bool((found.log_likelihood.values - truth).abs().max() < 0.1)
        True
    """
    schedule = AnnealingSchedule(num_chains, num_steps, num_leapfrog)

    def work(chunk: Chunk) -> dict[str, Tensor]:
        weights = StreamingWeights(num_chains)
        accepted: Any = 0.0
        for chains in chunk.chains:
            log_weights, acceptance = chunk.anneal(chunk.draw(chains))
            weights.update(log_weights)
            accepted = accepted + acceptance * chains
        return {
            "log_likelihood": weights.log_mean_exp,
            "error": weights.monte_carlo_error,
            "ess": weights.ess,
            "acceptance": accepted / num_chains,
        }

    found, sizes, texts = in_chunks(
        work, model, guide, x, schedule, runs=1, seed=seed, progress=progress, label="anneal"
    )
    return Annealed(
        log_likelihood=Estimate(found["log_likelihood"]),
        log_likelihood_error=found["error"],
        ess=found["ess"],
        acceptance=found["acceptance"],
        num_chains=num_chains,
        num_steps=num_steps,
        num_leapfrog=num_leapfrog,
        from_prior=guide is None,
        num_values=sizes["num_values"],
        counted=sizes["counted"],
        **texts,
    )
