"""Targets: every form, and a clear error for what is none."""

import numpy as np
import pytest
import timm
import torch
from helpers import images, random, relative_error, small_vim

import vimlrp
from vimlrp.errors import TargetError
from vimlrp.models import class_names
from vimlrp.targets import find_class, seed

NAMES = ("tench", "English springer", "crane, wading bird", "crane", "garbage truck, dustcart")
LOGITS = random(3, 5)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (None, LOGITS.argmax(1).tolist()),
        (2, [2, 2, 2]),
        (np.int64(4), [4, 4, 4]),
        (torch.tensor(1), [1, 1, 1]),
        ([0, 4, 2], [0, 4, 2]),
        ((0, "tench", 2), [0, 0, 2]),
        (torch.tensor([3, 1, 0]), [3, 1, 0]),
        (torch.tensor([3, 1, 0], dtype=torch.int8), [3, 1, 0]),
        (np.array([3, 1, 0]), [3, 1, 0]),
        ("tench", [0, 0, 0]),
        ("english SPRINGER", [1, 1, 1]),
        (" tench ", [0, 0, 0]),
        ("dustcart", [4, 4, 4]),
        ("crane", [3, 3, 3]),
        ("crane, wading bird", [2, 2, 2]),
        (["tench", "dustcart", "crane"], [0, 4, 3]),
    ],
    ids=repr,
)
def test_every_form_of_a_target_picks_its_classes(target, expected):
    found = seed(LOGITS, target, None, NAMES)
    assert found.target.tolist() == expected
    assert found.target.dtype == torch.int64
    assert found.value.tolist() == LOGITS[torch.arange(3), expected].tolist()


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (5, "target 5 is out of range: the model has classes 0 to 4"),
        (-1, "target -1 is out of range"),
        ([0, 5, 1], "target 5 is out of range"),
        (torch.tensor([0, 1, -2]), "target -2 is out of range"),
        ([0, 1], "2 targets were given for 3 samples"),
        ([], "0 targets were given for 3 samples"),
        (torch.tensor([[0, 1, 2]]), "3 targets were given for 3 samples"),
        (torch.tensor([0.0, 1.0, 2.0]), "class indices, not torch.float32"),
        (torch.tensor([True, False, True]), "class indices, not torch.bool"),
        (1.0, r"1\.0 is no target"),
        (True, "True is no target"),
        (np.array([0.0, 1.0, 2.0]), "0.0 is no target"),
        ([0, 1, None], "None is no target"),
        ([0, 1, 2.0], r"2\.0 is no target"),
        ({"class": 1}, "is no target"),
        ("tinch", "no class 'tinch'; did you mean 'tench'"),
        ("garbage truck, dustcar", "did you mean 'garbage truck, dustcart'"),
        ("zzzzzz", "no class 'zzzzzz'$"),
        ("", "no class ''"),
        (["tench", "nothing of it", "crane"], "no class 'nothing of it'"),
    ],
    ids=repr,
)
def test_what_is_no_target_is_refused(target, message):
    with pytest.raises(TargetError, match=message):
        seed(LOGITS, target, None, NAMES)
    with pytest.raises(TargetError, match=message):
        seed(LOGITS, 0, target, NAMES)


def test_a_name_without_names_is_refused():
    with pytest.raises(TargetError, match="knows no names"):
        seed(LOGITS, "tench", None, None)


def test_a_name_that_two_classes_bear_is_refused_with_both():
    names = ("crane, bird", "tench", "crane, machine")
    with pytest.raises(TargetError, match=r"'crane' names the classes \[0, 2\]"):
        find_class("crane", names)


def test_an_ambiguous_name_of_imagenet_is_refused():
    names = class_names(timm.create_model("vim_tiny_patch16_224", depth=1))
    assert len(names) == 1000
    with pytest.raises(TargetError, match=r"'crane' names the classes \[134, 517\]"):
        find_class("crane", names)


@pytest.mark.parametrize(
    ("name", "index"), [("tench", 0), ("goldfish", 1), ("church", 497), ("Golf ball", 574)]
)
def test_imagenets_names_are_found(name, index):
    names = class_names(timm.create_model("vim_tiny_patch16_224", depth=1))
    assert find_class(name, names) == index


def test_imagenettes_names_come_with_its_model():
    model = timm.create_model("vim_nano_patch16_224.imagenette", pretrained=True)
    relevance = vimlrp.explain(model, images(1, 224, dtype=torch.float32), target="church")
    assert relevance.target.tolist() == [4]
    assert relevance.name_of(4) == "church"


def test_another_classifier_forgets_the_names():
    model = timm.create_model("vim_nano_patch16_224.imagenette", pretrained=True)
    assert class_names(model) is not None
    other = timm.create_model("vim_nano_patch16_224.imagenette", depth=1, num_classes=7)
    assert class_names(other) is None


LINEAR = {
    "one logit": lambda logits: logits[:, 1],
    "difference": lambda logits: logits[:, 1] - logits[:, 2],
    "mean": lambda logits: logits.mean(1),
    "weights": lambda logits: logits @ torch.arange(5).to(logits),
    "one against the rest": lambda logits: 2 * logits[:, 0] - logits.sum(1),
}


@pytest.mark.parametrize("function", LINEAR.values(), ids=LINEAR)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_linear_function_is_explained(function, dtype):
    model = small_vim(dtype=dtype)
    relevance = vimlrp.explain(model, images(dtype=dtype), target=function)
    assert relevance.target is None
    bound = {torch.float64: 1e-13, torch.float32: 1e-6, torch.bfloat16: 2e-2}[dtype]
    assert relative_error(relevance.account.target, function(relevance.logits)) < bound


def test_a_linear_function_is_the_sum_of_its_logits(vim):
    x = images()
    parts = [vimlrp.explain(vim, x, target=i).pixels for i in range(5)]
    ours = vimlrp.explain(vim, x, target=LINEAR["weights"]).pixels
    assert relative_error(ours, sum(i * part for i, part in enumerate(parts))) < 1e-11


@pytest.mark.parametrize(
    "function",
    [
        lambda logits: logits.softmax(1)[:, 0],
        lambda logits: logits.amax(1),
        lambda logits: logits[:, 0] ** 2,
        lambda logits: logits[:, 0].relu(),
        lambda logits: logits[:, 0] + 1,
        lambda logits: logits[:, 0] * logits[:, 1],
        lambda logits: logits.log_softmax(1)[:, 0],
    ],
    ids=["probability", "maximum", "square", "relu", "shifted", "product", "log-probability"],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_function_that_is_not_linear_is_refused(function, dtype):
    with pytest.raises(TargetError, match="not linear in the logits"):
        seed(LOGITS.to(dtype), function, None, None)


@pytest.mark.parametrize(
    "function",
    [
        lambda logits: logits,
        lambda logits: logits.sum(),
        lambda logits: 3.0,
        lambda logits: logits[:, :1],
        lambda logits: None,
    ],
    ids=["all logits", "sum over samples", "number", "a column", "nothing"],
)
def test_a_function_of_a_wrong_shape_is_refused(function):
    with pytest.raises(TargetError, match=r"the target function returned .*return \(B,\)"):
        seed(LOGITS, function, None, None)


def test_contrast_takes_every_form():
    for contrast in (2, "crane, wading bird", [2, 2, 2], torch.tensor(2), lambda x: x[:, 2]):
        found = seed(LOGITS, 0, contrast, NAMES)
        assert relative_error(found.value, LOGITS[:, 0] - LOGITS[:, 2]) < 1e-15
        assert found.target.tolist() == [0, 0, 0]
