"""Pyro's own ELBO objects as objectives."""

from __future__ import annotations

import inspect
from typing import Any

import pyro
import pyro.infer
import pyro.infer.elbo

from ppl_vae.objectives.base import Objective
from ppl_vae.objectives.elbo import ELBO, EnumELBO, MeanFieldELBO, TraceELBO
from ppl_vae.objectives.importance_weighted import ImportanceWeightedELBO
from ppl_vae.runtime import described

_FROM_PYRO: dict[type[Any], type[Objective]] = {
    pyro.infer.Trace_ELBO: TraceELBO,
    pyro.infer.TraceMeanField_ELBO: MeanFieldELBO,
    pyro.infer.TraceEnum_ELBO: EnumELBO,
    # `fit` records the step by itself.
    pyro.infer.JitTrace_ELBO: TraceELBO,
    pyro.infer.JitTraceMeanField_ELBO: MeanFieldELBO,
    pyro.infer.JitTraceEnum_ELBO: EnumELBO,
}

_INSTEAD: dict[type[Any], str] = {
    pyro.infer.TraceGraph_ELBO: "ppl_vae.objectives has no baselines for score-function gradients; "
    "objective=TraceELBO(num_particles={particles}) is the same bound, with more variance in its gradient, "
    "and objective=EnumELBO() sums out discrete latents marked infer={{'enumerate': 'parallel'}}",
    pyro.infer.RenyiELBO: "ppl_vae.objectives has the bound of alpha = 0 alone, with a weight per row: "
    "write objective=ImportanceWeightedELBO(num_particles={particles})",
    pyro.infer.ReweightedWakeSleep: "ppl_vae.objectives has no wake-sleep; nearest is "
    "objective=ImportanceWeightedELBO(num_particles={particles}), which trains model and guide on one bound",
    pyro.infer.TraceTMC_ELBO: "ppl_vae.objectives has no tensor Monte Carlo; nearest are "
    "objective=ImportanceWeightedELBO(num_particles=5), which weights whole rows, and objective=EnumELBO(), "
    "which sums out discrete latents marked infer={{'enumerate': 'parallel'}}",
    pyro.infer.TraceTailAdaptive_ELBO: "ppl_vae.objectives has no tail-adaptive divergence; nearest is "
    "objective=ImportanceWeightedELBO(num_particles={particles})",
    pyro.infer.SVI: "fit takes the place of SVI; give the loss that it was made with, such as "
    "objective=pyro.infer.Trace_ELBO()",
    pyro.infer.elbo.ELBOModule: "fit runs model and guide itself; give the ELBO without them, such as "
    "objective=pyro.infer.Trace_ELBO()",
}
"""What to write for the things of Pyro that have no equal here, and for those that are derived from them."""

_OURS: tuple[type[Any], ...] = (ELBO, TraceELBO, MeanFieldELBO, EnumELBO, ImportanceWeightedELBO)
_BY_NAME: dict[str, type[Any]] = {
    kind.__name__.lower().replace("_", ""): kind for kind in (*_FROM_PYRO, *_OURS)
}
_KNOWN = (
    f"expected an objective of ppl_vae.objectives ({', '.join(kind.__name__ for kind in _OURS)}, ...) "
    "or one of Pyro's Trace_ELBO, TraceMeanField_ELBO, TraceEnum_ELBO"
)
_OWN = (
    "an objective of your own derives from ppl_vae.objectives.Objective, whose docstring shows how"
)


def as_objective(objective: Objective | pyro.infer.ELBO | None) -> Objective:
    """Converts one of Pyro's own ELBO objects to an objective, and None to the default.

    Of its settings, `num_particles` is kept. The others do not change the bound: `fit` finds the nesting of
    the plates and whether the particles can be drawn in one run, and records the step by itself.

    Raises:
        TypeError: It is something else; the message says what to write.

    Example:
        >>> import pyro.infer
        >>> as_objective(pyro.infer.Trace_ELBO(num_particles=3))
        TraceELBO(beta=1.0, free_bits=0.0, num_particles=3, stick_the_landing=False)
    """
    if objective is None:
        return ELBO()
    if isinstance(objective, Objective):
        return objective
    ours = _FROM_PYRO.get(type(objective))
    if ours is None:
        raise TypeError(f"objective is {described(objective)}: {_remedy(objective)}")
    return ours(num_particles=objective.num_particles)


def _remedy(given: Any) -> str:
    """What to write in place of something that is not an objective."""
    if isinstance(given, str):
        kind = _BY_NAME.get(given.lower().replace("_", ""))
        return _KNOWN if kind is None else f"write objective={_path(kind)}()"
    owner = given.__self__ if inspect.ismethod(given) else given
    kind = owner if inspect.isclass(owner) else type(owner)
    if kind in _FROM_PYRO or (issubclass(kind, Objective) and not inspect.isabstract(kind)):
        return f"give an object of the class: objective={_path(kind)}()"
    for theirs, instead in _INSTEAD.items():
        if issubclass(kind, theirs):
            return instead.format(particles=getattr(owner, "num_particles", "..."))
    for theirs in _FROM_PYRO:
        if issubclass(kind, theirs):
            return f"what it changes in Pyro's {theirs.__name__} would be lost; {_OWN}"
    return f"{_KNOWN}; {_OWN}" if callable(given) else _KNOWN


def _path(kind: type[Any]) -> str:
    """The name of a class, with the package that offers it."""
    package = {"pyro": "pyro.infer.", "ppl_vae": "ppl_vae.objectives."}
    return package.get(kind.__module__.partition(".")[0], "") + kind.__name__
