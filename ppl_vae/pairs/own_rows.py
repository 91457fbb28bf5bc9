"""Pairs that draw their own rows: the plate that does so takes all the rows that it is given instead."""

from __future__ import annotations

import contextlib
from typing import Any

import pyro.poutine as poutine

from ppl_vae.pairs.autoguides import autoguides_of
from ppl_vae.pairs.errors import PairError
from ppl_vae.pairs.pair import Pair
from ppl_vae.pairs.programs import Batch, Program, num_rows, tensors_of
from ppl_vae.pairs.row_plate import find_rows, one_row_fewer, run_alone
from ppl_vae.pairs.subsampling import Trial


def take_all_rows(pair: Pair, batch: Batch) -> bool:
    """Lets the plate over rows take all of them, if it has a `subsample_size`: see `Subsampling`.

    Call it inside of `pair.scope()` after a run on the batch, which shows what plates there are; only plates
    whose role is not known yet cost anything. They get it by running the pair on the batch, and on one row
    fewer. Whether the pair needs all rows at once is found in the same way (`pair.keeps_rows`).

    Args:
        pair: The pair.
        batch: The rows of that run.

    Returns:
        Whether that changes the pair's densities on this batch.

    Raises:
        PairError: The plate's indices select from something else than the rows given.
    """
    plates, n = pair.subsampling, num_rows(batch)
    new = {k: v for k, v in plates.met.items() if k not in plates.takes_all and n in v}
    if not new:
        return False
    plates.device = tensors_of(batch)[0].device
    trials: dict[int, Trial] = {}
    fewer = one_row_fewer(batch)
    with pair.mode(training=False):
        try:
            model = plates.tried(pair.model, trials)
            both = plates.tried(_replayed(pair), trials)
            rows = find_rows(model, batch, run_alone(both, batch)).name
        except Exception:  # what is wrong is reported where the batch is used
            return False
        with contextlib.suppress(Exception):  # a pair of exactly these rows
            run_alone(both, fewer)
    plates.takes_all |= dict.fromkeys(new.keys() - {rows}, False)
    if rows not in new:
        return False
    size, part = new[rows]
    with_fewer = trials[num_rows(fewer)]
    follows = with_fewer.met.get(rows, new[rows])[0] == with_fewer.rows
    draws = part != size
    _require_rows_given(rows, new[rows], trials[n], follows)
    takes_all = size == n and (follows or draws)
    if takes_all and not (follows and with_fewer.uses.get(rows, set()) <= {with_fewer.rows}):
        pair.keeps_rows, plates.only = True, n
    plates.takes_all[rows] = takes_all
    return takes_all and draws


def _replayed(pair: Pair) -> Program:
    """The model with the guide's latents. An autoguide is left out: its first run makes its parameters."""
    if autoguides_of(pair.guide):
        return pair.model

    def run(*args: Any) -> Any:
        with poutine.block():
            guide_trace: Any = poutine.trace(pair.guide).get_trace(*args)
        return poutine.replay(pair.model, trace=guide_trace)(*args)

    return run


def _require_rows_given(name: str, plate: tuple[int, int], trial: Trial, follows: bool) -> None:
    """Raises a PairError if the indices of the plate over rows select from more than the rows given.

    Args:
        name: The plate.
        plate: Its size, and how many it draws.
        trial: What was seen on the rows.
        follows: Whether its size is the number of rows given.
    """
    size, part = plate
    uses = trial.uses.get(name, set())
    others = uses - ({trial.rows} if size == trial.rows else set())
    if not others:
        return
    write = "len(x)" if follows else f"{size}, subsample_size=len(x)"
    remedy = f'write pyro.plate("{name}", {write}) and use x in place of x[index]'
    if not max(others):
        raise PairError(
            f"plate '{name}' draws {part} of {size} rows, and its indices are used otherwise than in x[index]. "
            f"Here fit and evaluate choose the rows: {remedy}"
        )
    raise PairError(
        f"plate '{name}' draws {part} of {size} rows, and its indices select from {max(others)} rows, while "
        f"the programs are given {trial.rows} rows. Here fit and evaluate choose the rows: {remedy}. A guide "
        "with parameters for each row also needs an attribute keeps_rows = True, to get all rows at once"
    )
