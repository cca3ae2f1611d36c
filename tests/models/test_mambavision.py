"""MambaVision has the official tensors and keeps timm's contract at every image size."""

import argparse
import copy

import pytest
import timm
import torch
from small_mambavision import balance
from timm.optim import param_groups_layer_decay
from torch import nn

import vimlrp
from vimlrp.errors import CheckpointError, InputError
from vimlrp.models import MambaVision
from vimlrp.models.mambavision_blocks import join_windows, split_windows
from vimlrp.models.mambavision_mixer import MambaMixer, SelfAttention

# Name: width, channels in the stem, depths, scaled branches, tensors, parameters, and the blocks of
# the last two levels that attend, as the official code builds them.
PUBLISHED = {
    "tiny": (80, 32, (1, 3, 8, 4), False, 252, 31_794_248, (4, 2)),
    "tiny2": (80, 32, (1, 3, 11, 4), False, 298, 35_104_008, (5, 2)),
    "small": (96, 64, (3, 3, 7, 5), False, 285, 50_140_584, (3, 2)),
    "base": (128, 64, (3, 3, 10, 5), True, 356, 97_685_288, (5, 2)),
    "large": (196, 64, (3, 3, 10, 5), True, 356, 227_961_048, (5, 2)),
    "large2": (196, 64, (3, 3, 12, 5), True, 389, 241_554_824, (6, 2)),
}
ENDS = {"tiny2": ("T2", 0.98), "small": ("S", 0.93), "tiny": ("T", 1.0), "base": ("B", 1.0)}
ENDS |= {"large": ("L", 1.0), "large2": ("L2", 1.0)}


def norm_shapes(name, width):
    statistics = ("weight", "bias", "running_mean", "running_var")
    return {f"{name}.{s}": (width,) for s in statistics} | {f"{name}.num_batches_tracked": ()}


def conv_block_shapes(name, width):
    shapes = {}
    for i in (1, 2):
        shapes[f"{name}.conv{i}.weight"] = (width, width, 3, 3)
        shapes[f"{name}.conv{i}.bias"] = (width,)
        shapes |= norm_shapes(f"{name}.norm{i}", width)
    return shapes


def token_block_shapes(name, width, attends, scaled):
    half, rank = width // 2, -(-width // 16)
    mixer = {
        "in_proj.weight": (width, width),
        "conv1d_x.weight": (half, 1, 3),
        "conv1d_z.weight": (half, 1, 3),
        "x_proj.weight": (rank + 16, half),
        "dt_proj.weight": (half, rank),
        "dt_proj.bias": (half,),
        "A_log": (half, 8),
        "D": (half,),
        "out_proj.weight": (width, width),
    }
    if attends:
        mixer = {
            "qkv.weight": (3 * width, width),
            "qkv.bias": (3 * width,),
            "proj.weight": (width, width),
            "proj.bias": (width,),
        }
    shapes = {f"{name}.mixer.{key}": shape for key, shape in mixer.items()}
    for part in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"):
        shapes[f"{name}.{part}"] = (width,)
    shapes[f"{name}.mlp.fc1.weight"] = (4 * width, width)
    shapes[f"{name}.mlp.fc1.bias"] = (4 * width,)
    shapes[f"{name}.mlp.fc2.weight"] = (width, 4 * width)
    shapes[f"{name}.mlp.fc2.bias"] = (width,)
    if scaled:
        shapes |= {f"{name}.gamma_{i}": (width,) for i in (1, 2)}
    return shapes


def official_shapes(dim, in_dim, depths, scaled, attending):
    """Names and shapes of an official state_dict."""
    shapes = {
        "patch_embed.conv_down.0.weight": (in_dim, 3, 3, 3),
        "patch_embed.conv_down.3.weight": (dim, in_dim, 3, 3),
        "head.weight": (1000, 8 * dim),
        "head.bias": (1000,),
    }
    shapes |= norm_shapes("patch_embed.conv_down.1", in_dim)
    shapes |= norm_shapes("patch_embed.conv_down.4", dim) | norm_shapes("norm", 8 * dim)
    for i, depth in enumerate(depths):
        width = dim * 2**i
        for j in range(depth):
            name = f"levels.{i}.blocks.{j}"
            if i < 2:
                shapes |= conv_block_shapes(name, width)
            else:
                attends = j >= depth - attending[i - 2]
                shapes |= token_block_shapes(name, width, attends, scaled)
        if i < 3:
            shapes[f"levels.{i}.downsample.reduction.0.weight"] = (2 * width, width, 3, 3)
    return shapes


def make(seed=0, **changes):
    torch.manual_seed(seed)
    model = timm.create_model("test_mambavision", **{"num_classes": 10, **changes}).eval()
    balance(model)
    return model


def image(*size, count=2):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, *(size or (64, 64)), generator=generator)


@pytest.mark.parametrize("size", PUBLISHED)
def test_published_variants_have_the_official_tensors(size):
    dim, in_dim, depths, scaled, tensors, parameters, attending = PUBLISHED[size]
    with torch.device("meta"):
        model = timm.create_model(f"mambavision_{size}_224")
    state = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert state == official_shapes(dim, in_dim, depths, scaled, attending)
    assert len(state) == tensors
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("size", PUBLISHED)
def test_published_variants_say_where_their_weights_are(size):
    config, (short, crop) = timm.get_pretrained_cfg(f"mambavision_{size}_224"), ENDS[size]
    assert config.hf_hub_id == f"nvidia/MambaVision-{short}-1K"
    assert config.hf_hub_filename == f"mambavision_{size}_1k.pth.tar"
    assert config.license == "cc-by-nc-sa-4.0"
    assert (config.num_classes, config.input_size, config.crop_pct) == (1000, (3, 224, 224), crop)


@pytest.mark.parametrize(("depth", "scans"), [(1, 1), (2, 1), (3, 2), (8, 4), (11, 6)])
def test_the_second_half_attends_the_smaller_one_of_an_odd_number(depth, scans):
    model = make(depths=(1, 1, depth, 1))
    mixers = [type(block.mixer) for block in model.levels[2].blocks]
    assert mixers == [MambaMixer] * scans + [SelfAttention] * (depth - scans)


def test_initial_weights_are_mambas():
    mixer = timm.create_model("mambavision_tiny_224").levels[2].blocks[0].mixer
    torch.testing.assert_close(mixer.A_log.exp(), torch.arange(1.0, 9).expand(160, 8))
    assert mixer.D.eq(1).all()
    step = nn.functional.softplus(mixer.dt_proj.bias)
    assert 1e-4 <= step.min() < 0.01 < 0.05 < step.max() <= 0.1 + 1e-6


def test_layer_scale_starts_where_it_is_asked_to():
    model = timm.create_model("test_mambavision", layer_scale=1e-5)
    scales = [p for name, p in model.named_parameters() if "gamma" in name]
    assert len(scales) == 10
    assert all((scale == 1e-5).all() for scale in scales)
    assert not [name for name, _ in make().named_parameters() if "gamma" in name]


def test_features_head_and_logits():
    model, x = make(), image(64, 96)
    features = model.forward_features(x)
    pooled = model.forward_head(features, pre_logits=True)
    assert features.shape == (2, 2, 3, 64)
    torch.testing.assert_close(pooled, features.flatten(1, 2).mean(1))
    assert torch.equal(model(x), model.head(pooled))
    assert model(x).shape == (2, 10)


def test_no_pooling_keeps_the_map():
    model, x = make(num_classes=0, global_pool=""), image()
    assert torch.equal(model(x), model.forward_features(x))


def test_classifier_is_found_and_replaced():
    model, x = make().double(), image().double()
    assert model.get_classifier() is model.head
    assert (model.num_classes, model.num_features, model.head_hidden_size) == (10, 64, 64)
    before = model.forward_features(x)
    model.reset_classifier(3)
    assert model(x).shape == (2, 3)
    assert model(x).dtype == torch.float64
    model.reset_classifier(0, global_pool="")
    assert isinstance(model.get_classifier(), nn.Identity)
    assert torch.equal(model(x), before)


def test_configuration_names_real_modules():
    model = make()
    first, head = (model.default_cfg[key] for key in ("first_conv", "classifier"))
    assert model.get_submodule(first) is model.patch_embed.conv_down[0]
    assert model.get_submodule(head) is model.get_classifier()
    assert all(model.get_submodule(info["module"]) for info in model.feature_info)


def test_intermediates_are_the_maps_before_the_next_level():
    model, x = make(), image(64, 96)
    features, maps = model.forward_intermediates(x)
    assert [tuple(m.shape) for m in maps] == [
        (2, 8, 16, 24),
        (2, 16, 8, 12),
        (2, 32, 4, 6),
        (2, 64, 2, 3),
    ]
    assert torch.equal(features, model.forward_features(x))
    for info, level in zip(model.feature_info, maps, strict=True):
        assert level.shape[1] == info["num_chs"]
        assert level.shape[3] == 96 // info["reduction"]
    torch.testing.assert_close(model.norm(maps[-1].permute(0, 2, 3, 1)), features)
    below = model.levels[2].features(model.levels[1].downsample(maps[1].permute(0, 2, 3, 1)))
    torch.testing.assert_close(below.permute(0, 3, 1, 2), maps[2])


def test_intermediates_as_they_are_asked_for():
    model, x = make(), image()
    _, maps = model.forward_intermediates(x)
    last = model.forward_intermediates(x, indices=2, output_fmt="NHWC", intermediates_only=True)
    assert [tuple(m.shape) for m in last] == [(2, 4, 4, 32), (2, 2, 2, 64)]
    normed = model.forward_intermediates(x, indices=[1, -1], norm=True, intermediates_only=True)
    assert torch.equal(normed[0], maps[1])
    assert torch.equal(normed[1], model.forward_features(x).permute(0, 3, 1, 2))
    early, maps = model.forward_intermediates(x, indices=[0, 1], stop_early=True)
    assert torch.equal(early, model.levels[1](model.levels[0](model.patch_embed(x))))
    assert len(maps) == 2


def test_stopping_early_runs_nothing_above():
    model = make()
    model.levels[2].register_forward_hook(lambda *_: pytest.fail("ran"))
    model.levels[2].blocks[0].register_forward_hook(lambda *_: pytest.fail("ran"))
    model.forward_intermediates(image(), indices=[1], stop_early=True)


def test_intermediates_of_another_format_are_refused():
    with pytest.raises(InputError, match="output_fmt is 'NLC'; give 'NCHW' or 'NHWC'"):
        make().forward_intermediates(image(), output_fmt="NLC")


def test_timm_extracts_features():
    expected = make().forward_intermediates(image(), indices=[1, 3], intermediates_only=True)
    for _ in range(2):
        model = timm.create_model("test_mambavision", features_only=True, out_indices=(1, 3)).eval()
        assert model.feature_info.channels() == [16, 64]
        assert model.feature_info.reduction() == [8, 32]
        wanted = make().state_dict()
        state = {k: wanted[k.removeprefix("model.")] for k in model.state_dict()}
        assert "model.head.weight" not in state
        model.load_state_dict(state)
        for ours, theirs in zip(model(image()), expected, strict=True):
            assert torch.equal(ours, theirs)


def test_timm_extracts_features_with_pretrained_weights(tmp_path):
    source, path = make(1), tmp_path / "mambavision.pth.tar"
    torch.save(source.state_dict(), path)
    model = timm.create_model(
        "test_mambavision",
        pretrained=True,
        pretrained_cfg_overlay={"file": str(path), "num_classes": 10},
        features_only=True,
        out_indices=(0, 2),
    ).eval()
    expected = source.forward_intermediates(image(), indices=[0, 2], intermediates_only=True)
    assert all(map(torch.equal, model(image()), expected))


def test_pruned_levels_are_gone():
    model = make()
    assert model.prune_intermediate_layers([-3, 0], prune_norm=True) == [1, 0]
    assert len(model.levels) == 2
    assert isinstance(model.norm, nn.Identity)
    assert isinstance(model.head, nn.Identity)


def test_weight_decay_spares_the_scan():
    model = make()
    spared = model.no_weight_decay()
    assert spared == {f"levels.{i}.blocks.{j}.mixer.A_log" for i, j in [(2, 0), (2, 1), (3, 0)]}
    assert spared <= dict(model.named_parameters()).keys()


def test_layer_decay_gives_every_depth_its_own_group():
    model = make()
    groups = param_groups_layer_decay(model, weight_decay=0.1, layer_decay=0.5)
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    assert len(scale) == len(list(model.parameters()))
    inside = [
        scale[id(next(part.parameters()))]
        for level in model.levels
        for part in (*level.blocks, level.downsample)
        if list(part.parameters())
    ]
    assert inside == sorted(set(inside))
    assert scale[id(model.patch_embed.conv_down[0].weight)] < inside[0]
    assert scale[id(model.head.weight)] == 1.0 >= scale[id(model.norm.weight)] > inside[-2]


def test_coarse_groups_are_levels():
    names = timm.models.group_parameters(make(), make().group_matcher(coarse=True))
    levels = {name.split(".")[1]: group for group, names in names.items() for name in names}
    assert len({levels[str(i)] for i in range(4)}) == 4


def test_checkpointing_gives_the_same_gradients_and_recomputes():
    x, gradients, calls = image(), [], []
    for enable in (False, True):
        model = make().train()
        if enable:
            model.levels[2].blocks[1].register_forward_pre_hook(lambda *_: calls.append(1))
            model.levels[0].blocks[0].register_forward_pre_hook(lambda *_: calls.append(1))
        model.set_grad_checkpointing(enable)
        model(x).square().sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    assert len(calls) == 4
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("height", "width", "side"), [(8, 8, 4), (5, 9, 4), (3, 3, 4), (1, 7, 2)])
def test_windows_are_cut_and_joined(height, width, side):
    x = torch.arange(2.0 * height * width * 3).view(2, height, width, 3) + 1
    windows = split_windows(x, side)
    rows, columns = -(-height // side), -(-width // side)
    assert windows.shape == (2, rows * columns, side * side, 3)
    for i in range(rows):
        for j in range(columns):
            window = windows[:, i * columns + j].view(2, side, side, 3)
            for p in range(side):
                for q in range(side):
                    r, c = i * side + p, j * side + q
                    inside = r < height and c < width
                    expected = x[:, r, c] if inside else torch.zeros(2, 3)
                    assert torch.equal(window[:, p, q], expected)
    assert torch.equal(join_windows(windows, side, height, width), x)


def test_windows_do_not_see_each_other():
    model = make()
    level = model.levels[2]
    x = torch.randn(1, 8, 8, 32)
    changed = x.clone()
    changed[:, :4, 4:] += 1
    moved = (level.features(changed) - level.features(x)).abs().sum(-1)[0] > 0
    assert moved[:4, 4:].all()
    moved[:4, 4:] = False
    assert not moved.any()


@pytest.mark.parametrize("size", [(32, 32), (33, 47), (70, 45), (96, 160), (20, 200)])
def test_every_image_size_is_taken_and_every_pixel_seen(size):
    model = make()
    x = image(*size, count=1).requires_grad_()
    logits = model(x)
    assert logits.shape == (1, 10)
    (gradient,) = torch.autograd.grad(logits[0, 0], x)
    assert gradient.abs().sum(1).gt(0).float().mean() > 0.99


def test_samples_do_not_see_each_other():
    model, x = make().double(), image(70, 45, count=3).double()
    alone = torch.cat([model(sample[None]) for sample in x])
    torch.testing.assert_close(model(x), alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float16, 2e-2), (torch.bfloat16, 1e-1), (torch.float64, 1e-5)]
)
def test_other_floating_types(dtype, bound):
    expected = make()(image())
    logits = make().to(dtype)(image().to(dtype))
    assert logits.dtype == dtype
    error = (logits.double() - expected.double()).norm() / expected.double().norm()
    assert 0 < error <= bound


def test_training_drops_branches_trains_everything_and_follows_the_batch():
    model = make(drop_path_rate=0.6, drop_rate=0.1, layer_scale=0.1).train()
    x = image(count=8)
    blocks = [block for level in model.levels for block in level.blocks]
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for block in blocks]
    assert rates == pytest.approx([0.6 * i / 6 for i in range(7)])
    before = model.norm.running_mean.clone()
    assert not torch.equal(model(x), model(x))
    model(x).square().sum().backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # The batch's mean takes a bias away again.
    assert all(name.endswith(("conv1.bias", "conv2.bias")) for name in idle)
    assert not torch.equal(model.norm.running_mean, before)
    assert int(model.norm.num_batches_tracked) == 3
    model.eval()
    assert torch.equal(model(x), model(x))


def test_a_few_steps_of_training_reduce_the_loss():
    torch.manual_seed(0)
    model = timm.create_model("test_mambavision", num_classes=8).train()
    x, labels, losses = image(count=8), torch.arange(8), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(15):
        loss = nn.functional.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"global_pool": "token"}, "global_pool is 'token'; give 'avg'"),
        ({"num_heads": (1, 1, 3, 4)}, "level 2 is 32 wide, which 3 heads cannot share evenly"),
        ({"depths": (1, 1, 1)}, "have 3, 4 and 4 entries"),
    ],
)
def test_arguments_must_fit(options, message):
    with pytest.raises(InputError, match=message):
        make(**options)


def test_reset_with_an_unknown_pooling_changes_nothing():
    model = make()
    with pytest.raises(InputError, match="global_pool is 'max'"):
        model.reset_classifier(3, "max")
    assert (model.num_classes, model.head.weight.shape[0]) == (10, 10)


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


WRAPPED = {
    "bare": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "epoch": 3, "arch": "mamba_vision_T"},
    "model": lambda state: {"model": state, "args": argparse.Namespace(lr=1.0)},
    "module.": lambda state: {"state_dict": {f"module.{k}": v for k, v in state.items()}},
    "encoder.": lambda state: (
        {f"encoder.{k}": v for k, v in state.items()} | {"decoder.weight": torch.zeros(2)}
    ),
    "module.encoder.": lambda state: {
        "model": {f"module.encoder.{k}": v for k, v in state.items()}
    },
}


@pytest.mark.parametrize("layout", WRAPPED)
def test_official_layouts_load_strictly(tmp_path, layout):
    source, model, path = make(1), make(2), tmp_path / "mambavision.pth.tar"
    assert not same(source, model)
    torch.save(WRAPPED[layout](source.state_dict()), path)
    report = vimlrp.load_checkpoint(model, path)
    assert same(model, source)
    assert report.tensors == len(source.state_dict())


@pytest.mark.parametrize("layout", WRAPPED)
def test_pretrained_weights_load_from_official_layouts(tmp_path, layout):
    source, path = make(1), tmp_path / "mambavision.pth.tar"
    torch.save(WRAPPED[layout](source.state_dict()), path)
    overlay = {"file": str(path), "num_classes": 10}
    model = timm.create_model(
        "test_mambavision", pretrained=True, pretrained_cfg_overlay=overlay, num_classes=10
    )
    assert same(model, source)


def test_grey_pretrained_weights_and_another_classifier(tmp_path):
    source, path = make(1), tmp_path / "mambavision.pth.tar"
    torch.save(source.state_dict(), path)
    overlay = {"file": str(path), "num_classes": 10}
    model = timm.create_model(
        "test_mambavision",
        pretrained=True,
        pretrained_cfg_overlay=overlay,
        num_classes=3,
        in_chans=1,
    )
    weight = source.patch_embed.conv_down[0].weight
    torch.testing.assert_close(model.patch_embed.conv_down[0].weight, weight.sum(1, keepdim=True))
    assert model.head.weight.shape == (3, 64)


def refused(model, state, tmp_path):
    path, before = tmp_path / "mambavision.pth.tar", copy.deepcopy(model)
    torch.save(state, path)
    with pytest.raises(CheckpointError) as caught:
        vimlrp.load_checkpoint(model, path)
    assert same(model, before)
    return str(caught.value)


def test_a_checkpoint_of_another_size_names_its_model(tmp_path):
    with torch.device("meta"):
        shapes = timm.create_model("mambavision_tiny_224").state_dict()
    state = {k: torch.zeros(v.shape, dtype=torch.float16) for k, v in shapes.items()}
    message = refused(make(), {"state_dict": state}, tmp_path)
    assert "create_model('mambavision_tiny_224')" in message


def test_a_checkpoint_of_another_family_is_refused(tmp_path):
    message = refused(make(), timm.create_model("test_vim").state_dict(), tmp_path)
    assert "another architecture than this MambaVision" in message
    assert "levels.*.blocks" in message
    assert "layers.*.mixer" in message


def test_a_checkpoint_with_other_classes_is_refused(tmp_path):
    message = refused(make(), make(num_classes=7).state_dict(), tmp_path)
    assert "classifies into 7 classes, the model into 10" in message


@pytest.mark.parametrize("lost", ["norm.running_var", "levels.3.blocks.0.mixer.D"])
def test_a_checkpoint_that_lacks_a_tensor_is_refused(tmp_path, lost):
    state = make().state_dict()
    del state[lost]
    name = lost.replace(".3.", ".*.").replace(".0.", ".*.")
    assert f"the file lacks (1 tensors): {name}" in refused(make(), state, tmp_path)


def test_direct_construction():
    model = MambaVision(in_chans=1, num_classes=3, dim=8, in_dim=4, depths=(1, 1, 1, 1)).eval()
    assert model(torch.zeros(1, 1, 32, 32)).shape == (1, 3)
