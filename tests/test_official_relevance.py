"""Token relevances are the official MambaLRP's, image by image; see tests/golden/README.md."""

import pytest
import torch
from golden.reference import one_thread, read, relative_error

from vimlrp import explain

COMPOSITE = {"zero": "without_gamma_rule", "gamma": "mambalrp"}
# (against which numbers, in which type): the largest relative L2 error over the images.
BOUNDS = {
    ("shipped", torch.float64): 5e-3,
    ("shipped", torch.float32): 5e-3,
    ("exact", torch.float64): 1e-9,
    ("exact", torch.float32): 1e-4,
}

every_file = pytest.mark.parametrize("name", ["middle", "stride", "tiny"])
every_rule = pytest.mark.parametrize("rule", COMPOSITE)


@pytest.fixture(autouse=True)
def _one_thread():
    with one_thread():
        yield


def tokens_of(golden, rule, dtype):
    model, x = golden.to(dtype)
    return explain(model, x, target=golden.targets, composite=COMPOSITE[rule]).tokens


@every_file
@every_rule
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_tokens_agree_with_the_official_code(name, rule, dtype):
    golden = read(name)
    tokens = tokens_of(golden, rule, dtype)
    for guards in ("shipped", "exact"):
        error = relative_error(tokens, golden.tokens[f"{rule}.{guards}"])
        assert error <= BOUNDS[guards, dtype], guards


@every_file
def test_no_bound_comes_near_what_it_must_tell_apart(name):
    golden = read(name)
    zero, gamma = (golden.tokens[f"{rule}.exact"] for rule in COMPOSITE)
    assert relative_error(zero, gamma) > 10 * max(BOUNDS.values())
    for rule in COMPOSITE:
        shipped, exact = (golden.tokens[f"{rule}.{guards}"] for guards in ("shipped", "exact"))
        assert relative_error(shipped, exact) > 10 * BOUNDS["exact", torch.float64]


@pytest.mark.parametrize(
    "change",
    [
        {"activation": "gradient"},
        {"gate": "gradient"},
        {"gate": "share(1, 0)"},
        {"normalisation": "gradient"},
        {"scan": "gradient"},
        {"convolution": "gamma(0.2)"},
    ],
    ids=str,
)
def test_every_rule_of_the_composite_shows(change):
    golden = read("middle")
    model, x = golden.to(torch.float64)
    tokens = explain(model, x, target=golden.targets, composite=change).tokens
    assert relative_error(tokens, golden.tokens["gamma.exact"]) > max(BOUNDS.values())


def test_images_of_a_batch_are_explained_as_alone():
    golden = read("stride")
    model, x = golden.to(torch.float64)
    for i, target in enumerate(golden.targets):
        tokens = explain(model, x[i : i + 1], target=int(target)).tokens
        assert relative_error(tokens, golden.tokens["gamma.exact"][i : i + 1]) <= 1e-9
