from .classification_accuracy import (
    classification_accuracy_score as classification_accuracy_score,
)
from .classification_result import ClassificationAccuracy as ClassificationAccuracy
from .classifiers import NetworkClassifier as NetworkClassifier
from .decoding import reconstruct as reconstruct
from .encoding import encode as encode
from .ends import discrete_latents as discrete_latents, partners as partners
from .few_labels_results import (
    FineTuned as FineTuned,
    LabelAccuracy as LabelAccuracy,
    Probe as Probe,
)
from .fine_tuning import fine_tune as fine_tune
from .generators import (
    class_conditional as class_conditional,
    model_per_class as model_per_class,
    prior_per_class as prior_per_class,
)
from .observed import NoMeanError as NoMeanError
from .outlying import Outliers as Outliers, outliers as outliers
from .paths import interpolate as interpolate, traverse as traverse
from .probing import probe as probe
from .sampling import sample as sample, without_observed as without_observed
from .transformer import PairTransformer as PairTransformer
from .translating import Translations as Translations, translate as translate
