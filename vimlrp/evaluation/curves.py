"""Faithfulness: what the target loses when patches go, in the order that a map prescribes.

MoRF removes the most relevant patch first, LeRF the least relevant one (Samek et al., TNNLS 2017).
A curve has S + 1 points, from the whole input to none of its patches; an area is that under the
curve over the share removed, so that it has the unit of the curve.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vimlrp.errors import InputError
from vimlrp.evaluation.patches import order_of, removal_counts
from vimlrp.evaluation.replacement import Canvas, black_of
from vimlrp.inference import Inference

__all__ = [
    "Curves",
    "area",
    "black_accuracy",
    "black_counts",
    "delta_flipping",
    "delta_insertion",
    "flipping_curves",
    "symmetric_relevance_gain",
]

_BLACK_SHARES = tuple(round(0.1 * i, 1) for i in range(10))


@dataclass(frozen=True)
class Curves:
    """Curves of one reading of the target, its logit or its probability.

    Args:
        share: Of patches that are gone, (S + 1,).
        morf: With the most relevant patch removed first, (B, S + 1).
        lerf: With the least relevant patch removed first, (B, S + 1).
    """

    share: Tensor
    morf: Tensor
    lerf: Tensor

    def backwards(self) -> "Curves":
        """Curves of insertion into an input without patches, over the share inserted.

        An input in which the k most relevant patches were inserted is the one from which all but
        these were removed, least relevant first: the curve of insertion in one order is the curve
        of flipping in the other order, read from its end. No pass is needed.
        """
        share = 1 - self.share.flip(0)
        return Curves(share, morf=self.lerf.flip(1), lerf=self.morf.flip(1))


def flipping_curves(
    canvas: Canvas, maps: Tensor, target: Tensor, steps: int = 20
) -> tuple[Curves, Curves]:
    """Remove patches step by step, in both orders.

    Args:
        canvas: The images and the replacement.
        maps: Signed maps, (B, H, W); a patch's score is its sum.
        target: Classes, (B,).
        steps: S; 20 are steps of 5 %.

    Returns:
        The curves of the target's logit and of its probability.

    Raises:
        InputError: If there are fewer than two steps.
    """
    counts = removal_counts(canvas.grid.count, steps).to(maps.device)
    place = order_of(canvas.grid.scores(maps))  # (B, M)
    inner = counts[1:-1, None, None]
    gone = torch.stack([place < inner, place >= canvas.grid.count - inner])  # (2, S - 1, B, M)
    sample = torch.arange(len(maps), device=maps.device).expand(gone.shape[:3])
    between = canvas.logits(gone.flatten(0, 2), sample.flatten())
    between = between.unflatten(0, gone.shape[:3])  # (2, S - 1, B, C)
    whole, empty = (end.expand(2, 1, *end.shape) for end in canvas.ends)
    logits = torch.cat([whole, between, empty], dim=1)
    share = counts / canvas.grid.count
    return tuple(Curves(share, *reading) for reading in _readings(logits, target))  # type: ignore[return-value]


def _readings(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Logit and probability of the target: (2, S, B, C) to (2, B, S) each."""
    index = target.view(1, 1, -1, 1).expand(*logits.shape[:3], 1)
    return tuple(
        values.gather(3, index).squeeze(3).transpose(1, 2)
        for values in (logits, logits.softmax(dim=3))
    )  # type: ignore[return-value]


def area(curve: Tensor, share: Tensor) -> Tensor:
    """The area under curves, by the trapezoid rule.

    Args:
        curve: (..., S + 1).
        share: Where the points lie, (S + 1,).

    Returns:
        (...).
    """
    return torch.trapezoid(curve, share.to(curve), dim=-1)


def delta_flipping(curves: Curves) -> Tensor:
    """dA^F = A_LeRF - A_MoRF of flipping, (B,); higher is better.

    Source: MambaLRP (Jafari et al., NeurIPS 2024) and AttnLRP (Achtibat et al., ICML
    2024), on the logit. How a removed patch is replaced is the canvas's matter; the papers zero
    embeddings.
    """
    return area(curves.lerf, curves.share) - area(curves.morf, curves.share)


def delta_insertion(curves: Curves) -> Tensor:
    """dA^I = A_MoRF - A_LeRF of insertion, (B,); higher is better.

    Source: as `delta_flipping`. With one replacement for both it equals dA^F, since a curve of
    insertion is one of flipping read backwards (`Curves.backwards`); it says something of its own
    where patches are inserted into another canvas than the one they are removed to, such as a
    blurred picture (RISE, Petsiuk et al., BMVC 2018).

    Args:
        curves: Of insertion.
    """
    return area(curves.morf, curves.share) - area(curves.lerf, curves.share)


def symmetric_relevance_gain(curves: Curves, random: Curves | None = None) -> Tensor:
    """The gain over a random order, of the most and of the least relevant first, (B,); higher.

    Source: Bluecher, Vielhaben and Strodthoff, TMLR 2024. The random order cancels out of the sum,
    so it need not be run, and what remains is the area between both curves: dA^F of the reading.

    Args:
        curves: Of flipping.
        random: Those of a random order, to add up the definition term by term.
    """
    if random is None:
        return delta_flipping(curves)
    most = area(random.morf, random.share) - area(curves.morf, curves.share)
    least = area(curves.lerf, curves.share) - area(random.morf, random.share)
    return most + least


def black_counts(pixels: int, shares: Sequence[float] = _BLACK_SHARES) -> Tensor:
    """How many pixels are black at each step of `black_accuracy`, (S,).

    Args:
        pixels: Of the whole input.
        shares: Of them, within 0 to 1; what they make is rounded down.

    Raises:
        InputError: If a share lies outside.
    """
    if not shares or not all(0 <= share <= 1 for share in shares):
        raise InputError(f"shares are {list(shares)}; give at least one, from 0 to 1")
    return torch.tensor([int(pixels * share) for share in shares])


def black_accuracy(
    inference: Inference,
    x: Tensor,
    maps: Tensor,
    target: Tensor,
    shares: Sequence[float] = _BLACK_SHARES,
) -> tuple[Tensor, Tensor]:
    """Whether a class is the top class while pixels turn black.

    Source: Chefer et al., CVPR 2021, and Ali et al. (The Hidden Attention of Mamba Models), 2024.
    Single pixels are removed, 10 to 90 %, and not patches. Positive perturbation removes the
    highest scores first (lower is better), negative the lowest first (higher is better). Hits
    count against the label there, whichever class the map explains. How the area under the
    curve was computed for the published numbers is not known, so that 100 times that by `area`,
    over 0 to 0.9 with the whole images included, may differ from them.

    Args:
        inference: Of the model.
        x: Preprocessed images, (B, 3, H, W).
        maps: Signed maps, (B, H, W).
        target: Classes to hit, (B,): the labels, or the explained classes where there are none.
        shares: Of pixels removed, within 0 to 1.

    Returns:
        Hits of the positive and of the negative perturbation, (B, S) each of 0 or 1.

    Raises:
        InputError: If a share lies outside.
    """
    counts = black_counts(maps.flatten(1).shape[1], shares).to(x.device)
    black = black_of(inference, x)
    rows = (torch.arange(len(x), device=x.device)[:, None], counts[None])  # (B, 1) and (1, S)
    sample, count = (row.flatten() for row in torch.broadcast_tensors(*rows))
    hits = []
    for scores in (maps, -maps):
        place = order_of(scores.flatten(1)).to(torch.int32)
        pieces = zip(sample.split(inference.batch_size), count.split(inference.batch_size),
                     strict=True)  # fmt: skip
        found = [
            inference(torch.where((place[s] < n[:, None]).view(-1, 1, *x.shape[-2:]), black, x[s]))
            .argmax(1)
            .eq(target[s])
            for s, n in pieces
        ]
        hits.append(torch.cat(found).view(len(x), len(shares)).float())
    return hits[0], hits[1]
