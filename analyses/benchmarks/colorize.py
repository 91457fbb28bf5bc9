"""How fast are models of colors trained and applied, and how does memory grow with the picture?"""

from __future__ import annotations

import json
from typing import Any, Literal

from jsonargparse import auto_cli
from tqdm import tqdm
from workers import ENVIRONMENTS, Worker, median_seconds, processor, running, set_products

TRAINING = {
    "hand": "torch by hand",
    "hand-compiled": "torch by hand, torch.compile",
    "hand-ours": "torch by hand, log P(y given x) of the library",
    "fit-graph": "fit(compile=False)",
    "fit": "fit",
}
APPLYING = {
    "plain": "torch by hand, without tiles",
    "color_picture": "color_picture",
    "networks": "the networks alone",
}
KINDS = ("Palette", "PictureColors")
SIZES = ((500, 375), (1000, 750), (2000, 1500), (4000, 3000))


class Lab:
    """Starts contenders, with the settings that all have in common.

    Args:
        settings: Fields of `colorists.Settings`.
    """

    def __init__(self, **settings: Any) -> None:
        self.settings = settings

    def start(self, name: str, **settings: Any) -> Worker:
        """A contender, in a process of its own."""
        given = {**self.settings, **settings}
        arguments = [json.dumps(given)]
        threads, device = given["threads"], given["device"]
        return Worker(name, "colorists.py", arguments, threads, ENVIRONMENTS, device)

    def race(
        self, names: list[str], rounds: int, warm_up: int, count: int, **settings: Any
    ) -> dict[str, list[float]]:
        """Median seconds, peak of the memory in MiB, and the first answer, by contender.

        Args:
            names: The contenders.
            rounds: Turns of each. They take turns, in another order each time.
            warm_up: Turns before.
            count: Steps or pictures per turn.
            settings: Fields of `colorists.Settings`.
        """
        with running() as workers:
            for name in tqdm(names, desc="start", leave=False):
                workers.append(self.start(name, **settings))
                for _ in range(warm_up):
                    workers[-1].ask(count)
            seconds = median_seconds(workers, dict.fromkeys(names, count), rounds)
            return {w.name: [seconds[w.name], w.ask(0), w.first] for w in workers}


def require_same(what: str, found: dict[str, float], tolerance: float) -> None:
    """Raises an error if contenders do not compute the same.

    Raises:
        RuntimeError: A number is further from the first one than the tolerance.
    """
    first, *_ = found.values()
    if any(not abs(value - first) <= tolerance for value in found.values()):
        raise RuntimeError(f"{what} should be the same for all contenders, got {found}")


def training(
    lab: Lab, kind: str, contenders: list[str], patch: int, rounds: int, warm_up: int, steps: int
) -> None:
    """Prints the table of one kind of colors."""
    size = {"height": patch, "width": patch}
    found = lab.race(contenders, rounds, warm_up, steps, colors=kind, **size)
    losses = {name: values[2] for name, values in found.items()}
    require_same("the loss of the first batch", losses, 1e-4 * abs(losses["fit"]))
    on_gpu = lab.settings["device"] == "cuda"  # what a process has already is used again
    batch = lab.settings["batch_size"]
    titles = ["", "patches per second", "`fit` takes, of its time", "loss, nats per pixel"]
    titles += ["GPU memory, MiB"] if on_gpu else []
    print(f"\ntraining, {kind}, patches of {patch} x {patch}, {batch} per step\n")
    print(f"| {' | '.join(titles)} |\n| {' | '.join('---' for _ in titles)} |")
    for name, (seconds, peak, loss) in found.items():
        cells = [TRAINING[name], f"{batch / seconds:.1f}", f"{found['fit'][0] / seconds:.2f}"]
        cells += [f"{loss:.5f}", *([f"{peak:.0f}"] if on_gpu else [])]
        print("|", " | ".join(cells), "|", flush=True)


def applying(lab: Lab, kind: str, size: tuple[int, int], rounds: int) -> None:
    """Prints the table of one kind of colors."""
    width, height = size
    found = lab.race([*APPLYING], rounds, 1, 1, colors=kind, height=height, width=width)
    colors = {name: values[2] for name, values in found.items() if name != "networks"}
    require_same("the mean of a small picture", colors, 1e-2)  # levels of chroma
    print(f"\napplying, {kind}, photos of {width} x {height}\n")
    print("| | photos per second | `color_picture` takes, of its time |")
    print("| --- | --- | --- |")
    for name, (seconds, *_) in found.items():
        ratio = found["color_picture"][0] / seconds
        print(f"| {APPLYING[name]} | {1 / seconds:.2f} | {ratio:.2f} |", flush=True)


def memory(lab: Lab, kind: str, sizes: list[tuple[int, int]], most_gib: float) -> None:
    """Prints the table of one kind of colors."""
    names = ("color_picture", "plain")
    print(f"\nmemory beyond that of a 64 x 64 picture, MiB, {kind}\n")
    print("| photo | " + " | ".join(f"{APPLYING[name]} | s" for name in names) + " |")
    print("| --- | --- | --- | --- | --- |")
    per_pixel = dict.fromkeys(names, 0.0)
    for width, height in sizes:
        cells = [f"{width} x {height}"]
        for name in names:
            expected = per_pixel[name] * width * height
            if name == "plain" and expected > 1024 * most_gib:
                cells += [f"left out, about {expected:.0f}", ""]
                continue
            worker = lab.start(name, colors=kind, height=height, width=width)
            try:
                seconds, peak = worker.ask(1), worker.ask(0)
            finally:
                worker.stop()
            per_pixel[name] = peak / (width * height)
            cells += [f"{peak:.0f}", f"{seconds:.2f}"]
        print("|", " | ".join(cells), "|", flush=True)


def main(
    widths: list[int] = [16, 32, 64],  # noqa: B006 - not changed
    segments: int = 8,
    kinds: list[str] = list(KINDS),  # noqa: B006
    contenders: list[str] = list(TRAINING),  # noqa: B006
    patch: int = 64,
    batch_size: int = 16,
    steps: int = 20,
    warm_up: int = 3,
    rounds: int = 7,
    photo: tuple[int, int] = SIZES[0],
    sizes: list[tuple[int, int]] = list(SIZES),  # noqa: B006
    most_gib: float = 6.0,
    threads: int = 2,
    device: Literal["cpu", "cuda"] = "cpu",
    tf32: bool = False,
) -> None:
    """Prints pictures per second, and ratios, of `fit`, `color_picture` and torch by hand; and their memory.

    The model is `IndependentSegments`, its guide `Exact`. `fit` is compiled from the start, as it is by itself
    from the 1,000th step of a long training on. All contenders must compute the same loss, to 1e-4 of it.

    Args:
        widths: Channels of the stages of each U-Net.
        segments: Number K of segments.
        kinds: Which colors: `Palette`, `PictureColors`.
        contenders: Those that train; `fit` must be one of them.
        patch: Side of the patches to train on.
        batch_size: Patches per step.
        steps: Steps per turn, which is an epoch.
        warm_up: Turns before, in which `fit` records and compiles.
        rounds: Turns of each contender; medians are reported.
        photo: Width and height of the photo that is colored.
        sizes: Widths and heights of the photos whose memory is measured.
        most_gib: Larger photos are left out by hand, if they would need more memory than this.
        threads: Threads of each contender.
        device: Where to train and to color; memory is that of the GPU there.
        tf32: Whether float32 products on a GPU are TF32's.
    """
    unknown = (set(contenders) - set(TRAINING)) | (set(kinds) - set(KINDS))
    if unknown or "fit" not in contenders:
        raise ValueError(
            f"contenders are of {list(TRAINING)}, `fit` among them, and kinds of {list(KINDS)}; got "
            f"{contenders} and {kinds}"
        )
    set_products(tf32)
    common = {"widths": widths, "segments": segments, "batch_size": batch_size, "steps": steps}
    lab = Lab(**common, threads=threads, device=device)
    for kind in kinds:
        training(lab, kind, contenders, patch, rounds, warm_up, steps)
    for kind in kinds:
        applying(lab, kind, photo, rounds)
    for kind in kinds:
        memory(lab, kind, sizes, most_gib)
    machine = f"{processor()}, {threads} thread(s), {device}"
    print(f"\n{machine}, K = {segments}, U-Net widths {widths}, medians of {rounds} turns")


if __name__ == "__main__":
    auto_cli(main, as_positional=False)
