"""Vim gives the features of its blocks as timm asks for them."""

import pytest
import timm
import torch
from helpers import images, relative_error, small_vim
from torch import nn

from vimlrp.errors import InputError

PLACES = ["middle", "head", "tail", "double", "none"]


def make(place="middle", **options):
    pool = "avg" if place == "none" else "token"
    return small_vim(class_token=place, global_pool=pool, depth=4, img_size=(24, 32), **options)


def picture():
    return torch.randn(2, 3, 24, 32, dtype=torch.float64)


@torch.no_grad()
def by_hand(model, x):
    """The sequence after every block, and the last one normalised."""
    hidden, residual, sequences = model.embed(x), 0, []
    for layer in model.layers:
        residual = residual + hidden
        hidden = layer.mixer(layer.norm(residual))
        sequences.append(residual + hidden)
    return sequences, model.norm_f(sequences[-1])


@pytest.mark.parametrize("place", PLACES)
def test_features_are_the_sequence_after_each_block(place):
    model, x = make(place), picture()
    sequences, last = by_hand(model, x)
    features, maps = model.forward_intermediates(x)
    assert relative_error(features, last) < 1e-12
    assert torch.equal(features, model.forward_features(x))
    assert len(maps) == len(model.feature_info) == 4
    for own, expected, info in zip(maps, sequences, model.feature_info, strict=True):
        assert own.shape == (2, info["num_chs"], 3, 4)
        assert own.shape[2] == 24 // info["reduction"]
        patches = model.layout.patches_of(expected)
        assert relative_error(own.flatten(2).transpose(1, 2), patches) < 1e-12


@pytest.mark.parametrize("place", PLACES)
def test_sequences_with_their_class_tokens(place):
    model, x = make(place), picture()
    sequences, _ = by_hand(model, x)
    pairs = model.forward_intermediates(
        x, [1, 3], return_prefix_tokens=True, output_fmt="NLC", intermediates_only=True
    )
    if place == "none":
        assert [tuple(p.shape) for p in pairs] == [(2, 12, 16)] * 2
        return
    for (patches, tokens), i in zip(pairs, (1, 3), strict=True):
        assert patches.shape == (2, 12, 16)
        assert relative_error(tokens, sequences[i][:, list(model.layout.special)]) < 1e-12


def test_features_as_they_are_asked_for():
    model, x = make(), picture()
    _, maps = model.forward_intermediates(x)
    last = model.forward_intermediates(x, indices=2, intermediates_only=True)
    assert all(map(torch.equal, last, maps[2:]))
    (normed,) = model.forward_intermediates(x, [-1], norm=True, intermediates_only=True)
    patches = model.layout.patches_of(model.forward_features(x))
    assert torch.equal(normed.flatten(2).transpose(1, 2), patches)


def test_stopping_early_runs_nothing_above():
    model, x = make(), picture()
    sequences, _ = by_hand(model, x)
    model.layers[2].register_forward_hook(lambda *_: pytest.fail("ran"))
    features, maps = model.forward_intermediates(x, [0, 1], stop_early=True)
    assert len(maps) == 2
    assert relative_error(features, model.norm_f(sequences[1])) < 1e-12


def test_another_format_is_refused():
    with pytest.raises(InputError, match="output_fmt is 'NHWC'; give 'NCHW' or 'NLC'"):
        make().forward_intermediates(picture(), output_fmt="NHWC")


def test_pruned_blocks_are_gone():
    model, x = make(), picture()
    expected = model.forward_intermediates(x, [0, 1], intermediates_only=True)
    assert model.prune_intermediate_layers([0, 1], prune_norm=True) == [0, 1]
    assert len(model.layers) == 2
    assert isinstance(model.norm_f, nn.Identity)
    assert isinstance(model.head, nn.Identity)
    assert all(map(torch.equal, model.forward_intermediates(x, intermediates_only=True), expected))


@pytest.mark.parametrize(
    ("name", "options", "channels", "reduction"),
    [
        ("test_vim", {}, [32, 32, 32], [16, 16, 16]),
        ("test_vim", {"out_indices": (0, -1)}, [32, 32], [16, 16]),
        ("test_vmamba", {}, [16, 32, 64, 128], [4, 8, 16, 32]),
        ("test_vmamba_v0", {"out_indices": (1, 3)}, [32, 128], [8, 32]),
        ("test_mambavision", {}, [8, 16, 32, 64], [4, 8, 16, 32]),
    ],
)
def test_timm_extracts_features(name, options, channels, reduction, tmp_path):
    source, path = timm.create_model(name).eval(), tmp_path / "weights.pth"
    torch.save(source.state_dict(), path)
    extractor = timm.create_model(
        name,
        pretrained=True,
        pretrained_cfg_overlay={"file": str(path)},
        features_only=True,
        **options,
    ).eval()
    assert extractor.feature_info.channels() == channels
    assert extractor.feature_info.reduction() == reduction
    x = images(2, 64, dtype=torch.float32)
    indices = options.get("out_indices", 3 if name == "test_vim" else None)
    wanted = None if indices is None else indices if isinstance(indices, int) else list(indices)
    expected = source.forward_intermediates(x, wanted, intermediates_only=True)
    maps = extractor(x)
    assert [m.shape[1] for m in maps] == channels
    assert all(map(torch.equal, maps, expected))
