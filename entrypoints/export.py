"""Export a quantized model for the Hub: `python -m entrypoints.export --run=RUN_ID --out=DIR`.

The folder holds the checkpoint and a model card, README.md, with what the tracking store knows of
the model: how it was calibrated, its perplexity, its suite's verdicts, and what can load it.
"""

from __future__ import annotations

if not __package__:  # as a script, select.py would hide the standard library's `select`
    raise SystemExit("error: run it as `python -m entrypoints.export`, or `colazero export`.")

import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from colazero.errors import UserError
from colazero.settings import PRUNING, SETTINGS
from entrypoints._session import KEPT, main

if TYPE_CHECKING:
    from mlflow.entities import Run

PARAMETERS = {
    "run": "run id of a suite's cell, of single or of quantize; runs:/RUN_ID, or "
    "models:/NAME/VERSION. Default: none",
    "out": "folder to write; it must be new or empty. Default: none",
}
INTERVAL = ("mean", "low95", "high95", "n")
LIMITS = ("percent", "confidence", "low_percent", "high_percent")
"""The numbers of a comparison that a suite's run keeps."""
BY_GPTQMODEL = (
    "transformers, with GPTQModel installed: `AutoModelForCausalLM.from_pretrained(FOLDER)`",
    "GPTQModel: `GPTQModel.load(FOLDER)`",
)
CARD = Path(__file__).with_name("model_card.md.jinja")


def run(given: dict[str, str]) -> int:
    for name, about in PARAMETERS.items():
        if given[name] == "auto":
            raise UserError(f"{name} is missing: {about.removesuffix('. Default: none')}.")
    out = Path(given["out"]).expanduser()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"out={str(out)!r} is not empty: name a new or an empty folder.")
    from colazero.store import client, fetch
    from colazero.store.open import connect

    connect(reading=True)
    uri = given["run"] if given["run"].startswith(KEPT) else f"runs:/{given['run']}"
    cell = fetch.find(uri)
    checkpoint = fetch.fetch_artifacts(uri, "model")
    suite = client.find_run(cell.data.tags.get("mlflow.parentRunId", ""))
    try:
        copy_checkpoint(checkpoint, out)
        (out / "README.md").write_text(model_card(cell, suite, out), encoding="utf-8")
    except OSError as error:
        raise UserError(f"out={str(out)!r} cannot be written: {error.strerror}.") from error
    print(f"exported: {out}")
    return 0


def copy_checkpoint(checkpoint: Path, out: Path) -> None:
    """Copy the files that a checkpoint's sha256.json lists; raise UserError if one is damaged.

    The umask decides who may read the copies. MLflow's own files of the model stay behind.
    """
    from colazero.cache import file_digest

    try:
        digests = json.loads((checkpoint / "sha256.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise UserError(
            f"the model in {checkpoint} has no readable sha256.json: it is not a checkpoint of "
            "colazero, or it is damaged. Run the cell again with force=true."
        ) from None
    for name, digest in digests.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(checkpoint / name, out / name)
        if file_digest(out / name) != digest:
            raise UserError(
                f"{name} in {checkpoint} is damaged: its sha256 is not what sha256.json says. Run "
                "the cell again with force=true."
            )


def public(name: str) -> str:
    """Return the name of a model or corpus without the folders of a local path."""
    name = re.sub(r"file:[^,=]*/", "file:", name)
    return Path(name).name if Path(name).is_absolute() else name


def model_card(cell: Run, suite: Run | None, folder: Path) -> str:
    """Return the README.md of an exported checkpoint, with the Hub's metadata at its head."""
    from huggingface_hub import ModelCard, ModelCardData

    from colazero.store import client, fetch
    from colazero.types import HUB_ID, label

    tags = cell.data.tags
    params = client.params_of(cell)
    source = tags.get(client.SOURCE)
    with_files = fetch.find(f"runs:/{source}") if source else cell
    hub = HUB_ID.fullmatch(params["model"])
    data = ModelCardData(
        base_model=hub["repository"] if hub and not Path(params["model"]).exists() else None,
        base_model_relation="quantized" if hub else None,
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=[*tags_of(params), "colazero"],
    )
    versions = _Known(
        {name.removeprefix("version."): v for name, v in tags.items() if "version." in name[:8]}
    )
    metrics = client.metrics_of(cell)
    shown = ("perplexity", "kl_divergence", "top1_agreement")
    title = f"{label(params['model'])}, {', '.join(tags_of(params))}, {params.get('method', '')}"
    card = ModelCard.from_template(
        data,
        template_path=str(CARD),
        title=title.removesuffix(", "),
        kind=kind_of(params),
        settings=", ".join(
            f"{name}={params.get(name, 'not recorded')}"
            for name, one in SETTINGS.items()
            if one.quantizers and one.taken(params["quantizer"])
        ),
        params=_Known({name: public(value) for name, value in params.items()}),
        revision=tags.get("colazero.model_revision", "not recorded"),
        precision=precision(params["model"], folder, params["quantizer"]),
        set=_Known(fetch.read_json(with_files, "calibration/selection.json") or {}),
        digest=tags.get("colazero.calibration_digest", "not recorded"),
        metrics={name: f"{metrics[name]:.4f}" for name in shown if name in metrics},
        runtimes=runtimes(params),
        versions=versions,
        all_versions=", ".join(f"{name} {version}" for name, version in versions.items()),
        **_of_suite(params, suite),
    )
    return str(card)


class _Known(dict[str, Any]):
    """Values by name; a missing one reads as `not recorded`."""

    def __missing__(self, name: str) -> str:
        return "not recorded"


def precision(model: str, folder: Path, quantizer: str) -> str:
    """Say in which precision the base model's weights were before a quantizer changed them."""
    from colazero.models.convert import PACKAGED

    if package := PACKAGED.get(model):
        file = Path(package.member).name
    elif model.lower().endswith(".gguf"):
        file = Path(model).name
    else:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        dtype = config.get("dtype") or config.get("torch_dtype") or "not recorded"
        return f"Precision: {dtype}."
    return (
        f"Its weights were dequantized from the GGUF file {file}, so they had been rounded before "
        f"quantizer={quantizer} changed them."
    )


def _of_suite(params: dict[str, str], suite: Run | None) -> dict[str, Any]:
    """Return what the suite's analysis says of the cell's method and model."""
    from colazero.store import client
    from colazero.types import label

    if suite is None:
        return {"interval": None, "verdicts": []}
    numbers = client.metrics_of(suite)
    model, method = client.result_name(label(params["model"])), client.result_name(params["method"])
    mine = {name: numbers.get(f"result.{model}.{method}.{name}") for name in INTERVAL}
    interval: dict[str, Any] | None = None
    if None not in mine.values():  # only if the whole suite has one setting
        interval = mine | {"metric": suite.data.params.get("metric", "perplexity")}
    verdicts = []
    for tag, verdict in suite.data.tags.items():
        pair = tag.removeprefix(f"verdict.{model}.")
        if pair == tag or method not in pair.split("_vs_"):
            continue
        line = f"{pair.replace('_vs_', ' vs ')}: {verdict}"
        known = [numbers.get(f"result.{model}.{pair}.{name}") for name in LIMITS]
        if None not in known:
            percent, confidence, low, high = known
            level = 100 * (confidence or 0)
            line += f" ({percent:+.2f} %, {level:g} % CI [{low:+.2f}, {high:+.2f}])"
        verdicts.append(line)
    return {"interval": interval, "verdicts": sorted(verdicts)}


def tags_of(params: dict[str, str]) -> list[str]:
    """Return the format of a checkpoint and how small it is, in the words of the Hub's tags."""
    if params["quantizer"] in PRUNING:
        pattern = [params["pattern"]] if params["pattern"] != "none" else []
        return ["pruned", f"{100 * float(params['sparsity']):g}% sparse", *pattern]
    return ["awq" if params["quantizer"] == "awq" else "gptq", f"{params['quant_bits']}-bit"]


def kind_of(params: dict[str, str]) -> str:
    """Say in a few words what a checkpoint is."""
    if params["quantizer"] in PRUNING:
        return f"Checkpoint of plain weights ({', '.join(tags_of(params))})"
    rounded = ", rounded to nearest without calibration" if params["quantizer"] == "rtn" else ""
    form = "AWQ" if params["quantizer"] == "awq" else "GPTQ"
    return f"{params['quant_bits']}-bit checkpoint in {form}'s format{rounded}"


def runtimes(params: dict[str, str]) -> list[str]:
    """Say which runtimes load a checkpoint of these settings."""
    if params["quantizer"] in PRUNING:
        return [
            "transformers, and every runtime that loads the base model: the weights are plain, "
            "and as large as before"
        ]
    if params["quantizer"] == "awq":
        return [
            *BY_GPTQMODEL,
            "other readers of AWQ's GEMM layout, such as vLLM (not tried)",
        ]
    from colazero.quantizers.supported import VLLM, refused_by_vllm

    settings = (int(params["quant_bits"]), int(params["group_size"]), params["sym"] == "true")
    refused = refused_by_vllm(*settings)
    vllm = f"not vLLM: {refused}" if refused else f"vLLM {VLLM}: `vllm serve FOLDER`"
    return [*BY_GPTQMODEL, vllm]


if __name__ == "__main__":
    main(__doc__, PARAMETERS, run)
