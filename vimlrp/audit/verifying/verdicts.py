"""What effects prove: a table, and what to do about it.

| removal | transplant | verdict |
|---|---|---|
| below zero | above zero | causal |
| one of both proven | | associative |
| within the margin | within the margin | visible but unused |
| neither proven nor within the margin | | associative |

For a cue that lies nowhere in particular the change of whole pictures takes both places, and what
would be causal is non-local; where the change can be undone on carriers, that must lower the class
too. "Below", "above" and "within" are said of whole 95 % intervals, and an effect whose mean lies
within the margin is not proven: enough pictures prove any trifle. With fewer than `FEWEST` carriers
nothing is said but that there are not enough images.
"""

import math
from collections.abc import Sequence

from vimlrp.audit.records import Effect, Verdict

__all__ = ["FEWEST", "MARGIN", "action_for", "decide"]

FEWEST = 8
"""Carriers below which a bootstrap interval is too narrow to be believed."""

MARGIN = 0.2
"""An effect within this share of the logit's standard deviation over pictures is no reaction."""

_ACTIONS = {
    Verdict.CAUSAL: (
        "Look at the regions: the class's score depends on them. If they are no part of the "
        "object, accept the finding and mitigate it; if they are, reject it: every real part of "
        "an object is causal too."
    ),
    Verdict.ASSOCIATIVE: (
        "Look at the samples: they share a cue on which relevance lies, but no effect of it is "
        "proven. Gather more pictures with and without it, and verify again."
    ),
    Verdict.UNUSED: (
        "Nothing has to be done for this model, which does not react to the cue. Keep it in mind "
        "for the next one trained on these pictures: a cue of one class alone is there to be used."
    ),
    Verdict.NON_LOCAL: (
        "Bring the pictures of all classes to the same processing (size, compression, colours, "
        "sharpness), train again, or mitigate the direction: the class's score depends on a "
        "property of the whole picture."
    ),
    Verdict.NOT_ENOUGH: (
        f"Add pictures of the class: at least {FEWEST} that show the cue, as many that do not, "
        "and pictures of other classes are needed for a proof."
    ),
}
_CLEVER_HANS = (
    "The class's score depends on a cue off the object: take it from the training pictures or "
    "spread it over all classes, drop the listed samples, or mitigate the direction."
)


_SHARED = (
    "The class's score depends on a place that nearly all its pictures show alike. If it is no "
    "part of the object, crop or inpaint it in the training pictures, or add pictures from "
    "elsewhere, and train again: leaving pictures out would leave none. Until then mitigate the "
    "direction."
)


def decide(effects: Sequence[Effect], spread: float, *, local: bool) -> Verdict:
    """The verdict of the module's table.

    Args:
        effects: Of removal and transplant, others are left alone; the first of a kind counts.
        spread: Standard deviation of the class's logit over pictures of other classes.
        local: Whether the cue lies somewhere in particular.
    """
    kinds = {effect.kind: effect for effect in reversed(effects)}
    needed = ("removal", "transplant") if local else ("insertion", "transplant")
    known = [kinds[kind] for kind in needed if kind in kinds]
    if any(e.count < FEWEST or not math.isfinite(e.low) for e in known):
        return Verdict.NOT_ENOUGH
    margin = MARGIN * spread
    undone = [] if local or "removal" not in kinds else [kinds["removal"]]
    if len(known) == len(needed) and all(_proven(e, margin) for e in [*known, *undone]):
        return Verdict.CAUSAL if local else Verdict.NON_LOCAL
    if known and all(_within(effect, margin) for effect in known):
        return Verdict.UNUSED
    return Verdict.ASSOCIATIVE


def action_for(verdict: Verdict, *, clever_hans: bool, shared: bool = False) -> str:
    """What a reader should do next.

    Args:
        verdict: Of the finding.
        clever_hans: Whether the cue lies off the object by evidence.
        shared: Whether nearly all pictures of the class show it.
    """
    if shared and verdict is Verdict.CAUSAL:
        return _SHARED
    return _CLEVER_HANS if clever_hans else _ACTIONS[verdict]


def _proven(effect: Effect, margin: float) -> bool:
    if effect.kind == "removal":
        return effect.high < 0 and effect.mean < -margin
    return effect.low > 0 and effect.mean > margin


def _within(effect: Effect, margin: float) -> bool:
    return -margin <= effect.low and effect.high <= margin
