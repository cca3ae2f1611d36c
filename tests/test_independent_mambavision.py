"""A whole MambaVision explained a second time, without autograd or our own code."""

import numpy as np
import pytest
import torch
from helpers import relative_error
from mambavision_by_hand import IndependentMambaVision
from small_mambavision import pictures, small_mambavision
from test_independent import GAMMA

import vimlrp

AGREE, SINGLE = 1e-9, 1e-4
TARGETS = (1, 3)

RULES = {
    "mambalrp": (GAMMA, "constant", {}),
    "without_gamma_rule": (0.0, "constant", {"patch_embedding": "zero"}),
    "attnlrp_attention": (GAMMA, "softmax", {}),
}


@pytest.fixture(scope="module", params=[(72, 40), (34, 52)], ids=str)
def case(request):
    """A model and images whose maps leave windows half filled."""
    return small_mambavision(seed=3), pictures(2, *request.param, seed=8)


@pytest.fixture(scope="module", params=RULES)
def derived(case, request):
    """Composite, the independent runs, and their explanations."""
    model, x = case
    weights = {k: v.numpy() for k, v in model.state_dict().items()}
    gamma, attention, changes = RULES[request.param]
    runs = [IndependentMambaVision(weights, row.numpy(), gamma, attention) for row in x]
    explained = [run.explain(target) for run, target in zip(runs, TARGETS, strict=True)]
    return {"base": request.param, **changes}, runs, explained


def test_logits_agree(case, derived):
    model, x = case
    _, runs, _ = derived
    with torch.no_grad():
        assert relative_error(model(x), np.stack([run.logits for run in runs])) < 1e-12


def test_relevances_and_accounts_agree(case, derived):
    model, x = case
    composite, _, explained = derived
    ours = vimlrp.explain(model, x, target=list(TARGETS), composite=composite)
    for i, (pixels, cells, account) in enumerate(explained):
        assert relative_error(ours.pixels[i], pixels) < AGREE
        assert relative_error(ours.patches[i], patches_of(cells)) < AGREE
        for kind, part in ours.account.parts.items():
            assert float(part[i]) == pytest.approx(account[kind], rel=1e-8, abs=1e-12), kind
        left = {kind for kind, share in account.items() if share and kind not in ours.account.parts}
        assert left == set()


def patches_of(cells):
    """Two by two outputs of the first convolution are a patch of the first map."""
    rows, columns = (-(-extent // 2) for extent in cells.shape)
    patches = np.zeros((rows, columns))
    for i in range(cells.shape[0]):
        for j in range(cells.shape[1]):
            patches[i // 2, j // 2] += cells[i, j]
    return patches


def test_relevances_agree_in_float32(case, derived):
    model, x = case
    composite, _, explained = derived
    single = small_mambavision(seed=3, dtype=torch.float32)
    single.load_state_dict(model.state_dict())
    ours = vimlrp.explain(single, x.float(), target=list(TARGETS), composite=composite)
    for i, (pixels, _, _) in enumerate(explained):
        assert relative_error(ours.pixels[i], pixels) < SINGLE


def test_the_rules_differ_by_more_than_any_tolerance_here(case):
    model, x = case
    weights = {k: v.numpy() for k, v in model.state_dict().items()}
    maps = [
        IndependentMambaVision(weights, x[0].numpy(), gamma, attention).explain(1)[0]
        for gamma, attention, _ in RULES.values()
    ]
    assert relative_error(maps[0], maps[1]) > 1e-2
    assert relative_error(maps[0], maps[2]) > 1e-2
