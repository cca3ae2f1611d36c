"""Each counterpart of a layer: the same values, and the relevance that its rule promises."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from helpers import random, relative_error
from timm.layers import (
    BatchNormAct2d,
    CecaModule,
    Conv2dSame,
    EcaModule,
    EffectiveSEModule,
    GluMlp,
    GroupNorm1,
    GroupNormAct,
    LayerNorm2d,
    LayerNormAct2d,
    LayerScale,
    LayerScale2d,
    RmsNorm,
    RmsNorm2d,
    RmsNormAct2d,
    ScaledStdConv2d,
    ScaledStdConv2dSame,
    SelectAdaptivePool2d,
    SEModule,
    StdConv2d,
    StdConv2dSame,
    SwiGLU,
    activations_me,
)
from timm.layers import activations as timm_activations
from timm.layers.grn import GlobalResponseNorm
from timm.layers.pool2d_same import MaxPool2dSame
from timm.layers.squeeze_excite import SqueezeExciteCl
from timm.models._efficientnet_blocks import SqueezeExcite
from timm_models import alive
from torch import nn

from vimlrp.composites import Composite
from vimlrp.rules import Gradient
from vimlrp.sites import Site
from vimlrp.tracing import Trace, tracing
from vimlrp.wrapping import wrap

MAP, ROWS = (2, 6, 5, 4), (2, 7, 6)
LRP_0 = {"base": "mambalrp", "convolution": "zero"}

LAYERS = {
    "conv": (nn.Conv2d(6, 4, 3, stride=2, padding=1, dilation=2), MAP),
    "depthwise conv": (nn.Conv2d(6, 12, (3, 1), padding=(1, 0), groups=6), MAP),
    "reflecting conv": (nn.Conv2d(6, 4, 3, padding=1, padding_mode="reflect"), MAP),
    "conv1d": (nn.Conv1d(7, 4, 3), ROWS),
    "pointwise conv": (nn.Conv2d(6, 4, 1, bias=False), MAP),
    "same conv": (Conv2dSame(6, 4, 3, stride=2), MAP),
    "standardised conv": (StdConv2d(6, 4, 3, bias=True), MAP),
    "standardised same conv": (StdConv2dSame(6, 4, 3, stride=2), MAP),
    "scaled conv": (ScaledStdConv2d(6, 4, 3, gamma=1.7), MAP),
    "scaled same conv": (ScaledStdConv2dSame(6, 4, 3, stride=2), MAP),
    "linear": (nn.Linear(6, 4), ROWS),
    "batch norm": (nn.BatchNorm2d(6), MAP),
    "batch norm without weights": (nn.BatchNorm2d(6, affine=False), MAP),
    "batch norm of rows": (nn.BatchNorm1d(7), ROWS),
    "batch norm of vectors": (nn.BatchNorm1d(6), (3, 6)),
    "batch norm and activation": (BatchNormAct2d(6), MAP),
    "layer norm": (nn.LayerNorm(6), ROWS),
    "layer norm without shift": (nn.LayerNorm(6, bias=False), ROWS),
    "layer norm without weights": (nn.LayerNorm(6, elementwise_affine=False), ROWS),
    "layer norm of two axes": (nn.LayerNorm((7, 6)), ROWS),
    "layer norm of maps": (LayerNorm2d(6), MAP),
    "layer norm of maps and activation": (LayerNormAct2d(6), MAP),
    "group norm": (nn.GroupNorm(3, 6), MAP),
    "group norm without weights": (nn.GroupNorm(2, 6, affine=False), MAP),
    "group norm of one": (GroupNorm1(6), MAP),
    "group norm and activation": (GroupNormAct(6, num_groups=2), MAP),
    "rms norm": (nn.RMSNorm(6), ROWS),
    "rms norm of timm": (RmsNorm(6), ROWS),
    "rms norm without weights": (RmsNorm(6, affine=False), ROWS),
    "rms norm of maps": (RmsNorm2d(6), MAP),
    "rms norm of maps and activation": (RmsNormAct2d(6), MAP),
    "response norm": (GlobalResponseNorm(6, channels_last=False), MAP),
    "response norm, channels last": (GlobalResponseNorm(4), MAP),
    "squeeze-and-excite": (SEModule(6, rd_channels=3, norm_layer=nn.BatchNorm2d), MAP),
    "squeeze-and-excite with maxima": (SEModule(6, rd_channels=3, add_maxpool=True), MAP),
    "squeeze-and-excite, channels last": (SqueezeExciteCl(4, rd_channels=3), MAP),
    "squeeze-and-excite of efficientnet": (SqueezeExcite(6), MAP),
    "effective squeeze-and-excite": (EffectiveSEModule(6), MAP),
    "channel convolution": (EcaModule(6), MAP),
    "channel mlp": (EcaModule(6, use_mlp=True), MAP),
    "circular channel convolution": (CecaModule(6), MAP),
    "max pool": (nn.MaxPool2d(3, 2, 1), MAP),
    "same max pool": (MaxPool2dSame(3, 2), MAP),
    "global mean": (SelectAdaptivePool2d(pool_type="avg"), MAP),
    "global maximum": (SelectAdaptivePool2d(pool_type="fastmax"), MAP),
    "global mean and maximum": (SelectAdaptivePool2d(pool_type="avgmax"), MAP),
    "global mean beside maximum": (SelectAdaptivePool2d(pool_type="catavgmax"), MAP),
    "fast mean and maximum": (SelectAdaptivePool2d(pool_type="fastavgmax"), MAP),
    "fast mean beside maximum": (SelectAdaptivePool2d(pool_type="fastcatavgmax"), MAP),
    "gated mlp": (GluMlp(6, 8, act_layer=nn.SiLU), ROWS),
    "gated mlp, gate first": (GluMlp(6, 8, act_layer=nn.GELU, gate_last=False), ROWS),
    "split gated mlp": (SwiGLU(6, 8, norm_layer=nn.LayerNorm), ROWS),
    "layer scale": (LayerScale(6, 0.3, inplace=True), ROWS),
    "layer scale of maps": (LayerScale2d(6, 0.3, inplace=True), MAP),
}

ACTIVATIONS = {
    "relu": nn.ReLU(inplace=True),
    "silu": nn.SiLU(inplace=True),
    "gelu": nn.GELU(),
    "gelu by a tanh": nn.GELU(approximate="tanh"),
    "hardswish": nn.Hardswish(inplace=True),
    "mish": nn.Mish(),
    "relu6": nn.ReLU6(),
    "leaky relu": nn.LeakyReLU(0.2),
    "tanh": nn.Tanh(),
    "timm swish": timm_activations.Swish(),
    "timm gelu": timm_activations.GELU(),
    "timm gelu by a tanh": timm_activations.GELUTanh(),
    "timm quick gelu": timm_activations.QuickGELU(),
    "timm hardswish": timm_activations.HardSwish(),
    "timm mish": timm_activations.Mish(),
    "timm tanh": timm_activations.Tanh(),
    "hardswish, less memory": activations_me.HardSwishMe(),
    "mish, less memory": activations_me.MishMe(),
    "swish, less memory": activations_me.SwishMe(),
}


def inner(layer):
    """The counterpart of a layer that is not a model's first."""
    return wrap(nn.ModuleList([nn.Conv2d(3, 1, 1), layer]))[1]


def explained(layer, x, composite=None):
    """Output of the counterpart, gradient at the input for a random one, and what was absorbed."""
    wrapped = inner(layer)
    trace = Trace(Composite.ensure(composite or LRP_0).resolve(wrapped))
    leaf = x.clone().requires_grad_()
    with tracing(trace):
        out = wrapped(leaf)
    at_out = random(*out.shape, seed=3)
    (gradient,) = torch.autograd.grad(out, leaf, at_out)
    absorbed = sum((a.share for a in trace.absorptions), torch.zeros(len(x), dtype=x.dtype))
    return out.detach(), at_out, gradient, absorbed


@pytest.mark.parametrize("name", LAYERS)
def test_values_are_those_of_the_original_and_relevance_is_conserved(name):
    layer, shape = LAYERS[name]
    layer = alive(layer.double().eval())
    x = random(*shape, seed=1)
    out, at_out, gradient, absorbed = explained(layer, x)
    assert relative_error(out, layer(x.clone())) < 1e-9
    assert relative_error(inner(layer)(x), out) < 1e-9
    received = (out * at_out).flatten(1).sum(1)
    passed = (x * gradient).flatten(1).sum(1)
    assert relative_error(passed + absorbed, received) < 1e-9


@pytest.mark.parametrize("name", LAYERS)
def test_without_rules_the_gradient_is_that_of_the_original(name):
    layer, shape = LAYERS[name]
    layer = alive(layer.double().eval())
    x = random(*shape, seed=2)
    _, at_out, gradient, _ = explained(layer, x, "gradient_x_input")
    leaf = x.clone().requires_grad_()
    out = layer(leaf.clone())  # some write over their input
    (expected,) = torch.autograd.grad(out, leaf, at_out)
    assert relative_error(gradient, expected) < 1e-9


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_passes_relevance_on_unchanged(name):
    layer = ACTIVATIONS[name]
    x = torch.tensor([[-9.0, -3.0, -0.4, 0.0, 1e-30, 0.2, 2.9, 3.1, 5.9, 6.1, 50.0]]).double()
    out, at_out, gradient, _ = explained(layer, x)
    assert (out - layer(x.clone())).abs().max() < 1e-12
    assert torch.allclose(x * gradient, out * at_out, rtol=1e-9, atol=1e-12)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_ratio_of_an_activation_at_zero_is_its_slope(name):
    layer = ACTIVATIONS[name]
    site = inner(layer)
    ratio = site.ratio(torch.zeros(1, dtype=torch.float64))
    leaf = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(layer(leaf.clone()).sum(), leaf)
    assert (ratio - slope).abs().max() < 1e-9


def test_a_norms_divisor_is_constant_and_its_centring_is_not():
    layer = alive(nn.GroupNorm(2, 6).double())
    x = random(*MAP, seed=4)
    _, at_out, gradient, _ = explained(layer, x)
    groups = x.view(2, 2, -1)
    deviation = (groups.var(-1, correction=0, keepdim=True) + layer.eps).sqrt()
    scaled = (at_out * layer.weight.view(1, -1, 1, 1)).view(2, 2, -1) / deviation
    expected = (scaled - scaled.mean(-1, keepdim=True)).view_as(x)
    assert relative_error(gradient, expected) < 1e-9


def test_the_factors_of_an_excitation_are_constants():
    layer = alive(SEModule(6, rd_channels=3).double())
    x = random(*MAP, seed=4)
    _, at_out, gradient, _ = explained(layer, x)
    factor = layer(x) / x
    assert relative_error(gradient, at_out * factor) < 1e-9


def test_a_maximum_is_taken_by_the_winner():
    x = random(1, 1, 4, 4, seed=5)
    _, at_out, gradient, _ = explained(nn.MaxPool2d(2), x)
    for i in range(2):
        for j in range(2):
            window = x[0, 0, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
            found = gradient[0, 0, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
            assert torch.equal(found, (window == window.max()) * at_out[0, 0, i, j])


def test_standardised_weights_are_what_gamma_sees():
    layer = alive(StdConv2d(6, 4, 3).double())
    plain = nn.Conv2d(6, 4, 3, padding=layer.padding, bias=False).double()
    rows = layer.weight.detach().flatten(1)
    rows = (rows - rows.mean(1, keepdim=True)) / (
        rows.var(1, correction=0, keepdim=True) + layer.eps
    ).sqrt()
    with torch.no_grad():
        plain.weight.copy_(rows.view_as(plain.weight))
    x = random(*MAP, seed=6)
    ours, theirs = explained(layer, x, "mambalrp"), explained(plain, x, "mambalrp")
    assert relative_error(ours[0], theirs[0]) < 1e-9
    assert relative_error(ours[2], theirs[2]) < 1e-9
    assert relative_error(ours[0], F.conv2d(x, plain.weight, padding=layer.padding)) < 1e-9


def test_a_convolution_of_single_cells_is_a_projection():
    assert inner(nn.Conv2d(4, 4, 1)).kind == "projection"
    assert inner(nn.Conv2d(4, 4, (1, 3))).kind == "convolution"


def test_every_site_of_a_counterpart_has_a_rule():
    kinds = {
        m.kind
        for layer, _ in LAYERS.values()
        for m in inner(layer).modules()
        if isinstance(m, Site)
    }
    rules = Composite().rules
    assert kinds <= rules.keys()
    assert isinstance(rules["pooling"], Gradient)
