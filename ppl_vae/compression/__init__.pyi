from .bits_back import compress as compress, decompress as decompress
from .photos import (
    CompressedPhoto as CompressedPhoto,
    compress_photo as compress_photo,
    decompress_photo as decompress_photo,
    photo_error as photo_error,
)
from .result import Compressed as Compressed
