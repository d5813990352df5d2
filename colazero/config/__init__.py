"""The parameters of everything that runs: their fields, and how they are read."""

from colazero.config.fields import Common, RunConfig, Settings, canonical_key
from colazero.config.grid import USUAL_BASELINE, USUAL_PRIMARY, SuiteConfig
from colazero.config.reading import PRESET_DIR, parse, preset_names, preset_of

__all__ = [
    "PRESET_DIR",
    "USUAL_BASELINE",
    "USUAL_PRIMARY",
    "Common",
    "RunConfig",
    "Settings",
    "SuiteConfig",
    "canonical_key",
    "parse",
    "preset_names",
    "preset_of",
]
