"""What is refused, and that the message names the argument, what came and what is legal."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import sdwa
from sdwa.arguments import as_dilation, as_kernel_size
from sdwa.backends.native import driver_too_old, runs_on

SHAPE = (2, 5, 6, 4, 8)


def tensors():
    return {name: torch.randn(SHAPE) for name in ("query", "key", "value")}


REFUSED = {
    "even kernel": ({"kernel_size": 4}, ValueError, "kernel_size must be odd.*got 4"),
    "zero kernel": ({"kernel_size": 0}, ValueError, "kernel_size must be odd.*got 0"),
    "float kernel": ({"kernel_size": 3.0}, TypeError, "kernel_size must be an odd int.*got 3.0"),
    "kernel of three": ({"kernel_size": (3, 3, 3)}, TypeError, "kernel_size.*pair"),
    "huge kernel": ({"kernel_size": 257}, ValueError, "kernel_size.* from 1 to 255, got 257"),
    "kernel of bytes": ({"kernel_size": b"\x03\x03"}, TypeError, "kernel_size must be an odd int"),
    "even in pair": ({"kernel_size": (3, 2)}, ValueError, r"kernel_size must be odd.*\(3, 2\)"),
    "dilation 0": ({"dilation": 0}, ValueError, "dilation must be from 1 to .*, got 0"),
    "huge dilation": ({"dilation": 2**31}, ValueError, "dilation must be from 1 to 2147483647"),
    "short dilation": ({"dilation": (1, 2)}, ValueError, "dilation.*got 2 entries.*4 heads"),
    "long dilation": ({"dilation": (1,) * 5}, ValueError, "dilation.*got 5 entries.*4 heads"),
    "negative entry": ({"dilation": (1, 2, -1, 1)}, ValueError, "dilation.*got -1"),
    "float entry": ({"dilation": (1, 2, 1.5, 1)}, TypeError, "dilation entries.*got 1.5"),
    "bool entry": ({"dilation": (1, 2, True, 1)}, TypeError, "dilation entries.*got True"),
    "text dilation": ({"dilation": "1234"}, TypeError, "dilation must be an int.*got str"),
    "bytes dilation": ({"dilation": b"1234"}, TypeError, "dilation must be an int.*got bytes"),
    "padding": (
        {"padding_mode": "reflect"},
        ValueError,
        "padding_mode.*\"shifted\", got 'reflect'",
    ),
    "pair for all heads": (
        {"dilation": (2, 1)},
        ValueError,
        r"got 2 entries.*a dilation_w of 1 for all heads is \(\(2, 1\),\) \* 4",
    ),
    "dilation of heads first": (
        {"dilation": (1,) * 5},
        ValueError,
        r"got 5 entries.*if its heads come first, pass query.permute\(0, 2, 3, 1, 4\)",
    ),
    "scale": ({"scale": "1"}, TypeError, "scale must be a number, a tensor or None, got str"),
    "bool scale": ({"scale": True}, TypeError, "scale must be a number, a tensor.*got bool"),
    "integer scales": (
        {"scale": torch.ones(4, dtype=torch.int64)},
        TypeError,
        "scale must be float32.*got torch.int64",
    ),
    "three scales": (
        {"scale": torch.ones(3)},
        ValueError,
        r"scale must be a number.*= .4,.*got shape \(3,\)",
    ),
    "scales of a map": (
        {"scale": torch.ones(4, 1)},
        ValueError,
        r"scale must be a number.*got shape \(4, 1\)",
    ),
    "scale device": ({"scale": torch.ones(4, device="meta")}, ValueError, "scale.*device.*meta"),
    "NaN scale": ({"scale": float("nan")}, ValueError, "scale must be finite, got nan"),
    "scale beyond floats": ({"scale": 10**400}, ValueError, "scale must be finite, got 1000"),
    "sparse scale": (
        {"scale": torch.ones(4).to_sparse()},
        TypeError,
        "scale must be a dense tensor, got torch.sparse_coo",
    ),
    "return_lse of text": ({"return_lse": "False"}, TypeError, "return_lse must be a bool, got 'F"),
    "infinite scale": ({"scale": float("inf")}, ValueError, "scale must be finite, got inf"),
    "backend": ({"backend": "numpy"}, ValueError, "backend must be None or one of.*got 'numpy'"),
    "bias shape": (
        {"bias": torch.zeros(4, 3, 5)},
        ValueError,
        r"bias.*\(4, 3, 3\) or .*\(4, 5, 5\), got.*\(4, 3, 5\)",
    ),
    "bias of heads first": (
        {"bias": torch.zeros(5, 3, 3)},
        ValueError,
        r"bias.*\(4, 3, 3\) or .* got.*if its heads come first, pass query.permute",
    ),
    "sparse bias": (
        {"bias": torch.zeros(4, 3, 3).to_sparse()},
        TypeError,
        "bias must be a dense tensor, got torch.sparse_coo",
    ),
    "bias dtype": (
        {"bias": torch.zeros(4, 3, 3, dtype=torch.int32)},
        TypeError,
        "bias must be float32, bfloat16, float16 or float64, got torch.int32",
    ),
    "bias device": (
        {"bias": torch.zeros(4, 3, 3, device="meta")},
        ValueError,
        "bias.*device.*meta",
    ),
    "float key_mask": (
        {"key_mask": torch.ones(2, 5, 6)},
        TypeError,
        "key_mask must be bool, True where a key takes part: got torch.float32",
    ),
    "key_mask of a sequence": (
        {"key_mask": torch.ones(2, 30, dtype=torch.bool)},
        ValueError,
        r"key_mask must be \(batch, height, width\) = \(2, 5, 6\), got shape \(2, 30\)",
    ),
    "sparse key_mask": (
        {"key_mask": torch.ones(2, 5, 6, dtype=torch.bool).to_sparse()},
        TypeError,
        "key_mask must be a dense tensor, got torch.sparse_coo",
    ),
    "key_mask of numpy": (
        {"key_mask": np.ones((2, 5, 6), bool)},
        TypeError,
        "key_mask must be a tensor or None, got ndarray",
    ),
    "key_mask device": (
        {"key_mask": torch.ones(2, 5, 6, dtype=torch.bool, device="meta")},
        ValueError,
        "key_mask.*device.*meta",
    ),
    "sparse": (
        {"query": torch.randn(SHAPE).to_sparse()},
        TypeError,
        r"query must be a dense tensor, got torch.sparse_coo: call .to_dense\(\)",
    ),
    "nested": (
        {"key": torch.nested.nested_tensor([torch.randn(5, 6, 4, 8)] * 2, layout=torch.jagged)},
        TypeError,
        "key must be a dense tensor, got a nested one: pad its images.*key_mask",
    ),
    "complex": (
        {"value": torch.randn(SHAPE, dtype=torch.complex64)},
        TypeError,
        "value must be float32.*got torch.complex64",
    ),
    "no tensor": ({"key": [1.0]}, TypeError, "key must be a tensor, got list"),
    "no query": ({"query": None}, TypeError, "query must be a tensor, got NoneType"),
    "query of NumPy": (
        {"query": np.zeros(SHAPE, np.float32)},
        TypeError,
        "query must be a tensor, got ndarray",
    ),
    "4-D": (
        {"query": torch.randn(2, 5, 6, 32)},
        ValueError,
        r"query and key must both be \(batch.*got shapes \(2, 5, 6, 32\) and \(2, 5, 6, 4, 8\)",
    ),
    "3-D": (
        {"query": torch.randn(2, 30, 32)},
        ValueError,
        r"query must be \(batch, .*, or \(batch, .* got shape \(2, 30, 32\)",
    ),
    "integers": (
        {"query": torch.ones(SHAPE, dtype=torch.int64)},
        TypeError,
        "query must be float32",
    ),
    "mixed dtypes": ({"key": torch.randn(SHAPE).bfloat16()}, TypeError, "key.*bfloat16.*float32"),
    "mixed devices": ({"value": torch.empty(SHAPE, device="meta")}, ValueError, "value.*meta.*cpu"),
    "mixed shapes": (
        {"key": torch.randn(2, 5, 6, 4, 7)},
        ValueError,
        "key must have the shape of query: got",
    ),
    "value of another map": (
        {"value": torch.randn(2, 6, 5, 4, 8)},
        ValueError,
        "value must have the shape of query, but for head_dim: got",
    ),
    "value's head_dim": (
        {"value": torch.randn(2, 5, 6, 4, 257)},
        ValueError,
        "value must have a head_dim from 1 to 256",
    ),
    "last stride": (
        {"query": torch.randn(2, 5, 6, 8, 4).transpose(3, 4)},
        ValueError,
        "query must have stride 1 in head_dim",
    ),
    "empty map": (
        dict.fromkeys(("query", "key", "value"), torch.randn(2, 0, 6, 4, 8)),
        ValueError,
        "height, width and heads of at least 1",
    ),
    "head_dim 257": (
        dict.fromkeys(("query", "key", "value"), torch.randn(1, 2, 2, 4, 257)),
        ValueError,
        "head_dim from 1 to 256",
    ),
}


@pytest.mark.parametrize(("change", "kind", "message"), REFUSED.values(), ids=REFUSED)
def test_refused(change, kind, message):
    with pytest.raises(kind, match=message):
        sdwa.sliding_dilated_window_attention(**(tensors() | change))


# Messages show what came: shapes of three axes, not of the map that it becomes.
REFUSED_OF_SEQUENCES = {
    "key of another length": (
        {"key": torch.randn(2, 3, 4, 8)},
        r"key must have the shape of query: got \(2, 3, 4, 8\) beside \(2, 6, 4, 8\)",
    ),
    "even kernel": ({"kernel_size": 4}, "kernel_size must be odd .* got 4 "),
    "even kernel of one entry": ({"kernel_size": (4,)}, r"kernel_size must be odd .* got \(4,\) "),
    "short dilation": (
        {"dilation": (1, 2, 3)},
        r"dilation must have one entry per head: got 3 entries \(1, 2, 3\) for 4 heads$",
    ),
    "heads of a map that are not split": (
        {
            **{name: torch.randn(2, 3, 4, 24) for name in ("query", "key", "value")},
            "dilation": (1, 2, 3),
        },
        r"3 entries \(1, 2, 3\) for 4 heads; query is \(batch, length, heads, head_dim\) = "
        r"\(2, 3, 4, 24\): .* not split, pass query.unflatten\(-1, \(3, -1\)\)",
    ),
    "dilation 0": ({"dilation": (1, 1, 1, 0)}, r"dilation must be .* got 0 in \(1, 1, 1, 0\)"),
    "bias": (
        {"bias": torch.zeros(4, 4)},
        r"bias must be \(heads, kernel\) = \(4, 3\) or \(heads, 2 \* kernel - 1\) = \(4, 5\), "
        r"got shape \(4, 4\)",
    ),
    "key_mask": (
        {"key_mask": torch.ones(2, 5, dtype=torch.bool)},
        r"key_mask must be \(batch, length\) = \(2, 6\), got shape \(2, 5\)",
    ),
    "key of a map": (
        {"key": torch.randn(2, 6, 1, 4, 8)},
        r"both \(batch, length, heads, head_dim\): got shapes \(2, 6, 4, 8\) and \(2, 6, 1, 4, 8\)",
    ),
    "last stride": (
        {"key": torch.randn(2, 6, 8, 4).transpose(2, 3)},
        r"key must have stride 1 in head_dim, .* got strides \(192, 32, 1, 4\)",
    ),
    "no pixels": (
        dict.fromkeys(("query", "key", "value"), torch.randn(2, 0, 4, 8)),
        r"query must have length and heads of at least 1, got shape \(2, 0, 4, 8\)",
    ),
}


@pytest.mark.parametrize(
    ("change", "message"), REFUSED_OF_SEQUENCES.values(), ids=REFUSED_OF_SEQUENCES
)
def test_refused_of_sequences(change, message):
    sequences = {name: torch.randn(2, 6, 4, 8) for name in ("query", "key", "value")}
    with pytest.raises(ValueError, match=message):
        sdwa.sliding_dilated_window_attention(**(sequences | change))


def test_sequences_under_autocast_may_have_several_dtypes():
    query, key = torch.randn(2, 6, 4, 8), torch.randn(2, 6, 4, 8, dtype=torch.float16)
    with torch.autocast("cpu", torch.bfloat16):
        out = sdwa.sliding_dilated_window_attention(query, key, query)
        weights = sdwa.attention_weights(query, key)
    assert out.dtype == torch.bfloat16
    assert weights.shape == (2, 6, 4, 3)


@pytest.mark.parametrize("name", ("sparse", "integers", "complex", "no tensor", "4-D"))
def test_autocast_makes_nothing_legal(name):
    change, kind, message = REFUSED[name]
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(kind, match=message):
        sdwa.sliding_dilated_window_attention(**(tensors() | change))


def test_explicit_backend_never_falls_back():
    if torch.cuda.is_available():
        pytest.skip("needs a machine where the cuda backend is off")
    with pytest.raises(sdwa.BackendError, match='"cuda".*not on cpu.*no CUDA device'):
        sdwa.sliding_dilated_window_attention(**tensors(), backend="cuda")


def test_errors_list_backends_and_their_reasons(monkeypatch):
    from sdwa import dispatch

    swift, slow = (SimpleNamespace(name=name, by_default=True) for name in ("swift", "slow"))
    swift.reasons = lambda problem: ("it rains", "it is dark")
    slow.reasons = lambda problem: ("it is closed",)
    monkeypatch.setattr(dispatch, "BACKENDS", [swift, slow])
    attend = partial(sdwa.sliding_dilated_window_attention, **tensors())
    with pytest.raises(sdwa.BackendError) as error:
        attend()
    assert str(error.value).splitlines() == [
        "no backend can run this problem:",
        "  swift: it rains; it is dark",
        "  slow: it is closed",
    ]
    with pytest.raises(sdwa.BackendError) as error:
        attend(backend="swift")
    assert str(error.value) == 'backend "swift" cannot run this problem: it rains; it is dark'
    with pytest.raises(ValueError, match='backend must be None or one of "swift", "slow", got'):
        attend(backend="numpy")


LEGAL = (
    {"kernel_size": (3, 3)},
    {"dilation": (1, 2, 1, 1)},
    {"dilation": ((1, 1), 2, 1, 1)},
    {"is_causal": True},
    {"is_causal": False},
    {"is_causal": (True, False)},
)
EQUAL = (
    {"kernel_size": (3.0, 3)},
    {"dilation": (1, 2.0, 1, True)},
    {"dilation": ((1, 1.0), 2, 1, 1)},
    {"is_causal": 1},
    {"is_causal": 0},
    {"is_causal": (True, 0)},
)


@pytest.mark.parametrize(("legal", "equal"), list(zip(LEGAL, EQUAL, strict=True)))
def test_refused_also_after_an_equal_call(legal, equal):
    assert legal == equal
    sdwa.sliding_dilated_window_attention(**(tensors() | legal))
    (name,) = equal
    with pytest.raises(TypeError, match=f"{name}.*must be"):
        sdwa.sliding_dilated_window_attention(**(tensors() | equal))


@pytest.mark.parametrize("name", ("bias", "key_mask"))
def test_sparse_is_refused_also_after_a_dense_call(name):
    change, kind, message = REFUSED[f"sparse {name}"]
    dense = {name: change[name].to_dense()}
    sdwa.sliding_dilated_window_attention(**(tensors() | dense))
    with pytest.raises(kind, match=message):
        sdwa.sliding_dilated_window_attention(**(tensors() | change))


def test_available_backends():
    found = sdwa.available_backends()
    assert found["reference"] == ()
    assert all(isinstance(reasons, tuple) for reasons in found.values())
    assert any("cuda" in reason for reason in sdwa.available_backends("cuda")["cpu"])
    assert any("meta" in r for r in sdwa.available_backends(torch.device("meta"))["cpu"])
    for device in ("abacus", [1]):
        with pytest.raises(ValueError, match="device must be one that PyTorch knows.*got"):
            sdwa.available_backends(device)


def test_meta_tensors_give_meta_tensors():
    inputs = [tensor.to("meta") for tensor in tensors().values()]
    out, lse = sdwa.sliding_dilated_window_attention(*inputs, return_lse=True)
    assert (out.shape, lse.shape, out.device.type) == (SHAPE, SHAPE[:4], "meta")
    with torch.autocast("cpu"):
        assert sdwa.sliding_dilated_window_attention(*inputs).dtype == torch.float32


def test_sizes_are_normalised():
    assert as_kernel_size(5) == (5, 5)
    assert as_kernel_size([3, 7]) == (3, 7)
    assert as_dilation(2, 3) == ((2, 2),) * 3
    assert as_dilation([1, (2, 3)], 2) == ((1, 1), (2, 3))
    assert as_dilation((2, 3), 2) == ((2, 2), (3, 3))
    assert as_dilation(torch.Size([2, 3]), 2) == ((2, 2), (3, 3))


def test_numbers_of_numpy_are_numbers(backend):
    inputs = [tensor.to(backend.device_type) for tensor in tensors().values()]
    attend = partial(sdwa.sliding_dilated_window_attention, *inputs, backend=backend.name)
    expected = attend((3, 5), (1, 2, 2, 3), scale=0.5)
    kernel_size, dilation = np.array([3, 5]), np.array([1, 2, 2, 3])
    assert torch.equal(attend(tuple(kernel_size), list(dilation), scale=np.float32(0.5)), expected)
    assert torch.equal(attend(np.int64(3), np.int32(2)), attend(3, 2))


@pytest.mark.parametrize(
    ("architectures", "gpu", "runs"),
    [
        ("8.0;8.6", (8, 6), True),
        ("8.0", (8, 9), True),  # machine code of the same major version
        ("8.6", (8, 0), False),
        ("8.0;8.6", (9, 0), False),
        ("8.0+PTX", (9, 0), True),
        ("9.0", (10, 0), False),
        ("12.0+PTX", (10, 0), False),
    ],
)
def test_cuda_machine_code_runs_on_its_own_architectures(architectures, gpu, runs):
    assert runs_on(architectures, *gpu) == runs


@pytest.mark.parametrize(
    ("runtime", "driver"), [(13000, 13000), (13010, 13000), (12080, 12020), (12080, 13000)]
)
def test_a_driver_takes_runtimes_of_its_major_version_and_older_ones(runtime, driver):
    assert driver_too_old(runtime, driver) is None


def test_a_driver_that_is_too_old_is_a_reason():
    reason = driver_too_old(13000, 12040)
    for part in ("CUDA 13.0", "580 or newer", "CUDA 12.4", "nvcc of CUDA 12"):
        assert part in reason
    assert "driver for CUDA 20;" in driver_too_old(20010, 13000)
