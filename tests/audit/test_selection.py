import numpy as np
import pytest
from audit_data import photos, read

from vimlrp.audit.gathering.selection import class_indices, drawn, with_labels
from vimlrp.errors import InputError, TargetError
from vimlrp.evaluation.data import read_data

NAMES = ("tench, Tinca tinca", "church", "golf ball")


def test_classes_are_given_by_name_synonym_or_index():
    assert class_indices(["golf ball", "Tinca tinca", "2", 1], NAMES, 3) == [0, 1, 2]
    assert class_indices(None, NAMES, 3) is None


@pytest.mark.parametrize(
    ("classes", "error", "message"),
    [
        (["zebra"], TargetError, "no class 'zebra'"),
        (["3"], InputError, "no class 3; it has 3"),
        ([-1], InputError, "no class -1"),
        ([], InputError, "no classes were given"),
    ],
)
def test_classes_that_the_model_lacks_are_refused(classes, error, message):
    with pytest.raises(error, match=message):
        class_indices(classes, NAMES, 3)


def test_so_many_are_drawn_of_each_class_whatever_the_others():
    labels = np.array([0] * 50 + [-1] * 5 + [1] * 3 + [2] * 50)
    rows = drawn(labels, None, 10, seed=4)
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert [int((labels[rows] == c).sum()) for c in (-1, 0, 1, 2)] == [0, 10, 3, 10]
    alone = drawn(labels, [2], 10, seed=4)
    assert alone.tolist() == rows[labels[rows] == 2].tolist()
    assert drawn(labels, [2], 10, seed=5).tolist() != alone.tolist()
    assert drawn(labels, [2], None, seed=0).tolist() == list(range(58, 108))


def test_problems_of_pictures_left_out_by_choice_are_none_of_the_audit(tmp_path):
    folder = photos(tmp_path, ("0", "1", "zebra"))
    chosen = with_labels(read(folder), [1], 2, seed=0)
    assert {s.label for s in chosen.samples} == {1}
    assert len(chosen.samples) == 2
    assert {p.sample for p in chosen.problems} == {f"zebra/{i}.png" for i in range(3)}


def test_pictures_without_a_label_among_others_with_one_are_problems(tmp_path):
    chosen = with_labels(read(photos(tmp_path, ("", "1"))), None, None, seed=0)
    assert {s.label for s in chosen.samples} == {1}
    assert [(p.sample, p.kind) for p in chosen.problems] == [
        (f"{i}.png", "no label") for i in range(3)
    ]


def test_data_without_labels_stay_whole(tmp_path):
    data = read(photos(tmp_path, ("",)))
    assert with_labels(data, [1], 2, seed=0) is data


def test_data_of_none_of_the_models_classes_are_refused(tmp_path):
    data = read_data(photos(tmp_path / "a", ("zebra", "okapi")), NAMES, 3)
    with pytest.raises(InputError, match=r"none of the 2 classes.*'okapi'"):
        with_labels(data, None, None, seed=0)
    data = read_data(photos(tmp_path / "b", ("church",)), NAMES, 3)
    with pytest.raises(InputError, match="no picture of the classes"):
        with_labels(data, [0], None, seed=0)
