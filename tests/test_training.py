"""The training recipe of the bundled weights, on a few pictures and a tiny model."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from click.testing import CliRunner, Result
from PIL import Image
from torch import Tensor

sys.path.append(str(Path(__file__).resolve().parent.parent / "demos" / "training"))

import augmentation
import checkpoints
import train_classifier
from team import Team
from training_data import Split, load
from training_loop import RecipeError, Training
from training_recipes import Recipe, recipe_of

CPU = torch.device("cpu")
RECIPE = Recipe("test_vim", epochs=4, batch=16, sizes=((0.0, 32), (0.5, 64)), three=0.5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of ten classes, each of a colour."""
    root = tmp_path_factory.mktemp("imagenette")
    draw = np.random.default_rng(0)
    for split, count in (("train", 4), ("val", 2)):
        for label in range(10):
            place = root / split / f"n{label:08}"
            place.mkdir(parents=True)
            for i in range(count):
                pixels = draw.integers(0, 60, (128, 128, 3)) + 20 * np.array([label, 0, 9 - label])
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(place / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def data(folder: Path) -> Split:
    return load(folder, "train", CPU)


def trained(recipe: Recipe, data: Split, epochs: int, resume: Path | None = None) -> Training:
    training = Training(recipe, CPU)
    if resume is not None:
        assert training.resume(resume)
    for _ in range(epochs):
        training.run_epoch(data)
    return training


def tensors(training: Training) -> dict[str, Tensor]:
    return {**training.model.state_dict(), **{f"ema {k}": v for k, v in _average(training)}}


def _average(training: Training) -> list[tuple[str, Tensor]]:
    return list(training.average.state_dict().items())


@pytest.mark.parametrize("model", ["test_vim", "test_vmamba"])
def test_two_pieces_are_one_run(model: str, data: Split, tmp_path: Path) -> None:
    recipe = recipe_of(model, epochs=4, batch=16, sizes=RECIPE.sizes, three=0.5)
    whole = tensors(trained(recipe, data, 4))
    trained(recipe, data, 1).save(tmp_path)
    pieces = trained(recipe, data, 3, resume=tmp_path)
    assert pieces.epoch == 4
    assert all(torch.equal(whole[name], value) for name, value in tensors(pieces).items())
    start = tensors(Training(recipe, CPU))
    assert not any(torch.equal(whole[k], v) for k, v in start.items() if k.endswith("proj.weight"))


def test_moments_in_bfloat16_are_smaller_and_close(data: Split, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "compact").mkdir()
    training = trained(RECIPE, data, 2)
    training.save(tmp_path / "full")
    training.save(tmp_path / "compact", compact=True)
    sizes = [sum(f.stat().st_size for f in (tmp_path / n).iterdir()) for n in ("full", "compact")]
    assert sizes[1] < 0.85 * sizes[0]
    whole = tensors(trained(RECIPE, data, 1, resume=tmp_path / "full"))
    close = tensors(trained(RECIPE, data, 1, resume=tmp_path / "compact"))
    for name, value in close.items():
        torch.testing.assert_close(value, whole[name], atol=3e-3, rtol=0, msg=name)


def test_another_recipe_does_not_go_on(data: Split, tmp_path: Path) -> None:
    trained(RECIPE, data, 1).save(tmp_path)
    with pytest.raises(RecipeError, match="another --out"):
        Training(recipe_of("test_vim", epochs=5), CPU).resume(tmp_path)


def test_shards_stay_small_and_old_ones_go(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(checkpoints, "MOST_BYTES", 1000)
    kept = {f"x{i}": torch.randn(50) for i in range(12)}
    checkpoints.write(tmp_path, 1, {}, {"x": torch.zeros(3)})
    checkpoints.write(tmp_path, 2, {"epoch": 2}, kept)
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["checkpoint-2-0.safetensors", "checkpoint-2-1.safetensors",
                     "checkpoint-2-2.safetensors", "checkpoint.json"]  # fmt: skip
    about, found = checkpoints.read(tmp_path, CPU) or ({}, {})
    assert about == {"epoch": 2}
    assert found.keys() == kept.keys()
    assert all(torch.equal(found[name], value) for name, value in kept.items())


def test_a_lost_or_damaged_shard_is_refused(tmp_path: Path) -> None:
    checkpoints.write(tmp_path, 1, {}, {"x": torch.zeros(3)})
    shard = tmp_path / "checkpoint-1-0.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1] + b"\x01")
    with pytest.raises(checkpoints.CheckpointError, match="differs"):
        checkpoints.read(tmp_path, CPU)
    shard.unlink()
    with pytest.raises(checkpoints.CheckpointError, match="is missing"):
        checkpoints.read(tmp_path, CPU)


def test_an_interrupted_write_leaves_the_old_checkpoint(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    checkpoints.write(tmp_path, 1, {"epoch": 1}, {"x": torch.ones(3)})
    monkeypatch.setattr(checkpoints.json, "dumps", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        checkpoints.write(tmp_path, 2, {"epoch": 2}, {"x": torch.zeros(3)})
    about, found = checkpoints.read(tmp_path, CPU) or ({}, {})
    assert about == {"epoch": 1}
    assert torch.equal(found["x"], torch.ones(3))


def test_the_teacher_sees_the_students_pictures_and_moves_it(data: Split) -> None:
    seen: list[Tensor] = []
    teacher = Training(RECIPE, CPU).model
    teacher.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    student = Training(RECIPE, CPU, teacher)
    student.model.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    student.run_epoch(data)
    assert len(seen) == 4
    assert all(torch.equal(a, b) for a, b in zip(seen[::2], seen[1::2], strict=True))
    alone, taught = tensors(trained(RECIPE, data, 1)), tensors(student)
    assert not torch.equal(alone["head.weight"], taught["head.weight"])


def test_the_loss_of_a_perfect_pupil_is_the_teachers_entropy() -> None:
    training = Training(recipe_of("test_vim", taught=1.0), CPU)
    logits = torch.randn(3, 10, dtype=torch.float64)
    training.taught = lambda _: logits.float()
    loss = training._loss(logits, torch.eye(10)[:3].double(), logits)
    p = logits.softmax(1)
    assert float(loss) == pytest.approx(float(-(p * p.log()).sum(1).mean()), rel=1e-5)


@pytest.mark.parametrize("size", [32, 57])
def test_augmented_pictures_are_normalised_and_differ(data: Split, size: int) -> None:
    images = data.images[:1].float().expand(16, -1, -1, -1) / 255
    out = augmentation.augment(images, size, torch.Generator().manual_seed(0), 0.5, 0.9)
    assert out.shape == (16, 3, size, size)
    assert out.isfinite().all()
    assert out.abs().max() < 2.8  # white is at 2.64
    assert all((out[i] - out[j]).abs().mean() > 0.01 for i in range(16) for j in range(i))


def test_a_third_each_is_grey_solarised_and_blurred() -> None:
    draw = torch.rand(600, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    out = augmentation._one_of_three(draw, 0.6, torch.Generator().manual_seed(0))
    same = (out == draw).flatten(1).all(1)
    grey = (out[:, :1] == out).flatten(1).all(1)
    solarised = (out <= 0.5).flatten(1).all(1) & ~grey
    shares = [float(x.float().mean()) for x in (same, grey, solarised & ~same)]
    assert shares == pytest.approx([0.4, 0.2, 0.2], abs=0.06)


def test_repeats_share_a_batch(data: Split) -> None:
    (images, labels), *rest = data.batches(16, torch.Generator().manual_seed(0), repeats=4)
    assert images.shape == (16, 3, 128, 128)
    assert len(rest) == 1
    assert torch.equal(images[::4], images[3::4])
    assert torch.equal(labels[::4], labels[3::4])


def test_sizes_follow_the_schedule() -> None:
    recipe = Recipe("test_vim", sizes=((0.0, 128), (0.6, 192), (0.85, 224)))
    assert [recipe.size_at(x) for x in (0, 0.59, 0.6, 0.86, 1)] == [128, 128, 192, 224, 224]


def run(folder: Path, out: Path, *more: str) -> Result:
    command = ["--model", "test_vim", "--data", str(folder), "--out", str(out), "--device", "cpu"]
    options = ["--epochs", "2", "--batch", "20", "--size", "32", *more]
    return CliRunner().invoke(train_classifier.main, [*command, *options])


def test_the_command_stops_goes_on_and_writes_its_results(folder: Path, tmp_path: Path) -> None:
    stopped = run(folder, tmp_path / "pieces", "--minutes", "0")
    assert stopped.exit_code == 0, stopped.output
    assert json.loads((tmp_path / "pieces" / "checkpoint.json").read_text())["about"]["epoch"] == 0
    names = ("pieces", "whole")
    results = [run(folder, tmp_path / name) for name in names]
    assert all(result.exit_code == 0 for result in results), results[0].output
    assert "going on at epoch 0" in results[0].output
    records = [
        json.loads((tmp_path / name / "test_vim.imagenette.json").read_text()) for name in names
    ]
    assert records[0]["sha256"] == records[1]["sha256"]
    assert records[0]["epochs_done"] == 2
    assert records[0]["accuracy"].keys() == {"resized to 73, centre 64", "squashed to 64"}
    weights = tmp_path / "whole" / "test_vim.imagenette.safetensors"
    model = train_classifier.load_trained(weights, "test_vim")
    right = train_classifier.evaluate(model, load(folder, "val", CPU))
    top1 = records[1]["accuracy"]["resized to 73, centre 64"]["top1"]
    assert round(100 * float(right.float().mean()), 2) == top1
    taught = run(folder, tmp_path / "taught", "--teacher", str(weights))
    assert taught.exit_code == 0, taught.output
    record = json.loads((tmp_path / "taught" / "test_vim.imagenette.json").read_text())
    assert record["recipe"]["teacher"] == records[1]["sha256"]


def test_the_command_measures_without_leaving_anything(folder: Path, tmp_path: Path) -> None:
    result = run(folder, tmp_path / "none", "--measure", "1")
    assert result.exit_code == 0, result.output
    assert "epochs fit into 1 minutes" in result.output
    assert not (tmp_path / "none").exists()


def test_the_command_names_what_is_wrong(folder: Path, tmp_path: Path) -> None:
    missing = run(folder, tmp_path, "--teacher", str(tmp_path / "no.safetensors"))
    assert missing.exit_code == 1
    assert "weights that this script wrote" in missing.output
    nowhere = run(tmp_path / "nowhere", tmp_path)
    assert nowhere.exit_code == 1
    assert "imagenette2-160" in nowhere.output
    (tmp_path / "one" / "train" / "a").mkdir(parents=True)
    assert "1 class folders" in run(tmp_path / "one", tmp_path).output


def test_train_and_val_must_have_the_same_classes(folder: Path, tmp_path: Path) -> None:
    place = tmp_path / "data"
    shutil.copytree(folder, place)
    shutil.copytree(place / "val" / "n00000000", place / "val" / "other")
    result = run(place, tmp_path / "out")
    assert result.exit_code == 1
    assert "differ in their classes: other" in result.output


def test_other_classes_have_the_names_of_their_folders(folder: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        for old, new in (("n00000001", "cat"), ("n00000002", "dog"), ("n00000003", "elk")):
            shutil.copytree(folder / split / old, tmp_path / "data" / split / new)
    result = run(tmp_path / "data", tmp_path / "out", "--batch", "4", "--tag", "pets")
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "out" / "test_vim.pets.json").read_text())
    assert record["class_names"] == ["cat", "dog", "elk"]
    assert record["recipe"]["classes"] == 3
    weights = tmp_path / "out" / "test_vim.pets.safetensors"
    assert train_classifier.load_teacher(weights).head.weight.shape[0] == 3


def test_a_team_shares_every_batch(data: Split) -> None:
    orders = []
    for rank in range(2):
        shuffler = torch.Generator().manual_seed(0)
        orders.append([y for _, y in data.batches(8, shuffler, team=Team(rank, 2))])
    whole = [y for _, y in data.batches(8, torch.Generator().manual_seed(0))]
    for first, second, both in zip(*orders, whole, strict=True):
        assert torch.equal(torch.stack([first, second], 1).flatten(), both)


def test_a_team_of_one_leaves_gradients_and_wishes_alone() -> None:
    weight = torch.nn.Parameter(torch.ones(2))
    weight.grad = torch.tensor([1.0, 2.0])
    Team().average_gradients([weight])
    assert weight.grad.tolist() == [1.0, 2.0]
    assert Team().agree(True, CPU)
    assert not Team().agree(False, CPU)


def _vote(rank: int, size: int, rendezvous: str, out: str) -> None:
    dist.init_process_group("gloo", f"file://{rendezvous}", rank=rank, world_size=size)
    weights = [torch.nn.Parameter(torch.zeros(2, 3)), torch.nn.Parameter(torch.zeros(4))]
    for weight in weights:
        weight.grad = torch.full_like(weight, float(rank))
    team = Team(rank, size)
    team.average_gradients(weights)
    verdicts = [team.agree(True, CPU), team.agree(rank == 0, CPU)]
    torch.save({"grads": [w.grad for w in weights], "verdicts": verdicts}, f"{out}/{rank}.pt")
    dist.destroy_process_group()


def test_a_team_averages_gradients_and_stops_together(tmp_path: Path) -> None:
    torch.multiprocessing.spawn(_vote, (2, str(tmp_path / "meet"), str(tmp_path)), nprocs=2)
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert all(torch.equal(g, torch.full_like(g, 0.5)) for g in found["grads"])
        assert found["verdicts"] == [True, False]


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA GPU")


@needs_gpu
@pytest.mark.parametrize("model", ["test_vim", "test_vmamba"])
def test_graphs_train_as_launches_do(model: str, folder: Path) -> None:
    gpu = torch.device("cuda")
    data = load(folder, "train", gpu)
    recipe = recipe_of(model, epochs=4, batch=16, sizes=RECIPE.sizes, drop_path=0.0)
    graphed, launched = (
        Training(recipe, gpu, Training(recipe, gpu).model, graphs=graphs)
        for graphs in (True, False)
    )
    for _ in range(4):  # over the change of size
        assert graphed.run_epoch(data) == pytest.approx(launched.run_epoch(data), abs=0.02)
    assert "forward" not in graphed.model.__dict__
    for (name, a), b in zip(
        graphed.model.named_parameters(), launched.model.parameters(), strict=True
    ):
        torch.testing.assert_close(a, b, atol=5e-3, rtol=0, msg=name)


@needs_gpu
def test_graphs_drop_other_branches_at_every_step() -> None:
    gpu = torch.device("cuda")
    training = Training(recipe_of("test_vim", drop_path=0.5), gpu, graphs=True)
    training.model.train()
    training.prepare(64)
    images = torch.randn(training.recipe.batch, 3, 64, 64, device=gpu)
    torch.manual_seed(0)
    first, second = (training.forward(images).detach().clone() for _ in range(2))
    torch.manual_seed(0)
    again = training.forward(images).detach().clone()
    assert not torch.equal(first, second)
    torch.testing.assert_close(first, again)
