import pytest
import torch
from evaluation_models import LinearModel, constant_map, exact
from helpers import images

from vimlrp.errors import InputError
from vimlrp.evaluation.stability import noise_like, sensitivity

TARGET = torch.tensor([0, 2, 1])


def test_the_change_of_a_linear_map_is_that_of_the_noise():
    model, x = LinearModel(), images(3)
    maps = exact(model, x, TARGET)
    mean, largest = sensitivity(exact, model, x, TARGET, maps, radius=0.1, draws=3)
    changes = torch.stack(
        [
            (0.1 * noise_like(x, torch.arange(3) * 3 + draw) * model.weight[TARGET]).sum(1)
            for draw in range(3)
        ]
    )
    relative = changes.flatten(2).norm(dim=2) / maps.double().flatten(1).norm(dim=1)
    assert torch.allclose(mean, relative.mean(0), rtol=1e-4)
    assert torch.allclose(largest, relative.amax(0), rtol=1e-4)


def test_more_noise_moves_a_map_further_and_none_moves_a_constant():
    model, x = LinearModel(), images(3)
    maps = exact(model, x, TARGET)
    small = sensitivity(exact, model, x, TARGET, maps, radius=0.01)[0]
    large = sensitivity(exact, model, x, TARGET, maps, radius=0.1)[0]
    assert (large > 5 * small).all()
    ones = constant_map(model, x, TARGET)
    assert sensitivity(constant_map, model, x, TARGET, ones)[1].tolist() == [0, 0, 0]


def test_a_samples_noise_does_not_depend_on_its_batch():
    x, seeds = images(3), torch.tensor([5, 6, 7])
    noise = noise_like(x, seeds)
    assert torch.equal(noise[1:], noise_like(x[1:], seeds[1:]))
    assert noise.dtype == x.dtype
    assert noise.abs().max() <= 1
    assert abs(float(noise.mean())) < 0.05


@pytest.mark.parametrize("options", [{"radius": 0.0}, {"draws": 0}])
def test_no_noise_is_refused(options):
    model, x = LinearModel(), images(3)
    with pytest.raises(InputError, match="above 0"):
        sensitivity(exact, model, x, TARGET, exact(model, x, TARGET), **options)


def test_a_map_of_zeros_has_no_relative_change():
    model, x = LinearModel(), images(3)
    maps = exact(model, x, TARGET)
    maps[1] = 0
    for change in sensitivity(exact, model, x, TARGET, maps):
        assert change.isnan().tolist() == [False, True, False]
