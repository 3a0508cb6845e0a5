"""What the environment says of matplotlib's backend, in processes that have not imported it."""

import os
import subprocess
import sys


def python(*args, backend):
    return subprocess.run(
        [sys.executable, *args],
        capture_output=True,
        text=True,
        env={**os.environ, "MPLBACKEND": backend},
    )


def test_tools_start_where_the_backend_is_not_installed():
    tool = python("-m", "cfmrfn.train", "--help", backend="nonsense")
    assert (tool.returncode, tool.stderr) == (0, "")


def test_importing_the_package_leaves_the_backend_as_it_is_asked_for():
    code = (
        "import os, cfmrfn, matplotlib; print(matplotlib.get_backend(), os.environ['MPLBACKEND'])"
    )
    assert python("-c", code, backend="svg").stdout == "svg svg\n"
