"""A block as one operation gives the numbers of the block that runs site by site."""

import copy

import pytest
import torch
from helpers import images, random, relative_error, small_vim

import vimlrp
from vimlrp.engine import FUSE_VARIABLE
from vimlrp.errors import InputError
from vimlrp.models import fused

FUSIBLE = (
    "mambalrp",
    "without_gamma_rule",
    "gate_to_signal",
    "gate_to_gate",
    {"base": "mambalrp", "convolution": "gamma(1)"},
    {"base": "mambalrp", "gate": "share(0.3, 0.6)"},
    {"base": "mambalrp", "head": "epsilon", "patch_embedding": "flat"},
    {"layers.*.mixer.x_proj*": "gamma"},
    {"token_sum": "gamma_sum"},
)
COMPOSED = (
    "gradient_x_input",
    "without_activation_rule",
    "without_scan_rule",
    "without_gate_rule",
    "without_norm_rule",
    "gamma_projections",
    "epsilon",
    {"layers.*.mixer.conv1d_b": "zero"},
    {"residual": "gamma_sum"},
    {"scan": "share_factors"},
)


@pytest.fixture
def runs(monkeypatch):
    """The blocks that ran as one operation."""
    seen = []
    original = fused.run

    def spy(plan, block, *streams):
        seen.append(block)
        return original(plan, block, *streams)

    monkeypatch.setattr("vimlrp.models.vim_blocks.run", spy)
    return seen


@pytest.fixture
def fuse(monkeypatch):
    """Explain both ways: composed, then fused."""

    def both(model, x, **options):
        results = []
        for wish in ("0", "1"):
            monkeypatch.setenv(FUSE_VARIABLE, wish)
            results.append(vimlrp.explain(model, x, **options))
        return results

    return both


def assert_same(ours, expected, tolerance):
    for name in ("logits", "pixels", "patches", "tokens"):
        mine, theirs = getattr(ours, name), getattr(expected, name)
        assert (mine - theirs).norm() <= tolerance * theirs.norm(), name
    assert set(ours.account.parts) == set(expected.account.parts)
    for kind, share in expected.account.parts.items():
        scale = expected.account.target.abs().max()
        assert (ours.account.parts[kind] - share).abs().max() <= 10 * tolerance * scale, kind


@pytest.mark.parametrize("composite", FUSIBLE, ids=str)
def test_every_composite_that_fuses_gives_the_composed_numbers(vim, fuse, runs, composite):
    composed, ours = fuse(vim, images(3), composite=composite, target=[0, 1, 2])
    assert len(runs) == len(vim.layers)
    assert_same(ours, composed, 1e-12)


@pytest.mark.parametrize("composite", COMPOSED, ids=str)
def test_every_other_composite_runs_by_its_sites(vim, fuse, runs, composite):
    composed, ours = fuse(vim, images(2), composite=composite)
    assert runs == []
    assert torch.equal(ours.tokens, composed.tokens)


@pytest.mark.parametrize(
    "options",
    [
        {"class_token": "head"},
        {"class_token": "double"},
        {"class_token": "none", "global_pool": "avg"},
        {"divide_out": False},
        {"d_conv": 1},
        {"stride": 4},
        {"depth": 1},
    ],
    ids=str,
)
def test_every_shape_of_model(fuse, runs, options):
    model = small_vim(**options)
    composed, ours = fuse(model, images(2))
    assert runs
    assert_same(ours, composed, 1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_lower_precision(fuse, dtype, tolerance):
    model, x = small_vim(dtype=dtype), images(2, dtype=dtype)
    wide = vimlrp.explain(copy.deepcopy(model).float(), x.float(), target=1)
    _, ours = fuse(model, x, target=1)
    assert relative_error(ours.tokens, wide.tokens) <= tolerance


def test_zeros_in_the_input_give_no_nan(fuse):
    composed, ours = fuse(small_vim(biases=False), torch.zeros(1, 3, 32, 32, dtype=torch.float64))
    assert ours.pixels.isfinite().all()
    assert_same_tokens(ours, composed)


def assert_same_tokens(ours, expected):
    assert torch.allclose(ours.tokens, expected.tokens, rtol=1e-12, atol=1e-14)


def test_a_recorded_block_stays_fused_and_a_record_inside_steps_back(vim, fuse, runs):
    composed, ours = fuse(vim, images(2), record=["layers.0"])
    assert len(runs) == len(vim.layers)
    names = ("activation", "relevance")
    for name in names:
        ours_record, expected = (getattr(r.recorded["layers.0"], name) for r in (ours, composed))
        assert relative_error(ours_record, expected) <= 1e-12
    runs.clear()
    composed, ours = fuse(vim, images(2), record=["layers.0.mixer.out_proj"])
    assert runs == [vim.layers[1]]
    record = "layers.0.mixer.out_proj"
    assert (
        relative_error(ours.recorded[record].relevance, composed.recorded[record].relevance)
        <= 1e-12
    )


def test_relevance_can_start_behind_a_fused_block(vim, fuse):
    composed, ours = fuse(vim, images(2), start=("layers.0", random(16)))
    assert_same(ours, composed, 1e-12)


def test_the_users_own_hooks_inside_a_block_still_run(fuse, runs):
    model, calls = small_vim(), []
    model.layers[1].mixer.gate.register_forward_hook(lambda *_: calls.append(1))
    fuse(model, images(1))
    assert runs == [model.layers[0]]
    assert len(calls) >= 2


def test_the_conservation_check_looks_at_sites(vim, monkeypatch, runs):
    monkeypatch.setenv(FUSE_VARIABLE, "1")
    assert vimlrp.check_conservation(vim, images(2), tolerance=1e-9).holds
    assert runs == []


def kept_values(depth):
    """How many values autograd keeps during an explanation."""
    model, sizes = small_vim(depth=depth), []
    vimlrp.explain(model, images(2))  # the guard's own pass is not the question

    def pack(x):
        sizes.append(x.numel())
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        vimlrp.explain(model, images(2))
    return sum(sizes)


@pytest.mark.parametrize("recomputes", [True, False])
def test_a_block_keeps_what_it_says_and_no_more(monkeypatch, recomputes):
    monkeypatch.setattr(fused, "_recomputes", lambda _: recomputes)
    monkeypatch.setenv(FUSE_VARIABLE, "1")
    width, inner, low_rank, states, tokens = 16, 32, 1, 3, 2 * 17
    large = width if recomputes else 4 * inner
    per_token = large + 1 + inner + 2 * (low_rank + 2 * states)
    assert kept_values(depth=3) - kept_values(depth=2) == tokens * per_token
    monkeypatch.setenv(FUSE_VARIABLE, "0")
    composed = kept_values(depth=3) - kept_values(depth=2)
    assert composed > (8 if recomputes else 3) * tokens * per_token


def test_what_is_computed_again_changes_nothing(vim, monkeypatch):
    monkeypatch.setenv(FUSE_VARIABLE, "1")
    x, found = images(2), []
    for recomputes in (True, False):
        monkeypatch.setattr(fused, "_recomputes", lambda _, again=recomputes: again)
        found.append(vimlrp.explain(vim, x, target=1).pixels)
    assert torch.equal(*found)


def test_plain_passes_are_never_fused(vim, monkeypatch, runs):
    monkeypatch.setenv(FUSE_VARIABLE, "1")
    vim(images(1))
    assert runs == []


def test_blocks_of_several_shapes_run_by_their_sites(monkeypatch, runs):
    monkeypatch.setenv(FUSE_VARIABLE, "1")
    model, wider = small_vim(), small_vim(d_state=4)
    model.layers[1] = wider.layers[1]
    fused_ = vimlrp.explain(model, images(1), target=1)
    monkeypatch.setenv(FUSE_VARIABLE, "0")
    assert relative_error(fused_.pixels, vimlrp.explain(model, images(1), target=1).pixels) < 1e-12
    assert runs == []


def test_autocast_runs_by_sites(monkeypatch, runs):
    monkeypatch.setenv(FUSE_VARIABLE, "1")
    model = small_vim(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        vimlrp.explain(model, images(1, dtype=torch.float32))
    assert runs == []


def test_a_wrong_wish_is_refused(vim, monkeypatch):
    monkeypatch.setenv(FUSE_VARIABLE, "yes")
    with pytest.raises(InputError, match="auto, 0 or 1"):
        vimlrp.explain(vim, images(1))
