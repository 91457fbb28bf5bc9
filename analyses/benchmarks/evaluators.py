"""The ways to estimate log p(x) that `evaluation.py` times: one process each, all with the same weights.

`evaluation.py` runs `python evaluators.py NAME FILE FEW K THREADS`; FILE has the weights and the rows of data,
in NumPy's format. It prints the mean log p(x) of the first FEW rows, which shows that all compute the same.
Then it reads numbers of rows, and prints the seconds that their evaluation took. `product` and `decoder` read
sizes, and print floating-point operations per second.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

LATENT = 50
AT_ONCE = 3200
"""Rows x samples that the hand-written loops run at once: 10 MB of logits."""

LogLikelihood = Callable[[Any], float]
"""Mean log p(x) of rows, an array (n, 784)."""


def samples_at_once(num_samples: int, rows: int) -> int:
    """The largest divisor of the number of samples that stays within `AT_ONCE`."""
    most = max(1, AT_ONCE // rows)
    return next(s for s in range(min(most, num_samples), 0, -1) if num_samples % s == 0)


def by_hand(weights: list[Any], num_samples: int, compiled: bool) -> LogLikelihood:
    """The loop that a torch user writes by hand: chunks of samples, then one logsumexp."""
    import torch
    from torch.nn import functional as F

    w1, b1, w2, b2, w3, b3, w4, b4 = map(torch.from_numpy, weights)

    def log_weights(x: Any, loc: Any, scale: Any, count: int) -> Any:
        noise = torch.randn(count, *loc.shape)
        z = loc + scale * noise
        logits = F.linear(F.linear(z, w3, b3).relu(), w4, b4)
        target = x.expand_as(logits)
        log_p = -F.binary_cross_entropy_with_logits(logits, target, reduction="none").sum(-1)
        return log_p + (0.5 * (noise.square() - z.square()) + scale.log()).sum(-1)

    chunk = torch.compile(log_weights) if compiled else log_weights

    def log_likelihood(data: Any) -> float:
        total = 0.0
        with torch.no_grad():
            for x in torch.from_numpy(data).split(64):
                outputs = F.linear(F.linear(x, w1, b1).relu(), w2, b2)
                loc, scale = outputs[:, :LATENT], F.softplus(outputs[:, LATENT:])
                count = samples_at_once(num_samples, len(x))
                found = [chunk(x, loc, scale, count) for _ in range(num_samples // count)]
                total += float(torch.cat(found).logsumexp(0).sum())
        return total / len(data) - math.log(num_samples)

    return log_likelihood


def ours(weights: list[Any], num_samples: int, capture: bool) -> LogLikelihood:
    """`evaluate`, with and without recording."""
    import torch

    from ppl_vae import evaluate
    from ppl_vae.guides import MeanField
    from ppl_vae.models import VAE
    from ppl_vae.networks import MLP

    network = MLP(hidden=(400,))
    model, guide = VAE((784,), LATENT, network), MeanField((784,), LATENT, network)
    with torch.no_grad():
        parameters = [*guide.parameters(), *model.parameters()]
        for parameter, value in zip(parameters, weights, strict=True):
            parameter.copy_(torch.from_numpy(value))

    def log_likelihood(data: Any) -> float:
        x = torch.from_numpy(data)
        found = evaluate(
            model,
            guide,
            x,
            num_samples=num_samples,
            method="guide",
            progress=False,
            capture=capture,
        )
        return found.log_likelihood.mean

    return log_likelihood


def numpyro_traces(weights: list[Any], num_samples: int) -> LogLikelihood:
    """NumPyro's handlers under vmap over samples, jitted, with a streaming logsumexp."""
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    from numpyro.handlers import replay, seed, trace

    def model(w: Any, x: Any) -> None:
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(LATENT), 1.0).to_event(1))
            logits = jax.nn.relu(z @ w[4].T + w[5]) @ w[6].T + w[7]
            numpyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(w: Any, x: Any) -> None:
        outputs = jax.nn.relu(x @ w[0].T + w[1]) @ w[2].T + w[3]
        loc, scale = outputs[:, :LATENT], jax.nn.softplus(outputs[:, LATENT:])
        with numpyro.plate("data", len(x)):
            numpyro.sample("z", dist.Normal(loc, scale).to_event(1))

    def log_weights(key: Any, w: Any, x: Any) -> Any:
        q = trace(seed(guide, key)).get_trace(w, x)
        p = trace(replay(seed(model, key), q)).get_trace(w, x)
        log_p = [p[site]["fn"].log_prob(p[site]["value"]) for site in ("z", "x")]
        return sum(log_p) - q["z"]["fn"].log_prob(q["z"]["value"])

    @jax.jit  # type: ignore[untyped-decorator, unused-ignore]
    def log_sum(key: Any, w: Any, x: Any) -> Any:
        count = samples_at_once(num_samples, len(x))

        def chunk(i: Any, total: Any) -> Any:
            keys = jax.random.split(jax.random.fold_in(key, i), count)
            found = jax.vmap(log_weights, (0, None, None))(keys, w, x)
            return jnp.logaddexp(total, jax.scipy.special.logsumexp(found, 0))

        return jax.lax.fori_loop(0, num_samples // count, chunk, jnp.full(len(x), -jnp.inf))

    w = [jnp.asarray(value) for value in weights]

    def log_likelihood(data: Any) -> float:
        total = 0.0
        for first in range(0, len(data), 64):
            x = jnp.asarray(data[first : first + 64])
            total += float(log_sum(jax.random.key(first), w, x).sum())
        return total / len(data) - math.log(num_samples)

    return log_likelihood


def pythae_nll(weights: list[Any], num_samples: int) -> LogLikelihood:
    """pythae's own `get_nll`, without gradients; it takes one row at a time."""
    import torch
    from pythae.models import VAE, VAEConfig
    from pythae.models.base.base_utils import ModelOutput
    from pythae.models.nn import BaseDecoder, BaseEncoder
    from torch.nn import functional as F

    w1, b1, w2, b2, w3, b3, w4, b4 = map(torch.from_numpy, weights)

    class Encoder(BaseEncoder):  # type: ignore[misc, unused-ignore]
        def forward(self, x: Any) -> Any:
            outputs = F.linear(F.linear(x, w1, b1).relu(), w2, b2)
            loc, scale = outputs[:, :LATENT], F.softplus(outputs[:, LATENT:])
            return ModelOutput(embedding=loc, log_covariance=2 * scale.log())

    class Decoder(BaseDecoder):  # type: ignore[misc, unused-ignore]
        def forward(self, z: Any) -> Any:
            logits = F.linear(F.linear(z, w3, b3).relu(), w4, b4)
            return ModelOutput(reconstruction=logits.sigmoid())

    config = VAEConfig(input_dim=(784,), latent_dim=LATENT, reconstruction_loss="bce")
    model = VAE(config, Encoder(), Decoder()).eval()

    def log_likelihood(data: Any) -> float:
        with torch.no_grad():
            return float(model.get_nll(torch.from_numpy(data), num_samples, batch_size=100))

    return log_likelihood


EVALUATORS: dict[str, Callable[[list[Any], int], LogLikelihood]] = {
    "hand": lambda weights, k: by_hand(weights, k, compiled=False),
    "hand-compiled": lambda weights, k: by_hand(weights, k, compiled=True),
    "pyro": lambda weights, k: ours(weights, k, capture=False),
    "ours": lambda weights, k: ours(weights, k, capture=True),
    "numpyro": numpyro_traces,
    "pythae": pythae_nll,
}


# -- rates of products -----------------------------------------------------------------------------------


def rate(multiply: Callable[[], object], operations: float) -> float:
    """Operations per second: the median over calls during a quarter of a second."""
    multiply()
    times: list[float] = []
    while sum(times) < 0.25 or len(times) < 3:
        started = time.perf_counter()
        multiply()
        times.append(time.perf_counter() - started)
    return operations / statistics.median(times)


def best_product(size: int) -> float:
    """The best rate of a float32 product of square matrices, by ATen and by oneDNN."""
    import torch

    a, b = torch.randn(size, size), torch.randn(size, size)
    ways: list[Callable[[], object]] = [lambda: a @ b]
    linear = getattr(torch.ops.mkldnn, "_linear_pointwise", None)  # private: not in every torch
    if linear is not None and torch.backends.mkldnn.is_available():
        ways.append(lambda: linear(a, b, None, "none", [], ""))
    return max(rate(way, 2 * size**3) for way in ways)


def decoder_products(count: int) -> float:
    """The rate of the decoder's two products alone, on `count` rows x samples."""
    import torch

    z, h = torch.randn(count, LATENT), torch.randn(count, 400)
    a, b = torch.randn(400, LATENT).T, torch.randn(784, 400).T
    operations = 2 * count * (LATENT * 400 + 400 * 784)
    return rate(lambda: (z @ a, h @ b), operations)


def main() -> None:
    """Follows the protocol above on standard input and output."""
    name, file, few, num_samples, threads = sys.argv[1:]
    if name != "numpyro":
        import torch

        torch.set_num_threads(int(threads))
        torch.manual_seed(0)
    if name in ("product", "decoder"):
        print(0, flush=True)
        for line in sys.stdin:
            print((best_product if name == "product" else decoder_products)(int(line)), flush=True)
        return
    with np.load(file) as arrays:
        *weights, data = [arrays[key] for key in arrays.files]
    log_likelihood = EVALUATORS[name](weights, int(num_samples))
    print(log_likelihood(data[: int(few)]), flush=True)
    for line in sys.stdin:
        started = time.perf_counter()
        log_likelihood(data[: int(line)])
        print(time.perf_counter() - started, flush=True)


if __name__ == "__main__":
    main()
