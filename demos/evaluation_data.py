"""Unpack archives of pictures with boxes or masks into what the command line and training read.

python demos/evaluation_data.py imagenette imagenette.zip evaluation_data/imagenette
vimlrp evaluate evaluation_data/imagenette/boxes.csv --metrics localisation,pointing

python demos/evaluation_data.py caltech101 caltech101.zip evaluation_data/caltech101

The first kind of archive holds `val/`, and optionally pictures with a table `boxes.csv` of their
boxes, one a row: path, wnid, and the corners x0_224, y0_224, x1_224, y1_224 in a picture of 224
pixels. Written are `val/` as a folder of classes, and `boxes.csv`.

The second holds pictures, a table `splits.csv` (image, class, split) and a table `masks_index.csv`
(image, mask, class). Written are a folder of classes for each split, and a table of the masks of
each, such as `masks_val.csv`.
"""

import csv
import io
import zipfile
from collections.abc import Iterable
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


def write(file: Path, header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    """Write a table, and say how many rows it has."""
    with file.open("w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(header)
        count = 0
        for row in rows:
            writer.writerow(row)
            count += 1
    return f"wrote {count} rows of {file}"


def unpack(archive: zipfile.ZipFile, places: dict[str, Path]) -> str:
    """Write files of an archive to the places of their names, and say how many there were."""
    for name, place in places.items():
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(archive.read(name))
    return f"unpacked {len(places)} files"


def imagenette(archive: zipfile.ZipFile, folder: Path) -> list[str]:
    """Pictures of val/, and those with boxes, as they lie in the archive."""
    boxes = table(archive, "boxes.csv")
    names = [n for n in archive.namelist() if n.startswith("val/") and not n.endswith("/")]
    names += [row["path"] for row in boxes]
    rows = (
        (
            row["path"],
            row["wnid"],
            *(row[f"{c}_224"] for c in ("x0", "y0", "x1", "y1")),
            "224",
            "224",
        )
        for row in boxes
    )
    return [
        unpack(archive, {name: folder / name for name in names}),
        write(folder / "boxes.csv", _BOX, rows),
    ]


def caltech101(archive: zipfile.ZipFile, folder: Path) -> list[str]:
    """A folder of classes for each split, and the masks of its pictures."""
    split_of = {row["image"]: row for row in table(archive, "splits.csv")}
    masks = [row for row in table(archive, "masks_index.csv") if row["image"] in split_of]
    place = {
        name: Path(row["split"], row["class"], Path(name).name) for name, row in split_of.items()
    }
    written = [
        unpack(archive, {name: folder / path for name, path in place.items()}),
        unpack(archive, {row["mask"]: folder / row["mask"] for row in masks}),
    ]
    for split in sorted({row["split"] for row in split_of.values()}):
        rows = (
            (place[row["image"]].as_posix(), row["class"], row["mask"])
            for row in masks
            if split_of[row["image"]]["split"] == split
        )
        written.append(write(folder / f"masks_{split}.csv", _MASK, rows))
    return written


_KINDS = {"imagenette": imagenette, "caltech101": caltech101}


@click.command()
@click.argument("kind", type=click.Choice([*_KINDS]))
@click.argument("archive", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
def main(kind: str, archive: Path, folder: Path) -> None:
    """Unpack ARCHIVE of a KIND into FOLDER."""
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(archive) as source:
        for line in _KINDS[kind](source, folder):
            print(line)


if __name__ == "__main__":
    main()
