from .asked import require_data as require_data, require_data_options as require_data_options
from .buckets import Buckets as Buckets
from .disguised_text import Disguise as Disguise
from .folders import picture_folders as picture_folders
from .invented_languages import (
    invented_entropy as invented_entropy,
    invented_log_prob as invented_log_prob,
    invented_sentences as invented_sentences,
)
from .labels import few_labels as few_labels, oversample_labelled as oversample_labelled
from .load import Data as Data, load_data as load_data, rows_alone as rows_alone
from .patches import PatchData as PatchData, load_patches as load_patches
from .photos import (
    BrokenPhotoWarning as BrokenPhotoWarning,
    Photo as Photo,
    PhotoData as PhotoData,
    Photos as Photos,
    load_photos as load_photos,
    read_photo as read_photo,
)
from .regions import simulated_regions as simulated_regions
from .sentences import each_sentence as each_sentence, read_sentences as read_sentences
from .transforms import Binarization as Binarization, Dequantization as Dequantization
from .vocabulary import Vocabulary as Vocabulary
