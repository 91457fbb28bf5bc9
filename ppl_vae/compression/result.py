"""The result of compress(): a file, and where its bits come from."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ppl_vae.stats import Estimate, RowResult, bits_per_dim


@dataclass(frozen=True)
class Compressed(RowResult):
    """A file of rows, and where its bits come from.

    All bits of the file are

        - ELBO / ln 2 + discretization + initial bits + coder + header.

    The ELBO is that of the very draws z ~ q(z | x) that the rows were coded with, one for each row, so it is an
    estimate of what `evaluate` calls the ELBO.

    Attributes:
        elbo: log p(x, z) - log q(z | x) of each row, at the z with which it was coded; nats.
        code_length: What each row adds to the file by the probabilities of the grid, bits.
        num_values: Numbers of a row.
        initial_bits: Random bits that were needed before the first rows had left some. They do not grow with
            the number of rows.
        header_bits: What the header takes, and its checksum.
        latent_bits: b: each number of a continuous latent has 2^b values.
        rows_at_once: Most rows that were coded at once.
        context: How many arguments of the programs the receiver has to have.
        data: The file.
    """

    elbo: Estimate
    code_length: Estimate
    num_values: int
    initial_bits: int
    header_bits: int
    latent_bits: int
    rows_at_once: int
    context: int
    data: bytes

    derived: ClassVar[tuple[str, ...]] = (
        "file_bits_per_dim",
        "payload_bits_per_dim",
        "expected_bits_per_dim",
        "discretization",
        "initial",
        "coder",
        "header",
    )
    hidden: ClassVar[tuple[str, ...]] = ("data",)

    @property
    def payload_bits(self) -> int:
        """Bits of the file without its header; the initial bits are among them."""
        return 8 * len(self.data) - self.header_bits

    @property
    def file_bits_per_dim(self) -> float:
        """Bits of the file for each number."""
        return 8 * len(self.data) / self._numbers

    @property
    def payload_bits_per_dim(self) -> float:
        """Bits of the file without its header for each number."""
        return self.payload_bits / self._numbers

    @property
    def expected_bits_per_dim(self) -> Estimate:
        """- ELBO / (D ln 2), of each row of D numbers."""
        return bits_per_dim(self.elbo, self.num_values)

    @property
    def discretization(self) -> float:
        """What the grid of the latents costs, bits per dimension: the code's length less - ELBO / ln 2.

        It vanishes as the grid becomes finer, and may be negative by chance.
        """
        return float(self._lost.mean()) / self.num_values

    @property
    def initial(self) -> float:
        """The initial bits for each number."""
        return self.initial_bits / self._numbers

    @property
    def coder(self) -> float:
        """What rounded probabilities and whole words cost, bits per dimension.

        It is negative where values are rarer than 2^-24: no number costs more than 24 bits.
        """
        coded = float(self.code_length.values.double().sum())
        return (self.payload_bits - self.initial_bits - coded) / self._numbers

    @property
    def header(self) -> float:
        """The header's bits for each number."""
        return self.header_bits / self._numbers

    @property
    def _numbers(self) -> int:
        return self.num_rows * self.num_values

    @property
    def _lost(self) -> Tensor:
        """What the grid costs each row, bits."""
        return self.code_length.values.double() + self.elbo.values.double() / math.log(2.0)

    def lines(self) -> list[tuple[str, str]]:
        """See `Result.lines`."""
        unit = "bits per dimension"
        expected = self.expected_bits_per_dim
        return [
            ("file", f"{self.file_bits_per_dim:.4f} {unit}, {len(self.data):,} bytes"),
            ("-ELBO / (D ln 2)", f"{expected.numbers('.4f')} {unit}"),
            ("  + latents on a grid", f"{self.discretization:z.4f}"),
            ("  + initial bits", f"{self.initial:.4f}"),
            ("  + coder", f"{self.coder:z.4f}"),
            ("  + header", f"{self.header:.4f}"),
            ("rows", f"{self.num_rows:,} of {self.num_values:,} numbers"),
        ]

    def doubts(self) -> Iterator[str]:
        """See `Result.doubts`."""
        lost, whole = float(self._lost.mean()), float(self.code_length.values.mean())
        if lost > max(1.0, 0.05 * abs(whole)):
            yield (
                f"the grid of the latents costs {lost:.1f} bits per row: raise latent_bits; if that does not "
                "help, latents are far out in the tails of their prior, where its intervals are wide"
            )
