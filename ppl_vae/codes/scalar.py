"""Codes without a codebook: each number of a vector is rounded by itself."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from ppl_vae.codes.base import Quantizer
from ppl_vae.networks import require_at_least_one, require_numbers, require_widths

_ENUMERATED = 12
"""Most bits whose joint entropy is a sum over all of their values."""


class FSQ(Quantizer):
    """Finite scalar quantization: number i of a vector is rounded to one of `levels[i]` values.

        y_i = h_i tanh(L_i + s_i) - o_i,    rounded, and divided by floor(levels_i / 2)

    with h_i just above (levels_i - 1) / 2, and o_i = 1/2 for an even number of levels, 0 for an odd one; s_i
    makes y_i 0 where L_i is, but of two levels s_i is 0, so that they meet there ("Finite Scalar Quantization:
    VQ-VAE Made Simple", arXiv:2309.15505). The K = prod_i levels_i codes fill a box. There is nothing to learn,
    and so nothing that dies. z counts them with the first number as the fastest.

    Args:
        levels: Levels of each number; (8, 5, 5, 5) makes 1000 codes.

    Raises:
        TypeError: A level is no whole number.
        ValueError: There is none, or one has less than 2.

    Example:
        >>> quantizer = FSQ((3, 2))
        >>> quantizer.points().tolist()
        [[-1.0, -1.0], [0.0, -1.0], [1.0, -1.0], [-1.0, 0.0], [0.0, 0.0], [1.0, 0.0]]
    """

    sizes: Tensor
    basis: Tensor

    def __init__(self, levels: Sequence[int] = (8, 5, 5, 5)) -> None:
        super().__init__()
        require_widths(self, levels=levels)
        if min(levels) < 2:
            raise ValueError(f"FSQ.levels must be at least 2 each, got {tuple(levels)}")
        self.levels = tuple(levels)
        self.codes = math.prod(levels)
        self.dim = len(levels)
        sizes = torch.tensor(self.levels)
        basis = torch.cat([torch.ones(1, dtype=torch.long), sizes[:-1]]).cumprod(0)
        self.register_buffer("sizes", sizes, persistent=False)
        self.register_buffer("basis", basis, persistent=False)
        self._count_uses()

    def project(self, vectors: Tensor) -> Tensor:
        half = (self.sizes - 1) / 2 * 1.001
        offset = (self.sizes % 2 == 0) * 0.5
        shift = torch.where(self.sizes == 2, 0.0, (offset / half).atanh())
        bounded = (vectors + shift).tanh() * half - offset
        return bounded / self._unit

    def nearest(self, vectors: Tensor) -> Tensor:
        with torch.no_grad():
            rounded = (vectors * self._unit).round().long() + self._unit
            return (
                rounded.clamp(min=torch.zeros_like(self.sizes), max=self.sizes - 1) * self.basis
            ).sum(-1)

    def embed(self, z: Tensor) -> Tensor:
        digits = z.unsqueeze(-1) // self.basis % self.sizes
        return (digits - self._unit).to(torch.get_default_dtype()) / self._unit

    @property
    def _unit(self) -> Tensor:
        return self.sizes // 2


class LFQ(Quantizer):
    """Lookup-free quantization: the sign of each number, so that K = 2^bits.

        C(L)_i = 1 if L_i > 0, otherwise -1

    ("Language Model Beats Diffusion: Tokenizer is Key to Visual Generation", arXiv:2310.05737). Training adds,
    for each vector, entropy (E H(q(z | L)) - diversity H(E q(z | L))) with q(z | L) proportional to
    exp(-|L - C_z|^2 / temperature): each vector should be sure of its code, and all codes should be used. The
    bits are independent given L, so the first entropy is a sum over bits. The second, of the mean over the
    batch, is a sum over all codes for up to 12 bits; beyond, that of the bits one by one, its upper bound. Each
    of several processes takes it over its own rows.

    Args:
        bits: Numbers of a vector.
        entropy: Weight of the entropies, in nats per vector; 0 leaves them out.
        diversity: Weight of the second one.
        temperature: Of q.

    Raises:
        TypeError: An argument is no number.
        ValueError: One is out of its range.

    Example:
        >>> quantizer = LFQ(bits=2)
        >>> quantizer.nearest(torch.tensor([[-0.5, -0.1], [0.3, -2.0], [0.1, 0.2]]))
        tensor([0, 1, 3])
    """

    basis: Tensor

    def __init__(
        self,
        bits: int = 10,
        entropy: float = 0.1,
        diversity: float = 1.0,
        temperature: float = 0.1,
    ) -> None:
        super().__init__()
        require_at_least_one(self, bits=bits)
        require_numbers(self, entropy=entropy, diversity=diversity, temperature=temperature)
        if bits > 62:
            raise ValueError(
                f"LFQ.bits must be at most 62, as z is a whole number of 64 bits, got {bits}"
            )
        if entropy < 0 or diversity < 0 or temperature <= 0:
            raise ValueError(
                "LFQ.entropy and LFQ.diversity must be at least 0 and LFQ.temperature positive, got "
                f"{entropy}, {diversity} and {temperature}"
            )
        self.codes = 2**bits
        self.dim = bits
        self.entropy = entropy
        self.diversity = diversity
        self.temperature = temperature
        self.register_buffer("basis", 2 ** torch.arange(bits), persistent=False)
        self._count_uses()

    def nearest(self, vectors: Tensor) -> Tensor:
        with torch.no_grad():
            return ((vectors > 0) * self.basis).sum(-1)

    def embed(self, z: Tensor) -> Tensor:
        bits = z.unsqueeze(-1) // self.basis % 2
        return (2 * bits - 1).to(torch.get_default_dtype())

    def regularizer(self, vectors: Tensor) -> Tensor | None:
        if not self.entropy:
            return None
        n = len(vectors)
        if not torch.is_grad_enabled():
            return vectors.new_zeros(n)
        flat = vectors.reshape(-1, self.dim)
        of_each, of_mean = self.entropies(flat)
        per_row = len(flat) / n * self.entropy
        return (per_row * (of_each - self.diversity * of_mean)).expand(n)

    def entropies(self, vectors: Tensor) -> tuple[Tensor, Tensor]:
        """E H(q(z | L)) and H(E q(z | L)) over vectors `(m, dim)`, in nats."""
        # |L - 1|^2 - |L + 1|^2 = -4 L
        logits = 4 * vectors / self.temperature
        of_each = _binary_entropy(logits).sum(-1).mean()
        if self.dim > _ENUMERATED:
            p = logits.sigmoid().mean(0).clamp(1e-7, 1 - 1e-7)
            return of_each, _binary_entropy(p.logit()).sum()
        q = vectors.new_ones(len(vectors), 1)
        for column in logits.unbind(-1):  # the bit after those before, as the slower one
            p = column.sigmoid().unsqueeze(-1)
            q = torch.cat([q * (1 - p), q * p], -1)
        mean = q.mean(0)
        return of_each, -torch.special.xlogy(mean, mean).sum()


def _binary_entropy(logits: Tensor) -> Tensor:
    """The entropy of a bit that is 1 with probability sigmoid(logits), in nats."""
    p = logits.sigmoid()
    return -(p * logsigmoid(logits) + (1 - p) * logsigmoid(-logits))
