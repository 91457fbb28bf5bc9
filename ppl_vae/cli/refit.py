"""The subcommand `refit`."""

from __future__ import annotations

import torch
from jsonargparse import ArgumentParser, Namespace

from ppl_vae.cli.finish import finish_run
from ppl_vae.cli.mistakes import UsageError
from ppl_vae.cli.own_modules import trust_of
from ppl_vae.cli.setup import set_up, with_defaults
from ppl_vae.cli.start import start_run
from ppl_vae.pairs import keep_guide
from ppl_vae.runs import discard_folder, load_run
from ppl_vae.runtime import resolve_device
from ppl_vae.training import refit_guide


def refit(parser: ArgumentParser, given: Namespace) -> int:
    """Trains a new guide for the model of a run, which is left as it is; the result is a run of its own."""
    trust = trust_of(given, given.run)
    run = load_run(given.run, trust=trust)
    if not isinstance(run.model, torch.nn.Module):
        raise UsageError(
            "refit needs a model that is an nn.Module, so that the new run can hold it"
        )
    kept = {n: v for n, v in run.config.items() if n not in ("guide", "versions", "refit_of")}
    if keep_guide(run.model):  # a VampPrior is made of the guide that it was trained with
        kept.setdefault("model_guide", run.config["guide"])
    options = with_defaults(parser, given)
    chosen = {name: options[name] for name in vars(given) if name in options}
    config = {**options, **kept, **chosen, "refit_of": str(run.path.resolve())}
    config.pop("run", None)
    resolve_device(config["device"])
    of_run = {name: trust for name in kept if name not in chosen}
    setup = set_up(config, model=run.model, trust=of_run)
    folder = start_run(setup, given)
    progress = False if given.get("quiet") else None
    try:
        fitted = setup.train(refit_guide, fabric=setup.fabric(), run_dir=folder, progress=progress)
        finish_run(folder, setup, fitted, progress)
    except BaseException:
        discard_folder(folder)
        raise
    return 0
