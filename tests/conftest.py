"""Settings of all tests, made before PyTorch is imported, and their order."""

import os

import pytest

# `addopts` runs a process per core: more threads than one of each would wait for the others'.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# Begun first, so that no process is left with one of them at the end.
LONGEST = (
    "test_cuda_on_host",
    "test_triton_interpreted",
    "test_compile",
    "test_ddp",
    "test_train",
    "test_evaluate",
    "test_export",
)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: item.path.stem not in LONGEST)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport():
    """Output with bytes that are no UTF-8, as names of files may be, is no text to xdist."""
    report = yield
    report.sections = [(name, _as_utf8(text)) for name, text in report.sections]
    return report


def _as_utf8(text):
    return text.encode(errors="backslashreplace").decode()
