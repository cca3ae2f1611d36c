"""A block of VMamba as one operation gives the numbers of the block that runs site by site."""

import copy

import pytest
import torch
from helpers import images, random, relative_error
from small_vmamba import GENERATIONS, small_vmamba

import vimlrp
from vimlrp.engine import FUSE_VARIABLE
from vimlrp.kernels import backends
from vimlrp.kernels.fused import maps_native
from vimlrp.models import fused_ss2d

FUSIBLE = (
    "mambalrp",
    "without_gamma_rule",
    {"base": "mambalrp", "convolution": "gamma(1)"},
    {"base": "mambalrp", "head": "epsilon", "patch_embedding": "flat"},
    {"layers.*.downsample.1": "zero"},
)
FUSIBLE_GATES = ("gate_to_signal", "gate_to_gate", {"base": "mambalrp", "gate": "share(0.3, 0.6)"})
COMPOSED = (
    "gradient_x_input",
    "without_activation_rule",
    "without_scan_rule",
    "without_norm_rule",
    "gamma_projections",
    "epsilon",
    {"layers.*.op.conv2d": "epsilon"},
    {"layers.*.op.scan": "constant_factors(A, B)"},
    {"residual": "gamma_sum"},
    {"scan": "share_factors"},
)


@pytest.fixture(params=GENERATIONS)
def vmamba(request):
    return small_vmamba(generation=request.param)


@pytest.fixture
def runs(monkeypatch):
    """The blocks that ran as one operation."""
    seen = []
    original = fused_ss2d.run

    def spy(plan, block, *rest):
        seen.append(block)
        return original(plan, block, *rest)

    monkeypatch.setattr("vimlrp.models.vmamba_blocks.run", spy)
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


@pytest.fixture
def full_precision():
    """Products in float32 on a GPU too, and the settings as before afterwards."""
    parts = torch.backends.cuda.matmul, torch.backends.cudnn.conv
    before = [part.fp32_precision for part in parts]
    for part in parts:
        part.fp32_precision = "ieee"
    yield
    for part, precision in zip(parts, before, strict=True):
        part.fp32_precision = precision


def blocks_of(model):
    return [block for stage in model.layers for block in stage.blocks]


def assert_same(ours, expected, tolerance):
    for name in ("logits", "pixels", "patches"):
        assert relative_error(getattr(ours, name), getattr(expected, name)) <= tolerance, name
    assert set(ours.account.parts) == set(expected.account.parts)
    for kind, share in expected.account.parts.items():
        scale = expected.account.target.abs().max()
        assert (ours.account.parts[kind] - share).abs().max() <= 10 * tolerance * scale, kind


@pytest.mark.parametrize("composite", FUSIBLE, ids=str)
def test_every_composite_that_fuses_gives_the_composed_numbers(fuse, runs, composite):
    model = small_vmamba()
    composed, ours = fuse(model, images(3), composite=composite, target=[0, 1, 2])
    assert runs == blocks_of(model)
    assert_same(ours, composed, 1e-12)


@pytest.mark.parametrize("composite", FUSIBLE[:3] + FUSIBLE_GATES, ids=str)
def test_the_first_generation_fuses_too(fuse, runs, composite):
    model = small_vmamba(generation="v0")
    composed, ours = fuse(model, images(3), composite=composite, target=[0, 1, 2])
    assert runs == blocks_of(model)
    assert_same(ours, composed, 1e-12)


@pytest.mark.parametrize("composite", COMPOSED, ids=str)
def test_every_other_composite_runs_by_its_sites(vmamba, fuse, runs, composite):
    composed, ours = fuse(vmamba, images(2), composite=composite)
    assert runs == []
    assert torch.equal(ours.pixels, composed.pixels)


@pytest.mark.parametrize(
    "composite", ["without_gate_rule", {"layers.0.blocks.0.op.gate": "gradient"}]
)
def test_another_rule_of_the_gate_runs_by_sites(fuse, runs, composite):
    model = small_vmamba(generation="v0")
    composed, ours = fuse(model, images(2), composite=composite)
    assert runs == ([] if composite == "without_gate_rule" else blocks_of(model)[1:])
    assert_same(ours, composed, 1e-12)


@pytest.mark.parametrize(
    "options",
    [
        {"d_state": 2},
        {"ssm_ratio": 2.0},
        {"mlp_ratio": 0.0},
        {"mlp_ratio": 1.5},
        {"generation": "v0", "d_state": 5, "mlp_ratio": 2.0},
        {"dim": 24},
    ],
    ids=str,
)
def test_every_shape_of_model(fuse, runs, options):
    model = small_vmamba(**options)
    composed, ours = fuse(model, images(2))
    assert runs == blocks_of(model)
    assert_same(ours, composed, 1e-12)


def test_maps_of_odd_sides(vmamba, fuse, runs):
    x = random(2, 3, 44, 29)
    composed, ours = fuse(vmamba, x)
    assert runs == blocks_of(vmamba)
    assert_same(ours, composed, 1e-12)


def test_single_precision_agrees_with_the_composed_block(fuse):
    composed, ours = fuse(small_vmamba(dtype=torch.float32), images(2, dtype=torch.float32))
    assert_same(ours, composed, 1e-5)


def test_half_precision(fuse):
    model, x = small_vmamba(dtype=torch.bfloat16), images(2, dtype=torch.bfloat16)
    wide = vimlrp.explain(copy.deepcopy(model).float(), x.float(), target=1)
    composed, ours = fuse(model, x, target=1)
    theirs = relative_error(composed.pixels, wide.pixels)
    assert relative_error(ours.pixels, wide.pixels) <= max(3e-2, 1.5 * theirs)


def test_zeros_in_the_input_give_no_nan(vmamba, fuse):
    composed, ours = fuse(vmamba, torch.zeros(1, 3, 32, 32, dtype=torch.float64), target=0)
    assert ours.pixels.isfinite().all()
    assert torch.allclose(ours.patches, composed.patches, rtol=1e-12, atol=1e-14)


def test_a_recorded_block_stays_fused_and_a_record_inside_steps_back(vmamba, fuse, runs):
    for name in ("layers.1.blocks.0", "layers.1.blocks", "layers.0"):
        composed, ours = fuse(vmamba, images(2), record=[name])
        for field in ("activation", "relevance"):
            pair = (getattr(r.recorded[name], field) for r in (ours, composed))
            assert relative_error(*pair) <= 1e-12
    assert runs == 3 * blocks_of(vmamba)
    runs.clear()
    name = "layers.1.blocks.0.op.out_norm"
    composed, ours = fuse(vmamba, images(2), record=[name])
    assert runs == [block for block in blocks_of(vmamba) if block is not vmamba.layers[1].blocks[0]]
    assert relative_error(ours.recorded[name].relevance, composed.recorded[name].relevance) <= 1e-12


def test_relevance_can_start_behind_a_fused_block(vmamba, fuse):
    composed, ours = fuse(vmamba, images(2), start=("layers.0.blocks.0", random(8)))
    assert_same(ours, composed, 1e-12)


def test_the_users_own_hooks_inside_a_block_still_run(fuse, runs):
    model, calls = small_vmamba(), []
    first, second, third = blocks_of(model)
    second.op.scan.register_forward_hook(lambda *_: calls.append(1))
    fuse(model, images(1))
    assert runs == [first, third]
    assert len(calls) >= 2


def test_the_conservation_check_looks_at_sites(vmamba, monkeypatch, runs):
    monkeypatch.setenv(FUSE_VARIABLE, "1")
    assert vimlrp.check_conservation(vmamba, images(2), tolerance=1e-9).holds
    assert runs == []


def test_the_account_of_a_fused_pass_adds_up(vmamba, monkeypatch):
    monkeypatch.setenv(FUSE_VARIABLE, "1")
    account = vimlrp.explain(vmamba, images(3)).account
    total = torch.stack(list(account.parts.values())).sum(0)
    assert torch.allclose(total, account.target, rtol=1e-9, atol=1e-9)


def kept_values(depth):
    """How many values autograd keeps during an explanation."""
    model, sizes = small_vmamba(depths=(depth,), d_state=2), []
    vimlrp.explain(model, images(2))  # the guard's own pass is not the question

    def pack(x):
        sizes.append(x.numel())
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        vimlrp.explain(model, images(2))
    return sum(sizes)


@pytest.mark.parametrize("recomputes", [True, False])
def test_a_block_keeps_what_it_says_and_no_more(monkeypatch, recomputes):
    monkeypatch.setattr(fused_ss2d, "_recomputes", lambda _: recomputes)
    monkeypatch.setenv(FUSE_VARIABLE, "1")
    width, low_rank, states, cells = 8, 1, 2, 2 * 8 * 8
    per_cell = 4 * width + width + 4 * (low_rank + 2 * states) + 3
    per_cell += 0 if recomputes else 4 * width
    assert kept_values(depth=2) - kept_values(depth=1) == cells * per_cell
    monkeypatch.setenv(FUSE_VARIABLE, "0")
    assert kept_values(depth=2) - kept_values(depth=1) > 1.5 * cells * per_cell


def test_what_is_computed_again_changes_nothing(vmamba, monkeypatch):
    monkeypatch.setenv(FUSE_VARIABLE, "1")
    x, found = images(2), []
    for recomputes in (True, False):
        monkeypatch.setattr(fused_ss2d, "_recomputes", lambda _, again=recomputes: again)
        found.append(vimlrp.explain(vmamba, x, target=1).pixels)
    assert torch.equal(*found)


def test_nothing_is_left_on_the_model(vmamba, monkeypatch):
    monkeypatch.setenv(FUSE_VARIABLE, "1")
    x = images(2)
    before, state = x.clone(), {k: v.clone() for k, v in vmamba.state_dict().items()}
    vimlrp.explain(vmamba, x)
    assert torch.equal(x, before)
    assert all(torch.equal(v, state[k]) for k, v in vmamba.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in vmamba.parameters())


def test_plain_passes_are_never_fused(vmamba, monkeypatch, runs):
    monkeypatch.setenv(FUSE_VARIABLE, "1")
    vmamba(images(1))
    assert runs == []


@pytest.mark.parametrize("options", [{"d_state": 3}, {"ssm_ratio": 2.0}], ids=str)
def test_blocks_of_several_shapes_run_by_their_sites(fuse, runs, options):
    model, other = small_vmamba(), small_vmamba(**options)
    model.layers[1].blocks[1] = other.layers[1].blocks[1]
    composed, ours = fuse(model, images(1), target=1)
    assert runs == [model.layers[0].blocks[0]]
    assert_same(ours, composed, 1e-12)


@pytest.mark.parametrize("part", ["norm2.weight", "op.in_proj.bias"])
def test_a_block_that_a_plan_does_not_describe_runs_by_its_sites(fuse, runs, part):
    model = small_vmamba()
    first, *others = blocks_of(model)
    if part == "norm2.weight":
        model.layers[0].blocks[0].norm2.float()
    else:
        first.op.in_proj.bias = torch.nn.Parameter(random(8))
    composed, ours = fuse(model, images(1), target=1)
    assert runs == others
    assert_same(ours, composed, 1e-12)


def test_autocast_runs_by_sites(monkeypatch, runs):
    monkeypatch.setenv(FUSE_VARIABLE, "1")
    model = small_vmamba(dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        vimlrp.explain(model, images(1, dtype=torch.float32))
    assert runs == []


@pytest.mark.skipif(
    not any(b.name == "native" and b.usable for b in backends()),
    reason="the C++ library is not built",
)
@pytest.mark.parametrize("sides", [(32, 32), (44, 29)])
@pytest.mark.parametrize("generation", GENERATIONS)
def test_native_programs_give_the_composed_numbers(fuse, runs, monkeypatch, generation, sides):
    used = []
    original = maps_native._run
    monkeypatch.setattr(
        maps_native,
        "_run",
        lambda name, *a, **o: used.append(name) or original(name, *a, **o),
    )
    model = small_vmamba(dtype=torch.float32, generation=generation)
    monkeypatch.setenv("VIMLRP_BACKEND", "native")
    composed, ours = fuse(model, random(3, 3, *sides).float(), target=[0, 1, 2])
    assert runs == blocks_of(model)
    assert_same(ours, composed, 1e-5)
    of_a_block = {"LAYER_NORM", "CONV_SILU", "LAYER_NORM_RELEVANCE", "CONV_SILU_RELEVANCE"}
    assert of_a_block <= {operation.name for operation in used}


@pytest.mark.skipif(
    not any(b.name == "triton" and b.usable for b in backends()),
    reason="Triton runs here neither on a GPU nor in its interpreter",
)
@pytest.mark.parametrize("generation", GENERATIONS)
@pytest.mark.usefixtures("full_precision")
def test_triton_programs_give_the_composed_numbers(fuse, runs, monkeypatch, generation):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = small_vmamba(dtype=torch.float32, generation=generation).to(device)
    monkeypatch.setenv("VIMLRP_BACKEND", "triton")
    composed, ours = fuse(model, images(1, 16, dtype=torch.float32).to(device), target=1)
    assert runs == blocks_of(model)
    assert_same(ours, composed, 1e-5)
