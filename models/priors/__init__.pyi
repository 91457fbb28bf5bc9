from .autoregressive import AutoregressivePrior as AutoregressivePrior
from .base import Prior as Prior
from .codes import (
    CodePrior as CodePrior,
    IndependentCodes as IndependentCodes,
    UniformCodes as UniformCodes,
)
from .flat import FlatPrior as FlatPrior
from .flow import FlowPrior as FlowPrior
from .laplace import LaplacePrior as LaplacePrior
from .levels import LevelPriors as LevelPriors
from .mixture import MixturePrior as MixturePrior
from .normal import (
    DiagonalNormal as DiagonalNormal,
    FullNormal as FullNormal,
    StandardNormal as StandardNormal,
)
from .pixel_cnn import PixelCNNPrior as PixelCNNPrior
from .transformer import TransformerPrior as TransformerPrior
from .vamp import VampPrior as VampPrior
