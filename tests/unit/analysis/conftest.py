"""A temporary MLflow store, and suites in it."""

import mlflow
import pytest
from mlflow.tracking import MlflowClient
from synthetic_suites import METHODS, Suites

from analysis.reading.runs import load_suite
from analysis.summary import Options, summarize


@pytest.fixture(scope="session")
def store(tmp_path_factory):
    """A sqlite store of the session's own."""
    folder = tmp_path_factory.mktemp("mlflow")
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
    MlflowClient().search_experiments(max_results=1)
    yield folder
    mlflow.set_tracking_uri(before)


@pytest.fixture
def suites(store, request):
    """A builder of suites in an experiment of the test's own."""
    return Suites(store, request.node.nodeid)


@pytest.fixture(scope="session")
def demo(store):
    """The summary of a suite of one model."""
    return _summed(Suites(store, "demo").suite())


@pytest.fixture(scope="session")
def repeated(store):
    """The same with three replicates of each set, and KL divergence beside perplexity."""
    return _summed(Suites(store, "repeated").suite(replicates=3, windows="kl"))


@pytest.fixture(scope="session")
def three(store):
    """The same as `demo` of three models, one cell failed."""
    change = {"b/random/44": {"status": "FAILED"}}
    return _summed(Suites(store, "three").suite(models=("a", "b", "org/c"), **change))


@pytest.fixture(scope="session")
def crowded(store):
    """The same of seven methods that lie close together, and three models."""
    more = {
        "longest_documents_first": (23.2, 0.02),
        "k_center_greedy": (23.3, 3.0),
        "stratified": (23.25, 0.3),
        "zipcal": (23.15, 0.25),
    }
    models = ("meta-llama/Llama-2-7b-hf", "meta-llama/Llama-2-13b-hf", "facebook/opt-6.7b")
    return _summed(Suites(store, "crowded").suite(models=models, methods=METHODS | more, seeds=3))


def _summed(suite):
    return summarize(load_suite(suite, allow_failed=True), Options())
