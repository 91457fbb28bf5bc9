from .crossed import CrossedEstimate as CrossedEstimate
from .estimate import Estimate as Estimate, bits_per_dim as bits_per_dim
from .moments import (
    RunningVariance as RunningVariance,
    active_units as active_units,
    log_mean_exp as log_mean_exp,
    standard_error as standard_error,
)
from .pareto import (
    MIN_TAIL as MIN_TAIL,
    bad_khat as bad_khat,
    generalized_pareto_fit as generalized_pareto_fit,
    khat_limit as khat_limit,
    pareto_khat as pareto_khat,
    tail_size as tail_size,
)
from .partitions import (
    segmentation_covering as segmentation_covering,
    variation_of_information as variation_of_information,
)
from .results import (
    Result as Result,
    RowResult as RowResult,
    as_lines as as_lines,
    not_finite as not_finite,
)
from .weights import StreamingWeights as StreamingWeights
