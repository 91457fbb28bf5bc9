"""The ELBO of quantized codes, with a gradient that goes straight through the quantizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ppl_vae.distributions import PointMass
from ppl_vae.networks import straight_through
from ppl_vae.objectives.base import Loss, Objective
from ppl_vae.objectives.schedules import require_number
from ppl_vae.pairs import (
    Batch,
    Layout,
    Pair,
    PairError,
    Site,
    Trace,
    innermost,
    kl_between,
    latent_sites,
    num_rows,
    row_log_prob,
    sample_rows,
    sum_to_rows,
)


@dataclass(frozen=True, kw_only=True)
class QuantizedELBO(Objective):
    """The ELBO of codes that a quantizer chooses, with the decoder's gradient copied to the encoder.

    The guide computes vectors L, chooses codes z near them, and the model decodes the codes' vectors C_z. The
    choice has no gradient. So the decoder's gradient at C_z is taken as that of L ("straight through",
    arXiv:1711.00937), and the loss per row is

        - log p(x | z) + beta (log q(z | x) - log p(z)) + commitment sum |L - sg(C_z)|^2 + sum |sg(L) - C_z|^2

    where sg stops the gradient, and the sums are over the vectors of a row. Then the gradient by L is that of
    the decoder at C_z plus 2 commitment (L - C_z), exactly, and that by a code 2 sum (C_k - L) over those that
    chose it. The two roles that one weight has in the first paper are two settings: `commitment` holds the
    encoder to its codes, and the codebook has a step size of its own (`Gradient(rate=...)`, or
    `EMA(decay=...)`, which has no such term). A weight of the last term would do nothing under Adam.

    With all mass of q on one code, the ELBO, rate and distortion are exact. Otherwise z is drawn, and its KL is
    the analytic one, whose gradient counts.

    For a pair of your own: the guide has a deterministic site for L, and marks z as computed from it; the model
    has a deterministic site of the same name for C_z. See the example.

    Attributes:
        commitment: Weight of the encoder's commitment, in nats per squared unit.
        gradient: "straight-through", or "rotation": the gradient is turned and scaled as C_z is relative to L
            ("Restructuring Vector Quantization with the Rotation Trick", arXiv:2410.06424). What the decoder
            reads is C_z exactly, with either.

    Raises:
        PairError: No site of the guide is marked, the deterministic site is missing or of another shape, a
            latent has no gradient, or the KL of codes that are drawn has no formula.
        ValueError: A setting is out of its range, or free_bits is not 0.

    Example:
        >>> import pyro, pyro.distributions as dist
        >>> from torch import nn
        >>> from ppl_vae import fit
        >>> from ppl_vae.distributions import PointMass
        >>> encoder, decoder = nn.Linear(6, 2), nn.Linear(2, 6)
        >>> codebook = nn.Parameter(torch.randn(4, 2))
        >>> def model(x):
        ...     pyro.module("decoder", decoder)
        ...     with pyro.plate("data", len(x)):
        ...         z = pyro.sample("z", dist.Categorical(torch.ones(4) / 4))
        ...         vector = pyro.deterministic("vector", pyro.param("codebook", codebook)[z], event_dim=1)
        ...         pyro.sample("x", dist.Normal(decoder(vector), 1.0).to_event(1), obs=x)
        >>> def guide(x):
        ...     pyro.module("encoder", encoder)
        ...     with pyro.plate("data", len(x)):
        ...         vector = pyro.deterministic("vector", encoder(x), event_dim=1)
        ...         nearest = torch.cdist(vector, pyro.param("codebook", codebook)).argmin(-1)
        ...         pyro.sample("z", PointMass(nearest, 4), infer={"quantizes": "vector"})
        >>> objective = QuantizedELBO(commitment=0.5)
        >>> found = fit(model, guide, torch.randn(64, 6), objective=objective, max_epochs=1)
        >>> found.epochs
        1
    """

    commitment: float = 0.25
    gradient: Literal["straight-through", "rotation"] = "straight-through"

    why_no_free_bits = " for codes; set free_bits=0"

    def __post_init__(self) -> None:
        super().__post_init__()
        name = type(self).__name__
        require_number(name, "commitment", self.commitment)
        if not 0 <= self.commitment < float("inf"):
            raise ValueError(f"{name}: commitment must be finite and >= 0, got {self.commitment}")
        if self.gradient not in ("straight-through", "rotation"):
            raise ValueError(
                f"{name}: gradient must be 'straight-through' or 'rotation', got {self.gradient!r}"
            )

    def __call__(self, pair: Pair, layout: Layout, batch: Batch, beta: float = 1.0) -> Loss:
        n = num_rows(batch)
        through = _Through(rotate=self.gradient == "rotation")
        with through:
            rows = sample_rows(pair, layout, batch, self.num_particles, as_seen=through.after_guide)
        marked = marked_sites(rows.guide_trace)
        if not marked:
            raise PairError(
                f"{type(self).__name__} passes a gradient through codes, but no site of the guide is marked as "
                "computed from vectors: write pyro.sample('z', ..., infer={'quantizes': 'vectors'}), "
                "where pyro.deterministic('vectors', ...) holds them, or use ELBO"
            )
        rate = rows.log_guide - rows.log_prior
        for name, site in latent_sites(rows.guide_trace).items():
            if name in marked:
                rate = rate + self._correction(name, rows, layout, n)
            elif name in layout.draws and not site["fn"].has_rsample:
                raise PairError(
                    f"site '{name}' has neither a reparameterized sampler nor the mark 'quantizes', so "
                    f"that {type(self).__name__} has no gradient for it: mark it, or use ELBO"
                )
        loss = -rows.log_likelihood.mean() + beta * rate.mean()
        for name in dict.fromkeys(marked.values()):
            vectors, codes = through.both(name)
            per = n * self.num_particles if layout.vectorizes else n
            loss = loss + self.commitment * (vectors - codes.detach()).square().sum() / per
            if codes.requires_grad:
                loss = loss + (vectors.detach() - codes).square().sum() / per
        distortion, rate = -rows.log_likelihood.detach().mean(), rate.detach().mean()
        traces = [(rows.model_trace, rows.guide_trace)]
        return Loss(loss, -(distortion + rate), rate, distortion, traces)

    def _correction(self, name: str, rows: Any, layout: Layout, n: int) -> Tensor:
        """What turns the sampled rate of a marked site into its analytic KL, per row."""
        q, p = rows.guide_trace.nodes[name], rows.model_trace.nodes[name]
        if isinstance(innermost(q["fn"]), PointMass):
            return torch.zeros(())
        try:
            kl = kl_between(q["fn"], p["fn"])
        except NotImplementedError as error:
            raise PairError(
                f"the codes '{name}' are drawn, and the KL from {type(innermost(q['fn'])).__name__} to their "
                "prior has no formula, so that the rate would have no gradient: choose temperature=0, or a "
                "prior with independent codes, such as UniformCodes()"
            ) from error
        k = self.num_particles
        sampled = row_log_prob(q, layout) - row_log_prob(p, layout)
        return sum_to_rows(kl, layout, k, n) - sum_to_rows(sampled, layout, k, n)


def marked_sites(guide_trace: Trace) -> dict[str, str]:
    """The latents that were computed from vectors, and the deterministic sites that hold these."""
    return {
        name: site["infer"]["quantizes"]
        for name, site in latent_sites(guide_trace).items()
        if "quantizes" in site["infer"]
    }


class _Through(Messenger):
    """Passes the gradient of what the model decodes to what the guide has encoded.

    Args:
        rotate: Whether the gradient is turned.
    """

    def __init__(self, rotate: bool) -> None:
        super().__init__()
        self.rotate = rotate
        self._vectors: dict[str, Tensor] | None = None
        self._codes: dict[str, Tensor] = {}

    def after_guide(self, trace: Trace) -> Trace:
        """Notes the vectors of the guide's trace; the model is run next."""
        self._vectors = {
            name: trace.nodes[name]["value"]
            for name in marked_sites(trace).values()
            if name in trace.nodes
        }
        return trace

    def both(self, name: str) -> tuple[Tensor, Tensor]:
        """The vectors of the guide and of the model at a site.

        Raises:
            PairError: One of them is missing, or their shapes differ.
        """
        vectors, codes = (self._vectors or {}).get(name), self._codes.get(name)
        for found, program in ((vectors, "guide"), (codes, "model")):
            if found is None:
                raise PairError(
                    f"the codes are marked as computed from '{name}', but the {program} has no deterministic "
                    f"site of that name: write pyro.deterministic('{name}', ...) there"
                )
        assert vectors is not None
        assert codes is not None
        return vectors, codes

    def _pyro_sample(self, msg: Site) -> None:
        name = msg["name"]
        if self._vectors is None or name not in self._vectors:
            return
        vectors, codes = self._vectors[name], msg["value"]
        try:
            shape = torch.broadcast_shapes(vectors.shape, codes.shape)
        except RuntimeError:
            shape = torch.Size()
        if shape != codes.shape:
            raise PairError(
                f"the vectors '{name}' have the shape {tuple(vectors.shape)} in the guide and "
                f"{tuple(codes.shape)} in the model: they must be the same"
            )
        self._codes[name] = codes
        msg["value"] = straight_through(vectors.expand(shape), codes, rotate=self.rotate)
