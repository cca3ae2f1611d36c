"""Instances of the official classes become models of ours that hold their parameters."""

import contextlib
import gc
import warnings
import weakref

import pytest
import torch
from helpers import images, relative_error, small_vim
from official_doubles import VSSM, Double, MambaVision, VisionMamba
from small_mambavision import small_mambavision
from small_vmamba import small_vmamba
from torch import nn

import vimlrp
from vimlrp.errors import UnsupportedModelError
from vimlrp.wrapping import wrap
from vimlrp.wrapping.official import _full_precision, rebuild

BOUND = 1e-12

FIRST, BOTH_ENDS = {"class_token": "head"}, {"class_token": "double"}
WITHOUT = {"class_token": "none", "global_pool": "avg"}
ODD = {"ssm_ratio": 1.7, "mlp_ratio": 2.3, "dim": 12, "d_state": 2}
CASES = {
    "vim": lambda: VisionMamba(small_vim()),
    "vim, token first": lambda: VisionMamba(small_vim(**FIRST)),
    "vim, two tokens": lambda: VisionMamba(small_vim(**BOTH_ENDS)),
    "vim, no token": lambda: VisionMamba(small_vim(**WITHOUT)),
    "vim, sums": lambda: VisionMamba(small_vim(divide_out=False)),
    "vim, other sizes": lambda: VisionMamba(
        small_vim(stride=4, img_size=(24, 40), embed_dim=24, expand=3, d_state=5, eps=1e-3)
    ),
    "vim, no classifier": lambda: VisionMamba(small_vim(num_classes=0)),
    "vim, grey": lambda: VisionMamba(small_vim(in_chans=1)),
    "vmamba": lambda: VSSM(small_vmamba()),
    "vmamba, odd ratios": lambda: VSSM(small_vmamba(**ODD)),
    "vmamba, v0": lambda: VSSM(small_vmamba(generation="v0")),
    "vmamba, standalone": lambda: VSSM(small_vmamba(), standalone=True),
    "vmamba, standalone v0": lambda: VSSM(small_vmamba(generation="v0"), standalone=True),
    "mambavision": lambda: MambaVision(small_mambavision()),
    "mambavision, no scale": lambda: MambaVision(small_mambavision(layer_scale=None)),
    "mambavision, other sizes": lambda: MambaVision(
        small_mambavision(mlp_ratio=1.3, dim=12, d_conv=5, depths=(2, 1, 1, 4), in_chans=1)
    ),
}


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


def change(path, value):
    """Set an attribute, given as "part.of.it"."""

    def apply(model):
        *parts, last = path.split(".")
        owner = model
        for part in parts:
            owner = owner[int(part)] if part.isdigit() else getattr(owner, part)
        setattr(owner, last, value)

    return apply


def remove_norms(model):
    for name, part in model.patch_embed.named_children():
        if isinstance(part, nn.LayerNorm):
            setattr(model.patch_embed, name, nn.Identity())


def partial(**keywords):
    from functools import partial

    return partial(print, **keywords)


REFUSED = {
    "vim": {
        "rotary .*if_rope": change("if_rope", True),
        "layers in pairs.*if_bidirectional": change("if_bidirectional", True),
        "flipped at random": change("flip_img_sequences_ratio", 0.5),
        "no position embedding": change("if_abs_pos_embed", False),
        "LayerNorm instead of RMSNorm": change("norm_f", nn.LayerNorm(16)),
        "a Sequential in the place": change("head", nn.Sequential(nn.Linear(16, 5))),
        "final_pool_type of 'max'": change("final_pool_type", "max"),
        "a norm after the patch embedding": change("patch_embed.norm", nn.LayerNorm(16)),
        "square ones are known": change("patch_embed.proj.stride", (8, 4)),
        "bimamba_type 'v1'": change("layers.1.mixer.bimamba_type", "v1"),
        "init_layer_scale": change("layers.1.mixer.init_layer_scale", 0.1),
        "biases of in_proj": change("layers.0.mixer.in_proj", nn.Linear(16, 64)),
        "conv_bias=False": change("layers.0.mixer.conv1d.bias", None),
        "no whole multiple": change("layers.0.mixer.conv1d", nn.Conv1d(24, 24, 3, groups=24)),
        "rank of 3 of the step": change("layers.0.mixer.dt_proj", nn.Linear(3, 32)),
        "activation 'relu'": change("layers.0.mixer.activation", "relu"),
        "some sum and some average": change("layers.1.mixer.if_divide_out", False),
    },
    "vim, no token": {"without a class token 'mean'": change("final_pool_type", "none")},
    "vmamba": {
        "posembed=True": change("pos_embed", nn.Parameter(torch.zeros(1, 8, 8, 8))),
        "a Sequential in the place": change("classifier.head", nn.Sequential()),
        "BatchNorm2d as its norm": change("classifier.norm", nn.BatchNorm2d(16)),
        "patch_norm=False": remove_norms,
        "blocks without a mixer": change("layers.0.blocks.0.ssm_branch", False),
        "post_norm=True": change("layers.0.blocks.0.post_norm", True),
        "gated MLPs": change("layers.1.blocks.0.mlp.fc1", nn.Linear(16, 128)),
        "activation ReLU": change("layers.1.blocks.0.mlp.act", nn.ReLU()),
        "mixers of another kind .forwardxv": change(
            "layers.0.blocks.0.op.forward", type("F", (), {"__name__": "forwardxv"})()
        ),
        "_oact": change("layers.0.blocks.0.op.oact", True),
        "Sigmoid in the place of LayerNorm": change("layers.0.blocks.0.op.out_norm", nn.Sigmoid()),
        "routes of the kind 'unidi'": change(
            "layers.0.blocks.0.op.forward_core", partial(scan_mode="unidi")
        ),
        "ssm_act_layer": change("layers.0.blocks.0.op.act", nn.GELU()),
        "without a 3 x 3 convolution": change("layers.0.blocks.0.op.conv2d", nn.Conv2d(8, 8, 5)),
        "biases of in_proj": change("layers.0.blocks.0.op.in_proj", nn.Linear(8, 8)),
        "x_proj_bias": change("layers.0.blocks.0.op.x_proj_bias", torch.zeros(4)),
        "a rank of 3 of the step": change(
            "layers.0.blocks.0.op.dt_projs_weight", nn.Parameter(torch.zeros(4, 8, 3))
        ),
        "mixers with gate and without bias": change("layers.0.blocks.0.op.disable_z", False),
        "downsampling 'v2'": change("layers.0.downsample", nn.Sequential(nn.Conv2d(8, 16, 2, 2))),
        "downsampling 'none'": change("layers.0.downsample", nn.Identity()),
        "with convolutions ..8, 8": change(
            "patch_embed", nn.Sequential(nn.Conv2d(3, 8, 8, 8), nn.LayerNorm(8))
        ),
    },
    "vmamba, standalone v0": {
        "_nozact": change("layers.0.blocks.0.op.disable_z_act", True),
    },
    "mambavision": {
        "a Sequential in the place": change("head", nn.Sequential()),
        "layer_scale_conv": change("levels.0.blocks.0.gamma", nn.Parameter(torch.ones(4))),
        "activation ReLU": change("levels.2.blocks.0.mlp.act", nn.ReLU()),
        "wider than their block": change("levels.2.blocks.0.mixer.in_proj", nn.Linear(16, 32)),
        "biases in its mixers": change("levels.2.blocks.0.mixer.in_proj", nn.Linear(16, 16)),
        "attention without biases": change("levels.2.blocks.2.mixer.qkv.bias", None),
        "norms of queries and keys": change("levels.2.blocks.2.mixer.q_norm", nn.LayerNorm(8)),
        "drops weights in evaluation": change("levels.2.blocks.2.mixer.attn_drop.p", 0.1),
    },
}


@pytest.mark.parametrize(
    ("case", "message"), [(case, message) for case in REFUSED for message in REFUSED[case]]
)
def test_unsupported_options_are_refused_by_name(case, message):
    original = CASES[case]()
    REFUSED[case][message](original)
    original.runs = 0
    with pytest.raises(UnsupportedModelError, match=f"(?s){message}.* has published"):
        rebuild(original)
    assert original.runs == 0


def test_a_backbone_without_a_classifier_is_refused():
    original = CASES["vmamba"]()
    del original.classifier
    original.out_indices = (0, 1)
    with pytest.raises(UnsupportedModelError, match="instead of a classifier"):
        rebuild(original)


@pytest.mark.parametrize("case", ["vim", "vmamba", "mambavision"])
def test_another_structure_under_the_same_name_is_refused(case):
    kind = type(type(CASES[case]()).__name__, (nn.Module,), {})
    with pytest.raises(UnsupportedModelError, match=r"the name of .* class but not its structure"):
        rebuild(kind())


def test_differing_tensors_are_listed():
    original = CASES["vmamba"]()
    original.layers[1].blocks[0].extra = nn.Parameter(torch.zeros(3))
    original.layers[1].blocks[0].norm2.register_parameter("bias", None)
    with pytest.raises(UnsupportedModelError) as caught:
        rebuild(original)
    assert "layers.*.blocks.*.extra" in str(caught.value)
    assert "the original lacks (1 tensors): layers.*.blocks.*.norm2.bias" in str(caught.value)


def test_another_eps_is_refused():
    original = CASES["mambavision"]()
    original.levels[2].blocks[0].norm1.eps = 1e-3
    with pytest.raises(UnsupportedModelError, match=r"eps of levels.2.blocks.0.norm1 is 0.001 "):
        rebuild(original)


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


@pytest.mark.parametrize(
    ("wrapper", "place"),
    [
        ("FullyShardedDataParallel", "module"),
        ("MambaVisionModelForImageClassification", "model"),
    ],
)
def test_models_inside_others_are_refused(wrapper, place):
    outer = type(wrapper, (nn.Module,), {})()
    setattr(outer, place, CASES["mambavision"]())
    with pytest.raises(UnsupportedModelError, match=f"{wrapper}: give model.{place}"):
        rebuild(outer)


@pytest.mark.parametrize(
    ("wrapped", "advice"), [(nn.DataParallel, "model.module"), (torch.compile, "_orig_mod")]
)
def test_data_parallel_and_compiled_originals_are_refused(wrapped, advice):
    with pytest.raises(UnsupportedModelError, match=advice):
        wrap(wrapped(CASES["vim"]()))


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
