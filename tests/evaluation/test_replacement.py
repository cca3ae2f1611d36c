import pytest
import torch
from evaluation_models import LinearModel
from helpers import images, relative_error, small_vim

from vimlrp.errors import InputError
from vimlrp.evaluation import PROTOCOLS, Inference
from vimlrp.evaluation.replacement import canvas_of, default_protocols

GONE = torch.zeros(2, 16, dtype=torch.bool)
GONE[0, 5] = GONE[1, 15] = True
SAMPLE = torch.tensor([0, 1])


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_with_nothing_gone_the_model_sees_its_input(vim, protocol):
    x = images(2)
    canvas = canvas_of(protocol, Inference(vim), x)
    with torch.no_grad():
        expected = vim(x)
    assert relative_error(canvas.ends[0], expected) < 1e-9


@pytest.mark.parametrize(
    ("class_token", "pool"), [("middle", "token"), ("double", "token"), ("none", "avg")]
)
def test_a_zeroed_token_takes_its_position_along_and_a_zeroed_patch_leaves_it(class_token, pool):
    model = small_vim(class_token=class_token, global_pool=pool)
    x = images(2)
    with torch.no_grad():
        tokens = model.embed(x)
        content = model.patch_embed(x)
    token = canvas_of("zero_token", Inference(model), x)
    patch = canvas_of("zero_patch", Inference(model), x)
    places = model.layout.patches_of(torch.arange(model.layout.length)[None])[0]
    for row, index in ((0, 5), (1, 15)):
        expected = tokens[row].clone()
        expected[places[index]] = 0
        assert torch.equal(token.perturbed(GONE, SAMPLE)[row], expected)
        expected = tokens[row].clone()
        expected[places[index]] -= content[row, index]
        assert torch.allclose(patch.perturbed(GONE, SAMPLE)[row], expected)


def test_class_tokens_stay_when_all_patches_go(vim):
    canvas = canvas_of("zero_token", Inference(vim), images(2))
    empty = canvas.perturbed(torch.ones(2, 16, dtype=torch.bool), SAMPLE)
    assert (empty != 0).any(2).sum(1).tolist() == [1, 1]


def test_mean_is_zero_and_black_is_black():
    x = images(2)
    inference = Inference(LinearModel())
    mean = canvas_of("mean", inference, x, 8).perturbed(GONE, SAMPLE)
    black = canvas_of("black", inference, x, 8).perturbed(GONE, SAMPLE)
    assert (mean[0, :, 8:16, 8:16] == 0).all()
    assert torch.equal(mean[0, :, :8], x[0, :, :8])
    expected = -torch.tensor([0.485, 0.456, 0.406]) / torch.tensor([0.229, 0.224, 0.225])
    assert torch.allclose(black[1, :, 31, 31].float(), expected)


def test_blur_takes_the_patch_of_the_blurred_picture():
    flat, x = torch.full((2, 3, 32, 32), 0.7, dtype=torch.float64), images(2)
    inference = Inference(LinearModel())
    unchanged = canvas_of("blur", inference, flat, 8).perturbed(GONE, SAMPLE)
    assert torch.allclose(unchanged, flat)
    blurred = canvas_of("blur", inference, x, 8).perturbed(GONE, SAMPLE)
    assert blurred[0, :, 8:16, 8:16].std() < 0.3 * x[0, :, 8:16, 8:16].std()
    assert torch.equal(blurred[1, :, :24], x[1, :, :24])


def test_overlapping_patches_are_tokens_of_their_own():
    model = small_vim(stride=4)
    canvas = canvas_of("zero_token", Inference(model), images(1))
    assert canvas.grid.shape == (7, 7)
    assert canvas.ends[1].shape == (1, 5)


def test_tokens_of_another_size_or_model_are_refused(vim):
    with pytest.raises(InputError, match="leave the patch size out"):
        canvas_of("zero_token", Inference(vim), images(1), 16)
    with pytest.raises(InputError, match="mean, blur, black"):
        canvas_of("zero_patch", Inference(LinearModel()), images(1))
    with pytest.raises(InputError, match="no replacement 'grey'"):
        canvas_of("grey", Inference(vim), images(1))


def test_default_protocols_suit_the_model(vim):
    assert default_protocols(Inference(vim)) == ("zero_token", "mean")
    assert default_protocols(Inference(LinearModel())) == ("mean", "blur")
