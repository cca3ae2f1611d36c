"""Building models through timm: configurations, and weights from the package or the hub."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.errors import LocalEntryNotFoundError
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import build_model_with_cfg, load_pretrained
from timm.models._hub import download_cached_file
from torch import Tensor, nn

from vimlrp.errors import CheckpointError
from vimlrp.models.labels import IMAGENETTE
from vimlrp.models.reading import read_weights

__all__ = ["build", "bundled_path", "imagenette_cfg", "note_weights", "vision_cfg"]

Model = TypeVar("Model", bound=nn.Module)
Fit = Callable[..., dict[str, Tensor]]


def bundled_path(name: str) -> str:
    """The path of a weight file in the package."""
    return str(files("vimlrp.models") / "weights" / name)


def vision_cfg(bundled: str | None = None, **overrides: Any) -> dict[str, Any]:
    """A timm pretrained configuration with the evaluation protocol of Vim and VMamba.

    Args:
        bundled: Name of a weight file in the package.
        **overrides: Other entries.
    """
    return {
        "file": None if bundled is None else bundled_path(bundled),
        "num_classes": 1000,
        "input_size": (3, 224, 224),
        "interpolation": "bicubic",
        "crop_pct": 0.875,
        "mean": IMAGENET_DEFAULT_MEAN,
        "std": IMAGENET_DEFAULT_STD,
        "first_conv": "patch_embed.proj",
        "classifier": "head",
        **overrides,
    }


def imagenette_cfg(model: str, **overrides: Any) -> dict[str, Any]:
    """The configuration of weights in the package, trained on Imagenette.

    Args:
        model: Whose weights they are.
        **overrides: Other entries.
    """
    return vision_cfg(
        f"{model}.imagenette.safetensors",
        num_classes=len(IMAGENETTE),
        license="apache-2.0, trained on ImageNet pictures; see weights/README.md",
        label_names=IMAGENETTE,
        **overrides,
    )


def note_weights(model: nn.Module, weights: str | None) -> None:
    """Remember what a model was loaded with, so that its explanations can say so.

    Args:
        model: Of any class.
        weights: A tag of timm's, the name of a file, or None for none.
    """
    vars(model)["weights_source"] = weights


def build(
    model_class: type[Model],
    variant: str,
    pretrained: bool,
    fit: Fit,
    config: dict[str, Any],
    overrides: dict[str, Any],
    features: int | Sequence[int] = (0, 1, 2, 3),
) -> Any:
    """Build a registered variant with its weights, if asked for.

    Weights come from where timm's pretrained configuration says: a file (those in the package
    are given so), else a file on the Hugging Face hub, which stays in the hub's cache, else a web
    address, whose file stays in torch.hub's. As in timm, another number of classes or of input
    channels adapts them.

    Args:
        model_class: The model.
        variant: Its registered name, without a tag.
        pretrained: Whether to load weights.
        fit: Fits a state_dict to the model.
        config: Arguments of the variant.
        overrides: Arguments of the caller, which win.
        features: What `features_only` extracts by default: stages, or so many last blocks.

    Returns:
        The model, or timm's extractor of its features.

    Raises:
        CheckpointError: If the weights are absent, out of reach, damaged or do not fit.
    """
    arguments = {**config, **overrides}
    if arguments.pop("features_only", False):
        return _extractor(model_class, variant, pretrained, fit, arguments, features)
    model: Model = build_model_with_cfg(model_class, variant, False, **arguments)
    if pretrained:
        _load(model, variant, fit, arguments.get("in_chans", 3), arguments.get("cache_dir"))
        note_weights(model, str(model.pretrained_cfg["tag"]))  # type: ignore[index]
    return model


def _extractor(
    model_class: type[Model],
    variant: str,
    pretrained: bool,
    fit: Fit,
    arguments: dict[str, Any],
    features: int | Sequence[int],
) -> Any:
    """What timm makes of `features_only`: the model up to the last features asked for."""
    getter = {"feature_cls": "getter", "out_indices": arguments.pop("out_indices", features)}
    only: Any = {"feature_cfg": getter, "features_only": True}
    extractor: Any = build_model_with_cfg(model_class, variant, False, **only, **arguments)
    if pretrained:
        # The whole model is loaded, strictly, and the extractor takes what it has kept of it.
        weights = build(model_class, variant, True, fit, arguments, {}).state_dict()
        kept = extractor.model.state_dict()
        extractor.model.load_state_dict({key: weights[key] for key in kept})
    return extractor


def _load(model: nn.Module, variant: str, fit: Fit, channels: int, cache: str | None) -> None:
    config: dict[str, Any] = dict(model.pretrained_cfg)  # type: ignore[arg-type]
    file = _weight_file(config, variant, cache)
    if file is not None:
        # timm's own reader prefers a moving average in a file, but not in one from the hub.
        config |= {"state_dict": read_weights(file).tensors, "source": ""}
    classes: Any = model.num_classes
    try:
        load_pretrained(model, config, classes, channels, filter_fn=fit, cache_dir=cache)
    except RuntimeError as error:
        raise CheckpointError(
            f"{file or 'the state_dict'} does not fit {variant}; "
            "vimlrp.load_checkpoint(model, path) says where they differ"
        ) from error


def _weight_file(config: dict[str, Any], variant: str, cache: str | None) -> str | None:
    """The file with the weights, or None where timm loads them from a source of its own."""
    if config.get("state_dict") or config.get("source") == "local-dir":
        return None
    if config.get("file"):
        return _present(config["file"], variant)
    if config.get("hf_hub_id"):
        name = config.get("hf_hub_filename") or "model.safetensors"
        return _fetch(config["hf_hub_id"], name, cache)
    if config.get("url"):
        return _download(config["url"], cache)
    raise CheckpointError(
        f"there are no pretrained weights for {variant}: create it with pretrained=False, and "
        "load your own with vimlrp.load_checkpoint(model, path)"
    )


def _present(file: str, variant: str) -> str:
    path = Path(file)
    if not path.is_file() and path.parent == Path(bundled_path("")):
        raise CheckpointError(
            f"the weights of {variant} belong to the package, but {file} is missing: install "
            "vimlrp again, or load other weights with vimlrp.load_checkpoint(model, path)"
        )
    return file


def _fetch(repository: str, name: str, cache: str | None) -> str:
    """The path of a hub file in the local cache, where it is put if need be.

    `hf_hub_download` asks for a file it does not have for up to six minutes where the hub cannot
    be reached. So the cache is asked first, and then the hub once, with its usual timeout of ten
    seconds (HF_HUB_ETAG_TIMEOUT).
    """
    repo, _, revision = repository.partition("@")
    arguments: dict[str, Any] = {"revision": revision or None, "cache_dir": cache}
    with suppress(LocalEntryNotFoundError):
        return hf_hub_download(repo, name, local_files_only=True, **arguments)
    address = hf_hub_url(repo, name, revision=revision or None)
    try:
        get_hf_file_metadata(address)
        return hf_hub_download(repo, name, **arguments)
    except Exception as error:
        # The hub's client raises those of its HTTP library, which changes between versions.
        raise CheckpointError(
            f"cannot get {name} from {repo} on Hugging Face ({_first_line(error)}): download "
            f"{address} where that works, create the model with pretrained=False and call "
            f"vimlrp.load_checkpoint(model, {name!r})"
        ) from error


def _download(address: str, cache: str | None) -> str:
    """The path of a file of a plain web address in the local cache, where it is put if need be."""
    name = address.rpartition("/")[2]
    try:
        return str(download_cached_file(address, check_hash=False, cache_dir=cache))
    except OSError as error:
        raise CheckpointError(
            f"cannot get {address} ({_first_line(error)}): download it where that works, create "
            f"the model with pretrained=False and call vimlrp.load_checkpoint(model, {name!r})"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).split("\n")[0]
