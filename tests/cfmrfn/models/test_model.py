"""The network: its options, what timm's users expect of it, and what must never change."""

import json
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from timm.models import group_parameters
from timm.optim import create_optimizer_v2
from torch import nn

from cfmrfn import checkpoint
from cfmrfn.config import Config
from cfmrfn.models import CFMRFN, IRBackbone, MobileFaceNet
from cfmrfn.models.resizing import resize_maps

LAYOUTS = Path(__file__).parents[1] / "layouts"


def make_tiny(**options):
    torch.manual_seed(0)
    options = {"img_size": 224, "num_classes": 7, **options}
    return timm.create_model("cfmrfn_tiny", **options)


@pytest.fixture
def tiny():
    return make_tiny().eval()


@pytest.fixture
def images():
    return torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))


# timm


def test_presets_are_registered():
    presets = ["cfmrfn_base", "cfmrfn_equations", "cfmrfn_tiny"]
    assert timm.list_models("cfmrfn*") == presets
    for preset in presets:
        config = timm.get_pretrained_cfg(preset)
        # that of weights that come with the package is theirs
        assert config.file or config.input_size == (3, 224, 224)
        assert tuple(config.mean) == (0.485, 0.456, 0.406)
        assert tuple(config.std) == (0.229, 0.224, 0.225)


def test_data_config_of_timm():
    config = timm.data.resolve_model_data_config(timm.create_model("cfmrfn_equations", depth=1))
    assert config["input_size"] == (3, 224, 224)


@pytest.mark.parametrize("num_classes", [7, 8])
def test_logits(images, num_classes):
    model = make_tiny(num_classes=num_classes)
    assert model.num_classes == num_classes
    assert model(images).shape == (2, num_classes)


@pytest.mark.parametrize("gray", (False, True))
def test_pixels_as_integers_are_refused(gray):
    model = timm.create_model("cfmrfn_tiny", gray=gray)
    with pytest.raises(TypeError, match=r"x must be floats, normalised .*, got torch.uint8"):
        model(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))


def test_features_then_head_are_the_logits(tiny, images):
    features = tiny.forward_features(images)
    assert features.shape == (2, 7, 7, tiny.num_features)
    assert torch.equal(tiny.forward_head(features), tiny(images))
    pooled = tiny.forward_head(features, pre_logits=True)
    assert pooled.shape == (2, tiny.head_hidden_size)
    assert torch.equal(tiny.get_classifier()(pooled), tiny(images))


def test_reset_classifier(tiny, images):
    tiny.reset_classifier(3)
    assert tiny.num_classes == 3
    assert tiny(images).shape == (2, 3)
    for without in (tiny, make_tiny(num_classes=0).eval()):
        without.reset_classifier(0)
        pooled = without.forward_head(without.forward_features(images), pre_logits=True)
        assert torch.equal(without(images), pooled)


def test_options_and_methods_that_timms_users_know(images):
    model = make_tiny(drop_rate=0.5, global_pool="avg", depth=1).train()
    model.reset_classifier(3, "avg")
    assert model(images).shape == (2, 3)
    head = partial(model.forward_head, torch.randn(2, 7, 7, model.num_features))
    assert not torch.equal(head(), head())
    assert torch.equal(
        model.eval().forward_head(torch.ones(2, 7, 7, 96)),
        model.forward_head(torch.ones(2, 7, 7, 96)),
    )
    assert model.no_weight_decay() == {"position"}
    for wrong in (partial(model.reset_classifier, 3, "max"), partial(make_tiny, global_pool="max")):
        with pytest.raises(ValueError, match="global_pool must be one of avg; got 'max'"):
            wrong()
    with pytest.raises(ValueError, match="drop_rate must be 0 to 1, got 2"):
        make_tiny(drop_rate=2)


def test_layers_that_are_computed_again_give_the_same(images):
    model, results = make_tiny(drop_path_rate=0.5).train(), []
    for again in (False, True):
        model.set_grad_checkpointing(again)
        torch.manual_seed(1)
        out = model(images)
        parameters = [p for p in model.parameters() if p.requires_grad]
        results.append((out, *torch.autograd.grad(out.sum(), parameters, allow_unused=True)))
    for one, other in zip(*results, strict=True):
        assert one is other is None or torch.equal(one, other)


def test_one_image_is_no_batch(tiny, images):
    with pytest.raises(
        ValueError, match=r"x must be \(batch, 3, height, width\), got .*\(3, 224, 224"
    ):
        tiny(images[0])


# Backbones


@pytest.mark.parametrize(
    "make, layout",
    [
        (IRBackbone, "ir50-stages123"),
        (lambda: IRBackbone((64, 128, 256, 512), (3, 4, 14, 3)), "ir50-full"),
        (MobileFaceNet, "mobilefacenet-68"),
    ],
    ids=["ir50", "ir50-full", "mobilefacenet"],
)
def test_names_and_shapes_are_those_of_the_public_checkpoints(make, layout):
    with torch.device("meta"):
        own = {name: list(tensor.shape) for name, tensor in make().state_dict().items()}
    assert own == json.loads((LAYOUTS / f"{layout}.json").read_text())


def test_embedding_layer_is_stored_and_never_run(images):
    model = make_tiny(stored_embedding=True)
    names = {name for name, _ in model.named_parameters()}
    stored = {name for name in names if name.startswith("image_backbone.output_layer.")}
    assert len(stored) == 6
    model(images).sum().backward()
    without = {n for n, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert without == stored
    # DistributedDataParallel would wait for these gradients.
    assert set(model._ddp_params_and_buffers_to_ignore) == stored


def test_a_strided_block_is_the_public_one():
    """Sampling before the 1 x 1 convolution of the shortcut is a strided convolution."""
    block = IRBackbone((8, 16), (1, 1), embedding=False).body[1].eval()
    x = torch.randn(1, 8, 6, 6)
    conv, norm = block.shortcut_layer
    shortcut = norm(F.conv2d(x, conv.weight, stride=2))
    torch.testing.assert_close(block(x), block.res_layer(x) + shortcut)


def test_early_stride_keeps_the_map():
    x = torch.randn(1, 3, 112, 112)
    for early in (False, True):
        backbone = IRBackbone((8, 16, 24), (1, 2, 1), early_stride=early, embedding=False)
        assert backbone(x).shape == (1, 24, 14, 14)


def test_landmark_backbone_is_frozen(tiny, images):
    before = {name: t.clone() for name, t in tiny.landmark_backbone.state_dict().items()}
    tiny.train()
    assert tiny.training
    assert tiny.image_backbone.training
    assert not any(module.training for module in tiny.landmark_backbone.modules())
    tiny(images).sum().backward()
    assert all(p.grad is None for p in tiny.landmark_backbone.parameters())
    for name, tensor in tiny.landmark_backbone.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_landmark_features_can_be_computed_once(tiny, images):
    features = tiny.landmark_features(images)
    assert not features.requires_grad
    assert torch.equal(tiny(images, features), tiny(images))
    assert not torch.equal(tiny(images, features.flip(0)), tiny(images))


@pytest.mark.parametrize("preset", ["cfmrfn_tiny", "cfmrfn_base"])
def test_untrained_backbones_give_features_of_ordinary_size(images, preset):
    torch.manual_seed(0)
    model = timm.create_model(preset, depth=1).eval()
    with torch.inference_mode():
        for tokens in (
            model.landmark_features(images),
            model.image_backbone(images[..., ::2, ::2]),
        ):
            assert 0.1 < tokens.std() < 10
            assert tokens.std((2, 3)).mean() > 0.05  # and they differ from place to place


# Tokens


def test_spatial_tokens_are_places(tiny, images):
    """Token (i, j) is made of the backbone's pixels (2i..2i+1, 2j..2j+1), and of no others."""
    features = torch.randn(1, tiny.image_backbone.out_channels, 14, 14)
    tiny.image_backbone.forward = lambda x: features
    before = tiny.image_tokens(images[:1])
    features[:, :, 4:6, 8:10] += 1
    changed = (tiny.image_tokens(images[:1]) != before).any(-1)
    assert changed.nonzero().tolist() == [[0, 2, 4]]


def test_poster_view_is_the_memory_cut_in_pieces(images):
    model = make_tiny(tokens="poster_view").eval()
    channels = model.image_backbone.out_channels
    features = torch.randn(2, channels, 14, 14).contiguous(memory_format=torch.channels_last)
    model.image_backbone.forward = lambda x: features
    pieces = features.contiguous().view(2, 49, 4 * channels)
    expected = model.image_embed(pieces).view(2, 7, 7, -1) + model.position
    torch.testing.assert_close(model.image_tokens(images), expected)


@pytest.mark.parametrize("size", [(192, 256), (256, 256), (32, 96)])
@pytest.mark.parametrize("options", [{}, {"tokens": "poster_view"}, {"cross_fusion": False}])
def test_other_image_sizes(size, options):
    model = make_tiny(**options).eval()
    x = torch.randn(1, 3, *size)
    assert model.forward_features(x).shape == (1, size[0] // 32, size[1] // 32, 96)
    description = model.describe(x)
    assert description.landmarks.shape == (1, 68, 2)
    assert description.image_tokens.shape[1:3] == (size[0] // 32, size[1] // 32)


def test_a_model_made_for_another_size():
    model = make_tiny(img_size=(160, 192))
    assert model.position.shape == (5, 6, 96)
    assert model.layers[0].mixing[0].weight.shape == (60, 60)
    assert model(torch.randn(2, 3, 160, 192)).shape == (2, 7)


@pytest.mark.parametrize("size", [(64, 128), (192, 160)])
def test_another_size_is_as_of_a_model_made_for_it(size):
    model, other = make_tiny(img_size=96).eval(), make_tiny(img_size=size).eval()
    nn.init.normal_(model.position)
    tensors = model.state_dict()
    resize_maps(tensors, other)
    other.load_state_dict(tensors)
    x = torch.randn(1, 3, *size)
    torch.testing.assert_close(other(x), model(x))


@pytest.mark.parametrize("size", [(112, 112), (224, 200), (16, 16), (0, 224)])
@pytest.mark.parametrize("streams", ["both", "landmark"])
def test_sizes_without_a_token_grid(size, streams):
    model = make_tiny(streams=streams)
    message = f"multiples of 32.*got {size[0]} x {size[1]}"
    with pytest.raises(ValueError, match=message):
        model(torch.zeros(1, 3, *size))
    with pytest.raises(ValueError, match=message):
        make_tiny(streams=streams, img_size=size)


# Options

OPTIONS = [
    {"attention": "window"},
    {"attention": "global"},
    {"head_dilations": (1,) * 8},
    {"padding_mode": "masked"},
    {"q_proj": True},
    {"token_mixing": False},
    {"cross_fusion": False},
    {"pre_norm": False},
    {"gray": True},
    {"streams": "expression"},
    {"streams": "landmark"},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_every_option_trains_and_makes_a_difference(tiny, images, options):
    model = make_tiny(**options)
    model(images).sum().backward()
    assert all(p.grad is not None for p in model.parameters() if p.requires_grad)
    with torch.no_grad():
        for layer in tiny.layers:
            layer.mixing[0].weight.add_(0.01)  # it starts as the identity
    shared = {n: t for n, t in tiny.state_dict().items() if n in model.state_dict()}
    shared = {n: t for n, t in shared.items() if t.shape == model.state_dict()[n].shape}
    model.load_state_dict(shared, strict=False)
    assert not torch.equal(model.eval()(images), tiny(images))


def test_head_dilations_are_the_papers():
    for options, expected in [
        ({}, (1, 1, 2, 2, 2, 3, 3, 3)),
        ({"attention": "window"}, (1,) * 8),
    ]:
        model = make_tiny(**options)
        assert model.head_dilations == expected
        assert model.layers[0].blocks[0].attention.dilation == tuple((d, d) for d in expected)
    assert make_tiny(attention="global").head_dilations is None


def test_stochastic_depth_grows_from_nothing_to_its_rate():
    model = make_tiny(depth=3, drop_path_rate=0.1)
    rates = [getattr(layer.blocks[0].drop_path, "drop_prob", 0.0) for layer in model.layers]
    assert rates == pytest.approx([0, 0.05, 0.1])


@pytest.mark.parametrize(
    "options, message",
    [
        ({"tokens": "square"}, "tokens must be one of spatial, poster_view; got 'square'"),
        ({"attention": "local"}, "attention must be one of dilated, window, global; got 'local'"),
        ({"streams": "image"}, "streams must be one of both, expression, landmark; got 'image'"),
        ({"padding_mode": "same"}, "padding_mode must be one of zeros, masked; got 'same'"),
        ({"num_heads": 7}, "num_heads must divide embed_dim, got 7 heads for 96 channels"),
        ({"num_heads": 0}, "num_heads must be a whole number of at least 1, got 0"),
        ({"embed_dim": 96.0}, "embed_dim must be a whole number of at least 1, got 96.0"),
        ({"num_classes": -1}, "num_classes must be a whole number of at least 0, got -1"),
        ({"num_classes": "7"}, "num_classes must be a whole number of at least 0, got '7'"),
        ({"img_size": "128"}, r"img_size must be the side or \(height, width\) in .*, got '128'"),
        ({"img_size": 128.0}, r"img_size must be the side or \(height, width\) in .*, got 128.0"),
        ({"img_size": (3, 128, 128)}, r"img_size must be .*, got \(3, 128, 128\)"),
        ({"num_heads": 6}, "standard_ratio"),
        ({"head_dilations": (1, 2)}, r"head_dilations must be 8 whole numbers .* got \(1, 2\)"),
        ({"head_dilations": (0,) * 8}, "must be 8 whole numbers of at least 1"),
        ({"head_dilations": 3}, "head_dilations must be 8 whole numbers .* got 3"),
        ({"attention": "global", "head_dilations": (1,) * 8}, "no meaning with attention"),
        ({"depth": 0}, "depth must be a whole number of at least 1, got 0"),
        ({"mlp_ratio": float("inf")}, "mlp_ratio must be a number above 0, got inf"),
        ({"drop_rate": "a"}, "drop_rate must be 0 to 1, got 'a'"),
        ({"drop_rate": 10**400}, "drop_rate must be 0 to 1, got 10"),
        ({"drop_path_rate": 1.5}, "drop_path_rate must be 0 to 1, got 1.5"),
        ({"drop_path_rate": -0.1}, "drop_path_rate must be 0 to 1, got -0.1"),
        ({"in_chans": 1}, "in_chans must be 3, got 1"),
        ({"features_only": True}, "features_only has no meaning"),
        ({"image_widths": (8, 16)}, r"image_widths must be 3 whole .* 1, got \(8, 16\)"),
        ({"image_widths": 3}, "image_widths must be 3 whole numbers of at least 1, got 3"),
        ({"image_blocks": "abc"}, "image_blocks must be 3 whole numbers of at least 1, got 'abc'"),
        ({"image_blocks": (1, 0, 1)}, r"image_blocks must be 3 whole .* 1, got \(1, 0, 1\)"),
        ({"landmark_width": 0}, "landmark_width must be a whole number of at least 1, got 0"),
        ({"landmark_blocks": (1, 1)}, r"landmark_blocks must be 3 whole .* 0, got \(1, 1\)"),
    ],
)
def test_options_that_are_not_legal(options, message):
    with pytest.raises(ValueError, match=message):
        make_tiny(**options)


def test_stages_of_backbones_that_are_not_legal():
    with pytest.raises(ValueError, match=r"one entry per stage, got \(8, 16\) and \(1,\)"):
        IRBackbone((8, 16), (1,))
    with pytest.raises(ValueError, match=r"blocks must have 3 entries, got \(1, 1\)"):
        MobileFaceNet(blocks=(1, 1))


def test_arguments_of_methods_that_are_not_legal(tiny):
    for number in (-1, "3", 2.5, None):
        with pytest.raises(ValueError, match=f"num_classes must be a whole .*, got {number!r}"):
            tiny.reset_classifier(number)
    for parts in ("encoder", None):
        with pytest.raises(ValueError, match=f"freeze must get a list of parts, .* got {parts!r}"):
            tiny.freeze(parts)


def test_unknown_option():
    with pytest.raises(TypeError, match="dillations"):
        make_tiny(dillations=(1, 2, 3))


def test_landmark_features_for_a_stream_that_is_off(images):
    model = make_tiny(streams="expression")
    assert model.landmark_features(images) is None
    assert model.landmarks(images) is None
    with pytest.raises(ValueError, match="landmark_features must be None"):
        model(images, torch.zeros(2, 96, 7, 7))
    with pytest.raises(ValueError, match='no image tokens with streams="landmark"'):
        make_tiny(streams="landmark").image_tokens(images)


# Description


@pytest.mark.parametrize("streams", ["both", "expression", "landmark"])
def test_describe(images, streams):
    model = make_tiny(streams=streams).eval()
    description = model.describe(images)
    count = 2 if streams == "both" else 1
    assert description.attention.shape == (2, 2, count, 8, 49, 49)
    assert torch.equal(description.logits, model(images))
    features = model.forward_features(images)
    assert torch.equal(description.pooled, model.forward_head(features, pre_logits=True))
    tokens = [t for t in (description.image_tokens, description.landmark_tokens) if t is not None]
    assert len(tokens) == count
    assert (description.image_tokens is None) == (streams == "landmark")
    assert (description.landmarks is None) == (streams == "expression")
    torch.testing.assert_close(model.norm(sum(tokens)), features)  # eq. 18


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_describe_in_another_precision(images, dtype):
    torch.manual_seed(0)
    model = make_tiny(gray=True).eval()
    expected = model.describe(images)
    description = model.to(dtype).describe(images.to(dtype))
    for name, values in description._asdict().items():
        is_half = dtype.itemsize == 2
        assert values.dtype == (torch.float32 if is_half and name == "attention" else dtype), name
        wanted = getattr(expected, name)
        tolerance = (0.05 if is_half else 1e-4) * wanted.abs().max().item()
        torch.testing.assert_close(values.float(), wanted, rtol=0, atol=tolerance)


def test_landmarks_are_pixels_of_the_input(tiny):
    head = tiny.landmark_backbone.output_layer.bn
    nn.init.zeros_(head.weight)
    head.bias.copy_(torch.tensor([0.25, 0.5]).repeat(68))
    landmarks = tiny.describe(torch.randn(1, 3, 96, 128)).landmarks
    assert landmarks.shape == (1, 68, 2)
    assert landmarks.unique(dim=1).tolist() == [[[32, 48]]]


def test_landmarks_come_from_an_image_in_0_to_1(tiny):
    seen = []
    tiny.landmark_backbone.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    face = torch.rand(1, 3, 224, 224)
    mean, std = (torch.tensor(tiny.default_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    tiny.landmarks((face - mean) / std)
    assert seen[0].shape == (1, 3, 112, 112)
    torch.testing.assert_close(seen[0].mean(), face.mean(), rtol=1e-3, atol=0)
    assert seen[0].min() > -1e-5


@pytest.mark.parametrize("streams", ["both", "expression", "landmark"])
def test_gray_sees_images_as_pillow_turns_them_gray(streams):
    """An image in color gives what its gray version gives, to a network with `gray` or without."""
    color = torch.randint(0, 256, (64, 96, 3), generator=torch.Generator().manual_seed(2)).byte()
    color[:, :, 1] //= 2  # neither all channels alike nor gray on the whole
    as_pillow = torch.from_numpy(np.array(Image.fromarray(color.numpy()).convert("L")))
    gray = as_pillow.unsqueeze(-1).expand_as(color)
    sees_color, sees_gray = (
        make_tiny(streams=streams, gray=value).eval() for value in (False, True)
    )
    mean, std = (torch.tensor(sees_gray.default_cfg[key]) for key in ("mean", "std"))
    color, gray = (((image / 255 - mean) / std).permute(2, 0, 1)[None] for image in (color, gray))

    def results(model, image):
        return [model(image), *([] if streams == "expression" else [model.landmarks(image)])]

    for expected, of_color, of_gray, without in zip(
        results(sees_color, gray),
        results(sees_gray, color),
        results(sees_gray, gray),
        results(sees_color, color),
        strict=True,
    ):
        effect = (without - expected).abs().max().item()
        assert effect > 0
        torch.testing.assert_close(of_gray, expected, rtol=0, atol=1e-3 * effect)
        # Pillow rounds to one of 256 levels
        torch.testing.assert_close(of_color, expected, rtol=0, atol=0.02 * effect)


# Speed: what the compilers and the memory format need


# the rest of the network does not know the backend
@pytest.mark.parametrize(
    ("training", "attention_backend"), [(True, None), (False, None), (False, "reference")]
)
def test_compiles_without_graph_breaks(images, training, attention_backend):
    model = make_tiny(depth=1, drop_path_rate=0.0, backend=attention_backend).train(training)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), model(images), rtol=1e-4, atol=1e-5)


def test_bfloat16_autocast(tiny, images):
    expected = tiny(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = tiny(images)
        tiny.describe(images)
    assert logits.dtype == torch.bfloat16
    torch.testing.assert_close(logits.float(), expected, rtol=0.1, atol=0.1 * expected.std().item())


def test_convolutions_run_channels_last(tiny, images):
    layouts = []
    for module in tiny.modules():
        if isinstance(module, nn.Conv2d) and min(module.weight.shape[1:]) > 1:
            module.register_forward_hook(
                lambda m, args, out: layouts.append(
                    out.is_contiguous(memory_format=torch.channels_last)
                )
            )
    tiny(images)
    assert layouts
    assert all(layouts)


def test_weights_lie_as_other_tools_want_them(tiny):
    assert all(tensor.is_contiguous() for tensor in tiny.state_dict().values())
    own = checkpoint.build_network(Config(), 7)
    weight = own.image_backbone.body[0].res_layer[1].weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()


def test_gradients_of_each_image(tiny, images):
    names = {name for name, parameter in tiny.named_parameters() if parameter.requires_grad}
    parameters = {name: tiny.get_parameter(name) for name in names}

    def logit(parameters, image):
        return torch.func.functional_call(tiny, parameters, (image[None],))[0, 0]

    of_each = torch.func.vmap(torch.func.grad(logit), (None, 0))(parameters, images)
    expected = torch.func.grad(logit)(parameters, images[1])
    for name in names:
        torch.testing.assert_close(of_each[name][1], expected[name], rtol=1e-3, atol=1e-5)


def test_what_is_never_trained_has_no_gradients(tiny):
    tiny.freeze(["encoder"])
    tiny.requires_grad_(False).requires_grad_(True)
    trained = {n.partition(".")[0] for n, p in tiny.named_parameters() if p.requires_grad}
    assert trained == {"image_backbone", "image_embed", "position", "gate", "head"}


@pytest.mark.parametrize("coarse", [False, True])
def test_layers_for_timm(tiny, coarse):
    layer_of = group_parameters(tiny, tiny.group_matcher(coarse), reverse=True)
    names = [
        "image_backbone.input_layer.0.weight",
        "image_backbone.body.0.res_layer.1.weight",
        "image_backbone.body.4.res_layer.1.weight",
        "image_embed.weight",
        *[f"layers.{number}.mixing.0.weight" for number in range(len(tiny.layers))],
        "head.weight",
    ]
    layers = [layer_of[name] for name in names]
    blocks = 1 if coarse else 5
    first = [0, 1, blocks, blocks + 1]
    assert layers == [*first, *range(blocks + 2, blocks + 3 + len(tiny.layers))]
    assert {layer for name, layer in layer_of.items() if name.startswith("landmark")} == {0}
    assert layer_of["position"] == layer_of["image_embed.weight"]
    assert layer_of["norm.weight"] == layer_of["gate.0.weight"] == layers[-2]


def test_layer_decay_of_timm(tiny):
    optimizer = create_optimizer_v2(tiny, "adamw", lr=1.0, layer_decay=0.5)
    scales = {p: group["lr_scale"] for group in optimizer.param_groups for p in group["params"]}
    assert scales[tiny.head.weight] == 1
    assert scales[tiny.layers[0].mixing[0].weight] == 0.5 ** len(tiny.layers)


def test_is_a_plain_module(tiny):
    """No wrapper between timm and the class that the documentation names."""
    assert type(tiny) is CFMRFN
