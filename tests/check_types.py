"""Type-check the package as it is installed.

An editable install hides vimlrp.kernels and vimlrp.models from a type checker, so the built wheel
is unpacked and checked, and the number of files that the checker saw is compared with the source.
"""

import re
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build = [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "-q",
            "--no-deps",
            "--no-build-isolation",
            "-w",
            name,
            str(ROOT),
        ]
        subprocess.run(build, check=True)
        (wheel,) = folder.glob("vimlrp-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(folder / "site")
        config = ["--config-file", str(ROOT / "pyproject.toml")]
        # No cache of an earlier run: its files lay in another folder.
        check = [sys.executable, "-m", "mypy", *config, "--cache-dir", name, "vimlrp"]
        result = subprocess.run(
            check, cwd=folder / "site", capture_output=True, text=True, check=False
        )
    print(result.stdout + result.stderr, end="")
    return result.returncode or _missed(result.stdout)


def _missed(output: str) -> int:
    expected = sum(len(list((ROOT / d).rglob("*.py"))) for d in ("vimlrp", "kernels", "models"))
    match = re.search(r"(\d+) source files", output)
    checked = int(match[1]) if match else 0
    if checked != expected:
        print(f"{checked} files were checked, the package has {expected}")
    return int(checked != expected)


if __name__ == "__main__":
    sys.exit(main())
