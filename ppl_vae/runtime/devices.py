"""Devices: which one a name means, where tensors are, and the fabric that a training runs on."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor

from ppl_vae.runtime.descriptions import described, require_count
from ppl_vae.runtime.safe_path import safe_children

if TYPE_CHECKING:
    from lightning_fabric import Fabric

Precision = Literal["32-true", "bf16-mixed"]

_DEVICES = "'auto', 'cpu', 'cuda', 'cuda:1' ... or 'mps'"


_FEW_PROCESSES = 8
"""So many may share a core, to try how a training with several goes."""


def device_of(tensors: Iterable[Tensor]) -> torch.device:
    """The device of the first tensor, or the CPU."""
    for tensor in tensors:
        return tensor.device
    return torch.device("cpu")


def resolve_device(name: str | torch.device) -> torch.device:
    """The device of a name.

    Args:
        name: `auto` (a CUDA GPU if there is one), `cpu`, `cuda`, `cuda:1` or `mps`; or a device of torch.

    Raises:
        TypeError: It is no name.
        ValueError: There is no such device, or torch cannot see it.

    Example:
        >>> resolve_device("cpu")
        device(type='cpu')
    """
    if isinstance(name, torch.device):
        name = str(name)
    if not isinstance(name, str):
        raise TypeError(f"device must be {_DEVICES}, got {described(name)}")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.partition(":")[0] not in ("cpu", "cuda", "mps"):
        raise ValueError(f"device={name!r}: expected {_DEVICES}")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(
            f"device={name!r}: after the colon, the GPU's number is expected"
        ) from error
    found = torch.cuda.device_count()
    if device.type == "cuda" and not found:
        raise ValueError(f"device={name!r}, but torch sees no GPU: use device='auto' or 'cpu'")
    if device.type == "cuda" and device.index is not None and device.index >= found:
        raise ValueError(f"device={name!r}, but the last GPU that torch sees is 'cuda:{found - 1}'")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(
            f"device={name!r}, but torch sees no Apple GPU: use device='auto' or 'cpu'"
        )
    return torch.device("cpu") if device.type == "cpu" else device


def make_fabric(
    device: str = "auto",
    precision: Precision = "32-true",
    num_processes: int = 1,
    num_nodes: int = 1,
) -> Fabric:
    """The device, the precision and the processes of a training, as a launched Lightning Fabric.

    `fit(..., fabric=make_fabric("cuda", "bf16-mixed", num_processes=4))` trains on four GPUs. With several
    processes, the script is started again for each further one.

    Args:
        device: As for `resolve_device`. With several processes, `cuda` gives each of them a GPU.
        precision: `32-true`, or `bf16-mixed` for bfloat16 autocast.
        num_processes: Processes per machine; each global batch is divided among them.
        num_nodes: Machines.

    Raises:
        TypeError: A number of processes or machines is not whole.
        ValueError: There is no such device or precision, a number of processes or machines is not positive, or
            several processes are to share one GPU; there are more processes than the machine is good for, or
            nothing says where the other machines are.

    Example:
        >>> make_fabric("cpu").world_size
        1
    """
    from lightning_fabric import Fabric

    if precision not in get_args(Precision):
        raise ValueError(f"precision must be one of {get_args(Precision)}, got {precision!r}")
    require_count("num_processes", num_processes)
    require_count("num_nodes", num_nodes)
    chosen = resolve_device(device)
    several = num_processes * num_nodes > 1
    _require_room(chosen, num_processes)
    if num_nodes > 1 and "MASTER_ADDR" not in os.environ and not _in_cluster():
        raise ValueError(
            f"num_nodes={num_nodes}, but nothing says where the other machines are: set MASTER_ADDR (the "
            "first one), MASTER_PORT and NODE_RANK on each, or start by torchrun or srun"
        )
    if several and chosen.index is not None:
        raise ValueError(f"device={device!r} is one GPU: use device='cuda' for several processes")
    fabric = Fabric(
        accelerator=chosen.type,
        devices=num_processes if chosen.index is None else [chosen.index],
        num_nodes=num_nodes,
        strategy="ddp" if several else "auto",
        precision=precision,
    )
    with safe_children(sys.flags.safe_path):  # what is started again does not get -P by itself
        fabric.launch()
    return fabric


def _require_room(device: torch.device, num_processes: int) -> None:
    """Raises an error for more processes than the machine can do anything with."""
    if device.type == "cuda":
        most, have = torch.cuda.device_count(), "GPU(s) that torch sees"
    else:
        most, have = os.cpu_count() or 1, "core(s)"
    if num_processes > max(most, 1 if device.type == "cuda" else _FEW_PROCESSES):
        raise ValueError(
            f"num_processes={num_processes:,} is more than this machine can use, which has {most} {have}"
        )


def _in_cluster() -> bool:
    """Whether a launcher has told the processes of several machines of each other."""
    from lightning_fabric.plugins import environments

    kinds = ("TorchElasticEnvironment", "SLURMEnvironment", "LSFEnvironment", "MPIEnvironment")
    return any(getattr(environments, kind).detect() for kind in kinds)
