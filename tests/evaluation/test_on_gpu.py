"""Every metric on a GPU gives what it gives on a CPU, from the same maps."""

import pytest
import torch
from helpers import images, random, relative_error, small_vim
from small_vmamba import small_vmamba

from vimlrp.evaluation import METRICS, PROTOCOLS, CompositeMethod, Inference, PreparedBatch
from vimlrp.evaluation.metrics import metric_named
from vimlrp.evaluation.replacement import canvas_of

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU"),
    pytest.mark.usefixtures("full_precision"),
]

NAMES = [
    f"{name}:{variant}" if variant else name
    for name, (variants, _) in METRICS.items()
    for variant in variants or ("",)
]
OF_TOKENS = ("zero_token", "zero_patch")
REGIONS = torch.zeros(3, 32, 32, dtype=torch.bool)
REGIONS[0, 8:24, 4:20] = REGIONS[1, :9, :] = True  # the third has none


def prepared(family, device, dtype=None):
    make = {"vim": small_vim, "vmamba": small_vmamba}[family]
    model = make(dtype=torch.float32).to(device)
    return PreparedBatch(
        model, Inference(model, dtype=dtype, batch_size=8),
        images(3, dtype=torch.float32).to(device), torch.tensor([0, 1, 2], device=device),
        regions=REGIONS.to(device), seeds=torch.tensor([5, 6, 9]), patch_size=8,
        label=torch.tensor([0, 2, -1], device=device),
    )  # fmt: skip


MAPS = random(3, 32, 32, dtype=torch.float32)


def measured(name, family, device, dtype=None):
    batch = prepared(family, device, dtype)
    return metric_named(name)(batch, CompositeMethod(), MAPS.to(device))


@pytest.mark.parametrize("family", ["vim", "vmamba"])
@pytest.mark.parametrize("name", NAMES)
def test_a_gpu_measures_what_a_cpu_does(name, family):
    if family == "vmamba" and name.endswith(OF_TOKENS):
        pytest.skip("a VMamba has no tokens to replace")
    expected, found = (measured(name, family, device) for device in ("cpu", "cuda"))
    for kind in ("values", "curves"):
        known = getattr(expected, kind)
        assert getattr(found, kind).keys() == known.keys()
        for key, values in getattr(found, kind).items():
            assert values.is_cuda, key
            assert torch.allclose(
                values.cpu().double(), known[key].double(), rtol=2e-3, atol=2e-4, equal_nan=True
            ), key  # fmt: skip
    if expected.points is None:
        assert found.points is None
    else:
        assert torch.allclose(found.points.cpu(), expected.points)


@pytest.mark.parametrize("name", ["flipping:zero_token", "flipping:mean", "insertion:blur"])
def test_half_precision_is_near(name):
    expected, found = measured(name, "vim", "cpu"), measured(name, "vim", "cuda", torch.bfloat16)
    for key, curve in expected.curves.items():
        assert relative_error(found.curves[key].cpu(), curve) < 0.05, key


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_perturbed_inputs_are_the_same(protocol):
    gone = torch.rand(3, 16, generator=torch.Generator().manual_seed(0)) < 0.4
    sample = torch.arange(3)
    built = []
    for device in ("cpu", "cuda"):
        batch = prepared("vim", device)
        canvas = canvas_of(protocol, batch.inference, batch.x, 8)
        built.append(canvas.perturbed(gone.to(device), sample.to(device)))
    assert built[1].is_cuda
    assert relative_error(built[1].cpu(), built[0]) < 1e-5


def test_maps_of_the_method_are_the_same_again_when_replayed():
    batch, method = prepared("vim", "cuda"), CompositeMethod()
    first = method(batch.model, batch.x, batch.target)
    metric_named("randomisation")(batch, method, first)
    for _ in range(3):
        again = method(batch.model, batch.x, batch.target)
        assert relative_error(again.cpu(), first.cpu()) < 1e-5
    assert len(method._explainer(batch.model)._replays) == 1
