"""Whether a guide's Deltas carry the density of the draws that they were computed from."""

from __future__ import annotations

from collections.abc import Iterator

from ppl_vae.checks.report import Problem
from ppl_vae.pairs import (
    Batch,
    Computed,
    Pair,
    Trace,
    compare_jacobians,
    computed_latents,
    first_line,
)


def jacobian_problems(
    pair: Pair, batch: Batch, model_trace: Trace, guide_trace: Trace
) -> Iterator[Problem]:
    """Latents z = f(u) that a guide gives as Deltas, with another density than the draws u give them.

    If f is one-to-one, log q(z | x) = log q(u | x) - log|det dz/du|, and the last term has to stand in the
    `log_density` of the Deltas. The determinant is found by autograd at a few values of each latent, from all
    numbers that these values share draws with, and compared with the sum of their `log_density`.

    That is decided where these numbers and their draws are equally many, at most 2,048 (any number if each
    depends on one draw alone), and not masked. For latents such as those of a simplex, the free numbers count.
    Where autograd does not follow the function (its gradient disagrees with a difference of f), small steps of
    at most 8 draws decide. A difference that rounding can explain does not count. Where nothing is decided, a
    warning says so and why; not where derivatives are 0 by rounding, and if the numbers differ,
    `auxiliary_problems` and `Layout.points` say what is certain.

    A `pyro.factor` of the guide may hold the Jacobian, too, beside Deltas of which one has no `log_density`.
    Factors and `log_density` are then summed in the plates that the Deltas share, which is once per row, and so
    are the determinants. If the Deltas are right by themselves, the factors are no density (see
    `compare_jacobians`). A factor outside of the rows' plate that holds all their Jacobians is a warning.

    It is an error if `log_density` is left at 0 and there is no such factor, otherwise a warning: a function
    that is not one-to-one has another density. If -u or u + 2 pi k give the same latents, their densities q(-u)
    or q(u + 2 pi k) have to be added; it is a warning if they are left out. Other functions are known not to
    be one-to-one if the determinant, or the derivative of a number that depends on one draw alone, changes its
    sign between a few draws. One that keeps its orientation, and is neither even nor periodic, is not seen,
    such as the third power of a complex number. It is an error if a draw has no influence on the latents for
    some of its values, as for relu or clamp: these all give the same latents, and q has no density there.

    Args:
        pair: The pair, inside its scope.
        batch: The rows of the traces.
        model_trace: The trace of the model, with the guide's latents.
        guide_trace: The trace of the guide.
    """
    found: dict[Computed, tuple[bool, float]] = {}
    try:
        found, _, unknown = compare_jacobians(pair, batch, model_trace, guide_trace)
    except Exception as error:
        why = f"the guide could not be differentiated ({type(error).__name__}: {first_line(error)})"
        unknown = dict.fromkeys(computed_latents(pair, batch, model_trace, guide_trace), why)
    for name, why in unknown.items():
        yield Problem(
            "warning",
            name,
            f"it is not known whether the log_density of '{name}' is right: the guide computes it from draws "
            f"of its own, and {why}. If it is not -log|det d{name}/du|, with the draws u, then log q(z | x), "
            "the ELBO and log p(x) are off by the difference. Sample from a TransformedDistribution, or "
            "compute it by operations of torch that autograd follows",
        )
    for (latents, draws, factors, fault), (given, off) in found.items():
        z, u = (", ".join(f"'{name}'" for name in names) for names in (latents, draws))
        dz, du = (
            names[0] if len(names) == 1 else f"({', '.join(names)})" for names in (latents, draws)
        )
        log_det = f"-log|det d{dz}/d{du}|"
        listed = ", ".join(map(repr, factors))
        if fault == "flat":
            yield Problem(
                "error",
                latents[0],
                f"the guide computes {z} from its draw {u}, which has no influence for some of its values, as "
                f"for relu or clamp: these all give the same {z}, so that q(z | x) has no density there, and "
                "the ELBO is not defined. Use a function that is one-to-one, such as softplus",
            )
            continue
        if fault == "folded":
            by = f"is too low by {-off:.3g} nats on one of the first rows" if off else "is too low"
            why = (
                "as for an even or periodic function"
                if off
                else "as its derivative changes its sign"
            )
            yield Problem(
                "warning",
                latents[0],
                f"the guide computes {z} from its draw {u}, and other values of {u} give the same {z}, {why}: "
                f"log q(z | x) leaves out their density and {by}. Add it to log_density: for z = |u|, "
                "log(1 + q(-u) / q(u)). Or use a function that is one-to-one, such as exp(u)",
            )
            continue
        if fault == "outside":
            yield Problem(
                "warning",
                latents[0],
                f"the guide computes {z} from its draw {u}, and pyro.factor {listed} holds {log_det} of "
                "all rows at once, outside of their plate: log q(z | x) of a row leaves it out and is too "
                f"{'high' if off > 0 else 'low'} by {abs(off):.3g} nats on one of the first rows. Put the "
                f"factor of each row inside of the plate, or pass dist.Delta(..., log_density={log_det})",
            )
            continue
        has = f"does not have the log_density {log_det}" if given else "has no log_density"
        if factors:
            has = f"has no log_density, so that pyro.factor {listed} counts as one, but that is not {log_det}"
        yield Problem(
            "warning" if given or factors else "error",
            latents[0],
            f"the guide computes {z} from its draw {u}, but the Delta {has}: log q(z | x) is too "
            f"{'high' if off > 0 else 'low'} by {abs(off):.3g} nats on one of the first rows. Pass "
            f"dist.Delta(..., log_density={log_det}): for z = exp(u) that is -u, for z = a u + b it is -log|a| "
            "for each number. Or sample from a TransformedDistribution",
        )
