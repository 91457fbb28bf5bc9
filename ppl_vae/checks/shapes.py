"""Checks of shapes: values, distributions and plates of model and guide that do not agree."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ppl_vae.checks.report import Problem, as_numbers, other_device
from ppl_vae.pairs import (
    NoInverseError,
    Site,
    Trace,
    first_line,
    innermost,
    latent_sites,
    log_prob_of,
    sample_sites,
)


def shape_problems(model_trace: Trace, guide_trace: Trace) -> Iterator[Problem]:
    """Problems with shapes: values, distributions and plates that do not agree."""
    for role, trace in (("model", model_trace), ("guide", guide_trace)):
        for name, site in sample_sites(trace).items():
            frames = [f for f in site["cond_indep_stack"] if f.vectorized]
            try:
                actual = tuple(log_prob_of(site).shape)
            except NoInverseError as error:
                yield Problem("error", name, str(error))
                continue
            except Exception as error:
                message = _other_dtype(site) or (
                    f"its value of shape {tuple(site['value'].shape)} does not "
                    f"fit its distribution of batch shape {tuple(site['fn'].batch_shape)} and event shape "
                    f"{tuple(site['fn'].event_shape)} ({first_line(error)}){other_device(error)}"
                )
                yield Problem("error", name, f"site '{name}' in the {role}: {message}")
                continue
            unsized = next((f.name for f in frames if f.size == -1), None)
            if unsized is not None:
                yield Problem(
                    "error",
                    name,
                    f"plate '{unsized}' has no size, and site '{name}' in the {role} has no dimension for it: "
                    f'one draw for all rows. Write pyro.plate("{unsized}", len(x))',
                )
                continue
            expected = [1] * (-min((f.dim for f in frames), default=0))
            for frame in frames:
                expected[frame.dim] = frame.size
            padded = (1,) * (len(expected) - len(actual)) + actual
            if list(padded) != expected:
                plates = ", ".join(f"'{f.name}' (size {f.size}, dim {f.dim})" for f in frames)
                yield Problem(
                    "error",
                    name,
                    f"site '{name}' in the {role} has log densities of shape {actual}, but its plates "
                    f"({plates or 'none'}) give the shape {tuple(expected)}: add "
                    f".to_event({max(1, len(actual) - len(expected))}) to its distribution, or the missing "
                    "plate",
                )
    for name, site in latent_sites(model_trace).items():
        other = guide_trace.nodes.get(name)
        if other is None:
            continue
        if site["fn"].event_shape != other["fn"].event_shape:
            yield Problem(
                "error",
                name,
                f"site '{name}' has event shape {tuple(site['fn'].event_shape)} in the model and "
                f"{tuple(other['fn'].event_shape)} in the guide: the two must be the same",
            )
            continue
        around = [{f.name for f in s["cond_indep_stack"] if f.vectorized} for s in (site, other)]
        if around[0] != around[1]:
            sets = [", ".join(f"'{p}'" for p in sorted(names)) or "no plate" for names in around]
            yield Problem(
                "error",
                name,
                f"site '{name}' is in {sets[0]} in the model and in {sets[1]} in the guide: use the same "
                "plates, with the same names, in both",
            )


def _other_dtype(site: Site) -> str:
    """What is wrong if a site's density takes its value in another dtype alone; otherwise empty."""
    fn, value = site["fn"], site["value"]
    for dtype in (torch.get_default_dtype(), torch.float32, torch.float64):
        if value.dtype == dtype:
            continue
        try:
            fn.log_prob(value.to(dtype))
        except Exception:  # another dtype is no remedy
            continue
        remedy = (
            f"pass {as_numbers('x', value.dtype, dtype)}, or observe it in that dtype"
            if site["is_observed"]
            else f"draw it as {dtype}"
        )
        kind = type(innermost(fn)).__name__
        return f"its value is {value.dtype}, but the density of {kind} needs {dtype}: {remedy}"
    return ""
