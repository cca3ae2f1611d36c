import pytest
import torch
from helpers import images, relative_error, small_vim
from small_vmamba import small_vmamba
from torch import nn

from vimlrp import tracing
from vimlrp.engine import FUSE_VARIABLE
from vimlrp.errors import InputError
from vimlrp.inference import Inference
from vimlrp.models import fused


@pytest.fixture
def runs(monkeypatch):
    """Counts the blocks that ran as one operation."""
    counted = []
    run = fused.run

    def counting(*args):
        counted.append(args)
        return run(*args)

    monkeypatch.setattr("vimlrp.models.vim_blocks.run", counting)
    return counted


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("options", [{}, {"stride": 4}, {"class_token": "double"}])
def test_fused_plain_passes_equal_composed_ones(monkeypatch, runs, dtype, options):
    model, x = small_vim(dtype=dtype, **options), images(3, dtype=dtype)
    with torch.no_grad():
        composed = model(x)
    assert not runs
    monkeypatch.setenv(FUSE_VARIABLE, "1")
    logits = Inference(model, batch_size=2)(x)
    assert len(runs) == 2 * 2  # two pieces, two blocks each
    assert relative_error(logits, composed) < (1e-12 if dtype == torch.float64 else 1e-5)
    assert logits.dtype == dtype


def test_tokens_go_in_where_images_are_embedded(monkeypatch, runs):
    monkeypatch.setenv(FUSE_VARIABLE, "1")
    model, x = small_vim(), images(3)
    inference = Inference(model, batch_size=2)
    assert relative_error(inference.tokens(inference.embed(x)), inference(x)) < 1e-12
    with torch.no_grad():
        assert relative_error(inference.embed(x), model.embed(x)) < 1e-12


def test_other_models_run_as_they_are(monkeypatch):
    monkeypatch.setenv(FUSE_VARIABLE, "1")
    model = small_vmamba()
    x = images(2, dtype=next(model.parameters()).dtype)
    with torch.no_grad():
        expected = model(x)
    inference = Inference(model)
    assert relative_error(inference(x), expected) < 1e-9
    assert not inference.has_tokens
    with pytest.raises(InputError, match="no sequence of tokens"):
        inference.embed(x)


def test_half_precision_runs_on_a_copy(vim):
    x = images(2)
    logits = Inference(vim, dtype=torch.bfloat16)(x)
    assert logits.dtype == torch.float32
    assert {p.dtype for p in vim.parameters()} == {torch.float64}
    with torch.no_grad():
        assert 0 < relative_error(logits, vim(x)) < 0.1


def test_nothing_is_left_behind_after_an_error():
    model = small_vim().train()
    with pytest.raises(InputError, match="this model takes"):
        Inference(model)(images(1, size=16))
    assert model.training
    assert tracing.active() is None
    assert torch.is_grad_enabled()


def test_it_runs_in_evaluation_mode_and_without_gradients():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2), nn.Dropout(0.9))
    x = torch.randn(3, 3, 2, 2)
    first, second = Inference(model)(x), Inference(model)(x)
    assert torch.equal(first, second)
    assert not first.requires_grad
    assert model.training


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"dtype": torch.int32}])
def test_unusable_options_are_refused(vim, options):
    with pytest.raises(InputError, match=next(iter(options))):
        Inference(vim, **options)


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


@needs_gpu
@pytest.mark.usefixtures("full_precision")
@pytest.mark.parametrize("make", [small_vim, small_vmamba])
def test_a_gpu_gives_the_logits_of_a_cpu(make):
    model, x = make(dtype=torch.float32), images(5, dtype=torch.float32)
    with torch.no_grad():
        expected = model(x)
    model.cuda()
    logits = Inference(model, batch_size=2)(x.cuda())
    assert logits.is_cuda
    assert relative_error(logits.cpu(), expected) < 1e-4
    half = Inference(model, dtype=torch.bfloat16, batch_size=2)(x.cuda())
    assert half.dtype == torch.float32
    assert relative_error(half.cpu(), expected) < 0.05
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@needs_gpu
@pytest.mark.usefixtures("full_precision")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tokens_on_a_gpu_go_in_where_images_are_embedded(dtype):
    model, x = small_vim(dtype=torch.float32).cuda(), images(3, dtype=torch.float32).cuda()
    inference = Inference(model, dtype=dtype, batch_size=2)
    tokens = inference.embed(x)
    assert (tokens.device.type, tokens.dtype) == ("cuda", dtype)
    error = relative_error(inference.tokens(tokens).cpu(), inference(x).cpu())
    assert error < (1e-5 if dtype == torch.float32 else 0.02)
