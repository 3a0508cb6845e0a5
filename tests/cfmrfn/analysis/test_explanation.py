"""What a network looks at: maps against plain loops, and against the network's own gradients."""

import numpy as np
import pytest
import timm
import torch

from cfmrfn.analysis import explanation
from cfmrfn.analysis.explanation import NOT_REACHED, HeadGroup

pytestmark = pytest.mark.usefixtures("one_thread")

NETWORKS = {
    "plain": {},
    "one layer": {"depth": 1},
    "three layers": {"depth": 3},
    "global": {"attention": "global"},
    "window": {"attention": "window"},
    "masked": {"padding_mode": "masked"},
    "expression alone": {"streams": "expression"},
    "landmark alone": {"streams": "landmark"},
    "pieces of channels": {"tokens": "poster_view"},
    "apart": {"cross_fusion": False},
    "unmixed": {"token_mixing": False},
    "apart and unmixed": {"cross_fusion": False, "token_mixing": False},
    "dilations in no order": {"head_dilations": (3, 1, 1, 2, 1, 3, 2, 2)},
}
SIZES = [(96, 64), (32, 32), (64, 160)]


def make_tiny(**options):
    torch.manual_seed(0)
    network = timm.create_model("cfmrfn_tiny", **{"img_size": (96, 64), **options}).eval()
    for name, parameter in network.named_parameters():
        if "mixing" in name:  # the identity until it is trained
            torch.nn.init.normal_(parameter)
    return network


def describe(network, size, batch=2):
    grid = (size[0] // 32, size[1] // 32)
    return network.describe(torch.randn(batch, 3, *size)), grid


# Groups of heads and what they can see


def test_groups_are_the_heads_of_a_dilation():
    assert explanation.head_groups(make_tiny()) == [
        HeadGroup(1, (0, 1)),
        HeadGroup(2, (2, 3, 4)),
        HeadGroup(3, (5, 6, 7)),
    ]
    assert explanation.head_groups(make_tiny(head_dilations=(3, 1, 1, 2, 1, 3, 2, 2))) == [
        HeadGroup(1, (1, 2, 4)),
        HeadGroup(2, (3, 6, 7)),
        HeadGroup(3, (0, 5)),
    ]
    everywhere = [HeadGroup(None, tuple(range(8)))]
    assert explanation.head_groups(make_tiny(attention="global")) == everywhere
    assert explanation.head_groups(make_tiny(attention="window")) == [HeadGroup(1, tuple(range(8)))]
    assert [HeadGroup(r, (0,)).span for r in (1, 2, 3, None)] == [3, 5, 7, None]


def field_by_loops(dilations, rows, columns, depth):
    """Layers until each place is seen, by walking from place to place."""
    field = np.full((rows * columns, rows * columns), NOT_REACHED)
    for start in range(rows * columns):
        field[start, start] = 0
        for layer in range(1, depth + 1):
            for place in np.flatnonzero((field[start] >= 0) & (field[start] < layer)):
                row, column = divmod(place, columns)
                for dilation in dilations:
                    for down in (-dilation, 0, dilation):
                        for right in (-dilation, 0, dilation):
                            r, c = row + down, column + right
                            inside = 0 <= r < rows and 0 <= c < columns
                            if inside and field[start, r * columns + c] == NOT_REACHED:
                                field[start, r * columns + c] = layer
    return field


@pytest.mark.parametrize("grid", [(1, 1), (7, 7), (3, 5), (1, 9)])
@pytest.mark.parametrize("dilations", [(1,), (2,), (3,), (1, 2, 3), (9,)])
@pytest.mark.parametrize("depth", [1, 2, 6])
def test_receptive_fields_are_walks_over_the_map(grid, dilations, depth):
    groups = [HeadGroup(dilation, (n,)) for n, dilation in enumerate(dilations)]
    field = explanation.receptive_field(groups, grid, depth)
    assert np.array_equal(field.numpy(), field_by_loops(dilations, *grid, depth))


def test_global_attention_sees_all_at_once():
    field = explanation.receptive_field([HeadGroup(None, (0,))], (2, 3), 4)
    assert torch.equal(field, 1 - torch.eye(6, dtype=torch.int64))


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"head_dilations": (2,) * 8},
        {"attention": "window"},
        {"attention": "global"},
        {"cross_fusion": False},
        {"streams": "expression"},
    ],
)
def test_a_token_depends_on_its_receptive_field_and_on_nothing_else(options, depth):
    """By the gradient of the encoder; without token mixing, which is left out of the field."""
    network = make_tiny(depth=depth, token_mixing=False, **options)
    rows, columns = 5, 4
    field = explanation.receptive_field(explanation.head_groups(network), (rows, columns), depth)
    count = 1 if "streams" in options else 2
    for query in (0, 9, 19):
        entering = [torch.randn(1, rows, columns, 96, requires_grad=True) for _ in range(count)]
        streams = entering
        for layer in network.layers:
            streams = layer(streams)
        streams[0][0].flatten(0, 1)[query].square().sum().backward()
        gradients = [e.grad[0].abs().sum(-1).flatten() for e in entering if e.grad is not None]
        assert torch.equal(sum(gradients) > 0, field[query] != NOT_REACHED)


# Attention by place


def test_attention_of_one_token_is_its_row():
    attention = torch.rand(2, 8, 6, 6)
    places = explanation.attention_by_place(attention, (2, 3), (1, 0))
    assert torch.equal(places, attention[:, :, 3].view(2, 8, 2, 3))


@pytest.mark.parametrize("kind", ["dilated", "window", "global"])
def test_attention_spread_evenly_is_a_flat_map(kind):
    """Also at the border, which is in fewer windows."""
    network = make_tiny(depth=1, attention=kind)
    for block in network.layers[0].blocks:
        torch.nn.init.zeros_(block.attention.kv.weight)
        torch.nn.init.zeros_(block.attention.kv.bias)
    seen, grid = describe(network, (128, 160), batch=1)
    places = explanation.attention_by_place(seen.attention, grid)
    even = 1 / 20 if kind == "global" else 1 / 9
    torch.testing.assert_close(places, torch.full((1, 1, 2, 8, 4, 5), even))


# Rollout


def rollout_by_loops(network, attention, grid):
    """Shares of the entering tokens in each token, one image: attention (depth, streams, ...)."""
    depth, streams, heads, tokens, _ = attention.shape
    made_of = np.eye(streams * tokens)
    for layer in range(depth):
        attended = np.empty_like(made_of)
        for stream in range(streams):
            for i in range(tokens):
                row, total = made_of[stream * tokens + i].copy(), 1.0
                for j in range(tokens):
                    weight = sum(attention[layer, stream, h, i, j] for h in range(heads)) / heads
                    row += weight * made_of[stream * tokens + j]
                    total += weight
                attended[stream * tokens + i] = row / total
        made_of, first = attended, 0
        for mixing in network.layers[layer].mixing:
            weight = np.abs(mixing.weights_for(grid)[0].detach().double().numpy())
            count = len(weight)
            mixed = np.zeros((count, streams * tokens))
            for i in range(count):
                for j in range(count):
                    mixed[i] += weight[i, j] / weight[i].sum() * attended[first + j]
            made_of = np.concatenate([made_of[:first], mixed, made_of[first + count :]])
            first += count
    return made_of


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("options", NETWORKS.values(), ids=NETWORKS)
def test_rollout_is_the_product_of_the_layers(options, size):
    network = make_tiny(**options)
    seen, grid = describe(network, size)
    rollout = explanation.attention_rollout(network, seen.attention, grid)
    for image, attention in zip(rollout, seen.attention.double().numpy(), strict=True):
        expected = rollout_by_loops(network, attention, grid)
        np.testing.assert_allclose(image.numpy(), expected, rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(rollout.sum(-1), torch.ones(rollout.shape[:2]))
    places = explanation.rollout_by_place(rollout, grid)
    streams, tokens = seen.attention.shape[2], grid[0] * grid[1]
    assert places.shape == (2, tokens, streams, *grid)
    for token in range(tokens):
        own = [rollout[:, stream * tokens + token] for stream in range(streams)]
        of_place = (sum(own) / streams).reshape(2, streams, *grid)
        torch.testing.assert_close(places[:, token], of_place)


def test_where_nothing_is_padded_rollout_is_the_papers():
    """Abnar and Zuidema 2020: the product of 0.5 A + 0.5 I, for each stream."""
    network = make_tiny(attention="global", token_mixing=False)
    seen, grid = describe(network, (96, 64), batch=1)
    for stream in range(2):
        expected = torch.eye(6)
        for layer in range(2):
            mean = seen.attention[0, layer, stream].mean(0)
            expected = (0.5 * mean + 0.5 * torch.eye(6)) @ expected
        rollout = explanation.attention_rollout(network, seen.attention, grid)[0]
        own = rollout.unflatten(0, (2, 6)).unflatten(2, (2, 6))[stream]
        torch.testing.assert_close(own[:, stream], expected)
        assert not own[:, 1 - stream].any()  # the other stream gives no content


def test_weight_on_padding_is_no_source():
    """One token at 32 x 32 pixels: all taps but its own are padding, and it is made of itself."""
    network = make_tiny(token_mixing=False)
    seen, grid = describe(network, (32, 32))
    assert (seen.attention.sum(-1) < 0.9).any()
    rollout = explanation.attention_rollout(network, seen.attention, grid)
    torch.testing.assert_close(rollout, torch.eye(2).expand(2, 2, 2))


@pytest.mark.parametrize("depth", [1, 2])
def test_rollout_stays_within_the_receptive_field(depth):
    network = make_tiny(depth=depth, token_mixing=False)
    seen, grid = describe(network, (224, 192), batch=1)
    rollout = explanation.attention_rollout(network, seen.attention, grid)
    places = explanation.rollout_by_place(rollout, grid)[0].sum(1).flatten(1)
    field = explanation.receptive_field(explanation.head_groups(network), grid, depth)
    assert torch.equal(places > 0, field != NOT_REACHED)


# Evidence


@pytest.mark.parametrize("streams", ["both", "expression", "landmark"])
def test_evidence_of_all_places_and_the_biases_are_the_logit(streams):
    network = make_tiny(streams=streams)
    for parameter in network.norm.parameters():
        torch.nn.init.normal_(parameter)
    seen, _ = describe(network, (96, 64), batch=3)
    classes = torch.tensor([0, 4, 6])
    evidence = explanation.class_evidence(network, seen, classes)
    fused = sum(explanation.stream_tokens(seen).values())
    gate = network.gate(network.norm(fused).mean((1, 2)))
    biases = (network.head.weight[classes] * gate * network.norm.bias).sum(1)
    biases = biases + network.head.bias[classes]
    logits = sum(places.mean((1, 2)) for places in evidence.values()) + biases
    expected = seen.logits.gather(1, classes.unsqueeze(1)).squeeze(1)
    torch.testing.assert_close(logits, expected)
