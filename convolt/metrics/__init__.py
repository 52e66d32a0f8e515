"""Metrics with Keras's names, arguments and defaults, summed on the device and exact over the whole set.

Strings that look at the shapes: "accuracy" ("acc"), "precision", "recall", "f1" ("f1_score") and "auc" work for one output,
for several classes with whole-number or one-hot labels (averaged over classes), and for many labels at once; the classes
`Precision`, `Recall`, `F1Score` and `AUC` do what Keras's do. Any loss is a metric by its name.
"""

from convolt.losses import (
    binary_crossentropy,
    binary_focal_crossentropy,
    categorical_crossentropy,
    categorical_focal_crossentropy,
    categorical_hinge,
    hinge,
    huber,
    kl_divergence,
    log_cosh,
    mean_absolute_error,
    mean_absolute_percentage_error,
    mean_squared_error,
    mean_squared_logarithmic_error,
    poisson,
    sparse_categorical_crossentropy,
    squared_hinge,
)
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
from convolt.metrics.calibration import ExpectedCalibrationError
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
from convolt.metrics.correlation import (
    ConcordanceCorrelation,
    PearsonCorrelation,
    concordance_correlation,
    pearson_correlation,
)
from convolt.metrics.curves import (
    AveragePrecision,
    PrecisionAtRecall,
    RecallAtPrecision,
    SensitivityAtSpecificity,
    SpecificityAtSensitivity,
)
from convolt.metrics.detection import MeanAveragePrecision
from convolt.metrics.find import deserialize, get, get_all, logits_of_loss, serialize
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
from convolt.metrics.overlap import BinaryIoU, DiceScore, OneHotIoU, OneHotMeanIoU
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
from convolt.missing import explain_missing_names

__all__ = [
    "AUC", "Accuracy", "AutoAccuracy", "AveragePrecision", "BinaryAccuracy", "BinaryCrossentropy", "BinaryIoU",
    "CategoricalAccuracy", "CategoricalCrossentropy", "CategoricalHinge", "ConcordanceCorrelation", "ConfusionMatrix",
    "CosineSimilarity", "Crossentropy", "DiceScore", "ExpectedCalibrationError", "F1Score", "FBetaScore",
    "FalseNegatives", "FalsePositives", "Hinge", "IoU", "KLDivergence", "LogCoshError", "MacroAUC", "MacroF1",
    "MacroPrecision", "MacroRecall", "Mean", "MeanAbsoluteError", "MeanAbsolutePercentageError", "MeanAveragePrecision",
    "MeanIoU", "MeanMetricWrapper", "MeanSquaredError", "MeanSquaredLogarithmicError", "Metric", "OneHotIoU",
    "OneHotMeanIoU", "PearsonCorrelation", "Poisson", "Precision", "PrecisionAtRecall", "R2Score", "Recall",
    "RecallAtPrecision", "RootMeanSquaredError", "SensitivityAtSpecificity", "SparseCategoricalAccuracy",
    "SparseCategoricalCrossentropy", "SparseTopKCategoricalAccuracy", "SpecificityAtSensitivity", "SquaredHinge", "Sum",
    "TopKCategoricalAccuracy", "TrueNegatives", "TruePositives", "binary_accuracy", "binary_crossentropy",
    "binary_focal_crossentropy", "categorical_accuracy", "categorical_crossentropy", "categorical_focal_crossentropy",
    "categorical_hinge", "concordance_correlation", "deserialize", "get", "get_all", "hinge", "huber", "kl_divergence",
    "log_cosh", "logits_of_loss", "mean_absolute_error", "mean_absolute_percentage_error", "mean_squared_error",
    "mean_squared_logarithmic_error", "pearson_correlation", "poisson", "registry", "serialize",
    "sparse_categorical_accuracy", "sparse_categorical_crossentropy", "sparse_top_k_categorical_accuracy",
    "squared_hinge", "top_k_categorical_accuracy",
]

explain_missing_names(__name__)
