from .codec import (
    compress_colors as compress_colors,
    decompress_colors as decompress_colors,
)
from .model import ModelOfColors as ModelOfColors
from .pictures import (
    Coloring as Coloring,
    color_picture as color_picture,
    require_few_segments as require_few_segments,
    segment_picture as segment_picture,
)
from .scores import (
    PhotoScores as PhotoScores,
    color_error as color_error,
    compare_segments as compare_segments,
    score_photos as score_photos,
)
