from .asked import require_data as require_data, require_data_options as require_data_options
from .load import Data as Data, load_data as load_data, rows_alone as rows_alone
from .transforms import Binarization as Binarization, Dequantization as Dequantization
