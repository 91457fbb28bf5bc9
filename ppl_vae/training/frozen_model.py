"""`refit_guide`: a new guide for a model that stays as it is, to compare guides on one model."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

import pyro
import pyro.poutine as poutine
from pyro.poutine.messenger import Messenger
from torch.nn import Module, Parameter

from ppl_vae.checks import device_for
from ppl_vae.pairs import Batches, DataLike, Pair, PairError, Program, keep_guide
from ppl_vae.runtime import digest, require_flags, resolve_device
from ppl_vae.training.fitting import Fit, fit
from ppl_vae.training.noise import Noise, require_noise


def refit_guide(
    model: Program, guide: Program, x: DataLike, *, fit_noise: bool = False, **options: Any
) -> Fit:
    r"""Trains a guide for the posterior of a model that is left as it is, except its noise if asked for.

    The model's weights receive no gradients, its `pyro.param` values are fixed, and its modules stay in
    evaluation mode: batch norm keeps its statistics and dropout is off, as when the pair is evaluated.
    Afterwards, also after an error, everything that was trainable is trainable again. A model that is made of
    its guide (by a VampPrior) keeps a copy of that guide from then on, so that its log p(x) does not change.

    With `fit_noise`, the variance of `model.likelihood` is found as well: that of a GAN, say, is of rows which
    an untrained guide reconstructs. It is the M step of EM, with D numbers in a row x and mean(z) = E[x | z]:

        sigma^2 = mean over rows and draws z ~ q(z | x) of |x - mean(z)|^2 / D

    The epochs are cut in five parts, or in as many as there are epochs; before each but the first sigma is set,
    from all rows with five draws each. So the guide comes last, and suits the noise. The likelihood of the
    model that is given is changed in place, and nothing else of it: E[x | z] stays bit for bit. `history` has
    `sigma`. With `patience`, epochs count from the last of these times on, and the best of those is kept. A
    `ReduceLROnPlateau` starts anew at each. If sigma still changed by more than 5 % then, `Fit.warnings` says
    so.

    Args:
        model: Pyro program of p(x, z), trained. If it has `pyro.param` statements, `fit(...).model`,
            which carries their values.
        guide: Pyro program of q(z | x); training starts from its current parameters.
        x: The rows, as for `ppl_vae.fit`.
        fit_noise: Whether the noise of `model.likelihood` is found, which is `OptimalGaussian`,
            `LearnedGaussian`, or one of your own with a number `sigma` and a method `set_sigma` that changes a
            parameter or a buffer, so that checkpoints hold it.
        **options: Those of `ppl_vae.fit`.

    Returns:
        A `Fit` with the model that was given and the trained guide.

    Raises:
        PairError: The model has `pyro.param` statements and carries no values for them, or `check`
            found something that makes training wrong; or `fit_noise` is given for a model that observes several
            sites beside what it is given (`Given`), sums latents out, or has a decoder that reads the row.
        ValueError: The guide has no parameters of its own; or `fit_noise` is given with a single epoch.
        TypeError: The guide is a messenger (`AutoNormalMessenger`), which runs a model of its own; or
            `fit_noise` is given for a model whose likelihood has no noise to find.

    Example:
        >>> import torch
        >>> from ppl_vae.guides import MeanField
        >>> from ppl_vae.models import ProbabilisticPCA
        >>> from ppl_vae.networks import MLP
        >>> x = torch.randn(100, 3)
        >>> model = ProbabilisticPCA((3,), latent_dim=1).maximum_likelihood(x)
        >>> refitted = refit_guide(model, MeanField((3,), 1, MLP((8,))), x, max_epochs=2, seed=0)
        >>> refitted.model is model
        True
    """
    if isinstance(poutine.unwrap(guide), Messenger):
        raise TypeError(
            f"the guide, {type(guide).__name__}, runs a model of its own, which would not stay as it is: "
            "use a guide that is a program of its own, such as AutoNormal"
        )
    require_flags(fit_noise=fit_noise)
    noise = Noise(require_noise(model, options.get("max_epochs"))) if fit_noise else None
    # `fit` does not see the model's modules, so it cannot move them.
    if options.get("fabric") is None:
        pair = Pair.of(model, guide)
        options["device"] = device_for(pair, Batches(x, pair), options.get("device", "auto"))
    with _frozen(model, options, noise) as frozen:
        result = fit(frozen, guide, x, **options)
    Pair(model, result.guide).remember()
    return replace(result, model=model)


@contextmanager
def _frozen(model: Program, options: dict[str, Any], noise: Noise | None) -> Iterator[Program]:
    """The model as a program that has nothing to train, on the device of the training."""
    keep_guide(model)
    pair = Pair(model, model)
    fabric = options.get("fabric")
    pair.to(fabric.device if fabric else resolve_device(options.get("device", "auto")))
    parameters = [p for module in pair.modules().values() for p in module.parameters()]
    before = [(p, p.requires_grad) for p in parameters]
    try:
        with pair.mode(training=False):
            for parameter in parameters:
                parameter.requires_grad_(False)
            yield (
                _Held(pair, parameters) if noise is None else _HeldButNoise(pair, parameters, noise)
            )
    finally:
        for parameter, trainable in before:
            parameter.requires_grad_(trainable)


class _Held:
    """A program whose parameters no handler sees.

    It has slots and no `__dict__`, so that its modules are not found either: they are not trained, not put in
    training mode, and not saved with the guide.
    """

    __slots__ = ("__signature__", "__weakref__", "_known", "_program", "_store", "digest")

    def __init__(self, pair: Pair, parameters: list[Parameter], noise: Noise | None = None) -> None:
        program = pair.model
        self._program = program
        self._store = {key: dict(values) for key, values in pair.store.items()}
        self._known = _Known({*map(id, parameters), *map(id, pair.store["params"].values())})
        own = () if noise is None else noise.state_dict().values()
        found = {tensor.data_ptr() for tensor in own}
        state = sorted(pair.state().items())
        self.digest = digest([tensor for _, tensor in state if tensor.data_ptr() not in found])
        self.__signature__ = inspect.signature(
            program.forward if isinstance(program, Module) else program
        )

    @property
    def held(self) -> Program:
        """The model, to be asked what it states."""
        return self._program

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        scope = pyro.get_param_store().scope(cast(Any, self._store))
        with poutine.block(hide_types=["param"]), scope, self._known:
            result = self._program(*args, **kwargs)
        # Leaving a scope removes the link from a value to its leaf, also for tensors outside of the scope.
        for _, leaf in pyro.get_param_store().named_parameters():
            leaf.unconstrained = weakref.ref(leaf)  # type: ignore[attr-defined]
        return result


class _HeldButNoise(_Held):
    """The same, but `fit` finds the likelihood: it is saved with the guide, and its noise is found.

    Attributes:
        noise: What finds it.
    """

    def __init__(self, pair: Pair, parameters: list[Parameter], noise: Noise) -> None:
        super().__init__(pair, parameters, noise)
        self.noise = noise


class _Known(Messenger):
    """Refuses `pyro.param` statements that would create a new value."""

    def __init__(self, known: set[int]) -> None:
        super().__init__()
        self.known = known

    def _pyro_post_param(self, msg: dict[str, Any]) -> None:
        leaf = msg["value"].unconstrained() if hasattr(msg["value"], "unconstrained") else None
        if id(leaf) not in self.known:
            raise PairError(
                f"the model has a parameter '{msg['name']}' from pyro.param, but carries no trained value "
                "of it: train the model with fit, and give refit_guide fit(...).model"
            )
