"""What there is to test, one row for each thing. A test that takes a table from here runs for every row of it.

To add a guide, a model, a prior, a likelihood or an objective, add a row here: it is then checked, trained,
evaluated, saved, loaded and exported. `test_every_export_has_a_row` names what has no row yet.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ppl_vae import likelihoods
from ppl_vae.codes import (
    FSQ,
    LFQ,
    Gradient,
    Quantizer,
    RandomStart,
    ResidualQuantizer,
    SimVQ,
    VectorQuantizer,
)
from ppl_vae.colors import split_colors
from ppl_vae.guides import (
    BottomUp,
    CategoricalEncoder,
    DeltaEncoder,
    Enumerated,
    Exact,
    FullCovariance,
    HierarchicalQuantizingEncoder,
    InverseAutoregressive,
    LowRank,
    MaskedAutoregressive,
    MeanField,
    MixtureOfGaussians,
    NeuralSpline,
    NoLatent,
    PerRow,
    QuantizingEncoder,
    Recurrent,
    SegmentationEncoder,
    SemiAmortized,
    SemiSupervised,
    StructuredMeanField,
    TopDown,
    Translator,
    WithinPicture,
)
from ppl_vae.models import (
    CTC,
    VAE,
    VAEGAN,
    VQVAE,
    VQVAE2,
    Autoencoder,
    Autoregressive,
    AutoregressivePrior,
    BernoulliMixture,
    CategoricalHMM,
    ConditionalVAE,
    ConditionalVQVAE,
    ConditionalVQVAE2,
    DiagonalNormal,
    FactorAnalysis,
    FlatPrior,
    FlowPrior,
    FullNormal,
    GaussianHMM,
    GaussianMixture,
    HierarchicalVAE,
    IndependentCodes,
    IndependentSegments,
    LanguageModel,
    LaplacePrior,
    LatentColors,
    LatentTranslation,
    LumaColors,
    MixtureOfPCA,
    MixturePrior,
    Palette,
    PictureColors,
    PixelCNNPrior,
    PottsSegments,
    ProbabilisticPCA,
    ScanLineSegments,
    SemiSupervisedVAE,
    StandardNormal,
    SubstitutionCipher,
    TransformerPrior,
    TreeSegments,
    UniformCodes,
    VampPrior,
)
from ppl_vae.models.colorization import Colors
from ppl_vae.models.priors import CodePrior, Prior
from ppl_vae.networks import (
    MLP,
    Attributes,
    AutoregressiveDecoder,
    Convolutional,
    ConvolutionalGrid,
    Denoising,
    EncoderDecoder,
    GridNetwork,
    GridPyramid,
    Labels,
    Network,
    Slots,
    UNet,
    UnitNorm,
)
from ppl_vae.objectives import (
    ELBO,
    BackTranslation,
    ElementwiseELBO,
    EnumELBO,
    GANLoss,
    GumbelSoftmaxELBO,
    ImportanceWeightedELBO,
    KnownLatents,
    LinearWarmup,
    MeanFieldELBO,
    Objective,
    QuantizedELBO,
    ScoreFunctionELBO,
    SemiSupervisedELBO,
    SentenceDenoising,
    StraightThroughELBO,
    Together,
    TraceELBO,
    VAEDisLoss,
    VAEGANLoss,
    WakeSleep,
)
from ppl_vae.pairs import Batch, attach_guide

SHAPE = (1, 8, 8)  # of a row, in the pairs
ROWS = 16

NETWORKS: dict[str, Network] = {
    "MLP": MLP(hidden=(8,)),
    "linear": MLP(hidden=()),
    "Convolutional": Convolutional((4, 6), 8),
    "MLP-skip": MLP(hidden=(8, 6), skip=True),
    "Denoising": Denoising(MLP(hidden=(8,)), noise=0.3, masking=0.2),
    "UnitNorm": UnitNorm(MLP(hidden=(8,))),
    "Convolutional-skip": Convolutional((4, 6), 8, skip=True),
    "AutoregressiveDecoder": AutoregressiveDecoder(Convolutional((4,), 8), 4, layers=2, window=3),
}

TOKENS = AutoregressiveDecoder(
    MLP(hidden=(8,)), 4, layers=2, window=3, pixel_dropout=0.2, categories=3
)


class LikelihoodRow(NamedTuple):
    make: Callable[[], likelihoods.Likelihood]
    data: Callable[[Tensor], Tensor]  # what it can observe, from numbers between 0 and 1


LIKELIHOODS: dict[str, LikelihoodRow] = {
    "Bernoulli": LikelihoodRow(likelihoods.Bernoulli, lambda u: (u > 0.5).float()),
    "Binomial": LikelihoodRow(lambda: likelihoods.Binomial(16), lambda u: (16 * u).round()),
    "Gaussian": LikelihoodRow(lambda: likelihoods.Gaussian(0.5), lambda u: u),
    "LearnedGaussian": LikelihoodRow(likelihoods.LearnedGaussian, lambda u: u),
    "OptimalGaussian": LikelihoodRow(likelihoods.OptimalGaussian, lambda u: u),
    "DiscretizedLogistic": LikelihoodRow(
        likelihoods.DiscretizedLogistic, lambda u: (255 * u).round() / 255
    ),
    "BetaBinomial": LikelihoodRow(likelihoods.BetaBinomial, lambda u: (255 * u).round() / 255),
    "Categorical": LikelihoodRow(
        lambda: likelihoods.Categorical(3), lambda u: (3 * u).floor().clamp(max=2.0)
    ),
}

PRIORS: dict[str, Prior] = {
    "StandardNormal": StandardNormal(),
    "DiagonalNormal": DiagonalNormal(),
    "FlatPrior": FlatPrior(),
    "FullNormal": FullNormal(),
    "LaplacePrior": LaplacePrior(1.0),
    "MixturePrior": MixturePrior(components=3),
    "VampPrior": VampPrior(components=4),
    "FlowPrior": FlowPrior(transforms=2, hidden=(8,)),
    "AutoregressivePrior": AutoregressivePrior(correlation=0.5),
}

GRIDS: dict[str, GridNetwork] = {
    "Slots": Slots(4, MLP(hidden=(8,))),
    "ConvolutionalGrid": ConvolutionalGrid(12, halvings=2, blocks=1),
    "patches": ConvolutionalGrid(12, halvings=2, blocks=1, patch_embedding=True),
}

PYRAMID = GridPyramid(12, halvings=(2, 1), blocks=1)

QUANTIZERS: dict[str, Callable[[], Quantizer]] = {
    "VectorQuantizer": lambda: VectorQuantizer(5, 3),
    "VectorQuantizer-Gradient": lambda: VectorQuantizer(5, 3, Gradient(), RandomStart()),
    "VectorQuantizer-SimVQ": lambda: VectorQuantizer(5, 3, SimVQ(), cosine=True),
    "ResidualQuantizer": lambda: ResidualQuantizer(4, 3, depth=2),
    "FSQ": lambda: FSQ((2, 2, 3)),
    "LFQ": lambda: LFQ(bits=3),
}

CODE_PRIORS: dict[str, CodePrior] = {
    "UniformCodes": UniformCodes(),
    "IndependentCodes": IndependentCodes(),
    "PixelCNNPrior": PixelCNNPrior(channels=6, layers=3),
    "TransformerPrior": TransformerPrior(width=8, layers=2, heads=2),
}

COLORS: dict[str, Colors] = {
    "Palette": Palette(),
    "LumaColors": LumaColors(hidden=4),
    "PictureColors": PictureColors(UNet((4, 6))),
    "LatentColors": LatentColors(),
}

# Guides of one latent "z" that read the data alone: (data_shape, latent_dim, network) -> guide.
AMORTIZED: dict[str, Callable[[Sequence[int], int, Network], Any]] = {
    "MeanField": MeanField,
    "FullCovariance": FullCovariance,
    "LowRank": LowRank,
    "MixtureOfGaussians": partial(MixtureOfGaussians, components=3),
    "MaskedAutoregressive": partial(MaskedAutoregressive, transforms=2, hidden=(8,)),
    "InverseAutoregressive": partial(InverseAutoregressive, transforms=2, hidden=(8,)),
    "NeuralSpline": partial(NeuralSpline, transforms=2, hidden=(8,)),
}
FLOWS = ("MaskedAutoregressive", "InverseAutoregressive", "NeuralSpline")  # of these


def hide(rows: Tensor) -> Tensor:
    """Sentences with blanks in place of half of their words."""
    return rows.where((torch.rand(rows.shape) < 0.5) | (rows < 4), 3)


OBJECTIVES: dict[str, Objective] = {
    "ELBO": ELBO(),
    "TraceELBO": TraceELBO(num_particles=2),
    "MeanFieldELBO": MeanFieldELBO(),
    "ImportanceWeightedELBO": ImportanceWeightedELBO(num_particles=3),
    "beta": ELBO(beta=LinearWarmup(1, start=0.5)),
    "free-bits": ELBO(free_bits=0.1),
    "stick-the-landing": TraceELBO(stick_the_landing=True),
    "doubly-reparameterized": ImportanceWeightedELBO(num_particles=3, doubly_reparameterized=True),
    "EnumELBO": EnumELBO(),
    "ElementwiseELBO": ElementwiseELBO(),
    "ScoreFunctionELBO": ScoreFunctionELBO(),
    "StraightThroughELBO": StraightThroughELBO(),
    "GumbelSoftmaxELBO": GumbelSoftmaxELBO(),
    "SemiSupervisedELBO": SemiSupervisedELBO(classification=2.0),
    "QuantizedELBO": QuantizedELBO(gradient="rotation"),
    "VAEGANLoss": VAEGANLoss(gamma=0.1, num_particles=2, discriminator_lr=1e-4),
    "GANLoss": GANLoss(saturating=True),
    "VAEDisLoss": VAEDisLoss(),
    "WakeSleep": WakeSleep(),
    "BackTranslation": BackTranslation(torch.tensor([0, 1, 1])),
    "SentenceDenoising": SentenceDenoising(torch.tensor([[4, 5, 1], [8, 1, 0]]), noise=hide),
    "KnownLatents": KnownLatents((torch.tensor([[4, 1]]), torch.tensor([[8, 1]]))),
    "Together": Together(
        [
            BackTranslation(torch.tensor([[4, 5, 1], [8, 1, 0]])),
            KnownLatents((torch.tensor([[4, 1]]), torch.tensor([[8, 1]])), learn_prior=False),
        ]
    ),
}


# -- pairs -----------------------------------------------------------------------------------------------

MakePair = Callable[
    [], tuple[nn.Module, nn.Module, Any]
]  # -> model, guide, data: a tensor, or several
MakeModel = Callable[[], Any]
MakeGuide = Callable[[Any, Any], Any]  # (model, data) -> guide


def pair(
    model: MakeModel, guide: MakeGuide, data: Callable[[Tensor], Any] = lambda u: u
) -> MakePair:
    """A row of `PAIRS`: always with the same initial weights and the same data."""

    def make() -> tuple[nn.Module, nn.Module, Any]:
        u = torch.rand(ROWS, *SHAPE, generator=torch.Generator().manual_seed(1))
        torch.manual_seed(0)
        p, x = model(), data(u)
        return p, guide(p, x), x

    return make


def vae(
    likelihood: str = "Gaussian", network: str = "MLP", prior: str = "StandardNormal"
) -> MakeModel:
    return lambda: VAE(SHAPE, 2, NETWORKS[network], LIKELIHOODS[likelihood].make(), PRIORS[prior])


def amortized(guide: str, network: str = "MLP") -> MakeGuide:
    return lambda model, x: AMORTIZED[guide](SHAPE, 2, NETWORKS[network])


def attached(model: Any, x: Tensor) -> MeanField:
    """For a model whose prior is made of the guide."""
    guide = MeanField(SHAPE, 2, NETWORKS["MLP"])
    attach_guide(model, guide)
    with torch.no_grad():
        guide.head.weight.mul_(10.0)  # rows apart, so that their KL exceeds the free bits
    return guide


def delta_encoder(network: str, model: Any, x: Tensor) -> DeltaEncoder:
    return DeltaEncoder(SHAPE, 2, NETWORKS[network])


def semi_amortized(differentiable: bool) -> MakeGuide:
    return lambda model, x: SemiAmortized(
        model, SHAPE, 2, NETWORKS["MLP"], steps=2, num_samples=2, differentiable=differentiable
    )


def with_attributes(u: Tensor) -> tuple[Tensor, Tensor]:
    """Rows with two attributes each."""
    return u, u.flatten(1)[:, :2].round()


def with_labels(u: Tensor, known: int = ROWS) -> tuple[Tensor, Tensor]:
    """Rows with labels from 0 to 2, of which those after the first few are hidden."""
    y = torch.arange(ROWS) % 3
    y[known:] = -1
    return u, y


def of_colors(u: Tensor) -> tuple[Tensor, Tensor]:
    """Chroma and luma of colored pictures."""
    rgb = torch.stack([u[:, 0], u[:, 0].flip(-1), 0.5 * u[:, 0]], -1)
    luma, chroma = split_colors((255 * rgb).round().byte())
    return chroma.float(), luma.float()


def conditional(network: str, context: Labels | Attributes) -> MakeModel:
    return lambda: ConditionalVAE(
        SHAPE, 2, NETWORKS[network], likelihoods.Gaussian(0.5), context=context
    )


def given_context(guide: str, network: str) -> MakeGuide:
    return lambda model, x: AMORTIZED[guide](
        SHAPE,
        2,
        NETWORKS[network],
        context=model.context,  # type: ignore[call-arg]
    )


def quantized(
    quantizer: str,
    network: str = "ConvolutionalGrid",
    temperature: float = 0.0,
    prior: str = "UniformCodes",
) -> MakePair:
    """A row of a vector-quantized autoencoder and its guide."""
    return pair(
        lambda: VQVAE(
            SHAPE,
            QUANTIZERS[quantizer](),
            GRIDS[network],
            likelihoods.Gaussian(0.5),
            CODE_PRIORS[prior],
        ),
        lambda model, x: QuantizingEncoder(model, GRIDS[network], temperature),
    )


def hierarchical() -> HierarchicalVAE:
    return HierarchicalVAE(
        SHAPE, (3, 2), NETWORKS["MLP"], MLP(hidden=(4,)), likelihoods.Gaussian(0.5)
    )


def cipher() -> SubstitutionCipher:
    return SubstitutionCipher((6,), [0.4, 0.6], [[0.9, 0.1], [0.3, 0.7]], symbols=3)


SENTENCE = 6
"""The most numbers of a sentence."""


def sentences(u: Tensor) -> Tensor:
    """Sentences of a vocabulary of 9 numbers, of several lengths."""
    words = 4 + (5 * u.flatten(1)[:, :SENTENCE]).floor().clamp(max=4).long()
    lengths = (torch.arange(len(u)) % SENTENCE).unsqueeze(1)
    places = torch.arange(SENTENCE)
    return words.where(places < lengths, 0) + (places == lengths).long()


def latent_translation() -> LatentTranslation:
    return LatentTranslation((SENTENCE,), 9, EncoderDecoder(width=8, layers=1, heads=2))


def gaussian_mixture() -> GaussianMixture:
    return GaussianMixture(SHAPE, 3, "diagonal")


MODELS: dict[str, MakeModel] = {
    "VAE": vae(),
    "PCA": lambda: ProbabilisticPCA(SHAPE, 2),
    "PCA-fixed-sigma": lambda: ProbabilisticPCA(SHAPE, 2, sigma=0.5, learn_sigma=False),
}

PAIRS: dict[str, MakePair] = {
    # Every likelihood, with both kinds of networks; every prior; every guide that reads the data alone.
    **{
        f"{likelihood}-{network}": pair(
            vae(likelihood, network), amortized("MeanField"), LIKELIHOODS[likelihood].data
        )
        for likelihood in LIKELIHOODS
        for network in ("MLP", "Convolutional", "AutoregressiveDecoder")
    },
    **{
        f"VAE-{network}": pair(vae(network=network), amortized("MeanField", network))
        for network in ("MLP-skip", "Convolutional-skip", "Denoising", "UnitNorm")
    },
    **{
        f"VAE-{prior}": pair(
            vae(prior=prior), attached if prior == "VampPrior" else amortized("MeanField")
        )
        for prior in PRIORS
        if prior != "FlatPrior"  # which is for guides that give points
    },
    **{f"VAE-{guide}": pair(vae(), amortized(guide)) for guide in AMORTIZED},
    **{
        f"Autoencoder-{network}": pair(
            partial(Autoencoder, SHAPE, 2, NETWORKS[network]),
            partial(delta_encoder, network),
        )
        for network in ("MLP", "Convolutional", "Denoising")
    },
    "Autoencoder-linear": pair(
        lambda: Autoencoder(SHAPE, 2, linear=True, prior=PRIORS["FullNormal"]),
        lambda model, x: DeltaEncoder(SHAPE, 2, linear=True),
    ),
    "Autoencoder-sparse": pair(
        lambda: Autoencoder(SHAPE, 4, NETWORKS["UnitNorm"], prior=PRIORS["LaplacePrior"]),
        lambda model, x: DeltaEncoder(SHAPE, 4, NETWORKS["MLP"], nonnegative=True, top_k=3),
    ),
    "VAE-MeanField-committed": pair(
        vae(), lambda model, x: MeanField(SHAPE, 2, NETWORKS["MLP"], committed_rate=0.1)
    ),
    "VAE-tokens": pair(
        lambda: VAE((6,), 2, TOKENS, likelihoods.Categorical(3)),
        lambda model, x: MeanField((6,), 2, TOKENS),
        lambda u: (3 * u.flatten(1)[:, :6]).floor().clamp(max=2.0),
    ),
    # What the other models make of some of these guides.
    **{
        f"{model}-{guide}": pair(MODELS[model], amortized(guide))
        for model in ("PCA", "PCA-fixed-sigma")
        for guide in ("MeanField", "FullCovariance")
    },
    **{
        f"{model}-MeanField-Convolutional": pair(
            MODELS[model], amortized("MeanField", "Convolutional")
        )
        for model in MODELS
    },
    # Guides and models of their own kind: () -> model, (model, data) -> guide.
    "PCA-Exact": pair(MODELS["PCA"], lambda model, x: Exact(model)),
    "PCA-fixed-sigma-Exact": pair(MODELS["PCA-fixed-sigma"], lambda model, x: Exact(model)),
    **{
        f"ConditionalVAE-{guide}-{network}": pair(
            conditional(network, Labels(3)), given_context(guide, network), with_labels
        )
        for guide, network in (
            ("MeanField", "MLP"),
            ("MeanField", "Convolutional"),
            ("NeuralSpline", "MLP"),
            ("LowRank", "linear"),
            ("MeanField", "AutoregressiveDecoder"),
        )
    },
    "ConditionalVAE-attributes": pair(
        conditional("Convolutional", Attributes(2)),
        given_context("FullCovariance", "Convolutional"),
        with_attributes,
    ),
    "ConditionalVAE-PerRow": pair(
        conditional("MLP", Labels(3)),
        lambda model, x: PerRow(given_context("MixtureOfGaussians", "MLP")(model, x), x),
        with_labels,
    ),
    "SemiSupervised": pair(
        lambda: SemiSupervisedVAE(SHAPE, 2, 3, NETWORKS["MLP"], likelihoods.Gaussian(0.5)),
        lambda model, x: SemiSupervised(SHAPE, 2, 3, NETWORKS["MLP"]),
        lambda u: with_labels(u, known=5),
    ),
    "VAE-SemiAmortized": pair(vae(), semi_amortized(differentiable=True)),
    "VAE-SemiAmortized-constant": pair(vae(), semi_amortized(differentiable=False)),
    "PCA-PerRow": pair(
        MODELS["PCA"], lambda model, x: PerRow(amortized("FullCovariance")(model, x), x)
    ),
    "FactorAnalysis-MeanField": pair(lambda: FactorAnalysis(SHAPE, 2), amortized("MeanField")),
    "GaussianMixture-Enumerated": pair(gaussian_mixture, lambda model, x: Enumerated(model)),
    "GaussianMixture-CategoricalEncoder": pair(
        gaussian_mixture, lambda model, x: CategoricalEncoder(SHAPE, 3, NETWORKS["MLP"])
    ),
    "GaussianHMM-Recurrent": pair(
        lambda: GaussianHMM((4, 16), 2),
        lambda model, x: Recurrent((4, 16), 2, hidden=4),
        lambda u: u.reshape(ROWS, 4, 16),
    ),
    "LatentTranslation-Translator": pair(
        latent_translation, lambda model, x: Translator(model), sentences
    ),
    "LanguageModel-NoLatent": pair(
        lambda: LanguageModel((SENTENCE,), 9, EncoderDecoder(width=8, layers=1, heads=2)),
        lambda model, x: NoLatent(),
        sentences,
    ),
    "SubstitutionCipher-Recurrent": pair(
        cipher,
        lambda model, x: Recurrent((6,), 2, hidden=4, symbols=3, whole=True),
        lambda u: (3 * u.flatten(1)[:, :6]).floor().clamp(max=2.0).long(),
    ),
    "IndependentSegments-Exact": pair(
        lambda: IndependentSegments(3, network=UNet((4, 6))),
        lambda model, x: Exact(model),
        of_colors,
    ),
    "IndependentSegments-SegmentationEncoder": pair(
        lambda: IndependentSegments(3, network=UNet((4, 6))),
        lambda model, x: SegmentationEncoder(3, UNet((4, 6))),
        of_colors,
    ),
    "IndependentSegments-WithinPicture": pair(
        lambda: IndependentSegments(3, COLORS["LatentColors"], UNet((4, 6))),
        lambda model, x: WithinPicture(model, steps=2),
        of_colors,
    ),
    "ScanLineSegments-Exact": pair(
        lambda: ScanLineSegments(3, COLORS["LumaColors"], UNet((4, 6))),
        lambda model, x: Exact(model),
        of_colors,
    ),
    "TreeSegments-Exact": pair(
        lambda: TreeSegments(3, COLORS["Palette"], UNet((4, 6)), superpixel_size=6),
        lambda model, x: Exact(model),
        of_colors,
    ),
    "PottsSegments-SegmentationEncoder": pair(
        lambda: PottsSegments(3, COLORS["PictureColors"], UNet((4, 6))),
        lambda model, x: SegmentationEncoder(3, UNet((4, 6))),
        lambda u: of_colors(u[..., :3]),
    ),
    "PottsSegments-StructuredMeanField": pair(
        lambda: PottsSegments(3, COLORS["PictureColors"], UNet((4, 6))),
        lambda model, x: StructuredMeanField(model, sweeps=3),
        lambda u: of_colors(u[..., :3]),
    ),
    **{f"VQVAE-{quantizer}": quantized(quantizer) for quantizer in QUANTIZERS},
    **{
        f"VQVAE-{prior}": quantized("VectorQuantizer", "Slots", prior=prior)
        for prior in CODE_PRIORS
    },
    "ConditionalVQVAE": pair(
        lambda: ConditionalVQVAE(
            SHAPE,
            QUANTIZERS["VectorQuantizer"](),
            GRIDS["Slots"],
            likelihoods.Gaussian(0.5),
            CODE_PRIORS["IndependentCodes"],
            Labels(3),
        ),
        lambda model, x: QuantizingEncoder(model, GRIDS["Slots"]),
        with_labels,
    ),
    "VQVAE2": pair(
        lambda: VQVAE2(
            SHAPE,
            [VectorQuantizer(5, 3), VectorQuantizer(4, 2, Gradient())],
            PYRAMID,
            likelihoods.Gaussian(0.5),
        ),
        lambda model, x: HierarchicalQuantizingEncoder(model, PYRAMID),
    ),
    "ConditionalVQVAE2": pair(
        lambda: ConditionalVQVAE2(
            SHAPE,
            [VectorQuantizer(5, 3), VectorQuantizer(4, 2, Gradient())],
            PYRAMID,
            likelihoods.Gaussian(0.5),
            [CODE_PRIORS["PixelCNNPrior"], CODE_PRIORS["IndependentCodes"]],
            Labels(3),
        ),
        lambda model, x: HierarchicalQuantizingEncoder(model, PYRAMID),
        with_labels,
    ),
    "VAEGAN": pair(
        lambda: VAEGAN(
            SHAPE,
            2,
            NETWORKS["MLP"],
            discriminator=NETWORKS["Convolutional"],
            feature_layer=2,
        ),
        amortized("MeanField"),
    ),
    "VAEGAN-MLP": pair(
        lambda: VAEGAN(
            SHAPE,
            2,
            NETWORKS["Convolutional"],
            likelihoods.LearnedGaussian(),
            DiagonalNormal(),
            NETWORKS["MLP"],
        ),
        amortized("NeuralSpline"),
    ),
    "VQVAE-patches": quantized("VectorQuantizer", "patches"),
    "VQVAE-drawn": quantized("VectorQuantizer-Gradient", "Slots", temperature=1.0),
    "Hierarchical-BottomUp": pair(
        hierarchical,
        lambda model, x: BottomUp(SHAPE, (3, 2), NETWORKS["MLP"], MLP(hidden=(4,))),
    ),
    "Hierarchical-TopDown": pair(
        hierarchical,
        lambda model, x: TopDown(model, SHAPE, (3, 2), NETWORKS["MLP"], MLP(hidden=(4,))),
    ),
}

# Objectives that are meant for discrete latents, and the pairs that they are tried with.
DISCRETE = ("GaussianMixture-Enumerated", "GaussianMixture-CategoricalEncoder")
SEGMENTED = (
    "IndependentSegments-Exact",
    "IndependentSegments-SegmentationEncoder",
    "ScanLineSegments-Exact",
    "TreeSegments-Exact",
    "PottsSegments-SegmentationEncoder",
    "PottsSegments-StructuredMeanField",
)
CHOSEN = (
    *("ConditionalVQVAE", "VQVAE2", "ConditionalVQVAE2"),
    *(f"VQVAE-{part}" for part in (*QUANTIZERS, *CODE_PRIORS)),
)
WITH_DISCRIMINATOR = ("VAEGAN", "VAEGAN-MLP")
GAMES = ("VAEGANLoss", "GANLoss", "VAEDisLoss")
ONLY = {
    "ElementwiseELBO": (*SEGMENTED, "SubstitutionCipher-Recurrent"),
    "ScoreFunctionELBO": (
        "IndependentSegments-SegmentationEncoder",
        "GaussianMixture-CategoricalEncoder",
    ),
    "StraightThroughELBO": ("IndependentSegments-SegmentationEncoder",),
    "EnumELBO": (*DISCRETE, "GaussianHMM-Recurrent", "SemiSupervised"),
    "GumbelSoftmaxELBO": (*DISCRETE, "IndependentSegments-SegmentationEncoder"),
    "SemiSupervisedELBO": ("SemiSupervised",),
    "QuantizedELBO": (*CHOSEN, "VQVAE-drawn"),
    **dict.fromkeys(GAMES, WITH_DISCRIMINATOR),
    "WakeSleep": (
        "VAE-NeuralSpline",
        "Gaussian-Convolutional",
        "GaussianMixture-CategoricalEncoder",
        "LatentTranslation-Translator",
    ),
    **dict.fromkeys(
        ("SentenceDenoising", "KnownLatents", "Together"), ("LatentTranslation-Translator",)
    ),
    "BackTranslation": ("GaussianMixture-CategoricalEncoder",),
}
TRIED_WITH = dict.fromkeys(WITH_DISCRIMINATOR, ("ELBO", "beta", "free-bits", *GAMES))
"""Pairs that are tried with these objectives alone: others do not train the discriminator, and it is told."""

# Objectives that are wrong for a pair, and what `check` says of each.
NO_SAMPLER = "no reparameterized sampler, but {} needs one"
FOR_CONTINUOUS = {
    "MeanFieldELBO": NO_SAMPLER.format("MeanFieldELBO"),
    "free-bits": "EnumELBO: there are no free bits",
    "stick-the-landing": NO_SAMPLER.format("stick_the_landing"),
    "doubly-reparameterized": NO_SAMPLER.format("doubly_reparameterized"),
}
FOR_CHOSEN = {
    **dict.fromkeys(FOR_CONTINUOUS, "passes no gradient through that"),
    **dict.fromkeys(("TraceELBO", "ImportanceWeightedELBO"), "passes no gradient through that"),
    "free-bits": "QuantizedELBO: there are no free bits",
}
FOR_JUDGED = {"free-bits": "VAEGANLoss: there are no free bits"}
UNSUITED: dict[str, dict[str, str]] = {
    **dict.fromkeys(
        SEGMENTED, FOR_CONTINUOUS | {"free-bits": "ElementwiseELBO: there are no free bits"}
    ),
    "SubstitutionCipher-Recurrent": FOR_CONTINUOUS
    | {"free-bits": "ElementwiseELBO: there are no free bits"},
    "LatentTranslation-Translator": FOR_CONTINUOUS,
    "GaussianMixture-Enumerated": FOR_CONTINUOUS,
    "GaussianMixture-CategoricalEncoder": FOR_CONTINUOUS,
    "GaussianHMM-Recurrent": FOR_CONTINUOUS,
    "SemiSupervised": FOR_CONTINUOUS,
    "VQVAE-drawn": FOR_CONTINUOUS | {"free-bits": "QuantizedELBO: there are no free bits"},
    **dict.fromkeys(CHOSEN, FOR_CHOSEN),
    **dict.fromkeys(WITH_DISCRIMINATOR, FOR_JUDGED),
    "Hierarchical-BottomUp": {
        "MeanFieldELBO": "the analytic KL of site 'z1' is wrong for this pair"
    },
}


# -- models with closed forms ----------------------------------------------------------------------------

CLOSED_FORM_ROWS = 24
MakeClosedForm = Callable[[], tuple[Any, Batch]]


def noisy(model: nn.Module) -> Any:
    """The model in float64, its parameters moved to no particular place."""
    model = model.double()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            shift = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.add_(0.3 * shift)
    return model


def real(*shape: int) -> Tensor:
    """Rows in two groups."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(CLOSED_FORM_ROWS, *shape, generator=generator, dtype=torch.float64)
    x[: CLOSED_FORM_ROWS // 2] += 2.0
    return x


def counts(*shape: int) -> Tensor:
    """Of 0 to 2."""
    return real(*shape).clamp(0, 2).round()


def labels() -> Tensor:
    """One or two labels per row, of two; 0 fills up."""
    return torch.tensor([[1, 0], [2, 1], [2, 2], [2, 0]]).repeat(CLOSED_FORM_ROWS // 4, 1)


def lengths() -> Tensor:
    """Of sequences of at most three steps."""
    return torch.tensor([3, 1, 2, 3]).repeat(CLOSED_FORM_ROWS // 4)


def mixture(covariance: Any) -> MakeClosedForm:
    return lambda: (noisy(GaussianMixture((3,), 2, covariance)), real(3))


# A row: () -> (model, x), where x is a tensor, or a tuple of tensors for programs of several arguments.
# The model is in float64, so that the oracles are sharp, with parameters away from any optimum.
CLOSED_FORM_MODELS: dict[str, MakeClosedForm] = {
    "GaussianMixture-full": mixture("full"),
    "GaussianMixture-diagonal": mixture("diagonal"),
    "GaussianMixture-tied": mixture("tied"),
    "GaussianMixture-spherical": mixture("spherical"),
    "GaussianMixture-pictures": lambda: (noisy(GaussianMixture((1, 2, 2), 2)), real(1, 2, 2)),
    "BernoulliMixture": lambda: (noisy(BernoulliMixture((2, 2), 3)), (real(2, 2) > 0.5).double()),
    "CTC": lambda: (noisy(CTC(nn.Linear(3, 3))), (labels(), real(5, 3))),
    "Autoregressive": lambda: (noisy(Autoregressive((4,), 3, (16,))), counts(4)),
    "FactorAnalysis": lambda: (noisy(FactorAnalysis((3,), 1)), real(3)),
    "MixtureOfPCA": lambda: (noisy(MixtureOfPCA((3,), 1, 2)), real(3)),
    "GaussianHMM": lambda: (noisy(GaussianHMM((3, 2), 2)), real(3, 2)),
    "GaussianHMM-ragged": lambda: (noisy(GaussianHMM((3, 2), 2, "full")), (real(3, 2), lengths())),
    "CategoricalHMM": lambda: (
        noisy(CategoricalHMM((3,), 2, 3)),
        (counts(3).long(), lengths()),
    ),
    "LanguageModel": lambda: (
        noisy(LanguageModel((SENTENCE,), 9, EncoderDecoder(width=8, layers=1, heads=2))).eval(),
        sentences(real(64).sigmoid()),
    ),
    "SubstitutionCipher": lambda: (noisy(cipher()), counts(3).long()),
    "SubstitutionCipher-ragged": lambda: (noisy(cipher()), (counts(3).long(), lengths())),
    "ProbabilisticPCA": lambda: (noisy(ProbabilisticPCA((3,), 2)), real(3)),
}


# -- the command line ------------------------------------------------------------------------------------

SMALL_RUN = ("--max_rows", "60", "--num_samples", "20", "--batch_size", "32")
SMALL_NETWORK = ("--model.network", "MLP", "--model.network.hidden", "[16]")
