"""MambaVision takes images of every size, cuts its maps into windows, and hands its maps out."""

import pytest
import timm
import torch
from small_mambavision import image, make
from torch import nn

from vimlrp.errors import InputError
from vimlrp.models.mambavision_levels import join_windows, split_windows


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
