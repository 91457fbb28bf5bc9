from .arguments import (
    require_at_least as require_at_least,
    require_at_least_one as require_at_least_one,
    require_data_shape as require_data_shape,
    require_latent_dims as require_latent_dims,
    require_numbers as require_numbers,
    require_object as require_object,
    require_positive as require_positive,
    require_room as require_room,
    require_switches as require_switches,
    require_widths as require_widths,
)
from .attention import AttentionBlock as AttentionBlock
from .autoregressive_decoder import AutoregressiveDecoder as AutoregressiveDecoder
from .base import (
    Network as Network,
    ReadingDecoder as ReadingDecoder,
    full_precision as full_precision,
    linear_head as linear_head,
)
from .context import (
    Attributes as Attributes,
    Context as Context,
    Labels as Labels,
    require_one_each as require_one_each,
)
from .convolutional import Convolutional as Convolutional
from .corruption import (
    Denoising as Denoising,
    GaussianNoise as GaussianNoise,
    MaskingNoise as MaskingNoise,
)
from .encoder_decoder import (
    LATENTS as LATENTS,
    ROWS as ROWS,
    EncoderDecoder as EncoderDecoder,
    SentenceNetwork as SentenceNetwork,
    filled_up as filled_up,
    require_shape_of_sentences as require_shape_of_sentences,
)
from .gated_layers import GatedLayers as GatedLayers
from .gradients import straight_through as straight_through
from .grid_context import CodesAbove as CodesAbove
from .grids import (
    ConvolutionalGrid as ConvolutionalGrid,
    GridNetwork as GridNetwork,
    PictureDecoder as PictureDecoder,
    PictureEncoder as PictureEncoder,
    Slots as Slots,
)
from .mlp import MLP as MLP
from .pyramid import (
    GridPyramid as GridPyramid,
    PyramidDecoder as PyramidDecoder,
    PyramidEncoder as PyramidEncoder,
)
from .rebuildable import (
    Rebuildable as Rebuildable,
    Recipe as Recipe,
    recipe_of as recipe_of,
    told_instead as told_instead,
)
from .tiling import MOST_PIXELS as MOST_PIXELS, Tile as Tile, tiles as tiles
from .unet import UNet as UNet
from .unit_norm import UnitNorm as UnitNorm
from .word_noise import WordNoise as WordNoise
