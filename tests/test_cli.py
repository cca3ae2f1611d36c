import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.torch import save_file

from vimlrp.cli import main
from vimlrp.relevance import Relevance


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = timm.create_model("test_vim", num_classes=10)
    path = tmp_path_factory.mktemp("weights") / "test_vim.safetensors"
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, path)
    return path


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8)
    path = tmp_path / "photo.png"
    Image.fromarray(pixels).save(path)
    return path


def run(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words])


def explain(checkpoint: Path, out: Path, *words: object) -> Result:
    options = ("--model", "test_vim", "--num-classes", 10, "--checkpoint", checkpoint, "--out", out)
    return run("explain", *words, *options)


def test_writes_pictures_arrays_and_a_manifest_and_says_so(
    checkpoint: Path, photo: Path, tmp_path: Path
) -> None:
    result = explain(checkpoint, tmp_path / "out", photo, "--target", 3)
    assert result.exit_code == 0, result.output
    folder = tmp_path / "out" / "photo"
    files = {file.name for file in folder.iterdir()}
    pictures = {f"photo.{kind}.png" for kind in ("panel", "pixels", "patches")}
    assert files == {*pictures, "manifest.json", "relevance.npz"}
    flat = result.output.replace("\n", "")
    assert all(str(folder / name) in flat for name in files)
    assert json.loads((folder / "manifest.json").read_text())["samples"][0]["target"] == 3
    assert Image.open(folder / "photo.pixels.png").size == (90, 60)


def test_prints_the_top_five_and_an_account_that_adds_up(
    checkpoint: Path, photo: Path, tmp_path: Path
) -> None:
    result = explain(checkpoint, tmp_path / "out", photo)
    assert result.output.count("%") >= 5
    for part in ("pixels", "class token", "position embedding", "bias: convolution", "residue"):
        assert part in result.output
    relevance = Relevance.load(tmp_path / "out" / "photo")
    assert abs(float(relevance.account.residue)) < 1e-4 * abs(float(relevance.account.target))


def test_one_bad_file_is_reported_and_costs_no_other(
    checkpoint: Path, photo: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"not an image")
    result = explain(checkpoint, tmp_path / "out", bad, tmp_path / "missing.png", photo)
    assert result.exit_code == 1
    assert "bad.jpg" in result.output
    assert "missing.png" in result.output
    assert "1 explained, 2 failed" in result.output
    assert (tmp_path / "out" / "photo" / "manifest.json").is_file()


def test_a_photo_that_cannot_be_prepared_does_not_cost_its_batch(
    checkpoint: Path, photo: Path, tmp_path: Path
) -> None:
    sliver = tmp_path / "sliver.png"
    Image.new("RGB", (1, 40_000)).save(sliver)
    result = explain(checkpoint, tmp_path / "out", sliver, photo)
    assert result.exit_code == 1
    assert "sliver.png" in result.output
    assert "1 explained, 1 failed" in result.output


def test_a_folder_is_searched_and_equal_names_are_told_apart(
    checkpoint: Path, photo: Path, tmp_path: Path
) -> None:
    for place in ("a", "b"):
        (tmp_path / "in" / place).mkdir(parents=True)
        (tmp_path / "in" / place / "photo.png").write_bytes(photo.read_bytes())
    result = explain(checkpoint, tmp_path / "out", tmp_path / "in")
    assert result.exit_code == 0, result.output
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_an_explanation_that_is_there_is_kept_unless_asked(
    checkpoint: Path, photo: Path, tmp_path: Path
) -> None:
    assert explain(checkpoint, tmp_path / "out", photo).exit_code == 0
    again = explain(checkpoint, tmp_path / "out", photo)
    assert again.exit_code == 1
    assert "0 explained, 1 failed" in again.output
    assert explain(checkpoint, tmp_path / "out", photo, "--overwrite").exit_code == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--target", "11"), "out of range"),
        (("--target", "church"), "knows no names"),
        (("--composite", "mamba"), "mambalrp"),
        (("--rule", "projection"), "SITE=RULE"),
        (("--rule", "nowhere=zero"), "neither a kind of site"),
        (("--rule", "gate=gamma(1)"), "does not fit"),
        (("--device", "abacus"), "abacus"),
    ],
)
def test_a_wrong_option_stops_before_anything_is_written(
    words: tuple[str, ...], message: str, checkpoint: Path, photo: Path, tmp_path: Path
) -> None:
    result = explain(checkpoint, tmp_path / "out", photo, *words)
    assert result.exit_code == 2
    assert message in result.output
    assert not (tmp_path / "out").exists()


def test_an_unknown_model_lists_the_known_ones(photo: Path) -> None:
    result = run("explain", photo, "--model", "vim_colossal")
    assert result.exit_code == 2
    assert "vim_tiny_patch16_224" in result.output


def test_a_model_without_sites_is_refused_by_name_of_its_module(
    photo: Path, tmp_path: Path
) -> None:
    model = timm.create_model("edgenext_xx_small")
    path = tmp_path / "edgenext.safetensors"
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, path)
    result = run("explain", photo, "--model", "edgenext_xx_small", "--checkpoint", path)
    assert result.exit_code == 2
    assert "xca (CrossCovarianceAttn" in result.output
    assert "vim" in result.output
    assert "resnet" in result.output


def test_a_model_of_timm_is_explained(photo: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_resnet")
    path = tmp_path / "resnet.safetensors"
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, path)
    out = tmp_path / "out"
    arguments = ("--model", "test_resnet", "--checkpoint", path, "--out", out)
    result = run("explain", photo, *arguments)
    assert result.exit_code == 0, result.output
    relevance = Relevance.load(out / "photo")
    assert relevance.model.startswith("test_resnet")
    assert (relevance.account.residue / relevance.account.target).abs().max() < 1e-4


def test_weights_of_timm_that_cannot_be_had_are_an_error_with_help(
    photo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "empty"))
    result = run("explain", photo, "--model", "test_resnet")
    assert result.exit_code == 2
    assert "cannot get the weights of test_resnet" in result.output
    assert "--checkpoint" in result.output


def test_rules_can_be_changed(checkpoint: Path, photo: Path, tmp_path: Path) -> None:
    result = explain(checkpoint, tmp_path / "out", photo, "--rule", "projection=gamma(0.1)")
    assert result.exit_code == 0, result.output
    assert "Gamma(gamma=0.1)" in Relevance.load(tmp_path / "out" / "photo").composite


def test_models_lists_every_published_variant() -> None:
    output = run("models").output
    for name in (
        "vim_tiny_patch16_224",
        "vim_tiny_patch16_stride8_224",
        "vim_small_patch16_224",
        "vim_small_patch16_stride8_224",
        "vim_base_patch16_224",
    ):
        assert name in output
    assert "7.1 M" in output


def test_models_lists_no_stranger() -> None:
    assert "resnet" not in run("models").output
    assert run("models", "resnet*").exit_code == 1


def test_models_says_on_which_site_weights_are() -> None:
    result = run("models", "vmamba_tiny_s1l8*")
    assert "github.com/MzeroMiko" in result.output
    assert "VMamba" in result.output


def test_models_says_that_the_nano_weights_are_in_the_package() -> None:
    (line,) = [x for x in run("models").output.splitlines() if x.startswith("vim_nano")]
    assert "in the package" in line


def test_doctor_names_kernels_devices_and_how_to_install_extras(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    result = run("doctor")
    assert result.exit_code == 0, result.output
    for word in ("reference", "triton", "cpu", "threads", "torch", "vim_nano"):
        assert word in result.output


def test_doctor_gives_the_install_line_of_a_missing_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vimlrp.cli.doctor._installed", lambda package: None)
    assert "pip install 'vimlrp[mamba-ssm]'" in run("doctor").output


def test_doctor_says_when_a_kernel_is_forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIMLRP_BACKEND", "reference")
    assert "takes reference" in run("doctor").output


def test_names_that_clean_up_alike_keep_folders_of_their_own(
    checkpoint: Path, photo: Path, tmp_path: Path
) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a b.png", "a_b.png", "a_b_2.png", "A_B.PNG"):
        (tmp_path / "in" / name).write_bytes(photo.read_bytes())
    result = explain(checkpoint, tmp_path / "out", tmp_path / "in")
    assert "4 explained, 0 failed" in result.output
    assert len({folder.name.casefold() for folder in (tmp_path / "out").iterdir()}) == 4


def test_a_name_that_no_disk_takes_costs_no_other(
    checkpoint: Path, photo: Path, tmp_path: Path
) -> None:
    result = explain(checkpoint, tmp_path / "out", "x" * 300 + ".png", photo)
    assert result.exit_code == 1
    assert "1 explained, 1 failed" in result.output


def test_a_random_classifier_is_not_explained_by_accident(photo: Path) -> None:
    result = run("explain", photo, "--num-classes", 5)
    assert result.exit_code == 2
    assert "--checkpoint" in result.output


def test_an_unknown_tag_is_refused(photo: Path) -> None:
    result = run("explain", photo, "--model", "vim_nano_patch16_224.bogus")
    assert result.exit_code == 2
    assert "vimlrp models" in result.output


def test_the_contrast_is_said(checkpoint: Path, photo: Path, tmp_path: Path) -> None:
    result = explain(checkpoint, tmp_path / "out", photo, "--target", 1, "--contrast", 2)
    assert "relevance for 1 rather than 2, difference of logits" in result.output


def test_classes_of_a_checkpoint_are_named_by_a_file(
    checkpoint: Path, photo: Path, tmp_path: Path
) -> None:
    names = tmp_path / "classes.txt"
    names.write_text("\n".join(f"kind {i}" for i in range(10)))
    out = tmp_path / "out"
    result = explain(checkpoint, out, photo, "--classes", names, "--target", "kind 7")
    assert result.exit_code == 0, result.output
    manifest = json.loads((out / "photo" / "manifest.json").read_text())
    assert manifest["samples"][0]["target"] == 7
    assert manifest["class_names"][7] == "kind 7"
