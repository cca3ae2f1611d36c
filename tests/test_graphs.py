"""Replays of explanations: never stale, bounded, and the numbers of an ordinary pass."""

import copy
import gc
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from helpers import images, small_vim
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import vimlrp
from vimlrp import graphs
from vimlrp.composites import Composite
from vimlrp.engine import FUSE_VARIABLE, Request, explained, explaining
from vimlrp.errors import InputError, TargetError
from vimlrp.graphs import Replays
from vimlrp.model_state import ModelState
from vimlrp.targets import Indices

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")


def vim_and_images(count=2, seed=0, device="cuda"):
    model = small_vim(dtype=torch.float32).to(device)
    return model, images(count, seed=seed, dtype=torch.float32).to(device)


def same(one, other):
    for name in ("pixels", "patches", "tokens", "logits", "target"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    for kind, share in one.account.parts.items():
        assert torch.equal(share, other.account.parts[kind]), kind
    assert torch.equal(one.account.target, other.account.target)


def recorded(model, x, **options):
    """An explainer that has recorded a pass, and what its ordinary pass found."""
    explainer = vimlrp.Explainer(model, graphs=True)
    first = explainer(x, **options)
    explainer(x, **options)
    assert len(explainer._replays) == 1
    return explainer, first


CHANGES = {
    "a parameter": lambda m: setattr(
        m.head, "weight", nn.Parameter(m.head.weight.detach().clone())
    ),
    "the data of one": lambda m: setattr(m.head.weight, "data", m.head.weight.detach().clone()),
    "an attribute": lambda m: setattr(m, "global_pool", "avg"),
    "a number deep inside": lambda m: setattr(m.layers[0].norm, "eps", 1e-3),
    "a module": lambda m: setattr(m, "head", copy.deepcopy(m.head)),
    "the type": lambda m: m.double(),
    "a forward": lambda m: setattr(m.head, "forward", lambda x: x),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_state_of_a_model_changes_with(change):
    model = small_vim(dtype=torch.float32)
    before = ModelState.of(model)
    assert before.same(ModelState.of(model))
    CHANGES[change](model)
    assert not before.same(ModelState.of(model))


def test_moved_weights_are_noticed_before_anything_reads_them():
    model = small_vim(dtype=torch.float32)
    state = ModelState.of(model)
    model.head = copy.deepcopy(model.head)
    assert state.is_in_place()  # the former weights are kept
    model.norm_f.weight.data = model.norm_f.weight.detach().clone()
    assert not state.is_in_place()


def test_the_state_is_not_that_of_the_weights_values():
    model = small_vim(dtype=torch.float32)
    before = ModelState.of(model)
    with torch.no_grad():
        model.head.weight.mul_(2)
    assert before.same(ModelState.of(model))


def test_the_state_changes_with_the_code_of_a_class(monkeypatch):
    model = small_vim(dtype=torch.float32)
    before = ModelState.of(model)
    monkeypatch.setattr(type(model), "forward", lambda self, x: x)
    assert not before.same(ModelState.of(model))


@pytest.mark.parametrize("hook", ["register_forward_hook", "register_forward_pre_hook"])
def test_a_model_with_hooks_has_no_state_to_replay(hook):
    model = small_vim(dtype=torch.float32)
    handle = getattr(model.layers[0], hook)(lambda *_: None)
    assert ModelState.of(model) is None
    assert not ModelState.of(small_vim()).same(None)
    handle.remove()
    assert ModelState.of(model) is not None


class NoWaiting(TorchDispatchMode):
    """Fails at operations that wait for a GPU: values read by Python, or copied from its memory."""

    WAITING = {
        "_local_scalar_dense",
        "lift_fresh",
        "nonzero",
        "masked_select",
        "equal",
        "is_nonzero",
    }

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in self.WAITING, name
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("composite", ["mambalrp", "gradient_x_input", "epsilon"])
@pytest.mark.parametrize("fused", ["0", "1"])
@pytest.mark.parametrize("pool", ["token", "avg"])
@pytest.mark.parametrize("target", [None, 1])
def test_a_pass_waits_for_nothing(monkeypatch, composite, fused, pool, target):
    # What a graph records must not wait, and what waits leaves a GPU idle.
    monkeypatch.setenv(FUSE_VARIABLE, fused)
    model = small_vim(dtype=torch.float32, global_pool=pool)
    x = images(2, dtype=torch.float32)
    goal = Indices(torch.full((2,), target)) if target is not None else None
    with explaining(model, x, Composite(composite)) as trace, NoWaiting():
        explained(model, x, trace, Request(target=goal), lambda _: None)


def test_a_cpu_never_replays():
    model, x = vim_and_images(device="cpu")
    explainer = vimlrp.Explainer(model, graphs=True)
    for _ in range(3):
        explainer(x, target=1)
    assert len(explainer._replays) == 0


def test_a_wrong_wish_is_refused(monkeypatch):
    monkeypatch.setenv(graphs.VARIABLE, "yes")
    with pytest.raises(InputError, match="auto, 0 or 1"):
        Replays()


@pytest.mark.parametrize(("value", "enabled"), [("0", False), ("1", True), ("auto", True)])
def test_the_variable_turns_replays_off(monkeypatch, value, enabled):
    monkeypatch.setenv(graphs.VARIABLE, value)
    assert Replays().enabled is enabled
    assert Replays(not enabled).enabled is not enabled


@needs_gpu
@pytest.mark.parametrize("target", [None, 1, [0, 2], "callable"])
@pytest.mark.parametrize("contrast", [None, 3])
def test_a_replay_gives_the_numbers_of_an_ordinary_pass(target, contrast):
    model, x = vim_and_images()
    goal = (lambda logits: logits[:, 0]) if target == "callable" else target
    explainer = vimlrp.Explainer(model, graphs=True)
    plain = vimlrp.Explainer(model, graphs=False)
    for seed in range(4):
        x = images(2, seed=seed, dtype=torch.float32).cuda()
        if target != "callable":
            same(
                explainer(x, target=goal, contrast=contrast),
                plain(x, target=goal, contrast=contrast),
            )
    assert len(explainer._replays) == (target != "callable")


@needs_gpu
def test_targets_may_differ_from_call_to_call():
    model, x = vim_and_images()
    explainer, _ = recorded(model, x, target=0)
    for target in (1, [3, 2], torch.tensor([0, 1]), torch.tensor([2, 2]).cuda()):
        same(explainer(x, target=target), vimlrp.explain(model, x, target=target))
    assert len(explainer._replays) == 1
    with pytest.raises(TargetError, match="out of range"):
        explainer(x, target=1000)
    same(explainer(x, target=1), vimlrp.explain(model, x, target=1))


@needs_gpu
def test_results_outlive_the_next_replay():
    model, x = vim_and_images()
    explainer, first = recorded(model, x, target=1)
    second = explainer(x, target=1)
    explainer(images(2, seed=7, dtype=torch.float32).cuda(), target=2)
    same(first, second)


@needs_gpu
def test_weights_changed_in_place_are_read():
    model, x = vim_and_images()
    explainer, _ = recorded(model, x, target=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.1)
    same(explainer(x, target=1), vimlrp.explain(model, x, target=1))


@needs_gpu
@pytest.mark.parametrize("change", [c for c in CHANGES if c not in ("the type", "a forward")])
def test_no_replay_is_stale_after_changing(change):
    model, x = vim_and_images()
    explainer, _ = recorded(model, x, target=1)
    with torch.no_grad():
        model.head.weight.mul_(1.5)
    CHANGES[change](model)
    for _ in range(3):
        same(explainer(x, target=1), vimlrp.explain(model, x, target=1))


@needs_gpu
def test_hooks_layers_and_directions_run_as_they_are():
    model, x = vim_and_images()
    explainer, first = recorded(model, x, target=1)
    seen = []
    handle = model.layers[1].register_forward_hook(lambda *_: seen.append(1))
    same(first, explainer(x, target=1))
    handle.remove()
    assert seen
    found = explainer(x, target=1, record=("layers.1",))
    assert found.recorded["layers.1"].activation.shape[0] == 2
    direction = torch.randn(16, device="cuda")
    assert explainer(x, start=("layers.1", direction)).target is None


@needs_gpu
def test_values_that_are_not_finite_are_refused():
    model, x = vim_and_images()
    explainer, _ = recorded(model, x, target=1)
    with torch.no_grad():
        model.head.bias[0] = float("nan")
    with pytest.raises(InputError, match="not finite"):
        explainer(x, target=1)


@needs_gpu
def test_graphs_are_few_and_memory_is_bounded():
    model, _ = vim_and_images()
    explainer = vimlrp.Explainer(model, graphs=True)
    for count in range(1, 9):
        for _ in range(3):
            explainer(images(count, dtype=torch.float32).cuda(), target=1)
    assert len(explainer._replays) == graphs._MOST
    x = images(8, dtype=torch.float32).cuda()
    explainer(x, target=1)
    gc.collect()
    before = torch.cuda.memory_allocated()
    for _ in range(20):
        explainer(x, target=1)
    gc.collect()
    assert torch.cuda.memory_allocated() == before


@needs_gpu
def test_what_cannot_be_recorded_runs_as_ever(monkeypatch):
    model, x = vim_and_images()
    explainer = vimlrp.Explainer(model, {"patch_embedding": "box"}, graphs=True)
    first = explainer(x, target=1)
    for _ in range(3):
        same(first, explainer(x, target=1))


@needs_gpu
def test_threads_and_streams_do_not_disturb_each_other():
    model, x = vim_and_images()
    explainer, first = recorded(model, x, target=1)

    def on_a_stream(seed):
        with torch.cuda.stream(torch.cuda.Stream()):
            given = images(2, seed=seed, dtype=torch.float32).cuda()
            found = explainer(given, target=1)
            torch.cuda.current_stream().synchronize()
            return given, found

    with ThreadPoolExecutor(4) as pool:
        for given, found in pool.map(on_a_stream, range(12)):
            same(found, vimlrp.explain(model, given, target=1))
    same(first, explainer(x, target=1))


@needs_gpu
def test_inference_mode_is_the_users_own():
    model, x = vim_and_images()
    explainer = vimlrp.Explainer(model, graphs=True)
    expected = vimlrp.explain(model, x, target=1)
    with torch.inference_mode():
        for _ in range(3):
            same(explainer(x, target=1), expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there is no second CUDA GPU")
def test_a_second_gpu_gives_the_same_numbers():
    model, x = vim_and_images()
    _, first = recorded(model, x, target=1)
    other, y = vim_and_images(device="cuda:1")
    explainer, plain = recorded(other, y, target=1)
    for found in (plain, explainer(y, target=1)):
        assert found.pixels.device == torch.device("cuda:1")
        assert torch.equal(found.pixels.cpu(), first.pixels.cpu())
