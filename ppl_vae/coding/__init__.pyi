from .ans import LEAST as LEAST, Pops as Pops, Pushes as Pushes, Stack as Stack
from .exact_copies import exact_copy as exact_copy
from .range_coder import (
    Coder as Coder,
    Reader as Reader,
    TableCoder as TableCoder,
    Writer as Writer,
    WrongFileError as WrongFileError,
    require_constriction as require_constriction,
)
from .sealed_files import SEAL as SEAL, sealed as sealed, unsealed as unsealed
