"""Vim has the official tensors, keeps timm's contract, and places its class tokens anywhere."""

import copy
import io
import math

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import nn

from vimlrp.errors import InputError
from vimlrp.models.vim import VisionMamba

# Name: width D, tokens L, parameters (docs of the official repository, counted by its code).
PUBLISHED = {
    "vim_tiny_patch16_224": (192, 197, 7_148_008),
    "vim_tiny_patch16_stride8_224": (192, 730, 7_250_344),
    "vim_small_patch16_224": (384, 197, 25_796_584),
    "vim_small_patch16_stride8_224": (384, 730, 26_001_256),
    "vim_base_patch16_224": (768, 197, 97_598_440),
}
PLACES = ["middle", "head", "tail", "double", "none"]


def official_shapes(width, tokens, depth=24, states=16, taps=4, classes=1000):
    """Names and shapes of an official state_dict."""
    inner, rank = 2 * width, math.ceil(width / 16)
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, tokens, width),
        "patch_embed.proj.weight": (width, 3, 16, 16),
        "patch_embed.proj.bias": (width,),
        "norm_f.weight": (width,),
        "head.weight": (classes, width),
        "head.bias": (classes,),
    }
    direction = {
        "conv1d{}.weight": (inner, 1, taps),
        "conv1d{}.bias": (inner,),
        "x_proj{}.weight": (rank + 2 * states, inner),
        "dt_proj{}.weight": (inner, rank),
        "dt_proj{}.bias": (inner,),
        "A{}_log": (inner, states),
        "D{}": (inner,),
    }
    for i in range(depth):
        shapes[f"layers.{i}.norm.weight"] = (width,)
        shapes[f"layers.{i}.mixer.in_proj.weight"] = (2 * inner, width)
        shapes[f"layers.{i}.mixer.out_proj.weight"] = (width, inner)
        for suffix in ("", "_b"):
            for name, shape in direction.items():
                shapes[f"layers.{i}.mixer.{name.format(suffix)}"] = shape
    return shapes


def make(place="middle", **changes):
    torch.manual_seed(0)
    pool = "avg" if place == "none" else "token"
    arguments = {"num_classes": 10, "class_token": place, "global_pool": pool, **changes}
    return timm.create_model("test_vim", **arguments).eval()


def image(*size, count=2):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, *(size or (64, 64)), generator=generator)


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_variants_have_the_official_tensors(name):
    width, tokens, parameters = PUBLISHED[name]
    with torch.device("meta"):
        model = timm.create_model(name)
    state = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    assert state == official_shapes(width, tokens)
    assert len(state) == 415
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not list(model.buffers())


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_variants_say_where_their_weights_are(name):
    config = timm.get_pretrained_cfg(name)
    size = name.split("_")[1]
    assert config.hf_hub_id == f"hustvl/Vim-{size}-midclstok"
    assert config.hf_hub_filename.startswith(f"vim_{size[0]}_midclstok_")
    assert ("_ft_" in config.hf_hub_filename) == ("stride8" in name)
    assert (config.num_classes, config.input_size) == (1000, (3, 224, 224))
    assert (config.crop_pct, config.interpolation) == (0.875, "bicubic")


def test_initial_weights_are_the_papers():
    mixer = make().layers[0].mixer
    states = torch.arange(1, 5).float()
    torch.testing.assert_close(mixer.A_log.exp(), states.expand(64, 4))
    torch.testing.assert_close(mixer.A_b_log.exp(), states.expand(64, 4))
    assert mixer.D.eq(1).all()
    step = nn.functional.softplus(mixer.dt_proj.bias)
    assert 1e-4 <= step.min() < 0.01 < 0.05 < step.max() <= 0.1 + 1e-6


def test_features_head_and_logits():
    model, x = make(), image()
    features = model.forward_features(x)
    pooled = model.forward_head(features, pre_logits=True)
    assert features.shape == (2, 17, 32)
    assert torch.equal(pooled, features[:, 8])
    assert torch.equal(model.forward_head(features), model.head(pooled))
    assert torch.equal(model(x), model.head(pooled))


@pytest.mark.parametrize(("place", "rows"), [("head", [0]), ("tail", [16]), ("double", [0, 17])])
def test_class_tokens_elsewhere_are_pooled(place, rows):
    model, x = make(place), image()
    features = model.forward_features(x)
    pooled = model.forward_head(features, pre_logits=True)
    torch.testing.assert_close(pooled, features[:, rows].mean(1))


@pytest.mark.parametrize("place", PLACES)
def test_mean_pooling_takes_the_sequence(place):
    model, x = make(place, global_pool="avg"), image()
    features = model.forward_features(x)
    torch.testing.assert_close(model.forward_head(features, pre_logits=True), features.mean(1))


def test_no_pooling_keeps_the_sequence():
    model, x = make(num_classes=0, global_pool=""), image()
    assert torch.equal(model(x), model.forward_features(x))


def test_classifier_is_found_and_replaced():
    model, x = make(), image()
    assert model.get_classifier() is model.head
    assert (model.num_classes, model.num_features, model.head_hidden_size) == (10, 32, 32)
    before = model.forward_features(x)
    model.reset_classifier(3)
    assert model(x).shape == (2, 3)
    assert (model.num_classes, model.global_pool) == (3, "token")
    model.reset_classifier(0, global_pool="avg")
    assert isinstance(model.get_classifier(), nn.Identity)
    torch.testing.assert_close(model(x), before.mean(1))


def test_new_classifier_has_the_models_type():
    model = make().double()
    model.reset_classifier(4)
    assert model(image().double()).dtype == torch.float64


def test_configuration_names_real_modules():
    model = make()
    assert model.pretrained_cfg is model.default_cfg
    assert model.pretrained_cfg["num_classes"] == 1000
    first, head = (model.default_cfg[key] for key in ("first_conv", "classifier"))
    assert model.get_submodule(first) is model.patch_embed.proj
    assert model.get_submodule(head) is model.get_classifier()


def test_weight_decay_spares_the_scan_and_the_embeddings():
    model = make("double")
    spared = model.no_weight_decay()
    assert spared >= {"pos_embed", "cls_token_head", "cls_token_tail"}
    assert spared >= {"layers.0.mixer.A_log", "layers.2.mixer.A_b_log"}
    assert spared <= dict(model.named_parameters()).keys()
    assert "layers.0.mixer.in_proj.weight" not in spared


def test_layer_decay_gives_every_depth_its_own_group():
    model = make()
    groups = param_groups_layer_decay(model, weight_decay=0.1, layer_decay=0.5)
    scale = {id(p): group["lr_scale"] for group in groups for p in group["params"]}
    assert len(scale) == len(list(model.parameters()))
    depths = [scale[id(layer.norm.weight)] for layer in model.layers]
    assert depths == sorted(set(depths))
    assert scale[id(model.pos_embed)] == scale[id(model.patch_embed.proj.weight)] < depths[0]
    assert scale[id(model.head.weight)] == 1.0 >= scale[id(model.norm_f.weight)] > depths[-2]


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
    model.layers[1].register_forward_pre_hook(lambda *_: calls.append(1))
    model.set_grad_checkpointing()
    model(image()).sum().backward()
    assert len(calls) == 2


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("size", [(96, 80), (48, 64)])
def test_other_image_sizes_agree_however_they_are_asked_for(place, size):
    x, model = image(*size), make(place)
    dynamic = make(place, dynamic_img_size=True)
    expected = dynamic(x)
    model.set_input_size(size)
    torch.testing.assert_close(model(x), expected)
    assert model.pos_embed.requires_grad
    assert model.pos_embed.shape[1] == model.layout.length
    created = make(place, img_size=size)
    state = dynamic.state_dict()
    created.load_state_dict({**state, "pos_embed": model.pos_embed})
    torch.testing.assert_close(created(x), expected)


@pytest.mark.parametrize("place", PLACES)
def test_interpolation_leaves_class_tokens_out(place):
    model = make(place)
    with torch.no_grad():
        model.pos_embed.fill_(1.0)
        model.pos_embed[:, list(model.layout.special)] = 50.0
    model.set_input_size((96, 80))
    layout = model.layout
    assert layout.grid == (6, 5)
    patches = layout.patches_of(model.pos_embed)
    torch.testing.assert_close(patches, torch.ones_like(patches))
    assert layout.special_of(model.pos_embed).eq(50).all()


def test_interpolation_follows_rows_and_columns():
    model = make()
    rows = torch.arange(4.0).repeat_interleave(4)  # row of each patch, in row-major order
    with torch.no_grad():
        patches = [i for i in range(model.layout.length) if i not in model.layout.special]
        model.pos_embed[0, patches] = rows[:, None].expand(16, 32)
    model.set_input_size((64, 128))
    grid = model.layout.patches_of(model.pos_embed)[0, :, 0].view(4, 8)
    torch.testing.assert_close(grid, torch.arange(4.0)[:, None].expand(4, 8))


def test_same_size_changes_nothing():
    model = make()
    before = model.pos_embed.detach().clone()
    model.set_input_size(64)
    assert torch.equal(model.pos_embed, before)


def test_dynamic_size_at_the_own_size_is_exact():
    assert torch.equal(make(dynamic_img_size=True)(image()), make()(image()))


def test_strides_make_overlapping_patches():
    model = make(stride=8, img_size=(64, 48))
    assert model.layout.grid == (7, 5)
    assert model(image(64, 48)).shape == (2, 10)


def test_wrong_input_size_says_what_to_do():
    message = (
        "the input is 32 x 64 pixels, this model takes 64 x 64: .*img_size=.*dynamic_img_size=True"
    )
    with pytest.raises(InputError, match=message):
        make()(image(32, 64))


@pytest.mark.parametrize("place", PLACES)
def test_every_token_reaches_the_logits(place):
    model = make(place)
    x = image(count=1).requires_grad_()
    (gradient,) = torch.autograd.grad(model(x)[0, 0], x)
    patches = gradient[0].abs().sum(0).view(4, 16, 4, 16).sum((1, 3))
    assert patches.gt(0).all()


def test_copies_and_saved_state_give_the_same_logits():
    model, x = make(), image()
    expected = model(x)
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    other = timm.create_model("test_vim", num_classes=10).eval()
    assert not torch.equal(other(x), expected)
    other.load_state_dict(torch.load(file, weights_only=True))
    for copied in (copy.deepcopy(model), other):
        assert torch.equal(copied(x), expected)


@pytest.mark.parametrize(
    ("dtype", "bound"), [(torch.float16, 2e-2), (torch.bfloat16, 1e-1), (torch.float64, 1e-5)]
)
def test_other_floating_types(dtype, bound):
    expected = make()(image())
    logits = make().to(dtype)(image().to(dtype))
    assert logits.dtype == dtype
    error = (logits.double() - expected.double()).norm() / expected.double().norm()
    assert 0 < error <= bound


def test_training_drops_branches_and_trains_everything():
    model, x = make(drop_path_rate=0.5, drop_rate=0.1, pos_drop_rate=0.1).train(), image(count=8)
    rates = [getattr(layer.drop_path, "drop_prob", 0.0) for layer in model.layers]
    assert [*rates, model.drop_path.drop_prob] == pytest.approx([0.0, 0.0, 0.25, 0.5])
    assert not torch.equal(model(x), model(x))
    model(x).square().sum().backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert idle == []
    model.eval()
    assert torch.equal(model(x), model(x))


def test_a_few_steps_of_training_reduce_the_loss():
    model, x, labels = make().train(), image(count=8), torch.arange(8)
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=3e-3), []
    for _ in range(20):
        loss = nn.functional.cross_entropy(model(x), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


def test_other_channels_and_direct_construction():
    model = VisionMamba(img_size=32, in_chans=1, embed_dim=16, depth=1, d_state=2, num_classes=3)
    assert model(torch.zeros(1, 1, 32, 32)).shape == (1, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"class_token": "none"}, "global_pool='avg'"),
        ({"global_pool": "max"}, "'token', 'avg'"),
        ({"class_token": "centre"}, "middle"),
    ],
)
def test_token_and_pooling_must_fit(options, message):
    with pytest.raises(InputError, match=message):
        make(**options)
    if "global_pool" in options:
        with pytest.raises(InputError, match=message):
            make().reset_classifier(3, **options)
