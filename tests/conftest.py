"""Tiny models and a generated corpus, made on the spot: no test needs a network or a real model."""

from __future__ import annotations

import inspect
import json
import os
import random
import re
import sqlite3
import textwrap
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.engine import Engine

VOCABULARY = 800
TOPICS = 12
PARAGRAPHS = 900
LEFT_OUT = pytest.StashKey[int]()


WHOLE = re.compile(r"\b(subprocess|Popen|multiprocessing|Terminal)\b|\bray\.init\b")
"""What a test that starts other processes or servers names, it or what it calls."""
SMALL_SUITE = "test_suite.py"
"""The one file of tests/integration that plain `pytest` runs: a real suite of six cells."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark the tests that start processes, servers or whole suites: `whole`.

    The folder decides, and within tests/unit the source of the test, of its fixtures and of what
    they call in their own file. Files with marked tests come first: they take longest.
    """
    read: dict[Any, bool] = {}
    for item in items:
        in_integration = "integration" in item.path.parts and item.path.name != SMALL_SUITE
        if in_integration or _starts_processes(item, read):
            item.add_marker("whole")
    items.sort(key=lambda item: item.get_closest_marker("whole") is None)


def _starts_processes(item: pytest.Item, read: dict[Any, bool]) -> bool:
    """Return whether the source of a test, its fixtures or their helpers matches WHOLE."""
    waiting: list[Any] = [getattr(item, "function", None)]
    for definitions in item._fixtureinfo.name2fixturedefs.values():
        waiting += [definition.func for definition in definitions]
    seen: set[Any] = set()
    while waiting:
        function = inspect.unwrap(waiting.pop()) if waiting[-1] else waiting.pop()
        if not inspect.isfunction(function) or function in seen or not _is_ours(function):
            continue
        seen.add(function)
        if function not in read:
            read[function] = bool(WHOLE.search(inspect.getsource(function)))
        if read[function]:
            return True
        names = function.__code__.co_names
        called = (function.__globals__.get(name) for name in names)
        waiting += [f for f in called if getattr(f, "__module__", None) == function.__module__]
    return False


def _is_ours(function: Any) -> bool:
    return Path(function.__code__.co_filename).is_relative_to(Path(__file__).parent)


def pytest_configure(config: pytest.Config) -> None:
    config.stash[LEFT_OUT] = 0


def pytest_deselected(items: list[pytest.Item]) -> None:
    if items:
        items[0].config.stash[LEFT_OUT] += len(items)


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):  # a process of xdist: every one leaves out the same
        session.config.workeroutput["left_out"] = session.config.stash[LEFT_OUT]


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    node.config.stash[LEFT_OUT] = getattr(node, "workeroutput", {}).get("left_out", 0)


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Say what plain `pytest` leaves out, and how to run it."""
    left = config.stash[LEFT_OUT]
    if left and config.option.markexpr == "not whole":
        terminalreporter.write_line(
            f"{left} tests left out; those that start processes, servers or whole suites run with "
            '`pytest -m whole`, all tests with `pytest -m ""`'
        )


@event.listens_for(Engine, "connect")
def _do_not_wait_for_the_disk(connection: Any, _: object) -> None:
    """Have SQLite not wait for the disk at each commit, which takes half of what logging does."""
    if isinstance(connection, sqlite3.Connection):
        connection.execute("PRAGMA synchronous = OFF")


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep converted models and token pools out of the user's cache, and share them."""
    before = os.environ.get("COLAZERO_CACHE")
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent  # that of all of pytest's processes
    os.environ["COLAZERO_CACHE"] = str(base / "cache")
    yield
    if before is None:
        del os.environ["COLAZERO_CACHE"]
    else:
        os.environ["COLAZERO_CACHE"] = before


@pytest.fixture(scope="module", autouse=True)
def _no_experiment_of_another_file() -> None:
    """Forget the experiment that MLflow wrote into the environment for an earlier file's store."""
    os.environ.pop("MLFLOW_EXPERIMENT_ID", None)


@pytest.fixture(autouse=True)
def _no_experiment_of_another_test() -> None:
    """As above: a test may have used a store of its own."""
    os.environ.pop("MLFLOW_EXPERIMENT_ID", None)


def _words(rng: random.Random, count: int) -> list[str]:
    """Return made-up words, long and short, of which the first are meant to be used most."""
    syllables = [c + v for c in "bdfgklmnprstvz" for v in ("a", "e", "i", "o", "u", "or", "an")]
    return ["".join(rng.choices(syllables, k=rng.randint(1, 4))) for _ in range(count)]


def generated_paragraphs(seed: int = 0, count: int = PARAGRAPHS) -> list[str]:
    """Return paragraphs of several topics, styles and lengths (about 10 to 750 tokens)."""
    rng = random.Random(seed)
    vocabulary = random.Random(1)  # all corpora speak the same language
    common = _words(vocabulary, 60)
    topics = [_words(vocabulary, 80) for _ in range(TOPICS)]
    weights = [1 / (rank + 1) for rank in range(80)]
    paragraphs = []
    for _ in range(count):
        own, share = rng.choice(topics), rng.uniform(0.3, 0.9)
        sentences = []
        for _ in range(min(40, int(rng.lognormvariate(1.6, 1.0)) + 1)):
            words = [
                rng.choices(own, weights)[0] if rng.random() < share else rng.choice(common)
                for _ in range(rng.randint(3, 14))
            ]
            sentences.append(" ".join(words).capitalize() + rng.choice(".....!?;"))
        paragraphs.append(" ".join(sentences) + f" ({rng.randint(1, 9999)})")
    return paragraphs


@pytest.fixture(scope="session")
def paragraphs() -> list[str]:
    """The documents of `corpus_file`, in order."""
    return generated_paragraphs()


@pytest.fixture(scope="session")
def corpus_file(paragraphs: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A .txt corpus of more than 60,000 tokens; many documents have more than 175."""
    path = tmp_path_factory.mktemp("corpus") / "paragraphs.txt"
    path.write_text("\n\n".join(paragraphs), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """A byte-level BPE tokenizer that puts <s> before a text, as Llama's and OPT's do."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(generated_paragraphs(seed=7, count=300), trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s> $B", special_tokens=[("<s>", 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def _checkpoint(folder: Path, config: Any, tokenizer: Any) -> Path:
    """Save a random model of `config`; its weights depend on the seed here alone."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _shape(tokenizer: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 2048,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }


@pytest.fixture(scope="session")
def tiny_llama(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import LlamaConfig

    config = LlamaConfig(**_shape(tokenizer), intermediate_size=256, num_key_value_heads=2)
    return _checkpoint(tmp_path_factory.mktemp("models") / "tiny-llama", config, tokenizer)


@pytest.fixture(scope="session")
def tiny_mistral(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import MistralConfig

    config = MistralConfig(**_shape(tokenizer), intermediate_size=256, num_key_value_heads=2)
    return _checkpoint(tmp_path_factory.mktemp("models") / "tiny-mistral", config, tokenizer)


@pytest.fixture(scope="session")
def tiny_opt(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from transformers import OPTConfig

    config = OPTConfig(**_shape(tokenizer), ffn_dim=256, word_embed_proj_dim=128)
    return _checkpoint(tmp_path_factory.mktemp("models") / "tiny-opt", config, tokenizer)


@pytest.fixture
def in_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return what has every Python process started from here run some code before its own."""

    def run_there(code: str) -> None:
        folder = tmp_path / "in_workers"
        folder.mkdir(exist_ok=True)
        (folder / "sitecustomize.py").write_text(textwrap.dedent(code))
        path = [str(folder), str(Path(__file__).resolve().parent.parent)]
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))

    return run_there


OWN_TASK = """
task: colazero_own_task
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: question
doc_to_choice: choices
doc_to_target: answer
metric_list:
  - metric: acc
  - metric: acc_norm
"""


@pytest.fixture
def own_task(paragraphs: list[str], tmp_path: Path) -> Path:
    """A downstream task in lm-eval's format, its data beside it in items.jsonl."""
    rng = random.Random(3)
    rows = []
    for i in range(24):
        words = paragraphs[i].split()
        others = [" ".join(rng.choice(paragraphs).split()[:n]) for n in (2, 5)]
        rows.append({"question": " ".join(words[:3]), "choices": others, "answer": i % 2})
    data = tmp_path / "task" / "items.jsonl"
    data.parent.mkdir()
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    file = data.with_name("mine.yaml")
    file.write_text(OWN_TASK.format(data=data))
    return file


def _move_hub(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    import datasets
    from huggingface_hub import HfApi, constants

    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", endpoint)
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    assert HfApi().endpoint == endpoint


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the Hugging Face Hub where nobody listens, and is not asked again after ever longer."""
    from huggingface_hub.utils import _http

    monkeypatch.setattr(_http, "time", SimpleNamespace(sleep=lambda _seconds: None))
    _move_hub(monkeypatch, "http://127.0.0.1:9")


@pytest.fixture
def hub_says(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Put in the Hub's place a server that answers everything with one status and error code."""
    answer: dict[str, Any] = {"status": 200, "code": None}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(answer["status"])
            if answer["code"]:
                self.send_header("X-Error-Code", answer["code"])
            self.send_header("Content-Length", "2")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(b"{}")

        do_HEAD = do_GET

        def log_message(self, *_: Any) -> None:
            pass

    def says(status: int, code: str | None = None) -> None:
        answer.update(status=status, code=code)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    _move_hub(monkeypatch, f"http://127.0.0.1:{server.server_port}")
    yield says
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="session")
def equipped(tiny_llama: Path) -> Callable[[Any], Any]:
    """Return what adds a tiny model to a token pool, as target and as proxy."""
    from colazero.settings import Settings
    from colazero.types import Model, SelectionSettings

    config = Settings.model_validate({"proxy_model": str(tiny_llama), "device": "cpu"})
    settings, model = SelectionSettings.of(config), Model("tiny", tiny_llama, "1")
    return lambda pool: replace(pool, selection_settings=settings, model=model)
