from .comparison import comparison_plot as comparison_plot
from .drawing import BLUE as BLUE, GRAY as GRAY, MEDIUM as MEDIUM, annotate as annotate
from .em import bound_curves as bound_curves, components as components
from .inference import gaps_plot as gaps_plot, posterior_contours as posterior_contours
from .pair import (
    aggregate_posterior as aggregate_posterior,
    khat_histogram as khat_histogram,
    kl_per_dimension as kl_per_dimension,
    learning_curves as learning_curves,
    manifold as manifold,
    prior_samples as prior_samples,
    reconstructions as reconstructions,
    traversals as traversals,
)
from .run import draw_run as draw_run
