from .ycocg import (
    chroma_interval as chroma_interval,
    luma_after_green as luma_after_green,
    possible_chroma as possible_chroma,
    split_colors as split_colors,
    to_rgb as to_rgb,
)
