"""Rebuild instances of the official classes themselves, and compare their logits with ours.

python tests/golden/official_instances.py FOLDER

FOLDER holds clones of hustvl/Vim, MzeroMiko/VMamba and NVlabs/MambaVision, as Vim, VMamba and
MambaVision. Their code runs as it is, on the CPU; CUDA code that it imports is replaced in memory
by the functions below. Prints one line a model, and fails where logits differ by more than 1e-5.
"""

import importlib.util
import sys
import types
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from vimlrp.wrapping.official import rebuild

BOUND = 1e-5
VIM = "vim_{}_bimambav2_final_pool_mean_abs_pos_embed_with_{}_div2"


def scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool | None = None,
) -> Tensor:
    """mamba-ssm's selective scan as a loop: u, delta, z (B, D, L), A (D, N), B and C (B, N, L)."""
    delta = delta if delta_bias is None else delta + delta_bias[:, None]
    delta = F.softplus(delta) if delta_softplus else delta
    state, rows = u.new_zeros(*u.shape[:2], A.shape[1]), []
    for t in range(u.shape[2]):
        step = delta[:, :, t, None]
        state = (step * A).exp() * state + step * u[:, :, t, None] * B[:, None, :, t]
        rows.append((state * C[:, None, :, t]).sum(-1))
    y = torch.stack(rows, 2)
    y = y if D is None else y + u * D[:, None]
    return y if z is None else y * F.silu(z)


def branch(
    xz: Tensor,
    conv_weight: Tensor,
    conv_bias: Tensor,
    x_proj: Tensor,
    dt_proj: Tensor,
    A: Tensor,
    B: None,
    C: None,
    D: Tensor,
    delta_bias: Tensor,
    delta_softplus: bool,
) -> Tensor:
    """Vim's fused branch: causal convolution, projections, scan and gate of xz (B, 2 E, L)."""
    x, z = xz.chunk(2, dim=1)
    length, groups = x.shape[-1], len(conv_weight)
    padding = conv_weight.shape[-1] - 1
    x = F.conv1d(x, conv_weight, conv_bias, padding=padding, groups=groups)[..., :length]
    x = F.silu(x)
    sizes = (dt_proj.shape[1], A.shape[1], A.shape[1])
    dt, b, c = (x_proj @ x).split(sizes, dim=1)
    return scan(x, dt_proj @ dt, A, b, c, D, z, delta_bias, delta_softplus)


class RMSNorm(nn.Module):
    """The parameters of mamba-ssm's."""

    def __init__(self, dim: int, eps: float = 1e-5, **_: Any) -> None:
        super().__init__()
        self.eps, self.weight = eps, nn.Parameter(torch.ones(dim))
        self.register_parameter("bias", None)


def rms_norm(
    x: Tensor,
    weight: Tensor,
    bias: None,
    residual: Tensor | None = None,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
    eps: float = 1e-6,
) -> Any:
    """mamba-ssm's fused sum and norm."""
    total = x if residual is None else x + residual
    out = total * torch.rsqrt(total.square().mean(-1, keepdim=True) + eps) * weight
    return (out, total) if prenorm else out


def put(name: str, **content: Any) -> None:
    """Let a module be importable."""
    module = types.ModuleType(name)
    vars(module).update(content)
    sys.modules[name] = module


def load(name: str, path: Path) -> Any:
    """Import one file under a name."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def vims(folder: Path) -> Iterator[tuple[str, nn.Module]]:
    for package in ("", ".ops", ".ops.triton", ".modules", ".utils"):
        put(f"mamba_ssm{package}")
    put("causal_conv1d", causal_conv1d_fn=None, causal_conv1d_update=None)
    put(
        "mamba_ssm.ops.selective_scan_interface",
        selective_scan_fn=scan,
        mamba_inner_fn=None,
        bimamba_inner_fn=None,
        mamba_inner_fn_no_out_proj=branch,
    )
    norms = {"RMSNorm": RMSNorm, "rms_norm_fn": rms_norm, "layer_norm_fn": None}
    put("mamba_ssm.ops.triton.layer_norm", **norms)
    put("mamba_ssm.utils.generation", GenerationMixin=object)
    put("mamba_ssm.utils.hf", load_config_hf=None, load_state_dict_hf=None)
    mixer = folder / "mamba-1p1p1" / "mamba_ssm" / "modules" / "mamba_simple.py"
    load("mamba_ssm.modules.mamba_simple", mixer)
    sys.path.insert(0, str(folder / "vim"))
    code = load("models_mamba", folder / "vim" / "models_mamba.py")
    for size in ("tiny_patch16_224", "tiny_patch16_stride8_224", "small_patch16_224"):
        yield f"Vim {size}", getattr(code, VIM.format(size, "midclstok"))()
    small = {"depth": 3, "embed_dim": 32, "img_size": (64, 48), "final_pool_type": "mean"}
    yield "Vim, token first", code.VisionMamba(use_middle_cls_token=False, **small)
    yield "Vim, two tokens", code.VisionMamba(use_double_cls_token=True, **small)
    yield "Vim, no token", code.VisionMamba(if_cls_token=False, **small)
    yield "Vim, sums", code.VisionMamba(if_divide_out=False, **small)


def vmambas(folder: Path) -> Iterator[tuple[str, nn.Module]]:
    needless = ("FlopCountAnalysis", "flop_count_str", "flop_count", "parameter_count")
    put("fvcore")
    put("fvcore.nn", **dict.fromkeys(needless))
    torch.cuda.device = lambda *_: nullcontext()
    sys.path.insert(0, str(folder / "classification" / "models"))
    copies = {
        "VMamba, classification": folder / "classification" / "models" / "vmamba.py",
        "VMamba, standalone": folder / "vmamba.py",
    }
    for copy, path in copies.items():
        code = load(path.parent.name + "_vmamba", path)
        for name in ("vmamba_tiny_s1l8", "vmamba_tiny_s2l5", "vanilla_vmamba_tiny"):
            yield f"{copy} {name}", getattr(code, name)()


def mambavisions(folder: Path) -> Iterator[tuple[str, nn.Module]]:
    put("mamba_ssm.ops.selective_scan_interface", selective_scan_fn=scan)
    sys.path.insert(0, str(folder))
    code = importlib.import_module("mambavision.models.mamba_vision")
    for name in ("T", "S", "B"):
        yield f"MambaVision-{name}", getattr(code, f"mamba_vision_{name}")()


@torch.no_grad()
def enliven(model: nn.Module) -> None:
    """Move norms, biases and layer scales away from ones, zeros and near zero."""
    torch.manual_seed(0)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.add_(0.3 * torch.randn_like(parameter))


@torch.no_grad()
def error_of(model: nn.Module) -> float:
    """The relative L2 error of the rebuilt model's logits."""
    enliven(model)
    ours = rebuild(model.eval())
    size = getattr(getattr(model, "patch_embed", None), "img_size", (96, 160))
    x = torch.randn(2, 3, *size)
    theirs = model(x)
    return float((ours(x) - theirs).norm() / theirs.norm())


def main(folder: Path) -> None:
    warnings.simplefilter("ignore")
    worst = 0.0
    for family, name in ((vims, "Vim"), (vmambas, "VMamba"), (mambavisions, "MambaVision")):
        for model, instance in family(folder / name):
            error = error_of(instance)
            worst = max(worst, error)
            print(f"{model:<44} {error:.1e}")
    sys.exit(not worst <= BOUND)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
