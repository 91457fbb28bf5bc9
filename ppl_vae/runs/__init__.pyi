from .building import (
    build as build,
    describe as describe,
    import_alternatives as import_alternatives,
)
from .checkpoints import (
    MAY_CHANGE as MAY_CHANGE,
    checkpoint_files as checkpoint_files,
    digest_of_rows as digest_of_rows,
    load_checkpoint as load_checkpoint,
    programs_of as programs_of,
    require_kind as require_kind,
    require_same as require_same,
    restore_optimizer as restore_optimizer,
    save_checkpoint as save_checkpoint,
    settings_of as settings_of,
)
from .comparison import Comparison as Comparison
from .contents import (
    ANNEALED as ANNEALED,
    CHECKPOINTS as CHECKPOINTS,
    COLORS as COLORS,
    CONFIG as CONFIG,
    DIAGNOSIS as DIAGNOSIS,
    ERROR as ERROR,
    EVALUATION as EVALUATION,
    FIT as FIT,
    GAPS as GAPS,
    LOG as LOG,
    METRICS as METRICS,
    PLOTS as PLOTS,
    PLOTS_DARK as PLOTS_DARK,
    POSTERIOR as POSTERIOR,
    PROBE as PROBE,
    REPORT as REPORT,
    SAMPLES as SAMPLES,
    SWEPT as SWEPT,
    TENSORBOARD as TENSORBOARD,
    VOCABULARY as VOCABULARY,
    WEIGHTS as WEIGHTS,
)
from .folder import (
    MADE_BY as MADE_BY,
    command_again as command_again,
    describe_rows as describe_rows,
    evaluated_rows as evaluated_rows,
    made_by as made_by,
    read_config as read_config,
    read_csv as read_csv,
    read_result as read_result,
    read_rows as read_rows,
    results_of_other_weights as results_of_other_weights,
    write_config as write_config,
    write_history as write_history,
    write_results as write_results,
)
from .location import (
    config_file as config_file,
    is_of_a_run as is_of_a_run,
    run_around as run_around,
)
from .lock import Lock as Lock, LockedError as LockedError
from .messages import plain as plain
from .names import import_by_name as import_by_name, public_name as public_name
from .netcdf import WEIGHTS_KEY as WEIGHTS_KEY, as_netcdf as as_netcdf
from .run import Run as Run, load_run as load_run, save_run as save_run
from .run_folder import RunFolder as RunFolder, require_free as require_free
from .trust import (
    ROLES as ROLES,
    TYPED as TYPED,
    Trust as Trust,
    UntrustedError as UntrustedError,
    names_in as names_in,
)
from .weights import (
    ReplacedError as ReplacedError,
    constraints_of as constraints_of,
    read_history as read_history,
    read_state as read_state,
    require_weights as require_weights,
    what_history_lacks as what_history_lacks,
    write_weights as write_weights,
)
