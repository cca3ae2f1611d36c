import math
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import pytest
from same_records import same
from typing_extensions import TypeAliasType

from vimlrp.audit.records import (
    Candidate,
    Channel,
    ClassScore,
    Effect,
    Finding,
    PlaceShare,
    Screening,
    Verdict,
)
from vimlrp.audit.saving import pack, unpack
from vimlrp.errors import InputError
from vimlrp.evaluation.data import Problem
from vimlrp.evaluation.parts import Part, Parts


def score(label, channel=Channel.LATENT, cluster=(3, 5)):
    return ClassScore(
        label, channel, 40, 0.25, 3.5, 2.5, 2, 0.01, np.float64(0.05), True,
        np.array(cluster, np.int64),
    )  # fmt: skip


COMPARED = ClassScore(
    1, Channel.COMPARISON, 40, math.nan, math.nan, math.nan, None, 0.01, 0.05, True,
    np.array([3], np.int64), PlaceShare("ring", 0.5, 0.25),
)  # fmt: skip


def candidate():
    rng = np.random.default_rng(0)
    return Candidate(
        2,
        Channel.RELEVANCE,
        np.array([1, 4]),
        rng.normal(size=6).astype(np.float32),
        np.arange(5),
        rng.normal(size=5).astype(np.float32),
        np.array([4]),
        rng.random((1, 8, 8)) > 0.5,
        True,
        (("jpeg_quality", 0.9), ("text", 0.75)),
    )


FINDING = Finding(
    candidate(),
    (Effect("removal", -1.5, -2.0, -1.0, 12), Effect("insertion", 2, 1, 3, 12, 0.25)),
    Verdict.CAUSAL,
    None,
    False,
    "Look at the corner – é",
    ("few images",),
)


@pytest.mark.parametrize(
    ("record", "kind"),
    [
        (Screening((score(1), score(0, Channel.STATISTICS, ())), 0.1, (Problem("a", "b", "c"),)),
         Screening),
        (Screening((COMPARED,), 0.1, (), ("a note",)), Screening),
        (candidate(), Candidate),
        (replace(candidate(), place=COMPARED.place), Candidate),
        (FINDING, Finding),
        ([FINDING, FINDING], list[Finding]),
        ([], list[Candidate]),
    ],
    ids=[
        "screening", "comparison", "candidate", "at a place", "finding", "findings", "nothing"
    ],
)  # fmt: skip
def test_records_come_back_from_disk_as_they_were(record, kind, tmp_path):
    Parts(tmp_path, {}, what="an audit")["a/b"] = pack(record, rate=0.1)
    part = Parts(tmp_path, None, what="an audit")["a/b"]
    same(unpack(part, kind), record)
    assert part.facts["rate"] == 0.1


@pytest.mark.parametrize(
    "part", [Part({}), Part({}, facts={"record": {"label": 1}}), pack(FINDING)]
)
def test_a_part_of_something_else_is_named(part):
    with pytest.raises(InputError, match="holds no Screening"):
        unpack(part, Screening)


ARRAY = TypeVar("ARRAY", bound=np.generic)
NAMED = TypeAliasType("NAMED", np.ndarray[Any, np.dtype[ARRAY]], type_params=(ARRAY,))


@dataclass(frozen=True)
class OfNamedType:
    values: NAMED[np.float64]
    more: NAMED[np.int64] | None


def test_array_types_may_be_named_as_numpy_names_its_own_from_2_5_on():
    for record in (OfNamedType(np.ones(3), np.arange(4)), OfNamedType(np.zeros(2), None)):
        same(unpack(pack(record), OfNamedType), record)


def test_enumerations_are_checked():
    part = pack(FINDING)
    part.facts["record"]["verdict"] = "guilty"
    with pytest.raises(InputError, match="guilty"):
        unpack(part, Finding)
