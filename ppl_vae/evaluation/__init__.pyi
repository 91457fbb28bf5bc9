from .annealed import (
    Annealed as Annealed,
    annealed_importance_sampling as annealed_importance_sampling,
)
from .arviz import to_arviz as to_arviz
from .generate import Generator as Generator
from .importance import Evaluation as Evaluation, evaluate as evaluate
from .sandwich import Sandwich as Sandwich, bidirectional_monte_carlo as bidirectional_monte_carlo
