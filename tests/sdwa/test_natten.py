"""NATTEN's names: against what NATTEN 0.17.5 itself computed, and against each other."""

import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from sdwa import natten, natten_settings, taps

GOLDEN = sorted((Path(__file__).parent / "golden" / "natten").glob("*.npz"))


def maps(*shape, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for _ in range(3)]


def heads_first(*tensors):
    return [t.movedim(-2, 1) for t in tensors]


# Golden vectors: see golden/README.md


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-10), (torch.float32, 1e-5)])
@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
@pytest.mark.parametrize("split", (True, False), ids=("split", "fused"))
def test_is_what_natten_computed(path, split, dtype, tolerance):
    stored = np.load(path)

    def tensor(name):
        return torch.from_numpy(stored[name]).to(dtype)

    dims = stored["query"].ndim - 3
    kernel, dilation, causal = (
        tuple(stored[name].tolist()) for name in ("kernel_size", "dilation", "is_causal")
    )
    inputs = {name: tensor(name).requires_grad_() for name in ("query", "key", "value")}
    query, key, value = inputs.values()  # heads first, as NATTEN's split functions take them
    rpb = None
    if "rpb" in stored:
        rpb = inputs["rpb"] = tensor("rpb").requires_grad_()
    scale = query.shape[-1] ** -0.5
    if split:
        qk, av = (natten.na1d_qk, natten.na1d_av) if dims == 1 else (natten.na2d_qk, natten.na2d_av)
        window = {"kernel_size": kernel, "dilation": dilation, "is_causal": causal}
        scores = qk(query * scale, key, rpb=rpb, **window)
        torch.testing.assert_close(scores, tensor("scores"), rtol=0, atol=tolerance)
        out = av(scores.softmax(-1), value, **window)
    else:
        fused = natten.na1d if dims == 1 else natten.na2d
        last = [t.movedim(1, -2) for t in (query, key, value)]
        out = fused(*last, kernel, dilation, causal, rpb).movedim(-2, 1)
    torch.testing.assert_close(out, tensor("out"), rtol=0, atol=tolerance)
    grads = torch.autograd.grad(out, list(inputs.values()), tensor("grad_out"))
    for name, grad in zip(inputs, grads, strict=True):
        expected = tensor(f"grad_{name}")
        atol = tolerance * max(1.0, expected.abs().max().item())
        torch.testing.assert_close(grad, expected, rtol=0, atol=atol, msg=name)


# Split and fused


@pytest.mark.parametrize("is_causal", (False, True, (True, False)), ids=str)
@pytest.mark.parametrize("kernel_size, dilation", [(3, 2), ((4, 3), (2, 1)), (7, 1)], ids=str)
def test_split_functions_are_the_fused_one(kernel_size, dilation, is_causal):
    query, key, value = maps(2, 8, 9, 2, 4)
    fused = natten.na2d(query, key, value, kernel_size, dilation, is_causal, scale=0.3)
    q, k, v = heads_first(query, key, value)
    scores = natten.na2d_qk(0.3 * q, k, kernel_size, dilation, is_causal=is_causal)
    split = natten.na2d_av(scores.softmax(-1), v, kernel_size, dilation, is_causal=is_causal)
    torch.testing.assert_close(split.movedim(1, -2), fused)


@pytest.mark.parametrize("dims", (1, 2))
def test_further_tokens_are_attended_to_as_well(dims):
    query, key, value = maps(2, *(6, 7)[-dims:], 2, 4)
    more_keys, more_values = (
        t[:, :3, ..., :, :].reshape(2, -1, 2, 4) for t in maps(2, 3, 2, 4)[:2]
    )
    fused, qk, av = (
        (natten.na1d, natten.na1d_qk, natten.na1d_av)
        if dims == 1
        else (natten.na2d, natten.na2d_qk, natten.na2d_av)
    )
    together = fused(query, key, value, 3, additional_keys=more_keys, additional_values=more_values)
    q, k, v, more_k, more_v = heads_first(query, key, value, more_keys, more_values)
    weights = qk(0.5 * q, k, 3, additional_keys=more_k).softmax(-1)
    assert weights.shape[-1] == 3**dims + more_k.shape[2]
    split = av(weights, v, 3, additional_values=more_v)
    torch.testing.assert_close(split.movedim(1, -2), together)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("dims", (1, 2))
def test_weights_add_up_to_one_under_autocast(dims, dtype):
    query, key, _ = (8 * t.float() for t in maps(2, *(6, 7)[-dims:], 2, 4))
    more_keys = key[:, :3].reshape(2, -1, 2, 4)
    ones, more_ones = torch.ones_like(key), torch.ones_like(more_keys)
    fused = natten.na1d if dims == 1 else natten.na2d
    with torch.autocast("cpu", dtype):
        out = fused(query, key, ones, 3, additional_keys=more_keys, additional_values=more_ones)
    torch.testing.assert_close(out.float(), torch.ones_like(out).float(), rtol=0, atol=0)


def test_split_functions_round_nothing_under_autocast():
    query, key, value, more_keys, more_values = heads_first(
        *(
            8 * t.float()
            for t in (*maps(1, 5, 6, 2, 4), *(m[:, 0] for m in maps(1, 5, 6, 2, 4)[:2]))
        )
    )
    weights = natten.na2d_qk(query, key, 3, additional_keys=more_keys)
    out = natten.na2d_av(weights, value, 3, additional_values=more_values)
    with torch.autocast("cpu", torch.bfloat16):
        # Autocast may leave tensors of two dtypes.
        same = natten.na2d_qk(query, key, 3, additional_keys=more_keys)
        torch.testing.assert_close(same, weights, rtol=0, atol=0)
        mixed = natten.na2d_qk(query, key, 3, additional_keys=more_keys.bfloat16())
        torch.testing.assert_close(mixed, weights, rtol=1e-2, atol=1)
        same = natten.na2d_av(weights, value, 3, additional_values=more_values)
        torch.testing.assert_close(same, out, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", (torch.bfloat16, torch.float16), ids=str)
def test_scores_are_added_up_in_float32(dtype):
    """Products of half precision would be rounded, or overflow, before most of them cancel out."""
    query, key, _ = (t.detach() for t in maps(1, 1, 4, 3, 64))
    query = 100 * (query - query.mean(-1, keepdim=True)).to(dtype)
    key = (10 * key + 400).to(dtype)
    exact = natten.na2d_qk(query.double(), key.double(), 3)
    scores = natten.na2d_qk(query, key, 3).double()
    torch.testing.assert_close(scores, exact, rtol=2 * torch.finfo(dtype).eps, atol=1)


def test_split_functions_are_differentiable_twice():
    query, key, value = (t.detach().requires_grad_() for t in heads_first(*maps(1, 4, 5, 2, 2)))
    rpb = torch.randn(2, 5, 5, dtype=torch.float64).requires_grad_()

    def attend(query, key, value, rpb):
        weights = natten.natten2dqkrpb(query, key, rpb, 3, 1).softmax(-1)
        return natten.natten2dav(weights, value, 3, 1)

    assert torch.autograd.gradcheck(attend, (query, key, value, rpb))
    assert torch.autograd.gradgradcheck(attend, (query, key, value, rpb))


def test_names_of_older_versions():
    query, key, value = heads_first(*maps(1, 9, 2, 4))
    rpb = torch.randn(2, 5, dtype=torch.float64)
    scores = natten.natten1dqkrpb(query, key, rpb, 3, 2)
    assert torch.equal(scores, natten.na1d_qk(query, key, 3, 2, rpb=rpb))
    assert torch.equal(natten.natten1dqk(query, key, 3), natten.na1d_qk(query, key, 3))
    assert torch.equal(natten.natten1dav(scores, value, 3, 2), natten.na1d_av(scores, value, 3, 2))
    assert torch.equal(natten.na1d_qk_with_bias(query, key, rpb, 3, 2), scores)
    assert torch.equal(
        natten.na1d_qk_with_bias(query, key, None, 3, 2, key[:, :, :4]),
        natten.na1d_qk(query, key, 3, 2, key[:, :, :4]),
    )


@pytest.mark.parametrize("is_causal", (False, (True, False)))
def test_blocks_of_rows_make_no_difference(monkeypatch, is_causal):
    torch.manual_seed(0)
    inputs = [torch.randn(2, 3, 7, 6, 4, dtype=torch.float64, requires_grad=True) for _ in "qkv"]

    def results():
        query, key, value = inputs
        scores = natten.na2d_qk(query, key, (3, 5), (2, 1), is_causal=is_causal)
        out = natten.na2d_av(scores.softmax(-1), value, (3, 5), (2, 1), is_causal=is_causal)
        return scores, out, *torch.autograd.grad(out.square().sum(), inputs)

    whole = results()
    monkeypatch.setattr(taps, "_BLOCK_BYTES", inputs[0].nbytes // 3)  # 2, 2, 2 rows and 1
    torch.testing.assert_close(results(), whole)


def test_stride_of_one_changes_nothing():
    """which NATTEN 0.20 and later has"""
    m = maps(1, 8, 9, 2, 4)
    torch.testing.assert_close(natten.na2d(*m, 3, stride=1, dilation=2), natten.na2d(*m, 3, 2))
    layer = natten.NeighborhoodAttention2D(8, 2, 3, stride=(1, 1), dilation=2)
    assert layer.dilation == (2, 2)


def test_dilation_of_none_is_one():
    query, key, value = maps(1, 6, 5, 2, 4)
    expected = natten.na2d(query, key, value, 3)
    assert torch.equal(natten.na2d(query, key, value, 3, None), expected)
    assert natten.NeighborhoodAttention2D(8, 2, 3, None).dilation == (1, 1)


@pytest.mark.parametrize("split", (True, False), ids=("split", "fused"))
def test_operations_are_counted_as_fvcore_does(split):
    class Counter:
        def set_op_handle(self, *pairs):
            self.handles = dict(zip(pairs[::2], pairs[1::2], strict=True))
            return self

    def attend(query, key, value):
        if not split:
            return natten.na2d(query, key, value, (3, 5))
        scores = natten.na2d_qk(query, key, (3, 5))
        return natten.na2d_av(scores, value, (3, 5))

    tensors = [torch.randn(2, 6, 7, 5, 4) for _ in range(3)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        graph = torch.jit.trace(attend, tensors, check_trace=False).graph
    counter = natten_settings.add_natten_handle(Counter())
    counted = 0
    for node in graph.nodes():
        kind = node.kind()
        name = f"{kind}.{node.pyname()}" if kind == "prim::PythonOp" else kind
        if name in counter.handles:
            counted += counter.handles[name](list(node.inputs()), list(node.outputs()))
    assert counted == 2 * tensors[0].numel() * 15


# Layers


@pytest.mark.parametrize("is_causal, rel_pos_bias", [(False, True), (False, False), (True, False)])
@pytest.mark.parametrize("dims", (1, 2))
def test_layers(dims, is_causal, rel_pos_bias):
    torch.manual_seed(0)
    kind = natten.NeighborhoodAttention1D if dims == 1 else natten.NeighborhoodAttention2D
    layer = kind(8, 2, 3, 2, is_causal, rel_pos_bias, attn_drop=1e-12)
    names = {"qkv.weight", "qkv.bias", "proj.weight", "proj.bias", *["rpb"] * rel_pos_bias}
    assert set(layer.state_dict()) == names
    x = torch.randn(2, *(7, 8)[-dims:], 8)
    eval_out = layer.eval()(x)
    # in training the weights are there, to be dropped
    torch.testing.assert_close(layer.train()(x), eval_out, rtol=1e-4, atol=1e-5)
    fused = natten.na1d if dims == 1 else natten.na2d
    qkv = layer.qkv(x).view(*x.shape[:-1], 3, 2, 4)
    attended = fused(*qkv.unbind(-3), 3, 2, is_causal, layer.rpb)
    torch.testing.assert_close(eval_out, layer.proj(attended.flatten(-2)))


@pytest.mark.parametrize("causal", [False, True])
def test_a_layer_that_drops_weights_is_one_graph(causal):
    torch.manual_seed(0)
    layer = natten.NeighborhoodAttention2D(8, 2, 3, is_causal=causal, attn_drop=0.5)
    x = torch.randn(1, 5, 6, 8, requires_grad=True)
    results = []
    for run in (layer, torch.compile(layer, fullgraph=True, backend="aot_eager")):
        torch.manual_seed(1)
        out = run(x)
        results.append((out, *torch.autograd.grad(out.square().sum(), (x, *layer.parameters()))))
    torch.testing.assert_close(*results)


class InTwoSteps(torch.nn.Module):
    """Scores and weighted values of a map to itself, by the split functions."""

    def forward(self, x, rpb):
        (x,) = heads_first(x)
        return natten.natten2dav(natten.natten2dqkrpb(x, x, rpb, 3).softmax(-1), x, 3)


SIZES = ((2, 6, 7), (3, 6, 7), (3, 9, 5))  # batch, height, width: the first changes, then others


def test_one_graph_of_the_split_functions_serves_all_sizes():
    torch.compiler.reset()
    module, rpb = InTwoSteps(), torch.randn(2, 5, 5)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for size in SIZES:
        x = torch.randn(*size, 2, 4)
        torch.testing.assert_close(compiled(x, rpb), module(x, rpb))


def test_one_program_of_the_split_functions_serves_all_batches():
    module, rpb = InTwoSteps(), torch.randn(2, 5, 5)
    batch = {0: torch.export.Dim.DYNAMIC}
    program = torch.export.export(
        module, (torch.randn(2, 6, 7, 2, 4), rpb), dynamic_shapes=(batch, None)
    )
    x = torch.randn(5, 6, 7, 2, 4)
    torch.testing.assert_close(program.module()(x, rpb), module(x, rpb))


def test_one_graph_of_a_layer_that_drops_weights_serves_all_sizes():
    torch.compiler.reset()
    layer = natten.NeighborhoodAttention2D(8, 2, 3, attn_drop=0.5)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for size in SIZES:
        assert compiled(torch.randn(*size, 8)).shape == (*size, 8)


# Bad input

REFUSED = {
    "window larger than the map": (
        lambda m: natten.na2d(*m, 3, 4),
        ValueError,
        r"kernel_size \* dilation must be at most the extent .* got 3 \* 4 for 8",
    ),
    "split": (
        lambda m: natten.natten2dqkrpb(*heads_first(*m[:2]), None, 9, 1),
        ValueError,
        r"got 9 \* 1 for 8",
    ),
    "causal with a bias": (
        lambda m: natten.na2d(*m, 3, is_causal=True, rpb=torch.zeros(2, 5, 5)),
        NotImplementedError,
        "rpb must be None for causal windows",
    ),
    "layer, causal with a bias": (
        lambda m: natten.NeighborhoodAttention2D(8, 2, 3, is_causal=True, rel_pos_bias=True),
        NotImplementedError,
        "rpb must be None for causal windows",
    ),
    "kernel_size": (
        lambda m: natten.na2d(*m, (3, 3, 3)),
        ValueError,
        r"kernel_size must be an int of at least 1, or 2 of them, got \(3, 3, 3\)",
    ),
    "is_causal": (
        lambda m: natten.na2d(*m, 3, is_causal=(True,)),
        ValueError,
        r"is_causal must be a bool or 2 of them, got \(True,\)",
    ),
    "sequence for a map": (
        lambda m: natten.na2d(*(t[:, 0] for t in m), 3),
        ValueError,
        r"query must be \(batch, height, width, heads, head_dim\), got shape",
    ),
    "rpb": (
        lambda m: natten.natten2dqkrpb(*heads_first(*m[:2]), torch.zeros(2, 3, 3), 3, 1),
        ValueError,
        r"rpb must be \(heads, 2 \* kernel_h - 1, .*\) = \(2, 5, 5\), got \(2, 3, 3\)",
    ),
    "rpb of one head": (
        lambda m: natten.na2d_qk(*heads_first(*m[:2]), 3, rpb=torch.zeros(1, 5, 5)),
        ValueError,
        r"rpb must be .* = \(2, 5, 5\), got \(1, 5, 5\)",
    ),
    "fused, rpb": (
        lambda m: natten.na2d(*m, 3, rpb=torch.zeros(2, 9)),
        ValueError,
        r"rpb must be .* = \(2, 5, 5\), got \(2, 9\)",
    ),
    "no rpb": (lambda m: natten.na2d(*m, 3, rpb=1), TypeError, "rpb must be a tensor or None, got"),
    "additional_keys of one head": (
        lambda m: natten.na2d(*m, 3, additional_keys=m[0][:, 0, :, :1], additional_values=m[0]),
        ValueError,
        r"additional_keys must be \(batch, .*\) with batch 1, heads 2, .* \(1, 9, 1, 4\)",
    ),
    "additional_keys of another dtype": (
        lambda m: natten.na2d(
            *m, 3, additional_keys=m[0][:, 0].float(), additional_values=m[0][:, 0]
        ),
        TypeError,
        "additional_keys must have the dtype of query: got torch.float32 beside torch.float64",
    ),
    "additional_values of bools": (
        lambda m: natten.na2d(*m, 3, additional_keys=m[0][:, 0], additional_values=m[0][:, 0] > 0),
        TypeError,
        "additional_values must be float32, bfloat16, float16 or float64, got torch.bool",
    ),
    "split, additional_keys of another dtype": (
        lambda m: natten.na2d_qk(
            *heads_first(*m[:2]), 3, additional_keys=m[0].transpose(1, 3)[..., 0, :].half()
        ),
        TypeError,
        "additional_keys must have the dtype of query: got torch.float16 beside torch.float64",
    ),
    "additional_keys elsewhere": (
        lambda m: natten.na2d(
            *m, 3, additional_keys=m[0][:, 0].to("meta"), additional_values=m[0][:, 0]
        ),
        ValueError,
        "additional_keys must be on the device of query: got meta beside cpu",
    ),
    "rpb elsewhere": (
        lambda m: natten.na2d(*m, 3, rpb=torch.zeros(2, 5, 5, device="meta")),
        ValueError,
        "rpb must be on the device of query: got meta beside cpu",
    ),
    "split, value elsewhere": (
        lambda m: natten.na2d_av(
            torch.zeros(1, 2, 8, 9, 9).double(), *heads_first(m[2].to("meta")), 3
        ),
        ValueError,
        "attn must be on the device of value: got cpu beside meta",
    ),
    "nested": (
        lambda m: natten.na1d(
            torch.nested.as_nested_tensor(list(m[0][0]), layout=torch.jagged), *m[1:], 3
        ),
        TypeError,
        "query must be a dense tensor, got a nested one",
    ),
    "additional_values for other keys": (
        lambda m: natten.na2d(*m, 3, additional_keys=m[0][:, 0], additional_values=m[0][:, 0, :1]),
        ValueError,
        r"additional_values must be .* with batch 1, heads 2, head_dim 4, tokens 9, got shape",
    ),
    "split, additional_keys": (
        lambda m: natten.na2d_qk(*heads_first(*m[:2]), 3, additional_keys=m[0][:, 0]),
        ValueError,
        r"additional_keys must be \(batch, heads, tokens, head_dim\) with .* heads 2",
    ),
    "split, additional_values": (
        lambda m: natten.na2d_av(
            torch.zeros(1, 2, 8, 9, 10), *heads_first(m[2]), 3, additional_values=m[0][:, 0]
        ),
        ValueError,
        r"additional_values must be \(batch, heads, tokens, head_dim\) with .* heads 2",
    ),
    "stride": (
        lambda m: natten.na2d(*m, 3, stride=(1, 2)),
        ValueError,
        r"stride must be 1, as strides above 1 are not computed here; got \(1, 2\)",
    ),
    "stride of no size": (
        lambda m: natten.na1d(*(t[:, 0] for t in m), 3, stride=0),
        ValueError,
        "stride must be an int of at least 1, or 1 of them, got 0",
    ),
    "layer, stride": (
        lambda m: natten.NeighborhoodAttention2D(8, 2, 3, stride=2),
        ValueError,
        "stride must be 1, as strides above 1 are not computed here; got 2",
    ),
    "of NATTEN 0.20": (
        lambda m: natten.na2d(*m, 3, backend="cutlass-fna", q_tile_shape=(8, 8)),
        TypeError,
        "arguments must be among query, key, value, kernel_size, dilation, .*, stride, as in "
        "NATTEN 0.17.5; got backend, q_tile_shape, of NATTEN 0.20 and later",
    ),
    "layer, of NATTEN 0.20.1": (
        lambda m: natten.NeighborhoodAttention1D(embed_dim=8, num_heads=2, kernel_size=3),
        TypeError,
        "arguments must be among dim, num_heads, .*, as in NATTEN 0.17.5; got embed_dim, of NATTEN",
    ),
    "stride and dilation in the places of NATTEN 0.20": (
        lambda m: natten.na2d(*m, 3, 1, 2),
        ValueError,
        "is_causal must be a bool or 2 of them, got 2",
    ),
    "unknown": (
        lambda m: natten.na2d(*m, 3, bias=None),
        TypeError,
        "unexpected keyword argument 'bias'",
    ),
    "scale of each head": (
        lambda m: natten.na2d(*m, 3, scale=torch.ones(2)),
        TypeError,
        "scale must be a number or None, got Tensor",
    ),
    "is_causal of another type": (
        lambda m: natten.na2d(*m, 3, is_causal=1),
        ValueError,
        "is_causal must be a bool or 2 of them, got 1",
    ),
    "no query": (lambda m: natten.na2d(None, *m[1:], 3), TypeError, "query must be a tensor"),
    "no key": (lambda m: natten.na2d(m[0], None, m[2], 3), TypeError, "key must be a tensor, got"),
    "split, no key": (
        lambda m: natten.na2d_qk(*heads_first(m[0]), None, 3),
        TypeError,
        "key must be a tensor, got NoneType",
    ),
    "no attn": (
        lambda m: natten.na2d_av(None, *heads_first(m[2]), 3),
        TypeError,
        "attn must be a tensor, got NoneType",
    ),
    "key of another dtype": (
        lambda m: natten.na2d_qk(*heads_first(m[0], m[1].float()), 3),
        TypeError,
        "key must have the dtype of query: got torch.float32 beside torch.float64",
    ),
    "attn of another dtype": (
        lambda m: natten.na2d_av(torch.zeros(1, 2, 8, 9, 9), *heads_first(m[2]), 3),
        TypeError,
        "attn must have the dtype of value: got torch.float32 beside torch.float64",
    ),
    "integers": (
        lambda m: natten.na2d_qk(*heads_first(m[0].int(), m[1].int()), 3),
        TypeError,
        "query must be float32, bfloat16, float16 or float64, got torch.int32",
    ),
    "rpb of integers": (
        lambda m: natten.na2d_qk(*heads_first(*m[:2]), 3, rpb=torch.zeros(2, 5, 5).int()),
        TypeError,
        "rpb must be float32, bfloat16, float16 or float64, got torch.int32",
    ),
    "layer, scale": (
        lambda m: natten.NeighborhoodAttention2D(8, 2, 3, qk_scale="a"),
        TypeError,
        "qk_scale must be a number or None, got str",
    ),
    "layer, no heads": (
        lambda m: natten.NeighborhoodAttention2D(8, 0, 3),
        ValueError,
        "num_heads must be at least 1, got 0",
    ),
    "attn": (
        lambda m: natten.natten2dav(torch.zeros(1, 2, 8, 9, 4), *heads_first(m[2]), 3, 1),
        ValueError,
        r"attn must be \(1, 2, 8, 9, 9\), got shape \(1, 2, 8, 9, 4\)",
    ),
    "one of two": (
        lambda m: natten.na2d(*m, 3, additional_keys=m[0]),
        ValueError,
        "additional_keys and additional_values must both be given",
    ),
    "layer, dim": (
        lambda m: natten.NeighborhoodAttention2D(9, 2, 3),
        ValueError,
        "dim must be a multiple of num_heads, got 9 and 2 heads",
    ),
    "layer, sequence": (
        lambda m: natten.NeighborhoodAttention2D(8, 2, 3)(torch.zeros(1, 9, 8)),
        ValueError,
        r"x must have 4 dimensions, got shape \(1, 9, 8\)",
    ),
    "key of another shape": (
        lambda m: natten.natten2dqk(*heads_first(m[0], m[1][..., :1, :]), 3, 1),
        ValueError,
        "key must have the shape of query",
    ),
    "heads last in a split function": (
        lambda m: natten.natten2dqk(m[0][0], m[1][0], 3, 1),
        ValueError,
        r"query must be \(batch, heads, height, width, head_dim\), got shape \(8, 9, 2, 4\)",
    ),
}


@pytest.mark.parametrize("act, kind, message", REFUSED.values(), ids=REFUSED)
def test_refused(act, kind, message):
    with pytest.raises(kind, match=message):
        act(maps(1, 8, 9, 2, 4))


# Installing


def python(code):
    root = Path(__file__).parents[2]
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root)


def test_install_lets_natten_be_found():
    done = python(
        """
import importlib.metadata, importlib.util, sys, sdwa
assert "natten" not in sys.modules
package = sdwa.natten.install()
assert sdwa.natten.install() is package
assert importlib.util.find_spec("natten") is not None
import natten
from natten.functional import natten2dav, natten2dqkrpb
from natten import NeighborhoodAttention2D, na2d
assert natten is package and na2d is sdwa.natten.na2d and natten2dav is sdwa.natten.natten2dav
from natten.na2d import NeighborhoodAttention2D as again
from natten.flops import add_natten_handle
assert again is NeighborhoodAttention2D is sdwa.natten.NeighborhoodAttention2D
# as models choose between versions and kernels
assert natten.context.has_fused_na is natten.has_fused_na and natten.has_fused_na(0) is True
natten.use_fused_na(False, kv_parallel=False)
natten.use_autotuner(True)
assert natten.is_fused_na_enabled() is True and natten.is_autotuner_enabled() is False
assert importlib.metadata.version("natten") == natten.__version__
assert importlib.metadata.version("torch")
print(natten.__version__)
"""
    )
    assert (done.stdout, done.stderr) == ("0.17.5\n", "")


def test_install_from_many_threads_makes_one_module():
    done = python(
        """
import sys, threading, sdwa
sys.setswitchinterval(1e-6)
made, start = [], threading.Barrier(8)

def install():
    start.wait()
    made.append(sdwa.natten.install())

threads = [threading.Thread(target=install) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(len(made), len(set(map(id, made))), sum("natten" in repr(f) for f in sys.meta_path))
"""
    )
    assert (done.stdout, done.stderr) == ("8 1 1\n", "")


def test_install_refuses_to_replace_what_is_in_use():
    done = python(
        """
import sys, types, sdwa
sys.modules["natten"] = types.ModuleType("natten")
try:
    sdwa.natten.install()
except RuntimeError as error:
    print(error)
"""
    )
    assert done.stdout.startswith("natten is imported already, from somewhere else: call")


def test_split_functions_are_traced():
    """With the check of `torch.jit.trace`, which compares the texts of two graphs."""

    def attend(query, key, value):
        return natten.na2d_av(natten.na2d_qk(query, key, 3).softmax(-1), value, 3)

    tensors = [torch.randn(1, 2, 7, 7, 4) for _ in range(3)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        traced = torch.jit.trace(attend, tensors)
    torch.testing.assert_close(traced(*tensors), attend(*tensors))
