"""Programs run in double precision on the CPU, in one thread: the same numbers for who writes and who reads."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import pyro
import torch
from torch import Tensor, nn

from ppl_vae.pairs import Batch, Pair, signature_of, trace_pair
from ppl_vae.runtime import digest


@contextmanager
def exact_arithmetic(pair: Pair, double: bool) -> Iterator[None]:
    """Brings all parameters and buffers of a pair to the CPU and, if wanted, to double precision; then back.

    With several threads, where each begins could change the last digit. Call it inside of `pair.scope()`, after
    the programs have run once.

    Args:
        pair: The pair.
        double: Whether to compute in double precision.
    """
    modules = {id(m): m for root in pair.modules().values() for m in root.modules()}.values()
    leaves: dict[int, Tensor] = {
        id(p): p for m in modules for p in m._parameters.values() if p is not None
    }
    leaves |= {id(p): p for _, p in pyro.get_param_store().named_parameters()}
    buffers = [(m, n, b) for m in modules for n, b in m._buffers.items() if b is not None]
    before = [(p, p.data) for p in leaves.values()]
    threads = torch.get_num_threads()

    def moved(tensor: Tensor) -> Tensor:
        tensor = tensor.detach().cpu()
        return tensor.double() if double and tensor.is_floating_point() else tensor

    with torch.inference_mode(False), torch.no_grad(), torch.autocast("cpu", enabled=False):
        try:
            torch.set_num_threads(1)
            for p, data in before:
                p.data = moved(data)
            for module, name, buffer in buffers:
                module._buffers[name] = moved(buffer)
            yield
        finally:
            torch.set_num_threads(threads)
            for p, data in before:
                p.data = data
            for module, name, buffer in buffers:
                module._buffers[name] = buffer


def name_of(pair: Pair, batch: Batch) -> bytes:
    """A name of a pair: a digest of its classes, parameters and buffers, and sites.

    Args:
        pair: The pair, inside of `exact_arithmetic`.
        batch: The rows to run it on; their values do not count.
    """
    words = []
    tensors: list[Tensor] = []
    for program, root in sorted(pair.modules().items()):
        words.append(f"{program} {_classes(root)}")
        for name, tensor in sorted(root.state_dict().items()):
            words.append(name)
            tensors.append(tensor)
    for name, tensor in sorted(pyro.get_param_store().named_parameters()):
        words.append(name)
        tensors.append(tensor)
    with torch.random.fork_rng():
        words.append(repr(signature_of(*trace_pair(pair, batch))))
    words.append(digest(tensors))
    return hashlib.sha256("\n".join(words).encode()).digest()[:8]


def _classes(root: nn.Module) -> str:
    return " ".join(type(module).__name__ for module in root.modules())
