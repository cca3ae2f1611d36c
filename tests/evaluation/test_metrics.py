import pytest
import timm
import torch
from evaluation_models import LinearModel, PatchReader, exact, random_map
from helpers import images, random, seeded, small_vim
from small_vmamba import small_vmamba

from vimlrp.errors import InputError
from vimlrp.evaluation import METRICS, CompositeMethod, Inference, PreparedBatch
from vimlrp.evaluation.metrics import metric_named, metrics_named
from vimlrp.evaluation.replacement import default_protocols

REGIONS = torch.zeros(3, 32, 32, dtype=torch.bool)
REGIONS[:, 8:24, 4:20] = True


def prepared(model, x, rows=slice(None), **options):
    target = torch.tensor([0, 1, 2])[: len(x)]
    return PreparedBatch(
        model, Inference(model, batch_size=8), x[rows], target[rows],
        regions=REGIONS[: len(x)][rows], seeds=torch.arange(len(x))[rows], patch_size=8, **options,
    )  # fmt: skip


@pytest.mark.parametrize("name", METRICS)
def test_batched_and_one_by_one_agree_and_statistics_find_their_columns(name):
    model, x = small_vim(), images(3)
    method, metric = CompositeMethod(), metric_named(name)
    whole = prepared(model, x)
    together = metric(whole, method, method(model, x, whole.target))
    needed = {c for s in metric.statistics for pair in s.pairs for c in pair if c is not None}
    assert needed <= set(together.values)
    assert all(key.startswith(f"{metric.name}/") for key in together.values)
    points = metric.curve_axis[1]
    assert all(curve.shape == (3, len(points)) for curve in together.curves.values())
    assert bool(together.curves) == (points is not None)
    for i in range(3):
        batch = prepared(model, x, slice(i, i + 1))
        alone = metric(batch, method, method(model, batch.x, batch.target))
        for key, values in together.values.items():
            assert torch.allclose(
                alone.values[key].double(), values[i : i + 1].double(), rtol=1e-4, atol=1e-6,
                equal_nan=True,
            ), key  # fmt: skip


@pytest.mark.parametrize("name", ["flipping:mean", "insertion:mean", "flipping:blur"])
def test_a_method_that_knows_beats_one_that_guesses(name):
    model = LinearModel()
    x = images(3)
    metric, batch = metric_named(name), prepared(model, x)
    scores = [
        metric(batch, method, method(model, x, batch.target)).values[f"{name}/delta_logit"]
        for method in (exact, random_map)
    ]
    assert (scores[0] > scores[1]).all()


@pytest.mark.parametrize("kind", ["localisation", "pointing", "segmentation"])
@pytest.mark.parametrize("level", ["pixels", "patches"])
def test_a_map_of_the_object_scores_full_marks(kind, level):
    model, metric = LinearModel(), metric_named(f"{kind}:{level}")
    batch = prepared(model, images(3))
    regions = torch.zeros_like(REGIONS)
    regions[:, 8:24, 8:24] = True
    batch.regions = regions
    measured = metric(batch, exact, regions.float() - 0.5)
    for statistic in metric.statistics[:1]:
        (column, _), *_ = statistic.pairs
        if level == "pixels":
            assert (measured.values[column] == 1).all()
        else:  # the enlargement blurs the edge
            assert (measured.values[column] > 0.7).all()


def test_metrics_of_one_protocol_share_their_passes(monkeypatch):
    model, x = PatchReader(), images(3)
    batch = PreparedBatch(model, Inference(model), x, torch.zeros(3, dtype=torch.int64),
                          patch_size=8)  # fmt: skip
    maps = model.truth(x)
    metric_named("flipping:mean")(batch, exact, maps)
    passes = []
    monkeypatch.setattr(model, "forward", lambda x: passes.append(x))
    metric_named("insertion:mean")(batch, exact, maps)
    assert not passes


def test_new_maps_are_not_given_the_curves_of_others():
    model, x = LinearModel(), images(3)
    batch, metric = prepared(model, x), metric_named("flipping:mean")
    found = [
        metric(batch, exact, maps).values["flipping:mean/delta_logit"]
        for maps in (random(3, 32, 32), random(3, 32, 32, seed=1))
    ]
    assert not torch.allclose(*found)


def test_only_composites_have_an_account():
    model, x = small_vim(), images(2)
    batch, metric = prepared(model, x), metric_named("conservation")
    kept = metric(batch, method := CompositeMethod(), method(model, x, batch.target)).values
    assert (kept["conservation/residue"] < 1e-9).all()
    lost = metric(batch, method := CompositeMethod("gradient_x_input"),
                  method(model, x, batch.target)).values  # fmt: skip
    assert (lost["conservation/residue"] > 1e-3).all()
    other = metric(batch, random_map, random_map(model, x, batch.target)).values
    assert other["conservation/residue"].isnan().all()


def test_localisation_without_regions_says_what_is_needed():
    model, x = LinearModel(), images(1)
    batch = PreparedBatch(model, Inference(model), x, torch.tensor([0]))
    with pytest.raises(InputError, match="boxes or masks"):
        metric_named("pointing")(batch, exact, random(1, 32, 32))


def test_a_batch_needs_a_target_for_each_image():
    model = LinearModel()
    with pytest.raises(InputError, match="give one each"):
        PreparedBatch(model, Inference(model), images(2), torch.tensor([0]))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("accuracy", "no metric 'accuracy'"),
        ("flipping:grey", "no variant 'grey'; its variants are zero_token"),
        ("black:white", "no variant 'white'"),
        ("stability:white", "has no variants"),
    ],
)
def test_unknown_names_are_refused(text, message):
    with pytest.raises(InputError, match=message):
        metric_named(text)


def test_protocols_stand_in_where_none_is_named():
    names = [
        m.name for m in metrics_named(["flipping", "black", "flipping:mean"], ("mean", "blur"))
    ]
    assert names == ["flipping:mean", "flipping:blur", "black:pixels"]


@pytest.mark.parametrize("family", ["vmamba", "timm"])
def test_models_without_tokens_are_measured_by_their_pixels(family):
    if family == "vmamba":
        model = small_vmamba(dtype=torch.float32)
    else:
        with seeded():
            model = timm.create_model("test_resnet", num_classes=5).eval()
    x, target = images(2, dtype=torch.float32), torch.tensor([0, 1])
    inference, method = Inference(model), CompositeMethod()
    batch = PreparedBatch(model, inference, x, target, patch_size=8)
    maps = method(model, x, target)
    for protocol in default_protocols(inference):
        values = metric_named(f"flipping:{protocol}")(batch, method, maps).values
        assert all(value.isfinite().all() for value in values.values())
    residue = metric_named("conservation")(batch, method, maps).values["conservation/residue"]
    assert (residue < 1e-4).all()


def test_curves_may_have_other_steps():
    flipping, insertion, black = metrics_named(["flipping", "insertion", "black"], ("mean",), 16)
    assert flipping.steps == insertion.steps == 16
    assert len(flipping.curve_axis[1]) == 17
    assert len(black.curve_axis[1]) == 10
    model, x = LinearModel(), images(2)
    batch = prepared(model, x)
    measured = flipping(batch, exact, exact(model, x, batch.target))
    assert measured.curves["flipping:mean/morf_logit"].shape == (2, 17)
    with pytest.raises(InputError, match="2 or more"):
        metrics_named(["flipping"], ("mean",), 1)


def test_a_share_of_nothing_is_none():
    model = small_vmamba(dtype=torch.float64)
    x = images(2)
    batch = PreparedBatch(model, Inference(model), x, torch.tensor([0, 1]), patch_size=8)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if ".head." in f".{name}":
                value.zero_()
    method = CompositeMethod()
    values = metric_named("conservation")(batch, method, method(model, x, batch.target)).values
    assert values["conservation/pixels"].isnan().all()


def test_the_pixels_share_stays_bounded_where_the_logit_is_near_zero():
    model, x = small_vim(), images(3)
    batch = prepared(model, x)
    method = CompositeMethod()
    logits = batch.inference(x).gather(1, batch.target[:, None]).squeeze(1)
    with torch.no_grad():  # the logit of the second picture becomes all but nothing
        model.head.bias[1] -= logits[1] - 1e-9
    account = method.relevance(model, x, batch.target).account
    assert abs(account.target[1]) < 1e-6
    parts = torch.stack(list(account.parts.values()))
    found = metric_named("conservation")(batch, method, method(model, x, batch.target)).values
    share = found["conservation/pixels"]
    assert torch.allclose(share, account.parts["pixels"] / parts.abs().sum(0))
    assert (share.abs() <= 1).all()


def test_black_counts_hits_of_the_label_where_there_is_one():
    model, x = LinearModel(), images(3)
    top = model(x).argmax(1)
    label = torch.stack([top[0], (top[1] + 1) % 3, torch.tensor(-1)])  # right, wrong, not known
    maps = exact(model, x, top)
    inference, metric = Inference(model), metric_named("black")
    found = metric(PreparedBatch(model, inference, x, top, label=label), exact, maps).curves
    plain = metric(PreparedBatch(model, inference, x, top), exact, maps).curves
    key = "black:pixels/positive_accuracy"
    assert plain[key][:, 0].tolist() == [1, 1, 1]
    assert found[key][:, 0].tolist() == [1, 0, 1]
    assert torch.equal(found[key][[0, 2]], plain[key][[0, 2]])


def test_labels_of_another_number_are_refused():
    model, x = LinearModel(), images(2)
    with pytest.raises(InputError, match="labels of shape"):
        PreparedBatch(model, Inference(model), x, torch.tensor([0, 1]), label=torch.tensor([0]))
