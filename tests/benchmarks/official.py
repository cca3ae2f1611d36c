"""The official Vim and MambaLRP, from a folder with their sources, to measure beside ours.

The folder has vim/ (models_mamba.py and rope.py of hustvl/Vim), mamba/mamba_ssm (that repository's
fork of mamba-ssm), lrp/mamba_lrp (FarnoushRJ/MambaLRP), and REVISIONS, one line each. Their CUDA
extensions, selective_scan_cuda and causal_conv1d, must be importable. None of it is part of this
repository.
"""

import importlib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

# The published configurations, by the size in our name of the model.
_CONFIGURATION = "vim_{}_patch16_224_bimambav2_final_pool_mean_abs_pos_embed_with_midclstok_div2"


class Official:
    """The official code of one folder."""

    def __init__(self, folder: Path) -> None:
        parts = [str(folder / part) for part in ("vim", "mamba", "lrp")]
        sys.path[:0] = parts
        self.revisions = (folder / "REVISIONS").read_text(encoding="utf-8").split("\n")
        self._models = importlib.import_module("models_mamba")

    def vim(self, size: str, device: torch.device, seed: int = 0) -> nn.Module:
        """A Vim whose biases and norms are not at their initial ones and zeros."""
        torch.manual_seed(seed)
        model: nn.Module = getattr(self._models, _CONFIGURATION.format(size))()
        with torch.no_grad():
            nn.init.normal_(model.head.weight, std=0.02)
            for p in model.parameters():
                if p.dim() == 1:
                    p.add_(0.02 * torch.randn_like(p))
        return model.requires_grad_(requires_grad=False).to(device).eval()

    def relevance(self, vim: nn.Module, transforms: Sequence[str]) -> Callable[[Tensor, int], Any]:
        """MambaLRP of a Vim, a function of images (B, 3, H, W) and a class; this alters the Vim.

        Its rules act on the layers in `transforms`, and the function gives what the official one
        returns: relevances (B, L) come first.
        """
        # MambaLRP has names of its own for a module and an attribute of the Vim fork.
        norm = importlib.import_module("mamba_ssm.ops.triton.layer_norm")
        sys.modules["mamba_ssm.ops.triton.layernorm"] = norm
        for block in vim.layers:
            block.mixer.if_devide_out = block.mixer.if_divide_out
        module = importlib.import_module("mamba_lrp.model.vision_mamba")
        propagate = importlib.import_module("mamba_lrp.lrp.utils").vision_relevance_propagation
        device = next(vim.parameters()).device
        model = module.ModifiedVisionMamba(vim, zero_bias=False, layer_transforms=list(transforms))
        model = model.to(device).eval()

        def run(x: Tensor, target: int) -> Any:
            with torch.no_grad():
                patches = model.patch_embed(x)
            targets = torch.full((len(x),), target, device=device)
            return propagate(model, patches, targets, vim.head.out_features)

        return run
