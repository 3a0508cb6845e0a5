"""torch.compile and CUDA graphs."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import func
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounterWithBackend
from torch._inductor.utils import fresh_cache, run_and_get_code

import sdwa
from sdwa.backends.native import MISSING_CUDA, compiled_for

# PyTorch's own, on first use of forward mode and of Inductor.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script")


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def call(backend):
    def function(query, key, value, bias):
        return sdwa.sliding_dilated_window_attention(
            query, key, value, (3, 5), (1, 2), bias=bias, return_lse=True, backend=backend.name
        )

    return function


def draw(device, batch):
    generator = torch.Generator().manual_seed(batch)
    shapes = [(batch, 6, 7, 2, 8)] * 3 + [(2, 3, 5)]
    return [torch.randn(shape, generator=generator).to(device).requires_grad_() for shape in shapes]


def results(function, inputs):
    out, lse = function(*inputs)
    grads = torch.autograd.grad(out.sin().sum() + lse.cos().sum(), inputs)
    return out, lse, *grads


# None: static at first, dynamic when another batch size comes
@pytest.mark.parametrize(("dynamic", "recompiled"), ((True, 0), (None, 1), (False, 3)))
def test_compiles_without_graph_breaks(backend, dynamic, recompiled):
    """`torch.compile(fullgraph=True)`, static and dynamic, one compilation for all batch sizes"""
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(call(backend), backend=counter, fullgraph=True, dynamic=dynamic)
    frames = []
    for batch in (10, 11, 13, 4):
        inputs = draw(backend.device_type, batch)
        torch.testing.assert_close(results(compiled, inputs), results(call(backend), inputs))
        frames.append(counter.frame_count)
    assert frames[-1] - frames[0] == recompiled


def test_compiled_gradient_is_the_fused_operator(backend):
    """forward and backward stay one operator each in the compiled graph"""
    if backend.name == "reference":
        pytest.skip("reference is plain PyTorch")
    graphs = []

    def keep(graph, _):
        graphs.append([str(n.target) for n in graph.graph.nodes if n.op == "call_function"])
        return make_boxed_func(graph)

    compiled = torch.compile(
        call(backend), backend=aot_autograd(fw_compiler=keep, bw_compiler=keep), fullgraph=True
    )
    results(compiled, draw(backend.device_type, 2))
    name = "sdwa.triton_attention" if backend.name == "triton" else "sdwa.attention"
    forward, backward = graphs
    assert forward.count(f"{name}_forward.default") == 1
    assert backward.count(f"{name}_backward.default") == 1
    allowed = {"_operator.getitem", "<built-in function getitem>", "aten.detach.default"}
    assert set(forward) <= {f"{name}_forward.default", *allowed}


SCALES = (0.5, 0.7, 0.9, 1.3, 2.0)


class WithScale(torch.nn.Module):
    """A module whose scale changes between its calls."""

    def __init__(self, backend):
        super().__init__()
        self.backend = backend
        self.scale = 1.0

    def forward(self, query, key, value):
        return sdwa.sliding_dilated_window_attention(
            *(query, key, value * self.scale, 3, (1, 2)),
            scale=self.scale * 0.5,
            backend=self.backend.name,
        )


def assert_scales_are_obeyed(compiled, module, scales):
    inputs = draw(module.backend.device_type, 2)[:3]
    for module.scale in scales:
        got, expected = compiled(*inputs), module(*inputs)
        torch.testing.assert_close(got, expected)
        torch.testing.assert_close(
            torch.autograd.grad(got.sin().sum(), inputs),
            torch.autograd.grad(expected.sin().sum(), inputs),
        )


@pytest.mark.parametrize("dynamic", (None, True))
def test_scale_may_change(backend, dynamic):
    """`torch.compile` with Inductor of a scale that changes, warm and cold"""
    if backend.name == "reference":
        pytest.skip("reference is plain PyTorch")
    module = WithScale(backend)
    counter = CompileCounterWithBackend("inductor")
    compiled = torch.compile(module, backend=counter, fullgraph=True, dynamic=dynamic)
    with fresh_cache():
        assert_scales_are_obeyed(compiled, module, SCALES)
        # At first a scale is a constant of the graph, then a variable.
        frames = counter.frame_count
        assert frames <= 2
        assert_scales_are_obeyed(compiled, module, [2.5, 0.25])
        assert counter.frame_count == frames
        # Warm: what Inductor keeps on disk serves another compilation, of other numbers.
        torch._dynamo.reset()
        assert_scales_are_obeyed(compiled, module, SCALES[::-1])


@pytest.mark.parametrize("dynamic", (None, True))
def test_dilation_may_change(backend, dynamic):
    def function(query, dilation):
        out = sdwa.sliding_dilated_window_attention(
            query, query, query, 3, (1, dilation), backend=backend.name
        )
        return out, sdwa.attention_weights(query, query, 3, dilation)

    compiled = torch.compile(function, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    query, *_ = draw(backend.device_type, 2)
    for dilation in (1, 2, 3):
        torch.testing.assert_close(compiled(query, dilation), function(query, dilation))


SCALE_OF_ONE_PROCESS = """
import sys
import torch
import sdwa

torch.manual_seed(0)
query, key, value = torch.randn(3, 1, 5, 6, 2, 8).unbind()
query.requires_grad_()

def function(query, scale):
    return sdwa.sliding_dilated_window_attention(
        query, key, value * scale, 3, (1, 2), scale=scale * 0.5, backend="cpu"
    )

compiled = torch.compile(function, dynamic=True, fullgraph=True)
got, expected = (f(query, float(sys.argv[1])) for f in (compiled, function))
torch.testing.assert_close(got, expected, rtol=1e-3, atol=1e-4)
gradients = (torch.autograd.grad(out.sin().sum(), query) for out in (got, expected))
torch.testing.assert_close(*gradients, rtol=1e-3, atol=1e-4)
"""


def test_scale_of_another_process_is_not_taken_from_the_cache(tmp_path):
    if sdwa.available_backends("cpu")["cpu"]:
        pytest.skip("the CPU kernels are not compiled")
    cache = {"TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "TORCHINDUCTOR_FX_GRAPH_CACHE": "1"}
    for scale in ("0.7", "3.0"):
        command = [sys.executable, "-c", SCALE_OF_ONE_PROCESS, scale]
        root = Path(__file__).parents[2]
        done = subprocess.run(
            command, env=os.environ | cache, cwd=root, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.skipif(MISSING_CUDA is not None, reason=str(MISSING_CUDA))
def test_what_the_cuda_library_was_compiled_for_is_a_constant():
    # torch.compile asks for it when it chooses a backend for a GPU; the answer needs none.

    def function(x):
        architectures, runtime, driver = compiled_for()
        return x + len(architectures) + runtime + driver

    compiled = torch.compile(function, fullgraph=True, backend="eager")
    assert compiled(torch.zeros(())) == function(torch.zeros(())) > 0


@pytest.mark.parametrize("transform", ("vmap", "grad", "jvp"))
def test_compiled_transforms(backend, transform):
    """`torch.compile` of `torch.func` transforms"""
    query, key, value, _ = (t.detach() for t in draw(backend.device_type, 4))

    def scalar(query, key, value):
        return call(backend)(query, key, value, None)[0].square().sum()

    def function(query, key, value):
        if transform == "vmap":
            return func.vmap(scalar)(*(t.unflatten(0, (2, 2)) for t in (query, key, value)))
        if transform == "grad":
            return func.grad(scalar)(query, key, value)
        return func.jvp(scalar, (query, key, value), (key, value, query))

    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(query, key, value), function(query, key, value))


def test_compiled_layer_serves_all_batches_and_maps(backend):
    """`torch.compile(dynamic=True)` of the layer, one compilation for all batch and map sizes"""
    layer = sdwa.SlidingDilatedWindowAttention(16, 2, dilation=(1, 2), backend=backend.name)
    layer.to(backend.device_type)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, backend=counter, fullgraph=True, dynamic=True)
    frames = []
    for batch, height, width in ((2, 5, 6), (3, 7, 9), (5, 3, 4), (2, 12, 2)):
        x = torch.randn(batch, height, width, 16, device=backend.device_type)
        torch.testing.assert_close(compiled(x), layer(x))
        frames.append(counter.frame_count)
    assert frames[-1] == frames[0]


def test_compiled_layer_under_autocast(backend):
    layer = sdwa.SlidingDilatedWindowAttention(
        16, 2, dilation=(1, 2), q_proj=False, relative_bias=True, backend=backend.name
    ).to(backend.device_type)
    x = torch.randn(2, 5, 6, 16, device=backend.device_type)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    with torch.autocast(backend.device_type, torch.bfloat16):
        out = compiled(x)
        torch.testing.assert_close(out, layer(x))
    assert out.dtype == torch.bfloat16


def test_inductor(backend, monkeypatch):
    """`torch.compile` with Inductor, a training step of the layer"""
    if backend.name == "reference":
        pytest.skip("reference is plain PyTorch")
    monkeypatch.setenv("CI", "true")  # makes Inductor strict about operators with a decomposition
    layer = sdwa.SlidingDilatedWindowAttention(
        16, 2, dilation=(1, 2), relative_bias=True, backend=backend.name
    ).to(backend.device_type)
    x = torch.randn(3, 5, 6, 16, device=backend.device_type, requires_grad=True)
    compiled = torch.compile(layer, fullgraph=True, dynamic=True)
    parameters = [x, *layer.parameters()]
    with fresh_cache():
        out, expected = compiled(x), layer(x)
        torch.testing.assert_close(out, expected)
        torch.testing.assert_close(
            torch.autograd.grad(out.square().sum(), parameters),
            torch.autograd.grad(expected.square().sum(), parameters),
        )


@pytest.mark.parametrize("cpp_wrapper", (False, True))
def test_compiled_code_calls_the_kernels(cpp_wrapper):
    """`torch.compile` with `cpp_wrapper=True`, a training step of the layer"""
    if sdwa.available_backends("cpu")["cpu"]:
        pytest.skip("the CPU kernels are not compiled")
    layer = sdwa.SlidingDilatedWindowAttention(16, 2, dilation=(1, 2), relative_bias=True)
    x = torch.randn(3, 5, 6, 16, requires_grad=True)
    options = {"cpp_wrapper": cpp_wrapper}
    compiled = torch.compile(layer, fullgraph=True, options=options)

    def step(module):
        out = module(x)
        return out, *torch.autograd.grad(out.square().sum(), [x, *layer.parameters()])

    with fresh_cache():
        got, (forward, backward) = run_and_get_code(step, compiled)
    torch.testing.assert_close(got, step(layer))
    for way, code in (("forward", forward), ("backward", backward)):
        assert f"attention_{way}_kernel" in code
        # Before 2.13 the wrapper calls operators that take lists by way of Python.
        if cpp_wrapper and torch.__version__ >= (2, 13):
            assert "custom_op_wrapper" not in code


def test_cuda_graph(backend):
    """CUDA graph capture, forward and backward"""
    if backend.device_type != "cuda":
        pytest.skip("needs a GPU")
    inputs = draw("cuda", 2)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            results(call(backend), inputs)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = results(call(backend), inputs)
    others = draw("cuda", 2)
    with torch.no_grad():
        for tensor, other in zip(inputs, others, strict=True):
            tensor.copy_(other + 1)
    graph.replay()
    torch.testing.assert_close(captured, results(call(backend), inputs))
