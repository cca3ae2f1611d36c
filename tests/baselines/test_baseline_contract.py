"""One call for all methods, and what it refuses."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import images, relative_error, small_vim
from linear_models import LinearClassifier
from small_vmamba import small_vmamba
from torch import nn

from vimlrp import COMPOSITES
from vimlrp.baselines import METHODS, Method, Models, method
from vimlrp.errors import (
    InputError,
    MissingDependencyError,
    TargetError,
    UnsupportedModelError,
    VimLRPError,
)

TARGET = torch.tensor([1, 3])


@pytest.fixture(scope="module")
def vim():
    """Pooled over the sequence: what reaches a class token through its gate alone is no pixel."""
    return small_vim(global_pool="avg")


@pytest.fixture
def linear():
    return LinearClassifier()


@pytest.mark.parametrize("name", METHODS)
def test_every_method_gives_one_float32_map_a_sample(name, vim):
    maps = METHODS[name](vim, images(), TARGET)
    assert maps.shape == (2, 32, 32)
    assert maps.dtype == torch.float32
    assert not maps.requires_grad
    assert (maps != 0).any(dim=(1, 2)).all()


@pytest.mark.parametrize("name", METHODS)
def test_a_batch_and_its_samples_give_the_same_maps(name, vim):
    x = images(3)
    target = torch.tensor([1, 3, 0])
    together = METHODS[name](vim, x, target)
    alone = [METHODS[name](vim, x[i : i + 1], target[i : i + 1]) for i in range(3)]
    assert relative_error(torch.cat(alone), together) < 1e-5


@pytest.mark.parametrize("name", METHODS)
def test_a_method_calls_a_model_as_often_as_it_says(name, vim):
    calls = []

    class Counting(type(vim)):
        def forward(self, x):
            calls.append(len(x))
            return super().forward(x)

    model = small_vim(global_pool="avg")
    model.__class__ = Counting
    METHODS[name](model, images(1), TARGET[:1])  # what guards a model may look at it once before
    calls.clear()
    METHODS[name](model, images(1), TARGET[:1])
    # Windows are rounded up to whole pixels, so that 32 pixels have fewer than 224.
    windows = {"occlusion": 11**2 + 1}
    assert sum(calls) == windows.get(name, METHODS[name].forwards)


def test_the_names_say_what_they_are():
    assert set(COMPOSITES) <= set(METHODS)
    assert all(name == entry.name and entry.source for name, entry in METHODS.items())
    many = {"smoothgrad", "smoothgrad_x_input", "integrated_gradients", "occlusion"}
    assert {name for name, entry in METHODS.items() if not entry.single_pass} == many


def test_a_method_is_found_by_name_and_a_near_miss_is_named():
    assert method("occlusion") is METHODS["occlusion"]
    with pytest.raises(InputError, match=r"did you mean 'occlusion'\?.*random, centre_prior"):
        method("oclusion")
    with pytest.raises(InputError, match="no method 'zzz'; the methods are random"):
        method("zzz")


@pytest.mark.parametrize("name", ["gradient", "occlusion", "smoothgrad", "mambalrp", "grad_cam"])
def test_a_class_that_the_model_has_not_is_refused(name, vim):
    for wrong in (5, -1):
        with pytest.raises(TargetError, match="out of range: the model has classes 0 to 4"):
            METHODS[name](vim, images(), torch.tensor([0, wrong]))


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (torch.tensor([1.0, 2.0]), "torch.float32; give a class a sample"),
        ([1, 2], "the target is list"),
        (torch.tensor([1]), r"shape \(1,\) were given for 2 images"),
        (torch.tensor([[1], [2]]), r"shape \(2, 1\)"),
        (torch.tensor([1, 2], device="meta"), "on meta, the images on cpu"),
    ],
)
def test_targets_that_are_not_one_class_a_sample_are_refused(linear, target, message):
    with pytest.raises(TargetError, match=message):
        METHODS["random"](linear, images(2, 8), target)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (images(2, 8)[0], "no batch of images"),
        (images(2, 8)[:, :2], "no batch of images"),
        (images(2, 8).float(), "the model computes in torch.float64"),
        (images(2, 8) / 0, "NaN or infinite"),
        (images(2, 8)[:0], "holds no image"),
    ],
)
def test_what_is_no_batch_for_the_model_is_refused(linear, x, message):
    with pytest.raises(InputError, match=message):
        METHODS["gradient"](linear, x, TARGET)


@pytest.mark.parametrize(
    "name", ["raw_attention", "attention_rollout", "mamba_attribution", "grad_cam", "mambalrp"]
)
def test_a_model_that_a_method_cannot_explain_is_refused_by_name(name):
    model = nn.Sequential(nn.Flatten(), nn.Softmax(1))
    assert not METHODS[name].supports(model)
    with pytest.raises(UnsupportedModelError, match=f"{name} takes .*Sequential"):
        METHODS[name](model, images(2, 8, dtype=torch.float32), TARGET)


def test_a_compiled_model_is_refused(linear):
    with pytest.raises(UnsupportedModelError, match="compiled"):
        METHODS["gradient"](torch.compile(linear), images(2, 8), TARGET)


def test_a_model_without_a_gradient_is_refused():
    class Cut(LinearClassifier):
        def forward(self, x):
            return super().forward(x.detach())

    with pytest.raises(UnsupportedModelError, match="no gradient at the pixels"):
        METHODS["gradient"](Cut(), images(2, 8), TARGET)


def test_a_model_that_cannot_be_copied_is_refused(linear):
    linear.stream = (number for number in range(3))
    with pytest.raises(UnsupportedModelError, match=r"cannot be copied.*generator"):
        METHODS["gradient"](linear, images(2, 8), TARGET)


def test_what_returns_no_logits_is_refused():
    with pytest.raises(UnsupportedModelError, match=r"returned \(2, 3, 8, 8\) for 2 images"):
        METHODS["gradient"](nn.Identity(), images(2, 8, dtype=torch.float32), TARGET)


def test_maps_that_are_not_finite_are_refused(linear):
    with torch.no_grad():
        linear.head.weight[1, 0] = float("nan")
    with pytest.raises(InputError, match="maps of gradient hold NaN"):
        METHODS["gradient"](linear, images(2, 8), TARGET)


def test_maps_of_another_shape_are_refused(linear):
    anything = Models("anything", lambda _: True)
    wrong = Method("wrong", lambda model, x, target: x, "none", anything, 0, 0)
    with pytest.raises(UnsupportedModelError, match=r"wrong gave maps \(2, 3, 8, 8\)"):
        wrong(linear, images(2, 8), TARGET)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("smoothgrad", {"samples": 0}, "0 samples"),
        ("smoothgrad", {"noise": 0.0}, "noise above 0"),
        ("integrated_gradients", {"steps": 0}, "0 steps"),
        ("occlusion", {"window": (9, 4)}, r"windows of \(9, 4\)"),
        ("occlusion", {"window": (4, 4), "stride": (5, 1)}, r"distances of \(5, 1\)"),
        ("occlusion", {"window": (0, 4)}, r"windows of \(0, 4\)"),
    ],
)
def test_options_out_of_range_are_refused(linear, name, options, message):
    with pytest.raises(InputError, match=message):
        METHODS[name].function(linear, images(2, 8), TARGET, **options)


@pytest.mark.parametrize(
    ("name", "module"), [("occlusion", "captum"), ("grad_cam", "pytorch_grad_cam")]
)
def test_a_missing_package_is_named_with_the_line_that_installs_it(name, module, vim, monkeypatch):
    for known in [entry for entry in sys.modules if entry.split(".")[0] == module]:
        monkeypatch.delitem(sys.modules, known)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'vimlrp\[baselines\]'"):
        METHODS[name](vim, images(), TARGET)
    assert METHODS[name].extra == "baselines"


def test_methods_work_in_inference_mode(vim):
    expected = METHODS["gradient"](vim, images(), TARGET)
    with torch.inference_mode():
        assert torch.equal(METHODS["gradient"](vim, images(), TARGET), expected)


def test_importing_the_methods_takes_nothing_optional_along():
    code = (
        "import sys, vimlrp.baselines; "
        "print([n for n in ('captum', 'pytorch_grad_cam', 'sklearn') if n in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    assert result.stdout.strip() == "[]"


def test_every_refusal_is_one_of_the_family():
    assert issubclass(MissingDependencyError, VimLRPError)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.usefixtures("full_precision")
@pytest.mark.parametrize("family", ["vim", "vmamba"])
@pytest.mark.parametrize("name", METHODS)
def test_a_gpu_gives_the_maps_of_a_cpu(name, family):
    if family == "vim":
        model = small_vim(global_pool="avg", dtype=torch.float32)
    else:
        model = small_vmamba(dtype=torch.float32)
    x = images(dtype=torch.float32)
    expected = METHODS[name](model, x, TARGET)
    maps = METHODS[name](model.cuda(), x.cuda(), TARGET.cuda())
    assert maps.is_cuda
    if name.startswith("smoothgrad"):  # other generators, other noise
        again = METHODS[name](model, x.cuda(), TARGET.cuda())
        assert relative_error(again.cpu(), maps.cpu()) < 1e-4
    else:
        assert relative_error(maps.cpu(), expected) < 1e-3


def test_the_documentation_lists_every_baseline_with_its_cost_and_needs():
    page = Path(__file__).parents[2] / "docs" / "baselines.md"
    rows = [line.split(" | ") for line in page.read_text("utf-8").splitlines() if line[:3] == "| `"]
    listed = {row[0].strip("| `"): row for row in rows}
    for name, entry in METHODS.items():
        if name in COMPOSITES and name != "gradient_x_input":
            continue
        assert listed[name][2] == f"{entry.forwards}, {entry.backwards}", name
        assert ("`baselines`" in listed[name][4]) is (entry.extra is not None), name
