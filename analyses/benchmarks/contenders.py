"""The ways to train one VAE that `training.py` times, each in a process of its own.

`training.py` runs it with the interpreter of an environment that has what the contender needs:
`python contenders.py NAME NETWORK BATCH_SIZE THREADS DEVICE`. It prints the seconds of the first step, counted
from the moment when data and model exist.
Then it reads numbers of steps, and prints the seconds of one step each time.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

ROWS = 60_000
LATENT = 50
LEARNING_RATE = 1e-3

Turn = Callable[[int], int]
"""Ends a turn of so many steps, waits for the next one, and returns its number of steps."""

Start = Callable[[int, Turn], None]
"""Trains with a batch size, turn after turn; makes data and model before it asks for the first turn."""


def torch_data(device: str = "cpu") -> Any:
    """As many rows as MNIST has; their content does not matter here."""
    import torch

    generator = torch.Generator().manual_seed(0)
    return (torch.rand(ROWS, 784, generator=generator) < 0.15).float().to(device)


# -- hand-written torch ----------------------------------------------------------------------------------


def hand_written(
    network: str, device: str, fused: bool, compiled: bool = False, mixed: bool = False
) -> Start:
    """The loop that a torch user writes by hand: two modules, a loss, a loop over a permutation.

    On a GPU the rows stay there, and the compiled loss is replayed as CUDA graphs (`reduce-overhead`).
    """
    import torch
    from torch import nn
    from torch.nn import functional as F

    if network == "mlp":
        encoder: Any = nn.Sequential(nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 2 * LATENT))
        decoder: Any = nn.Sequential(nn.Linear(LATENT, 400), nn.ReLU(), nn.Linear(400, 784))
        shape: tuple[int, ...] = (784,)
    else:
        encoder, decoder = convolutional_parts()
        shape = (1, 28, 28)

    encoder.to(device), decoder.to(device)

    def loss(x: Any) -> Any:
        with torch.autocast(device, torch.bfloat16, enabled=mixed):
            loc, log_variance = encoder(x).float().chunk(2, -1)
            z = loc + (0.5 * log_variance).exp() * torch.randn_like(loc)
            logits = decoder(z).float()
        cross_entropy = F.binary_cross_entropy_with_logits(logits, x, reduction="sum")
        kl = 0.5 * (loc.square() + log_variance.exp() - log_variance - 1).sum()
        return (cross_entropy + kl) / len(x)

    def start(batch_size: int, turn: Turn) -> None:
        data = torch_data(device).reshape(ROWS, *shape)
        parameters = [*encoder.parameters(), *decoder.parameters()]
        optimizer = torch.optim.Adam(parameters, lr=LEARNING_RATE, fused=fused)
        mode = "reduce-overhead" if device == "cuda" else None
        objective = torch.compile(loss, mode=mode) if compiled else loss
        batches = endless(data, batch_size)

        def steps(count: int) -> None:
            total = 0.0
            for _ in range(count):
                optimizer.zero_grad(set_to_none=True)
                value = objective(next(batches))
                value.backward()
                optimizer.step()
                total += value.item()

        count = 0
        while True:
            count = turn(count)
            steps(count)

    return start


def convolutional_parts() -> tuple[Any, Any]:
    """The layers of `ppl_vae.networks.Convolutional()`, written out."""
    from torch import nn

    encoder: list[Any] = []
    for before, after in ((1, 32), (32, 64), (64, 128)):
        encoder += [nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False)]
        encoder += [nn.BatchNorm2d(after), nn.LeakyReLU()]
    encoder += [nn.Flatten(), nn.Linear(2048, 256), nn.LeakyReLU(), nn.Linear(256, 2 * LATENT)]
    decoder: list[Any] = [nn.Linear(LATENT, 256), nn.LeakyReLU(), nn.Linear(256, 2048)]
    decoder += [nn.LeakyReLU(), nn.Unflatten(1, (128, 4, 4))]
    for before, after, more in ((128, 64, 0), (64, 32, 1)):
        decoder += [nn.ConvTranspose2d(before, after, 3, 2, 1, output_padding=more, bias=False)]
        decoder += [nn.BatchNorm2d(after), nn.LeakyReLU()]
    decoder += [nn.ConvTranspose2d(32, 1, 3, 2, 1, output_padding=1)]
    return nn.Sequential(*encoder), nn.Sequential(*decoder)


def endless(data: Any, batch_size: int) -> Any:
    """Batches of shuffled rows, epoch after epoch."""
    import torch

    while True:
        order = torch.randperm(len(data), device=data.device)
        for first in range(0, len(data) - batch_size + 1, batch_size):
            yield data.index_select(0, order[first : first + batch_size])


# -- Pyro and ppl_vae: the same, unmodified pair ---------------------------------------------------------


def pair(network: str) -> tuple[Any, Any, tuple[int, ...]]:
    """The VAE as a Pyro model/guide pair."""
    from ppl_vae.guides import MeanField
    from ppl_vae.models import VAE
    from ppl_vae.networks import MLP, Convolutional

    kind: Any = MLP(hidden=(400,)) if network == "mlp" else Convolutional(channels=(32, 64, 128))
    shape = (784,) if network == "mlp" else (1, 28, 28)
    return VAE(shape, LATENT, kind), MeanField(shape, LATENT, kind), shape


def pyro_svi(network: str, device: str) -> Start:
    """Pyro as its tutorials use it."""
    import pyro
    from pyro import optim
    from pyro.infer import SVI, TraceMeanField_ELBO

    model, guide, shape = pair(network)
    model.to(device), guide.to(device)

    def register_model(x: Any) -> None:
        pyro.module("model", model)
        model(x)

    def register_guide(x: Any) -> None:
        pyro.module("guide", guide)
        guide(x)

    def start(batch_size: int, turn: Turn) -> None:
        pyro.enable_validation(False)
        data = torch_data(device).reshape(ROWS, *shape)
        optimizer = optim.Adam({"lr": LEARNING_RATE})  # type: ignore[attr-defined]
        svi = SVI(register_model, register_guide, optimizer, TraceMeanField_ELBO())
        batches = endless(data, batch_size)

        def steps(count: int) -> None:
            for _ in range(count):
                svi.step(next(batches))

        count = 0
        while True:
            count = turn(count)
            steps(count)

    return start


def ours(network: str, device: str, mixed: bool = False, **options: Any) -> Start:
    """`fit` as it is, or with autocast to bfloat16.

    It ends its turns by what users can give: a schedule of the learning rate, which is asked after each epoch.
    If it does not compile, a hook of the optimizer counts the steps, as an epoch would take long.
    """
    import torch

    from ppl_vae import fit
    from ppl_vae.runtime import make_fabric

    model, guide, shape = pair(network)
    given: dict[str, Any] = {"device": device}
    if mixed:
        given = {"fabric": make_fabric(device, "bf16-mixed")}

    def start(batch_size: int, turn: Turn) -> None:
        data = torch_data().reshape(ROWS, *shape)
        left = turn(0)
        asked, whole_epochs = left, not options
        handle: Any = None

        def count(*_: Any) -> None:
            nonlocal left, asked
            left -= 1
            if left == 0:
                left = asked = turn(asked)
                if whole_epochs:
                    handle.remove()

        def adam(leaves: Any, lr: float) -> Any:
            nonlocal handle
            made = torch.optim.Adam(leaves, lr=lr, fused=True)
            handle = made.register_step_post_hook(count)
            return made

        def factor(epoch: int) -> float:
            if epoch and whole_epochs:
                turn(ROWS // batch_size)
            return 1.0

        fit(
            model,
            guide,
            data,
            batch_size=batch_size,
            max_epochs=1_000_000,
            learning_rate=LEARNING_RATE,
            optimizer=adam,
            lr_scheduler=lambda made: torch.optim.lr_scheduler.LambdaLR(made, factor),
            progress=False,
            **given,
            **options,
        )

    return start


# -- other libraries -------------------------------------------------------------------------------------


def numpyro_epoch(network: str, device: str) -> Start:
    """NumPyro with the whole loop over batches jitted, as in its VAE example; `Worker` sets the device."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import numpyro
    import numpyro.distributions as dist
    from jax.example_libraries import stax
    from numpyro import optim
    from numpyro.infer import SVI, TraceMeanField_ELBO

    assert network == "mlp"
    assert jax.default_backend() == ("gpu" if device == "cuda" else "cpu")
    encode = stax.serial(
        stax.Dense(400),
        stax.Relu,
        stax.FanOut(2),
        stax.parallel(stax.Dense(LATENT), stax.serial(stax.Dense(LATENT), stax.Exp)),
    )
    decode = stax.serial(stax.Dense(400), stax.Relu, stax.Dense(784))

    def model(x: Any) -> None:
        decoder = numpyro.module("decoder", decode, (x.shape[0], LATENT))
        with numpyro.plate("data", x.shape[0]):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(LATENT), 1.0).to_event(1))
            numpyro.sample("x", dist.Bernoulli(logits=decoder(z)).to_event(1), obs=x)

    def guide(x: Any) -> None:
        encoder = numpyro.module("encoder", encode, (x.shape[0], 784))
        loc, scale = encoder(x)
        with numpyro.plate("data", x.shape[0]):
            numpyro.sample("z", dist.Normal(loc, scale).to_event(1))

    def start(batch_size: int, turn: Turn) -> None:
        data = (jax.random.uniform(jax.random.key(0), (ROWS, 784)) < 0.15).astype(jnp.float32)
        data.block_until_ready()
        svi = SVI(model, guide, optim.Adam(LEARNING_RATE), TraceMeanField_ELBO())
        state: Any = None
        order: Any = None
        done = 0
        per_epoch = ROWS // batch_size

        # Data and numbers of steps are arguments, so it compiles once and holds no copy of the data.
        @jax.jit  # type: ignore[untyped-decorator, unused-ignore]
        def run(state: Any, data: Any, order: Any, first: int, last: int) -> Any:
            def step(i: Any, carry: Any) -> Any:
                state, total = carry
                rows = jax.lax.dynamic_slice_in_dim(order, i * batch_size, batch_size)
                state, loss = svi.update(state, data[rows])
                return state, total + loss

            return jax.lax.fori_loop(first, last, step, (state, 0.0))

        def steps(count: int) -> None:
            nonlocal state, order, done
            if state is None:
                state = svi.init(jax.random.key(1), data[:batch_size])
            while count:
                if done % per_epoch == 0:
                    order = jnp.asarray(np.random.permutation(ROWS))
                first = done % per_epoch
                now = min(count, per_epoch - first)
                state, total = run(state, data, order, first, first + now)
                total.block_until_ready()
                done, count = done + now, count - now

        count = 0
        while True:
            count = turn(count)
            steps(count)

    return start


def pythae_trainer(network: str, device: str) -> Start:
    """pythae's own trainer; steps are timed as one epoch over as many rows."""
    import contextlib
    import io
    import tempfile

    import torch
    from pythae.data.datasets import BaseDataset
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from pythae.trainers import BaseTrainer, BaseTrainerConfig
    from torch import nn

    assert network == "mlp"

    class Encoder(BaseEncoder):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.hidden, self.loc, self.log_variance = (
                nn.Linear(784, 400),
                nn.Linear(400, LATENT),
                nn.Linear(400, LATENT),
            )

        def forward(self, x: Any) -> Any:
            h = self.hidden(x.reshape(len(x), -1)).relu()
            return ModelOutput(embedding=self.loc(h), log_covariance=self.log_variance(h))

    class Decoder(BaseDecoder):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.hidden, self.out = nn.Linear(LATENT, 400), nn.Linear(400, 784)

        def forward(self, z: Any) -> Any:
            return ModelOutput(reconstruction=self.out(self.hidden(z).relu()).sigmoid())

    config = VAEConfig(input_dim=(784,), latent_dim=LATENT, reconstruction_loss="bce")
    model = VAE(config, Encoder(), Decoder())

    def start(batch_size: int, turn: Turn) -> None:
        data = torch_data()
        trainers: dict[int, Any] = {}

        def steps(count: int) -> None:
            if count not in trainers:
                rows = data[torch.arange(count * batch_size) % ROWS]
                dataset = BaseDataset(rows, torch.ones(len(rows)))
                options = BaseTrainerConfig(
                    output_dir=tempfile.mkdtemp(),
                    num_epochs=1,
                    per_device_train_batch_size=batch_size,
                    learning_rate=LEARNING_RATE,
                    no_cuda=device == "cpu",
                )
                trainers[count] = BaseTrainer(model, dataset, training_config=options)
                trainers[count].prepare_training()
            with contextlib.redirect_stderr(io.StringIO()):
                trainers[count].train_step(1)

        count = 0
        while True:
            count = turn(count)
            steps(count)

    return start


# -- the floor -------------------------------------------------------------------------------------------


def floor(network: str, device: str) -> Start:
    """No VAE: the products of a step, each in its fastest layout, Adam's update, and gathering the rows.

    On a GPU, all of it is one CUDA graph.
    """
    import torch

    assert network == "mlp"

    def start(batch_size: int, turn: Turn) -> None:
        data = torch_data(device)
        sizes = [(784, 400), (400, 2 * LATENT), (LATENT, 400), (400, 784)]
        weights = [torch.randn(n, m, device=device, requires_grad=True) for n, m in sizes]
        weights += [torch.zeros(m, device=device, requires_grad=True) for _, m in sizes]
        for weight in weights:
            weight.grad = torch.zeros_like(weight)
        optimizer = torch.optim.Adam(
            weights, lr=LEARNING_RATE, fused=True, capturable=device == "cuda"
        )
        inputs = [torch.randn(batch_size, n, device=device) for n, _ in sizes]
        outputs = [torch.randn(batch_size, m, device=device) for _, m in sizes]
        transposed = [w.detach().T.contiguous() for w in weights[:4]]
        batches = endless(data, batch_size)
        chosen = torch.arange(batch_size, device=device)

        def rest() -> None:
            for i, (a, b) in enumerate(zip(inputs, outputs, strict=True)):
                torch.mm(a, weights[i])
                torch.mm(a.T, b)
                if i:
                    torch.mm(b, transposed[i])
            optimizer.step()

        def on_gpu() -> None:
            data.index_select(0, chosen)
            rest()

        replay: Any = None
        if device == "cuda":
            graph = torch.cuda.CUDAGraph()
            with torch.no_grad():
                for _ in range(3):
                    on_gpu()
                torch.cuda.synchronize()
                with torch.cuda.graph(graph):
                    on_gpu()
            replay = graph.replay

        def steps(count: int) -> None:
            with torch.no_grad():
                for _ in range(count):
                    if replay is not None:
                        replay()
                    else:
                        next(batches)
                        rest()
            if device == "cuda":
                torch.cuda.synchronize()

        count = 0
        while True:
            count = turn(count)
            steps(count)

    return start


CONTENDERS: dict[str, Callable[[str, str], Start]] = {
    "hand": partial(hand_written, fused=False),
    "hand-fused": partial(hand_written, fused=True),
    "hand-compiled": partial(hand_written, fused=True, compiled=True),
    "hand-bf16": partial(hand_written, fused=True, compiled=True, mixed=True),
    "pyro": pyro_svi,
    "ours-pyro": partial(ours, capture=False),
    "ours-graph": partial(ours, compile=False),
    "ours-bf16": partial(ours, mixed=True),
    "ours": ours,
    "numpyro": numpyro_epoch,
    "pythae": pythae_trainer,
    "floor": floor,
}


def main() -> None:
    """Follows the protocol above on standard input and output."""
    name, network, batch_size, threads, device = sys.argv[1:]
    if name != "numpyro":
        import torch

        torch.set_num_threads(int(threads))
    started = 0.0

    def turn(done: int) -> int:
        nonlocal started
        count = 1
        if started:
            print((time.perf_counter() - started) / done, flush=True)
            count = int(input())
        started = time.perf_counter()
        return count

    # All of them run in the main thread: in a second one, OpenMP waits.
    CONTENDERS[name](network, device)(int(batch_size), turn)


if __name__ == "__main__":
    main()
