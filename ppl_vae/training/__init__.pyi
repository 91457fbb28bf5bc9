from .aggregate_prior import refit_prior as refit_prior
from .checkpoints import load_checkpoint as load_checkpoint, save_checkpoint as save_checkpoint
from .errors import DivergenceError as DivergenceError
from .fitting import Fit as Fit, fit as fit
from .frozen_model import refit_guide as refit_guide
