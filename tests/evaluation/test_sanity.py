import pytest
import torch
from evaluation_models import LinearModel, constant_map, exact
from helpers import images, random, small_vim
from scipy.stats import spearmanr

from vimlrp.errors import InputError
from vimlrp.evaluation import CompositeMethod, Inference, PreparedBatch, metric_named
from vimlrp.evaluation.sanity import cascade, other_classes, randomised, rank_correlation


def test_rank_correlation_is_scipys_with_ties_too():
    maps, others = random(3, 7, 7), random(3, 7, 7, seed=1).round()
    expected = [
        spearmanr(a.flatten(), b.flatten()).statistic for a, b in zip(maps, others, strict=True)
    ]
    found = rank_correlation(maps, others)
    assert torch.allclose(found, torch.tensor(expected, dtype=torch.float64))
    assert torch.allclose(rank_correlation(maps, maps.exp()), torch.ones(3, dtype=torch.float64))
    assert rank_correlation(maps, torch.ones_like(maps)).isnan().all()


def test_the_cascade_goes_from_the_output_to_the_input(vim):
    parts = cascade(vim)
    assert parts[:2] == ["head", "norm_f"]
    assert parts[2:4] == ["layers.1", "layers.0"]
    assert parts[-2:] == ["patch_embed", ""]  # "" holds class token and position embedding
    inside = {n for p in parts[:-1] for n, _ in vim.get_submodule(p).named_parameters(prefix=p)}
    own = {n for n, _ in vim.named_parameters(recurse=False)}
    assert inside | own == {n for n, _ in vim.named_parameters()}


def test_only_the_parts_asked_for_are_shuffled_and_the_model_stays(vim):
    before = {name: p.detach().clone() for name, p in vim.named_parameters()}
    new = randomised(vim, ["head", ""])
    for name, parameter in new.named_parameters():
        changed = name in ("cls_token", "pos_embed") or name.startswith("head.")
        assert torch.equal(parameter, before[name]) != changed
        both = parameter.detach().flatten().sort().values, before[name].flatten().sort().values
        assert torch.equal(*both)  # the same entries elsewhere
    for name, parameter in vim.named_parameters():
        assert torch.equal(parameter, before[name])


def test_one_seed_shuffles_one_way(vim):
    first, again, other = (randomised(vim, ["head"], seed=s).head.weight for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_part_that_does_not_exist_is_refused(vim):
    with pytest.raises(InputError, match="no part 'neck'"):
        randomised(vim, ["neck"])


def test_other_classes_are_other_ones_and_depend_on_the_seed_alone():
    target = torch.tensor([0, 1, 2, 0, 2])
    seeds = torch.arange(5)
    other = other_classes(target, 3, seeds)
    assert (other != target).all()
    assert ((other >= 0) & (other < 3)).all()
    assert torch.equal(other_classes(target[2:], 3, seeds[2:]), other[2:])
    with pytest.raises(InputError, match="one class"):
        other_classes(target, 1, seeds)


def blind(model, x, target):
    """An edge detector of sorts: the same map whatever the model and the class."""
    return x.sum(1).float()


@pytest.mark.parametrize("name", ["randomisation", "other_class"])
def test_a_method_that_ignores_the_model_fails_and_one_that_reads_it_passes(name):
    model, x = LinearModel(), images(4)
    batch = PreparedBatch(model, Inference(model), x, torch.tensor([0, 1, 2, 0]))
    metric = metric_named(name)
    column = metric.statistics[0].pairs[0][0]
    scores = {
        method: metric(batch, method, method(model, x, batch.target)).values[column]
        for method in (blind, exact)
    }
    assert torch.allclose(scores[blind], torch.ones(4, dtype=torch.float64))
    assert (scores[exact].abs() < 0.3).all()


def test_the_similarity_of_every_stage_is_a_curve(vim):
    x = images(2)
    batch = PreparedBatch(vim, Inference(vim), x, torch.tensor([0, 3]))
    metric = metric_named("randomisation")
    maps = exact_sum(vim, x, batch.target)
    measured = metric(batch, exact_sum, maps)
    curve = measured.curves["randomisation/shuffled_similarity"]
    assert curve.shape == (2, metric.stages)
    assert torch.allclose(curve.mean(1), measured.values["randomisation/mean"])
    assert torch.equal(curve[:, -1], measured.values["randomisation/stage_4"])
    assert metric.curve_axis[1][-1] == 1


def exact_sum(model, x, target):
    weight = model.patch_embed.proj.weight.sum()
    return (x.sum(1) * weight).detach().float()


def test_constant_maps_have_no_similarity():
    model, x = LinearModel(), images(1)
    batch = PreparedBatch(model, Inference(model), x, torch.tensor([0]))
    maps = constant_map(model, x, batch.target)
    values = metric_named("other_class")(batch, constant_map, maps).values
    assert values["other_class/similarity"].isnan().all()


def test_shuffled_copies_do_not_take_the_place_of_the_model():
    model, method = small_vim(dtype=torch.float32), CompositeMethod()
    x, target = images(2, dtype=torch.float32), torch.tensor([0, 1])
    batch = PreparedBatch(model, Inference(model), x, target)
    maps = method(model, x, target)
    kept = method._kept
    found = metric_named("randomisation")(batch, method, maps).values["randomisation/mean"]
    assert method._kept is kept
    assert kept.model is model
    shuffled = randomised(model, cascade(model))
    assert not torch.allclose(method(shuffled, x, target), maps)
    assert method._kept is kept
    assert torch.equal(method(model, x, target), maps)
    assert (found < 1).all()


def test_a_model_asked_for_twice_in_a_row_takes_the_place():
    first, second = small_vim(dtype=torch.float32), small_vim(seed=1, dtype=torch.float32)
    x, target = images(1, dtype=torch.float32), torch.tensor([0])
    method = CompositeMethod()
    for model, kept in ((first, first), (second, first), (first, first), (second, first),
                        (second, second), (second, second), (first, second)):  # fmt: skip
        expected = CompositeMethod()(model, x, target)
        assert torch.equal(method(model, x, target), expected)
        assert method._kept.model is kept
