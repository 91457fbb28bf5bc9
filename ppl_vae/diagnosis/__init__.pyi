from .causes import Cause as Cause
from .diagnosed import Diagnosis as Diagnosis, UseOfElements as UseOfElements
from .faults import overfits as overfits
from .gaps import Gaps as Gaps, Truth as Truth, inference_gaps as inference_gaps
from .grid import (
    PosteriorGrid as PosteriorGrid,
    guide_on_grid as guide_on_grid,
    posterior_grid as posterior_grid,
)
from .latents import diagnose as diagnose
from .use_of_codes import UseOfCodes as UseOfCodes
from .use_of_points import UseOfPoint as UseOfPoint
