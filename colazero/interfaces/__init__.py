"""The types that flow from stage to stage, and what a corpus, a selector and a quantizer are."""

from colazero.interfaces.data import (
    HUB_ID,
    CalibrationSet,
    Corpus,
    CorpusLoader,
    Model,
    Selection,
    Selector,
    Span,
    TokenPool,
    label,
)
from colazero.interfaces.results import (
    Divergence,
    Downstream,
    Evaluation,
    Perplexity,
    Progress,
    QuantizationReport,
    QuantizationSettings,
    Quantizer,
    Rider,
    Text,
)

__all__ = [
    "HUB_ID",
    "CalibrationSet",
    "Corpus",
    "CorpusLoader",
    "Divergence",
    "Downstream",
    "Evaluation",
    "Model",
    "Perplexity",
    "Progress",
    "QuantizationReport",
    "QuantizationSettings",
    "Quantizer",
    "Rider",
    "Selection",
    "Selector",
    "Span",
    "Text",
    "TokenPool",
    "label",
]
