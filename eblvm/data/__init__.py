"""Data: images, text and densities on the plane, as Lightning data modules.

Every module yields `(x, label)`. Images are floats in [−1, 1], `(B, C, H, W)`; text is int64
tokens, `(B, L)`, right-padded; points of the plane are `(B, 2)`.
"""

from .corpora import (
    AGNews,
    CocoCaptions,
    Corpus,
    Example,
    PennTreebank,
    StanfordSentiment,
    TextFiles,
    Yelp,
)
from .dialogues import DailyDialog, SchemaGuidedDialogue, StanfordMultiDomain
from .grammar import GrammarCorpus
from .images import ImageDataModule
from .loader import BucketSampler, ResumableLoader, ResumableSampler, TensorRows, seeded_generator
from .module import DataModule
from .subwords import Subwords
from .synthetic import (
    Checkerboard,
    Density2D,
    DensityDataModule,
    EightGaussians,
    GaussianGrid,
    GaussianRings,
    Moons,
    Pinwheel,
    Rings,
    SwissRoll,
    TwoMoons,
)
from .text import BagOfWordsDataModule, DialogueDataModule, TextDataModule
from .vocabulary import Vocabulary

__all__ = [
    "AGNews",
    "BagOfWordsDataModule",
    "BucketSampler",
    "Checkerboard",
    "CocoCaptions",
    "Corpus",
    "DailyDialog",
    "DataModule",
    "Density2D",
    "DensityDataModule",
    "DialogueDataModule",
    "EightGaussians",
    "Example",
    "GaussianGrid",
    "GaussianRings",
    "GrammarCorpus",
    "ImageDataModule",
    "Moons",
    "PennTreebank",
    "Pinwheel",
    "ResumableLoader",
    "ResumableSampler",
    "Rings",
    "SchemaGuidedDialogue",
    "StanfordMultiDomain",
    "StanfordSentiment",
    "Subwords",
    "SwissRoll",
    "TensorRows",
    "TextDataModule",
    "TextFiles",
    "TwoMoons",
    "Vocabulary",
    "Yelp",
    "seeded_generator",
]
