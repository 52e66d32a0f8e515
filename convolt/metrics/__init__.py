"""Metrics with Keras's names, arguments and defaults, summed on the device and exact over the whole set.

Strings that look at the shapes: "accuracy" ("acc"), "precision", "recall", "f1" ("f1_score") and "auc" work for one output,
for several classes with whole-number or one-hot labels (averaged over classes), and for many labels at once; the classes
`Precision`, `Recall`, `F1Score` and `AUC` do what Keras's do. Any loss is a metric by its name.
"""

from typing import Any

from convolt.errors import MissingFeatureError, did_you_mean, explain
from convolt.metrics.accuracy import (
    Accuracy,
    AutoAccuracy,
    BinaryAccuracy,
    CategoricalAccuracy,
    SparseCategoricalAccuracy,
    SparseTopKCategoricalAccuracy,
    TopKCategoricalAccuracy,
    binary_accuracy,
    categorical_accuracy,
    sparse_categorical_accuracy,
    sparse_top_k_categorical_accuracy,
    top_k_categorical_accuracy,
)
from convolt.metrics.base import Metric, registry
from convolt.metrics.classes import (
    ConfusionMatrix,
    F1Score,
    FBetaScore,
    IoU,
    MacroF1,
    MacroPrecision,
    MacroRecall,
    MeanIoU,
)
from convolt.metrics.find import get, get_all, logits_of_loss
from convolt.metrics.means import (
    CosineSimilarity,
    LogCoshError,
    Mean,
    MeanAbsoluteError,
    MeanAbsolutePercentageError,
    MeanMetricWrapper,
    MeanSquaredError,
    MeanSquaredLogarithmicError,
    R2Score,
    RootMeanSquaredError,
    Sum,
)
from convolt.metrics.probabilistic import (
    BinaryCrossentropy,
    CategoricalCrossentropy,
    CategoricalHinge,
    Crossentropy,
    Hinge,
    KLDivergence,
    Poisson,
    SparseCategoricalCrossentropy,
    SquaredHinge,
)
from convolt.metrics.thresholds import (
    AUC,
    FalseNegatives,
    FalsePositives,
    MacroAUC,
    Precision,
    Recall,
    TrueNegatives,
    TruePositives,
)

_MISSING = ("BinaryIoU", "ConcordanceCorrelation", "OneHotIoU", "OneHotMeanIoU", "PearsonCorrelation", "PrecisionAtRecall",
            "RecallAtPrecision", "SensitivityAtSpecificity", "SpecificityAtSensitivity")


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    fix = "Write it as a subclass of convolt.metrics.Metric." if name in _MISSING else did_you_mean(name, __all__)
    raise MissingFeatureError(explain("convolt.metrics", f"the name {name!r}", "a metric that Convolt has", fix))


__all__ = [
    "AUC", "Accuracy", "AutoAccuracy", "BinaryAccuracy", "BinaryCrossentropy", "CategoricalAccuracy",
    "CategoricalCrossentropy", "CategoricalHinge", "ConfusionMatrix", "CosineSimilarity", "Crossentropy", "F1Score",
    "FBetaScore", "FalseNegatives", "FalsePositives", "Hinge", "IoU", "KLDivergence", "LogCoshError", "MacroAUC", "MacroF1",
    "MacroPrecision", "MacroRecall", "Mean", "MeanAbsoluteError", "MeanAbsolutePercentageError", "MeanIoU",
    "MeanMetricWrapper", "MeanSquaredError", "MeanSquaredLogarithmicError", "Metric", "Poisson", "Precision", "R2Score",
    "Recall", "RootMeanSquaredError", "SparseCategoricalAccuracy", "SparseCategoricalCrossentropy",
    "SparseTopKCategoricalAccuracy", "SquaredHinge", "Sum", "TopKCategoricalAccuracy", "TrueNegatives", "TruePositives",
    "binary_accuracy", "categorical_accuracy", "get", "get_all", "logits_of_loss", "registry", "sparse_categorical_accuracy",
    "sparse_top_k_categorical_accuracy", "top_k_categorical_accuracy",
]
