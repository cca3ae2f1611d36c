"""`explain` and `Explainer`: what goes in, what comes out, and batches as good as samples."""

import copy
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from helpers import images, random, relative_error, small_vim
from PIL import Image
from small_vmamba import small_vmamba
from torch.utils.data import DataLoader, TensorDataset

import vimlrp
from vimlrp.errors import CompositeError, InputError, TargetError, UnsupportedModelError

MAPS = ("pixels", "patches", "tokens")


@pytest.fixture(scope="module")
def photo():
    """A PIL image that is neither square nor of the model's size."""
    generator = np.random.default_rng(0)
    return Image.fromarray(generator.integers(0, 256, (90, 120, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def photo_file(photo, tmp_path_factory):
    path = tmp_path_factory.mktemp("photos") / "street.png"
    photo.save(path)
    return path


def assert_same(ours, expected, bound):
    for name in MAPS:
        assert relative_error(getattr(ours, name), getattr(expected, name)) < bound, name
    assert relative_error(ours.logits, expected.logits) < bound
    for kind, share in expected.account.parts.items():
        scale = expected.account.target.abs().max()
        assert (ours.account.parts[kind] - share).abs().max() < 10 * bound * scale, kind


def test_every_form_of_a_photo_gives_the_same(registered_vim, photo, photo_file):
    expected = vimlrp.explain(registered_vim, photo)
    forms = [photo_file, str(photo_file), np.asarray(photo), [photo], [photo_file], (photo,)]
    for form in forms:
        assert_same(vimlrp.explain(registered_vim, form), expected, 1e-7)


def test_a_list_may_mix_forms(registered_vim, photo, photo_file):
    relevance = vimlrp.explain(registered_vim, [photo, str(photo_file), np.asarray(photo)])
    assert len(relevance) == 3
    assert [source.name for source in relevance.sources] == ["image 0", "street.png", "image 2"]
    assert relative_error(relevance.pixels[1], relevance.pixels[0]) < 1e-5


def test_a_photo_is_prepared_as_timm_does(registered_vim, photo):
    config = timm.data.resolve_model_data_config(registered_vim)
    x = timm.data.create_transform(**config, is_training=False)(photo)
    assert_same(vimlrp.explain(registered_vim, photo), vimlrp.explain(registered_vim, x), 1e-6)


def test_shapes_types_and_names(registered_vim):
    relevance = vimlrp.explain(registered_vim, images(2, 64, dtype=torch.float32))
    assert relevance.pixels.shape == (2, 64, 64)
    assert relevance.patches.shape == (2, 4, 4)
    assert relevance.tokens.shape == (2, 17)
    assert relevance.logits.shape == (2, 10)
    assert relevance.target.shape == (2,)
    assert {getattr(relevance, name).dtype for name in MAPS} == {torch.float32}
    assert relevance.model == "test_vim"
    assert relevance.composite.startswith("composite mambalrp")
    assert "64 x 64" in repr(relevance)
    assert "test_vim" in repr(relevance)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_float32_maps_close_to_those_of_float32(dtype):
    model = small_vim(dtype=torch.float32).to(dtype)
    x = images(2, dtype=torch.float32).to(dtype)
    half = vimlrp.explain(model, x, target=1)
    full = vimlrp.explain(copy.deepcopy(model).float(), x.float(), target=1)
    for name in MAPS:
        assert getattr(half, name).dtype == torch.float32
        assert relative_error(getattr(half, name), getattr(full, name)) < 3e-2, name
    assert relative_error(half.pixels.sum((1, 2)), half.patches.sum((1, 2))) < 3e-2


def test_logits_are_those_of_a_plain_forward(vim):
    x = images(3)
    relevance = vimlrp.explain(vim, x)
    logits = vim(x).detach()
    assert relative_error(relevance.logits, logits) < 1e-13
    assert torch.equal(relevance.target, logits.argmax(1))
    predicted = logits.gather(1, relevance.target[:, None])[:, 0]
    assert relative_error(relevance.account.target, predicted) < 1e-13


@pytest.mark.parametrize("composite", ["mambalrp", "gradient_x_input", "epsilon"])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_a_batch_explains_each_sample_as_alone(dtype, bound, composite):
    model = small_vim(dtype=dtype)
    x = images(4, dtype=dtype)
    together = vimlrp.explain(model, x, composite=composite, record=["layers.0"])
    for i in range(4):
        alone = vimlrp.explain(model, x[i], composite=composite, record=["layers.0"])
        for name in MAPS:
            error = relative_error(getattr(together, name)[i], getattr(alone, name)[0])
            assert error < bound, name
        error = relative_error(
            together.recorded["layers.0"].relevance[i], alone.recorded["layers.0"].relevance[0]
        )
        assert error < bound


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5, 99])
def test_chunks_equal_one_batch(vim, batch_size):
    x = images(5)
    target, contrast = [0, 1, 2, 3, 4], torch.tensor([1, 2, 3, 4, 0])
    options = {"target": target, "contrast": contrast, "record": ["layers.0"]}
    expected = vimlrp.explain(vim, x, **options)
    ours = vimlrp.explain(vim, x, batch_size=batch_size, **options)
    assert_same(ours, expected, 1e-12)
    assert torch.equal(ours.target, expected.target)
    record, other = ours.recorded["layers.0"], expected.recorded["layers.0"]
    assert relative_error(record.activation, other.activation) < 1e-12
    assert [s.name for s in ours.sources] == [f"image {i}" for i in range(5)]


def test_chunks_of_photos_equal_one_batch(registered_vim, photo):
    pictures = [photo, photo.rotate(90), photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    expected = vimlrp.explain(registered_vim, pictures, target=[1, 2, 3])
    ours = vimlrp.explain(registered_vim, pictures, target=[1, 2, 3], batch_size=2)
    assert_same(ours, expected, 1e-5)


@pytest.mark.parametrize("batch_size", [0, -3])
def test_batch_size_below_one_is_refused(vim, batch_size):
    with pytest.raises(InputError, match="batch_size"):
        vimlrp.explain(vim, images(), batch_size=batch_size)


def test_one_call_is_what_an_explainer_does(vim):
    explainer = vimlrp.Explainer(vim, {"base": "mambalrp", "projection": "gamma(0.1)"})
    ours = explainer(images(), target=2, contrast=1)
    expected = vimlrp.explain(
        vim, images(), target=2, contrast=1, composite={"projection": "gamma(0.1)"}
    )
    assert torch.equal(ours.pixels, expected.pixels)
    assert torch.equal(explainer(images(), target=2, contrast=1).pixels, ours.pixels)


def test_plain_gradient_times_input_is_that_of_autograd(vim):
    x = images().requires_grad_()
    relevance = vimlrp.explain(vim, x, target=1, composite="gradient_x_input")
    (gradient,) = torch.autograd.grad(vim(x)[:, 1].sum(), x)
    assert relative_error(relevance.pixels, (x * gradient).sum(1)) < 1e-10


@pytest.fixture(scope="module")
def labelled():
    return TensorDataset(images(5), torch.tensor([4, 3, 2, 1, 0]))


def test_stream_explains_a_loader_batch_by_batch(vim, labelled):
    explainer = vimlrp.Explainer(vim)
    parts = list(explainer.stream(DataLoader(labelled, batch_size=2)))
    assert [len(part) for part in parts] == [2, 2, 1]
    expected = vimlrp.explain(vim, labelled.tensors[0])
    assert_same(vimlrp.Relevance.cat(parts), expected, 1e-12)


def test_stream_takes_labels_targets_and_options(vim, labelled):
    explainer, loader = vimlrp.Explainer(vim), DataLoader(labelled, batch_size=2)
    by_label = vimlrp.Relevance.cat(list(explainer.stream(loader, labels=True)))
    assert by_label.target.tolist() == [4, 3, 2, 1, 0]
    for_one = list(explainer.stream(loader, target=3, record=["layers.1"]))
    assert {t for part in for_one for t in part.target.tolist()} == {3}
    assert all("layers.1" in part.recorded for part in for_one)


def test_stream_takes_bare_tensors_and_is_lazy(vim):
    taken = []

    def loader():
        for i in range(3):
            taken.append(i)
            yield images(1, seed=i)

    stream = vimlrp.Explainer(vim).stream(loader())
    assert taken == []
    assert len(next(stream)) == 1
    assert taken == [0]


def test_stream_without_labels_to_explain_is_refused(vim):
    stream = vimlrp.Explainer(vim).stream([images(1)], labels=True)
    with pytest.raises(InputError, match=r"\(images, labels\)"):
        next(stream)


def test_stream_loses_nothing_that_came_before_a_bad_batch(vim):
    stream = vimlrp.Explainer(vim).stream([images(1), images(1).fill_(torch.nan)])
    assert next(stream).pixels.isfinite().all()
    with pytest.raises(InputError, match="NaN"):
        next(stream)


CUSTOM = [
    {"projection": "gamma(0.1)"},
    {"base": "gradient_x_input", "activation": "identity"},
    {"layers.*.mixer.out_proj": "gamma(0.3)"},
    {"layers.*.mixer.out_proj": "gamma(0.3)", "layers.0.mixer.out_proj": "zero"},
    vimlrp.Composite("gate_to_signal"),
]


@pytest.mark.parametrize("composite", CUSTOM, ids=str)
def test_custom_composites_change_the_map(vim, composite):
    ours = vimlrp.explain(vim, images(), composite=composite).pixels
    assert relative_error(ours, vimlrp.explain(vim, images()).pixels) > 1e-4


@pytest.mark.parametrize(
    "composite",
    ["mamba", {"base": "nothing"}, {"projection": "sharpen"}, {"Projection": "zero"}, 7, None],
)
def test_unknown_composites_are_refused(vim, composite):
    with pytest.raises(CompositeError):
        vimlrp.explain(vim, images(), composite=composite)


@pytest.mark.parametrize("options", [{"target": [1, 2, 3]}, {"contrast": torch.tensor([1])}])
def test_targets_in_another_number_than_images_are_refused(vim, options):
    for batch_size in (None, 1):
        with pytest.raises(TargetError, match=r"2 (images|samples)"):
            vimlrp.explain(vim, images(2), batch_size=batch_size, **options)


def test_a_model_that_returns_no_logits_is_refused():
    model = small_vim(num_classes=0, global_pool="")
    with pytest.raises(vimlrp.VimLRPError, match=r"a classifier returns \(B, C\)"):
        vimlrp.explain(model, images())


def test_logits_that_overflow_are_refused():
    model = small_vim()
    with torch.no_grad():
        model.head.weight.fill_(float("inf"))
    with pytest.raises(InputError, match="not finite"):
        vimlrp.explain(model, images())


def test_images_of_other_sizes_where_the_model_takes_them():
    model = small_vim(dynamic_img_size=True)
    relevance = vimlrp.explain(model, images(1, 48))
    assert relevance.patches.shape == (1, 6, 6)
    assert relevance.account.residue.abs().max() < 1e-12


def test_images_of_other_sizes_are_refused_otherwise(vim):
    with pytest.raises(InputError, match="takes 32 x 32"):
        vimlrp.explain(vim, images(1, 48))


def test_input_size_can_be_changed_after_a_verdict():
    model = small_vim()
    vimlrp.explain(model, images(1, 32))
    model.set_input_size(40)
    assert vimlrp.explain(model, images(1, 40)).account.residue.abs().max() < 1e-12


def test_the_class_that_is_explained_decides_the_map(vim):
    maps = [vimlrp.explain(vim, images(1), target=t).pixels for t in range(5)]
    assert min(relative_error(a, b) for a in maps for b in maps if a is not b) > 0.1


def test_contrast_is_the_difference_of_two_maps(vim):
    x = images()
    one, other = (vimlrp.explain(vim, x, target=t) for t in (1, 3))
    both = vimlrp.explain(vim, x, target=1, contrast=3)
    assert relative_error(both.pixels, one.pixels - other.pixels) < 1e-12
    assert relative_error(both.account.target, one.account.target - other.account.target) < 1e-12


def test_contrast_with_itself_is_zero(vim):
    relevance = vimlrp.explain(vim, images(), target=1, contrast=1)
    assert relevance.pixels.abs().max() == 0
    assert "target +0.0000" in str(relevance.account)


def test_documented_start_of_a_session(tmp_path, photo_file):
    model = timm.create_model("test_vim", num_classes=10)
    folder = vimlrp.explain(model, photo_file).save(tmp_path / "out")
    assert isinstance(folder, Path)
    assert vimlrp.Relevance.load(folder).pixels.shape == (1, 64, 64)


@pytest.mark.parametrize("options", [{"target": 1}, {"contrast": 1}])
def test_direction_and_target_together_are_refused(vim, options):
    with pytest.raises(InputError, match="give one"):
        vimlrp.explain(vim, images(), start=("layers.0", random(16)), **options)


def test_a_compiled_model_is_refused_and_says_what_to_do(vim):
    with pytest.raises(UnsupportedModelError, match="_orig_mod"):
        vimlrp.explain(torch.compile(vim), images(1))


def test_a_compiled_part_is_refused_by_name():
    model = small_vim()
    model.layers[0].mixer.compile()
    with pytest.raises(UnsupportedModelError, match=r"layers\.0\.mixer is compiled"):
        vimlrp.check_conservation(model, images(1))


def test_the_result_says_with_which_weights_the_model_was_loaded(tmp_path):
    model = small_vim(dtype=torch.float32)
    path = tmp_path / "mine.pth"
    torch.save(model.state_dict(), path)
    x = images(1, dtype=torch.float32)
    assert vimlrp.explain(model, x).model == "VisionMamba"
    vimlrp.load_checkpoint(model, path)
    assert vimlrp.explain(model, x).model == "VisionMamba with mine.pth"


def test_the_result_says_what_was_subtracted(vim, tmp_path):
    relevance = vimlrp.explain(vim, images(2), target=[0, 1], contrast=3)
    assert relevance.contrast.tolist() == [3, 3]
    assert relevance.question(1) == "1 rather than 3"
    relevance.save(tmp_path / "saved")
    loaded = vimlrp.Relevance.load(tmp_path / "saved")
    assert loaded.contrast.tolist() == [3, 3]
    assert vimlrp.explain(vim, images(1)).contrast is None


def test_a_loader_of_something_else_is_refused(vim):
    with pytest.raises(InputError, match="dict"):
        list(vimlrp.Explainer(vim).stream([{"image": images(1)}]))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")
@pytest.mark.parametrize("make", [small_vim, small_vmamba], ids=["Vim", "VMamba"])
def test_float64_on_a_gpu_gives_the_numbers_of_the_cpu(make):
    model, x = make(), images(2)
    expected = vimlrp.explain(model, x, target=1).pixels
    found = vimlrp.explain(model.cuda(), x.cuda(), target=1).pixels.cpu()
    assert (found - expected).norm() <= 1e-12 * expected.norm()
