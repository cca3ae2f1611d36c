"""The result: indexing, joining, moving, naming and drawing."""

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from helpers import enliven, images, relative_error, seeded, small_vim
from PIL import Image

import vimlrp
from vimlrp.errors import InputError
from vimlrp.models.builder import note_weights

NAMES = ("pixels", "patches", "tokens", "logits", "target")


@pytest.fixture(scope="module")
def relevance(vim):
    return vimlrp.explain(vim, images(4), record=["layers.0", "head"])


@pytest.fixture(scope="module")
def pictured():
    """Two photos of other sizes than the model's, explained by a model with names."""
    name = "vim_nano_patch16_224.imagenette"
    with seeded():
        model = timm.create_model(name, depth=2, img_size=64).eval()
    enliven(model)
    note_weights(model, "imagenette")
    generator = np.random.default_rng(0)
    photos = [
        generator.integers(0, 256, (h, w, 3), dtype=np.uint8) for h, w in ((80, 120), (90, 70))
    ]
    return vimlrp.explain(model, photos, target=["church", "tench"])


def assert_equal(ours, expected):
    for name in NAMES:
        assert torch.equal(getattr(ours, name), getattr(expected, name)), name
    assert ours.account.parts.keys() == expected.account.parts.keys()
    assert torch.equal(ours.account.target, expected.account.target)
    for kind, share in expected.account.parts.items():
        assert torch.equal(ours.account.parts[kind], share), kind
    assert ours.recorded.keys() == expected.recorded.keys()
    for name, record in expected.recorded.items():
        assert torch.equal(ours.recorded[name].activation, record.activation)
        assert torch.equal(ours.recorded[name].relevance, record.relevance)
    for name in ("model", "composite", "class_names"):
        assert getattr(ours, name) == getattr(expected, name)


@pytest.mark.parametrize(
    ("index", "rows"),
    [
        (0, [0]),
        (3, [3]),
        (-1, [3]),
        (np.int64(2), [2]),
        (slice(1, 3), [1, 2]),
        (slice(None, None, 2), [0, 2]),
        (slice(4, None), []),
    ],
    ids=repr,
)
def test_indexing_keeps_the_batch_dimension_and_takes_everything_along(relevance, index, rows):
    part = relevance[index]
    assert len(part) == len(rows)
    for name in NAMES:
        assert torch.equal(getattr(part, name), getattr(relevance, name)[rows]), name
    assert torch.equal(part.account.residue, relevance.account.residue[rows])
    record = part.recorded["layers.0"]
    assert torch.equal(record.relevance, relevance.recorded["layers.0"].relevance[rows])
    assert [s.name for s in part.sources] == [f"image {i}" for i in rows]


@pytest.mark.parametrize("index", [4, -5])
def test_index_out_of_range_is_an_index_error(relevance, index):
    with pytest.raises(IndexError):
        relevance[index]


def test_iteration_gives_every_sample_once(relevance):
    assert [len(part) for part in relevance] == [1, 1, 1, 1]
    assert_equal(vimlrp.Relevance.cat(list(relevance)), relevance)


def test_joining_undoes_slicing(relevance):
    assert_equal(vimlrp.Relevance.cat([relevance[:1], relevance[1:3], relevance[3]]), relevance)


def test_joining_fills_parts_of_the_account_that_one_batch_lacks(vim):
    plain = vimlrp.explain(vim, images(1))
    stabilised = vimlrp.explain(vim, images(1), composite="epsilon")
    joined = vimlrp.Relevance.cat([plain, stabilised])
    assert joined.account.parts["stabiliser"][0] == 0
    assert joined.account.residue.abs().max() < 1e-12


def test_moving_to_a_device_takes_everything_along(relevance):
    moved = relevance.to("meta")
    tensors = [getattr(moved, name) for name in NAMES]
    tensors += [moved.account.target, *moved.account.parts.values()]
    tensors += [x for r in moved.recorded.values() for x in (r.activation, r.relevance)]
    tensors += [source.tensor[0] for source in moved.sources]
    assert {x.device.type for x in tensors} == {"meta"}
    assert relevance.pixels.device.type == "cpu"


def test_it_cannot_be_changed(relevance):
    with pytest.raises(AttributeError):
        relevance.pixels = None


def test_top_classes_are_sorted_and_named(pictured):
    top = pictured.top(3)
    assert [len(row) for row in top] == [3, 3]
    for row, logits in zip(top, pictured.logits, strict=True):
        expected = logits.softmax(0).topk(3)
        assert [i for i, _, _ in row] == expected.indices.tolist()
        assert [p for _, _, p in row] == pytest.approx(expected.values.tolist())
        assert [name for _, name, _ in row] == [pictured.class_names[i] for i, _, _ in row]


def test_top_of_more_than_there_are_is_all(relevance):
    row = relevance.top(99)[0]
    assert len(row) == 5
    assert sum(p for _, _, p in row) == pytest.approx(1)
    assert sorted(name for _, name, _ in row) == list("01234")


def test_names_are_indices_where_there_are_none(relevance, pictured):
    assert relevance.name_of(3) == "3"
    assert pictured.name_of(4) == "church"
    assert pictured.target.tolist() == [4, 0]


@pytest.mark.parametrize("of", ["pixels", "patches"])
def test_heatmaps_have_the_size_of_their_map(pictured, of):
    side = {"pixels": 64, "patches": 4}[of]
    for picture in pictured.heatmap(of, smoothing=1.0):
        assert picture.shape == (side, side, 3)
        assert picture.dtype == np.uint8


@pytest.mark.parametrize("interpolation", ["bilinear", "nearest"])
@pytest.mark.parametrize("of", ["pixels", "patches"])
def test_overlays_have_the_size_of_their_photo(pictured, of, interpolation):
    drawn = pictured.overlay(of, interpolation=interpolation)
    assert [picture.shape for picture in drawn] == [(80, 120, 3), (90, 70, 3)]


def test_overlay_takes_other_pictures(pictured):
    black = [np.zeros((80, 120, 3), np.uint8), np.zeros((90, 70, 3), np.uint8)]
    ours, plain = pictured.overlay(pictures=black), pictured.overlay()
    assert ours[0].mean() < plain[0].mean()


def test_shared_scale_draws_the_weaker_map_paler(relevance):
    strong, weak = relevance[0], relevance[0]
    both = vimlrp.Relevance.cat([strong, weak])
    object.__setattr__(both, "pixels", both.pixels * torch.tensor([1.0, 0.1])[:, None, None])
    alone, shared = both.heatmap(), both.heatmap(shared_scale=True)
    assert np.array_equal(alone[0], alone[1])
    assert np.array_equal(shared[0], alone[0])
    assert shared[1].std() < shared[0].std() / 2


@pytest.mark.parametrize("method", ["heatmap", "overlay"])
def test_map_of_something_else_is_refused(relevance, method):
    with pytest.raises(InputError, match="'tokens'"):
        getattr(relevance, method)("tokens")


def test_drawing_on_pictures_in_another_number_is_refused(pictured):
    with pytest.raises(InputError, match="2"):
        pictured.overlay(pictures=[np.zeros((80, 120, 3), np.uint8)])


def test_account_in_words(relevance):
    text = str(relevance.account)
    assert text.count("target") == 4
    for kind in ("pixels", "class token", "position embedding", "bias: head", "residue"):
        assert text.count(kind) == 4


def test_rows_of_the_account_sum_to_the_target(relevance):
    for i in range(4):
        rows = relevance.account.rows(i)
        assert [name for name, _, _ in rows][:3] == ["pixels", "class token", "position embedding"]
        assert rows[-1][0] == "residue"
        target = float(relevance.account.target[i])
        assert sum(value for _, value, _ in rows) == pytest.approx(target, rel=1e-12)
        assert sum(share for _, _, share in rows) == pytest.approx(1, rel=1e-12)


def test_probabilities_are_those_of_the_logits(relevance):
    assert relative_error(relevance.probabilities(), relevance.logits.softmax(1)) < 1e-15


def test_name_and_path_of_a_photo_are_kept(registered_vim, tmp_path):
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    (source,) = vimlrp.explain(registered_vim, tmp_path / "red.png").sources
    assert source.name == "red.png"
    assert Path(source.photo.path) == tmp_path / "red.png"


def test_relevance_of_a_float32_model_is_float32():
    assert (
        vimlrp.explain(small_vim(dtype=torch.float32), images(dtype=torch.float32)).pixels.dtype
        == torch.float32
    )
