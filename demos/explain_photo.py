"""Explain photographs with both models whose weights ship in the package, side by side.

python demos/explain_photo.py [PHOTO ...]

Without an argument it takes the photograph of a palace that scikit-learn carries. Everything is
written to explanations/: a folder for each photo and model, and a picture that compares the two.
"""

import sys
from collections.abc import Mapping, Sequence
from importlib.resources import as_file, files
from pathlib import Path

import timm
from PIL import Image
from torch import nn

import vimlrp
from vimlrp.panels import panel

MODELS = ("vim_nano_patch16_224.imagenette", "vmamba_nano_s1l8_224.imagenette")
OUT = Path("explanations")


def compare(models: Mapping[str, nn.Module], photo: Path) -> None:
    """Explain a photo with every model, and write what each sees."""
    pictures, captions = [], []
    for name, model in models.items():
        relevance = vimlrp.explain(model, photo)
        folder = relevance.save(OUT / photo.stem / name, overwrite=True)
        _, label, probability = relevance.top()[0][0]
        print(f"\n{photo.name}, {name}: relevance for {label} ({probability:.1%})")
        print(*(f"  {line}" for line in relevance.account.lines(0)), f"  wrote {folder}", sep="\n")
        pictures += [*([] if pictures else [relevance.sources[0].picture()]), *relevance.overlay()]
        captions.append(f"{name.partition('.')[0]}\n{label} {probability:.1%}")
    file = OUT / photo.stem / "side_by_side.png"
    Image.fromarray(panel(pictures, [photo.name, *captions])).save(file)
    print(f"\nwrote {file}")


def main(photos: Sequence[Path]) -> None:
    """Explain all photos that can be read; exit with 1 if one cannot."""
    if len({photo.stem for photo in photos}) < len(photos):
        sys.exit("two photos have one name, and would be written to one folder: explain each apart")
    models = {name: timm.create_model(name, pretrained=True) for name in MODELS}
    failed = False
    for photo in photos:
        try:
            compare(models, photo)
        except vimlrp.VimLRPError as error:
            print(f"skipped {error}", file=sys.stderr)
            failed = True
    sys.exit(failed)


if __name__ == "__main__":
    with as_file(files("sklearn.datasets") / "images" / "china.jpg") as palace:
        main([Path(name) for name in sys.argv[1:]] or [palace])
