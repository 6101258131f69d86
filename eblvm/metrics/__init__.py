"""Figures of merit, each with the protocol it was made by.

Images: `FrechetDistance`, `InceptionScore`, `PrecisionRecall`, `DensityCoverage`, in the space of a
`FeatureExtractor`. Likelihoods: `MeanLogLikelihood`, importance sampling, bits per dimension.
Text: `CorpusBLEU`, `WordKL`, `ReversePerplexity`, `EmbeddingSimilarity`,
`ControlAccuracy`; symbols: `MutualInformation`, `Homogeneity`, `SymbolAccuracy`.
The plane: normalizers and divergences by quadrature. Detection: areas under curves.

Metrics that gather over batches and ranks are `torchmetrics.Metric`; the rest are functions.
Attributes are imported when first touched, because torchmetrics imports torchvision and matplotlib.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .bleu import CorpusBLEU, corpus_bleu
    from .classifier import ConvClassifier
    from .detection import Estimate, aupr, auroc, fpr_at_95_tpr
    from .embeddings import EmbeddingSimilarity, read_vectors
    from .features import (
        ClassifierFeatures,
        FeatureExtractor,
        InceptionFeatures,
        PixelFeatures,
        features_for,
    )
    from .frechet import FrechetDistance, frechet_distance
    from .grid import (
        LogNormalizer,
        cell_probabilities,
        energy_log_prob,
        grid_points,
        histogram_kl,
        kl_of_histogram,
        kl_on_grid,
        log_normalizer,
    )
    from .inception_score import InceptionScore
    from .language import (
        ControlAccuracy,
        LanguageModel,
        LSTMLanguageModel,
        ReversePerplexity,
        SentenceClassifier,
    )
    from .likelihood import (
        MeanLogLikelihood,
        bits_per_dim,
        effective_sample_size,
        importance_log_likelihood,
    )
    from .manifold import DensityCoverage, PrecisionRecall
    from .modes import ClassCount, ModeCount, count_classes, count_modes
    from .symbols import Homogeneity, MutualInformation, SymbolAccuracy, homogeneity
    from .words import WordKL, word_kl

_NAMES = {
    "features": [
        "FeatureExtractor",
        "PixelFeatures",
        "ClassifierFeatures",
        "InceptionFeatures",
        "features_for",
    ],
    "classifier": ["ConvClassifier"],
    "frechet": ["FrechetDistance", "frechet_distance"],
    "inception_score": ["InceptionScore"],
    "manifold": ["PrecisionRecall", "DensityCoverage"],
    "likelihood": [
        "MeanLogLikelihood",
        "importance_log_likelihood",
        "effective_sample_size",
        "bits_per_dim",
    ],
    "modes": ["count_classes", "ClassCount", "count_modes", "ModeCount"],
    "grid": [
        "energy_log_prob",
        "grid_points",
        "log_normalizer",
        "LogNormalizer",
        "kl_on_grid",
        "histogram_kl",
        "cell_probabilities",
        "kl_of_histogram",
    ],
    "detection": ["auroc", "aupr", "fpr_at_95_tpr", "Estimate"],
    "bleu": ["CorpusBLEU", "corpus_bleu"],
    "words": ["WordKL", "word_kl"],
    "symbols": ["MutualInformation", "Homogeneity", "homogeneity", "SymbolAccuracy"],
    "embeddings": ["EmbeddingSimilarity", "read_vectors"],
    "language": [
        "LanguageModel",
        "LSTMLanguageModel",
        "ReversePerplexity",
        "Classifier",
        "SentenceClassifier",
        "ControlAccuracy",
    ],
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}

__all__ = [
    "count_classes",
    "ClassCount",
    "count_modes",
    "ModeCount",
    "FeatureExtractor",
    "PixelFeatures",
    "ClassifierFeatures",
    "InceptionFeatures",
    "features_for",
    "ConvClassifier",
    "FrechetDistance",
    "frechet_distance",
    "InceptionScore",
    "PrecisionRecall",
    "DensityCoverage",
    "MeanLogLikelihood",
    "importance_log_likelihood",
    "effective_sample_size",
    "bits_per_dim",
    "energy_log_prob",
    "grid_points",
    "log_normalizer",
    "LogNormalizer",
    "kl_on_grid",
    "histogram_kl",
    "cell_probabilities",
    "kl_of_histogram",
    "auroc",
    "aupr",
    "fpr_at_95_tpr",
    "Estimate",
    "CorpusBLEU",
    "corpus_bleu",
    "WordKL",
    "word_kl",
    "MutualInformation",
    "Homogeneity",
    "homogeneity",
    "SymbolAccuracy",
    "EmbeddingSimilarity",
    "read_vectors",
    "LanguageModel",
    "LSTMLanguageModel",
    "ReversePerplexity",
    "Classifier",
    "SentenceClassifier",
    "ControlAccuracy",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}; it has {__all__}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
