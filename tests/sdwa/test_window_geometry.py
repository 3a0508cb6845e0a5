"""csrc/window_geometry.h against the table written by hand.

Triton's window arithmetic is held against it in test_triton_interpreted.py.
"""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.sdwa.geometry_table import AXES, FREE_AXES, MIRRORED, REACH, TAP_COUNTS, TAP_INDEX

HERE = Path(__file__).parent
CSRC = HERE.parents[1] / "csrc"
COMPILER = os.environ.get("CXX", "c++")

pytestmark = [
    pytest.mark.skipif(shutil.which(COMPILER) is None, reason="no C++ compiler"),
    pytest.mark.skipif(not CSRC.is_dir(), reason="no kernel sources beside the tests"),
]


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    """What the header computes for the arguments of geometry_in_cpp.cpp."""
    program = tmp_path_factory.mktemp("geometry") / "geometry_in_cpp"
    flags = ("-std=c++20", "-Wall", "-Wextra", "-Werror", f"-I{CSRC}")
    subprocess.run([COMPILER, *flags, HERE / "geometry_in_cpp.cpp", "-o", program], check=True)

    def run(*arguments):
        printed = subprocess.run(
            [program, *map(str, arguments)], check=True, capture_output=True, text=True
        )
        return json.loads(printed.stdout)

    return run


@pytest.mark.parametrize("name", AXES)
def test_axis(name, computed):
    axis = AXES[name]
    found = computed("axis", axis.kernel_size, axis.dilation, axis.length)
    assert found["reach"] == REACH[axis.kernel_size]
    assert tuple(found["mirrored"]) == MIRRORED[axis.kernel_size]
    assert tuple(found["offset"]) == axis.sources[0]  # of the query at 0
    assert found["phases"] == len(axis.phases)
    assert found["phase_length"] == [len(phase) for phase in axis.phases]
    for pixel, (sources, on_map) in enumerate(zip(axis.sources, axis.on_map, strict=True)):
        of_pixel = found["pixels"][pixel]
        assert tuple(of_pixel["source"]) == sources, pixel
        assert of_pixel["on_axis"] == [mark == "#" for mark in on_map], pixel
        # The query that reads a pixel by a tap is what the pixel reads by the mirrored tap.
        queries = tuple(sources[mirrored] for mirrored in MIRRORED[axis.kernel_size])
        assert tuple(of_pixel["query"]) == queries, pixel


@pytest.mark.parametrize("name", FREE_AXES)
def test_free_axis(name, computed):
    axis = FREE_AXES[name]
    shifts = axis.shifted and not axis.is_causal
    found = computed("free", axis.size, axis.dilation, axis.length, axis.before, int(shifts))
    assert tuple(tuple(pixel["sources"]) for pixel in found["pixels"]) == axis.sources
    for pixel, of_pixel in enumerate(found["pixels"]):
        steps = [(source - pixel) // axis.dilation for source in of_pixel["sources"]]
        assert of_pixel["bias"] == [step + axis.size - 1 for step in steps]
        assert max(map(abs, steps)) <= found["farthest"] or axis.length < axis.size * axis.dilation
        readers = [query for query, sources in enumerate(axis.sources) if pixel in sources]
        queries = [query for query in of_pixel["queries"] if 0 <= query < axis.length]
        assert queries == readers, pixel
        assert len(of_pixel["queries"]) <= found["most_queries"]


@pytest.mark.parametrize("kernel_size", TAP_INDEX, ids=str)
def test_tap_index(kernel_size, computed):
    rows = computed("taps", *kernel_size)
    assert tuple(tuple(row["row"]) for row in rows) == TAP_INDEX[kernel_size]


@pytest.mark.parametrize("on_map, masked", TAP_COUNTS)
def test_padding_rule(on_map, masked, computed):
    assert bool(computed("counts", int(on_map), int(masked))) == TAP_COUNTS[on_map, masked]
