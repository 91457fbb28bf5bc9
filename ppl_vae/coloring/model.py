"""What is asked of a model of colors."""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

from torch import Tensor


@runtime_checkable
class ModelOfColors(Protocol):
    """A model of the colors y of a gray picture x with a segmentation z, such as `SegmentedColors`.

    Attributes:
        segments: Number K of segments.
        radius: How many pixels away a pixel may lie that its networks read.
        stride: Shifts of the picture by as many pixels only shift what the networks give.
    """

    segments: int
    radius: int
    stride: int

    def unary(self, x: Tensor) -> Tensor:
        """What P(z | x) is made of, `(n, h, w, K)`."""

    def field(self, unary: Tensor, x: Tensor) -> Any:
        """P(z | x), made of it, of event shape `(h, w)`."""

    def prior(self, x: Tensor) -> Any:
        """P(z | x), of event shape `(h, w)`."""

    def conditioned(self, y: Tensor, x: Tensor, *, shifts: Tensor | None = None) -> Any:
        """P(z | x, y), of event shape `(h, w)`: its marginals, or draws alone."""

    def color_components(self, x: Tensor, shifts: Tensor | None = None) -> Any:
        """P(y_i | z_i = k, x), of batch shape `(n, h, w, K)`."""

    def decode(self, z: Tensor, x: Tensor, shifts: Tensor | None = None) -> Any:
        """P(y | z, x), of event shape `(h, w, 2)`."""

    def shifts_prior(self) -> Any:
        """p(shifts) of a picture whose segments have latent colors; else None."""

    def fit_shifts(self, y: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Means and standard deviations of the shifts given y."""
