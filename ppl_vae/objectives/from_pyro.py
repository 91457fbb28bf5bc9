"""Pyro's own ELBO objects as objectives."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.infer

from ppl_vae.objectives.base import Objective
from ppl_vae.objectives.elbo import ELBO, EnumELBO, MeanFieldELBO, TraceELBO

_FROM_PYRO: dict[type[Any], type[Objective]] = {
    pyro.infer.Trace_ELBO: TraceELBO,
    pyro.infer.TraceMeanField_ELBO: MeanFieldELBO,
    pyro.infer.TraceEnum_ELBO: EnumELBO,
}


def as_objective(objective: Objective | pyro.infer.ELBO | None) -> Objective:
    """Converts one of Pyro's own ELBO objects to an objective, and None to the default.

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
        known = ", ".join(kind.__name__ for kind in _FROM_PYRO)
        raise TypeError(
            f"objective is a {type(objective).__name__}; expected an objective of ppl_vae.objectives "
            f"or one of Pyro's {known}"
        )
    return ours(num_particles=objective.num_particles)
