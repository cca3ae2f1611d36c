"""`vimlrp explain`: photos in, heatmaps and their account out."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from vimlrp.cli.loading import UsageError, load_model, model_options, progress_bar
from vimlrp.composites import COMPOSITES, Composite
from vimlrp.errors import InputError, VimLRPError
from vimlrp.explainer import Explainer
from vimlrp.files import distinct_names
from vimlrp.models.reading import Weights
from vimlrp.photos import Photo, find_photos, read_photo
from vimlrp.relevance import Relevance
from vimlrp.targets import Target

__all__ = ["command"]


@dataclass
class _Tally:
    """What became of the photos."""

    written: int = 0
    failed: int = 0


@click.command("explain", no_args_is_help=True)
@click.argument("photos", nargs=-1, required=True, type=click.Path(path_type=Path))
@model_options
@click.option("--target", help="Class index or name; the predicted class by default.")
@click.option("--contrast", help="A class to subtract.")
@click.option("--composite", default="mambalrp", show_default=True, help="Rules, by name.")
@click.option(
    "--rule",
    "rules",
    multiple=True,
    metavar="SITE=RULE",
    help="Change a rule: projection=gamma(0.1).",
)
@click.option("--batch-size", type=click.IntRange(min=1), default=8, show_default=True)
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("explanations"), show_default=True
)
@click.option("--overwrite", is_flag=True, help="Replace explanations that are there.")
def command(
    photos: tuple[Path, ...],
    name: str,
    checkpoint: Path | None,
    weights: Weights,
    num_classes: int | None,
    classes: Path | None,
    target: str | None,
    contrast: str | None,
    composite: str,
    rules: tuple[str, ...],
    device: str,
    batch_size: int,
    out: Path,
    overwrite: bool,
) -> None:
    """Explain PHOTOS (files and folders): what the model sees, and which pixels speak for it.

    Writes a folder for each photo with overlays, arrays and a manifest. A photo that cannot be
    read is reported and skipped. Exit code: 0 all explained, 1 some failed, 2 nothing could start.
    """
    console = Console()
    try:
        chosen = _composite(composite, rules)
        model = load_model(name, checkpoint, weights, num_classes, device, classes)
        explainer = Explainer(model, chosen, batch_size=batch_size)
    except VimLRPError as error:
        raise UsageError(str(error)) from error
    goal, other = _target(target), _target(contrast)
    tally = _Tally()
    files = _files(photos, console, tally)
    folders = _folders(files, out)
    with progress_bar(console) as progress:
        for batch in _batches(progress.track(files, description="explaining"), batch_size):
            try:
                for relevance, file in _explained(explainer, batch, goal, other, console, tally):
                    _keep(relevance, folders[file], overwrite, console, tally)
            except VimLRPError as error:
                raise UsageError(str(error)) from error
    console.print(f"{tally.written} explained, {tally.failed} failed")
    if tally.failed:
        raise click.exceptions.Exit(1)


def _composite(name: str, rules: Iterable[str]) -> Composite:
    entries: dict[str, str] = {"base": name}
    for text in rules:
        key, equals, rule = text.partition("=")
        if not equals:
            raise UsageError(f"--rule {text!r}: write SITE=RULE, such as projection=gamma(0.1)")
        entries[key.strip()] = rule
    if name not in COMPOSITES:
        return Composite(name)
    return Composite.ensure(entries)


def _target(text: str | None) -> Target:
    return int(text) if text is not None and re.fullmatch(r"-?\d+", text) else text


def _files(paths: Iterable[Path], console: Console, tally: _Tally) -> list[Path]:
    found: dict[Path, None] = {}
    for path in paths:
        try:
            found.update(dict.fromkeys(find_photos([path])))
        except VimLRPError as error:
            _report(console, error, tally)
    return list(found)


def _folders(files: list[Path], out: Path) -> dict[Path, Path]:
    """A folder for each photo; photos of one name in different folders are told apart."""
    stems = [file.stem for file in files]
    names = [
        s if stems.count(s) == 1 else f"{f.parent.name}_{f.name}"
        for s, f in zip(stems, files, strict=True)
    ]
    return {file: out / name for file, name in zip(files, distinct_names(names), strict=True)}


def _batches(files: Iterable[Path], size: int) -> Iterator[list[Path]]:
    batch: list[Path] = []
    for file in files:
        batch.append(file)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _explained(
    explainer: Explainer,
    files: list[Path],
    target: Target,
    contrast: Target,
    console: Console,
    tally: _Tally,
) -> Iterator[tuple[Relevance, Path]]:
    readable: list[tuple[Path, Photo]] = []
    for file in files:
        try:
            readable.append((file, read_photo(file)))
        except VimLRPError as error:
            _report(console, error, tally)
    try:
        relevance = explainer([photo for _, photo in readable], target=target, contrast=contrast)
        yield from ((relevance[i], file) for i, (file, _) in enumerate(readable))
    except InputError:
        # One photo of the batch cannot be prepared: it must not cost the others theirs.
        for file, photo in readable:
            try:
                yield explainer(photo, target=target, contrast=contrast), file
            except InputError as error:
                _report(console, error, tally)


def _keep(
    relevance: Relevance, folder: Path, overwrite: bool, console: Console, tally: _Tally
) -> None:
    try:
        relevance.save(folder, overwrite=overwrite)
    except (VimLRPError, OSError) as error:
        _report(console, f"{folder}: {error} (--overwrite replaces explanations)", tally)
        return
    tally.written += 1
    _show(relevance, folder, console)


def _report(console: Console, error: Exception | str, tally: _Tally) -> None:
    tally.failed += 1
    console.print(f"[red]skipped[/] {escape(str(error))}", soft_wrap=True)


def _show(relevance: Relevance, folder: Path, console: Console) -> None:
    """Print the top five, the account and the files of one photo."""
    source = relevance.sources[0]
    console.print(f"[bold]{escape(source.name)}[/]")
    top = Table(box=None, pad_edge=False, show_header=False)
    for _, name, probability in relevance.top()[0]:
        top.add_row(f"  {probability:6.1%}", escape(name))
    console.print(top)
    value = float(relevance.account.target[0])
    kind = "logit" if relevance.contrast is None else "difference of logits"
    console.print(f"  relevance for {escape(relevance.question(0))}, {kind} {value:+.4f}")
    for line in relevance.account.lines(0):
        console.print(f"    {line}", highlight=False)
    for file in sorted(folder.iterdir()):
        console.print(f"  wrote {escape(str(file))}", soft_wrap=True, highlight=False)
