"""Stand-ins for instances of the official classes: their names, parts and parameters.

A double is made from a model of ours: its sites become the layers of PyTorch that the official
code uses, and its attributes those that the official constructors set. It computes what the model
it was made from computes, on its own parameters.
"""

import functools

import torch
from helpers import small_vim
from small_mambavision import small_mambavision
from small_vmamba import small_vmamba
from torch import nn

from vimlrp import sites


class Part(nn.Module):
    """A module with parameters and parts, but without a forward of its own."""


class RMSNorm(nn.Module):
    """As mamba-ssm's: a weight, and a bias that is None."""

    def __init__(self, like):
        super().__init__()
        self.eps, self.bias = like.eps, None
        self.weight = nn.Parameter(torch.empty_like(like.weight))


def _linear(like):
    return nn.Linear(like.in_features, like.out_features, like.bias is not None)


def _conv1d(like):
    dim, _, width = like.weight.shape
    return nn.Conv1d(dim, dim, width, groups=dim, bias=like.bias is not None)


def _conv2d(like):
    dim, chans, kernel, _ = like.weight.shape
    groups = getattr(like, "groups", 1)
    options = {"stride": like.stride, "padding": like.padding, "groups": groups}
    return nn.Conv2d(chans * groups, dim, kernel, bias=like.bias is not None, **options)


def _activation(like):
    kinds = {"silu": nn.SiLU, "gelu": nn.GELU, "relu": nn.ReLU}
    return nn.GELU(approximate="tanh") if like.name == "gelu_tanh" else kinds[like.name]()


LAYERS = {
    sites.Linear: _linear,
    sites.CausalConv1d: _conv1d,
    sites.CentredConv1d: _conv1d,
    sites.Conv2d: _conv2d,
    sites.PatchEmbedding: _conv2d,
    sites.LayerNorm: lambda like: nn.LayerNorm(len(like.weight), like.eps),
    sites.BatchNorm2d: lambda like: nn.BatchNorm2d(len(like.weight), like.eps),
    sites.RMSNorm: RMSNorm,
    sites.Activation: _activation,
}


def mirrored(module):
    """The same tree with PyTorch's layers in place of sites; sites without weights are left out."""
    if type(module) in LAYERS:
        layer = LAYERS[type(module)](module).to(_dtype(module))
        layer.load_state_dict(module.state_dict(), strict=True)
        return layer
    if isinstance(module, sites.Site):
        return None
    containers = (nn.Sequential, nn.ModuleList, nn.Identity)
    plain = next((kind for kind in containers if isinstance(module, kind)), Part)
    return fill(plain(), module)


def _dtype(module):
    return next((p.dtype for p in module.parameters()), torch.float32)


def fill(new, module):
    """Give a module the mirrored parts and the parameters of another."""
    for name, child in module.named_children():
        part = mirrored(child)
        if part is not None:
            new.add_module(name, part)
    for name, parameter in module.named_parameters(recurse=False):
        new.register_parameter(name, nn.Parameter(parameter.detach().clone()))
    return new


class Double(nn.Module):
    """Computes what `model` computes, on parameters of its own."""

    renamed = ()

    def __init__(self, model):
        super().__init__()
        fill(self, model)
        vars(self)["computes"] = [model]  # in a list, and so not one of its modules
        self.drop = nn.Dropout(0.5)
        self.runs = 0

    def forward(self, x):
        self.runs += 1
        model = self.computes[0]
        shapes = {name: value.shape for name, value in model.state_dict().items()}
        state = {self._ours(name): value for name, value in self._state().items()}
        state = {name: value.view(shapes[name]) for name, value in state.items()}
        return self.drop(torch.func.functional_call(model, state, (x,), strict=True))

    def _state(self):
        return {**dict(self.named_parameters()), **dict(self.named_buffers())}

    def _ours(self, name):
        for theirs, ours in self.renamed:
            name = name.replace(theirs, ours)
        return name


class VisionMamba(Double):
    """As hustvl/Vim's."""

    def __init__(self, model):
        super().__init__(model)
        place = model.layout.class_token
        self.if_cls_token = place != "none"
        self.use_double_cls_token = place == "double"
        self.use_middle_cls_token = place == "middle"
        self.final_pool_type = "mean"
        self.if_abs_pos_embed = True
        self.if_rope = self.if_rope_residual = self.if_bidirectional = False
        self.flip_img_sequences_ratio = -1.0
        self.patch_embed.img_size = model.img_size
        self.patch_embed.norm = nn.Identity()
        for layer, ours in zip(self.layers, model.layers, strict=True):
            layer.mixer.bimamba_type, layer.mixer.activation = "v2", "silu"
            layer.mixer.if_divide_out = ours.mixer.divide_out
            layer.mixer.init_layer_scale = None


class Mixer(Part):
    """As VMamba's SS2D, which chooses its forward when it is made."""

    def __init__(self, like, gated, standalone):
        super().__init__()
        fill(self, like)
        self.forward = self.forwardv0 if gated and not standalone else self.forwardv2
        self.out_act = nn.Identity()
        if not gated or standalone:
            self.disable_z, self.disable_z_act, self.oact = not gated, False, False
            self.forward_core = functools.partial(self.forward, no_einsum=True)
        if standalone:
            self.x_proj = nn.Linear(1, 1, bias=False)
            self.dt_projs = nn.Linear(1, 1, bias=False)
            self.x_proj.weight = nn.Parameter(self.x_proj_weight.detach().flatten(0, 1))
            self.dt_projs.weight = nn.Parameter(self.dt_projs_weight.detach().flatten(0, 1))
            del self.x_proj_weight, self.dt_projs_weight

    def forwardv0(self, x):
        """Never run."""

    def forwardv2(self, x):
        """Never run."""


class VSSM(Double):
    """As MzeroMiko/VMamba's, in either copy of the code."""

    renamed = ((".x_proj.weight", ".x_proj_weight"), (".dt_projs.weight", ".dt_projs_weight"))

    def __init__(self, model, standalone=False):
        super().__init__(model)
        self.pos_embed = None
        self.num_classes = model.num_classes
        gated = model.generation == "v0"
        for stage, ours in zip(self.layers, model.layers, strict=True):
            for block, our_block in zip(stage.blocks, ours.blocks, strict=True):
                block.op = Mixer(our_block.op, gated, standalone)
                block.ssm_branch, block.mlp_branch = True, our_block.mlp is not None
                block.post_norm = False
            if standalone and gated and hasattr(stage.downsample, "reduction"):
                norm, linear = stage.downsample.norm, stage.downsample.reduction
                stage.downsample = nn.Sequential(Part(), norm, linear)
        if standalone:
            self.renamed += ((".downsample.1.", ".downsample.norm."),) if gated else ()
            self.renamed += ((".downsample.2.", ".downsample.reduction."),) if gated else ()


class MambaVision(Double):
    """As NVlabs/MambaVision's."""

    def __init__(self, model):
        super().__init__(model)
        for level, ours in zip(self.levels, model.levels, strict=True):
            level.window_size = ours.window or 8
            for block, our_block in zip(level.blocks, ours.blocks, strict=True):
                if ours.window is None:
                    continue
                for name in ("gamma_1", "gamma_2"):
                    if getattr(our_block, name) is None:
                        setattr(block, name, 1)
                if hasattr(our_block.mixer, "qkv"):
                    mixer = block.mixer
                    mixer.num_heads, mixer.fused_attn = our_block.mixer.num_heads, True
                    mixer.q_norm, mixer.attn_drop = nn.Identity(), nn.Dropout(0.0)


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
