from .analytic_kl import (
    elementwise_kl as elementwise_kl,
    expected_value as expected_value,
    factorize as factorize,
    kl_between as kl_between,
    mean_field_violations as mean_field_violations,
)
from .as_tensors import as_tensor as as_tensor, is_array as is_array
from .attach import (
    attach_guide as attach_guide,
    keep_guide as keep_guide,
    kept_guides as kept_guides,
)
from .batches import (
    Batches as Batches,
    DataLike as DataLike,
    not_in_parts as not_in_parts,
    parts_of as parts_of,
    transformed as transformed,
)
from .commitments import broken_commitments as broken_commitments, least_rate as least_rate
from .coordinates import support_of as support_of, unconstrained as unconstrained
from .cross import (
    densities_under_rows as densities_under_rows,
    draw_of_each_row as draw_of_each_row,
    guide_with as guide_with,
    information_among as information_among,
    numbers_there as numbers_there,
)
from .densities import (
    RowDensities as RowDensities,
    factor_of as factor_of,
    latents_of_numbers as latents_of_numbers,
    means_of_sites as means_of_sites,
    posterior_means as posterior_means,
    present_numbers as present_numbers,
    prior_moments as prior_moments,
    require_whole_row as require_whole_row,
    sample_rows as sample_rows,
    scores_of_draws as scores_of_draws,
    stated_moment as stated_moment,
)
from .dimensions import (
    COLLAPSED as COLLAPSED,
    NormalRows as NormalRows,
    kl_and_noise_of_dimensions as kl_and_noise_of_dimensions,
    kl_of_dimensions as kl_of_dimensions,
    names_of_dimensions as names_of_dimensions,
    normal_rows as normal_rows,
)
from .elements import (
    Elements as Elements,
    ElementTables as ElementTables,
    elbo_of_elements as elbo_of_elements,
    element_tables as element_tables,
    elements_of as elements_of,
    evidence_of_elements as evidence_of_elements,
    marginals_of as marginals_of,
    missing_values as missing_values,
    stated_elements as stated_elements,
    states_elements as states_elements,
    summed_elements as summed_elements,
    sums_of_elements as sums_of_elements,
)
from .errors import (
    PLAIN as PLAIN,
    NoInverseError as NoInverseError,
    PairError as PairError,
    first_line as first_line,
    is_plain as is_plain,
)
from .finite import (
    FiniteLatents as FiniteLatents,
    SummedRows as SummedRows,
    finite_latents as finite_latents,
    log_repeats as log_repeats,
    notes_on_discrete as notes_on_discrete,
    summed_rows as summed_rows,
)
from .given import (
    arguments_by_name as arguments_by_name,
    name_of_argument as name_of_argument,
    selects_outside as selects_outside,
)
from .handlers import (
    ImproperStandIns as ImproperStandIns,
    LikeliestValues as LikeliestValues,
    ScaleLatents as ScaleLatents,
    Substitute as Substitute,
    likeliest as likeliest,
)
from .jacobians import (
    Computed as Computed,
    compare_jacobians as compare_jacobians,
    computed_latents as computed_latents,
)
from .joint_draws import draw_jointly as draw_jointly
from .layout import (
    SAMPLES_PLATE as SAMPLES_PLATE,
    Layout as Layout,
    LayoutChangedError as LayoutChangedError,
    has_prior as has_prior,
    in_plates as in_plates,
    inner_scale as inner_scale,
    inner_sizes as inner_sizes,
    latents_of_other_plates as latents_of_other_plates,
    many_samples as many_samples,
    remedy_of_improper as remedy_of_improper,
    require_no_points as require_no_points,
    require_proper as require_proper,
    require_whole_rows as require_whole_rows,
    row_log_prob as row_log_prob,
    rows_first as rows_first,
    signature_of as signature_of,
    subsampled_plates as subsampled_plates,
    sum_to_rows as sum_to_rows,
)
from .layouts import Layouts as Layouts
from .measures import (
    AT_POINT as AT_POINT,
    DISTORTION as DISTORTION,
    ELBO_MEASURE as ELBO_MEASURE,
    HELD_OUT as HELD_OUT,
    MEASURES as MEASURES,
    Measure as Measure,
    measure_in as measure_in,
    measure_of as measure_of,
    measure_of_result as measure_of_result,
    mixture_in as mixture_in,
)
from .modules import (
    Buffers as Buffers,
    closure_of as closure_of,
    globals_of as globals_of,
    modules_of_program as modules_of_program,
)
from .moments import (
    center as center,
    has_moments as has_moments,
    over_draws as over_draws,
    spread as spread,
)
from .ours import (
    covers_posterior as covers_posterior,
    hook_of as hook_of,
    is_ours as is_ours,
    is_posterior as is_posterior,
    own_attribute as own_attribute,
    stated_by as stated_by,
    unbound as unbound,
)
from .own_rows import take_all_rows as take_all_rows
from .pair import Bound as Bound, Pair as Pair
from .programs import (
    Batch as Batch,
    Program as Program,
    SomeArguments as SomeArguments,
    as_args as as_args,
    move as move,
    num_rows as num_rows,
    places_of as places_of,
    shapes_of_rows as shapes_of_rows,
    take_rows as take_rows,
    tensors_of as tensors_of,
    trace_guide as trace_guide,
    with_tensors as with_tensors,
)
from .row_parameters import (
    made_for_other_rows as made_for_other_rows,
    runs_on_all_alone as runs_on_all_alone,
)
from .row_plate import (
    drawn_rows as drawn_rows,
    find_rows as find_rows,
    rows_frame as rows_frame,
    run_alone as run_alone,
    same_for_any_rows as same_for_any_rows,
    sites_of_rows as sites_of_rows,
)
from .rows_of_data import DataArguments as DataArguments
from .shared_work import shared as shared, sharing_work as sharing_work
from .sources import (
    TrackLatents as TrackLatents,
    sharing_draws as sharing_draws,
    sources_of as sources_of,
    trace_tracked as trace_tracked,
)
from .supports import (
    may_leave_support as may_leave_support,
    of_numbers as of_numbers,
    require_inside as require_inside,
    rows_outside as rows_outside,
    support_has_tensors as support_has_tensors,
)
from .survey import find_layout as find_layout
from .traces import (
    Site as Site,
    Trace as Trace,
    about_obs_mask as about_obs_mask,
    density_sites as density_sites,
    elementwise as elementwise,
    first_bad_site as first_bad_site,
    free_numbers as free_numbers,
    has_log_density as has_log_density,
    innermost as innermost,
    is_categorical as is_categorical,
    is_certain as is_certain,
    is_delta as is_delta,
    is_discrete as is_discrete,
    is_enumerated as is_enumerated,
    is_factor as is_factor,
    is_improper as is_improper,
    is_weighted as is_weighted,
    kind_of as kind_of,
    latent_sites as latent_sites,
    log_prob_of as log_prob_of,
    mask_kind as mask_kind,
    observed_sites as observed_sites,
    present as present,
    sample_sites as sample_sites,
    trace_pair as trace_pair,
    unscaled as unscaled,
)
