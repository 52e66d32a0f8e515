"""Losses with Keras's names, arguments, defaults and order of arguments, `(y_true, y_pred)`.

Each is a class, `MeanSquaredError()`, and a function that returns one loss per sample, `mean_squared_error`.
Tensors have their class axis at index 1; NumPy arrays are channels-last (see `convolt.layout`).
"""

from convolt.losses.base import FunctionLoss, Loss, class_weights_to_sample_weights, deserialize, get, registry, serialize
from convolt.losses.crossentropy import (
    BinaryCrossentropy,
    BinaryFocalCrossentropy,
    CategoricalCrossentropy,
    CategoricalFocalCrossentropy,
    CategoricalGeneralizedCrossEntropy,
    Crossentropy,
    SparseCategoricalCrossentropy,
    binary_crossentropy,
    binary_focal_crossentropy,
    categorical_crossentropy,
    categorical_focal_crossentropy,
    categorical_generalized_cross_entropy,
    sparse_categorical_crossentropy,
)
from convolt.losses.distances import (
    CosineSimilarity,
    Huber,
    LogCosh,
    MeanAbsoluteError,
    MeanAbsolutePercentageError,
    MeanSquaredError,
    MeanSquaredLogarithmicError,
    Quantile,
    cosine_similarity,
    huber,
    log_cosh,
    mean_absolute_error,
    mean_absolute_percentage_error,
    mean_squared_error,
    mean_squared_logarithmic_error,
    quantile,
)
from convolt.losses.embeddings import (
    Circle,
    Contrastive,
    SupervisedContrastive,
    TripletHard,
    TripletSemiHard,
    circle,
    contrastive,
    supervised_contrastive,
    triplet_hard,
    triplet_semihard,
)
from convolt.losses.margins import (
    CategoricalHinge,
    Dice,
    Hinge,
    KLDivergence,
    Poisson,
    SquaredHinge,
    Tversky,
    categorical_hinge,
    dice,
    hinge,
    kl_divergence,
    poisson,
    squared_hinge,
    tversky,
)
from convolt.losses.sequences import CTC, ctc
from convolt.losses.shapes import targets_to_inside
from convolt.missing import explain_missing_names

__all__ = [
    "CTC", "BinaryCrossentropy", "BinaryFocalCrossentropy", "CategoricalCrossentropy", "CategoricalFocalCrossentropy",
    "CategoricalGeneralizedCrossEntropy", "CategoricalHinge", "Circle", "Contrastive", "CosineSimilarity",
    "Crossentropy", "Dice", "FunctionLoss", "Hinge", "Huber", "KLDivergence", "LogCosh", "Loss", "MeanAbsoluteError",
    "MeanAbsolutePercentageError", "MeanSquaredError", "MeanSquaredLogarithmicError", "Poisson", "Quantile",
    "SparseCategoricalCrossentropy", "SquaredHinge", "SupervisedContrastive", "TripletHard", "TripletSemiHard",
    "Tversky", "binary_crossentropy", "binary_focal_crossentropy", "categorical_crossentropy",
    "categorical_focal_crossentropy", "categorical_generalized_cross_entropy", "categorical_hinge", "circle",
    "class_weights_to_sample_weights", "contrastive", "cosine_similarity", "ctc", "deserialize", "dice", "get", "hinge",
    "huber", "kl_divergence", "log_cosh", "mean_absolute_error", "mean_absolute_percentage_error", "mean_squared_error",
    "mean_squared_logarithmic_error", "poisson", "quantile", "registry", "serialize", "sparse_categorical_crossentropy",
    "squared_hinge", "supervised_contrastive", "targets_to_inside", "triplet_hard", "triplet_semihard", "tversky",
]

explain_missing_names(__name__)
