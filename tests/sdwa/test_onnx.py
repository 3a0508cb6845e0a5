"""ONNX export: decomposed into standard operators, checked with onnxruntime."""

import io

import numpy as np
import pytest
import torch
from torch import nn

import sdwa
from sdwa import natten
from tests.sdwa.test_swapping import MultiDilatelocalAttention

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

# PyTorch's exporter and what it uses warn of their own deprecations and names.
pytestmark = [
    pytest.mark.filterwarnings("ignore:# The axis name.*will not be used:UserWarning"),
    pytest.mark.filterwarnings("ignore:You are using the legacy TorchScript-based ONNX"),
    pytest.mark.filterwarnings("ignore:The feature will be removed:DeprecationWarning"),
]


class Operator(torch.nn.Module):
    """The operator with every input and output."""

    def __init__(self, **options):
        super().__init__()
        self.options = options
        self.bias = torch.nn.Parameter(torch.randn(4, 3, 3))

    def forward(self, query, key, value):
        return sdwa.sliding_dilated_window_attention(
            query, key, value, 3, (1, 2, 2, 3), bias=self.bias, return_lse=True, **self.options
        )


def assert_parity(program, module, shapes, tolerance=1e-5):
    """The same results from onnxruntime for several batch sizes, and no operator of ours."""
    domains = {node.domain for node in program.model_proto.graph.node}
    assert domains <= {"", "ai.onnx"}
    assert {o.version for o in program.model_proto.opset_import if o.domain == ""} >= {18}
    session = onnxruntime.InferenceSession(
        program.model_proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    device = next(module.parameters()).device
    for batch in (1, 2, 5):
        inputs = [torch.randn(batch, *shape, device=device) for shape in shapes]
        named = zip(session.get_inputs(), inputs, strict=True)
        results = session.run(None, {place.name: tensor.cpu().numpy() for place, tensor in named})
        with torch.no_grad():
            expected = module(*inputs)
        expected = expected if isinstance(expected, tuple) else (expected,)
        for result, tensor in zip(results, expected, strict=True):
            np.testing.assert_allclose(result, tensor.cpu().numpy(), rtol=1e-4, atol=tolerance)


def export(module, shapes, names):
    batch = torch.export.Dim("batch")
    device = next(module.parameters()).device
    return torch.onnx.export(
        module.eval(),
        tuple(torch.randn(2, *shape, device=device) for shape in shapes),
        dynamo=True,
        opset_version=18,
        dynamic_shapes={name: {0: batch} for name in names},
        verbose=False,
    )


@pytest.mark.parametrize("padding_mode", ("zeros", "masked"))
def test_operator(backend, padding_mode):
    """ONNX export of the operator, opset 18, dynamic batch"""
    module = Operator(padding_mode=padding_mode, backend=backend.name).to(backend.device_type)
    shapes = [(7, 6, 4, 8)] * 3
    assert_parity(export(module, shapes, ("query", "key", "value")), module, shapes)


def test_layer():
    """ONNX export of the layer, self and cross"""
    module = sdwa.SlidingDilatedWindowAttention(16, 4, 5, (1, 2), context_dim=8, relative_bias=True)
    shapes = [(5, 6, 16), (5, 6, 8)]
    assert_parity(export(module, shapes, ("x", "context")), module, shapes)


def test_program_already_exported():
    module = sdwa.SlidingDilatedWindowAttention(16, 4, 3, (1, 2)).eval()
    x = torch.randn(2, 5, 6, 16)
    batch = torch.export.Dim("batch")
    program = torch.export.export(module, (x,), dynamic_shapes={"x": {0: batch}})
    exported = torch.onnx.export(program, dynamo=True, opset_version=18, verbose=False)
    assert_parity(exported, module, [(5, 6, 16)])


def test_network():
    """ONNX export of a whole network"""
    timm = pytest.importorskip("timm")
    pytest.importorskip("cfmrfn")
    module = timm.create_model("cfmrfn_tiny", depth=1, img_size=64)
    shapes = [(3, 64, 64)]
    assert_parity(export(module, shapes, ("x",)), module, shapes, tolerance=1e-4)


def test_an_operator_without_decomposition_is_named(monkeypatch):
    if sdwa.available_backends("cpu")["cpu"]:
        pytest.skip("the CPU kernels are not compiled")
    operator = torch.ops.sdwa.attention_forward.default
    monkeypatch.delitem(torch._decomp.decomposition_table, operator)
    shapes = [(5, 6, 4, 8)] * 3
    with pytest.raises(torch.onnx.errors.OnnxExporterError) as caught:
        export(Operator(), shapes, ("query", "key", "value"))
    message = f"{caught.value} {caught.value.__cause__}"
    assert "sdwa.attention_forward" in message


def export_by_tracing(module, inputs, opset_version):
    file = io.BytesIO()
    names = [f"input{n}" for n in range(len(inputs))]
    torch.onnx.export(
        module.eval(),
        inputs,
        file,
        dynamo=False,
        opset_version=opset_version,
        input_names=names,
        dynamic_axes={name: {0: "batch", 1: "height", 2: "width"} for name in names},
    )
    return onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])


def assert_session_parity(session, module, inputs):
    names = [place.name for place in session.get_inputs()]
    results = session.run(None, dict(zip(names, (t.cpu().numpy() for t in inputs), strict=True)))
    expected = module(*inputs)
    for result, tensor in zip(
        results, expected if isinstance(expected, tuple) else (expected,), strict=True
    ):
        np.testing.assert_allclose(result, tensor.detach().cpu().numpy(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("opset_version", (11, 20))
@pytest.mark.parametrize("padding_mode", ("zeros", "masked"))
def test_operator_by_the_older_exporter(backend, padding_mode, opset_version):
    """ONNX export with `dynamo=False`, of the operator, opset 11 to 20, any batch and map size"""
    device = backend.device_type
    module = Operator(padding_mode=padding_mode, backend=backend.name).to(device)
    inputs = tuple(torch.randn(3, 2, 7, 6, 4, 8, device=device))
    session = export_by_tracing(module, inputs, opset_version)
    for batch, height, width in ((2, 7, 6), (5, 7, 6), (1, 4, 9)):
        inputs = tuple(torch.randn(3, batch, height, width, 4, 8, device=device))
        assert_session_parity(session, module, inputs)


@pytest.mark.parametrize("options", ({}, {"q_proj": False, "padding_mode": "masked"}), ids=str)
def test_layer_by_the_older_exporter(options):
    """ONNX export with `dynamo=False`, of the layer, self and cross, with and without a mask"""
    module = sdwa.SlidingDilatedWindowAttention(16, 4, 5, (1, 2), relative_bias=True, **options)

    def draw(batch, height, width):
        return *torch.randn(2, batch, height, width, 16), torch.rand(batch, height, width) < 0.7

    for given in (1, 2, 3):
        session = export_by_tracing(module, draw(2, 5, 6)[:given], 18)
        for size in ((2, 5, 6), (3, 5, 6), (1, 8, 4)):
            assert_session_parity(session, module, draw(*size)[:given])


def swapped_dilateformer():
    model = nn.Sequential(MultiDilatelocalAttention(16, 4, 3, [1, 2]))
    sdwa.swap(model)
    return model


@pytest.mark.parametrize(
    "make",
    [
        swapped_dilateformer,
        lambda: natten.NeighborhoodAttention2D(16, 4, 3, 2, rel_pos_bias=True),
    ],
    ids=["swapped", "natten"],
)
def test_layers_of_others_by_the_older_exporter(make):
    torch.manual_seed(0)
    module = make()
    session = export_by_tracing(module, (torch.randn(2, 7, 8, 16),), 18)
    for size in ((2, 7, 8), (3, 9, 11)):
        assert_session_parity(session, module, (torch.randn(*size, 16),))


def test_older_exporter_refuses_older_opsets():
    module = Operator(backend="reference")
    with pytest.raises(torch.onnx.errors.UnsupportedOperatorError, match="added in version 11"):
        export_by_tracing(module, tuple(torch.randn(3, 2, 7, 6, 4, 8)), 10)
