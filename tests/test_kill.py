"""A part of `kill.py`: killed commands leave what was there, or what can be finished to the same bits."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from kill import SIGNALS, Killer, Workplace, run_script

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs POSIX signals")


@pytest.fixture(scope="module")
def killer(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Killer]:
    """Scenarios by name, each run once unkilled."""
    workplace = Workplace(tmp_path_factory.mktemp("killed"))
    made: dict[str, Killer] = {}

    def get(name: str) -> Killer:
        if name not in made:
            made[name] = Killer(workplace, name)
        return made[name]

    return get


def swapping(killer: Killer) -> range:
    """The events from the first of a swap to the last, and those beside them."""
    of_swap = [
        i
        for i, event in enumerate(killer.events)
        if "/.ppl_vae-old" in event or "/.ppl_vae-replaced" in event
    ]
    return range(of_swap[0] - 1, of_swap[-1] + 2)


def every(few: int, *more: int) -> pytest.MarkDecorator:
    """How many events there are from one kill to the next: in the fast suite, and in the slow one."""
    slow = [pytest.param(stride, marks=pytest.mark.slow) for stride in more]
    return pytest.mark.parametrize("stride", [few, *slow])


@every(9, 1)
def test_a_pair_saved_over_a_run_is_killed_in_its_swap(
    stride: int, killer: Callable[[str], Killer]
) -> None:
    saved = killer("save_run")
    assert len(swapping(saved)) > 20
    for n in swapping(saved)[::stride]:
        saved.at_event(n)


@pytest.mark.slow
def test_a_pair_saved_over_a_run_is_killed_at_events(killer: Callable[[str], Killer]) -> None:
    saved = killer("save_run")
    for n in range(0, len(saved.events), 4):
        saved.at_event(n)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "stride"), [("TERM", 5), ("INT", 1)])
def test_a_pair_saved_over_a_run_is_interrupted_in_its_swap(
    name: str, stride: int, killer: Callable[[str], Killer]
) -> None:
    saved = killer("save_run")
    for n in swapping(saved)[::stride]:
        saved.at_event(n, SIGNALS[name])


@pytest.mark.slow
@every(30, 6)
def test_a_training_over_a_run_is_killed_in_its_swap(
    stride: int, killer: Callable[[str], Killer]
) -> None:
    overwritten = killer("train --overwrite")
    for n in swapping(overwritten)[::stride]:
        overwritten.at_event(n)


@pytest.mark.slow
@every(15, 2)
def test_a_longer_training_is_killed_between_its_weights_and_its_results(
    stride: int,
    killer: Callable[[str], Killer],
) -> None:
    longer = killer("train --resume")
    written = [
        i
        for i, event in enumerate(longer.events)
        if any(f"/run/.{name}" in event for name in ("weights", "evaluation", "diagnosis"))
    ]
    assert len(written) > 8
    for n in range(written[0], written[-1] + 3, stride):
        longer.at_event(n)


@every(16, 4)
def test_a_result_is_killed_at_events(stride: int, killer: Callable[[str], Killer]) -> None:
    diagnosed = killer("diagnose")
    for n in range(0, len(diagnosed.events), stride):
        diagnosed.at_event(n)


def test_a_new_run_is_killed_while_its_first_file_is_written(
    killer: Callable[[str], Killer],
) -> None:
    refitted = killer("refit")
    of_config = [i for i, event in enumerate(refitted.events) if "/run/.config" in event]
    refitted.at_event(of_config[0] + 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    "scenario",
    [
        "evaluate",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("train", "train --resume", "train --overwrite", "refit", "refit-prior")
        ),
    ],
)
def test_random_moments(scenario: str, killer: Callable[[str], Killer]) -> None:
    seed = int(time.time())  # others each time: none of them may matter
    print(f"the seed of the moments is {seed}")  # which pytest shows if the test fails
    moments = random.Random(seed)
    for which in SIGNALS.values():
        killer(scenario).at_random(moments, which, most=1)


@pytest.mark.slow
def test_two_hundred_kills(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run_script(["--kills", "200", "--events"]) == 0, capsys.readouterr().err
