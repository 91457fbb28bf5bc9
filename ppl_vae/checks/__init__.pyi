from .arguments import arguments_explained as arguments_explained
from .batches import (
    DataCheck as DataCheck,
    check_data as check_data,
    check_rows as check_rows,
    check_traces as check_traces,
    small_batch_problem as small_batch_problem,
)
from .data import large_values as large_values, rows_not_finite as rows_not_finite
from .devices import device_for as device_for
from .findings import Findings as Findings
from .labels import label_problems as label_problems
from .latents import observed_problems as observed_problems
from .programs import check as check, check_batch as check_batch
from .report import (
    DISCRETE as DISCRETE,
    PairWarning as PairWarning,
    Problem as Problem,
    Report as Report,
)
from .rows import row_problems as row_problems
from .session import (
    Session as Session,
    evaluating as evaluating,
    opened as opened,
)
from .stages import objective_problems as objective_problems
from .supports import constraint_in_words as constraint_in_words
