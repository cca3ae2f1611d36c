"""Raw attention, rollout and attribution against products of whole matrices in float64."""

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from attention_by_hand import observed, shared_out, step
from helpers import images, relative_error, small_vim
from small_vmamba import small_vmamba

from vimlrp.baselines import METHODS, mixers, rollout
from vimlrp.errors import InputError

TARGET = torch.tensor([1, 3])
X = images(2, 32)
KINDS = {"rollout": "attention_rollout", "attribution": "mamba_attribution"}


def readout(model):
    """The weights with which a Vim of 16 patches reads its tokens."""
    layout = model.layout
    weights = torch.zeros(layout.length, dtype=torch.float64)
    if model.global_pool == "avg":
        return weights + 1 / layout.length
    places = {"middle": [8], "head": [0], "tail": [16], "double": [0, 17]}[layout.class_token]
    weights[places] = 1 / len(places)
    return weights


def pixels(cells):
    """(B, h, w) to (B, 32, 32)."""
    return F.interpolate(cells[:, None], (32, 32), mode="bilinear", align_corners=False)[:, 0]


def scaled(maps):
    """Maps that count up to a positive factor."""
    return maps / maps.abs().amax((1, 2), keepdim=True)


LAYOUTS = [
    {"class_token": "middle"},
    {"class_token": "head"},
    {"class_token": "tail"},
    {"class_token": "double"},
    {"class_token": "middle", "global_pool": "avg"},
    {"class_token": "none", "global_pool": "avg"},
]


@pytest.mark.parametrize("options", LAYOUTS, ids=lambda o: "-".join(o.values()))
@pytest.mark.parametrize("kind", KINDS)
def test_vim_is_the_product_of_its_layers_in_every_layout(kind, options):
    model = small_vim(depth=3, **options)
    product = None
    for alpha, slope in observed(model, model.layers, X, TARGET):
        layer = step(kind, alpha, slope)
        product = layer if product is None else layer @ product
    row = readout(model) @ product
    expected = pixels(model.layout.patches_of(row).reshape(2, 4, 4))
    maps = METHODS[KINDS[kind]].function(model, X, TARGET)
    assert relative_error(scaled(maps), scaled(expected)) < 1e-10


@pytest.mark.parametrize("options", LAYOUTS, ids=lambda o: "-".join(o.values()))
def test_raw_attention_of_vim_is_the_mean_of_the_rows_that_are_read(options):
    model = small_vim(**options)
    rows = [readout(model) @ alpha for alpha, _ in observed(model, model.layers, X, TARGET)]
    expected = pixels(model.layout.patches_of(sum(rows) / 2).reshape(2, 4, 4))
    maps = METHODS["raw_attention"].function(model, X, TARGET)
    assert relative_error(maps, expected) < 1e-10


def blocks_of(model):
    return [block for stage in model.layers for block in stage.blocks]


@pytest.mark.parametrize("generation", ["v0", "v2"])
@pytest.mark.parametrize("kind", KINDS)
def test_vmamba_is_rolled_out_through_its_stages(kind, generation):
    model = small_vmamba(generation=generation)  # maps of 8 x 8 and 4 x 4
    layers = observed(model, blocks_of(model), X, TARGET)
    steps = [step(kind, *layer) for layer in layers]
    row = torch.full((2, 1, 16), 1 / 16, dtype=torch.float64)
    row = row @ steps[2] @ steps[1] @ shared_out((4, 4), (8, 8)) @ steps[0]
    maps = METHODS[KINDS[kind]].function(model, X, TARGET, start=0.0)
    assert relative_error(scaled(maps), scaled(pixels(row.reshape(2, 8, 8)))) < 1e-10


def test_raw_attention_of_vmamba_is_the_mean_over_its_stages():
    model = small_vmamba()
    alphas = [alpha for alpha, _ in observed(model, blocks_of(model), X, TARGET)]
    rows = [alpha.mean(1) for alpha in alphas]
    shares = shared_out((4, 4), (8, 8))
    cells = (rows[0] + rows[1] @ shares + rows[2] @ shares) / 3
    maps = METHODS["raw_attention"].function(model, X, TARGET, start=0.0)
    assert relative_error(maps, pixels(cells.reshape(2, 8, 8))) < 1e-10


def test_of_vmamba_the_later_half_of_the_stages_is_taken():
    model = small_vmamba()
    later = METHODS["attention_rollout"].function(model, X, TARGET, start=0.5)
    assert torch.equal(METHODS["attention_rollout"](model, X, TARGET), later.float())
    layers = observed(model, model.layers[1].blocks, X, TARGET)
    first, second = (step("rollout", *layer) for layer in layers)
    expected = pixels((second @ first).mean(1).reshape(2, 4, 4))
    assert relative_error(scaled(later), scaled(expected)) < 1e-10


def test_the_first_blocks_of_vim_can_be_left_out():
    model = small_vim(depth=3)
    layers = observed(model, model.layers[1:], X, TARGET)
    first, second = (step("attribution", *layer) for layer in layers)
    row = readout(model) @ (second @ first)
    expected = pixels(model.layout.patches_of(row).reshape(2, 4, 4))
    maps = METHODS["mamba_attribution"].function(model, X, TARGET, start=0.5)
    assert relative_error(scaled(maps), scaled(expected)) < 1e-10


def test_attribution_depends_on_the_class_and_rollout_does_not():
    model, other = small_vim(), torch.tensor([0, 2])
    for name, same in (("attention_rollout", True), ("mamba_attribution", False)):
        first, second = (METHODS[name](model, X, target) for target in (TARGET, other))
        assert torch.equal(first, second) is same


@pytest.mark.parametrize("start", [-0.1, 1.0, 2.0])
def test_a_start_that_leaves_nothing_is_refused(start):
    with pytest.raises(InputError, match="from 0 to below 1"):
        METHODS["raw_attention"].function(small_vim(), X, TARGET, start=start)


def test_sides_that_do_not_divide_are_shared_out_whole():
    row = torch.rand(2, 6, dtype=torch.float64)  # 2 x 3 cells over 5 x 7
    spread = rollout._spread(row, (2, 3), (5, 7))
    assert spread.shape == (2, 35)
    assert relative_error(spread.sum(1), row.sum(1)) < 1e-14
    maps = METHODS["mamba_attribution"](small_vmamba(), images(1, 36), TARGET[:1])
    assert maps.shape == (1, 36, 36)


@pytest.mark.parametrize("model", [small_vim(), small_vmamba()], ids=["vim", "vmamba"])
def test_large_matrices_are_kept_for_fewer_images_at_a_time(model, monkeypatch):
    expected = METHODS["mamba_attribution"](model, X, TARGET)
    sizes, run = [], rollout.run_mixers

    def counting(own, x, *rest):
        sizes.append(len(x))
        return run(own, x, *rest)

    monkeypatch.setattr(rollout, "run_mixers", counting)
    monkeypatch.setattr(rollout, "_MOST", mixers.count_entries(model, X, 0.0))
    METHODS["mamba_attribution"].function(model, X, TARGET, start=0.0)
    assert sizes == [1, 1]
    monkeypatch.setattr(rollout, "_MOST", 1)
    assert relative_error(METHODS["mamba_attribution"](model, X, TARGET), expected) < 1e-6


def test_the_entries_of_the_matrices_are_counted():
    layers = mixers.run_mixers(small_vmamba(), X, TARGET, 0.0, slopes=False)
    kept = sum(layer.attention[0].numel() for layer in layers)
    assert mixers.count_entries(small_vmamba(), X, 0.0) == kept == 64**2 + 2 * 16**2
    assert mixers.count_entries(small_vim(), X, 0.5) == 17**2
