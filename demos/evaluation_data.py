"""Unpack archives of pictures with boxes or masks into what `vimlrp evaluate` reads.

python demos/evaluation_data.py imagenette imagenette.zip evaluation_data/imagenette
vimlrp evaluate evaluation_data/imagenette/boxes.csv --metrics localisation,pointing

python demos/evaluation_data.py caltech101 caltech101.zip evaluation_data/caltech101

The first kind of archive holds `val/`, and optionally pictures with a table `boxes.csv` of their
boxes, one a row: path, wnid, and the corners x0_224, y0_224, x1_224, y1_224 in a picture of 224
pixels. The second holds pictures and a table `masks_index.csv`: image, mask, class. Written are
`val/` as a folder of classes, `boxes.csv` and `masks.csv`.
"""

import csv
import io
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import click

_BOX = ("path", "label", "x0", "y0", "x1", "y1", "width", "height")
_MASK = ("path", "label", "mask")


def table(archive: zipfile.ZipFile, name: str) -> list[dict[str, str]]:
    """The rows of a table in an archive; none where it has no such table."""
    if name not in archive.namelist():
        return []
    with archive.open(name) as file:
        return list(csv.DictReader(io.TextIOWrapper(file, encoding="utf-8")))


def box_rows(archive: zipfile.ZipFile) -> Iterator[tuple[str, ...]]:
    """Rows of `boxes.csv`."""
    for row in table(archive, "boxes.csv"):
        corners = (row[f"{corner}_224"] for corner in ("x0", "y0", "x1", "y1"))
        yield row["path"], row["wnid"], *corners, "224", "224"


def mask_rows(archive: zipfile.ZipFile) -> Iterator[tuple[str, ...]]:
    """Rows of `masks.csv`."""
    for row in table(archive, "masks_index.csv"):
        yield row["image"], row["class"], row["mask"]


def write(file: Path, header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> int:
    """Write a table, and say how many rows it has."""
    with file.open("w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(header)
        count = 0
        for row in rows:
            writer.writerow(row)
            count += 1
    return count


def unpack(archive: zipfile.ZipFile, names: Iterable[str], folder: Path) -> int:
    """Unpack the files of these names, and say how many there were."""
    count = 0
    for name in dict.fromkeys(names):
        archive.extract(name, folder)
        count += 1
    return count


@click.command()
@click.argument("kind", type=click.Choice(["imagenette", "caltech101"]))
@click.argument("archive", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
def main(kind: str, archive: Path, folder: Path) -> None:
    """Unpack ARCHIVE of a KIND into FOLDER."""
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(archive) as source:
        rows = list(box_rows(source) if kind == "imagenette" else mask_rows(source))
        names = [name for name in source.namelist() if name.startswith("val/")]
        names = [name for name in names if not name.endswith("/")]
        names += [row[0] for row in rows]
        header, file = (_BOX, "boxes.csv") if kind == "imagenette" else (_MASK, "masks.csv")
        if kind == "caltech101":
            names += [row[2] for row in rows]
        pictures = unpack(source, names, folder)
    print(f"unpacked {pictures} files and wrote {write(folder / file, header, rows)} rows of "
          f"{folder / file}")  # fmt: skip


if __name__ == "__main__":
    main()
