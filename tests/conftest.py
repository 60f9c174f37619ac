"""What all tests share: few threads, fixed seeds, deterministic hypothesis, and where the golden numbers lie."""

import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings

GOLDEN = Path(__file__).parent / "golden"
DATA = Path(__file__).parent / "data"

# Where tests run side by side, each process keeps to one core.
torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else min(2, torch.get_num_threads()))
settings.register_profile(
    "nbsnn",
    deadline=None,
    derandomize=True,
    max_examples=40,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("nbsnn")


@pytest.fixture
def threads_restored():
    """Torch's number of threads, which a test changes, is set again behind it."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _endless_lines():
    """Whatever terminal the tests are started from, tables are as wide as their text."""
    with pytest.MonkeyPatch.context() as patch:  # its own, undone after that of the test
        patch.delenv("COLUMNS", raising=False)
        yield
