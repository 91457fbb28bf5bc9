from .cluster import (
    ClusterError as ClusterError,
    Sizes as Sizes,
    local_cluster as local_cluster,
    num_cores as num_cores,
    require_distributed as require_distributed,
    running_cluster as running_cluster,
    sizes_for as sizes_for,
)
from .dispatch import Dispatch as Dispatch
from .folder import (
    SPEC as SPEC,
    TABLE as TABLE,
    SweepFolder as SweepFolder,
    require_same_sweep as require_same_sweep,
)
from .picture import (
    Backdrop as Backdrop,
    CurvePlace as CurvePlace,
    SweepPicture as SweepPicture,
    read_curves as read_curves,
    write_curves as write_curves,
)
from .spec import (
    SpecError as SpecError,
    SweepRun as SweepRun,
    SweepSpec as SweepSpec,
    as_text as as_text,
    read_spec as read_spec,
)
from .table import (
    METRICS as METRICS,
    SweepTable as SweepTable,
    SweptPoint as SweptPoint,
    wrong_entropy as wrong_entropy,
)
from .work import Outcome as Outcome, Task as Task
