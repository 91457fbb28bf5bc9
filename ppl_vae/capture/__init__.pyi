from .cuda_graphs import CudaGraph as CudaGraph
from .errors import (
    CaptureError as CaptureError,
    StaleRecordingError as StaleRecordingError,
)
from .function import recorded as recorded
from .importance_weights import ImportanceSampler as ImportanceSampler
from .recording import Recording as Recording
from .step import RECORD_AFTER as RECORD_AFTER, CapturedLoss as CapturedLoss
