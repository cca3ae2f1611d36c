"""MambaVision has the official tensors and keeps timm's contract at every image size."""

import pytest
import timm
import torch
from small_mambavision import image, make
from timm.optim import param_groups_layer_decay
from torch import nn

from vimlrp.errors import InputError
from vimlrp.models import MambaVision
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


def test_direct_construction():
    model = MambaVision(in_chans=1, num_classes=3, dim=8, in_dim=4, depths=(1, 1, 1, 1)).eval()
    assert model(torch.zeros(1, 1, 32, 32)).shape == (1, 3)
