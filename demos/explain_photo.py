"""Explain a photograph with the weights that ship in the package.

python demos/explain_photo.py [PHOTO ...]

Without an argument it takes the photograph of a palace that scikit-learn carries.
"""

import sys
from importlib.resources import as_file, files

from vimlrp.cli import main

if __name__ == "__main__":
    options = ["--out", "explanations", "--overwrite"]
    with as_file(files("sklearn.datasets") / "images" / "china.jpg") as palace:
        photos = sys.argv[1:] or [str(palace)]
        main(["explain", *photos, *options])
