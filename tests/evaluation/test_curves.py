import pytest
import torch
from evaluation_models import LinearModel, PatchReader, exact
from helpers import images, random, small_vim
from sklearn.metrics import auc

from vimlrp.errors import InputError
from vimlrp.evaluation import Inference
from vimlrp.evaluation.curves import (
    Curves,
    area,
    black_accuracy,
    delta_flipping,
    delta_insertion,
    flipping_curves,
    symmetric_relevance_gain,
)
from vimlrp.evaluation.replacement import canvas_of

TARGET = torch.tensor([0, 2, 1])


def linear_case(batch_size=7):
    model, x = LinearModel(), images(3)
    maps = (x * model.weight[TARGET]).sum(1).detach()
    return model, x, maps, canvas_of("mean", Inference(model, batch_size=batch_size), x, 8)


def test_a_linear_model_loses_exactly_the_relevance_of_what_is_removed():
    model, x, maps, canvas = linear_case()
    logit, probability = flipping_curves(canvas, maps, TARGET, steps=16)
    shares = canvas.grid.scores(maps)
    whole = model(x).detach().gather(1, TARGET[:, None])
    for curve, descending in ((logit.morf, True), (logit.lerf, False)):
        gone = shares.sort(dim=1, descending=descending).values.cumsum(1)
        expected = torch.cat([whole, whole - gone], dim=1)
        assert torch.allclose(curve, expected, atol=1e-9)
    assert ((probability.morf >= 0) & (probability.morf <= 1)).all()


def test_no_order_beats_that_of_exact_relevance():
    _, _, maps, canvas = linear_case()
    best = delta_flipping(flipping_curves(canvas, maps, TARGET, steps=16)[0])
    for seed in range(5):
        others = random(*maps.shape, seed=seed)
        found = delta_flipping(flipping_curves(canvas, others, TARGET, steps=16)[0])
        assert (found < best).all()
    opposite = delta_flipping(flipping_curves(canvas, -maps, TARGET, steps=16)[0])
    assert torch.allclose(opposite, -best)


def test_a_model_that_reads_one_patch_has_a_known_gain():
    model = PatchReader()
    x = images(2).abs()
    canvas = canvas_of("mean", Inference(model), x, 8)
    target = torch.zeros(2, dtype=torch.int64)
    curves, _ = flipping_curves(canvas, model.truth(x), target, steps=16)
    value = model(x)[:, 0]
    # MoRF loses all in the first of 16 steps, LeRF in the last: half a step each is lost.
    assert torch.allclose(area(curves.morf, curves.share), value / 32)
    assert torch.allclose(area(curves.lerf, curves.share), value * 31 / 32)
    assert torch.allclose(delta_flipping(curves), value * 15 / 16)


@pytest.mark.parametrize("batch_size", [1, 5, 1000])
def test_batches_of_any_size_give_the_same_curves(batch_size):
    _, _, maps, canvas = linear_case()
    one_by_one = [
        flipping_curves(linear_rows(i, batch_size), maps[i : i + 1], TARGET[i : i + 1], steps=5)
        for i in range(3)
    ]
    together = flipping_curves(canvas, maps, TARGET, steps=5)
    for k in (0, 1):
        assert torch.allclose(torch.cat([c[k].morf for c in one_by_one]), together[k].morf)
        assert torch.allclose(torch.cat([c[k].lerf for c in one_by_one]), together[k].lerf)


def linear_rows(i, batch_size):
    model, x, *_ = linear_case()
    return canvas_of("mean", Inference(model, batch_size=batch_size), x[i : i + 1], 8)


@pytest.mark.parametrize("protocol", ["zero_token", "mean"])
def test_insertion_is_flipping_of_the_other_order_read_backwards(protocol):
    model, x, maps = small_vim(), images(2), random(2, 32, 32)
    target = torch.tensor([1, 3])
    canvas = canvas_of(protocol, Inference(model), x)
    curves, _ = flipping_curves(canvas, maps, target, steps=5)
    inserted = curves.backwards()
    # Insert by hand, most relevant first: everything but the inserted patches is gone.
    ranks = canvas.grid.scores(maps).argsort(dim=1, descending=True)
    for k, share in enumerate(inserted.share.tolist()):
        count = round(share * canvas.grid.count)
        gone = torch.ones(2, canvas.grid.count, dtype=torch.bool)
        for row in range(2):
            gone[row, ranks[row, :count]] = False
        logits = canvas.logits(gone, torch.arange(2))
        assert torch.allclose(inserted.morf[:, k], logits.gather(1, target[:, None])[:, 0])
    assert torch.allclose(delta_insertion(inserted), delta_flipping(curves))


def test_the_random_order_cancels_out_of_the_symmetric_gain():
    share = torch.linspace(0, 1, 6)
    curves = Curves(share, random(3, 6, seed=1), random(3, 6, seed=2))
    chance = Curves(share, random(3, 6, seed=3), random(3, 6, seed=3))
    assert torch.allclose(
        symmetric_relevance_gain(curves, chance), symmetric_relevance_gain(curves)
    )


def test_an_area_is_scikit_learns():
    share, curve = torch.tensor([0.0, 0.1, 0.5, 1.0]), random(2, 4)
    expected = [auc(share.numpy(), row.numpy()) for row in curve]
    assert torch.allclose(area(curve, share), torch.tensor(expected, dtype=torch.float64))


def test_black_pixels_are_removed_in_order_of_their_scores():
    model, x = LinearModel(), images(2)
    target = model(x).argmax(1)
    maps = exact(model, x, target).double()
    positive, negative = black_accuracy(Inference(model), x, maps, target, (0.0, 0.3))
    mean, std = (torch.tensor(v).view(3, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    for hits, sign in ((positive, -1), (negative, 1)):
        assert (hits[:, 0] == 1).all()
        changed = x.flatten(2).clone()
        for row in range(2):
            chosen = (sign * maps[row].flatten()).argsort(stable=True)[: int(0.3 * 1024)]
            changed[row][:, chosen] = (-mean / std).double()
        expected = model(changed.view_as(x)).argmax(1) == target
        assert (hits[:, 1] == expected).all()


def test_removing_what_speaks_for_the_class_changes_it_sooner():
    model, x = LinearModel(), images(8)
    target = model(x).argmax(1)
    maps = exact(model, x, target).double()
    positive, negative = black_accuracy(Inference(model), x, maps, target)
    assert positive.shape == (8, 10)
    assert positive.mean() < negative.mean()


def test_shares_beyond_one_are_refused():
    with pytest.raises(InputError, match="from 0 to 1"):
        black_accuracy(Inference(LinearModel()), images(1), random(1, 32, 32), TARGET[:1], (1.5,))
