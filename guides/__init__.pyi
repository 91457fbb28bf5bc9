from .amortized import Amortized as Amortized
from .categorical import CategoricalEncoder as CategoricalEncoder
from .delta_encoder import DeltaEncoder as DeltaEncoder
from .enumerated import Enumerated as Enumerated
from .exact import Exact as Exact
from .flows import (
    InverseAutoregressive as InverseAutoregressive,
    MaskedAutoregressive as MaskedAutoregressive,
    NeuralSpline as NeuralSpline,
)
from .full_covariance import FullCovariance as FullCovariance
from .hierarchical import BottomUp as BottomUp, TopDown as TopDown
from .low_rank import LowRank as LowRank
from .mean_field import MeanField as MeanField
from .mixture_of_gaussians import MixtureOfGaussians as MixtureOfGaussians
from .no_latent import NoLatent as NoLatent
from .per_row import PerRow as PerRow
from .quantizing import (
    HierarchicalQuantizingEncoder as HierarchicalQuantizingEncoder,
    QuantizingEncoder as QuantizingEncoder,
)
from .recurrent import Recurrent as Recurrent
from .segmentation import SegmentationEncoder as SegmentationEncoder
from .semi_amortized import SemiAmortized as SemiAmortized
from .semi_supervised import SemiSupervised as SemiSupervised
from .structured_mean_field import StructuredMeanField as StructuredMeanField
from .translator import Translator as Translator
from .within_picture import WithinPicture as WithinPicture
