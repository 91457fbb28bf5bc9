from .analytic_kl import (
    elementwise_kl as elementwise_kl,
    mean_field_violations as mean_field_violations,
)
from .attach import attach_guide as attach_guide, keep_guide as keep_guide
from .batches import Batches as Batches, DataLike as DataLike
from .densities import (
    RowDensities as RowDensities,
    factor_of as factor_of,
    means_of_sites as means_of_sites,
    posterior_means as posterior_means,
    sample_rows as sample_rows,
    stated_moment as stated_moment,
)
from .errors import PairError as PairError, first_line as first_line
from .handlers import ScaleLatents as ScaleLatents, Substitute as Substitute
from .layout import (
    SAMPLES_PLATE as SAMPLES_PLATE,
    Layout as Layout,
    LayoutChangedError as LayoutChangedError,
    in_plates as in_plates,
    inner_scale as inner_scale,
    inner_sizes as inner_sizes,
    many_samples as many_samples,
    require_no_points as require_no_points,
    row_log_prob as row_log_prob,
    rows_first as rows_first,
    subsampled_plates as subsampled_plates,
    sum_to_rows as sum_to_rows,
)
from .layouts import Layouts as Layouts
from .modules import closure_of as closure_of, globals_of as globals_of
from .pair import Bound as Bound, Pair as Pair
from .programs import (
    Batch as Batch,
    Program as Program,
    as_args as as_args,
    move as move,
    num_rows as num_rows,
    take_rows as take_rows,
)
from .survey import find_layout as find_layout, rows_frame as rows_frame
from .traces import (
    Site as Site,
    Trace as Trace,
    elementwise as elementwise,
    first_bad_site as first_bad_site,
    innermost as innermost,
    is_enumerated as is_enumerated,
    latent_sites as latent_sites,
    observed_sites as observed_sites,
    present as present,
    sample_sites as sample_sites,
    sites_of_rows as sites_of_rows,
    trace_pair as trace_pair,
    unscaled as unscaled,
)
