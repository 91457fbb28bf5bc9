from .adversarial import (
    GANLoss as GANLoss,
    VAEDisLoss as VAEDisLoss,
    VAEGANLoss as VAEGANLoss,
)
from .alternating import (
    Alternating as Alternating,
    Turn as Turn,
    moved_by as moved_by,
    routed as routed,
)
from .back_translation import BackTranslation as BackTranslation
from .base import (
    Loss as Loss,
    Objective as Objective,
    Resolved as Resolved,
    checked as checked,
    no_gradient as no_gradient,
    without_parameters as without_parameters,
)
from .control import (
    Controller as Controller,
    ControlState as ControlState,
    TargetDistortion as TargetDistortion,
    TargetRate as TargetRate,
)
from .elbo import (
    ELBO as ELBO,
    EnumELBO as EnumELBO,
    MeanFieldELBO as MeanFieldELBO,
    TraceELBO as TraceELBO,
)
from .element_draws import (
    ScoreFunctionELBO as ScoreFunctionELBO,
    StraightThroughELBO as StraightThroughELBO,
)
from .elementwise import ElementwiseELBO as ElementwiseELBO
from .from_pyro import as_objective as as_objective
from .gumbel_softmax import GumbelSoftmaxELBO as GumbelSoftmaxELBO
from .importance_weighted import ImportanceWeightedELBO as ImportanceWeightedELBO
from .known_latents import KnownLatents as KnownLatents
from .quantized import (
    QuantizedELBO as QuantizedELBO,
    marked_sites as marked_sites,
)
from .schedules import Cyclical as Cyclical, LinearWarmup as LinearWarmup, Schedule as Schedule
from .semi_supervised import SemiSupervisedELBO as SemiSupervisedELBO
from .sentence_denoising import SentenceDenoising as SentenceDenoising
from .together import Together as Together
from .wake_sleep import WakeSleep as WakeSleep
