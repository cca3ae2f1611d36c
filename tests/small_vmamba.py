"""Small VMambas with every branch alive."""

import torch
from helpers import enliven, seeded

from vimlrp.models import VMamba

GENERATIONS = {"v2": {}, "v0": {"ssm_ratio": 2.0, "d_state": 3, "mlp_ratio": 0.0}}


def small_vmamba(*, seed=0, biases=True, dtype=torch.float64, **options):
    """A VMamba of two stages and three narrow blocks whose every weight matters."""
    defaults = GENERATIONS[options.get("generation", "v2")]
    options = {"img_size": 32, "dim": 8, "depths": (1, 2), "num_classes": 5, **defaults, **options}
    with seeded(seed):
        model = VMamba(**options).to(dtype).eval()
    enliven(model, seed)
    if not biases:
        remove_biases(model)
    return model


def remove_biases(model):
    """Set every bias but that of the step size to zero."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") and not name.endswith("dt_projs_bias"):
                parameter.zero_()
