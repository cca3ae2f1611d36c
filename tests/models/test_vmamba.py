"""VMamba has the official tensors and keeps timm's contract."""

import copy
import io
import math
import re

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import nn

from vimlrp.errors import InputError
from vimlrp.models import VMamba

# Name: generation, first width, depths, scan channels over width, states, parameters, tensors
# (docs of the official repository, counted by its code).
PUBLISHED = {
    "vmamba_tiny_s1l8_224": ("v2", 96, (2, 2, 8, 2), 1, 1, 30_249_064, 276),
    "vmamba_tiny_s2l5_224": ("v2", 96, (2, 2, 5, 2), 2, 1, 30_705_832, 222),
    "vmamba_small_s1l20_224": ("v2", 96, (2, 2, 20, 2), 1, 1, 49_012_840, 492),
    "vmamba_small_s2l15_224": ("v2", 96, (2, 2, 15, 2), 2, 1, 50_147_752, 402),
    "vmamba_base_s1l20_224": ("v2", 128, (2, 2, 20, 2), 1, 1, 86_614_504, 492),
    "vmamba_base_s2l15_224": ("v2", 128, (2, 2, 15, 2), 2, 1, 88_557_800, 402),
    "vanilla_vmamba_tiny_224": ("v0", 96, (2, 2, 9, 2), 2, 16, 22_893_448, 212),
    "vanilla_vmamba_small_224": ("v0", 96, (2, 2, 27, 2), 2, 16, 44_417_416, 446),
    "vanilla_vmamba_base_224": ("v0", 128, (2, 2, 27, 2), 2, 16, 76_254_056, 446),
}
TESTS = ["test_vmamba", "test_vmamba_v0"]


def mixer_shapes(generation, width, ratio, states):
    inner, rank = ratio * width, math.ceil(width / 16)
    gated = generation == "v0"
    shapes = {
        "in_proj.weight": ((1 + gated) * inner, width),
        "conv2d.weight": (inner, 1, 3, 3),
        "x_proj_weight": (4, rank + 2 * states, inner),
        "dt_projs_weight": (4, inner, rank),
        "dt_projs_bias": (4, inner),
        "A_logs": (4 * inner, states),
        "Ds": (4 * inner,),
        "out_norm.weight": (inner,),
        "out_norm.bias": (inner,),
        "out_proj.weight": (width, inner),
    }
    return {**shapes, "conv2d.bias": (inner,)} if gated else shapes


def block_shapes(generation, width, ratio, states):
    mixer = mixer_shapes(generation, width, ratio, states)
    shapes = {f"op.{key}": shape for key, shape in mixer.items()}
    shapes |= {"norm.weight": (width,), "norm.bias": (width,)}
    if generation == "v2":
        shapes |= {
            "norm2.weight": (width,),
            "norm2.bias": (width,),
            "mlp.fc1.weight": (4 * width, width),
            "mlp.fc1.bias": (4 * width,),
            "mlp.fc2.weight": (width, 4 * width),
            "mlp.fc2.bias": (width,),
        }
    return shapes


def convolution(name, outputs, inputs, kernel):
    return {f"{name}.weight": (outputs, inputs, kernel, kernel), f"{name}.bias": (outputs,)}


def norm(name, width):
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def official_shapes(generation, width, depths, ratio, states, classes=1000):
    """Names and shapes of an official state_dict."""
    if generation == "v0":
        shapes = convolution("patch_embed.0", width, 3, 4) | norm("patch_embed.2", width)
    else:
        shapes = convolution("patch_embed.0", width // 2, 3, 3) | norm("patch_embed.2", width // 2)
        shapes |= convolution("patch_embed.5", width, width // 2, 3) | norm("patch_embed.7", width)
    for s, depth in enumerate(depths):
        block = block_shapes(generation, width, ratio, states)
        for b in range(depth):
            shapes |= {f"layers.{s}.blocks.{b}.{key}": shape for key, shape in block.items()}
        if s == len(depths) - 1:
            continue
        down = f"layers.{s}.downsample"
        if generation == "v0":
            shapes |= norm(f"{down}.norm", 4 * width)
            shapes[f"{down}.reduction.weight"] = (2 * width, 4 * width)
        else:
            shapes |= convolution(f"{down}.1", 2 * width, width, 3) | norm(f"{down}.3", 2 * width)
        width *= 2
    head = {"classifier.head.weight": (classes, width), "classifier.head.bias": (classes,)}
    return shapes | norm("classifier.norm", width) | head


def make(name="test_vmamba", **changes):
    torch.manual_seed(0)
    return timm.create_model(name, **{"num_classes": 10, **changes}).eval()


def image(*size, count=2):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, *(size or (64, 64)), generator=generator)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_variants_have_the_official_tensors(name):
    *options, parameters, tensors = PUBLISHED[name]
    with torch.device("meta"):
        model = timm.create_model(name)
    state = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert state == official_shapes(*options)
    assert len(state) == tensors
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not list(model.buffers())


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_variants_say_where_their_weights_are(name):
    config = timm.get_pretrained_cfg(name)
    size = name.removeprefix("vanilla_").split("_")[1]
    assert config.url.startswith("https://github.com/MzeroMiko/VMamba/releases/download/%23v")
    assert f"vssm{'1' if '_s1l' in name else ''}" in config.url
    assert size in config.url
    assert ("%23v0cls" in config.url) == name.startswith("vanilla")
    assert config.url.endswith(".pth")
    assert config.license == "mit"
    assert (config.num_classes, config.input_size) == (1000, (3, 224, 224))
    assert (config.crop_pct, config.interpolation) == (0.875, "bicubic")


def test_nano_fits_the_package_in_half_precision():
    with torch.device("meta"):
        model = timm.create_model("vmamba_nano_s1l8_224", num_classes=10)
    assert 3e6 < sum(p.numel() for p in model.parameters()) < 4e6


@pytest.mark.parametrize("name", TESTS)
def test_initial_weights_are_the_papers(name):
    op = make(name).layers[2].blocks[0].op
    states = torch.arange(1, op.d_state + 1).float()
    torch.testing.assert_close(op.A_logs.exp(), states.expand_as(op.A_logs))
    assert op.Ds.eq(1).all()
    step = nn.functional.softplus(op.dt_projs_bias)
    assert 1e-4 <= step.min() < 0.01 < 0.05 < step.max() <= 0.1 + 1e-6
    assert op.out_proj.weight.std().item() == pytest.approx(0.02, rel=0.2)


@pytest.mark.parametrize("name", TESTS)
def test_features_head_and_logits(name):
    model, x = make(name), image()
    features = model.forward_features(x)
    pooled = model.forward_head(features, pre_logits=True)
    assert features.shape == (2, 2, 2, 128)
    torch.testing.assert_close(features.mean(-1), torch.zeros(2, 2, 2), atol=1e-5, rtol=0)
    assert torch.equal(pooled, features.mean((1, 2)))
    assert torch.equal(model.forward_head(features), model.get_classifier()(pooled))
    assert torch.equal(model(x), model.forward_head(features))


def test_no_pooling_keeps_the_map():
    model, x = make(num_classes=0, global_pool=""), image()
    assert torch.equal(model(x), model.forward_features(x))


def test_classifier_is_found_and_replaced():
    model, x = make(), image()
    assert model.get_classifier() is model.classifier.head
    assert (model.num_classes, model.num_features, model.head_hidden_size) == (10, 128, 128)
    before = model.forward_features(x)
    model.reset_classifier(3)
    assert model(x).shape == (2, 3)
    assert (model.num_classes, model.global_pool) == (3, "avg")
    model.reset_classifier(0)
    assert isinstance(model.get_classifier(), nn.Identity)
    torch.testing.assert_close(model(x), before.mean((1, 2)))
    model.reset_classifier(0, global_pool="")
    assert torch.equal(model(x), before)


def test_new_classifier_has_the_models_type():
    model = make().double()
    model.reset_classifier(4)
    assert model(image().double()).dtype == torch.float64


@pytest.mark.parametrize("name", TESTS)
def test_configuration_names_real_modules(name):
    model = make(name)
    first, head = (model.default_cfg[key] for key in ("first_conv", "classifier"))
    assert model.get_submodule(first) is model.patch_embed[0]
    assert model.get_submodule(head) is model.get_classifier()
    for info in model.feature_info:
        model.get_submodule(info["module"])


@pytest.mark.parametrize("name", TESTS)
@pytest.mark.parametrize("output_fmt", ["NCHW", "NHWC"])
def test_intermediate_maps(name, output_fmt):
    model, x = make(name), image(64, 96)
    features, maps = model.forward_intermediates(x, output_fmt=output_fmt)
    assert torch.equal(features, model.forward_features(x))
    for i, (out, info) in enumerate(zip(maps, model.feature_info, strict=True)):
        shape = (info["num_chs"], 64 // info["reduction"], 96 // info["reduction"])
        last = shape if output_fmt == "NCHW" else (*shape[1:], shape[0])
        assert out.shape == (2, *last)
        caught = []
        hook = model.layers[i].blocks.register_forward_hook(
            lambda _m, _a, out, caught=caught: caught.append(out)
        )
        model(x)
        hook.remove()
        assert torch.equal(out.permute(0, 2, 3, 1) if output_fmt == "NCHW" else out, caught[0])


def test_some_intermediate_maps():
    model, x = make(), image()
    maps = model.forward_intermediates(x, intermediates_only=True)
    normed = model.forward_intermediates(x, norm=True, intermediates_only=True)
    assert torch.equal(normed[-1].permute(0, 2, 3, 1), model.forward_features(x))
    assert torch.equal(normed[0], maps[0])
    last = model.forward_intermediates(x, indices=1, intermediates_only=True)
    assert len(last) == 1
    assert torch.equal(last[0], maps[-1])
    calls = []
    model.layers[3].register_forward_hook(lambda *_: calls.append(1))
    model.layers[3].blocks[0].register_forward_hook(lambda *_: calls.append(1))
    early = model.forward_intermediates(x, indices=[0, 2], stop_early=True, intermediates_only=True)
    assert [torch.equal(a, b) for a, b in zip(early, (maps[0], maps[2]), strict=True)] == [True] * 2
    assert calls == []
    with pytest.raises(InputError, match="'NCHW' or 'NHWC'"):
        model.forward_intermediates(x, output_fmt="NLC")


def test_weight_decay_spares_the_scan():
    model = make()
    spared = model.no_weight_decay()
    assert spared >= {"layers.0.blocks.0.op.A_logs", "layers.2.blocks.1.op.dt_projs_bias"}
    assert spared <= dict(model.named_parameters()).keys()
    assert "layers.0.blocks.0.op.in_proj.weight" not in spared


@pytest.mark.parametrize("name", TESTS)
def test_layer_decay_gives_every_depth_its_own_group(name):
    model = make(name)
    groups = param_groups_layer_decay(model, weight_decay=0.1, layer_decay=0.5)
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    assert len(scale) == len(list(model.parameters()))
    depths = [scale[id(b.norm.weight)] for stage in model.layers for b in stage.blocks]
    assert depths == sorted(set(depths))
    assert scale[id(model.patch_embed[0].weight)] < depths[0]
    assert scale[id(model.get_classifier().weight)] == 1.0
    for stage, following in zip(model.layers, list(model.layers)[1:], strict=False):
        (between,) = {scale[id(p)] for p in stage.downsample.parameters()}
        last, first = (s.blocks[i].norm.weight for s, i in ((stage, -1), (following, 0)))
        assert scale[id(last)] < between < scale[id(first)]


def test_layer_decay_can_take_whole_stages():
    model = make()
    stem, stages = (model.group_matcher(coarse=True)[key] for key in ("stem", "blocks"))
    names = [name for name, _ in model.named_parameters()]
    assert {name.split(".")[0] for name in names if re.match(stem, name)} == {"patch_embed"}
    found = [match for name in names if (match := re.match(stages[0][0], name))]
    assert sorted({match[1] for match in found}) == ["0", "1", "2", "3"]


def test_checkpointing_gives_the_same_gradients():
    x, gradients = image(), []
    for enable in (False, True):
        model = make().train()
        model.set_grad_checkpointing(enable)
        model(x).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        assert plain.abs().sum() > 0
        torch.testing.assert_close(plain, recomputed, rtol=1e-5, atol=1e-7)


def test_checkpointing_recomputes_the_blocks():
    model, calls = make().train(), []
    model.layers[2].blocks[1].register_forward_pre_hook(lambda *_: calls.append(1))
    model.set_grad_checkpointing()
    model(image()).sum().backward()
    assert len(calls) == 2


@pytest.mark.parametrize("name", TESTS)
@pytest.mark.parametrize("size", [(32, 96), (36, 50), (5, 4), (33, 31)])
def test_any_image_size_is_taken(name, size):
    model, x = make(name), image(*size)
    assert model(x).shape == (2, 10)
    maps = model.forward_intermediates(x, intermediates_only=True)
    first = [math.ceil(s / 4) if name == "test_vmamba" else s // 4 for s in size]
    for i, out in enumerate(maps):
        assert list(out.shape[2:]) == [math.ceil(s / 2**i) for s in first]


@pytest.mark.parametrize("name", TESTS)
def test_images_smaller_than_a_patch_are_refused(name):
    with pytest.raises(InputError, match=r"3 x 64 pixels, too small for one patch: .* 4 x 4"):
        make(name)(image(3, 64))


def test_the_size_of_photos_can_be_changed():
    model, x = make(), image()
    expected = model(x)
    model.set_input_size((96, 128))
    assert model.img_size == (96, 128)
    assert make(img_size=96).img_size == (96, 96)
    assert torch.equal(model(x), expected)


@pytest.mark.parametrize("name", TESTS)
def test_every_pixel_reaches_the_logits(name):
    model, x = make(name), image(count=1).requires_grad_()
    (gradient,) = torch.autograd.grad(model(x)[0, 0], x)
    assert gradient.abs().sum(1).gt(0).all()


@pytest.mark.parametrize("name", TESTS)
def test_copies_and_saved_state_give_the_same_logits(name):
    model, x = make(name), image()
    expected = model(x)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = timm.create_model(name, num_classes=10).eval()
    assert not torch.equal(other(x), expected)
    other.load_state_dict(torch.load(file, weights_only=True))
    for copied in (copy.deepcopy(model), other):
        assert torch.equal(copied(x), expected)


@pytest.mark.parametrize("name", TESTS)
@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float16, 2e-2), (torch.bfloat16, 1e-1), (torch.float64, 1e-5)]
)
def test_other_floating_types(name, dtype, bound):
    expected = make(name)(image())
    logits = make(name).to(dtype)(image().to(dtype))
    assert logits.dtype == dtype
    error = (logits.double() - expected.double()).norm() / expected.double().norm()
    assert 0 < error <= bound


@pytest.mark.parametrize("name", TESTS)
def test_training_drops_branches_and_trains_everything(name):
    model, x = make(name, drop_path_rate=0.4, drop_rate=0.1).train(), image(count=8)
    blocks = [block for stage in model.layers for block in stage.blocks]
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for block in blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
    assert not torch.equal(model(x), model(x))
    model(x).square().sum().backward()
    idle = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []
    model.eval()
    assert torch.equal(model(x), model(x))


@pytest.mark.parametrize("name", TESTS)
def test_a_few_steps_of_training_reduce_the_loss(name):
    model, x, labels = make(name).train(), image(count=8), torch.arange(8)
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=1e-3), []
    for _ in range(20):
        loss = nn.functional.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_inference_mode_first_does_not_spoil_gradients_later():
    model, size = make(), (24, 44)  # a size that no other test uses
    with torch.inference_mode():
        model(image(*size))
    x = image(*size).requires_grad_()
    (gradient,) = torch.autograd.grad(model(x).sum(), x)
    assert gradient.abs().sum() > 0


@pytest.mark.parametrize("name", TESTS)
def test_compiled_models_give_the_same_logits(name):
    model = make(name)
    with torch.no_grad():
        compiled = torch.compile(model, backend="eager")
        for size in ((64, 64), (64, 96)):
            x = image(*size)
            torch.testing.assert_close(compiled(x), model(x), rtol=1e-5, atol=1e-6)
    torch._dynamo.reset()


def test_other_channels_and_direct_construction():
    model = VMamba(in_chans=1, num_classes=3, dim=8, depths=(1, 1), img_size=32)
    assert model(torch.zeros(1, 1, 32, 32)).shape == (1, 3)
    assert model.img_size == (32, 32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"global_pool": "token"}, "give 'avg', or ''"),
        ({"generation": "v1"}, "give 'v0' or 'v2'"),
    ],
)
def test_unknown_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        make(**options)
    if "global_pool" in options:
        with pytest.raises(InputError, match=message):
            make().reset_classifier(3, **options)
