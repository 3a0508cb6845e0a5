"""The cross-fusion layer against the paper's equations, written out."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sdwa.modules
from cfmrfn.models.fusion import (
    FusionLayer,
    GlobalAttention,
    StreamAttention,
    StreamBlock,
    TokenMixing,
    window_mask,
)

DIM, HEADS = 24, 4
DILATION = (1, 1, 2, 3)
ATTENTION = {
    "dilated": partial(StreamAttention, dilation=DILATION, q_proj=False),
    "masked": partial(StreamAttention, dilation=DILATION, padding_mode="masked", q_proj=False),
    "window": partial(StreamAttention, dilation=(1,) * HEADS, q_proj=False),
    "global": partial(GlobalAttention, q_proj=False),
}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def maps(count=2, batch=2, height=5, width=4):
    return [torch.randn(batch, height, width, DIM) for _ in range(count)]


def make_layer(streams=2, kind="dilated", grid=(5, 4), pre_norm=True, **options):
    blocks = [
        StreamBlock(DIM, 2.0, ATTENTION[kind](DIM, HEADS), pre_norm=pre_norm)
        for _ in range(streams)
    ]
    layer = FusionLayer(blocks, mixing_grid=grid, **options)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.normal_(std=0.3)
    return layer


def attend(attention, tokens, query):
    """Eqs. 8-13 tap by tap: zero key and value off the map."""
    key, value = F.linear(tokens, attention.kv.weight, attention.kv.bias).chunk(2, -1)
    batch, height, width, _ = tokens.shape
    head_dim = DIM // HEADS
    out = torch.zeros_like(tokens)
    for head, step in enumerate(DILATION):
        part = slice(head * head_dim, (head + 1) * head_dim)
        for row in range(height):
            for column in range(width):
                keys, values = [], []
                for dy in (-step, 0, step):
                    for dx in (-step, 0, step):
                        y, x = row + dy, column + dx
                        inside = 0 <= y < height and 0 <= x < width
                        zero = torch.zeros(batch, head_dim)
                        keys.append(key[:, y, x, part] if inside else zero)
                        values.append(value[:, y, x, part] if inside else zero)
                scores = torch.stack([(query[:, row, column, part] * k).sum(-1) for k in keys], -1)
                weights = (scores / head_dim**0.5).softmax(-1)
                pixel = sum(weights[:, tap, None] * values[tap] for tap in range(9))
                out[:, row, column, part] = pixel
    return F.linear(out, attention.proj.weight, attention.proj.bias)


def block_by_hand(block, tokens, query):
    """Eqs. 14 and 15, with layer norm before attention."""
    x = block.attention
    tokens = tokens + attend(x, block.norm1(tokens), block.norm1(query))
    hidden = F.gelu(F.linear(block.norm2(tokens), block.mlp.fc1.weight, block.mlp.fc1.bias))
    return tokens + F.linear(hidden, block.mlp.fc2.weight, block.mlp.fc2.bias)


@pytest.mark.parametrize("cross", [True, False])
def test_layer_against_the_equations(cross):
    image, landmark = maps()
    layer = make_layer(cross_fusion=cross)
    expected = [
        block_by_hand(layer.blocks[0], image, landmark if cross else image),
        block_by_hand(layer.blocks[1], landmark, image if cross else landmark),
    ]
    if cross:  # a convolution whose channels are the tokens of both streams
        tokens = torch.cat([t.flatten(1, 2) for t in expected], 1)
        (mixing,) = layer.mixing
        mixed = F.conv1d(tokens, mixing.weight[..., None], mixing.bias).chunk(2, 1)
        expected = [t.unflatten(1, (5, 4)) for t in mixed]
    else:
        expected = [
            F.conv1d(t.flatten(1, 2), m.weight[..., None], m.bias).unflatten(1, (5, 4))
            for t, m in zip(expected, layer.mixing, strict=True)
        ]
    for ours, theirs in zip(layer([image, landmark]), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_query_projection():
    image, landmark = maps()
    projected = StreamAttention(DIM, HEADS, dilation=DILATION)
    plain = ATTENTION["dilated"](DIM, HEADS)
    plain.load_state_dict(projected.state_dict(), strict=False)
    query = F.linear(landmark, projected.q.weight, projected.q.bias)
    torch.testing.assert_close(projected(landmark, image), plain(query, image))


def test_streams_without_cross_fusion_share_nothing():
    image, landmark = maps()
    layer = make_layer(cross_fusion=False)
    landmark.requires_grad_()
    out = layer([image, landmark])[0]
    assert not out.requires_grad or torch.autograd.grad(out.sum(), landmark, allow_unused=True) == (
        None,
    )


def test_one_stream_queries_itself():
    (image,) = maps(1)
    layer = make_layer(streams=1, grid=None)
    expected = layer.blocks[0](image, image)
    assert torch.equal(layer([image])[0], expected)


def test_without_norm_before_attention():
    image, landmark = maps()
    layer = make_layer(pre_norm=False, grid=None)
    attended = image + layer.blocks[0].attention(landmark, image)
    expected = attended + layer.blocks[0].mlp(layer.blocks[0].norm2(attended))
    torch.testing.assert_close(layer([image, landmark])[0], expected)


@pytest.mark.parametrize("kind", ATTENTION)
def test_attention_map_times_values_is_the_attention(kind):
    image, landmark = maps()
    attention = ATTENTION[kind](DIM, HEADS)
    attention.proj = nn.Identity()
    _, value = attention.kv(image).chunk(2, -1)
    probabilities = attention.attention_map(landmark, image)
    assert probabilities.shape == (2, HEADS, 20, 20)
    out = probabilities @ value.view(2, 20, HEADS, -1).transpose(1, 2)
    out = out.transpose(1, 2).reshape(2, 5, 4, DIM)
    torch.testing.assert_close(out, attention(landmark, image), rtol=1e-4, atol=1e-5)
    sums = probabilities.sum(-1)
    if kind in ("masked", "global"):
        torch.testing.assert_close(sums, torch.ones_like(sums))
    else:
        corner, middle = sums[:, 0, 0], sums[:, 0, 2 * 4 + 1]  # head 0 has dilation 1
        assert (corner < 0.999).all()
        torch.testing.assert_close(middle, torch.ones_like(middle))


def test_window_mask_by_hand():
    mask = window_mask(3, 4, (3, 3), ((1, 1), (2, 2)))
    assert mask.shape == (2, 12, 12)
    assert mask[0, 0].nonzero().flatten().tolist() == [0, 1, 4, 5]
    assert mask[0, 5].nonzero().flatten().tolist() == [0, 1, 2, 4, 5, 6, 8, 9, 10]
    assert mask[1, 0].nonzero().flatten().tolist() == [0, 2, 8, 10]


@pytest.mark.parametrize("kind", ["dilated", "global"])
def test_one_call_a_stream_with_key_and_value_in_place(monkeypatch, kind):
    name = (
        "sliding_dilated_window_attention" if kind == "dilated" else "scaled_dot_product_attention"
    )
    owner = sdwa.modules if kind == "dilated" else F
    original, calls = getattr(owner, name), []

    def spy(query, key, value, *args, **kwargs):
        calls.append((key, value))
        return original(query, key, value, *args, **kwargs)

    monkeypatch.setattr(owner, name, spy)
    make_layer(kind=kind)(maps())
    assert len(calls) == 2
    for key, value in calls:
        assert key.untyped_storage().data_ptr() == value.untyped_storage().data_ptr()


# Token mixing


def test_mixing_starts_as_the_identity():
    streams = maps()
    for ours, theirs in zip(TokenMixing(2, (5, 4))(streams), streams, strict=True):
        assert torch.equal(ours, theirs)


def test_mixing_on_another_map_keeps_what_the_identity_keeps():
    mixing = TokenMixing(2, (3, 3))
    streams = maps()
    for ours, theirs in zip(mixing(streams), streams, strict=True):
        torch.testing.assert_close(ours, theirs)
    nn.init.constant_(mixing.bias, 0.5)
    for ours, theirs in zip(mixing(streams), streams, strict=True):
        torch.testing.assert_close(ours, theirs + 0.5)


def test_mixing_on_another_map_carries_one_stream_into_the_other():
    """A matrix that adds the second stream's mean to the first does so on any map."""
    mixing = TokenMixing(2, (4, 4))
    with torch.no_grad():
        mixing.weight[:16, 16:] += 1 / 16
    image, landmark = torch.zeros(1, 8, 8, DIM), torch.randn(1, 8, 8, DIM)
    mixed_image, mixed_landmark = mixing([image, landmark])
    mean = landmark.mean((1, 2), keepdim=True)
    torch.testing.assert_close(mixed_image, mean.expand_as(image), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mixed_landmark, landmark)
