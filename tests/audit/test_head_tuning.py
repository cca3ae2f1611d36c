"""The last layer fitted anew, on a network that learnt a cue."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from cue_world import POISONED, found, prepared, world
from torch import nn

from vimlrp.audit.mitigating import evaluate_mitigation
from vimlrp.audit.mitigating.head_tuning import HeadTuning, tune_head
from vimlrp.errors import InputError, UnsupportedModelError


def test_the_cue_loses_its_hold_and_the_features_stay():
    model, _, evidence = world()
    candidate, finding = found()
    tuned = tune_head(model, evidence, candidate)
    report = evaluate_mitigation(model, evidence, finding, tuned.attach)
    assert report.recovery > 0.75
    assert report.after.attack_rate < 0.5 * report.before.attack_rate
    assert report.cost <= 0.01


def test_attached_weights_are_those_of_a_linear_layer_on_the_features():
    model, data, evidence = world()
    tuned = tune_head(model, evidence, found()[0], steps=20)
    x = prepared(data.pictures[:4], model)
    with torch.no_grad():
        features = model.forward_head(model.forward_features(x), pre_logits=True)
        with tuned.attach(model):
            out = model(x)
        own = model(x)
    torch.testing.assert_close(out, features @ tuned.weight.T + tuned.bias)
    torch.testing.assert_close(own, features @ model.fc.weight.T + model.fc.bias)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_classes_without_samples_keep_their_weights():
    model, _, evidence = world()
    kept = evidence.labels != 3
    part = replace(evidence, labels=np.where(kept, evidence.labels, -1))
    tuned = tune_head(model, part, found()[0], steps=20, counterexamples=False)
    assert torch.equal(tuned.weight[3], model.fc.weight[3].detach())
    assert not torch.equal(tuned.weight[1], model.fc.weight[1].detach())


def test_it_is_the_same_again_and_from_a_file(tmp_path):
    model, _, evidence = world()
    first, second = (tune_head(model, evidence, found()[0], steps=5) for _ in range(2))
    loaded = HeadTuning.load(first.save(tmp_path / "head.safetensors"), model)
    for other in (second, loaded):
        assert torch.equal(first.weight, other.weight)
        assert torch.equal(first.bias, other.bias)


def test_another_model_is_refused(tmp_path):
    model, _, evidence = world()
    tuned = tune_head(model, evidence, found()[0], steps=1)
    path = tuned.save(tmp_path / "head.safetensors")
    other = nn.Sequential(nn.Flatten(), nn.Linear(12, 5))
    with pytest.raises(InputError, match="tuned head was fitted"):
        tuned.attach(other)
    with pytest.raises(InputError, match="head in"):
        HeadTuning.load(path, other)
    (tmp_path / "head.safetensors").write_bytes(b"")
    with pytest.raises(InputError, match="no vimlrp head"):
        HeadTuning.load(path, model)


def test_too_little_data_and_bad_options_are_refused():
    model, _, evidence = world()
    candidate, _ = found()
    with pytest.raises(InputError, match="samples of the class"):
        tune_head(model, evidence, replace(candidate, carriers=candidate.members))
    alone = replace(evidence, labels=np.full_like(evidence.labels, POISONED))
    with pytest.raises(InputError, match="one class"):
        tune_head(model, alone, candidate)
    with pytest.raises(InputError, match="steps 0"):
        tune_head(model, evidence, candidate, steps=0)


def test_models_without_a_linear_end_are_refused():
    _, _, evidence = world()
    with pytest.raises(UnsupportedModelError, match="linear layer"):
        tune_head(nn.Conv2d(3, 5, 1), evidence, found()[0])
