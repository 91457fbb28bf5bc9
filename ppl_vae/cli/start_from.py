"""`ppl-vae train --start_from RUN`: a new pair takes the weights of a trained one before its training.

Only the file of weights is read: what RUN's config.yaml names is not imported.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ppl_vae.cli.mistakes import UsageError, did_you_mean
from ppl_vae.cli.output import counted
from ppl_vae.cli.setup import Setup
from ppl_vae.cli.start import require_apart
from ppl_vae.objectives import VAEDisLoss
from ppl_vae.pairs import Batches, Pair, transformed
from ppl_vae.runs import CONFIG, config_file, constraints_of, read_state
from ppl_vae.runtime import as_typed, preserve_random_state

_JUDGE = "model.discriminator"
"""The part that `VAEDisLoss` needs trained, and does not train."""

_PARAM = "param."


@dataclass(frozen=True)
class StartFrom:
    """What a new pair starts from.

    Attributes:
        run: The folder of the run, as it was typed.
        parts: The parts that are taken, by dotted names; empty: all of both programs.
    """

    run: Path
    parts: tuple[str, ...] = ()

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> StartFrom | None:
        """What options say; None if they name no run.

        Raises:
            UsageError: There are parts and no run, or an empty name.
            FileNotFoundError: There is no such run.
        """
        run, text = options.get("start_from"), options.get("start_parts")
        if run is None:
            if text is not None:
                raise UsageError(
                    f"--start_parts {text}: name the run, too, whose parts these are: --start_from RUN"
                )
            return None
        parts = () if text is None else tuple(part.strip() for part in text.split(","))
        if not all(all(part.split(".")) for part in parts):
            raise UsageError(
                f"--start_parts {text}: expected dotted names with commas between them, such as "
                f"{_JUDGE},guide.encoder"
            )
        config_file(Path(run))
        return cls(Path(run), tuple(dict.fromkeys(parts)))

    def require_kept(self, target: str | None) -> None:
        """Raises an error if the new run would replace this one, or be inside of it."""
        if target is not None:
            require_apart(Path(target), self.run, "the run whose weights are taken")

    def load(self, setup: Setup) -> tuple[Setup, list[str]]:
        """Puts the weights of the run into the new pair.

        Returns:
            The setup with that pair, and what was taken, in words.

        Raises:
            UsageError: A part is missing in one of the two, or names or shapes differ.
            FileNotFoundError: The run has no weights.
            CorruptFileError: They are damaged.
        """
        pair = _known_pair(setup)
        comparison = _Comparison(self.run, pair)
        parts = {part: comparison.of_part(part) for part in self.parts}
        taken = parts or comparison.of_all()
        names = {name for part in taken.values() for name in part}
        pair.load_state(  # in the precision of the new pair
            {name: comparison.there[name].to(comparison.here[name].dtype) for name in names}
        )
        model, guide = pair.bound()
        told = [_told(part, [comparison.there[n] for n in each]) for part, each in taken.items()]
        return replace(setup, model=model, guide=guide), told

    def covers(self, part: str) -> bool:
        """Whether a part is among those that are taken."""
        return not self.parts or any(f"{part}.".startswith(f"{own}.") for own in self.parts)


def random_judge(setup: Setup, start: StartFrom | None) -> str:
    """What is wrong with a discriminator that was not trained and will not be; empty if nothing is."""
    if not isinstance(setup.objective, VAEDisLoss) or (start is not None and start.covers(_JUDGE)):
        return ""
    model = str(setup.config["model"]["class_path"]).removeprefix("ppl_vae.models.")
    return (
        f"VAEDisLoss judges by the features of {_JUDGE}, which are those of random weights here, and does not "
        f"train them. Train it first, with the same data and model, `ppl-vae train --model {model} --objective "
        f"GANLoss --run_dir runs/gan`; then add --start_from runs/gan --start_parts {_JUDGE}"
    )


def _known_pair(setup: Setup) -> Pair:
    """The new pair, whose parameters are all there: some are made when a program runs."""
    pair = Pair.of(setup.model, setup.guide)
    with preserve_random_state(), pair.scope():
        batches = Batches(setup.data.train, pair)
        x = batches.rows if pair.keeps_rows else batches.first(64)
        pair.parameters(x if setup.data.transform is None else transformed(x, setup.data.transform))
    return pair


class _Comparison:
    """The numbers of a new pair beside those of a run.

    Args:
        run: The folder of the run.
        pair: The new pair.

    Attributes:
        here: The tensors of the new pair by name.
        there: Those of the run.
    """

    def __init__(self, run: Path, pair: Pair) -> None:
        self.run = run
        self.here = pair.state()
        self.there, self._constraints_there = read_state(run)
        self._constraints_here = constraints_of(pair)

    def of_all(self) -> dict[str, list[str]]:
        """The names of all tensors, by program.

        Raises:
            UsageError: The two are not alike.
        """
        if wrong := self._difference([*self.here, *self.there]):
            found = self._alike()
            alike = ",".join(p for p in found if p.rpartition(".")[0] not in found)
            parts = f", or take the parts that are alike: --start_parts {alike}" if alike else ""
            raise UsageError(
                f"--start_from {self.run}: {wrong}. Build the new pair with the options of that run (--config "
                f"{as_typed(self.run / CONFIG)} ahead of the others){parts}"
            )
        roots = dict.fromkeys(name.partition(".")[0] for name in self.here)
        return {root: _names(root, self.here) for root in roots}

    def of_part(self, part: str) -> list[str]:
        """The names of the tensors of a part.

        Raises:
            UsageError: One of the two lacks it, or they are not alike.
        """
        here, there = _names(part, self.here), _names(part, self.there)
        if not here or not there:
            # A hint at another part helps against a slip alone, and not where one of the two has this one.
            hint = "" if here or there else did_you_mean(part, _parts(self.here))
            alike = ", ".join(self._alike())
            parts = f"alike in both are {alike}" if alike else "no part is alike in both"
            raise UsageError(
                f"--start_parts {part}: {self._who_lacks(bool(here), bool(there))}{hint}; {parts}"
            )
        if wrong := self._difference([*here, *there]):
            raise UsageError(
                f"--start_parts {part}: {wrong}. Build this part with the options that "
                f"{as_typed(self.run / CONFIG)} says, or leave it out"
            )
        return here

    def _who_lacks(self, here: bool, there: bool) -> str:
        """Which of the two has no part of a name, by whether it has one."""
        if here:
            return f"{self.run} has no such part, and the new pair has it"
        if there:
            return f"the new pair has no such part, and {self.run} has it"
        return f"neither the new pair nor {self.run} has such a part"

    def _alike(self) -> list[str]:
        """The parts that both have alike: programs, and the parts that these consist of."""
        return [
            part
            for part in _parts(self.here)
            if part.count(".") <= 1
            and not self._difference([*_names(part, self.here), *_names(part, self.there)])
        ]

    def _difference(self, names: Collection[str]) -> str:
        """The first difference between tensors of these names, in words; empty if there is none."""
        for name in names:
            if name not in self.there:
                return f"the new pair has {name}, of shape {_shape(self.here[name])}, and the run has not"
            if name not in self.here:
                return f"the run has {name}, of shape {_shape(self.there[name])}, and the new pair has not"
            if self.here[name].shape != self.there[name].shape:
                return (
                    f"{name} has shape {_shape(self.here[name])} in the new pair, and "
                    f"{_shape(self.there[name])} in the run"
                )
            own = name.removeprefix(_PARAM)
            if name != own and self._constraints_here.get(own) != self._constraints_there.get(own):
                return f"{name} has another constraint in the new pair than in the run"
        return ""


def _shape(tensor: Tensor) -> tuple[int, ...]:
    return tuple(tensor.shape)


def _names(part: str, tensors: Collection[str]) -> list[str]:
    """The names in a part: what is below it, or a tensor itself."""
    return [name for name in tensors if name == part or name.startswith(f"{part}.")]


def _parts(names: Collection[str]) -> list[str]:
    """All parts that there are, with those inside of them."""
    return [*dict.fromkeys(part for name in names for part in _above(name))]


def _above(name: str) -> Iterator[str]:
    words = name.split(".")
    for end in range(1, len(words) + 1):
        yield ".".join(words[:end])


def _told(part: str, tensors: Collection[Tensor]) -> str:
    total = sum(tensor.numel() for tensor in tensors)
    return f"{part}, {counted(len(tensors), 'tensor')}, {total:,} number{'' if total == 1 else 's'}"
