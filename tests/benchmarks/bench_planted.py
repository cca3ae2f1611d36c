"""The benchmark of audits: planted artifacts, and how many of them an audit finds and proves.

python tests/benchmarks/bench_planted.py --out planted
python tests/benchmarks/bench_planted.py --quick
python tests/benchmarks/bench_planted.py --out planted --jobs 4      # one process for each GPU
python tests/benchmarks/bench_planted.py --out planted --shard 0/4   # one of four, started apart
python tests/benchmarks/bench_planted.py --out planted --folder my/pictures

Each run trains one classifier and writes one JSON file; the same command goes on where it was
interrupted, and prints the tables over all runs of the folder. `docs/audit-benchmark.md` explains
them.
"""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import click
import torch
from machine import describe, pick_device

from vimlrp.audit.planted.running import Record, Settings, read_records, run
from vimlrp.audit.planted.summaries import summary
from vimlrp.audit.planted.training import ARCHITECTURES

QUICK = {"classes": 12, "count": 100, "extra": 0, "held_out": 20, "controls": 2}


def chosen(
    models: str, seeds: int, sizes: dict[str, int | None], folder: Path | None, quick: bool
) -> list[Settings]:
    """The runs, seeds last, so that every model has some after a while."""
    given = {name: value for name, value in sizes.items() if value is not None}
    options = {**(QUICK if quick else {}), **given}
    names = models.split(",")
    unknown = set(names) - set(ARCHITECTURES)
    if unknown:
        raise click.UsageError(f"unknown models {sorted(unknown)}; give {', '.join(ARCHITECTURES)}")
    return [
        Settings(model, seed, folder=folder, **options) for seed in range(seeds) for model in names
    ]


def shard_of(text: str) -> tuple[int, int]:
    """ "1/4" as (1, 4)."""
    part, _, total = text.partition("/")
    if not (part.isdigit() and total.isdigit() and int(part) < int(total)):
        raise click.UsageError(f"--shard is {text!r}; give 0/4 to 3/4, for example")
    return int(part), int(total)


def spawn(jobs: int, out: Path) -> None:
    """This command again in so many processes, each with its share of runs, GPUs and cores."""
    cores = str(max(1, (os.cpu_count() or 1) // jobs))
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    gpus = given.split(",") if given else [str(i) for i in range(torch.cuda.device_count())]
    children = []
    for i in range(jobs):
        environment = {**os.environ, "OMP_NUM_THREADS": cores}
        if gpus:
            environment["CUDA_VISIBLE_DEVICES"] = gpus[i % len(gpus)]
        arguments = [*sys.argv, "--shard", f"{i}/{jobs}", "--out", str(out)]
        children.append(subprocess.Popen([sys.executable, *arguments], env=environment))
    failed = sum(child.wait() != 0 for child in children)
    if failed:
        raise click.ClickException(f"{failed} of {jobs} processes failed; the same command goes on")


def work(settings: Sequence[Settings], out: Path, device: torch.device) -> None:
    workers = torch.get_num_threads()
    for one in settings:
        started = time.perf_counter()
        record = run(one, out, device, workers=workers)
        print(f"{one.name}: {time.perf_counter() - started:.0f} s, {in_short(record)}", flush=True)


def in_short(record: Record) -> str:
    gated = [c for c in record["classes"] if c["gated"]]
    first = sum(c["rank"] == 1 for c in gated)
    return (
        f"clean accuracy {100 * record['accuracy']['clean']:.0f} %, {len(gated)} classes rely on "
        f"their artifact, {first} of them ranked before every calm class, "
        f"{len(record['problems'])} problems"
    )


@click.command()
@click.option("--models", default="vim,vmamba,cnn")
@click.option("--seeds", default=None, type=int, help="5, or 1 with --quick.")
@click.option("--device", default="auto")
@click.option("--out", type=click.Path(path_type=Path), help="Default: a folder that is removed.")
@click.option("--quick", is_flag=True, help="A small size, for a look whether all works.")
@click.option("--jobs", default=1, help="Processes, each on a GPU of its own where there are some.")
@click.option("--shard", default="0/1", help="Do one share of the runs, without tables.")
@click.option("--folder", type=click.Path(path_type=Path), help="Plant on pictures of your own.")
@click.option("--classes", type=int)
@click.option("--count", type=int, help="Pictures of a class.")
@click.option("--extra", type=int, help="Further pictures of a class, to train on alone.")
@click.option("--held-out", type=int)
@click.option("--side", type=int)
@click.option("--epochs", type=int)
@click.option("--controls", type=int)
def main(
    models: str,
    seeds: int | None,
    device: str,
    out: Path | None,
    quick: bool,
    jobs: int,
    shard: str,
    folder: Path | None,
    **sizes: int | None,
) -> None:
    """Plant, train, audit, and print what was found."""
    settings = chosen(models, seeds or (1 if quick else 5), sizes, folder, quick)
    part, total = shard_of(shard)
    with tempfile.TemporaryDirectory() as spare:
        place = out or Path(spare)
        started = time.perf_counter()
        if jobs > 1 and total == 1:
            spawn(jobs, place)
        else:
            torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
            work(settings[part::total], place, pick_device(device))
        if total == 1:
            print(describe(pick_device(device)))
            print(f"{len(settings)} runs, {time.perf_counter() - started:.0f} s\n")
            print(summary(read_records(place)))


if __name__ == "__main__":
    main()
