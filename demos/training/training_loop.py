"""The training loop behind train_classifier.py: steps, averaged weights, schedule, checkpoints."""

import math
import random
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import checkpoints
import timm
import torch
import torch.nn.functional as F  # noqa: N812
from augmentation import augment, mix
from cuda_graphs import graphed_for_inference, graphed_for_training
from team import Team
from torch import Tensor, nn
from training_data import ALONE, Split
from training_recipes import Recipe

import vimlrp  # noqa: F401  # its import registers the models with timm

__all__ = ["RecipeError", "Training", "create"]


class RecipeError(Exception):
    """A checkpoint was made by another recipe."""


def create(name: str, classes: int, **options: Any) -> nn.Module:
    """A model that takes images of any size."""
    model = timm.create_model(name, num_classes=classes, **options)
    if hasattr(model, "dynamic_img_size"):
        model.dynamic_img_size = True  # type: ignore[assignment]
    return model


class Training:
    """Model, its average, optimiser and progress: what a checkpoint holds.

    All randomness is seeded by the epoch, so a checkpoint needs no state of any generator: in
    pieces or at one go, the same numbers are drawn.

    Args:
        recipe: What to do.
        device: Where.
        teacher: A trained model to learn from beside the labels.
        graphs: Replay CUDA graphs instead of launching kernel by kernel.
        team: The processes that share every batch.
    """

    def __init__(
        self,
        recipe: Recipe,
        device: torch.device,
        teacher: nn.Module | None = None,
        graphs: bool = False,
        team: Team = ALONE,
    ) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe, self.device, self.epoch, self.team = recipe, device, 0, team
        self.model = create(recipe.model, recipe.classes, drop_path_rate=recipe.drop_path).to(
            device
        )
        self.average = deepcopy(self.model).eval().requires_grad_(False)
        self.teacher = None if teacher is None else teacher.to(device).eval().requires_grad_(False)
        self.optimiser = torch.optim.AdamW(_groups(self.model, recipe), fused=device.type == "cuda")
        self.generator, self.dice = torch.Generator(device), random.Random()  # noqa: S311
        self.shuffler = torch.Generator(device)
        self.graphs, self.size = graphs, 0
        self.forward: Callable[[Tensor], Tensor] = self.model
        self.taught: Callable[[Tensor], Tensor] | None = self.teacher
        self.log: list[dict[str, float]] = []

    def run_epoch(self, data: Split) -> float:
        """Train over the data once; the mean loss."""
        self.model.train()
        self.prepare(self.recipe.size_at(self.epoch / self.recipe.epochs))
        self._seed()
        steps = len(data) // self.recipe.repeats * self.recipe.repeats // self.recipe.batch
        total = torch.zeros((), device=self.device)
        batches = data.batches(self.recipe.batch, self.shuffler, self.recipe.repeats, self.team)
        for step, (images, labels) in enumerate(batches):
            total += self.step(images, labels, (self.epoch + step / steps) / self.recipe.epochs)
            self._update_average(self.epoch * steps + step)
        self.epoch += 1
        return float(total / steps)

    def prepare(self, size: int) -> None:
        """Capture the graphs of another size; done before seeding, since warming up draws."""
        if size == self.size:
            return
        self.size = size
        if self.graphs:
            shape = (self.recipe.batch // self.team.size, 3, size, size)
            like = torch.randn(shape, device=self.device)
            self.forward = graphed_for_training(self.model, like)
            if self.teacher is not None:
                self.taught = graphed_for_inference(self.teacher, like)

    def step(self, images: Tensor, labels: Tensor, progress: float) -> Tensor:
        """One update from (B, 3, S, S) in 0..1 and (B,) at a share of the schedule; the loss."""
        self._set_rate(progress)
        images, targets = self._augmented(images, labels, progress)
        with torch.autocast(self.device.type, torch.bfloat16, self.device.type == "cuda"):
            logits = self.forward(images)
        loss = self._loss(logits.float(), targets, images)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.team.average_gradients(self.model.parameters())
        nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        self.optimiser.step()
        return loss.detach()

    def _augmented(self, images: Tensor, labels: Tensor, progress: float) -> tuple[Tensor, Tensor]:
        recipe = self.recipe
        images = augment(images, self.size, self.generator, recipe.smallest_crop, recipe.three)
        targets = F.one_hot(labels, self.recipe.classes).float()
        if progress < 1 - recipe.unmixed_end and self.dice.random() < recipe.mixed:
            return mix(images, targets, self.dice.random() < 0.5, self.generator)
        return images, targets

    def _loss(self, logits: Tensor, targets: Tensor, images: Tensor) -> Tensor:
        """Cross-entropy with the labels, and with the teacher's answers to the same images."""
        loss = F.cross_entropy(logits, targets, label_smoothing=self.recipe.label_smoothing)
        if self.taught is None:
            return loss
        cuda = self.device.type == "cuda"
        with torch.no_grad(), torch.autocast(self.device.type, torch.bfloat16, cuda):
            answers = self.taught(images).float().softmax(1)
        return torch.lerp(loss, F.cross_entropy(logits, answers), self.recipe.taught)

    def _seed(self) -> None:
        seed = 1_000_003 * self.recipe.seed + self.epoch
        # The order is the team's, and what happens to a picture is its process's own.
        self.shuffler.manual_seed(seed)
        self.dice.seed(seed)
        torch.manual_seed(seed + 7_000_003 * self.team.rank)
        self.generator.manual_seed(seed + 7_000_003 * self.team.rank)

    def _set_rate(self, progress: float) -> None:
        """Linear warm-up, then a cosine to a hundredth."""
        warmup = self.recipe.warmup
        cosine = 0.5 * (1 + math.cos(math.pi * max(0.0, progress - warmup) / (1 - warmup)))
        factor = min(1.0, progress / warmup + 1e-3) * max(0.01, cosine)
        for group in self.optimiser.param_groups:
            group["lr"] = self.recipe.learning_rate * factor

    def _update_average(self, step: int) -> None:
        """Move the average towards the weights; faster at first, when they are still random."""
        rate = 1 - min(self.recipe.average, (1 + step) / (10 + step))
        pairs = zip(self.average.parameters(), self.model.parameters(), strict=True)
        averages, weights = map(list, zip(*pairs, strict=True))
        torch._foreach_lerp_(averages, [w.detach() for w in weights], rate)

    def save(self, folder: Path, compact: bool = False) -> None:
        """Write a checkpoint whole or not at all.

        Args:
            folder: Where to.
            compact: Keep the optimiser's moments in bfloat16, a quarter less in all. Going on
                from there is then close to going on without a stop, not equal.
        """
        about = {"recipe": self.recipe.as_json(), "epoch": self.epoch, "log": self.log}
        moments = {
            f"optimiser.{i}.{key}": value.bfloat16() if compact and value.dim() else value
            for i, state in self.optimiser.state_dict()["state"].items()
            for key, value in state.items()
        }
        models = {
            f"{name}.{key}": value
            for name, model in self._models().items()
            for key, value in model.state_dict().items()
        }
        checkpoints.write(folder, self.epoch, about, {**models, **moments})

    def resume(self, folder: Path) -> bool:
        """Go on from the checkpoint in a folder; whether there is one.

        Raises:
            RecipeError: If another recipe made it.
            CheckpointError: If it is incomplete.
        """
        found = checkpoints.read(folder, self.device)
        if found is None:
            return False
        about, tensors = found
        if about["recipe"] != self.recipe.as_json():
            raise RecipeError(
                f"{folder} holds a checkpoint of {about['recipe']}, and this command asks for "
                f"{self.recipe.as_json()}. Repeat the first command, or choose another --out."
            )
        self.epoch, self.log = about["epoch"], about["log"]
        for name, model in self._models().items():
            model.load_state_dict(_under(tensors, f"{name}."))
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in _under(tensors, "optimiser.").items():
            number, what = key.split(".")
            state.setdefault(int(number), {})[what] = value
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": state, "param_groups": groups})
        return True

    def _models(self) -> dict[str, nn.Module]:
        return {"model": self.model, "average": self.average}


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _groups(model: nn.Module, recipe: Recipe) -> list[dict[str, Any]]:
    """Weight decay for matrices alone."""
    exempt: set[str] = getattr(model, "no_weight_decay", set)()
    named = list(model.named_parameters())
    kept = [p for name, p in named if p.dim() > 1 and name not in exempt]
    free = [p for name, p in named if p.dim() <= 1 or name in exempt]
    return [
        {"params": kept, "weight_decay": recipe.weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
