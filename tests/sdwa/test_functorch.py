"""Transforms of torch.func and derivatives beyond the first, against the reference."""

from functools import partial

import pytest
import torch
from torch import func
from torch.autograd import forward_ad

import sdwa

# PyTorch's own forward mode compiles some of its rules with it on first use.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script")

SHAPE = (1, 3, 4, 2, 4)
SAMPLES = 3


def scalar(backend):
    def function(query, key, value, bias=None, key_mask=None):
        out, lse = sdwa.sliding_dilated_window_attention(
            *(query, key, value, 3, (1, 2)),
            bias=bias,
            key_mask=key_mask,
            return_lse=True,
            backend=backend,
        )
        return out.sin().sum() + lse.cos().sum()

    return function


def inputs(backend, *, samples=None, bias=False):
    generator = torch.Generator().manual_seed(0)
    dtype = torch.float64 if torch.float64 in backend.dtypes else torch.float32
    lead = () if samples is None else (samples,)
    shapes = [(*lead, *SHAPE)] * 3 + [(*lead, 2, 3, 3)] * bias
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(backend.device_type, dtype)
        for shape in shapes
    ]


def assert_same(backend, transform, arguments):
    assert_close_to_reference(scalar, transform, arguments, backend)


def assert_close_to_reference(scalar, transform, arguments, backend):
    """A transform of scalar(name of a backend), at these arguments."""
    tolerance = {} if arguments[0].dtype == torch.float64 else {"rtol": 1e-3, "atol": 1e-4}
    result = transform(scalar(backend.name))(*arguments)
    expected = transform(scalar("reference"))(*arguments)
    torch.testing.assert_close(result, expected, **tolerance)


TRANSFORMS = {
    "grad": lambda f, n: func.grad(f, n),
    "jacrev": lambda f, n: func.jacrev(f, n),
    "jacfwd": lambda f, n: func.jacfwd(f, n),
    "grad of grad": lambda f, n: func.grad(
        lambda *a: sum(g.square().sum() for g in func.grad(f, n)(*a)), n
    ),
    "jacrev of jacrev": lambda f, n: func.jacrev(func.jacrev(f, 0), 0),
    "hessian": lambda f, n: func.hessian(f, 0),
    "jvp": lambda f, n: lambda *a: func.jvp(f, a, a),
    "jvp of vjp": lambda f, n: lambda *a: func.jvp(lambda *b: func.vjp(f, *b)[1](a[0].sum()), a, a),
}


@pytest.mark.parametrize("bias", (False, True), ids=("plain", "bias"))
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS)
def test_derivatives(backend, transform, bias):
    """`torch.func`: grad, jacrev, jacfwd, jvp, hessian, nested"""
    arguments = inputs(backend, bias=bias)
    differentiated = tuple(range(len(arguments)))
    assert_same(backend, lambda f: transform(f, differentiated), arguments)


def test_forward_mode(backend):
    """forward mode, `torch.autograd.forward_ad`"""

    def tangent(f):
        def run(query, key, value):
            with forward_ad.dual_level():
                return forward_ad.unpack_dual(
                    f(forward_ad.make_dual(query, key), key, value)
                ).tangent

        return run

    assert_same(backend, tangent, inputs(backend))


def test_third_derivative(backend):
    """any number of derivatives, `create_graph=True`"""

    def derivatives(f):
        def run(query, *others):
            query = query.clone().requires_grad_()
            result, results = f(query, *others), []
            for _ in range(3):
                (grad,) = torch.autograd.grad(result, query, create_graph=True)
                result = grad.square().sum()
                results.append(grad)
            return results

        return run

    assert_same(backend, derivatives, inputs(backend, bias=True))


OWN = {
    "query key value": (0, 0, 0, None),
    "query": (0, None, None, None),
    "key value": (None, 0, 0, None),
    "all": (0, 0, 0, 0),
    "bias": (None, None, None, 0),
}


@pytest.mark.parametrize("own", OWN.values(), ids=OWN)
@pytest.mark.parametrize("what", ("call", "grad", "grad outside", "nested", "second"))
def test_vmap(backend, own, what):
    """`torch.func.vmap`, also with a bias for each sample, within and around grad"""
    tensors = inputs(backend, samples=SAMPLES, bias=True)
    arguments = [t if d == 0 else t[0] for t, d in zip(tensors, own, strict=True)]

    def transform(f):
        if what == "call":
            return func.vmap(f, own)
        if what == "grad":
            return func.vmap(func.grad(f, (0, 1, 2, 3)), own)
        if what == "grad outside":
            return func.grad(lambda *a: func.vmap(f, own)(*a).sum(), (0, 1, 2, 3))
        if what == "second":
            return func.vmap(func.grad(lambda *a: func.grad(f)(*a).square().sum(), 1), own)
        twice = func.vmap(func.vmap(func.grad(f, (0, 3)), own), (0, None, None, None))
        return lambda query, *others: twice(torch.stack([query, query + 1]), *others)

    assert_same(backend, transform, arguments)


@pytest.mark.parametrize("dim", (2, -1))
def test_vmap_over_another_dimension(backend, dim):
    query, key, value = inputs(backend, samples=SAMPLES)
    moved = query.movedim(0, dim)
    assert_same(backend, lambda f: func.vmap(f, (dim, None, None)), (moved, key[0], value[0]))


@pytest.mark.parametrize("bias", (False, True), ids=("plain", "bias"))
@pytest.mark.parametrize("own", (False, True), ids=("one mask", "a mask for each sample"))
def test_vmap_with_a_key_mask(backend, bias, own):
    """`torch.func.vmap` with a key mask, one or one for each sample"""
    generator = torch.Generator().manual_seed(1)
    mask = torch.rand((SAMPLES, *SHAPE[:3]) if own else SHAPE[:3], generator=generator) < 0.6
    mask = mask.to(backend.device_type)
    arguments = inputs(backend, samples=SAMPLES, bias=bias)

    def gradients(f):
        def sample(mask, *tensors):
            return func.grad(partial(f, key_mask=mask), tuple(range(len(tensors))))(*tensors)

        in_dims = (0 if own else None, *(0 for _ in arguments))
        return lambda *tensors: func.vmap(sample, in_dims)(mask, *tensors)

    assert_same(backend, gradients, arguments)


@pytest.mark.parametrize("bias", (False, True), ids=("plain", "bias"))
def test_vmap_over_empty_batches(backend, bias):
    tensors = [t[:, :0] if t.dim() == 6 else t for t in inputs(backend, samples=SAMPLES, bias=bias)]
    assert_same(backend, lambda f: func.vmap(func.grad(f)), tensors)


@pytest.mark.parametrize("bias", (False, True), ids=("plain", "bias"))
def test_vmap_over_no_samples(backend, bias):
    tensors = inputs(backend, samples=0, bias=bias)
    assert_same(backend, lambda f: func.vmap(f), tensors)
    assert_same(backend, lambda f: func.vmap(func.grad(f)), tensors)


def test_vmap_without_a_bias(backend):
    assert_same(backend, lambda f: func.vmap(func.grad(f)), inputs(backend, samples=SAMPLES))


def test_operators_batch_by_themselves():
    if sdwa.available_backends("cpu")["cpu"]:
        pytest.skip("the CPU kernels are not compiled")
    query, key, value = torch.randn(3, SAMPLES, *SHAPE)
    window = (None, None, [3, 3], [1, 1, 2, 2], 0.5, False)
    out, _ = func.vmap(lambda *a: torch.ops.sdwa.attention_forward(*a, *window))(query, key, value)
    for n in range(SAMPLES):
        alone, _ = torch.ops.sdwa.attention_forward(query[n], key[n], value[n], *window)
        torch.testing.assert_close(out[n], alone)


def test_vmap_over_heads_is_refused(backend):
    query, key, value = inputs(backend)
    # what is left looks like sequences of 4 heads
    with pytest.raises(ValueError, match="dilation must have one entry per head: .* for 4 heads"):
        func.vmap(scalar(backend.name), 3)(query, key, value)
