from math import comb

import numpy as np
import pytest
import torch
from audit_data import photos, read

import vimlrp
from vimlrp.audit.facts import about, agreement_of, warnings
from vimlrp.audit.gathering.index import index
from vimlrp.audit.gathering.predicting import agreement, predict, read_predictions
from vimlrp.audit.stages import begin, explain, gather, read_gathered
from vimlrp.errors import InputError

OPTIONS = {"batch_size": 4, "layer": "layers.1"}


def test_predictions_are_those_of_the_model(registered_vim, tmp_path):
    folder = photos(tmp_path / "data")
    workspace = begin(registered_vim, read(folder), tmp_path / "out", **OPTIONS)
    index(workspace)
    found = predict(workspace, registered_vim, np.arange(6))
    logits = torch.cat([vimlrp.explain(registered_vim, s.path).logits for s in workspace.samples])
    probability = logits.double().softmax(1)
    assert found.rows.tolist() == list(range(6))
    assert found.classes.tolist() == probability.topk(5, dim=1).indices.tolist()
    np.testing.assert_allclose(found.probabilities, probability.topk(5, dim=1).values, rtol=1e-4)
    labels = torch.tensor([0, 0, 0, 7, 7, 7])
    assert found.labels.tolist() == labels.tolist()
    expected = torch.nn.functional.cross_entropy(logits.double(), labels, reduction="none")
    np.testing.assert_allclose(found.losses, expected, rtol=1e-4)
    again = read_predictions(workspace, np.arange(6))
    np.testing.assert_array_equal(again.losses, found.losses)


def test_samples_without_labels_have_no_loss_and_unreadable_ones_no_prediction(
    registered_vim, tmp_path
):
    folder = photos(tmp_path / "data", ("",), count=5)
    (folder / "2.png").write_text("no picture")
    workspace = begin(registered_vim, read(folder), tmp_path / "out", **OPTIONS)
    found = predict(workspace, registered_vim, np.arange(5))
    assert found.rows.tolist() == [0, 1, 3, 4]
    assert np.isnan(found.losses).all()
    assert [p.sample for p in found.problems] == ["2.png"]
    for i in range(5):
        (folder / f"{i}.png").write_text("no picture")
    workspace = begin(registered_vim, read(folder), tmp_path / "other", **OPTIONS)
    with pytest.raises(InputError, match=r"none of the 5 pictures could be classified.*0\.png"):
        predict(workspace, registered_vim, np.arange(5))


def binomial_tail(hits, count, chance):
    return sum(
        comb(count, k) * chance**k * (1 - chance) ** (count - k) for k in range(hits, count + 1)
    )


def test_agreement_is_held_against_chance():
    labels = np.array([0, 0, 1, 1, 2, 2, 2, 2])
    predictions = np.array([0, 1, 1, 1, 2, 2, 2, 0])
    found = agreement(labels, predictions)
    chance = (2 * 2 + 2 * 3 + 4 * 3) / 64
    assert found.accuracy == 6 / 8
    assert found.chance == pytest.approx(chance)
    assert found.p_value == pytest.approx(binomial_tail(6, 8, chance))
    assert not found.by_chance


def test_a_model_that_always_says_the_same_agrees_by_chance():
    labels = np.array([3] * 80 + [1] * 20)
    found = agreement(labels, np.full(100, 3))
    assert found.accuracy == found.chance == 0.8
    assert found.by_chance


def test_a_single_class_tells_nothing_about_chance():
    found = agreement(np.zeros(5, int), np.array([0, 0, 0, 1, 1]))
    assert np.isnan(found.p_value)
    assert not found.by_chance


def test_a_model_at_chance_is_a_problem_and_a_fact(registered_vim, tmp_path):
    """A model of random weights, on pictures of noise."""
    folder = photos(tmp_path / "data", tuple("0123456789"), count=3)
    gather(registered_vim, read(folder), tmp_path / "out", **OPTIONS)
    gathered = read_gathered(tmp_path / "out")
    (problem,) = warnings(gathered)
    assert problem.kind == "accuracy at chance"
    assert "of 30 pictures" in problem.detail
    facts = about(gathered, command="vimlrp audit data")
    assert next(iter(facts)) == "command"
    assert "no better than chance" in facts["accuracy"]
    assert facts["pictures"] == facts["explained"] == 30
    assert facts["audited class"] == "the label of each picture"
    assert facts["recorded layer"] == "layers.1, 32 channels"
    assert facts["chosen"] == "all classes"


def test_without_labels_the_predicted_class_is_said_to_be_audited(registered_vim, tmp_path):
    folder = photos(tmp_path / "data", ("",), count=3)
    workspace = begin(registered_vim, read(folder), tmp_path / "out", per_class=2, **OPTIONS)
    gathered = explain(workspace, registered_vim)
    assert agreement_of(gathered) is None
    assert not warnings(gathered)
    facts = about(gathered)
    assert facts["audited class"].startswith("the class that the model predicts")
    assert facts["accuracy"].startswith("unknown")
    assert facts["chosen"] == "all classes, at most 2 pictures of each"
