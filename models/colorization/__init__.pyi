from .colors import (
    Colors as Colors,
    LumaColors as LumaColors,
    Palette as Palette,
    PictureColors as PictureColors,
    ShiftedColors as ShiftedColors,
    chroma as chroma,
)
from .independent import IndependentSegments as IndependentSegments
from .latent_colors import LatentColors as LatentColors
from .potts import PottsSegments as PottsSegments
from .scan_lines import ScanLineSegments as ScanLineSegments
from .segmented import SegmentedColors as SegmentedColors
from .tree import TreeSegments as TreeSegments
