"""The optimizer of a training and the schedule of its learning rate, from what the user gave."""

from __future__ import annotations

import functools
import inspect
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
from pyro.optim import PyroLRScheduler, PyroOptim
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from ppl_vae.objectives import Objective
from ppl_vae.pairs import own_attribute
from ppl_vae.runtime import described


def require_one_step_size(optimizer: object, learning_rate: object) -> None:
    """Refuses an optimizer that has a step size of its own besides `learning_rate`, which would replace it.

    Raises:
        ValueError: There are two.
    """
    own = getattr(optimizer, "keywords", {})
    if learning_rate is not None and isinstance(own, Mapping) and "lr" in own:
        raise ValueError(
            f"optimizer is {described(optimizer)} with lr={own['lr']}, and learning_rate={learning_rate}: give "
            "one of the two"
        )


def make_optimizer(
    leaves: list[Tensor],
    optimizer: Callable[..., Optimizer] | PyroOptim | None,
    learning_rate: float | None,
) -> Optimizer:
    """The optimizer of the leaves: Adam unless the user gave another.

    An optimizer of `pyro.optim` is made of its class and its arguments; its state in Pyro is not used.

    Raises:
        TypeError: `optimizer` does not make an optimizer of torch, or one that fit cannot use.
        ValueError: `optimizer` has failed, makes an optimizer of other tensors, or has a step size besides
            `learning_rate`.
    """
    if optimizer is None:
        fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in leaves)
        return torch.optim.Adam(
            leaves, lr=1e-3 if learning_rate is None else learning_rate, fused=fused
        )
    settings = {} if learning_rate is None else {"lr": learning_rate}
    if isinstance(optimizer, PyroOptim):
        optimizer = _constructor(optimizer, settings)
    made: Optimizer = _OPTIMIZER.make(optimizer, leaves, settings)
    closure = inspect.signature(made.step).parameters.get("closure")
    if closure is not None and closure.default is closure.empty:
        raise TypeError(
            f"optimizer made {described(made)}, which evaluates the loss several times per step; fit does so "
            "once: use one whose step() needs no closure, such as optimizer=torch.optim.Adam"
        )
    if isinstance(made, torch.optim.SparseAdam):
        raise TypeError(
            "optimizer made an object of SparseAdam, which needs sparse gradients: write "
            "optimizer=torch.optim.Adam"
        )
    held = {id(leaf) for group in made.param_groups for leaf in group["params"]}
    if held.isdisjoint(map(id, leaves)):
        raise ValueError(
            "optimizer made an optimizer of other tensors than the pair's parameters, so that nothing would be "
            f"trained; {_OPTIMIZER.expected}"
        )
    return made


def with_options(
    optimizer: Optimizer, parts: Iterable[tuple[str, Sequence[Tensor], Mapping[str, Any]]]
) -> None:
    """Gives some parameters settings of their own: they become a group of parameters.

    As torch's optimizers keep their state for each parameter, groups are as good as separate optimizers.

    Args:
        optimizer: An optimizer that has not yet taken a step.
        parts: Whose they are, for the error; the parameters; and their settings.

    Raises:
        ValueError: The optimizer has no such setting, or refuses its value.

    Example:
        >>> a, b = torch.zeros(1, requires_grad=True), torch.zeros(2, requires_grad=True)
        >>> adam = torch.optim.Adam([a, b], lr=0.1)
        >>> with_options(adam, [("turn 'b'", [b], {"betas": (0.5, 0.999)})])
        >>> [(group["lr"], group["betas"]) for group in adam.param_groups]
        [(0.1, (0.9, 0.999)), (0.1, (0.5, 0.999))]
    """
    for whose, parameters, options in parts:
        if not options:
            continue
        _require_settings(optimizer, whose, options)
        own = {id(parameter) for parameter in parameters}
        for group in list(optimizer.param_groups):
            taken = [p for p in group["params"] if id(p) in own]
            if not taken:
                continue
            left = [p for p in group["params"] if id(p) not in own]
            settings = {name: value for name, value in group.items() if name != "params"}
            if left:
                group["params"] = left
                optimizer.add_param_group({"params": taken, **settings, **options})
            else:
                group.update(options)


def _require_settings(optimizer: Optimizer, whose: str, options: Mapping[str, Any]) -> None:
    """Raises an error for settings that an optimizer does not have, or would refuse when it is made."""
    kind = type(optimizer)
    unknown = [name for name in options if name not in optimizer.defaults]
    if unknown:
        raise ValueError(
            f"{whose} has the option '{unknown[0]}', and {kind.__name__} has none of that name; it has "
            f"{', '.join(optimizer.defaults)}"
        )
    taken = inspect.signature(kind).parameters
    known = {name: value for name, value in optimizer.defaults.items() if name in taken}

    def make(**settings: Any) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            kind([torch.zeros(1, requires_grad=True)], **settings)

    try:
        make(**known)
    except Exception:  # a class of the user's own, which takes other arguments
        return
    try:
        make(**known | {name: value for name, value in options.items() if name in taken})
    except Exception as error:
        raise ValueError(
            f"{whose} has the options {dict(options)}, which {kind.__name__} refuses: {error}"
        ) from error


def with_own_rates(optimizer: Optimizer, rates: Sequence[tuple[Tensor, float]]) -> None:
    """Gives some parameters a learning rate of their own: each becomes a group of parameters.

    The groups have all other settings of the one that the parameter was in. Parameters that are not trained,
    and optimizers without a step size, are left alone.

    Args:
        optimizer: An optimizer that has not yet taken a step.
        rates: Parameters, and their learning rates in units of that of their group.

    Example:
        >>> a, b = torch.zeros(1, requires_grad=True), torch.zeros(2, requires_grad=True)
        >>> adam = torch.optim.Adam([a, b], lr=0.1)
        >>> with_own_rates(adam, [(b, 0.5)])
        >>> [(len(group["params"]), group["lr"]) for group in adam.param_groups]
        [(1, 0.1), (1, 0.05)]
    """
    for parameter, rate in rates:
        if rate == 1.0:
            continue
        for group in list(optimizer.param_groups):
            left = [p for p in group["params"] if p is not parameter]
            if len(left) == len(group["params"]) or "lr" not in group:
                continue
            settings = {name: value for name, value in group.items() if name != "params"}
            settings["lr"] = settings["lr"] * rate
            if left:
                group["params"] = left
                optimizer.add_param_group({"params": [parameter], **settings})
            else:
                group.update(settings)


def own_rates(modules: Iterable[object]) -> list[tuple[Tensor, float]]:
    """What modules say of the learning rates of their parameters, by a method `learning_rates`."""
    found = {
        id(parameter): (parameter, rate)
        for module in modules
        if callable(stated := own_attribute(module, "learning_rates"))
        for parameter, rate in stated()
    }
    return list(found.values())


def make_scheduler(
    optimizer: Optimizer,
    lr_scheduler: Callable[[Optimizer], LRScheduler | ReduceLROnPlateau] | None,
) -> LRScheduler | ReduceLROnPlateau | None:
    """The schedule of an optimizer; None if the user gave none.

    Raises:
        TypeError: `lr_scheduler` does not make a schedule of torch.
        ValueError: `lr_scheduler` has failed, or makes a schedule of another optimizer.
    """
    if lr_scheduler is None:
        return None
    if isinstance(lr_scheduler, PyroLRScheduler):
        raise _two_options("lr_scheduler", lr_scheduler)
    if "lr" not in optimizer.param_groups[0]:
        raise ValueError(
            f"lr_scheduler is given, but {type(optimizer).__name__} has no lr to change: leave it out"
        )
    made: LRScheduler | ReduceLROnPlateau = _SCHEDULE.make(lr_scheduler, optimizer, {})
    if getattr(made, "optimizer", optimizer) is not optimizer:
        raise ValueError(
            "lr_scheduler made a schedule of another optimizer than the one that it was called with; "
            f"{_SCHEDULE.expected}"
        )
    return made


def require_watched(objective: Objective, beta: object) -> None:
    """Looks whether a higher ELBO is what a training is after, as `ReduceLROnPlateau` takes it to be.

    Args:
        objective: What is maximized, of this pair.
        beta: The weight of the KL, which may always change, as that of a controller does.

    Raises:
        ValueError: It is not.
    """
    if objective.judged_by_elbo and objective.warmup_epochs < math.inf:
        return
    other = beta if objective.judged_by_elbo else objective
    raise ValueError(
        "lr_scheduler makes a ReduceLROnPlateau, which watches the ELBO, and a higher ELBO is not what "
        f"{type(other).__name__} is after: give a schedule of epochs, such as torch's CosineAnnealingLR"
    )


def step_scheduler(scheduler: Any, *watched: float) -> None:
    """Ends an epoch for a schedule.

    Raises:
        ValueError: The schedule fails, or makes a learning rate that is no number of at least 0.
    """
    what = f"lr_scheduler made {described(scheduler)}"
    try:
        scheduler.step(*watched)
        rates = [float(group.get("lr", 0.0)) for group in scheduler.optimizer.param_groups]
    except Exception as error:
        raise ValueError(f"{what}, whose step raised {type(error).__name__}: {error}") from error
    if not all(math.isfinite(rate) and rate >= 0 for rate in rates):
        raise ValueError(
            f"{what}, which set the learning rate to {rates[0]}; it must stay finite and at least 0"
        )


@dataclass(frozen=True)
class _Option:
    """An option of `fit` that is a function of one argument.

    Attributes:
        name: The option.
        argument: What the function is called with.
        kinds: What it must make.
        module: Where torch has classes of them.
        expected: What to give.
    """

    name: str
    argument: str
    kinds: tuple[type[Any], ...]
    module: ModuleType
    expected: str

    def make(self, function: Any, argument: object, settings: Mapping[str, Any]) -> Any:
        """Calls the function, and checks what it has made."""
        if (
            not callable(function)
            or isinstance(function, (*self.kinds, PyroOptim))
            or (inspect.isclass(function) and not issubclass(function, self.kinds))
            or (inspect.isfunction(function) and str(function.__module__).startswith("pyro.optim."))
        ):
            raise TypeError(f"{self.name} is {described(function)}; {self._instead_of(function)}")
        self._check_call(function, argument, settings)
        try:
            made = function(argument, **settings)
        except Exception as error:
            remedy = "" if self._class_of(function) else f"; {self.expected}"
            kind = TypeError if isinstance(error, TypeError) else ValueError
            raise kind(
                f"{self.name} is {described(function)}, which raised {type(error).__name__}: {error}{remedy}"
            ) from error
        if not isinstance(made, self.kinds):
            raise TypeError(f"{self.name} made {described(made)}; {self.expected}")
        return made

    def line(self, kind: Any, settings: Mapping[str, object]) -> str:
        """What to write for an optimizer or a schedule with these settings."""
        name = getattr(kind, "__name__", "...")
        of_torch = getattr(self.module, name, None) is kind
        path = f"{self.module.__name__ if of_torch else kind.__module__}.{name}"
        if settings.keys() <= {"lr"}:
            rate = "".join(f", learning_rate={value}" for value in settings.values())
            return f"{self.name}={path}{rate}"
        values = "".join(f", {name}={value}" for name, value in settings.items())
        return f"{self.name}=lambda {self.argument}: {path}({self.argument}{values})"

    def _class_of(self, function: Any) -> type[Any] | None:
        """The class that is called, if it is one of those of the option; of a partial, its class."""
        kind = getattr(function, "func", function)
        return kind if inspect.isclass(kind) and issubclass(kind, self.kinds) else None

    def _instead_of(self, given: Any) -> str:
        """What to write in place of something that is not a function."""
        if isinstance(given, self.kinds):
            line = self.line(type(given), _settings_of(given))
            return f"fit makes its own: write {line}"
        name = given if isinstance(given, str) else getattr(given, "__name__", "")
        known = {
            name.lower(): kind
            for name, kind in vars(self.module).items()
            if inspect.isclass(kind) and issubclass(kind, self.kinds) and kind not in self.kinds
        }
        kind = known.get(name.rpartition(".")[-1].lower())
        return self.expected if kind is None else f"write {self.line(kind, _required(kind))}"

    def _check_call(self, function: Any, argument: object, settings: Mapping[str, Any]) -> None:
        try:
            signature = inspect.signature(function)
        except ValueError:  # a built-in function
            return
        try:
            signature.bind(argument, **settings)
        except TypeError as error:
            call = ", ".join([self.argument, *(f"{n}={value}" for n, value in settings.items())])
            kind = self._class_of(function)
            if "'lr'" in str(error) and self is _OPTIMIZER:
                remedy = f"{'leave out' if settings else 'give'} learning_rate, which optimizer gets as lr"
            elif kind is None:
                remedy = self.expected
            else:
                given = {**getattr(function, "keywords", {}), **settings}
                remedy = f"write {self.line(kind, _required(kind) | given)}"
            raise TypeError(
                f"{self.name} is {described(function)}, which cannot be called with ({call}): {error}; {remedy}"
            ) from None


_OPTIMIZER = _Option(
    "optimizer",
    "parameters",
    (Optimizer,),
    torch.optim,
    "give a function that makes a torch optimizer of a list of tensors, such as optimizer=torch.optim.AdamW or "
    "optimizer=lambda parameters: torch.optim.AdamW(parameters, weight_decay=0.1), or one of Pyro, such as "
    "optimizer=pyro.optim.ClippedAdam({'lr': 0.001})",
)
_SCHEDULE = _Option(
    "lr_scheduler",
    "optimizer",
    (LRScheduler, ReduceLROnPlateau),
    torch.optim.lr_scheduler,
    "give a function that makes a schedule of torch from the optimizer, whose steps are epochs, such as "
    "lr_scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, step_size=10)",
)


def _constructor(optim: PyroOptim, settings: Mapping[str, Any]) -> Callable[..., Optimizer]:
    """The class and the arguments of one of Pyro's optimizers.

    Raises:
        TypeError: It does something that a single optimizer of torch does not.
        ValueError: It has a step size, and `learning_rate` is given.
    """
    make: Any = optim.pt_optim_constructor
    arguments = optim.pt_optim_args
    if isinstance(optim, PyroLRScheduler):
        raise _two_options("optimizer", optim)
    if type(optim) is not PyroOptim:
        raise TypeError(f"optimizer is {described(optim)}; {_OPTIMIZER.expected}")
    what = f"optimizer is pyro.optim's {getattr(make, '__name__', 'own')}"
    if not isinstance(arguments, dict):
        raise TypeError(
            f"{what} with arguments that depend on the parameter's name; give torch's groups of parameters, as "
            "in optimizer=lambda parameters: torch.optim.Adam([{'params': guide.parameters(), 'lr': 0.1}, ...])"
        )
    if optim.pt_clip_args:
        raise TypeError(
            f"{what} with clip_args, which clip the gradient of each parameter by itself; fit clips the "
            f"norm of the whole gradient: write {_OPTIMIZER.line(make, arguments)}, clip_grad_norm=..."
        )
    if optim.optim_objs or optim._state_waiting_to_be_consumed:
        raise TypeError(
            f"{what} with the state of an earlier training, which fit does not continue; make it again: "
            f"optimizer=pyro.optim.{getattr(make, '__name__', 'Adam')}({arguments})"
        )
    if "lr" in arguments and "lr" in settings:
        raise ValueError(
            f"{what} with lr={arguments['lr']}, and learning_rate={settings['lr']}: give one of the two"
        )
    return functools.partial(make, **arguments)


def _two_options(option: str, scheduler: PyroLRScheduler) -> TypeError:
    """Pyro's schedules hold the class of an optimizer, which fit takes apart from the schedule."""
    arguments = scheduler.pt_optim_args
    lines = (
        _OPTIMIZER.line(
            scheduler.pt_optim_constructor, arguments if isinstance(arguments, dict) else {}
        ),
        _SCHEDULE.line(scheduler.pt_scheduler_constructor, scheduler.kwargs),
    )
    return TypeError(
        f"{option} is pyro.optim's {scheduler.pt_scheduler_constructor.__name__}, an optimizer and its "
        f"schedule in one; fit takes the two apart: write {', '.join(lines)}"
    )


def _required(kind: type[Any]) -> dict[str, object]:
    """The arguments without a default, after the first."""
    parameters = list(inspect.signature(kind).parameters.values())[1:]
    return {p.name: "..." for p in parameters if p.default is p.empty}


def _settings_of(made: Any) -> dict[str, object]:
    """The arguments that make an optimizer or a schedule again: `lr`, and what is not the default."""
    values = made.defaults if isinstance(made, Optimizer) else vars(made)
    found = _required(type(made))
    for name, parameter in inspect.signature(type(made)).parameters.items():
        value = values.get(name, parameter.default)
        is_default = repr(value) == repr(parameter.default) and name != "lr"
        if isinstance(value, int | float | str | tuple) and not is_default and name != "last_epoch":
            found[name] = repr(value)
    return found
