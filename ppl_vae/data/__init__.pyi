from .load import Data as Data, load_data as load_data
from .transforms import Binarization as Binarization, Dequantization as Dequantization
