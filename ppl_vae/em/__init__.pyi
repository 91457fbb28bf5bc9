from .data import check_start as check_start
from .fitting import EMFit as EMFit, fit_em as fit_em
from .loop import EMError as EMError
from .notes import overfitting as overfitting
from .online import StepSize as StepSize
from .steps import GradientSteps as GradientSteps
