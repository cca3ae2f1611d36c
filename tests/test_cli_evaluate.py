"""`vimlrp evaluate`, with a small model and small pictures."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from click.testing import CliRunner, Result
from evaluation_models import photo_folder
from PIL import Image
from safetensors.torch import save_file

from vimlrp.cli import main
from vimlrp.evaluation import running


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = timm.create_model("test_vim", num_classes=10)
    path = tmp_path_factory.mktemp("weights") / "test_vim.safetensors"
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, path)
    return path


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    photo_folder(tmp_path / "photos", 2, ("0", "7"))
    return tmp_path / "photos"


def evaluate(checkpoint: Path, data: Path, out: Path, *words: object) -> Result:
    options = ("--model", "test_vim", "--num-classes", 10, "--checkpoint", checkpoint)
    command = ["evaluate", data, *options, "--out", out, "--batch-size", 3, *words]
    return CliRunner().invoke(main, [str(word) for word in command])


def test_writes_tables_curves_and_a_manifest_and_says_so(
    checkpoint: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    result = evaluate(checkpoint, photos, out)
    assert result.exit_code == 0, result.output
    files = {file.name for file in out.iterdir() if file.is_file()}
    assert files == {
        "samples.csv", "curves.csv", "problems.csv", "table.md", "cost.md", "manifest.json",
        "settings.json",
    }  # fmt: skip
    assert {file.name for file in (out / "curves").iterdir()} == {
        f"flipping_{protocol}_{reading}.png"
        for protocol in ("zero_token", "mean")
        for reading in ("logit", "probability")
    }
    flat = result.output.replace("\n", "")
    assert all(str(out / name) in flat for name in files - {"settings.json"})
    assert "| flipping:zero_token | ΔA^F ↑" in result.output
    assert "No sample had a problem." in result.output
    rows = list(csv.DictReader((out / "samples.csv").open(encoding="utf-8")))
    assert len(rows) == 4 * 2
    assert {row["method"] for row in rows} == {"mambalrp", "gradient_x_input"}
    assert "test_vim" in json.loads((out / "manifest.json").read_text())["settings"]["model"]


def test_interrupted_it_says_how_to_go_on_and_ends_with_the_same_table(
    checkpoint: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--metrics", "complexity", "--no-plots")
    assert evaluate(checkpoint, photos, tmp_path / "whole", *words).exit_code == 0
    measure = running._measure
    done: list[str] = []

    def interrupted(plan, name, batch, samples):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append(name)
        return measure(plan, name, batch, samples)

    monkeypatch.setattr(running, "_measure", interrupted)
    result = evaluate(checkpoint, photos, tmp_path / "out", *words)
    assert result.exit_code == 130
    assert "the same command goes on" in result.output
    monkeypatch.undo()
    assert evaluate(checkpoint, photos, tmp_path / "out", *words).exit_code == 0
    for name in ("table.md", "samples.csv"):
        texts = [(tmp_path / run / name).read_bytes() for run in ("whole", "out")]
        assert texts[0] == texts[1]


def test_samples_with_problems_are_listed_and_give_exit_code_one(
    checkpoint: Path, photos: Path, tmp_path: Path
) -> None:
    (photos / "0" / "text.png").write_text("no picture")
    out = tmp_path / "out"
    result = evaluate(checkpoint, photos, out, "--metrics", "complexity", "--no-plots")
    assert result.exit_code == 1
    assert "| picture cannot be read | the sample | 1 |" in result.output
    assert "0/text.png" in (out / "problems.csv").read_text(encoding="utf-8")


def test_boxes_are_measured_against(checkpoint: Path, photos: Path, tmp_path: Path) -> None:
    table = photos / "boxes.csv"
    table.write_text("path,label,x0,y0,x1,y1\n0/0.png,0,8,8,40,32\n7/1.png,7,0,0,24,40\n")
    metrics = "localisation,pointing,segmentation,segmentation:pixels"
    result = evaluate(
        checkpoint, table, tmp_path / "out", "--metrics", metrics, "--target", "label",
        "--methods", "mambalrp",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "| pointing:pixels | hit ↑ | centre | samples |" in result.output
    row = next(csv.DictReader((tmp_path / "out" / "samples.csv").open(encoding="utf-8")))
    assert row["target"] == "0"
    assert 0 < float(row["localisation:pixels/mass"]) < 1


def test_half_precision_and_a_limit(checkpoint: Path, photos: Path, tmp_path: Path) -> None:
    result = evaluate(
        checkpoint, photos, tmp_path / "out", "--precision", "bf16", "--limit", 2,
        "--protocols", "mean", "--metrics", "flipping,insertion:blur", "--no-plots", "--steps", 4,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    settings = json.loads((tmp_path / "out" / "settings.json").read_text())
    assert settings["plain_passes"] == "torch.bfloat16"
    assert settings["samples"] == 2
    curves = list(csv.DictReader((tmp_path / "out" / "curves.csv").open(encoding="utf-8")))
    assert {row["at"] for row in curves} == {"0", "0.25", "0.5", "0.75", "1"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--methods", "magic"), "no method 'magic'"),
        (("--metrics", "magic"), "no metric 'magic'"),
        (("--protocols", "magic"), "no variant 'magic'"),
        (("--methods", ","), "no methods were given"),
        (("--metrics", "pointing"), "boxes or masks"),
        (("--device", "abacus"), "cannot use the device"),
        (("--patch-size", "7", "--protocols", "mean"), "do not cover"),
    ],
)
def test_what_cannot_start_gives_exit_code_two(
    checkpoint: Path, photos: Path, tmp_path: Path, words: tuple[str, ...], message: str
) -> None:
    result = evaluate(checkpoint, photos, tmp_path / "out", *words)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())


def test_a_folder_with_another_evaluation_is_kept_unless_overwritten(
    checkpoint: Path, photos: Path, tmp_path: Path
) -> None:
    words = ("--metrics", "complexity,flipping:mean")
    assert evaluate(checkpoint, photos, tmp_path / "out", *words).exit_code == 0
    other = evaluate(checkpoint, photos, tmp_path / "out", *words, "--target", "label")
    assert other.exit_code == 2
    assert "other settings (target)" in " ".join(other.output.split())
    curves = tmp_path / "out" / "curves"
    assert (curves / "flipping_mean_logit.png").is_file()
    again = evaluate(checkpoint, photos, tmp_path / "out", "--metrics", "complexity,flipping:blur",
                     "--overwrite")  # fmt: skip
    assert again.exit_code == 0
    assert {file.name for file in curves.iterdir()} == {
        "flipping_blur_logit.png", "flipping_blur_probability.png",
    }  # fmt: skip


def test_a_model_without_a_classifier_is_refused(tmp_path: Path, photos: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_vim", num_classes=0)
    path = tmp_path / "headless.safetensors"
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, path)
    words = ["evaluate", photos, "--model", "test_vim", "--checkpoint", path, "--num-classes", 0]
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == 2
    assert "classifies nothing" in result.output


def test_a_refused_command_leaves_the_folder_to_the_next(
    checkpoint: Path, photos: Path, tmp_path: Path
) -> None:
    out, words = tmp_path / "out", ("--methods", "mambalrp", "--no-plots")
    assert evaluate(checkpoint, photos, out, *words, "--metrics", "pointing").exit_code == 2
    assert not out.exists()
    assert evaluate(checkpoint, photos, out, *words, "--metrics", "complexity").exit_code == 0


def test_an_output_that_is_a_file_is_refused(
    checkpoint: Path, photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").write_text("dear")
    result = evaluate(checkpoint, photos, tmp_path / "out")
    assert result.exit_code == 2
    assert "cannot hold an evaluation" in " ".join(result.output.split())
    assert (tmp_path / "out").read_text() == "dear"


def test_a_device_that_is_full_keeps_what_is_measured(
    checkpoint: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("--metrics", "complexity", "--no-plots")
    measure = running._measure
    done: list[str] = []

    def full(plan, name, batch, samples):
        if len(done) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.")
        done.append(name)
        return measure(plan, name, batch, samples)

    monkeypatch.setattr(running, "_measure", full)
    result = evaluate(checkpoint, photos, tmp_path / "out", *words)
    assert result.exit_code == 2
    assert "--forward-size" in result.output
    assert "--batch-size" in result.output
    assert len(list((tmp_path / "out" / "parts").glob("*-*.npz"))) == 2
    monkeypatch.undo()
    assert evaluate(checkpoint, photos, tmp_path / "out", *words).exit_code == 0


CALTECH = (
    "accordion", "airplanes", "anchor", "ant", "barrel", "bass", "beaver", "binocular", "bonsai",
    "brain",
)  # fmt: skip


def test_masks_are_measured_against_with_a_checkpoints_own_classes(
    checkpoint: Path, photos: Path, tmp_path: Path
) -> None:
    """As on Caltech-101: a checkpoint that names no classes, and a table that names them."""
    names = tmp_path / "classes.txt"
    names.write_text("\n".join(CALTECH) + "\n\n", encoding="utf-8-sig")
    rows = []
    for i, (photo, label) in enumerate([("0/0", "ant"), ("7/1", "Brain"), ("7/0", "dolphin")]):
        mask = np.zeros((40, 48), np.uint8)
        mask[8:32, 10 + i : 30] = 255
        Image.fromarray(mask).save(photos / f"mask{i}.png")
        rows.append(f"{photo}.png,{label},mask{i}.png")
    table = photos / "masks.csv"
    table.write_text("path,label,mask\n" + "\n".join(rows) + "\n")
    out = tmp_path / "out"
    words = ("--metrics", "segmentation,localisation,pointing", "--target", "label")
    result = evaluate(checkpoint, table, out, *words, "--classes", names)
    assert result.exit_code == 1  # dolphin
    assert "| class missing from the model | the sample | 1 |" in result.output
    found = list(csv.DictReader((out / "samples.csv").open(encoding="utf-8")))
    assert [row["label"] for row in found[::2]] == ["3", "9", ""]
    for row in found[:4]:
        assert 0 < float(row["segmentation:patches/average_precision"]) < 1
        assert 0 < float(row["localisation:pixels/mass"]) < 1
    without = evaluate(checkpoint, table, tmp_path / "other", *words)
    assert "| class missing from the model | the sample | 3 |" in without.output


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"a\nb\n", "2 class names were given for a model of 10 classes"),
        (b"a\nb\nc\nd\ne\nf\ng\nh\ni\nA\n", "'a' was given 2 times"),
        (b"a\nb\nc\nd\n\nf\ng\nh\ni\nj\n", "a class name is empty"),
        (b"\xff\xfe", "cannot be read as UTF-8"),
        (None, "cannot be read"),
    ],
)
def test_class_names_that_do_not_fit_are_refused(
    checkpoint: Path, photos: Path, tmp_path: Path, text: bytes | None, message: str
) -> None:
    file = tmp_path / "classes.txt"
    if text is not None:
        file.write_bytes(text)
    result = evaluate(checkpoint, photos, tmp_path / "out", "--classes", file)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert not (tmp_path / "out").exists()


EVERYTHING = (
    "flipping,insertion:blur,black,localisation,pointing,segmentation,complexity,stability,"
    "conservation,randomisation,other_class"
)


def columns_of(out: Path) -> dict[str, np.ndarray]:
    rows = list(csv.DictReader((out / "samples.csv").open(encoding="utf-8")))
    names = [name for name in rows[0] if "/" in name]
    return {name: np.array([float(row[name] or "nan") for row in rows]) for name in names}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.usefixtures("full_precision")
def test_a_gpu_in_half_precision_ends_near_a_cpu_in_single_precision(
    checkpoint: Path, tmp_path: Path
) -> None:
    photo_folder(tmp_path, 4, ("0", "3", "7"))
    table = tmp_path / "boxes.csv"
    rows = [f"{label}/{i}.png,{label},4,8,36,{30 + i}" for label in (0, 3, 7) for i in range(4)]
    table.write_text("path,label,x0,y0,x1,y1\n" + "\n".join(rows) + "\n")
    words = ("--metrics", EVERYTHING, "--methods", "mambalrp,gradient_x_input,random",
             "--target", "label")  # fmt: skip
    cpu, cuda = tmp_path / "on_cpu", tmp_path / "on_gpu"
    assert evaluate(checkpoint, table, cpu, *words, "--device", "cpu").exit_code == 0
    on_gpu = (*words, "--device", "cuda", "--precision", "bf16")
    result = evaluate(checkpoint, table, cuda, *on_gpu)
    assert result.exit_code == 0, result.output
    assert "cuda (" in (cuda / "cost.md").read_text(encoding="utf-8")
    expected, found = columns_of(cpu), columns_of(cuda)
    assert expected.keys() == found.keys()
    for name, values in expected.items():
        if name.startswith("black"):  # hits of a class that half precision may tip over
            continue
        if name == "conservation/residue":  # nothing but the rounding of either
            assert max(np.nanmax(values), np.nanmax(found[name])) < 1e-5
            continue
        size = np.nanmax(np.abs(values))
        assert np.allclose(found[name], values, rtol=0, atol=0.1 * size, equal_nan=True), name
    tables = [(cuda / "samples.csv").read_bytes()]
    assert evaluate(checkpoint, table, cuda, *on_gpu).exit_code == 0
    assert (cuda / "samples.csv").read_bytes() == tables[0]
