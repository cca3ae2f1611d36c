import pytest
from evaluation_models import photo_folder

from vimlrp.errors import InputError
from vimlrp.evaluation.data import Box, read_data
from vimlrp.models.labels import IMAGENETTE


def kinds(data):
    return [(p.sample, p.kind) for p in data.problems]


def table(folder, *lines, name="data.csv"):
    file = folder / name
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return file


def test_folders_are_classes_by_name_synset_or_index(tmp_path):
    photo_folder(tmp_path, 1, ("church", "n01440764", "9", "English springer"))
    data = read_data(tmp_path, IMAGENETTE, 10)
    assert {s.name: s.label for s in data.samples} == {
        "church/0.png": 4, "n01440764/0.png": 0, "9/0.png": 9, "English springer/0.png": 1,
    }  # fmt: skip
    assert not data.problems
    assert not data.has_regions


SYNSETS = (
    "n01440764", "n02102040", "n02979186", "n03000684", "n03028079",
    "n03394916", "n03417042", "n03425413", "n03445777", "n03888257",
)  # fmt: skip


def test_every_synset_of_imagenette_is_found(tmp_path):
    photo_folder(tmp_path, 1, SYNSETS)
    assert [s.label for s in read_data(tmp_path, IMAGENETTE, 10).samples] == list(range(10))


def test_a_flat_folder_has_no_labels(tmp_path):
    photo_folder(tmp_path, 2, ("",))
    data = read_data(tmp_path, IMAGENETTE, 10)
    assert [(s.name, s.label) for s in data.samples] == [("0.png", None), ("1.png", None)]
    assert not data.problems


def test_a_class_that_the_model_lacks_is_listed_and_its_samples_stay(tmp_path):
    photo_folder(tmp_path, 2, ("dragon", "tench", "10"))
    data = read_data(tmp_path, IMAGENETTE, 10)
    assert [s.label for s in data.samples] == [None, None, None, None, 0, 0]
    missing = "class missing from the model"
    assert kinds(data) == [
        ("10/0.png", missing), ("10/1.png", missing),
        ("dragon/0.png", missing), ("dragon/1.png", missing),
    ]  # fmt: skip


def test_a_csv_has_boxes_masks_and_labels(tmp_path):
    file = table(
        tmp_path,
        "Path, label ,x0,y0,x1,y1,width,height,mask,remark",
        "a.png,church,1,2,3.5,4,,,,fine",
        "a.png,church,5,6,7,8,100,50,,",
        "b.png,,,,,,,,m.png,",
    )
    data = read_data(file, IMAGENETTE, 10)
    first, second = data.samples
    assert first.label == 4
    assert first.path == tmp_path / "a.png"
    assert first.boxes == (Box((1, 2, 3.5, 4)), Box((5, 6, 7, 8), (100, 50)))
    assert second.masks == (tmp_path / "m.png",)
    assert second.label is None
    assert data.has_regions
    assert not data.problems


def test_rows_that_say_nothing_usable_are_listed(tmp_path):
    file = table(
        tmp_path,
        "path,label,x0,y0,x1,y1",
        ",church,,,,",
        "a.png,unicorn,1,2,three,4",
        "b.png,0,1,2,,4",
    )
    data = read_data(file, IMAGENETTE, 10)
    assert [s.name for s in data.samples] == ["a.png", "b.png"]
    assert kinds(data) == [
        ("line 2", "no path"),
        ("a.png", "box is no numbers"),
        ("b.png", "box is no numbers"),
        ("a.png", "class missing from the model"),
    ]


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["file,label", "a.png,0"], "no column 'path'; its columns are file, label"),
        ([""], "its columns are none"),
        (["path,label"], "names no picture"),
    ],
)
def test_tables_without_pictures_are_refused(tmp_path, lines, message):
    with pytest.raises(InputError, match=message):
        read_data(table(tmp_path, *lines), IMAGENETTE, 10)


def test_what_is_no_data_is_refused(tmp_path):
    (file,) = photo_folder(tmp_path, 1, ("tench",))
    with pytest.raises(InputError, match="neither a folder nor a CSV"):
        read_data(file, IMAGENETTE, 10)
    with pytest.raises(InputError, match="does not exist"):
        read_data(tmp_path / "nowhere", IMAGENETTE, 10)
    binary = tmp_path / "x.csv"
    binary.write_bytes(b"path\n\xff\xfe\x00")
    with pytest.raises(InputError, match="UTF-8"):
        read_data(binary, IMAGENETTE, 10)


def test_samples_are_drawn_evenly_with_their_problems(tmp_path):
    photo_folder(tmp_path, 4, ("dragon", "tench"))
    data = read_data(tmp_path, IMAGENETTE, 10)
    drawn = data.evenly(4)
    assert [s.name for s in drawn.samples] == [
        "dragon/0.png", "dragon/2.png", "tench/0.png", "tench/2.png",
    ]  # fmt: skip
    assert [p.sample for p in drawn.problems] == ["dragon/0.png", "dragon/2.png"]
    assert data.evenly(100) is data


def test_boxes_without_a_size_or_an_end_are_listed(tmp_path):
    file = table(
        tmp_path,
        "path,x0,y0,x1,y1,width,height",
        "a.png,1,2,3,4,0,50",
        "b.png,1,2,3,4,100,-1",
        "c.png,1,2,3,4,inf,50",
        "d.png,1,2,nan,4,,",
        "e.png,1,2,3,inf,100,50",
        "f.png,1,2,3,4,100,",
        "g.png,1,2,3,4,,50",
    )
    data = read_data(file, IMAGENETTE, 10)
    size = "box on a picture without a size"
    half = "width without height, or height without width"
    assert kinds(data) == [
        ("a.png", size), ("b.png", size), ("c.png", size), ("d.png", "box is not finite"),
        ("e.png", "box is not finite"), ("f.png", half), ("g.png", half),
    ]  # fmt: skip
    assert not data.has_regions


def test_rows_of_one_picture_add_up(tmp_path):
    file = table(
        tmp_path,
        "path,label,x0,y0,x1,y1,mask",
        "a.png,church,1,2,3,4,one.png",
        "a.png,,,,,,two.png",
        "b.png,,,,,,m.png",
        "a.png,4,5,6,7,8,one.png",
        "a.png,CHURCH,,,,,",
    )
    first, second = read_data(file, IMAGENETTE, 10).samples
    assert first.label == 4
    assert first.boxes == (Box((1, 2, 3, 4)), Box((5, 6, 7, 8)))
    assert first.masks == (tmp_path / "one.png", tmp_path / "two.png")
    assert (second.label, second.masks) == (None, (tmp_path / "m.png",))
    assert not read_data(file, IMAGENETTE, 10).problems


def test_a_picture_of_two_classes_has_none_and_is_listed(tmp_path):
    file = table(
        tmp_path, "path,label", "a.png,church", "a.png,tench", "b.png,3", "b.png,dragon", "c.png,2",
    )  # fmt: skip
    data = read_data(file, IMAGENETTE, 10)
    assert [s.label for s in data.samples] == [None, None, 2]
    assert kinds(data) == [
        ("a.png", "conflicting labels"),
        ("b.png", "class missing from the model"), ("b.png", "conflicting labels"),
    ]  # fmt: skip
    assert "church in line 2; tench in line 3" in data.problems[0].detail


def test_a_draw_keeps_the_problems_that_are_no_samples(tmp_path):
    rows = [f"{i}.png,dragon" for i in range(4)]
    data = read_data(table(tmp_path, "path,label", *rows, ",church"), IMAGENETTE, 10)
    assert [p.sample for p in data.evenly(2).problems] == ["line 6", "0.png", "2.png"]
