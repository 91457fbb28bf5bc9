from .building import (
    build as build,
    import_alternatives as import_alternatives,
    import_by_name as import_by_name,
    public_name as public_name,
)
from .comparison import Comparison as Comparison
from .folder import (
    ANNEALED as ANNEALED,
    CHECKPOINTS as CHECKPOINTS,
    DIAGNOSIS as DIAGNOSIS,
    EVALUATION as EVALUATION,
    GAPS as GAPS,
    METRICS as METRICS,
    PLOTS as PLOTS,
    POSTERIOR as POSTERIOR,
    describe_rows as describe_rows,
    discard_folder as discard_folder,
    prepare_folder as prepare_folder,
    read_config as read_config,
    read_csv as read_csv,
    write_config as write_config,
    write_history as write_history,
    write_results as write_results,
)
from .location import config_file as config_file
from .messages import plain as plain
from .run import Run as Run, load_run as load_run, save_run as save_run
from .weights import write_weights as write_weights
