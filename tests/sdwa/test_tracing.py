"""torch.jit.trace and torch.fx.symbolic_trace."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import sdwa

# PyTorch's own: torch.jit is on its way out.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.*is deprecated")


class Operator(nn.Module):
    """A user's model that calls the function."""

    def __init__(self, **options):
        super().__init__()
        self.qkv = nn.Linear(16, 48)
        self.bias = nn.Parameter(torch.randn(4, 3, 3))
        self.options = options

    def forward(self, x, key_mask=None):
        query, key, value = self.qkv(x).unflatten(-1, (3, 4, 4)).unbind(3)
        out, lse = sdwa.sliding_dilated_window_attention(
            query,
            key,
            value,
            3,
            (1, 2, 2, 3),
            bias=self.bias,
            key_mask=key_mask,
            return_lse=True,
            **self.options,
        )
        return out.flatten(3) + lse.exp().sum(3, keepdim=True)


def draw(device, *shape, inputs=1):
    generator = torch.Generator().manual_seed(sum(shape))
    return [torch.randn(shape, generator=generator).to(device) for _ in range(inputs)]


def gradients(module, inputs):
    parameters = dict(module.named_parameters())
    grads = torch.autograd.grad(module(*inputs).sin().sum(), list(parameters.values()))
    return dict(zip(parameters, grads, strict=True))


def assert_same(traced, module, inputs):
    torch.testing.assert_close(traced(*inputs), module(*inputs))
    torch.testing.assert_close(gradients(traced, inputs), gradients(module, inputs))


def saved_and_loaded(traced, device):
    file = io.BytesIO()
    torch.jit.save(traced, file)
    file.seek(0)
    return torch.jit.load(file, map_location=device)


@pytest.mark.parametrize("grad", (True, False))
def test_jit_trace(backend, grad):
    """`torch.jit.trace` of the operator, gradients, any batch and map size, saved and loaded"""
    torch.manual_seed(0)
    device = backend.device_type
    module = Operator(backend=backend.name, padding_mode="masked").to(device)
    key_mask = torch.rand(5, 6, 7, device=device) < 0.7
    with torch.set_grad_enabled(grad):
        traced = torch.jit.trace(module, (*draw(device, 2, 6, 7, 16), key_mask[:2]))
    for run in (traced, saved_and_loaded(traced, device)):
        for batch in (1, 2, 5):
            assert_same(run, module, (*draw(device, batch, 6, 7, 16), key_mask[:batch]))
        other_map = *draw(device, 2, 9, 5, 16), torch.ones(2, 9, 5, device=device) > 0
        assert_same(run, module, other_map)


def test_nothing_is_kept_of_a_traced_call(monkeypatch):
    # Its sizes are tensors, which no later call has.
    from sdwa import dispatch

    monkeypatch.setattr(dispatch, "_prepared", {})
    torch.jit.trace(Operator(), draw("cpu", 2, 6, 7, 16), check_trace=False)
    assert dispatch._prepared == {}


@pytest.mark.parametrize("options", ({}, {"q_proj": False}), ids=str)
def test_jit_trace_of_the_layer(backend, options):
    """`torch.jit.trace` of the layer, self and cross"""
    torch.manual_seed(0)
    device = backend.device_type
    module = sdwa.SlidingDilatedWindowAttention(
        16, 4, relative_bias=True, backend=backend.name, **options
    ).to(device)
    for inputs in (1, 2):
        traced = torch.jit.trace(module, tuple(draw(device, 2, 6, 7, 16, inputs=inputs)))
        for batch in (2, 3):
            assert_same(traced, module, draw(device, batch, 6, 7, 16, inputs=inputs))


class Learned(nn.Module):
    """A learned scale per head, a value of its own head_dim, and the weights."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.rand(4))

    def forward(self, query, key, value):
        out = sdwa.sliding_dilated_window_attention(query, key, value, 3, 2, scale=self.scale)
        return out, sdwa.attention_weights(query, key, 3, 2, scale=self.scale)


def test_jit_trace_of_learned_scale_and_weights():
    def draw(batch):
        return *torch.randn(2, batch, 5, 6, 4, 8), torch.randn(batch, 5, 6, 4, 6)

    module = Learned()
    traced = torch.jit.trace(module, draw(2))
    for batch in (2, 3):
        inputs = draw(batch)
        torch.testing.assert_close(traced(*inputs), module(*inputs))


def test_jit_trace_records_one_operator():
    if sdwa.available_backends("cpu")["cpu"]:
        pytest.skip("the CPU kernels are not compiled")
    module = sdwa.SlidingDilatedWindowAttention(16, 4, backend="cpu")
    traced = torch.jit.trace(module, draw("cpu", 2, 6, 7, 16)[0])
    kinds = [node.kind() for node in traced.inlined_graph.nodes()]
    assert kinds.count("sdwa::attention_forward") == 1
    frozen = torch.jit.freeze(traced.eval())
    x = draw("cpu", 3, 6, 7, 16)[0]
    torch.testing.assert_close(frozen(x), module(x))


def assert_graph_same(graph, module, *calls):
    attentions = [node for node in graph.graph.nodes if "attention" in node.name]
    assert [node.op for node in attentions] == ["call_function"]
    for copied in (graph, copy.deepcopy(graph)):
        for inputs in calls:
            assert_same(copied, module, inputs)


@pytest.mark.parametrize(
    "options", ({}, {"q_proj": False}, {"relative_bias": True, "padding_mode": "masked"}), ids=str
)
def test_symbolic_trace_of_the_layer(backend, options):
    """`torch.fx.symbolic_trace` of the layer, one graph for self and cross, masked or not"""
    torch.manual_seed(0)
    device = backend.device_type
    module = sdwa.SlidingDilatedWindowAttention(
        16, 4, dilation=(1, 2), backend=backend.name, **options
    ).to(device)
    graph = torch.fx.symbolic_trace(module)
    x, context = draw(device, 2, 6, 7, 16, inputs=2)
    key_mask = torch.rand(2, 6, 7, device=device) < 0.7
    channels_first = x.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)
    assert_graph_same(
        graph,
        module,
        (x,),
        (x, context),
        (x, None, key_mask),
        (x, context, key_mask),
        (channels_first, x),
    )
    with pytest.raises(ValueError, match="context must have the batch"):
        graph(x, context[:1])


def test_symbolic_trace_of_a_model(backend):
    """`torch.fx.symbolic_trace` of a model that calls the function"""
    module = Operator(backend=backend.name).to(backend.device_type)
    graph = torch.fx.symbolic_trace(module)
    (x,) = draw(backend.device_type, 2, 6, 7, 16)
    key_mask = torch.rand(x.shape[:3]).to(x.device) < 0.7
    for loaded in (graph, pickle.loads(pickle.dumps(graph))):
        assert_graph_same(loaded, module, (x,), (x, key_mask))


def test_symbolic_trace_in_evaluation_keeps_the_dropout():
    # The graph drops once it is set to training.
    graph = torch.fx.symbolic_trace(sdwa.SlidingDilatedWindowAttention(16, 4, proj_drop=0.5).eval())
    (x,) = draw("cpu", 2, 6, 7, 16)
    assert not (graph(x) == 0).any()
    assert (graph.train()(x) == 0).any()


def test_symbolic_trace_in_training():
    module = sdwa.SlidingDilatedWindowAttention(
        16, 4, attn_drop=0.5, proj_drop=0.5, backend="reference"
    )
    graph = torch.fx.symbolic_trace(module)
    (x,) = draw("cpu", 2, 6, 7, 16)
    outs = []
    for run in (module, graph):
        torch.manual_seed(0)
        outs.append(run(x))
    assert torch.equal(*outs)
