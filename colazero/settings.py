"""Every parameter of a cell, declared once: name, default, allowed values, help text and marks.

A command line or a preset only fills these fields. What else depends on the list of parameters
follows from SETTINGS: what an entry point takes, what keeps two cells apart, what the analysis
reads. A parameter written `auto` takes the preset's value, or else the default that stands here.
The analysis imports this module, so it imports no heavy library.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, model_validator

from colazero.values import (
    NO_OPTIONS,
    Bits,
    Chat,
    Count,
    Device,
    GroupSize,
    Length,
    Name,
    Names,
    Options,
    Seed,
    Weight,
)

Stage = Literal["selection", "quantization", "evaluation"]
SELECTION: tuple[Stage, ...] = ("selection",)
QUANTIZATION: tuple[Stage, ...] = ("quantization",)
EVALUATION: tuple[Stage, ...] = ("evaluation",)
EVERY: tuple[Stage, ...] = get_args(Stage)
GPTQ = ("onepass", "gptqmodel", "auto-gptq")
PRUNING = ("magnitude", "wanda", "sparsegpt")
QUANTIZERS = ("none", "rtn", *GPTQ, "awq", *PRUNING)
"""The quantizers whose settings are known. Any other takes all of them."""


def setting(
    default: Any,
    stages: Sequence[Stage],
    about: str,
    *,
    decides: bool = True,
    per_model: bool = False,
    quantizers: Sequence[str] = (),
    **limits: Any,
) -> Any:
    """Return the field of a parameter that each cell has.

    stages: those that take it. decides: whether results that differ in it alone must not be
    compared. per_model: whether `auto` is resolved for each model. quantizers: those that take it,
    if not all do. limits: pydantic's, such as `gt=0`.
    """
    marks: Any = {"stages": stages, "decides": decides, "per_model": per_model}
    marks |= {"quantizers": list(quantizers)}
    return Field(default, description=about, json_schema_extra=marks, **limits)


class Common(BaseModel):
    """Parameters that a single run and a suite share."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    corpus_share: float = setting(
        1.0,
        SELECTION,
        "share of the training documents that each seed draws before its method selects; below 1 "
        "even a deterministic method varies with the seed",
        gt=0,
        le=1,
    )
    windows: Literal["stream", "document"] = setting(
        "stream",
        SELECTION,
        "where calibration windows begin: anywhere in the joined documents (stream), or with a "
        "document; others follow until the window is full, and the last one is cut (document)",
    )
    bos: Literal["auto", "always", "first", "never"] = setting(
        "auto",
        EVERY,
        "BOS token: before every window (always), once before the evaluation text if the tokenizer "
        "writes one, as the GPTQ papers do (first), or nowhere (never); auto: always for Gemma, "
        "else first",
        per_model=True,
    )
    exact_documents: int = setting(
        20_000,
        SELECTION,
        "most documents that a method clusters exactly; with more, a sample of this size decides "
        "terms and components, and k-means runs in mini-batches",
        ge=100,
    )
    document_tokens: int = setting(
        128,
        SELECTION,
        "first tokens of a document that cola and cola_zero_perplexity run a model on",
        ge=2,
    )
    proxy_model: Name = setting(
        "smollm2-135m", SELECTION, "small model whose perplexities cola_zero_perplexity uses"
    )
    desc_act: bool = setting(
        False,
        QUANTIZATION,
        "quantize columns in decreasing order of activation size",
        quantizers=GPTQ,
    )
    sym: bool = setting(
        True, QUANTIZATION, "symmetric quantization grid", quantizers=(*GPTQ, "rtn")
    )
    damp_percent: float = setting(
        0.05,
        QUANTIZATION,
        "damping: share of the Hessian's mean diagonal that is added to the diagonal; 0.05 is 5 %",
        quantizers=(*GPTQ, "sparsegpt"),
        gt=0,
        lt=1,
    )
    sparsity: float = setting(
        0.5,
        QUANTIZATION,
        "share of the weights that pruning sets to zero, the same in every layer",
        quantizers=PRUNING,
        gt=0,
        lt=1,
    )
    pattern: Literal["none", "2:4"] = setting(
        "none",
        QUANTIZATION,
        "zeros anywhere (none), or two in each four inputs (2:4)",
        quantizers=PRUNING,
    )
    act_group_aware: Literal["auto"] | bool = setting(
        "auto",
        QUANTIZATION,
        "order groups by activation size (GAR); auto: true unless desc_act is true",
        per_model=True,
        quantizers=GPTQ,
    )
    eval_corpora: Names = setting(
        ("sotu",), EVALUATION, "corpora whose test split perplexity is measured on"
    )
    eval_windows: Literal["all"] | Annotated[int, Field(ge=1)] = setting(
        "all", EVALUATION, "evaluation windows per corpus, evenly spaced over the test split"
    )
    eval_seq_len: Literal["auto"] | Annotated[int, Field(ge=16)] = setting(
        "auto", EVALUATION, "tokens per evaluation window; auto: as many as a calibration window"
    )
    chat_template_kwargs: Options = setting(
        NO_OPTIONS,
        ("selection", "evaluation"),
        'settings of the chat template, a JSON object such as {"enable_thinking": false}, for '
        "calibration and evaluation; a row's own come before them",
    )
    eval_on: Literal["all", "answers"] = setting(
        "all",
        EVALUATION,
        "tokens of conversations whose prediction counts: all, or those of the assistant (answers)",
    )
    do_downstream: bool = setting(False, EVALUATION, "run the downstream tasks too", decides=False)
    downstream_chat: bool = setting(
        False, EVALUATION, "write the downstream tasks' prompts as the model's chat template does"
    )
    downstream_tasks: Names = setting(
        ("arc_easy", "hellaswag", "piqa", "winogrande"),
        EVALUATION,
        "names of lm-eval tasks",
    )
    save_model: Literal["artifact", "local", "none"] = setting(
        "artifact", QUANTIZATION, "where the quantized model is kept", decides=False
    )
    device: Device = setting(
        "auto",
        EVERY,
        "where torch computes: cpu, cuda, one GPU of several (cuda:1), or auto: a GPU if there is "
        "one, else the CPU",
        per_model=True,
    )


class Settings(Common):
    """Parameters of a cell other than its model, method, seed and replicate."""

    corpus: Name = setting(
        "sotu", SELECTION, "calibration corpus: a name, file:PATH, hf:ORG/NAME or mix:A=0.5,B=0.5"
    )
    chat: Chat = setting(
        "auto",
        SELECTION,
        "calibration on conversations: as the model's chat template writes them (template), as "
        "plain text (plain); auto: template if there are conversations and the model has one",
    )
    n_calibration_samples: Count = setting(128, SELECTION, "windows per calibration set")
    seq_len: Length = setting(
        2048,
        ("selection", "evaluation"),
        "tokens per calibration window; for long ones, see position_weight",
    )
    quantizer: Name = setting(
        "onepass",
        QUANTIZATION,
        "GPTQ by onepass (one block at a time), gptqmodel or auto-gptq; awq; pruning by wanda or "
        "sparsegpt; without calibration rtn (round to nearest), magnitude (pruning) or none",
    )
    quant_bits: Bits = setting(4, QUANTIZATION, "bits per weight", quantizers=(*GPTQ, "rtn", "awq"))
    group_size: GroupSize = setting(
        "auto",
        QUANTIZATION,
        "inputs that share a scale; -1: the whole row; auto: 128, or the largest that divides",
        per_model=True,
        quantizers=(*GPTQ, "rtn", "awq"),
    )
    position_weight: Weight = setting(
        1.0,
        QUANTIZATION,
        "weight of each window's first token in GPTQ's Hessians; 1: as published; attention: each "
        "token by the attention that it gets",
        quantizers=("onepass",),
    )

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        refuse_contradictions(self, [self.group_size], [self.quantizer], [self.quant_bits])
        return self

    @property
    def evaluated_len(self) -> int:
        """Return the number of tokens per evaluation window."""
        return self.seq_len if self.eval_seq_len == "auto" else self.eval_seq_len


class RunConfig(Settings):
    """One cell: a model, a method, a seed and a replicate."""

    model: Name = setting("smollm2-135m", EVERY, "name, Hub id[@revision], directory or .gguf file")
    method: Name = setting("cola_zero", SELECTION, "how the calibration windows are chosen")
    seed: Seed = setting(
        42, SELECTION, "seed of the draw of documents, the selection and the order of its windows"
    )
    replicate: int = setting(
        1, SELECTION, "number of the order in which the windows reach the quantizer", ge=1
    )


class Resolved(RunConfig):
    """A cell in which every `auto` is replaced by what it means for its model and device."""

    bos: Literal["always", "first", "never"]
    act_group_aware: bool
    eval_seq_len: int
    group_size: int


CELL = ("model", "method", "seed", "replicate")
"""The parameters that name a cell within its setting."""
SWEPT = (
    *("quantizer", "quant_bits", "group_size", "position_weight"),
    *("n_calibration_samples", "seq_len", "corpus", "chat"),
)
"""The settings of which a suite takes several values; the last changes fastest."""


@dataclass(frozen=True)
class Setting:
    """A parameter of a cell, with its marks (see `setting`) and the type of its values.

    type: int, float, bool or str, as `auto` is resolved.
    """

    name: str
    type: type
    stages: tuple[str, ...]
    decides: bool
    per_model: bool
    quantizers: Sequence[str]

    def taken(self, quantizer: str) -> bool:
        """Return whether a quantizer takes it. Where it does not, its value changes nothing."""
        return not self.quantizers or quantizer in self.quantizers or quantizer not in QUANTIZERS


def _type_of(kind: Any) -> type:
    """Return the type of a field's values: int, float or bool, str for everything else."""
    if get_origin(kind) is Annotated:
        return _type_of(get_args(kind)[0])
    if get_origin(kind) is Literal:
        return type(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        types = {_type_of(part) for part in get_args(kind) if part != Literal["auto"]}
        return types.pop() if len(types) == 1 else str
    return kind if kind in (int, float, bool) else str


SETTINGS = {
    name: Setting(name, _type_of(field.annotation), **field.json_schema_extra)  # type: ignore[arg-type]
    for name, field in RunConfig.model_fields.items()
}
"""Every parameter of a cell, by name."""


def taken_by(stage: Stage) -> tuple[str, ...]:
    """Return the parameters that a stage takes, those that name the cell first."""
    names = [name for name, one in SETTINGS.items() if stage in one.stages]
    return tuple(sorted(names, key=lambda name: name not in CELL))


def canonical_key(config: Settings, **context: str) -> str:
    """Return 16 hex digits that two runs share exactly when they must give the same result.

    Settings that the quantizer does not take are left out.
    context: what decides the result but is not a parameter: revisions, digests, versions. The
    number of a GPU does not count: `devices.facts` names it in the context.
    """
    values = {
        name: value
        for name, value in config.model_dump(mode="json").items()
        if SETTINGS[name].taken(config.quantizer)
    }
    values["device"] = str(values["device"]).split(":")[0]
    text = json.dumps({"config": values, "context": context}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def refuse_contradictions(
    config: Common,
    sizes: Collection[int | str],
    quantizers: Collection[str],
    bits: Collection[int],
) -> None:
    """Raise ValueError if settings contradict each other or what a quantizer can do."""
    if "awq" in quantizers and set(bits) != {4}:
        raise ValueError(
            f"quant_bits={','.join(map(str, bits))}: quantizer=awq has 4 bits only, as its format "
            "does. Set quant_bits=4"
        )
    if config.pattern == "2:4" and config.sparsity != 0.5:
        raise ValueError(
            f"sparsity={config.sparsity:g}: pattern=2:4 is a sparsity of 0.5. Leave sparsity out, "
            "or set pattern=none"
        )
    if -1 in sizes and config.act_group_aware is True:
        raise ValueError(
            "act_group_aware=true needs groups: group_size=-1 makes none. Set one of both"
        )
    if config.desc_act and config.act_group_aware is True:
        raise ValueError("act_group_aware=true needs desc_act=false: set one of them to false")
