from .errors import CaptureError as CaptureError
from .function import recorded as recorded
from .graphs import (
    compile_graph as compile_graph,
    forget_values as forget_values,
    has_dynamic_shapes as has_dynamic_shapes,
    lift_constants as lift_constants,
    own_outputs as own_outputs,
    simplify as simplify,
)
from .importance_weights import ImportanceSampler as ImportanceSampler
from .step import RECORD_AFTER as RECORD_AFTER, CapturedLoss as CapturedLoss
