from .bounded import (
    MOST_JSON as MOST_JSON,
    MOST_YAML as MOST_YAML,
    load_json as load_json,
    load_yaml as load_yaml,
    read_text as read_text,
)
from .classes import classes_in_words as classes_in_words, empty_classes as empty_classes
from .denormals import denormals_flushed as denormals_flushed
from .descriptions import (
    HIDDEN as HIDDEN,
    TILDE as TILDE,
    as_folder as as_folder,
    as_typed as as_typed,
    channels_last as channels_last,
    described as described,
    printable as printable,
    require_count as require_count,
    require_flags as require_flags,
    require_number as require_number,
    require_progress as require_progress,
    require_samples as require_samples,
)
from .devices import (
    device_of as device_of,
    make_fabric as make_fabric,
    resolve_device as resolve_device,
)
from .files import (
    PART as PART,
    CorruptFileError as CorruptFileError,
    DiskFullError as DiskFullError,
    append_text as append_text,
    full_disk_explained as full_disk_explained,
    growing as growing,
    is_temporary as is_temporary,
    own_folder as own_folder,
    process_lives as process_lives,
    remove as remove,
    remove_left_behind as remove_left_behind,
    replacing as replacing,
    require_file as require_file,
    require_output as require_output,
    write_bytes as write_bytes,
)
from .notebook import (
    html_table as html_table,
    html_texts as html_texts,
    in_notebook as in_notebook,
)
from .progress import (
    duration as duration,
    on_terminal as on_terminal,
    progress_bar as progress_bar,
    progress_in_lines as progress_in_lines,
)
from .randomness import (
    apart_from_data as apart_from_data,
    own_generator as own_generator,
    preserve_random_state as preserve_random_state,
    random_state as random_state,
    require_seed as require_seed,
    seed_everything as seed_everything,
    set_random_state as set_random_state,
)
from .safe_path import safe_children as safe_children
from .sentences import (
    BLANK as BLANK,
    END as END,
    FIRST_WORD as FIRST_WORD,
    PAD as PAD,
    UNKNOWN as UNKNOWN,
    are_sentences as are_sentences,
    as_words as as_words,
    holds_sentences as holds_sentences,
    lengths_of as lengths_of,
    require_sentences as require_sentences,
    trimmed as trimmed,
)
from .tensors import (
    content_digest as content_digest,
    digest as digest,
    flatten as flatten,
    read_metadata as read_metadata,
    read_tensors as read_tensors,
    unflatten as unflatten,
    write_tensors as write_tensors,
)
