"""How each model that comes with weights was trained, and with what reasons."""

from dataclasses import asdict, dataclass, replace
from typing import Any

__all__ = ["RECIPES", "Recipe", "recipe_of"]


@dataclass(frozen=True)
class Recipe:
    """Everything that the trained weights depend on, apart from data and versions.

    Attributes:
        model: A name that timm knows.
        classes: Outputs of its classifier.
        epochs: Length of the schedule.
        seed: Of weights, order and augmentation.
        batch: Images a step, on all GPUs together.
        learning_rate: At its peak, in AdamW.
        warmup: Share of the schedule in which the rate grows linearly.
        weight_decay: Of matrices.
        label_smoothing: Of the labels' targets.
        drop_path: Stochastic depth of the last block.
        mixed: Probability of mixup or cutmix, evenly, for a batch.
        unmixed_end: Share of the schedule at its end without mixing.
        smallest_crop: Least share of the area that a crop keeps.
        three: Probability of one of grey, solarisation and blur for an image.
        sizes: From which share of the schedule on, which side in pixels.
        repeats: Copies of an image in its batch, each augmented anew (repeated augmentation).
        average: Decay of the averaged weights.
        clip: Largest norm of the gradient.
        taught: Weight of the teacher's answers in the loss; without a teacher it has no effect.
        teacher: SHA-256 of the teacher's weights, "" for none.
    """

    model: str
    classes: int = 10
    epochs: int = 200
    seed: int = 0
    batch: int = 128
    learning_rate: float = 1.25e-3
    warmup: float = 0.05
    weight_decay: float = 0.05
    label_smoothing: float = 0.1
    drop_path: float = 0.1
    mixed: float = 0.8
    unmixed_end: float = 0.1
    smallest_crop: float = 0.25
    three: float = 0.0
    sizes: tuple[tuple[float, int], ...] = ((0.0, 224),)
    repeats: int = 1
    average: float = 0.999
    clip: float = 1.0
    taught: float = 0.7
    teacher: str = ""

    def size_at(self, progress: float) -> int:
        """The side in pixels at a share of the schedule."""
        return [size for start, size in self.sizes if start <= progress][-1]

    def as_json(self) -> dict[str, Any]:
        """The attributes as JSON gives them back: lists for tuples."""
        return {**asdict(self), "sizes": [list(pair) for pair in self.sizes]}


# Small pictures first, as in fastai's entries in Imagenette's table and in EfficientNetV2 (Tan and
# Le, ICML 2021): at 128 pixels a step has a third of the positions of one at 224, and the pictures
# hold no more detail. The end at full size settles position embedding and scale of objects.
_GROWING = ((0.0, 128), (0.7, 192), (0.9, 224))

RECIPES = {
    # A plain sequence of patches has little that suits pictures built in, and 9,103 of them are
    # few: heavier regularisation, and much from a teacher (Beyer et al., CVPR 2022, "A good teacher
    # is patient and consistent": the teacher sees the same mixed crops, and the schedule is long).
    "vim_nano_patch16_224": Recipe(
        "vim_nano_patch16_224",
        epochs=400,
        batch=256,
        learning_rate=1.6e-3,
        sizes=_GROWING,
        three=0.3,
        drop_path=0.15,
        taught=0.7,
    ),
    # Convolutions in stem, mixers and downsampling learn faster from little: milder augmentation.
    # A second run learns from the first one's weights (Furlanello et al., ICML 2018, "Born-again
    # neural networks").
    "vmamba_nano_s1l8_224": Recipe(
        "vmamba_nano_s1l8_224",
        epochs=400,
        batch=256,
        learning_rate=1.6e-3,
        sizes=_GROWING,
        three=0.2,
        drop_path=0.15,
        taught=0.5,
    ),
}


def recipe_of(model: str, **changes: Any) -> Recipe:
    """The recipe of a model, the common one where it has none of its own.

    Args:
        model: A name that timm knows.
        **changes: Attributes to set; None leaves one as it is.
    """
    given = {name: value for name, value in changes.items() if value is not None}
    return replace(RECIPES.get(model, Recipe(model)), **given)
