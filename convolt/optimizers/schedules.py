"""The schedules under the name that Keras gives them: `optimizers.schedules.CosineDecay` and so on."""

from convolt.schedules import *  # noqa: F403
from convolt.schedules import __all__ as __all__
