"""A test that takes `backend` runs on each of `BACKENDS` that this machine can use."""

import pytest
import torch

from sdwa.backends import BACKENDS


def pytest_generate_tests(metafunc):
    if "backend" in metafunc.fixturenames:
        params = []
        for backend in BACKENDS:
            missing = backend.unavailable(torch.device(backend.device_type))
            marks = pytest.mark.skip(reason="; ".join(missing)) if missing else ()
            params.append(pytest.param(backend, id=backend.name, marks=marks))
        metafunc.parametrize("backend", params)
