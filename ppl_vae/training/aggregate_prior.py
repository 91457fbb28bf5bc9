"""`refit_prior`: a new prior for a trained pair, fitted to its aggregate posterior."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.distributions import constraints

from ppl_vae.checks import Session, opened
from ppl_vae.networks import told_instead
from ppl_vae.pairs import (
    DataArguments,
    DataLike,
    Program,
    as_args,
    has_prior,
    innermost,
    num_rows,
    sample_rows,
    stated_moment,
    tensors_of,
    trace_guide,
)
from ppl_vae.runs import RunFolder, describe, digest_of_rows, programs_of, settings_of
from ppl_vae.runtime import (
    described,
    digest,
    require_count,
    require_flags,
    require_number,
    require_samples,
    require_seed,
)
from ppl_vae.training.code_prior import CodeLevel, Codes, CodeSteps, LevelsFit, fit_codes
from ppl_vae.training.larger_pictures import Around, middle_of
from ppl_vae.training.prior_checkpoints import PriorCheckpoints


class PriorDescription(Protocol):
    """Builds a prior once the sizes are known, as `ppl_vae.models.MixturePrior(20)` does."""

    def build(self, data_shape: Sequence[int], latent_dim: int) -> nn.Module:
        """The module whose `forward()` is p(z)."""


class CodePriorDescription(Protocol):
    """Builds a prior of codes once the sizes are known, as `ppl_vae.models.PixelCNNPrior()` does."""

    def build_codes(
        self, positions: Sequence[int], codes: int, context: Any | None = None
    ) -> nn.Module:
        """The module whose `forward()` is p(z), or `forward(c)` p(z | c)."""


def refit_prior(
    model: nn.Module,
    guide: Program,
    x: DataLike,
    prior: PriorDescription | CodePriorDescription | Sequence[CodePriorDescription],
    *,
    num_draws: int = 10,
    validation: DataLike | None = None,
    max_epochs: int = 200,
    patience: int = 10,
    batch_size: int = 128,
    learning_rate: float = 1e-3,
    seed: int | None = None,
    run_dir: str | Path | RunFolder | None = None,
    resume: bool = False,
    progress: bool | None = None,
) -> Any:
    r"""Fits a prior to the aggregate posterior q(z) = 1/n sum_i q(z | x_i); all else stays as it is.

    A prior that was fixed during training does not match the codes, so samples from it do not look like the
    data. The prior that is best for the ELBO of the given rows maximizes E_q(z) log p(z): a diagonal Gaussian
    by its moments in closed form (the variance within rows plus that between their means), a mixture by EM
    on draws, a flow by gradient steps on draws ("ex-post density estimation", *From Variational to
    Deterministic Autoencoders*, arXiv:1903.12436).

    It is also the second phase of a VQ-VAE ("Neural Discrete Representation Learning", arXiv:1711.00937):
    where z are codes, whole numbers, the prior is one of codes. `IndependentCodes` is counted;
    `PixelCNNPrior`, `TransformerPrior` and others without a closed form learn by Adam on -log p(z), the rate of
    a row, until that of held-out rows has not fallen for `patience` epochs, and the weights of the best epoch
    are kept: such priors overfit. Where rows come with labels or attributes, as those of a `ConditionalVQVAE`,
    it is p(z | c) that is fitted. Of codes on several grids, as those of a `VQVAE2`, it is the prior of each,
    given those above, and c in a `ConditionalVQVAE2` ("Generating Diverse High-Fidelity Images with VQ-VAE-2",
    arXiv:1906.00446). `refitted.prior.fitted`, a `PriorFit` or a `LevelsFit`, says what was found.

    Args:
        model: The model; its `model.prior` is the module whose `forward()` is p(z).
        guide: The guide.
        x: The rows whose posteriors count: those trained on, as for `evaluate`. Pictures may be larger than the
            model's if its guide encodes any size (`QuantizingEncoder` with `ConvolutionalGrid`,
            `HierarchicalQuantizingEncoder`): then the codes in the middle count. Near the border of a patch,
            codes depend on the zeros that a network sees beyond it; those of a large photo do not. So a prior
            for photos is fitted to patches with a margin.
        prior: The new prior: `DiagonalNormal()`, `MixturePrior(20)`, `FlowPrior()`, or any description whose
            module has a method `fit_to(mean, variance, draws)`. For codes `IndependentCodes()`,
            `PixelCNNPrior()`, `TransformerPrior()`, or any other `CodePrior`; for codes on several grids one
            for all, or a list with one for each, from the lowest.
        num_draws: Draws from each row's q(z | x). A guide that is certain of its codes draws them once.
        validation: For priors of codes: held-out rows, as `x`. Without them, a tenth of the rows is drawn and
            held out from a prior that learns by steps.
        max_epochs: For priors of codes that learn by steps, as are the next three: most passes over the rows.
        patience: Epochs without a lower held-out rate after which the training stops.
        batch_size: Rows per step.
        learning_rate: Of Adam.
        seed: Seed for draws and starts; None draws from torch's global generator.
        run_dir: For priors of codes: folder for `checkpoints/`; None keeps everything in memory. A prior that
            is counted writes none. With a `RunFolder`, a run takes the place of another once its first epoch is
            saved.
        resume: Go on from the newest good checkpoint in `run_dir`, with the seed of the call that was begun
            there (another `seed` is refused). The result has the same bits as without the interruption. With
            codes on one grid, a larger `max_epochs` or `patience` takes it further; all else must be the same.
        progress: Whether to show a progress bar; None shows one on a terminal.

    Returns:
        A copy of the model with the new prior. Weights are copies too: the given model does not change.

    Raises:
        TypeError: The model has no module `prior`, the new prior cannot be fitted, or it is of codes and z is
            not, or the reverse.
        ValueError: The guide does not sample one vector per row, `num_draws` is less than 2, an option is out
            of its range, there is no row to hold out, or there is not one prior for each grid. A `run_dir` is
            given for a prior of vectors, or a resumed call has other options, rows or weights.
        PairError: As from `evaluate`.
        DivergenceError: The rate became NaN or infinite.
        FileExistsError: `run_dir` holds checkpoints or metrics and `resume` is False.
        FileNotFoundError: There is no checkpoint to resume from.
        LockedError: Another process writes into `run_dir`.
        CorruptFileError: All checkpoints to resume from are damaged.

    Example:
        >>> from ppl_vae.guides import MeanField
        >>> from ppl_vae.models import VAE, DiagonalNormal
        >>> model, guide = VAE((3,), latent_dim=2), MeanField((3,), latent_dim=2)
        >>> x = torch.bernoulli(torch.full((100, 3), 0.5))
        >>> refitted = refit_prior(model, guide, x, DiagonalNormal())
        >>> refitted.prior().mean.shape, model.prior().mean
        (torch.Size([2]), tensor([0., 0.]))

        Codes of which one is rare:

        >>> import pyro, pyro.distributions as dist
        >>> from ppl_vae.distributions import PointMass
        >>> from ppl_vae.models import IndependentCodes
        >>> class Copies(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.prior = IndependentCodes().build_codes((3,), codes=2)
        ...
        ...     def forward(self, x):
        ...         with pyro.plate("data", len(x)):
        ...             z = pyro.sample("z", self.prior())
        ...             pyro.sample("x", dist.Bernoulli(0.1 + 0.8 * z).to_event(1), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("z", PointMass(x.long(), 2).to_event(1))
        >>> x = torch.bernoulli(torch.full((1000, 3), 0.1))
        >>> print(refit_prior(Copies(), guide, x, IndependentCodes(), validation=x[:100]).prior.fitted)
        prior                IndependentCodes
        rate, training rows  0.9... ± 0.0... nats per row
        rate, held-out rows  ... ± 0.1... nats per row
    """
    require_samples("num_draws", num_draws, least=2)
    require_count("max_epochs", max_epochs)
    require_count("patience", patience)
    require_count("batch_size", batch_size)
    require_number("learning_rate", learning_rate)
    if not 0 < learning_rate < float("inf"):
        raise ValueError(f"learning_rate must be positive and finite, got {learning_rate}")
    for each in prior if isinstance(prior, list | tuple) else [prior]:
        described_by = hasattr(each, "build_codes") or hasattr(each, "build")
        if isinstance(each, type) or not described_by:
            raise TypeError(
                f"prior must be a description such as MixturePrior(20), or PixelCNNPrior() for codes, got "
                f"{described(each)}"
            )
    require_flags(resume=resume)
    if seed is not None:
        require_seed(seed)
    steps = CodeSteps(max_epochs, patience, batch_size, float(learning_rate))
    x, around = middle_of(model, guide, x)
    with ExitStack() as stack:
        folder = stack.enter_context(RunFolder.of_fit(run_dir, resume=resume))
        checkpoints = PriorCheckpoints.of(folder, resume, seed)
        opening = opened(model, guide, x, seed=checkpoints.seed, progress=progress)
        session = stack.enter_context(opening)
        old = getattr(model, "prior", None)
        if not has_prior(model) or not isinstance(old, nn.Module):
            raise TypeError(
                f"refit_prior replaces model.prior, the module whose forward() is p(z), but "
                f"{type(model).__name__} has no such module: sample z from self.prior() in the model, with "
                "self.prior = StandardNormal().build(data_shape, latent_dim)"
            )
        kinds = _kinds_of_codes(session, old)
        priors = _one_for_each(prior, kinds)
        for each in priors:
            _require_kind(each, kinds, session)
        if not kinds:
            if validation is not None:
                raise ValueError(
                    f"validation is for priors of codes, and {type(prior).__name__} is none: leave it out"
                )
            if folder is not None:
                raise ValueError(
                    f"run_dir is for priors of codes, and {type(prior).__name__} is none, which is fitted in "
                    "one go: leave it out"
                )
            new = _fitted(session, prior, num_draws)
        else:
            held_out = None if validation is None else (model, guide, validation)
            how = (num_draws, held_out, old, steps, around, checkpoints)
            new = _fitted_to_codes(session, priors, kinds, *how)
    # The old prior is not copied: it may hold on to the guide.
    refitted = copy.deepcopy(model, {id(old): new.train(model.training)})
    told_instead(refitted, prior=prior)
    return refitted


def _fitted(session: Session, prior: Any, num_draws: int) -> nn.Module:
    """A prior of vectors, fitted to their aggregate posterior."""
    mean, variance, draws = _posteriors(session, num_draws)
    data_shape = tuple(tensors_of(session.first)[0].shape[1:])
    new: nn.Module = prior.build(data_shape, mean.shape[-1]).to(draws)
    fit_to: Any = getattr(new, "fit_to", None)
    if fit_to is None:
        raise TypeError(
            f"{type(prior).__name__} cannot be fitted to the aggregate posterior (its module has no "
            "fit_to): use DiagonalNormal, MixturePrior or FlowPrior"
        )
    fit_to(mean, variance, draws)
    return new


class _Kind(NamedTuple):
    """Codes of a row: their site, shape, number of values, and whether the guide is certain of them."""

    site: str
    positions: tuple[int, ...]
    codes: int
    certain: bool


def _kinds_of_codes(session: Session, old: nn.Module) -> list[_Kind]:
    """What the latents of a row are, if each is whole numbers from 0 on; else empty.

    They are one, or those that the model's prior has a part for, in its order.
    """
    layout = session.layout
    sites = getattr(old, "sites", layout.latents)
    known = len(sites) == 1 or hasattr(old, "sites")
    if not known or {*sites} != {*layout.latents} or layout.shared or layout.enumerated:
        return []
    trace = trace_guide(session.pair.guide, *as_args(session.first))
    kinds = [_kind_of_codes(site, trace.nodes[site]["fn"]) for site in sites]
    found = [kind for kind in kinds if kind is not None]
    return found if len(found) == len(kinds) else []


def _kind_of_codes(site: str, q: Any) -> _Kind | None:
    """What a latent is, if it is whole numbers from 0 on; else None."""
    each = innermost(q)
    support: Any = getattr(each, "support", None)
    support = getattr(support, "base_constraint", support)
    if not isinstance(support, constraints.integer_interval) or support.lower_bound != 0:
        return None
    certain = bool(getattr(each, "is_certain", False))
    return _Kind(site, tuple(q.event_shape), int(support.upper_bound) + 1, certain)


def _one_for_each(prior: Any, kinds: Sequence[_Kind]) -> list[Any]:
    """The descriptions of the priors, one for each site of codes.

    Raises:
        ValueError: There is a list with another number.
    """
    count = max(1, len(kinds))
    if not isinstance(prior, list | tuple):
        return [prior] * count
    if len(prior) != count:
        sites = f" ({', '.join(kind.site for kind in kinds)})" if count > 1 else ""
        raise ValueError(
            f"prior must be one prior{f', or a list of {count}' if count > 1 else ''} for the latents of a "
            f"row{sites}, got a list of {len(prior)}"
        )
    return [*prior]


def _require_kind(prior: Any, kinds: Sequence[_Kind], session: Session) -> None:
    """Raises an error for a prior of vectors where z are codes, or the reverse.

    Raises:
        TypeError: It is so.
    """
    name = type(prior).__name__
    if kinds and not hasattr(prior, "build_codes"):
        sites = " and ".join(f"'{kind.site}'" for kind in kinds)
        raise TypeError(
            f"the latents {sites} of a row are codes, whole numbers from 0 to "
            f"{max(kind.codes for kind in kinds) - 1}, and {name} is a density of vectors: choose "
            "IndependentCodes(), PixelCNNPrior() or TransformerPrior()"
        )
    if not kinds and not hasattr(prior, "build"):
        raise TypeError(
            f"{name} is a prior of codes, whole numbers from 0 on, but the latents of a row are not codes at "
            f"one site ({', '.join(session.layout.latents) or 'there are none'}): choose DiagonalNormal(), "
            "MixturePrior() or FlowPrior(), or a model of codes such as VQVAE"
        )


def _fitted_to_codes(
    session: Session,
    priors: Sequence[Any],
    kinds: Sequence[_Kind],
    num_draws: int,
    validation: tuple[nn.Module, Program, DataLike] | None,
    old: Any,
    steps: CodeSteps,
    around: Around | None,
    checkpoints: PriorCheckpoints,
) -> nn.Module:
    """A prior of codes, fitted to those of the rows; of several sites, each is given those that follow it."""
    several = hasattr(old, "sites")
    # What is replaced knows what it is called with.
    of_model = getattr(session.pair.model, "context", None)
    contexts = old.contexts if several else [getattr(old, "context", of_model)]
    draws = 1 if all(kind.certain for kind in kinds) else num_draws
    codes = _codes(session, kinds, contexts[-1], draws, old, around)
    held_out: list[Codes] | list[None] = [None] * len(kinds)
    rows = {"data": _digest(session, around, checkpoints)}
    if validation is not None:
        model, guide, x = validation
        x, around = middle_of(model, guide, x)
        with opened(model, guide, x, progress=session.progress) as others:
            held_out = _codes(others, kinds, contexts[-1], draws, old, around)
            rows["validation"] = _digest(others, around, checkpoints)
    levels = [
        CodeLevel(
            type(prior).__name__, kind.site, _built(session, prior, kind, context), own, apart
        )
        for prior, kind, context, own, apart in zip(
            priors, kinds, contexts, codes, held_out, strict=True
        )
    ]
    if checkpoints.folder is not None:
        checkpoints.compare(session.device, rows | _facts(session, levels, priors, steps, draws))
    found = fit_codes(levels, steps, session.device, session.progress, checkpoints)
    new: Any
    for level, fitted in zip(levels, found, strict=True):
        new = level.prior
        new.fitted = fitted
    if several:
        new = type(old)([level.prior for level in levels], old.sites, contexts)
        new.fitted = LevelsFit(dict(zip(old.sites, found, strict=True)))
    built: nn.Module = new
    return built


def _digest(session: Session, around: Around | None, checkpoints: PriorCheckpoints) -> str | None:
    """A digest of the rows, if there are checkpoints that it is compared with; None of an iterable."""
    if checkpoints.folder is None:
        return None
    if around is None:
        return digest_of_rows(session.batches)
    return digest([around.pictures, *tensors_of(session.batches.rows)])


def _facts(
    session: Session,
    levels: Sequence[CodeLevel],
    priors: Sequence[Any],
    steps: CodeSteps,
    draws: int,
) -> dict[str, Any]:
    """What must be the same when a call is resumed, besides the rows."""
    shapes = [
        [f"{level.site}.{name}" if len(levels) > 1 else name, list(value.shape)]
        for level in levels
        for name, value in level.prior.state_dict().items()
    ]
    return {
        "prior": {
            level.site: _settings(prior) for level, prior in zip(levels, priors, strict=True)
        },
        "num_draws": draws,
        "batch_size": steps.batch_size,
        "learning_rate": steps.learning_rate,
        "programs": programs_of(session.pair),
        "settings": settings_of(session.pair),
        "frozen": digest([tensor for _, tensor in sorted(session.pair.state().items())]),
        "parameters": shapes,
    }


def _settings(prior: Any) -> dict[str, Any]:
    """What a prior was set to, as plain values; of one that does not remember it, its plain attributes."""
    told = describe(prior)
    if told is not None:
        return told
    plain = {n: v for n, v in vars(prior).items() if v is None or isinstance(v, _PLAIN)}
    return {"class_path": type(prior).__qualname__, "init_args": plain}


_PLAIN = (bool, int, float, str)


def _built(session: Session, prior: Any, kind: _Kind, context: Any) -> nn.Module:
    """The module of a prior of codes, which is to be fitted.

    Raises:
        TypeError: It has no numbers.
    """
    given = () if context is None else (context,)
    new: nn.Module = prior.build_codes(kind.positions, kind.codes, *given)
    if not (hasattr(new, "fit_to_codes") or any(True for _ in new.parameters())):
        raise TypeError(
            f"{type(prior).__name__} has no numbers that could be fitted to the codes: use IndependentCodes, "
            "PixelCNNPrior or TransformerPrior"
        )
    return new.to(device=session.device, dtype=DataArguments.of(session.pair).dtype)


def _codes(
    session: Session,
    kinds: Sequence[_Kind],
    context: Any,
    num_draws: int,
    old: Any,
    around: Around | None,
) -> list[Codes]:
    """Draws from each row's q(z | x) of each site, and what they are given: what rows come with, or codes."""
    z: list[list[Tensor]] = [[] for _ in kinds]
    beside: list[Tensor] = []
    begin = 0
    for chunk in session.chunks(session.rows_at_once(num_draws), "refit_prior"):
        if around is None:
            latents = session.sample(chunk, num_draws).latents
        else:
            rows = slice(begin, begin + num_rows(chunk))
            grids = [kind.positions for kind in kinds]
            inner = around.codes(session.pair.guide, rows, grids, session.device)
            latents = {k.site: own.unsqueeze(0) for k, own in zip(kinds, inner, strict=True)}
            begin = rows.stop
        for kind, of_kind in zip(kinds, z, strict=True):
            of_kind.append(latents[kind.site].transpose(0, 1).to(torch.int32).cpu())
        if context is not None:
            beside.append(tensors_of(chunk)[1].cpu())
    drawn = [torch.cat(of_kind) for of_kind in z]
    c: Tensor | None = None
    if beside:
        c = torch.cat(beside).unsqueeze(1)
        c = c.expand(-1, num_draws, *c.shape[2:])
    if not hasattr(old, "sites"):
        return [Codes(drawn[0], c)]
    return [Codes(own, old.joined(i, drawn[i + 1 :], c)) for i, own in enumerate(drawn)]


def _posteriors(session: Session, num_draws: int) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance of each row's q(z | x), `(n, d)`, and draws from it, `(num_draws, n, d)`."""
    pair, layout = session.pair, session.layout
    site = layout.latents[0] if len(layout.latents) == 1 else None
    if site is None or sample_rows(pair, layout, session.first, 1).latents[site].dim() != 3:
        raise ValueError(
            "refit_prior needs a guide that samples one vector per row, but the latents of a row are "
            f"{', '.join(layout.latents) or 'none'}"
        )
    parts: list[tuple[Tensor, Tensor, Tensor]] = []
    for chunk in session.chunks(session.rows_at_once(num_draws), "refit_prior"):
        rows = session.sample(chunk, num_draws)
        z = rows.latents[site]
        mean, variance = (stated_moment(rows, rows.layout, site, m) for m in ("mean", "variance"))
        if mean is None or variance is None:
            mean, variance = z, torch.zeros_like(z)
        # Stated moments may depend on auxiliary draws.
        spread = mean.var(0, unbiased=False) + variance.mean(0)
        parts.append((mean.mean(0), spread, z))
    means, variances, draws = zip(*parts, strict=True)
    return torch.cat(means), torch.cat(variances), torch.cat(draws, 1)
