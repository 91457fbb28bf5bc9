from . import (
    capture as capture,
    checks as checks,
    codes as codes,
    coding as coding,
    coloring as coloring,
    colors as colors,
    compression as compression,
    data as data,
    diagnosis as diagnosis,
    distributions as distributions,
    em as em,
    evaluation as evaluation,
    guides as guides,
    likelihoods as likelihoods,
    models as models,
    networks as networks,
    objectives as objectives,
    pairs as pairs,
    plots as plots,
    rate_distortion as rate_distortion,
    reporting as reporting,
    runs as runs,
    runtime as runtime,
    stats as stats,
    sweeps as sweeps,
    tasks as tasks,
    training as training,
)
from ._version import __version__ as __version__
from .checks import check as check
from .data import load_data as load_data
from .diagnosis import diagnose as diagnose, inference_gaps as inference_gaps
from .em import fit_em as fit_em
from .evaluation import (
    annealed_importance_sampling as annealed_importance_sampling,
    bidirectional_monte_carlo as bidirectional_monte_carlo,
    evaluate as evaluate,
    to_arviz as to_arviz,
)
from .runs import load_run as load_run, save_run as save_run
from .tasks import (
    PairTransformer as PairTransformer,
    classification_accuracy_score as classification_accuracy_score,
    encode as encode,
    fine_tune as fine_tune,
    interpolate as interpolate,
    outliers as outliers,
    probe as probe,
    reconstruct as reconstruct,
    sample as sample,
    traverse as traverse,
)
from .training import fit as fit, refit_guide as refit_guide, refit_prior as refit_prior
