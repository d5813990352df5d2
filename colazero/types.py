"""The types that flow from stage to stage: corpus, pool, selection, calibration set, results."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from colazero.settings import Settings

HUB_ID = re.compile(r"(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")
"""A model on the Hugging Face Hub: `org/name`, optionally with `@revision`."""


@dataclass(frozen=True)
class Model:
    """A local model. `revision` changes whenever its weights, config or tokenizer change."""

    name: str
    path: Path
    revision: str
    stored_as: str = ""
    """The types of a GGUF file's linear layers, as in `Q4_1, dequantized`; '' for other models."""

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
    """Training documents to calibrate on and test documents to evaluate on, disjoint.

    `revision` changes whenever the documents change. The test documents joined by `joined_by` are
    the evaluation text; at most its first `test_windows` windows are evaluated.
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
    """Number of documents and share of tokens per part of a mix, whose parts follow each other."""
    source: Mapping[str, str] = field(default_factory=dict)
    """Where the documents come from: `uri`, a file or folder; or `path`, `config_name` and
    `revision` on the Hub. Empty for other corpora."""


@dataclass(frozen=True)
class Span:
    """Tokens [start, stop) of the pool's token stream, and the document in which they begin."""

    document: int
    start: int
    stop: int


@dataclass(frozen=True)
class Selection:
    """A method's choice: for each window the spans that make it up, in order.

    The spans of a window hold `seq_len` tokens together. `notes` are JSON values that are logged
    with the calibration set (cluster sizes, coverage, fallbacks).
    """

    windows: Sequence[Sequence[Span]]
    notes: Mapping[str, Any] = field(default_factory=dict)
    tokens: NDArray[np.int32] | None = None
    """Windows [n, seq_len] that the method wrote itself, outside any document, so without spans."""


@dataclass(frozen=True)
class CalibrationSet:
    """`windows`: int32 [n_calibration_samples, seq_len] token ids, and how they were chosen.

    They are a set: GPTQ's Hessian is a sum over them. Their order only changes how that sum is
    rounded. Rounding moves perplexity by about as much as another seed does, so the order is drawn.
    """

    windows: NDArray[np.int32]
    spans: Sequence[Sequence[Span]]
    notes: Mapping[str, Any]

    @property
    def digest(self) -> str:
        """Return 16 hex digits over the windows as a set, in any order."""
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
class SelectionSettings:
    """The settings that a method may use, besides its arguments; see `colazero.settings.Settings`.

    `device` is resolved: where a method that runs a model runs it.
    """

    exact_documents: int
    document_tokens: int
    proxy_model: str
    device: str

    @classmethod
    def of(cls, config: Settings, device: str = "") -> SelectionSettings:
        """Take them from a run's settings; `device` replaces a device that is not resolved."""
        values = {setting.name: getattr(config, setting.name) for setting in fields(cls)}
        return cls(**values | ({"device": device} if device else {}))


@dataclass(frozen=True)
class TokenPool:
    """The training documents of a corpus as one stream of tokens, for a method to choose from.

    Together with `n`, `seq_len` and `rng` it decides the selection; nothing else does.
    `tokens`: int32 [total], of the documents joined by blank lines, without special tokens.
    `starts`, `stops`: int64 [documents]; a token belongs to the document in which it begins.
    `texts`: a conversation among them is a `colazero.corpora.chat.Conversation`: its contents as
    text, and `messages` with roles.
    """

    texts: Sequence[str]
    tokens: NDArray[np.int32]
    starts: NDArray[np.int64]
    stops: NDArray[np.int64]
    forbidden: frozenset[int]
    """Ids of the tokenizer's special tokens, which a window may not hold."""
    entry: Path | None = None
    """The cache entry that holds the tokens; features are cached next to it. None: no cache."""
    written: int = 0
    """How often the documents spell out a special token; it counts as text."""
    model: Model | None = None
    """The model to be quantized, for methods that run it."""
    documents: NDArray[np.int64] | None = None
    """int64 [documents]: their numbers in the corpus, if they are a part of it."""
    selection_settings: SelectionSettings | None = None
    laid: bool = False
    """Whether each document is one window (`windows=document`): a method then chooses whole ones.
    """
    plain: TokenPool | None = None
    """The same documents without the chat template's tokens, if a template wrote some of them."""

    @property
    def settings(self) -> SelectionSettings:
        """Return the settings of the run; raise ValueError for a pool that is not of a run."""
        if self.selection_settings is None:
            raise ValueError("this pool has no selection_settings: a method of it needs them")
        return self.selection_settings

    @property
    def contents(self) -> TokenPool:
        """Return the documents without a template's tokens, for features of what they say."""
        return self if self.plain is None else self.plain


Selector = Callable[[TokenPool, int, int, np.random.Generator], Selection]
"""(pool, number of windows, tokens per window, source of randomness) → selection."""

CorpusLoader = Callable[[str], Corpus]
"""The part of the corpus name after the colon (usually empty) → corpus."""

Progress = Callable[[int, int], None]
"""Called with (steps done, total steps) while a long stage runs."""


@dataclass(frozen=True)
class QuantizationReport:
    """Times and per-layer results of a quantization. `modules`: one row per quantized layer.

    `warm_up_time_sec`: the library's start-up, once per process, before the clock starts; None if
    not measured. `windows_at_once`: the final micro-batch, None if the quantizer does not report
    it.
    """

    quant_time_sec: float
    save_time_sec: float
    modules: Sequence[Mapping[str, Any]]
    warm_up_time_sec: float | None = None
    unquantized: Sequence[str] = ()
    """Names of matrices in the model's blocks that were not quantized."""
    scales_outside_float16: int = 0
    """Groups whose scale float16 cannot hold: their weights are wrong by more than rounding."""
    windows_at_once: int | None = None
    halved: bool = False
    """Whether micro-batches became smaller than planned because memory ran out."""
    files: Mapping[str, str] = field(default_factory=dict)
    """Checkpoint file → SHA-256, of files that were hashed while they were written."""
    solved: Mapping[str, str] = field(default_factory=dict)
    """Weight → fingerprint of what the model computed with; of quantizers that evaluate too."""

    @property
    def rtn_fallbacks(self) -> int:
        """Count the layers that got round-to-nearest because GPTQ could not be applied."""
        return sum(bool(row["rtn_fallback"]) for row in self.modules)

    @property
    def column_kernel(self) -> str:
        """Name the kernels that ran GPTQ's loop over columns, joined by commas; '' if unknown.

        Rounded layers have no such loop.
        """
        rows = [row for row in self.modules if "kernel" in row and not row["rtn_fallback"]]
        return ",".join(sorted({str(row["kernel"]) for row in rows}))

    @property
    def tokens_used(self) -> int | None:
        """Return the most calibration tokens that a layer got (an expert gets its share).

        None for a quantizer that uses none or does not report them.
        """
        return max((int(row["samples"]) for row in self.modules), default=0) or None

    @property
    def first_position_shares(self) -> list[float]:
        """Return, by layer, the share of its Hessian's trace from the windows' first tokens.

        Of the layers for which the quantizer knows it.
        """
        shares = (row.get("first_position_share") for row in self.modules)
        return [share for share in shares if share is not None]

    @property
    def damp_max(self) -> float:
        """Return the largest damp that a layer needed (share of the mean Hessian diagonal)."""
        return max((row["damp"] for row in self.modules), default=0.0)


@dataclass(frozen=True)
class QuantizationSettings:
    """The settings of quantizers, resolved; see `colazero.settings.Settings` for the units."""

    quant_bits: int
    group_size: int
    desc_act: bool
    sym: bool
    damp_percent: float
    act_group_aware: bool
    sparsity: float = 0.5
    pattern: str = "none"
    position_weight: float | Literal["attention"] = 1.0


class BlockEvaluator(Protocol):
    """Evaluates a model block by block while it is quantized.

    `seconds`: the time it took, which does not count as quantizing.
    """

    seconds: float

    def begin(self, sequence: Any) -> None:
        """Begin, with the `colazero.blocks.Sequence` of the model."""

    def advance(self, index: int) -> None:
        """Pass the block of this index, which holds its quantized weights now."""

    def finish(self) -> None:
        """End, after the last block."""


@dataclass(frozen=True)
class Work:
    """What a quantizer gets: a model, a calibration set, and where the checkpoint goes.

    A quantizer that works block by block calls the `evaluator` after each block. Others ignore it.
    """

    model_dir: Path
    calibration: CalibrationSet
    settings: QuantizationSettings
    out_dir: Path
    device: str
    progress: Progress = lambda _done, _total: None
    evaluator: BlockEvaluator | None = None


Quantizer = Callable[[Work], QuantizationReport]
"""Writes a quantized checkpoint directory from a model directory."""


@dataclass(frozen=True)
class Downstream:
    """Results of downstream tasks: `TASK.METRIC` → value, and one row per item (JSON values).

    `higher_is_better`: lm-eval's own mark per `TASK.METRIC`, where it has one.
    """

    scores: Mapping[str, float] = field(default_factory=dict)
    samples: Sequence[Mapping[str, Any]] = ()
    higher_is_better: Mapping[str, bool] = field(default_factory=dict)


@dataclass(frozen=True)
class Text:
    """A corpus's evaluation text: token ids [windows, tokens], and where each window begins.

    `scored`: bool [windows, tokens], the tokens whose prediction counts, at least one per window
    after its first; None: all of them.
    """

    corpus: str
    windows: NDArray[np.int64]
    starts: NDArray[np.int64]
    scored: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Divergence:
    """Distance of a model's predictions from the unquantized model's.

    Per window, [windows]: `kl`, the sum over its predictions of KL(unquantized ‖ quantized), in
    nats, and `agreed`, the number of predictions with the same most likely token. Per prediction,
    [predictions]: `each`, KL(unquantized ‖ quantized); `reverse`, KL(quantized ‖ unquantized);
    `sure`, the probability that the unquantized model gives its first choice; `changed`, whether
    the quantized model's first choice is another token.
    """

    kl: NDArray[np.float64]
    agreed: NDArray[np.int64]
    each: NDArray[np.float64]
    reverse: NDArray[np.float64]
    sure: NDArray[np.float64]
    changed: NDArray[np.bool_]

    @property
    def tails(self) -> dict[str, float]:
        """Return what the means hide, as metrics.

        `divergence.kl_q95` and `kl_q99`: quantiles of KL(unquantized ‖ quantized) over predictions.
        `divergence.kl_reverse`: mean of KL(quantized ‖ unquantized). `divergence.top1_changed_q1`
        to `q4`: share of predictions with another first choice, in each quarter of the predictions
        ordered by how sure the unquantized model is (q1: least sure).
        """
        quarters = np.array_split(self.changed[np.argsort(self.sure, kind="stable")], 4)
        found = {f"kl_q{q}": float(np.quantile(self.each, q / 100)) for q in (95, 99)}
        found["kl_reverse"] = float(self.reverse.mean())
        for number, quarter in enumerate(quarters, start=1):
            if quarter.size:
                found[f"top1_changed_q{number}"] = float(quarter.mean())
        return {f"divergence.{name}": value for name, value in found.items()}


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
    """None if not asked for, or if the model cannot run block by block."""
    documents: NDArray[np.int64] | None = None
    available: int | None = None
    halved: bool = False
    """Whether fewer windows than planned were run together because memory ran out."""
    source: Mapping[str, str] = field(default_factory=dict)
    """That of the corpus."""

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
        """Return the means over all predictions as metrics; empty without a divergence.

        `kl_divergence`: KL(unquantized ‖ quantized) in nats. `top1_agreement`: share of predictions
        with the same most likely token. `divergence.…`: see `Divergence.tails`.
        """
        if self.divergence is None:
            return {}
        kl, agreed = self.divergence.kl.sum(), self.divergence.agreed.sum()
        total = self.tokens.sum()
        means = {"kl_divergence": float(kl / total), "top1_agreement": float(agreed / total)}
        return means | self.divergence.tails


@dataclass(frozen=True)
class Evaluation:
    """Perplexities by corpus, in the order asked for, and downstream results.

    `windows_at_once`: the final micro-batch, None if not reported.
    """

    perplexities: Sequence[Perplexity]
    downstream: Downstream = field(default_factory=Downstream)
    eval_time_sec: float = 0.0
    windows_at_once: int | None = None

    @property
    def halved(self) -> bool:
        """Return whether fewer windows than planned were run together for a text."""
        return any(one.halved for one in self.perplexities)
