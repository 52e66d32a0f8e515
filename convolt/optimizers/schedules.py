"""The schedules under the name that Keras gives them: `optimizers.schedules.CosineDecay` and so on."""

from convolt.missing import explain_missing_names
from convolt.schedules import *  # noqa: F403
from convolt.schedules import __all__ as __all__

explain_missing_names(__name__)
