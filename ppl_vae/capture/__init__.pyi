from .errors import (
    CaptureError as CaptureError,
    StaleRecordingError as StaleRecordingError,
)
from .function import recorded as recorded
from .importance_weights import ImportanceSampler as ImportanceSampler
from .step import RECORD_AFTER as RECORD_AFTER, CapturedLoss as CapturedLoss
