from .building import build as build, import_alternatives as import_alternatives
from .comparison import Comparison as Comparison
from .folder import (
    ANNEALED as ANNEALED,
    CHECKPOINTS as CHECKPOINTS,
    DIAGNOSIS as DIAGNOSIS,
    EVALUATION as EVALUATION,
    GAPS as GAPS,
    PLOTS as PLOTS,
    POSTERIOR as POSTERIOR,
    describe_rows as describe_rows,
    discard_folder as discard_folder,
    prepare_folder as prepare_folder,
    read_config as read_config,
    write_config as write_config,
    write_history as write_history,
    write_results as write_results,
)
from .location import config_file as config_file
from .messages import plain as plain
from .names import import_by_name as import_by_name, public_name as public_name
from .run import Run as Run, load_run as load_run, save_run as save_run
from .trust import (
    ROLES as ROLES,
    TYPED as TYPED,
    Trust as Trust,
    UntrustedError as UntrustedError,
    names_in as names_in,
)
from .weights import write_weights as write_weights
