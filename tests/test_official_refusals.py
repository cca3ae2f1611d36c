"""What an official class can be and ours cannot is refused, by the name of the option."""

import functools

import pytest
import torch
from official_doubles import CASES
from torch import nn

from vimlrp.errors import UnsupportedModelError
from vimlrp.wrapping import wrap
from vimlrp.wrapping.official import rebuild


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
            "layers.0.blocks.0.op.forward_core", functools.partial(print, scan_mode="unidi")
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
