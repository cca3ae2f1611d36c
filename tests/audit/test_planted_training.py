"""The benchmark's classifiers: sizes, seeds, what they learn, and the truth about their cues."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import vimlrp
from vimlrp.audit.planted.pictures import DrawnPictures
from vimlrp.audit.planted.plans import Plan, Planting
from vimlrp.audit.planted.planting import plant
from vimlrp.audit.planted.reliance import reliance
from vimlrp.audit.planted.training import (
    ARCHITECTURES,
    as_input,
    create,
    logits,
    replayed,
    train,
)
from vimlrp.errors import InputError
from vimlrp.inputs import batches

PLAN = Plan(4, 0, (Planting(2, "patch", 0.9), Planting(0, "border", 0.5, learnt=False)))
PICTURES = DrawnPictures(classes=4, side=32)


@pytest.fixture(scope="module")
def trained():
    """A CNN that knows the patch well and its classes little."""
    planted = plant(PICTURES, PLAN, 40)
    model = create("cnn", 4, 32)
    recipe = replace(ARCHITECTURES["cnn"], epochs=24, batch=16)
    train(model, planted.learnt, planted.labels, recipe)
    return model, planted


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_models_are_small_and_explained(name):
    model = create(name, 20, 64).eval()
    count = sum(parameter.numel() for parameter in model.parameters())
    assert 0.3e6 < count < 1e6
    x = as_input(np.stack([PICTURES.picture(i, 0)[0] for i in range(2)]), create(name, 4, 32))
    assert x.shape == (2, 3, 32, 32)
    pixels = torch.zeros(1, 3, 64, 64).uniform_(-1, 1)
    relevance = vimlrp.explain(model, pixels, target=3)
    assert relevance.pixels.shape == (1, 64, 64)


def test_weights_come_from_the_seed_alone_and_leave_the_generator():
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first = create("cnn", 4, 32, seed=1).state_dict()
    torch.testing.assert_close(torch.rand(3), expected)
    again, other = create("cnn", 4, 32, seed=1), create("cnn", 4, 32, seed=2)
    for key, value in first.items():
        torch.testing.assert_close(again.state_dict()[key], value)
    assert any(not torch.equal(value, other.state_dict()[key]) for key, value in first.items())


def test_input_is_what_the_file_would_give(tmp_path):
    model = create("cnn", 4, 32)
    planted = plant(PICTURES, PLAN, 1)
    path = tmp_path / "one.jpg"
    path.write_bytes(planted.files[0])
    (batch,) = batches(path, model, None)
    torch.testing.assert_close(batch.x, as_input(planted.pictures[:1], model))


def test_unknown_models_are_refused():
    with pytest.raises(InputError, match="give one of vim, vmamba, cnn"):
        create("mlp", 4, 32)


def test_training_is_repeatable():
    planted = plant(PICTURES, PLAN, 8)
    recipe = replace(ARCHITECTURES["cnn"], epochs=1, batch=16)
    twice = []
    for _ in range(2):
        model = create("cnn", 4, 32)
        train(model, planted.learnt, planted.labels, recipe)
        assert not model.training
        twice.append(logits(model, planted.pictures))
    np.testing.assert_array_equal(*twice)


def test_a_model_that_cannot_be_captured_is_trained_in_plain_steps(caplog):
    # Nothing can be captured on a CPU.
    model = create("cnn", 4, 32).train()
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    x = torch.rand(2, 3, 32, 32)
    assert replayed(model, x) is model
    assert "ResNet is trained without CUDA graphs" in caplog.text
    assert "forward" not in vars(model)
    for name, buffer in model.named_buffers():
        torch.testing.assert_close(buffer, before[name])


class _Asking(torch.nn.Sequential):
    """A model whose steps wait for the GPU, which no graph can hold."""

    def forward(self, x):
        return super().forward(x) + float(x.mean())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("capturable", [True, False])
def test_steps_on_a_gpu_train_with_and_without_graphs(capturable, caplog):
    planted = plant(PICTURES, PLAN, 16)
    net = create("cnn", 4, 32)
    model = (net if capturable else _Asking(net)).cuda()
    if not capturable:
        model.pretrained_cfg = net.pretrained_cfg
    start = [parameter.detach().clone() for parameter in model.parameters()]
    recipe = replace(ARCHITECTURES["cnn"], epochs=2, batch=16)
    train(model, planted.learnt, planted.labels, recipe)
    assert ("without CUDA graphs" in caplog.text) != capturable
    assert any(not torch.equal(a, b) for a, b in zip(start, model.parameters(), strict=True))
    assert np.isfinite(logits(model, planted.pictures)).all()


def test_reliance_on_a_learnt_and_on_an_unlearnt_artifact(trained):
    model, planted = trained
    held_out = plant(PICTURES, PLAN, 30, start=40)
    learnt = reliance(model, 2, planted, held_out)
    assert learnt.gated
    assert learnt.carried.value > 0
    assert learnt.carried.count == 36
    assert not reliance(model, 0, planted, held_out).gated


def test_reliance_by_hand(trained):
    model, planted = trained
    held_out = plant(PICTURES, PLAN, 4, start=40)
    others = held_out.labels != 2
    found = reliance(model, 2, planted, held_out)
    base = logits(model, held_out.twins[others])
    assert found.base == pytest.approx((base.argmax(1) == 2).mean())
    carriers = planted.carriers_of(2)
    with torch.no_grad():
        gain = model(as_input(planted.pictures[carriers], model)) - model(
            as_input(planted.twins[carriers], model)
        )
    assert found.carried.value == pytest.approx(float(gain[:, 2].mean()), rel=1e-4)
    assert found.effect.count == 12


def test_reliance_on_nothing_is_refused(trained):
    model, planted = trained
    with pytest.raises(InputError, match="nothing is planted in class 1"):
        reliance(model, 1, planted, planted)
