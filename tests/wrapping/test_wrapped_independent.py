"""Wrapped models against derivations of their relevance that know nothing of sites."""

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from helpers import images, relative_error
from timm_models import family, vit

import vimlrp
from vimlrp.composites import Composite
from vimlrp.tracing import Trace, tracing

LRP_0 = {"base": "mambalrp", "convolution": "zero", "patch_embedding": "zero"}


def gradient_times_input(function, x, target):
    leaf = x.clone().requires_grad_()
    logits = function(leaf)
    value = logits[torch.arange(len(x)), target].sum()
    (gradient,) = torch.autograd.grad(value, leaf)
    return (leaf * gradient).sum(1).detach()


@pytest.mark.parametrize("name", ["test_resnet", "resnet18", "resnetaa34d", "test_efficientnet"])
def test_gradient_x_input_is_that_of_the_original(name):
    model, size = family(name)
    x = images(2, size)
    relevance = vimlrp.explain(model, x, composite="gradient_x_input")
    expected = gradient_times_input(model, x, relevance.target)
    assert relative_error(relevance.pixels, expected) < 1e-9


@pytest.mark.parametrize("name", ["test_resnet", "resnet18", "regnetx_002", "resnetaa34d"])
def test_lrp_0_of_a_relu_network_is_gradient_times_input(name):
    """A ReLU network is piecewise linear, with norms folded or not (Shrikumar et al. 2016)."""
    model, size = family(name)
    x = images(2, size)
    relevance = vimlrp.explain(model, x, composite=LRP_0)
    expected = gradient_times_input(model, x, relevance.target)
    assert relative_error(relevance.pixels, expected) < 1e-9


def test_biases_of_a_relu_network_take_the_rest():
    model, size = family("test_resnet")
    x = images(2, size)
    parts = vimlrp.explain(model, x, composite=LRP_0).account.parts
    shifts = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    expected = torch.zeros(2, dtype=x.dtype)
    outs = []

    def keep(module, _args, out):
        outs.append((module, out))
        return out.clone()  # the next layers write over what they get

    # The shift of every norm times the gradient there, without any site.
    handles = [m.register_forward_hook(keep) for m in shifts]
    logits = model(x)
    for handle in handles:
        handle.remove()
    value = logits.max(1).values.sum()
    gradients = torch.autograd.grad(value, [out for _, out in outs])
    for (m, _), gradient in zip(outs, gradients, strict=True):
        shift = m.bias - m.running_mean * m.weight / (m.running_var + m.eps).sqrt()
        expected += (gradient * shift.view(1, -1, 1, 1)).flatten(1).sum(1).detach()
    assert relative_error(parts["bias: batch_norm"], expected) < 1e-9


def held_norm(x, norm):
    centred = x - x.mean(-1, keepdim=True)
    deviation = (centred.detach().square().mean(-1, keepdim=True) + norm.eps).sqrt()
    return centred / deviation * norm.weight + norm.bias


def held_gelu(x):
    ratio = 0.5 * (1 + torch.erf(x.detach() / math.sqrt(2)))
    return x * ratio


def vit_by_hand(model, x):
    """A pre-norm ViT with one class token, its softmax, norms and GELU ratios held constant."""
    patches = F.conv2d(x, model.patch_embed.proj.weight, model.patch_embed.proj.bias, stride=8)
    patches = patches.flatten(2).transpose(1, 2)
    h = torch.cat([model.cls_token.expand(len(x), -1, -1), patches], 1) + model.pos_embed
    for block in model.blocks:
        heads = block.attn.num_heads
        b, count, width = h.shape
        qkv = F.linear(held_norm(h, block.norm1), block.attn.qkv.weight, block.attn.qkv.bias)
        q, k, v = qkv.view(b, count, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
        weights = (q @ k.mT / math.sqrt(width // heads)).softmax(-1).detach()
        mixed = (weights @ v).transpose(1, 2).reshape(b, count, width)
        h = h + F.linear(mixed, block.attn.proj.weight, block.attn.proj.bias)
        hidden = F.linear(held_norm(h, block.norm2), block.mlp.fc1.weight, block.mlp.fc1.bias)
        h = h + F.linear(held_gelu(hidden), block.mlp.fc2.weight, block.mlp.fc2.bias)
    h = held_norm(h, model.norm)
    return F.linear(h[:, 0], model.head.weight, model.head.bias)


def test_a_vit_agrees_with_one_written_by_hand():
    model, x = vit(), images(3, 24)
    by_hand = vit_by_hand(model, x)
    assert relative_error(by_hand, model(x)) < 1e-9
    relevance = vimlrp.explain(model, x, composite={"patch_embedding": "zero"})
    expected = gradient_times_input(lambda leaf: vit_by_hand(model, leaf), x, relevance.target)
    assert relative_error(relevance.pixels, expected) < 1e-9


def test_the_position_embedding_of_a_vit_takes_its_gradient_times_itself():
    model, x = vit(), images(3, 24)
    relevance = vimlrp.explain(model, x)
    logits = vit_by_hand(model, x)
    parts = relevance.account.parts
    for kind, parameter in (("position embedding", model.pos_embed), ("class token", None)):
        parameter = model.cls_token if parameter is None else parameter
        for i in range(3):
            value = logits[i, relevance.target[i]]
            (gradient,) = torch.autograd.grad(value, parameter, retain_graph=True)
            expected = (gradient * parameter).sum().detach()
            assert abs(parts[kind][i] - expected) < 1e-9 * abs(relevance.account.target[i])


def mixer_by_hand(mixer, x):
    """EfficientViM's mixer with every factor of its state space held constant, the gate shared."""
    b, _, height, width = x.shape
    x = x.flatten(2)
    conv, dw = mixer.BCdt_proj.conv, mixer.dw.conv
    factors = F.conv1d(x, conv.weight, conv.bias).reshape(b, -1, height, width)
    factors = F.conv2d(factors, dw.weight, dw.bias, padding=1, groups=dw.groups).flatten(2)
    n = mixer.state_dim
    gather, read, step = factors[:, :n], factors[:, n : 2 * n], factors[:, 2 * n :]
    weights = ((step + mixer.A.view(1, -1, 1)).softmax(-1) * gather).detach()
    h = torch.einsum("bdl,bnl->bdn", x, weights)
    hz = F.conv1d(h, mixer.hz_proj.conv.weight, mixer.hz_proj.conv.bias)
    h, z = hz[:, : mixer.d_inner], hz[:, mixer.d_inner :]
    gate = z * torch.sigmoid(z.detach())
    half = 0.5 * (h * gate.detach() + h.detach() * gate)  # its gradient is half a factor's
    product = half - half.detach() + (h * gate).detach()
    h = F.conv1d(product + h * mixer.D, mixer.out_proj.conv.weight, mixer.out_proj.conv.bias)
    y = torch.einsum("bdn,bnl->bdl", h, read.detach())
    return y.reshape(b, -1, height, width), h


def test_the_mixer_of_efficientvim_agrees_with_one_written_by_hand():
    original = family("efficientvim_m1")[0].stages[0].blocks[0].mixer
    model = vimlrp.wrap(family("efficientvim_m1")[0])
    mixer = model.stages[0].blocks[0].mixer
    x = torch.randn(2, 128, 3, 5, dtype=torch.float64)
    rules = Composite.ensure({"convolution": "zero"}).resolve(model)
    ours, expected = x.clone().requires_grad_(), x.clone().requires_grad_()
    with tracing(Trace(rules)):
        out, states = mixer(ours)
    by_hand, their_states = mixer_by_hand(original, expected)
    assert relative_error(out, by_hand) < 1e-9
    assert relative_error(states, their_states) < 1e-9
    weight = torch.randn_like(out)
    (gradient,) = torch.autograd.grad((out * weight).sum() + states.sum(), ours)
    (known,) = torch.autograd.grad((by_hand * weight).sum() + their_states.sum(), expected)
    assert relative_error(gradient, known) < 1e-9


def test_the_windows_of_a_swin_agree_with_attention_written_out():
    original, _ = family("swin_tiny_patch4_window7_224")
    model = vimlrp.wrap(original)
    block = original.layers[0].blocks[1]
    ours = model.layers[0].blocks[1].attn
    windows = len(block.attn_mask)
    x = torch.randn(2 * windows, 16, 12, dtype=torch.float64)
    leaf = x.clone().requires_grad_()
    with tracing(Trace(Composite().resolve(model))):
        out = ours(leaf, block.attn_mask)
    assert relative_error(out, block.attn(x, block.attn_mask)) < 1e-9
    attn = block.attn
    heads, size = attn.num_heads, 12 // attn.num_heads
    qkv = F.linear(x, attn.qkv.weight, attn.qkv.bias).view(-1, 16, 3, heads, size)
    q, k, _ = qkv.permute(2, 0, 3, 1, 4)
    table = attn.relative_position_bias_table[attn.relative_position_index].permute(2, 0, 1)
    scores = q @ k.mT / math.sqrt(size) + table
    scores = scores.view(2, windows, heads, 16, 16) + block.attn_mask[None, :, None]
    weights = scores.view(-1, heads, 16, 16).softmax(-1)
    at_out = torch.randn_like(out)
    (gradient,) = torch.autograd.grad((out * at_out).sum(), leaf)
    back = (at_out @ attn.proj.weight).view(-1, 16, heads, size).transpose(1, 2)
    back = (weights.mT @ back).transpose(1, 2).reshape(-1, 16, 12)
    assert relative_error(gradient, back @ attn.qkv.weight[24:]) < 1e-9
