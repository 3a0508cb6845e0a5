"""`pytest benchmarks/ --benchmark-only` times, though the tests' configuration turns timing off."""

import pytest


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config):
    if config.getoption("benchmark_only", default=False):
        config.option.benchmark_disable = False
        config.option.dist, config.option.tx = "no", []  # one process, which nothing disturbs
