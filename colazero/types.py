"""The types that flow from stage to stage: corpus, pool, selection, calibration set, results."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from colazero.settings import Settings

HUB_ID = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
"""A model on the Hugging Face Hub: `org/name`, with a revision behind an @."""


@dataclass(frozen=True)
class Model:
    """A model at hand. `revision` changes whenever its weights, its config or its tokenizer do."""

    name: str
    path: Path
    revision: str

    @property
    def label(self) -> str:
        """Return a short name for run names: the last part of the name, without revision."""
        return label(self.name)


def label(name: str) -> str:
    """Return the last part of a model's name, without revision and ending."""
    match = HUB_ID.fullmatch(name)
    last = Path(match["repository"] if match else name).name
    return re.sub(r"(?i)\.gguf$", "", last) or "model"


@dataclass(frozen=True)
class Corpus:
    """Documents to calibrate on and documents to evaluate on, disjoint.

    `revision` changes whenever the documents do. The test documents with `joined_by` between them
    are the evaluation text, of which the first `test_windows` are evaluated at most.
    """

    name: str
    revision: str
    train: Sequence[str]
    test: Sequence[str]
    joined_by: str = "\n\n"
    test_windows: int | None = None
    test_sources: Sequence[int] = ()
    """A label per test document: equal labels are parts of one, such as a speech's paragraphs.

    Empty: each test document stands for itself."""
    parts: Sequence[tuple[int, float]] = ()
    """Of a mix, whose parts' documents follow each other: documents and share of tokens of each."""


@dataclass(frozen=True)
class Span:
    """Tokens [start, stop) of the pool's token stream, and the document they begin in."""

    document: int
    start: int
    stop: int


@dataclass(frozen=True)
class Selection:
    """What a method chose: for each window the spans that make it up, in order.

    The spans of a window hold `seq_len` tokens together. `notes` is what the method thought
    (cluster sizes, coverage, fall-backs): JSON values, logged with the calibration set.
    """

    windows: Sequence[Sequence[Span]]
    notes: Mapping[str, Any] = field(default_factory=dict)
    tokens: NDArray[np.int32] | None = None
    """Windows [n, seq_len] that the method wrote itself: no document's, so without any spans."""


@dataclass(frozen=True)
class CalibrationSet:
    """`windows`: int32 [n_calibration_samples, seq_len] token ids, and how they were chosen.

    They are a set: GPTQ's Hessian is a sum over them. Their order decides nothing but how that sum
    is rounded, which moves perplexity by about as much as another seed does, so it is drawn.
    """

    windows: NDArray[np.int32]
    spans: Sequence[Sequence[Span]]
    notes: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """Return 16 hex digits over the windows as a set, whatever their order."""
        return self._digest(sorted(self._windows()))

    @property
    def order_digest(self) -> str:
        """Return 16 hex digits over the windows in their order."""
        return self._digest(self._windows())

    def _windows(self) -> list[bytes]:
        return [window.astype("<i4").tobytes() for window in self.windows]

    def _digest(self, windows: Sequence[bytes]) -> str:
        digest = hashlib.sha256(f"{self.windows.shape}".encode())
        for window in windows:
            digest.update(window)
        return digest.hexdigest()[:16]


@dataclass(frozen=True)
class TokenPool:
    """The training documents of a corpus as one stream of tokens, as a selector sees it.

    `documents`: int64 [documents], their numbers in the corpus; None where they are all of it.

    `tokens`: int32 [total], of the documents joined by blank lines, without special tokens.
    `starts`, `stops`: int64 [documents]; a token belongs to the document in which it begins.
    """

    texts: Sequence[str]
    tokens: NDArray[np.int32]
    starts: NDArray[np.int64]
    stops: NDArray[np.int64]
    forbidden: frozenset[int]
    """Ids of the tokenizer's special tokens: none of them may stand in a window."""
    entry: Path | None = None
    """Where in the cache the tokens lie, and what is computed from them beside; None: nowhere."""
    written: int = 0
    """How often the documents spell a special token out, which is text there."""
    config: Settings = field(default_factory=lambda: Settings.model_validate({"device": "cpu"}))
    """The run's parameters, with `device` resolved."""
    model: Model | None = None
    """The model to be quantized, for methods that look at what it computes."""
    documents: NDArray[np.int64] | None = None


Selector = Callable[[TokenPool, int, int, np.random.Generator], Selection]
"""(pool, n windows, tokens a window, source of randomness) → selection."""

CorpusLoader = Callable[[str], Corpus]
"""The part of the name after the colon (empty for most) → corpus."""

Progress = Callable[[int, int], None]
"""Called with (steps done, steps in all) while a long step runs."""


@dataclass(frozen=True)
class QuantizationReport:
    """What quantizing took and did. `modules`: one row a quantized linear layer.

    `warm_up_time_sec` is what the library took to start, once a process, before the clock ran;
    None where nobody measured it. `windows_at_once`: how many were run together in the end, None
    where nobody tells.
    """

    quant_time_sec: float
    save_time_sec: float
    modules: Sequence[Mapping[str, Any]]
    warm_up_time_sec: float | None = None
    unquantized: Sequence[str] = ()
    """Matrices in the model's blocks that stayed as they were."""
    windows_at_once: int | None = None
    solved: Mapping[str, str] = field(default_factory=dict)
    """Weight → fingerprint of what the model computed with; of quantizers that evaluate too."""

    @property
    def rtn_fallbacks(self) -> int:
        """Count the layers that got round-to-nearest because GPTQ could not be applied."""
        return sum(bool(row["rtn_fallback"]) for row in self.modules)

    @property
    def column_kernel(self) -> str:
        """Name what ran GPTQ's loop over columns (`triton`, `torch`, ...); '' if nothing tells.

        Several are joined by commas. Layers that were rounded had no such loop.
        """
        rows = [row for row in self.modules if "kernel" in row and not row["rtn_fallback"]]
        found = {str(row["kernel"]) for row in rows}
        return ",".join(sorted(found))

    @property
    def tokens_used(self) -> int | None:
        """Return the calibration tokens that a layer saw, at most (an expert sees its share).

        None of a quantizer that looks at none, or does not tell.
        """
        return max((int(row["samples"]) for row in self.modules), default=0) or None

    @property
    def damp_max(self) -> float:
        """Return the largest damp that a layer needed (share of the mean Hessian diagonal)."""
        return max((row["damp"] for row in self.modules), default=0.0)


@dataclass(frozen=True)
class QuantizationSettings:
    """GPTQ's own settings, all resolved; see `colazero.settings.Settings` for the units."""

    quant_bits: int
    group_size: int
    desc_act: bool
    sym: bool
    damp_percent: float
    act_group_aware: bool


class Rider(Protocol):
    """What goes through a model's blocks together with the quantization of each.

    `seconds` is what that took, which is no part of quantizing.
    """

    seconds: float

    def board(self, sequence: Any) -> None:
        """Begin, given the `colazero.blocks.Sequence` of the model."""

    def advance(self, index: int) -> None:
        """Pass the block of this index, which holds its quantized weights at the moment."""

    def finish(self) -> None:
        """End, after the last block."""


class Quantizer(Protocol):
    """Writes a 4-bit (or 2, 3, 8) checkpoint directory from a model directory.

    One that goes a block at a time takes the `rider` along; for others it stays where it is.
    """

    def __call__(
        self,
        model_dir: Path,
        calibration: CalibrationSet,
        settings: QuantizationSettings,
        out_dir: Path,
        device: str,
        progress: Progress,
        rider: Rider | None = None,
    ) -> QuantizationReport: ...


@dataclass(frozen=True)
class Downstream:
    """Results of downstream tasks: `TASK.METRIC` → value, and a row an item (JSON values).

    `higher_is_better`: what lm-eval says of `TASK.METRIC`, where it says anything.
    """

    scores: Mapping[str, float] = field(default_factory=dict)
    samples: Sequence[Mapping[str, Any]] = ()
    higher_is_better: Mapping[str, bool] = field(default_factory=dict)


@dataclass(frozen=True)
class Text:
    """A corpus's evaluation text: token ids [windows, tokens], and where each window begins."""

    corpus: str
    windows: NDArray[np.int64]
    starts: NDArray[np.int64]


@dataclass(frozen=True)
class Divergence:
    """How far a model's predictions are from the unquantized model's, per window: [windows].

    `kl`: the sum over a window's predictions of KL(unquantized ‖ quantized), in nats; `agreed`: how
    many of them have the same most likely token.
    """

    kl: NDArray[np.float64]
    agreed: NDArray[np.int64]


@dataclass(frozen=True)
class Perplexity:
    """One evaluated text. `nll` (nats) and `tokens` (predicted) are per window: [windows].

    `documents`: a label per window, the document that holds its middle; None where unknown.
    `available`: windows of this length that the whole text has.
    """

    corpus: str
    starts: NDArray[np.int64]
    nll: NDArray[np.float64]
    tokens: NDArray[np.int64]
    digest: str
    divergence: Divergence | None = None
    """None where it was not asked for, or the model cannot be run a block at a time."""
    documents: NDArray[np.int64] | None = None
    available: int | None = None

    @property
    def nll_per_token(self) -> float:
        """Return the mean negative log-likelihood of a predicted token, in nats."""
        return float(self.nll.sum() / self.tokens.sum())

    @property
    def perplexity(self) -> float:
        """Return exp(ΣNLL / Σpredicted tokens)."""
        return float(np.exp(self.nll_per_token))

    @property
    def distances(self) -> dict[str, float]:
        """Return the means over all predictions, as metrics; none where there is no divergence.

        `kl_divergence`: KL(unquantized ‖ quantized) in nats; `top1_agreement`: the share whose most
        likely token is the same.
        """
        if self.divergence is None:
            return {}
        kl, agreed = self.divergence.kl.sum(), self.divergence.agreed.sum()
        total = self.tokens.sum()
        return {"kl_divergence": float(kl / total), "top1_agreement": float(agreed / total)}


@dataclass(frozen=True)
class Evaluation:
    """Perplexities by corpus, in the order asked for, and downstream results.

    `windows_at_once`: how many were run together in the end, None where nobody tells.
    """

    perplexities: Sequence[Perplexity]
    downstream: Downstream = field(default_factory=Downstream)
    eval_time_sec: float = 0.0
    windows_at_once: int | None = None
