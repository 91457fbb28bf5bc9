from .bits_back import compress as compress, decompress as decompress
from .result import Compressed as Compressed
