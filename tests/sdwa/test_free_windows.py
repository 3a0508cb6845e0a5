"""Shifted and causal windows, and sequences: what the user is told of them, beyond the cases."""

import pytest
import torch
from torch import func

import sdwa
from sdwa import sliding_dilated_window_attention as attention
from sdwa.arguments import make_problem
from sdwa.problem import WindowAxis
from sdwa.reference import taps_along
from tests.sdwa.cases import Case, draw
from tests.sdwa.geometry_table import FREE_AXES
from tests.sdwa.test_functorch import assert_close_to_reference

# PyTorch's own, on first use of forward mode and of Inductor.
pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit.script")

SHIFTED = {"padding_mode": "shifted"}
WINDOWS = {
    "shifted": SHIFTED,
    "causal": {"is_causal": True},
    "masked, causal rows": {"padding_mode": "masked", "is_causal": (True, False)},
    "shifted, causal columns": {**SHIFTED, "is_causal": (False, True)},
}


def tensors(*shape, bias=None, dtype=torch.float64, device="cpu"):
    """query, key, value, and a bias of that shape if there is one."""
    generator = torch.Generator().manual_seed(0)
    shapes = [shape] * 3 + ([] if bias is None else [bias])
    return [
        torch.randn(s, generator=generator, dtype=torch.float64).to(device, dtype).requires_grad_()
        for s in shapes
    ]


def own_dtype(backend):
    return torch.float64 if torch.float64 in backend.dtypes else torch.float32


# Geometry


@pytest.mark.parametrize(
    ("kernel_size", "shifted", "causal", "plain"),
    [
        (3, False, False, True),
        (3, True, False, False),
        (4, True, False, False),
        (3, False, True, False),
        (3, True, True, False),
        # a tap alone is the query
        (1, True, False, True),
        (1, False, True, True),
    ],
)
def test_plain_windows_are_centred_on_the_query(kernel_size, shifted, causal, plain):
    assert WindowAxis.of(kernel_size, shifted, causal).is_plain is plain


@pytest.mark.parametrize(
    ("padding_mode", "is_causal", "shape"),
    [
        ("zeros", False, (2, 3, 5)),
        ("masked", (True, False), (2, 2, 5)),
        ("shifted", (False, True), (2, 5, 9)),
    ],
)
def test_what_the_operators_take_as_bias(padding_mode, is_causal, shape):
    query, key, value = tensors(1, 6, 7, 2, 4)
    given = (query, key, value, (3, 5), 1, None, None, padding_mode, None, is_causal)
    assert make_problem(*given).bias_shape == shape


@pytest.mark.parametrize("name", FREE_AXES)
def test_the_reference_reads_what_the_table_says(name):
    table = FREE_AXES[name]
    axis = WindowAxis.of(table.kernel_size, table.shifted, table.is_causal)
    assert axis == WindowAxis(table.size, table.before, table.shifted and not table.is_causal)
    coordinate, distance = taps_along(axis, table.length, table.dilation, torch.device("cpu"))
    assert tuple(map(tuple, coordinate.tolist())) == table.sources
    pixel = torch.arange(table.length).unsqueeze(1)
    assert torch.equal(pixel + distance * table.dilation, coordinate)


# Meaning


def test_inside_the_map_shifted_windows_are_centred(backend):
    query, key, value = tensors(
        1, 12, 13, 2, 8, dtype=own_dtype(backend), device=backend.device_type
    )
    options = {"backend": backend.name}
    shifted = attention(query, key, value, 5, (1, 2), **SHIFTED, **options)
    masked = attention(query, key, value, 5, (1, 2), padding_mode="masked", **options)
    inside = slice(4, -4)
    torch.testing.assert_close(shifted[:, inside, inside], masked[:, inside, inside])
    assert not torch.allclose(shifted[:, 0], masked[:, 0])


def test_every_shifted_window_has_all_its_taps():
    query, key = tensors(1, 9, 8, 2, 4)[:2]
    weights = sdwa.attention_weights(query, key, (4, 3), (1, 2), **SHIFTED)
    assert weights.shape == (1, 9, 8, 2, 4, 3)
    assert (weights > 0).all()
    torch.testing.assert_close(weights.sum((-1, -2)), torch.ones(1, 9, 8, 2).double())


def test_a_map_no_larger_than_the_window_is_attended_to_as_a_whole(backend):
    dtype = own_dtype(backend)
    query, key, value = tensors(2, 3, 4, 2, 8, dtype=dtype, device=backend.device_type)
    out = attention(query, key, value, 7, backend=backend.name, **SHIFTED)

    def sequence(x):
        return x.flatten(1, 2).transpose(1, 2)

    expected = torch.nn.functional.scaled_dot_product_attention(*map(sequence, (query, key, value)))
    torch.testing.assert_close(sequence(out), expected)


@pytest.mark.parametrize("padding_mode", ("zeros", "masked", "shifted"))
def test_nothing_comes_from_after_a_causal_query(padding_mode, backend):
    dtype = own_dtype(backend)
    query, key, value = tensors(1, 6, 7, 2, 8, dtype=dtype, device=backend.device_type)
    options = {"padding_mode": padding_mode, "is_causal": (True, False), "backend": backend.name}
    row = attention(query, key, value, 3, (1, 2), **options)[:, 3]
    of_key, of_value = torch.autograd.grad(row.square().sum(), (key, value))
    for grad in (of_key, of_value):
        assert (grad[:, 4:] == 0).all()
        assert (grad[:, 3] != 0).any()


def test_causal_weights_keep_the_place_of_their_taps():
    query, key = tensors(1, 6, 7, 1, 4)[:2]
    weights = sdwa.attention_weights(query, key, 5, is_causal=(True, False))
    assert weights.shape == (1, 6, 7, 1, 5, 5)
    assert (weights[..., 3:, :] == 0).all()
    assert (weights[..., 2, 2] > 0).all()


@pytest.mark.parametrize("is_causal", (False, True))
@pytest.mark.parametrize("padding_mode", ("zeros", "masked"))
def test_of_a_bias_by_distance_centred_windows_take_the_middle(padding_mode, is_causal, backend):
    dtype = own_dtype(backend)
    query, key, value, bias = tensors(
        1, 6, 7, 2, 8, bias=(2, 5, 9), dtype=dtype, device=backend.device_type
    )
    options = {"padding_mode": padding_mode, "is_causal": is_causal, "backend": backend.name}
    by_distance = attention(query, key, value, (3, 5), (1, 2), bias=bias, **options)
    by_tap = attention(query, key, value, (3, 5), (1, 2), bias=bias[:, 1:4, 2:7], **options)
    assert torch.equal(by_distance, by_tap)
    (grad,) = torch.autograd.grad(by_distance.square().sum(), bias)
    middle = torch.zeros_like(grad)
    middle[:, 1:4, 2:7] = grad[:, 1:4, 2:7]
    assert torch.equal(grad, middle)
    assert (grad != 0).any()


# Sequences


@pytest.mark.parametrize("padding_mode", ("zeros", "masked", "shifted"))
def test_a_sequence_is_a_map_of_one_row(padding_mode, backend):
    dtype = own_dtype(backend)
    bias = (2, 9 if padding_mode == "shifted" else 5)
    given = tensors(2, 40, 2, 8, bias=bias, dtype=dtype, device=backend.device_type)
    query, key, value, bias = given
    key_mask = torch.rand(2, 40, generator=torch.Generator().manual_seed(1)) < 0.8
    key_mask = key_mask.to(query.device)
    options = {"padding_mode": padding_mode, "backend": backend.name, "return_lse": True}
    out, lse = attention(
        *(query, key, value, 5, (1, 3)),
        **{"bias": bias, "key_mask": key_mask, "is_causal": True, **options},
    )
    assert (out.shape, lse.shape) == ((2, 40, 2, 8), (2, 40, 2))
    rows = [t.unsqueeze(1) for t in (query, key, value)]
    of_map = {"bias": bias.unsqueeze(1), "key_mask": key_mask.unsqueeze(1)}
    expected, expected_lse = attention(
        *rows, (1, 5), ((1, 1), (1, 3)), is_causal=(False, True), **of_map, **options
    )
    assert torch.equal(out, expected.squeeze(1))
    assert torch.equal(lse, expected_lse.squeeze(1))
    grads, expected_grads = (
        torch.autograd.grad(o.square().sum() + lse_.exp().sum(), given)
        for o, lse_ in ((out, lse), (expected, expected_lse))
    )
    for grad, other in zip(grads, expected_grads, strict=True):
        assert torch.equal(grad, other)


def test_weights_of_sequences():
    query, key = tensors(1, 9, 2, 4)[:2]
    weights = sdwa.attention_weights(query, key, (3,), 2, **SHIFTED)
    assert weights.shape == (1, 9, 2, 3)
    torch.testing.assert_close(weights.sum(-1), torch.ones(1, 9, 2).double())


# Layer


@pytest.mark.parametrize("options", WINDOWS.values(), ids=WINDOWS)
def test_layer(options, backend):
    torch.manual_seed(0)
    layer = sdwa.SlidingDilatedWindowAttention(
        16, 4, (3, 5), (1, 2), relative_bias=True, backend=backend.name, **options
    ).to(backend.device_type)
    shape = (4, 5, 9) if "padding_mode" in options and "shifted" in str(options) else (4, 3, 5)
    assert layer.relative_bias.shape == shape
    torch.nn.init.normal_(layer.relative_bias)
    x = torch.randn(2, 6, 7, 16, device=backend.device_type)
    q, packed = layer.q(x), layer.kv(x).view(2, 6, 7, 2, 4, 4)
    attended = attention(
        *(q.view(2, 6, 7, 4, 4), *packed.unbind(3), (3, 5), (1, 1, 2, 2)),
        **{"bias": layer.relative_bias, "backend": "reference", **options},
    )
    expected = layer.proj(attended.flatten(3))
    torch.testing.assert_close(layer(x), expected)


def test_layer_for_sequences():
    torch.manual_seed(0)
    layer = sdwa.SlidingDilatedWindowAttention(
        16, 4, (5,), (1, 2), relative_bias=True, is_causal=True, context_dim=8, **SHIFTED
    )
    assert layer.relative_bias.shape == (4, 9)
    torch.nn.init.normal_(layer.relative_bias)
    x, context = torch.randn(2, 11, 16), torch.randn(2, 11, 8)
    key_mask = torch.rand(2, 11) < 0.9
    out = layer(x, context, key_mask)
    key, value = layer.kv(context).view(2, 11, 2, 4, 4).unbind(2)
    attended = attention(
        *(layer.q(x).view(2, 11, 4, 4), key, value, 5, (1, 1, 2, 2)),
        **{"bias": layer.relative_bias, "key_mask": key_mask, "is_causal": True, **SHIFTED},
    )
    torch.testing.assert_close(out, layer.proj(attended.flatten(2)))
    assert "kernel_size=(5,), dilation=(1, 1, 2, 2)" in repr(layer)
    assert repr(layer.is_causal) == "(False, True)"


def test_attention_dropout_knows_the_windows():
    torch.manual_seed(0)
    options = {"relative_bias": True, "attn_drop": 0.5, "backend": "reference", **SHIFTED}
    layer = sdwa.SlidingDilatedWindowAttention(16, 4, 4, is_causal=(True, False), **options)
    x = torch.randn(1, 6, 7, 16)
    assert layer(x).shape == x.shape
    layer.attn_drop = 1e-12  # drops nothing, the same way
    torch.testing.assert_close(layer.train()(x), layer.eval()(x))


# PyTorch


@pytest.mark.parametrize("options", WINDOWS.values(), ids=WINDOWS)
def test_derivatives_of_any_order(options, backend):
    def scalar(name):
        def function(query, key, value, bias):
            out, lse = attention(
                *(query, key, value, 3, (1, 2)),
                **{"bias": bias, "return_lse": True, "backend": name, **options},
            )
            return out.sin().sum() + lse.cos().sum()

        return function

    arguments = [
        t.detach()
        for t in tensors(
            *(1, 3, 4, 2, 4),
            **{"bias": (2, 5, 5), "dtype": own_dtype(backend), "device": backend.device_type},
        )
    ]
    everything = tuple(range(4))
    assert_close_to_reference(scalar, lambda f: func.grad(f, everything), arguments, backend)
    assert_close_to_reference(
        scalar,
        lambda f: func.grad(
            lambda *a: sum(g.square().sum() for g in func.grad(f, everything)(*a)), everything
        ),
        arguments,
        backend,
    )
    assert_close_to_reference(scalar, lambda f: lambda *a: func.jvp(f, a, a), arguments, backend)
    several = [torch.stack([t, t.flip(0), -t]) for t in arguments]
    assert_close_to_reference(
        scalar, lambda f: func.vmap(func.grad(f, everything)), several, backend
    )


@pytest.mark.parametrize("options", WINDOWS.values(), ids=WINDOWS)
def test_compiles_without_graph_breaks(options, backend):
    def function(query, key, value, bias):
        return attention(
            *(query, key, value, 3, (1, 2)), **{"bias": bias, "backend": backend.name, **options}
        )

    torch._dynamo.reset()
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True, dynamic=True)
    for height in (6, 9):
        given = tensors(
            *(2, height, 7, 2, 8),
            **{"bias": (2, 5, 5), "dtype": torch.float32, "device": backend.device_type},
        )
        out, expected = compiled(*given), function(*given)
        torch.testing.assert_close(out, expected)
        for grad, other in zip(
            torch.autograd.grad(out.square().sum(), given),
            torch.autograd.grad(expected.square().sum(), given),
            strict=True,
        ):
            torch.testing.assert_close(grad, other)


def test_exports_and_decomposes():
    layer = sdwa.SlidingDilatedWindowAttention(16, 4, 3, relative_bias=True, **SHIFTED).eval()
    torch.nn.init.normal_(layer.relative_bias)
    x = torch.randn(2, 6, 7, 16)
    program = torch.export.export(layer, (x,))
    if not sdwa.available_backends("cpu")["cpu"]:
        operators = [torch.ops.sdwa.attention_forward.default]
        assert any(node.target in operators for node in program.graph.nodes)
        program = program.run_decompositions(torch._decomp.get_decompositions(operators))
    assert not any("sdwa" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(x), layer(x))


# Bad input


def call(**change):
    given = {"kernel_size": 3, "dilation": (1, 2), "shape": (1, 6, 7, 2, 8)} | change
    query = torch.zeros(given.pop("shape"))
    kernel_size, dilation = given.pop("kernel_size"), given.pop("dilation")
    return attention(query, query, given.pop("value", query), kernel_size, dilation, **given)


LINE = {"shape": (1, 7, 2, 8)}
REFUSED = {
    "even and centred": (
        {"kernel_size": 4},
        ValueError,
        r'kernel_size must be odd and .*, got 4 \(padding_mode="shifted" takes even ones\)',
    ),
    "none": ({"kernel_size": 0, **SHIFTED}, ValueError, "kernel_size must be from 1 to 255, got 0"),
    "float": ({"kernel_size": 3.0, **SHIFTED}, TypeError, "kernel_size must be an int or a pair"),
    "mode": ({"padding_mode": "shift"}, ValueError, '"zeros", "masked" or "shifted", got'),
    "bias by tap": (
        {"bias": torch.zeros(2, 3, 3), **SHIFTED},
        ValueError,
        r"bias must be \(heads, 2 \* kernel_h - 1, 2 \* kernel_w - 1\) = \(2, 5, 5\) with "
        r'padding_mode="shifted", got shape \(2, 3, 3\)',
    ),
    "bias": (
        {"bias": torch.zeros(2, 4, 4)},
        ValueError,
        r"\(heads, kernel_h, kernel_w\) = \(2, 3, 3\) or .* = \(2, 5, 5\), got shape \(2, 4, 4\)",
    ),
    "causal int": ({"is_causal": 1}, TypeError, "is_causal must be a bool or a pair .*, got 1"),
    "causal ints": ({"is_causal": (1, 0)}, TypeError, r"is_causal must be .*, got \(1, 0\)"),
    "causal of three": (
        {"is_causal": (True,) * 3},
        TypeError,
        "is_causal must be a bool or a pair",
    ),
    "line: value": (
        {**LINE, "value": torch.zeros(1, 1, 7, 2, 8)},
        ValueError,
        r"query and value must both be .* got shapes \(1, 7, 2, 8\) and \(1, 1, 7, 2, 8\)",
    ),
    "line: kernel_size": (
        {**LINE, "kernel_size": (3, 3)},
        TypeError,
        r"kernel_size must be an int for \(batch, length, heads, head_dim\), got \(3, 3\)",
    ),
    "line: dilation": (
        {**LINE, "dilation": ((2, 1), (1, 2))},
        TypeError,
        r"dilation entries must be ints for \(batch, length, heads, head_dim\), got \(2, 1\)",
    ),
    "line: bias": (
        {**LINE, "bias": torch.zeros(2, 1, 3)},
        ValueError,
        r"\(heads, kernel\) = \(2, 3\) or .*kernel - 1\) = \(2, 5\), got shape \(2, 1, 3\)",
    ),
    "line: key_mask": (
        {**LINE, "key_mask": torch.ones(1, 1, 7, dtype=torch.bool)},
        ValueError,
        r"key_mask must be \(batch, length\) = \(1, 7\), got shape \(1, 1, 7\)",
    ),
    "line: is_causal": (
        {**LINE, "is_causal": (True, False)},
        TypeError,
        r"is_causal must be a bool for sequences, got \(True, False\)",
    ),
    "line: value of a list": (
        {**LINE, "value": [1.0]},
        TypeError,
        "value must be a tensor, got list",
    ),
    "line: bias of a list": (
        {**LINE, "bias": [0.0]},
        TypeError,
        "bias must be a tensor or None, got list",
    ),
}


@pytest.mark.parametrize("change, kind, message", REFUSED.values(), ids=REFUSED)
def test_refused(change, kind, message):
    with pytest.raises(kind, match=message):
        call(**change)


def test_an_equal_call_makes_nothing_legal():
    call(is_causal=(True, False))
    with pytest.raises(TypeError, match="is_causal"):
        call(is_causal=(1, 0))
    call(is_causal=False)
    with pytest.raises(TypeError, match="is_causal"):
        call(is_causal=0)


@pytest.mark.parametrize(
    "kernel_size, shape, message",
    [
        ((5,), (2, 3, 9, 16), "a layer for maps has a kernel_size of one number, or two entries"),
        (5, (2, 9, 16), "a layer for sequences has a kernel_size of one entry"),
    ],
)
def test_layers_refuse_what_they_are_not_for(kernel_size, shape, message):
    layer = sdwa.SlidingDilatedWindowAttention(16, 4, kernel_size)
    with pytest.raises(ValueError, match=message):
        layer(torch.zeros(shape))


@pytest.mark.parametrize(
    "given, kind, message",
    [
        ({"x": [0.0]}, TypeError, "x must be a tensor, got list"),
        ({"context": torch.zeros(9, 16)}, ValueError, "context must be .batch, length, 16., got"),
        (
            {"key_mask": torch.ones(2, 1, 9, dtype=torch.bool)},
            ValueError,
            r"key_mask must be \(batch, length\) = \(2, 9\), got shape \(2, 1, 9\)",
        ),
    ],
)
def test_layers_for_sequences_refuse(given, kind, message):
    layer = sdwa.SlidingDilatedWindowAttention(16, 4, (5,), context_dim=16)
    with pytest.raises(kind, match=message):
        layer(**{"x": torch.zeros(2, 9, 16), **given})


def test_entries_of_one_axis_may_be_in_lists():
    line = [t.detach() for t in tensors(2, 9, 2, 8)]
    plain = attention(*line, 3, (1, 2), is_causal=True)
    listed = attention(*line, [3], [[1], [2]], is_causal=[True])
    assert torch.equal(plain, listed)


def test_operators_refuse_shifted_windows_that_pad():
    if sdwa.available_backends("cpu")["cpu"]:
        pytest.skip("no compiled kernels")
    given = draw(Case("call", (1, 4, 4, 1, 4)), torch.float32)
    maps = [given[name] for name in ("query", "key", "value")]
    with pytest.raises(RuntimeError, match="shifted windows must be masked"):
        torch.ops.sdwa.attention_forward(*maps, None, None, [3, 3], [1, 1], 1.0, False, True)


@pytest.mark.parametrize("padding_mode", ("zeros", "masked", "shifted"))
def test_nan_of_a_query_reaches_the_keys_of_its_window_alone(padding_mode, backend):
    """Keys beside a window at the end of a row once took its query times a weight of 0."""
    q, k, v = tensors(1, 6, 7, 2, 16, dtype=torch.float32, device=backend.device_type)
    mode = {"dilation": (1, 2), "padding_mode": padding_mode}

    def depends_on(pixel):
        """Which keys of each head do."""
        with_nan = q.detach().clone()
        with_nan[(0, *pixel)] = float("nan")
        out = attention(with_nan, k, v, 3, **mode, backend=backend.name)
        return torch.autograd.grad(out.sum(), k)[0].isnan().any(-1)[0]

    for pixel in ((0, 0), (0, 3), (5, 1), (2, 6)):
        weights = sdwa.attention_weights(q, k, 3, **mode)
        gradient = torch.autograd.grad(weights[(0, *pixel)].square().sum(), k)[0]
        assert torch.equal(depends_on(pixel), (gradient != 0).any(-1)[0])
