import csv
import io
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from vimlrp.evaluation import read_data
from vimlrp.evaluation.regions import region_of
from vimlrp.models.labels import IMAGENETTE
from vimlrp.photos import read_photo
from vimlrp.preprocessing import Preprocessing

DEMO = Path(__file__).parent.parent / "demos" / "evaluation_data.py"


def picture(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def archive(path: Path, **files: bytes | str) -> Path:
    with zipfile.ZipFile(path, "w") as out:
        for name, data in files.items():
            out.writestr(name, data)
    return path


def convert(kind: str, source: Path, folder: Path) -> str:
    command = [sys.executable, DEMO, kind, source, folder]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


GREY = picture(np.full((224, 224, 3), 99, np.uint8))


def test_boxes_of_imagenette_become_a_table_that_evaluate_reads(tmp_path: Path) -> None:
    header = "path,wnid,name,orig_w,orig_h,x0,y0,x1,y1,x0_224,y0_224,x1_224,y1_224"
    row = "boxed/n03028079/a.png,n03028079,church,500,375,0,0,9,9,0,0,112,224"
    source = archive(
        tmp_path / "a.zip",
        **{
            "boxes.csv": f"{header}\n{row}\n", "boxed/n03028079/a.png": GREY,
            "val/n01440764/b.png": GREY, "train/n01440764/c.png": GREY,
        },
    )  # fmt: skip
    assert "unpacked 2 files" in convert("imagenette", source, tmp_path / "out")
    assert not (tmp_path / "out" / "train").exists()
    assert read_data(tmp_path / "out" / "val", IMAGENETTE, 10).samples[0].label == 0
    (sample,) = read_data(tmp_path / "out" / "boxes.csv", IMAGENETTE, 10).samples
    assert sample.label == 4
    photo = read_photo(sample.path)
    _, geometry = Preprocessing(crop_pct=1.0)(photo)
    region, problems = region_of(sample, photo, geometry)
    assert region.mean() == 0.5
    assert not problems


def test_masks_of_caltech_become_a_table_that_evaluate_reads(tmp_path: Path) -> None:
    mask = np.zeros((224, 224), np.uint8)
    mask[:56] = 255
    splits = "image,class,split\npictures/ant/a.png,ant,val\npictures/ant/b.png,ant,train\n"
    table = "image,mask,class,W,H\npictures/ant/a.png,masks/ant/a.png,ant,300,200\n"
    source = archive(
        tmp_path / "a.zip",
        **{
            "splits.csv": splits, "masks_index.csv": table, "pictures/ant/a.png": GREY,
            "pictures/ant/b.png": GREY, "masks/ant/a.png": picture(mask),
        },
    )  # fmt: skip
    convert("caltech101", source, tmp_path / "out")
    rows = list(csv.DictReader((tmp_path / "out" / "masks_val.csv").open()))
    assert rows == [{"path": "val/ant/a.png", "label": "ant", "mask": "masks/ant/a.png"}]
    assert list(csv.DictReader((tmp_path / "out" / "masks_train.csv").open())) == []
    assert (tmp_path / "out" / "train" / "ant" / "b.png").read_bytes() == GREY
    (sample,) = read_data(tmp_path / "out" / "masks_val.csv", ("bee", "ant"), 2).samples
    assert sample.label == 1
    photo = read_photo(sample.path)
    _, geometry = Preprocessing(crop_pct=1.0)(photo)
    assert region_of(sample, photo, geometry)[0].mean() == 0.25


def test_an_archive_without_boxes_gives_an_empty_table(tmp_path: Path) -> None:
    source = archive(tmp_path / "a.zip", **{"other.txt": "x"})
    assert "wrote 0 rows" in convert("imagenette", source, tmp_path / "out")
    assert "unpacked 0 files" in convert("caltech101", source, tmp_path / "out")
