from .ancestral import Ancestral as Ancestral
from .beams import WritesWords as WritesWords, beam_search as beam_search
from .chroma_logistic import ChromaLogistic as ChromaLogistic
from .flat import Flat as Flat
from .flows import (
    FlowDistribution as FlowDistribution,
    MonotonicSpline as MonotonicSpline,
    shrink_to_identity as shrink_to_identity,
    zuko as zuko,
)
from .labels import HIDDEN as HIDDEN, Given as Given, Revealed as Revealed
from .markov_chain import (
    IMPOSSIBLE as IMPOSSIBLE,
    MarkovChain as MarkovChain,
    sample_steps as sample_steps,
)
from .normal_kl import (
    kl_low_rank_normal as kl_low_rank_normal,
    kl_multivariate_normal as kl_multivariate_normal,
)
from .normal_mixture import (
    DiagonalNormalMixture as DiagonalNormalMixture,
    NormalMixture as NormalMixture,
)
from .point_mass import PointMass as PointMass
from .potts_field import PottsField as PottsField, ScanLines as ScanLines
from .potts_grid import PottsGrid as PottsGrid
from .potts_tree import PottsTree as PottsTree
from .quantized_beta_binomial import QuantizedBetaBinomial as QuantizedBetaBinomial
from .quantized_logistic import QuantizedLogistic as QuantizedLogistic
from .rebuild import arguments_of as arguments_of, rebuilt as rebuilt
from .region_trees import RegionTrees as RegionTrees
from .sentences import Sentences as Sentences
