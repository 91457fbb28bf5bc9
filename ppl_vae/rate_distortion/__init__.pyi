from .frozen import (
    CurvePoint as CurvePoint,
    FrozenDecoderCurve as FrozenDecoderCurve,
    frozen_decoder_curve as frozen_decoder_curve,
)
from .linear import (
    LinearOptimum as LinearOptimum,
    WaterFilling as WaterFilling,
    linear_optimum as linear_optimum,
    reverse_water_filling as reverse_water_filling,
)
from .tables import (
    BestModel as BestModel,
    DiscretePoint as DiscretePoint,
    best_model as best_model,
    blahut_arimoto as blahut_arimoto,
)
from .windows import (
    OutsideWindow as OutsideWindow,
    WindowedModel as WindowedModel,
    outside_window as outside_window,
    windowed_model as windowed_model,
)
