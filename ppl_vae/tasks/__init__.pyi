from .decoding import reconstruct as reconstruct
from .encoding import encode as encode
from .ends import discrete_latents as discrete_latents, partners as partners
from .observed import NoMeanError as NoMeanError
from .outlying import Outliers as Outliers, outliers as outliers
from .paths import interpolate as interpolate, traverse as traverse
from .sampling import sample as sample, without_observed as without_observed
from .transformer import PairTransformer as PairTransformer
