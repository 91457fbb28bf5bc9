from .coloring import (
    SHEET_PIXELS as SHEET_PIXELS,
    contact_sheet as contact_sheet,
    draw_colors as draw_colors,
    segment_colors as segment_colors,
)
from .comparison import comparison_plot as comparison_plot
from .curves import khat_histogram as khat_histogram, learning_curves as learning_curves
from .em import bound_curves as bound_curves, components as components
from .files import (
    DARK_INK as DARK_INK,
    DARK_PAPER as DARK_PAPER,
    dark_paper as dark_paper,
)
from .inference import (
    gaps_plot as gaps_plot,
    guides_over_posterior as guides_over_posterior,
    posterior_contours as posterior_contours,
)
from .latents import (
    aggregate_posterior as aggregate_posterior,
    codes as codes,
    kl_per_dimension as kl_per_dimension,
    use_of_codes as use_of_codes,
    worth_of_units as worth_of_units,
)
from .rate_plane import RatePoint as RatePoint, rate_distortion as rate_distortion
from .run import draw_rows as draw_rows, draw_run as draw_run
from .samples import (
    interpolations as interpolations,
    manifold as manifold,
    prior_samples as prior_samples,
    reconstructions as reconstructions,
    traversals as traversals,
    worst_reconstructions as worst_reconstructions,
)
from .sweep import sweep_metrics as sweep_metrics, sweep_plane as sweep_plane
