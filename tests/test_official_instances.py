"""Instances of the official classes become models of ours that hold their parameters."""

import contextlib
import gc
import warnings
import weakref

import pytest
import torch
from helpers import images, relative_error, small_vim
from official_doubles import CASES, Double, MambaVision, VisionMamba
from small_mambavision import small_mambavision
from small_vmamba import small_vmamba
from torch import nn

import vimlrp
from vimlrp.errors import UnsupportedModelError
from vimlrp.wrapping import wrap
from vimlrp.wrapping.official import _full_precision, rebuild

BOUND = 1e-12


@pytest.fixture(params=CASES)
def original(request):
    return CASES[request.param]().eval()


def picture(model, *, seed=1):
    """A batch that the double's model takes."""
    ours = model.computes[0]
    chans = next(p.shape[1] for p in ours.parameters() if p.dim() == 4)
    size = ours.img_size if isinstance(model, VisionMamba) else (40, 72)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, chans, *size, generator=generator, dtype=torch.float64)
    return x.to(next(model.parameters()).dtype)


def outputs(*models):
    x = picture(models[0])
    with torch.no_grad():
        return [model(x) for model in models]


def test_the_rebuilt_model_gives_the_same_logits(original):
    theirs, ours = outputs(original, rebuild(original))
    assert relative_error(ours, theirs) < BOUND


def test_it_holds_the_original_tensors_and_follows_its_training(original):
    ours = rebuild(original)
    places = {p.data_ptr() for p in original.parameters()}
    assert {p.data_ptr() for p in ours.parameters()} == places
    before, _ = outputs(original, ours)
    with torch.no_grad():
        for parameter in original.parameters():
            parameter.mul_(1.25)
        for name, buffer in original.named_buffers():
            if name.endswith("running_mean"):
                buffer.add_(0.5)
    theirs, after = outputs(original, ours)
    assert relative_error(after, theirs) < BOUND
    assert relative_error(after, before) > 1e-3


def test_the_original_stays_as_it_was(original):
    original.train()
    original.drop.eval()
    next(original.parameters()).requires_grad_(False)
    flags = [module.training for module in original.modules()]
    grads = [p.requires_grad for p in original.parameters()]
    numbers = {name: value.clone() for name, value in original.state_dict().items()}
    attributes = [set(vars(module)) for module in original.modules()]
    ours = rebuild(original)
    assert not any(module.training for module in ours.modules())
    assert flags == [module.training for module in original.modules()]
    assert grads == [p.requires_grad for p in original.parameters()]
    assert [p.requires_grad for p in ours.parameters()].count(False) == 1
    assert all(torch.equal(numbers[k], v) for k, v in original.state_dict().items())
    assert attributes == [vars(module).keys() for module in original.modules()]


@pytest.mark.parametrize("case", ["vim", "vmamba, standalone v0", "mambavision"])
def test_an_explanation_of_the_original_is_that_of_the_model_it_was_made_from(case):
    original = CASES[case]().eval()
    x = picture(original)
    expected = vimlrp.explain(original.computes[0], x, target=1)
    relevance = vimlrp.explain(original, x, target=1)
    assert relative_error(relevance.pixels, expected.pixels) < 1e-9
    assert relevance.account.parts.keys() == expected.account.parts.keys()
    assert vimlrp.check_conservation(original, x, tolerance=1e-9).holds


def test_it_is_kept_until_the_original_changes():
    original = CASES["vmamba, standalone"]().eval()
    first = rebuild(original)
    assert rebuild(original) is first
    assert wrap(original) is first
    assert original.runs == 1
    with torch.no_grad():
        original.classifier.head.weight.mul_(2)
    assert rebuild(original) is first
    original.classifier.head = nn.Linear(16, 3).double()
    original.computes[0].reset_classifier(3)
    assert wrap(original) is not first
    theirs, ours = outputs(original, wrap(original))
    assert ours.shape == (2, 3)
    assert relative_error(ours, theirs) < BOUND


@pytest.mark.parametrize("case", ["vim", "vmamba, standalone", "mambavision"])
def test_it_follows_to_another_type(case):
    original = CASES[case]().eval()
    rebuild(original)
    ours = wrap(original.float())
    assert {p.dtype for p in ours.parameters()} == {torch.float32}
    theirs, logits = outputs(original, ours)
    assert relative_error(logits, theirs) < 1e-5


@pytest.mark.parametrize("case", ["vim", "vmamba", "mambavision"])
def test_half_precision_and_channels_last(case):
    original = CASES[case]().eval().to(torch.bfloat16)
    ours = rebuild(original.to(memory_format=torch.channels_last))
    assert {p.dtype for p in ours.parameters()} == {torch.bfloat16}
    x = picture(original)
    relevance = vimlrp.explain(ours, x.to(memory_format=torch.channels_last))
    assert relevance.pixels.dtype == torch.float32
    assert relevance.pixels.isfinite().all()


def test_nothing_keeps_the_original_alive():
    original = CASES["vim"]()
    rebuild(original)
    witness = weakref.ref(original)
    del original
    gc.collect()
    assert witness() is None


@pytest.mark.parametrize("make", [small_vim, small_vmamba, small_mambavision])
def test_models_of_ours_need_no_rebuilding(make):
    assert rebuild(make()) is None


def test_other_models_are_left_to_others():
    assert rebuild(nn.Sequential(nn.Conv2d(3, 4, 3))) is None


def test_subclasses_count():
    class MyVim(VisionMamba):
        pass

    original = MyVim(small_vim()).eval()
    theirs, ours = outputs(original, rebuild(original))
    assert relative_error(ours, theirs) < BOUND


def test_photos_are_prepared_as_the_original_says():
    original = MambaVision(small_mambavision(dtype=torch.float32)).eval()
    original.pretrained_cfg = {"architecture": "mamba_vision_X", "crop_pct": 0.5, "std": (1, 1, 1)}
    assert rebuild(original).pretrained_cfg["crop_pct"] == 0.5
    relevance = vimlrp.explain(rebuild(original), images(1, 64, dtype=torch.float32))
    assert relevance.model == "mamba_vision_X"


def test_photos_for_a_vim_are_prepared_as_its_training_script_does():
    original = VisionMamba(small_vim(img_size=(40, 24), dtype=torch.float32)).eval()
    original.default_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5), "crop_pct": 0.9}
    photo = (torch.arange(80 * 60 * 3) % 251).reshape(80, 60, 3).to(torch.uint8).numpy()
    expected = vimlrp.explain(original.computes[0], photo, target=0)
    relevance = vimlrp.explain(original, photo, target=0)
    assert relevance.pixels.shape == (1, 40, 24)
    assert relative_error(relevance.pixels, expected.pixels) < 1e-5


@pytest.mark.parametrize("factor", [1.01, float("nan")])
def test_other_logits_are_refused_with_the_difference(factor, monkeypatch):
    original = CASES["vim"]()
    forward = Double.forward
    monkeypatch.setattr(Double, "forward", lambda self, x: factor * forward(self, x))
    amount = "9.9e-03" if factor == 1.01 else "nan"
    with pytest.raises(UnsupportedModelError, match=f"logits differ .* by {amount} "):
        rebuild(original)


@pytest.mark.parametrize(
    ("output", "given"), [(lambda y: {"logits": y}, "dict"), (lambda y: y[:, :3], r"\(1, 3\)")]
)
def test_an_output_that_is_no_logits_is_refused(output, given, monkeypatch):
    original = CASES["vim"]()
    forward = Double.forward
    monkeypatch.setattr(Double, "forward", lambda self, x: output(forward(self, x)))
    with pytest.raises(UnsupportedModelError, match=f"returns {given} for an image"):
        rebuild(original)


@pytest.mark.parametrize("kind", [RuntimeError, TypeError, ValueError, AssertionError, NameError])
def test_an_original_that_cannot_run_is_rebuilt_with_a_warning(kind, monkeypatch):
    original = CASES["vim"]()

    def fail(self, x):
        raise kind("no kernel\nfor this device")

    with torch.no_grad():
        expected = original.computes[0](picture(original))
    monkeypatch.setattr(Double, "forward", fail)
    with pytest.warns(UserWarning, match=f"on cpu .*{kind.__name__}: no kernel.$"):
        ours = rebuild(original)
    with torch.no_grad():
        assert relative_error(ours(picture(original)), expected) < BOUND
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert rebuild(original) is ours, "one warning is enough"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("case", ["vim", "vmamba, standalone", "mambavision"])
@pytest.mark.parametrize("precision", ["tf32", "ieee"])
def test_on_a_gpu_models_are_compared_in_full_precision(case, precision, monkeypatch):
    matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    monkeypatch.setattr(matmul, "fp32_precision", precision)
    monkeypatch.setattr(conv, "fp32_precision", precision)
    original = CASES[case]().eval().float()
    rebuild(original)
    ours = rebuild(original.cuda())
    assert {p.device.type for p in ours.parameters()} == {"cuda"}
    assert (matmul.fp32_precision, conv.fp32_precision) == (precision, precision)


def test_full_precision_is_given_back():
    class OnGpu:
        is_cuda = True

    matmul, conv = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = matmul.fp32_precision, conv.fp32_precision
    with contextlib.suppress(KeyError), _full_precision(OnGpu()):
        assert (matmul.fp32_precision, conv.fp32_precision) == ("ieee", "ieee")
        raise KeyError
    assert (matmul.fp32_precision, conv.fp32_precision) == before
