"""A Ray cluster: joining one or starting it, and the room that its nodes have for cells."""

from __future__ import annotations

import logging
import signal
import socket
from collections.abc import Mapping
from typing import Any

from colazero.errors import UserError
from colazero.store import provenance
from colazero.suite_settings import SuiteConfig

OBJECT_STORE_BYTES = 100 * 2**20
"""Of a cluster that the suite starts. Only events pass through it; Ray's least is 75 MiB."""


def needs(config: SuiteConfig) -> dict[str, float]:
    """Return what a cell takes of a node: CPU, and a GPU unless none is there or wanted."""
    has_gpu = any(node["Resources"].get("GPU") for node in nodes())
    gpu = config.device.startswith("cuda") or (config.device == "auto" and has_gpu)
    return {"CPU": config.cpus_per_cell, "GPU": float(gpu)}


def nodes() -> list[dict[str, Any]]:
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def room(node: Mapping[str, Any], needs: Mapping[str, float]) -> int:
    """Return how many cells a node has room for when nothing else uses it."""
    return min(int(node["Resources"].get(name, 0) / n) for name, n in needs.items() if n)


def connect(address: str) -> None:
    """Join the cluster at `address`, or start one on this machine if it is `local`."""
    try:
        import ray
    except ImportError:
        raise UserError(
            "executor='ray' needs Ray, which is not installed: pip install -e '.[ray]' in the "
            "project, here and on every machine of the cluster; or use executor=local."
        ) from None
    if address.startswith("ray://"):
        raise UserError(
            f"ray_address={address!r}: a suite cannot be run through Ray's client. Run it on a "
            "machine of the cluster, with ray_address=HOST:PORT."
        )
    if ray.is_initialized():
        return
    if address != "local":
        _knock(address)
    ours = {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    code = {
        "py_modules": [str(provenance.ROOT / "colazero")],
        "excludes": ["**/__pycache__"],
    }
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(
            address,
            runtime_env=code,
            logging_level=logging.ERROR,
            **(ours if address == "local" else {}),
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise UserError(
            f"ray_address={address!r}: the cluster cannot be joined from this machine, which must "
            f"be one of its nodes (ray start --address={address}): {str(error).splitlines()[0]}"
        ) from error
    finally:
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray puts its own in the place of ours


def _knock(address: str) -> None:
    """Raise UserError unless somebody listens at `address`: Ray would ask for minutes."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except (OSError, ValueError) as error:
        raise UserError(
            f"ray_address={address!r}: no Ray cluster is there ({error}). Give the HOST:PORT that "
            "`ray start --head` printed, or local to start one on this machine."
        ) from error


def several_machines() -> bool:
    """Tell whether the cluster has nodes on other machines than this one."""
    import ray

    here = ray.util.get_node_ip_address()
    return any(node["NodeManagerAddress"] != here for node in nodes())


def refuse_if_too_small(config: SuiteConfig) -> None:
    """Raise UserError if no node has room for a cell, even if nothing else used it."""
    asked = needs(config)
    if any(room(node, asked) for node in nodes()):
        return
    there = ", ".join(
        f"{node['NodeManagerAddress']} ({node['Resources'].get('CPU', 0):g} CPUs, "
        f"{node['Resources'].get('GPU', 0):g} GPUs)"
        for node in nodes()
    )
    raise UserError(
        f"no node of the Ray cluster has room for a cell: it takes {asked['CPU']:g} CPUs "
        f"(cpus_per_cell) and {asked['GPU']:g} GPUs (device={config.device}), and there are: "
        f"{there}."
    )
