"""A backbone of one file and a table of scan orders is explained like the built-in ones."""

import importlib.util
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from helpers import enliven, images, random, relative_error, remove_biases, seeded
from torch import nn

import vimlrp
from vimlrp.errors import UnsupportedModelError
from vimlrp.kernels import ScanOrder

DEMO = Path(__file__).resolve().parent.parent / "demos" / "custom_backbone.py"
SMALL = {"img_size": 24, "patch_size": 4, "dim": 16, "depth": 2, "num_classes": 5}


def load_demo():
    spec = importlib.util.spec_from_file_location("custom_backbone", DEMO)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


demo = load_demo()
ORDERS = {**demo.ORDERS, "ragged windows": lambda h, w: ScanOrder.windows(h, w, 4)}


def backbone(order="zigzag", *, biases=True, seed=0):
    with seeded(seed):
        model = demo.CustomBackbone(ORDERS[order], **SMALL).double().eval()
    enliven(model, seed)
    if not biases:
        remove_biases(model)
        nn.init.zeros_(model.pos_embed)
    return model


@pytest.mark.parametrize("order", ORDERS)
def test_every_path_visits_every_cell_once(order):
    steps = ORDERS[order](6, 6).steps(36)
    assert torch.equal(steps.sort(dim=1).values, torch.arange(36).expand_as(steps))


@pytest.mark.parametrize("order", ORDERS)
def test_every_cut_sums_to_the_target_without_biases(order):
    model = backbone(order, biases=False)
    conservation = vimlrp.check_conservation(model, images(3, 24), tolerance=1e-9)
    assert conservation.holds
    assert [cut.name for cut in conservation.cuts] == list(model.complete_cuts())
    for cut in conservation.cuts:
        assert relative_error(cut.relevance, conservation.target) < 1e-9, cut.name


@pytest.mark.parametrize("order", ORDERS)
def test_with_biases_only_rounding_is_unaccounted_for(order):
    relevance = vimlrp.explain(backbone(order), images(3, 24), target=2)
    account = relevance.account
    assert float((account.residue / account.target).abs().max()) < 1e-9
    assert relevance.pixels.shape == (3, 24, 24)
    assert relative_error(relevance.pixels.sum((1, 2)), account.parts["pixels"]) < 1e-12


def by_hand(mixer, x, order, grid):
    """The mixer of the demo step by step, from the equations of a selective scan."""
    x, z = (x @ mixer.in_proj.weight.T).chunk(2, dim=-1)
    conv = mixer.conv
    maps = x.unflatten(1, grid).permute(0, 3, 1, 2)
    maps = F.conv2d(maps, conv.weight, conv.bias, padding=1, groups=conv.groups)
    u = F.silu(maps).flatten(2).transpose(1, 2)
    low, b, c = (u @ mixer.x_proj.weight.T).split(mixer.sizes, dim=-1)
    dt = F.softplus(low @ mixer.dt_proj.weight.T + mixer.dt_proj.bias)
    a = -mixer.A_log.exp()
    y = torch.zeros_like(u)
    for path in order.steps(u.shape[1]).tolist():
        state = torch.zeros(len(u), *a.shape, dtype=u.dtype)
        for t in path:
            step = dt[:, t, :, None]
            state = (step * a).exp() * state + step * u[:, t, :, None] * b[:, t, None, :]
            y[:, t] += (state * c[:, t, None, :]).sum(-1) + mixer.D * u[:, t]
    return (y * F.silu(z)) @ mixer.out_proj.weight.T


@pytest.mark.parametrize("order", ORDERS)
def test_the_scans_follow_the_paths(order):
    model, grid = backbone(order), (6, 6)
    x = random(2, 36, SMALL["dim"])
    mixer = model.blocks[0].mixer
    with torch.no_grad():
        assert relative_error(mixer(x, grid), by_hand(mixer, x, ORDERS[order](*grid), grid)) < 1e-12


def test_another_table_of_orders_is_another_model():
    x = images(2, 24)
    with torch.no_grad():
        logits = [backbone(order)(x) for order in ("zigzag", "windows", "cross")]
    assert relative_error(logits[0], logits[1]) > 1e-3
    assert relative_error(logits[0], logits[2]) > 1e-3


def test_a_part_without_a_site_is_refused_by_name():
    model = backbone()
    model.blocks[1].norm = nn.Sequential(model.blocks[1].norm, nn.GELU())
    with pytest.raises(UnsupportedModelError, match=r"blocks\.1\.norm\.1"):
        vimlrp.explain(model, images(1, 24))


@pytest.mark.parametrize("order", demo.ORDERS)
def test_the_demo_prints_account_and_conservation(order, capsys):
    demo.main(["--order", order])
    shown = capsys.readouterr().out
    assert f"scanned by {order}" in shown
    assert "position embedding" in shown
    assert "conservation holds" in shown
