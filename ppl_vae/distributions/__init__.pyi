from .flows import (
    FlowDistribution as FlowDistribution,
    shrink_to_identity as shrink_to_identity,
    zuko as zuko,
)
from .markov_chain import (
    IMPOSSIBLE as IMPOSSIBLE,
    MarkovChain as MarkovChain,
    sample_steps as sample_steps,
)
from .normal_mixture import DiagonalNormalMixture as DiagonalNormalMixture
from .quantized_logistic import QuantizedLogistic as QuantizedLogistic
from .rebuild import rebuilt as rebuilt
