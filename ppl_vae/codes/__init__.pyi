from .base import (
    Quantizer as Quantizer,
    are_several as are_several,
    from_all as from_all,
    perplexity as perplexity,
)
from .learners import (
    EMA as EMA,
    CodebookLearner as CodebookLearner,
    Gradient as Gradient,
    SimVQ as SimVQ,
)
from .residual import ResidualQuantizer as ResidualQuantizer
from .scalar import FSQ as FSQ, LFQ as LFQ
from .starts import (
    CodebookStart as CodebookStart,
    KMeansStart as KMeansStart,
    RandomStart as RandomStart,
)
from .vector import VectorQuantizer as VectorQuantizer
