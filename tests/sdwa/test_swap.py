"""The attention of an existing model, written in timm's style, replaced by ours and trained."""

import pytest
import torch
from torch import nn

import sdwa

layers = pytest.importorskip("timm.layers")


class UnfoldAttention(nn.Module):
    """Multi-scale dilated attention as DilateFormer's users know it: `qkv` a 1 x 1 convolution."""

    def __init__(self, dim, num_heads, dilation):
        super().__init__()
        self.num_heads, self.dilation = num_heads, dilation
        self.qkv = nn.Conv2d(dim, 3 * dim, 1, bias=False)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x):  # (batch, height, width, dim)
        batch, height, width, _ = x.shape
        heads, groups = self.num_heads // len(self.dilation), len(self.dilation)
        qkv = self.qkv(x.permute(0, 3, 1, 2)).view(batch, 3, groups, -1, height, width)
        outs = []
        for group, dilation in enumerate(self.dilation):
            query, key, value = qkv[:, :, group].unbind(1)
            query = query.reshape(batch, heads, -1, 1, height * width)
            key, value = (
                nn.functional.unfold(t, 3, dilation, dilation).view(
                    batch, heads, -1, 9, height * width
                )
                for t in (key, value)
            )
            scores = (query * key).sum(2, keepdim=True) * query.shape[2] ** -0.5
            outs.append((scores.softmax(3) * value).sum(3).flatten(1, 2))
        return self.proj(torch.cat(outs, 1).transpose(1, 2).view(x.shape))


class Block(nn.Module):
    def __init__(self, dim, attention):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = attention
        self.mlp = layers.Mlp(dim, 2 * dim)
        self.drop_path = layers.DropPath(0.1)

    def forward(self, x):
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class Classifier(nn.Module):
    def __init__(self, dim=24, depth=2, num_classes=3):
        super().__init__()
        self.embed = layers.PatchEmbed(32, 4, 3, dim, flatten=False, output_fmt="NHWC")
        self.blocks = nn.Sequential(
            *(Block(dim, UnfoldAttention(dim, 6, (1, 2, 3))) for _ in range(depth))
        )
        self.head = nn.Linear(dim, num_classes)

    def forward(self, x):
        return self.head(self.blocks(self.embed(x)).mean((1, 2)))


def swap(model, make):
    for name, module in list(model.named_modules()):
        if isinstance(module, UnfoldAttention):
            model.set_submodule(name, make(module))


def train(model, steps=12):
    device = model.head.weight.device
    images, labels = torch.randn(12, 3, 32, 32, device=device), torch.arange(12, device=device) % 3
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    losses = []
    for _ in range(steps):
        loss = nn.functional.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_swapped_with_its_weights(backend, monkeypatch):
    """in place of DilateFormer's attention, with its weights, trained on"""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)  # of the convolutions replaced
    torch.manual_seed(0)
    model = Classifier().eval().to(backend.device_type)
    images = torch.randn(2, 3, 32, 32, device=backend.device_type)
    expected = model(images)
    swap(
        model,
        lambda old: sdwa.SlidingDilatedWindowAttention.from_dilateformer(
            old.state_dict(), old.num_heads, 3, old.dilation, backend=backend.name
        ).to(backend.device_type),
    )
    assert not any(isinstance(module, UnfoldAttention) for module in model.modules())
    torch.testing.assert_close(model(images), expected, rtol=1e-5, atol=1e-5)
    losses = train(model.train())
    assert losses[-1] < 0.8 * losses[0]


def test_swapped_anew(backend):
    """in place of neighborhood attention, trained from scratch"""
    torch.manual_seed(0)
    model = Classifier()
    swap(
        model,
        lambda old: sdwa.SlidingDilatedWindowAttention(
            24, 6, 7, 1, relative_bias=True, padding_mode="masked", backend=backend.name
        ),
    )
    losses = train(model.to(backend.device_type))
    assert losses[-1] < 0.8 * losses[0]
