"""MLflow's search API → one tidy, typed table; missing and duplicate cells are refused."""

from analysis.reading.runs import load_experiment, load_folder, load_suite, load_suites
from analysis.reading.table import observations

__all__ = ["load_experiment", "load_folder", "load_suite", "load_suites", "observations"]
