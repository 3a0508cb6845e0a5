"""Settings of all tests, made before PyTorch is imported."""

import os

# `addopts` runs a process per core: more threads than one of each would wait for the others'.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
