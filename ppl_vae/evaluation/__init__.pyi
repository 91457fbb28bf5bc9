from .annealed import (
    Annealed as Annealed,
    annealed_importance_sampling as annealed_importance_sampling,
)
from .arviz import netcdf_size as netcdf_size, to_arviz as to_arviz
from .chains import (
    AnnealingSchedule as AnnealingSchedule,
    Chunk as Chunk,
    in_chunks as in_chunks,
)
from .conditions import Conditions as Conditions
from .importance import evaluate as evaluate
from .ladder import FEWEST_SAMPLES as FEWEST_SAMPLES, Ladder as Ladder
from .path import PriorGuide as PriorGuide
from .result import Evaluation as Evaluation, not_reached as not_reached
from .sandwich import (
    Sandwich as Sandwich,
    bidirectional_monte_carlo as bidirectional_monte_carlo,
    warn_if_draws_follow_data as warn_if_draws_follow_data,
)
