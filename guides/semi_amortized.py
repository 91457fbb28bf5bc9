"""The amortized guide whose output is improved for each row by a few gradient steps."""

from __future__ import annotations

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_vae.guides.amortized import Amortized
from ppl_vae.guides.log_joint import Model, log_joint, repeat_rows
from ppl_vae.guides.parts import positive
from ppl_vae.networks import MLP, Context, Network, require_one_each, require_positive


class SemiAmortized(Amortized[dist.Independent]):
    """q(z | x) = N(m, diag(s^2)): an encoder proposes m and s, gradient steps on the row's ELBO improve them.

    From the encoder's (m, log s) of a row, each of `steps` steps follows the natural gradient of
    the row's ELBO L(m, s) = E_q[log p(x, z)] + sum log s + d/2 log(2 pi e),

        m     <- m     + step_size s^2 dL/dm,
        log s <- log s + step_size/2 dL/dlog s,

    which is the ordinary gradient in units in which q is standard, so that one step size suits all
    data; log s moves by 1 at most. A step that would lower the row's ELBO is not taken; the row
    continues with half its step size. So the result is never worse than the proposal
    ("Semi-Amortized Variational Autoencoders", arXiv:1802.02550, uses plain, clipped gradients; the
    metric and the test are ours).

    The expectation is the mean over `num_samples` points z = m + s eps. The eps are fixed: pairs of
    opposite standard normal vectors, scaled so that each dimension has variance 1, and rotated so
    that dimensions are uncorrelated if num_samples >= 2 d. So q is a function of x, and L is exact
    if log p(x, z) is quadratic in z and num_samples >= 2 d.

    The guide runs the model, on `num_samples * n` rows at a time and `steps + 1` times, hidden from
    all handlers: beta, for instance, changes the loss but not the ELBO that the steps climb. A
    decoder with batch norm or dropout in training mode behaves there as it does anywhere.

    Args:
        model: The Pyro program p(x, z) of the pair: its one latent is the site `z`, a real vector,
            in a plate over rows. Its parameters do not become the guide's.
        data_shape: Shape of one row of the data.
        latent_dim: Number d of latent dimensions, the model's.
        network: What the encoder is built from.
        steps: Number of steps; 0 is a mean-field guide.
        step_size: What the natural gradient is multiplied by; with the right s, 1 brings m to the
            mean of an independent normal posterior in one step, and 2 or more no longer helps.
        num_samples: Points of the expectation, an even number.
        differentiable: Whether gradients flow through the steps, to the encoder and to the model's
            parameters, which costs second derivatives. Otherwise the result is a constant: the
            model is trained with it, and the encoder on the ELBO of its own proposal ("On the
            challenges of learning with inference networks on sparse, high-dimensional data",
            arXiv:1710.06085), through a site `proposal` of log density 0.
        context: What the rows come with, that of the model, if it is given any: see `Amortized`.

    Raises:
        ValueError: `latent_dim` or `step_size` is not positive, `steps` is negative, or
            `num_samples` is not even and positive.

    Example:
        >>> from ppl_vae.models import VAE
        >>> model = VAE((1, 8, 8), latent_dim=2, network=MLP(hidden=(32,)))
        >>> guide = SemiAmortized(model, (1, 8, 8), latent_dim=2, network=MLP(hidden=(32,)))
        >>> guide.encode(torch.rand(5, 1, 8, 8).round()).mean.shape
        torch.Size([5, 2])
    """

    noise: Tensor

    def __init__(
        self,
        model: Model,
        data_shape: Sequence[int],
        latent_dim: int = 10,
        network: Network = MLP(),  # frozen
        steps: int = 5,
        step_size: float = 0.5,
        num_samples: int = 8,
        differentiable: bool = True,
        context: Context | None = None,
    ) -> None:
        if steps < 0:
            raise ValueError(f"SemiAmortized.steps must be at least 0, got {steps}")
        require_positive(self, step_size=step_size)
        if num_samples < 2 or num_samples % 2:
            raise ValueError(
                f"SemiAmortized.num_samples must be an even number, 2 or more, for pairs of "
                f"opposite points; got {num_samples}"
            )
        super().__init__(data_shape, latent_dim, network, context)
        self.data_shape = tuple(data_shape)
        self.steps = steps
        self.step_size = step_size
        self.differentiable = differentiable
        # In a tuple: as an attribute it would be registered, and so would its parameters.
        self._model = (model,)
        self.register_buffer("noise", _noise(num_samples, latent_dim), persistent=False)

    def forward(self, x: Tensor, c: Tensor | None = None) -> None:
        """Runs the guide on `x`, `(n, *data_shape)`, and its context `c` if it was built with one.

        Raises:
            TypeError: As from `features`.
            ValueError: There is not one label, or one vector of attributes, for each row.
        """
        if self.context is not None and c is not None:
            require_one_each(self, self.context, c, x.shape[0])
        proposed = self.propose(x, c)
        refined, gradient = self._refine(x, c, proposed)  # outside the plate: the model has its own
        with pyro.plate("data", x.shape[0], dim=-1):
            pyro.sample("z", self.family(refined))
            if not self.differentiable:
                # Its value is 0: it only adds the gradient of the proposal's own ELBO.
                gain = (gradient * proposed).sum(-1)
                pyro.factor("proposal", gain.detach() - gain, has_rsample=True)

    def amortize(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """The refined (m, log s) of each row, `(*batch, 2 * latent_dim)`."""
        proposed = self.propose(x, c)
        batch = proposed.shape[:-1]
        rows = x.expand(*batch, *self.data_shape).reshape(-1, *self.data_shape)
        if c is not None and self.context is not None:
            event = c.shape[c.dim() - self.context.support.event_dim :]
            c = c.expand(*batch, *event).reshape(-1, *event)
        refined, _ = self._refine(rows, c, proposed.reshape(-1, proposed.shape[-1]))
        return refined.reshape(proposed.shape)

    def propose(self, x: Tensor, c: Tensor | None = None) -> Tensor:
        """The encoder's own (m, log s), before any step."""
        loc, scale = super().amortize(x, c).chunk(2, -1)
        return torch.cat([loc, positive(scale).log()], -1)

    def family(self, outputs: Tensor) -> dist.Independent:
        """N(m, diag(s^2)) for (m, log s), `(*batch, 2 * latent_dim)`."""
        loc, log_scale = outputs.chunk(2, -1)
        return dist.Independent(dist.Normal(loc, log_scale.exp()), 1)

    @property
    def num_outputs(self) -> int:
        """Two per latent dimension: m and s."""
        return 2 * self.latent_dim

    def _refine(self, x: Tensor, c: Tensor | None, start: Tensor) -> tuple[Tensor, Tensor]:
        """The (m, log s) after all steps, and the gradient of the ELBOs at the start."""
        through = self.differentiable and torch.is_grad_enabled()
        with torch.enable_grad():  # also where the caller wants no gradients: the steps need them
            outputs = start
            if not (through and start.requires_grad):
                outputs = start.detach().requires_grad_()
            step = torch.full_like(start[:, :1], self.step_size)
            elbo, at_start = self._elbo(x, c, outputs, through)
            direction = _natural(outputs, at_start)
            for _ in range(self.steps):
                there = outputs + _bounded(step * direction)
                there = there if through else there.detach().requires_grad_()
                elbo_there, gradient = self._elbo(x, c, there, through)
                better = (elbo_there >= elbo).unsqueeze(-1)
                outputs = torch.where(better, there, outputs)
                direction = torch.where(better, _natural(there, gradient), direction)
                elbo = torch.where(better.squeeze(-1), elbo_there, elbo)
                step = torch.where(better, step, step / 2)
        return (outputs if through else outputs.detach()), at_start.detach()

    def _elbo(
        self, x: Tensor, c: Tensor | None, outputs: Tensor, through: bool
    ) -> tuple[Tensor, Tensor]:
        """The rows' ELBOs up to a constant, detached, `(n,)`, and their gradients by `outputs`."""
        loc, log_scale = outputs.chunk(2, -1)
        num_samples, n = len(self.noise), len(x)
        z = loc + log_scale.exp() * self.noise.to(outputs.dtype).unsqueeze(1)
        (model,) = self._model
        beside = () if c is None else (repeat_rows(c, num_samples),)
        joint = log_joint(model, repeat_rows(x, num_samples), {"z": z.flatten(0, 1)}, beside)
        elbo = joint.reshape(num_samples, n).mean(0) + log_scale.sum(-1)
        # Rows are independent: the gradient of the sum holds that of each row.
        (gradient,) = torch.autograd.grad(elbo.sum(), outputs, create_graph=through)
        return elbo.detach(), gradient


def _natural(outputs: Tensor, gradient: Tensor) -> Tensor:
    """The natural gradient: the Fisher metric of N(m, diag(s^2)) is diag(1 / s^2, 2)."""
    by_loc, by_log_scale = gradient.chunk(2, -1)
    _, log_scale = outputs.chunk(2, -1)
    return torch.cat([(2 * log_scale).exp() * by_loc, by_log_scale / 2], -1)


def _bounded(move: Tensor) -> Tensor:
    """A scale grows or shrinks by the factor e at most, so that it cannot overflow."""
    by_loc, by_log_scale = move.chunk(2, -1)
    return torch.cat([by_loc, by_log_scale.clamp(-1, 1)], -1)


def _noise(num_samples: int, latent_dim: int) -> Tensor:
    """Standard normal points in opposite pairs, `(num_samples, latent_dim)`, of sample variance 1.

    The same for every guide of this size, so that a guide that was saved and loaded is the same.
    """
    pairs = num_samples // 2
    half = torch.randn(pairs, latent_dim, generator=torch.Generator().manual_seed(0))
    if pairs >= latent_dim:
        # Q R = half with a positive diagonal: Q is as random as half, and R / sqrt(pairs) goes to 1.
        half, upper = torch.linalg.qr(half)
        half = half * upper.diagonal().sign() * pairs**0.5
    else:
        half = half / half.square().mean(0).sqrt()
    return torch.cat([half, -half])
