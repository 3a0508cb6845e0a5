"""What PyTorch must know of every operator: schema, fakes, autograd, FLOPs, determinism."""

from collections.abc import Sequence

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

import sdwa
from tests.sdwa.cases import Case, draw

OPERATORS = {"cpu": "attention", "cuda": "attention", "triton": "triton_attention"}
WINDOW = ([3, 5], [1, 1, 2, 1], 0.3)  # kernel_size, dilation, scale
CASES = {
    "plain": Case("plain", (2, 5, 4, 2, 8), (3, 5), ((1, 1), (2, 1))),
    "bias": Case("bias", (2, 5, 4, 2, 8), (3, 5), ((1, 1), (2, 1)), bias=True),
    "packed": Case("packed", (2, 5, 4, 2, 8), (3, 5), ((1, 1), (2, 1)), layout="packed"),
    "batch_0": Case("batch_0", (0, 5, 4, 2, 8), (3, 5), ((1, 1), (2, 1)), bias=True),
}


class Calls(TorchDispatchMode):
    """Notes the operators called, with their arguments."""

    def __init__(self):
        super().__init__()
        self.made = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.made.append((function, args))
        return function(*args, **(kwargs or {}))


def operators(backend):
    if backend.name not in OPERATORS:
        pytest.skip(f"{backend.name} is plain PyTorch")
    name = OPERATORS[backend.name]
    return (
        getattr(torch.ops.sdwa, f"{name}_forward").default,
        getattr(torch.ops.sdwa, f"{name}_backward").default,
    )


# opcheck itself looks at the gradients of copies that it makes.
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_opcheck(backend, case, dtype):
    """`torch.library.opcheck` of both operators"""
    forward, backward = operators(backend)
    tensors = draw(case, dtype, backend.device_type)
    inputs = [tensors[name].requires_grad_() for name in ("query", "key", "value")]
    bias = tensors["bias"].float().requires_grad_() if case.bias else None
    torch.library.opcheck(forward, (*inputs, bias, None, *WINDOW, False), rtol=1e-2, atol=1e-2)
    inputs = [tensor.detach() for tensor in inputs]
    bias = bias if bias is None else bias.detach()
    out, lse = forward(*inputs, bias, None, *WINDOW, True)
    for grad_lse in (None, tensors["grad_lse"]):
        arguments = (tensors["grad_out"], grad_lse, *inputs, bias, None, out, lse, *WINDOW, True)
        torch.library.opcheck(backward, arguments, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_fake_has_the_strides_of_the_kernel(backend, case):
    forward, backward = operators(backend)
    tensors = draw(case, torch.float32, backend.device_type)
    inputs = [tensors[name] for name in ("query", "key", "value")] + [tensors.get("bias"), None]

    def both(inputs, grad_out, grad_lse):
        out, lse = forward(*inputs, *WINDOW, False)
        return out, lse, *backward(grad_out, grad_lse, *inputs, out, lse, *WINDOW, False)

    real = both(inputs, tensors["grad_out"], tensors["grad_lse"])
    mode = torch._subclasses.FakeTensorMode()
    with mode:
        fakes = [t if t is None else mode.from_tensor(t) for t in inputs]
        grads = [mode.from_tensor(tensors[name]) for name in ("grad_out", "grad_lse")]
        fake = both(fakes, *grads)
    for r, f in zip(real, fake, strict=True):
        assert (r.shape, r.stride(), r.dtype, r.device) == (f.shape, f.stride(), f.dtype, f.device)


def test_flop_counter(backend):
    """FLOPs in `torch.utils.flop_counter`"""
    operators(backend)
    tensors = draw(CASES["plain"], torch.float32, backend.device_type)
    inputs = [tensors[name].requires_grad_() for name in ("query", "key", "value")]
    with FlopCounterMode(display=False) as counter:
        sdwa.sliding_dilated_window_attention(
            *inputs, (3, 5), ((1, 1), (2, 1)), backend=backend.name
        ).sum().backward()
    elements = 2 * 5 * 4 * 2 * 8
    assert counter.get_total_flops() == (4 + 10) * 15 * elements


@pytest.mark.parametrize(
    "options, taps", [({"is_causal": (True, False)}, 6), ({"padding_mode": "shifted"}, 9)]
)
def test_flop_counter_counts_the_taps_that_are_read(options, taps):
    x = torch.randn(1, 5, 4, 2, 8)
    with FlopCounterMode(display=False) as counter:
        sdwa.sliding_dilated_window_attention(x, x, x, 3, **options, backend="cpu")
    assert counter.get_total_flops() == 4 * taps * x.numel()


@pytest.mark.parametrize("reentrant", (False, True), ids=("non-reentrant", "reentrant"))
def test_activation_checkpointing(backend, reentrant):
    """activation checkpointing"""
    torch.manual_seed(0)
    layer = sdwa.SlidingDilatedWindowAttention(16, 2, dilation=(1, 2), backend=backend.name)
    layer.to(backend.device_type)
    x = torch.randn(2, 5, 6, 16, device=backend.device_type, requires_grad=True)
    (expected,) = torch.autograd.grad(layer(x).square().sum(), x)
    checkpoint(layer, x, use_reentrant=reentrant).square().sum().backward()
    assert torch.equal(x.grad, expected)


@pytest.fixture
def deterministic():
    torch.use_deterministic_algorithms(True)  # also fills what is not written with NaN
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("deterministic")
@pytest.mark.parametrize("case", ("plain", "bias", "packed"))
def test_deterministic_mode(backend, case):
    """`torch.use_deterministic_algorithms`"""
    tensors = draw(CASES[case], torch.float32, backend.device_type)
    names = [name for name in ("query", "key", "value", "bias") if name in tensors]
    inputs = [tensors[name].requires_grad_() for name in names]

    def results():
        out, lse = sdwa.sliding_dilated_window_attention(
            *inputs[:3],
            (3, 5),
            ((1, 1), (2, 1)),
            bias=inputs[3] if len(inputs) > 3 else None,
            return_lse=True,
            backend=backend.name,
        )
        grads = torch.autograd.grad((out, lse), inputs, (tensors["grad_out"], tensors["grad_lse"]))
        return out, lse, *grads

    first, second = results(), results()
    assert all(
        torch.equal(a, b) and not a.isnan().any() for a, b in zip(first, second, strict=True)
    )


@pytest.mark.parametrize("changed", ("query", "key", "value", "bias"))
def test_a_change_in_place_before_the_backward_pass_is_noticed(backend, changed):
    operators(backend)
    tensors = draw(CASES["bias"], torch.float32, backend.device_type)
    inputs = {n: tensors[n].requires_grad_() * 1 for n in ("query", "key", "value", "bias")}
    out = sdwa.sliding_dilated_window_attention(
        **inputs, kernel_size=(3, 5), dilation=(1, 2), backend=backend.name
    )
    inputs[changed].add_(1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_packed_projection_is_read_in_place(backend):
    """packed projections without copies"""
    operators(backend)
    layer = sdwa.SlidingDilatedWindowAttention(16, 2, dilation=(1, 2), backend=backend.name)
    layer.to(backend.device_type)
    x = torch.randn(2, 5, 6, 16, device=backend.device_type, requires_grad=True)
    with Calls() as calls:
        out = layer(x)
    names = [str(operator) for operator, _ in calls.made]
    assert not {"aten.copy_.default", "aten.clone.default", "aten._to_copy.default"} & set(names)
    _, (_, key, value, *_) = calls.made[
        names.index(f"sdwa.{OPERATORS[backend.name]}_forward.default")
    ]
    assert key.untyped_storage().data_ptr() == value.untyped_storage().data_ptr()
    assert value.data_ptr() - key.data_ptr() == 16 * key.element_size()
    out.sum().backward()


def test_kept_calls_are_bounded_and_exact(monkeypatch):
    from sdwa import dispatch

    monkeypatch.setattr(dispatch, "MOST_PREPARED", 3)
    monkeypatch.setattr(dispatch, "_prepared", {})
    for width in range(1, 8):
        query = torch.randn(1, 3, width, 1, 4)
        assert sdwa.sliding_dilated_window_attention(query, query, query).shape == query.shape
        assert len(dispatch._prepared) <= 3
    with pytest.raises(TypeError, match=r"kernel_size must be an odd int.*got 3.0"):
        sdwa.sliding_dilated_window_attention(query, query, query, 3.0)
    with pytest.raises(TypeError, match="scale must be a number"):
        sdwa.sliding_dilated_window_attention(query, query, query, scale=True)
    compiled = torch.compile(sdwa.sliding_dilated_window_attention, backend="eager")
    compiled(query, query, query)
    assert None not in dispatch._prepared


@pytest.mark.parametrize("name", ["query", "key", "value"])
def test_features_that_lie_apart_are_refused_after_a_call_with_others(name):
    # Of the same shapes, and of the same strides but for the last.
    dense = {each: torch.randn(1, 3, 5, 2, 8)[..., :4] for each in ("query", "key", "value")}
    apart = torch.randn(1, 3, 5, 2, 8)[..., ::2]
    sdwa.sliding_dilated_window_attention(**dense)
    with pytest.raises(ValueError, match=f"{name} must have stride 1 in head_dim"):
        sdwa.sliding_dilated_window_attention(**(dense | {name: apart}))


class Steps(Sequence):
    """A sequence that can be changed, and has a hash all the same."""

    def __init__(self, *steps):
        self.steps = list(steps)

    def __len__(self):
        return len(self.steps)

    def __getitem__(self, index):
        return self.steps[index]


@pytest.mark.parametrize(
    "name, of",
    [
        ("kernel_size", lambda x: x),
        ("dilation", lambda x: x),
        ("dilation", lambda x: (1, x)),
        ("is_causal", lambda x: x),
    ],
)
def test_a_sequence_changed_in_place_is_obeyed(name, of):
    query = torch.randn(1, 5, 6, 2, 4)
    steps = Steps(1, 1)
    for step in (False, True) if name == "is_causal" else (1, 3):
        steps.steps[:] = step, step
        out, exact = (
            sdwa.sliding_dilated_window_attention(query, query, query, **{name: of(given)})
            for given in (steps, (step, step))
        )
        assert torch.equal(out, exact)


def test_calls_with_equal_arguments_are_prepared_once(monkeypatch):
    from sdwa import dispatch

    made = []
    monkeypatch.setattr(dispatch, "_prepared", {})
    monkeypatch.setattr(
        dispatch, "make_problem", lambda *a, of=dispatch.make_problem: made.append(a) or of(*a)
    )
    query = torch.randn(1, 3, 4, 2, 4)
    for kernel_size in ((3, 3), [3, 3]):
        for dilation in ((1, 2), [1, 2], tuple(range(1, 3))):  # the last: another object
            sdwa.sliding_dilated_window_attention(query, query, query, kernel_size, dilation)
    assert len(made) == 1
    for options in (
        {"bias": torch.zeros(2, 3, 3)},
        {"key_mask": torch.ones(1, 3, 4, dtype=torch.bool)},
        {"is_causal": (True, False)},
        {"is_causal": True},
    ):
        made.clear()
        for _ in range(2):
            sdwa.sliding_dilated_window_attention(query, query, query, 3, **options)
        assert len(made) == 1, options
