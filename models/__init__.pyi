from . import colorization as colorization, priors as priors
from .adversarial.discriminator import Discriminator as Discriminator
from .adversarial.vae_gan import VAEGAN as VAEGAN
from .autoencoders.autoencoder import Autoencoder as Autoencoder
from .codes.conditional_vqvae import ConditionalVQVAE as ConditionalVQVAE
from .codes.conditional_vqvae2 import ConditionalVQVAE2 as ConditionalVQVAE2
from .codes.vqvae import VQVAE as VQVAE
from .codes.vqvae2 import VQVAE2 as VQVAE2
from .colorization.colors import (
    LumaColors as LumaColors,
    Palette as Palette,
    PictureColors as PictureColors,
)
from .colorization.independent import IndependentSegments as IndependentSegments
from .colorization.latent_colors import LatentColors as LatentColors
from .colorization.potts import PottsSegments as PottsSegments
from .colorization.scan_lines import ScanLineSegments as ScanLineSegments
from .colorization.tree import TreeSegments as TreeSegments
from .deep.autoregressive import Autoregressive as Autoregressive
from .deep.conditional_vae import ConditionalVAE as ConditionalVAE
from .deep.hierarchical_vae import HierarchicalVAE as HierarchicalVAE
from .deep.semi_supervised_vae import SemiSupervisedVAE as SemiSupervisedVAE
from .deep.vae import VAE as VAE
from .linear.factor_analysis import FactorAnalysis as FactorAnalysis
from .linear.probabilistic_pca import ProbabilisticPCA as ProbabilisticPCA
from .mixtures.bernoulli_mixture import BernoulliMixture as BernoulliMixture
from .mixtures.gaussian_mixture import GaussianMixture as GaussianMixture
from .mixtures.mixture_of_pca import MixtureOfPCA as MixtureOfPCA
from .priors.autoregressive import AutoregressivePrior as AutoregressivePrior
from .priors.codes import (
    CodePrior as CodePrior,
    IndependentCodes as IndependentCodes,
    UniformCodes as UniformCodes,
)
from .priors.flat import FlatPrior as FlatPrior
from .priors.flow import FlowPrior as FlowPrior
from .priors.laplace import LaplacePrior as LaplacePrior
from .priors.mixture import MixturePrior as MixturePrior
from .priors.normal import (
    DiagonalNormal as DiagonalNormal,
    FullNormal as FullNormal,
    StandardNormal as StandardNormal,
)
from .priors.pixel_cnn import PixelCNNPrior as PixelCNNPrior
from .priors.transformer import TransformerPrior as TransformerPrior
from .priors.vamp import VampPrior as VampPrior
from .sequences.categorical_hmm import CategoricalHMM as CategoricalHMM
from .sequences.ctc import CTC as CTC
from .sequences.gaussian_hmm import GaussianHMM as GaussianHMM
from .text.language_model import LanguageModel as LanguageModel
from .text.latent_translation import LatentTranslation as LatentTranslation
from .text.substitution_cipher import SubstitutionCipher as SubstitutionCipher
