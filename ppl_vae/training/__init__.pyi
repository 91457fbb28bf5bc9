from .aggregate_prior import refit_prior as refit_prior
from .code_prior import LevelsFit as LevelsFit, PriorFit as PriorFit
from .errors import DivergenceError as DivergenceError
from .fitting import Fit as Fit, fit as fit
from .frozen_model import refit_guide as refit_guide
from .larger_pictures import margins as margins
from .latents import ERROR_OF_KL as ERROR_OF_KL, KL as KL, TERM as TERM
from .noise import require_noise as require_noise
from .options import require_fit_options as require_fit_options
from .processes import Processes as Processes
