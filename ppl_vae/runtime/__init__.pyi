from .denormals import denormals_flushed as denormals_flushed
from .descriptions import (
    described as described,
    require_count as require_count,
    require_samples as require_samples,
)
from .devices import (
    device_of as device_of,
    make_fabric as make_fabric,
    resolve_device as resolve_device,
)
from .files import (
    CorruptFileError as CorruptFileError,
    as_folder as as_folder,
    flatten as flatten,
    read_tensors as read_tensors,
    unflatten as unflatten,
    write_bytes as write_bytes,
    write_tensors as write_tensors,
)
from .progress import progress_bar as progress_bar
from .randomness import (
    preserve_random_state as preserve_random_state,
    random_state as random_state,
    require_seed as require_seed,
    seed_everything as seed_everything,
    set_random_state as set_random_state,
)
