"""Tables over the records of many runs, as Markdown."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from vimlrp.audit.planted.artifacts import ARTIFACTS
from vimlrp.audit.planted.measures import proportion
from vimlrp.audit.planted.plans import PREVALENCES, Kind
from vimlrp.audit.planted.running import Record
from vimlrp.audit.records import Verdict
from vimlrp.evaluation.bootstrap import Estimate
from vimlrp.optional import optional

__all__ = ["summary"]

_EFFECTIVE = (Verdict.CAUSAL, Verdict.NON_LOCAL)
"""Verdicts that blame the classifier."""
_FIRST = 10
_RETRIEVED = (
    *("auroc", "average_precision", "precision_at_10", "precision_at_25"),
    *("best_f1", "f1", "purity", "recall"),
)
_STRONG = 0.1
"""The prevalence from which targets hold."""

Rows = list[dict[str, Any]]


def summary(records: Sequence[Record]) -> str:
    """All tables of a benchmark, as Markdown.

    Args:
        records: Of its runs.
    """
    classes, findings = _flat(records, "classes"), _flat(records, "findings")
    parts = [
        ("Classifiers", _runs(records)),
        ("Classes that rely on an artifact: are they flagged", _flagging(classes)),
        ("Classes that do not: false alarms", _controls(classes, findings)),
        ("Rates of discovery", _discovery(classes)),
        ("Pictures that carry the artifact: are they found", _retrieval(findings)),
        ("Where the artifact lies", _localisation(findings)),
        ("Proof of effect", _causality(findings)),
        ("Mitigation", _mitigation(findings)),
    ]
    problems = [f"- {r['settings']['model']}, {p}" for r in records for p in r["problems"]]
    text = "\n".join(f"### {title}\n\n{table}" for title, table in parts if table)
    return text + (f"\n### Problems\n\n{chr(10).join(problems)}\n" if problems else "")


def _flat(records: Sequence[Record], what: str) -> Rows:
    return [
        {**one, "model": r["settings"]["model"], "seed": r["settings"]["seed"], "inert": r["inert"]}
        for r in records
        for one in r[what]
    ]


def _runs(records: Sequence[Record]) -> str:
    rows = []
    for model in dict.fromkeys(r["settings"]["model"] for r in records):
        own = [r for r in records if r["settings"]["model"] == model]
        planted = [c for r in own for c in r["classes"] if c["kind"] == Kind.PLANTED]
        gated = sum(c["gated"] for c in planted)
        clean = [r["accuracy"]["clean"] for r in own]
        stages = ("train", "gather", "screen", "drill", "verify", "mitigate")
        seconds = [_mean(r["seconds"].get(stage, np.nan) for r in own) for stage in stages]
        total = _mean(sum(r["seconds"].values()) for r in own)
        rows.append(
            [
                model,
                f"{own[0]['parameters'] / 1e6:.2f} M",
                str(len(own)),
                f"{100 * min(clean):.0f} to {100 * max(clean):.0f} %",
                f"{gated} of {len(planted)}",
                f"{total:.0f}",
                " / ".join(_number(value) for value in seconds),
            ]
        )
    header = (
        "model | parameters | runs | clean accuracy, held out | classes that rely on their "
        "artifact | s a run | of these: train / gather / screen / drill / verify / mitigate"
    )
    return _table(header, rows)


def _flagging(classes: Rows) -> str:
    planted = [c for c in classes if c["kind"] == Kind.PLANTED]
    strong = [c for c in planted if c["gated"] and c["prevalence"] >= _STRONG]
    models = dict.fromkeys(c["model"] for c in classes)
    groups: list[tuple[str, Rows]] = [("all", strong)]
    groups += [(model, [c for c in strong if c["model"] == model]) for model in models]
    groups += [(name, [c for c in strong if c["artifact"] == name]) for name in ARTIFACTS]
    for share in PREVALENCES:
        gated = [c for c in planted if c["prevalence"] == share and c["gated"]]
        groups.append((f"prevalence {share:g}", gated))
    weak = [c for c in planted if not c["gated"]]
    groups.append(("not relied on enough (any prevalence)", weak))
    rows = [[name, str(len(own)), *_hits(own)] for name, own in groups if own]
    header = (
        "relied on, prevalence >= 0.1 unless said | classes | median rank (of) | rank 1 | "
        "rank <= 3 | flagged | AUROC of classes"
    )
    return _table(header, rows)


def _hits(classes: Rows) -> list[str]:
    ranks = [c["rank"] for c in classes]
    # The share of calm classes that a class stands before is its AUROC against them.
    before = [1 - (c["rank"] - 1) / max(c["of"] - 1, 1) for c in classes]
    counts = [
        sum(rank == 1 for rank in ranks),
        sum(rank <= 3 for rank in ranks),
        sum(c["flagged"] for c in classes),
    ]
    shares = [_share(proportion(count, len(classes))) for count in counts]
    median = f"{np.median(ranks):g} ({max(c['of'] for c in classes)})"
    return [median, *shares, f"{np.mean(before):.3f}"]


def _controls(classes: Rows, findings: Rows) -> str:
    groups: list[tuple[str, Callable[[dict[str, Any]], bool]]] = [
        ("clean", lambda c: c["kind"] == Kind.CLEAN and not c["inert"]),
        ("clean, an inert artifact in all classes", lambda c: _is_clean(c) and bool(c["inert"])),
        ("two legitimate poses", lambda c: c["kind"] == Kind.TWO_POSES),
        ("artifact never learnt", lambda c: c["kind"] == Kind.UNLEARNT and c["ignored"]),
        ("artifact ignored", lambda c: c["kind"] == Kind.PLANTED and c["ignored"]),
    ]
    rows = []
    for name, belongs in groups:
        own, looked = [*filter(belongs, classes)], [*filter(belongs, findings)]
        if own:
            flagged = proportion(sum(c["flagged"] for c in own), len(own), exact=True)
            blamed = proportion(sum(f["verdict"] in _EFFECTIVE for f in looked), len(looked))
            hans = proportion(sum(f["clever_hans"] for f in looked), len(looked))
            rows.append(
                [
                    name,
                    str(len(own)),
                    _share(flagged),
                    str(len(looked)),
                    _share(blamed),
                    _share(hans),
                ]
            )
    header = "class | classes | flagged | looked into | effect claimed | called Clever Hans"
    return _table(header, rows)


def _discovery(classes: Rows) -> str:
    clean = [c for c in classes if _is_clean(c)]
    flagged = [c for c in classes if c["flagged"]]
    false = sum(map(_is_clean, flagged))
    alarms = proportion(sum(c["flagged"] for c in clean), len(clean), exact=True)
    rows = [
        ["flagged classes that hold nothing (FDR)", _share(proportion(false, len(flagged)))],
        ["false alarms in 1,000 clean classes", _per_thousand(alarms)],
    ]
    channels = dict.fromkeys(s["channel"] for c in clean for s in c["scores"])
    kstest = optional("scipy.stats", "scipy", "audit").kstest
    for channel in channels:
        p = [s["p"] for c in clean for s in c["scores"] if s["channel"] == channel]
        # Only p-values that are too small do harm: those of a valid test lie on or above a line.
        harm = kstest(p, "uniform", alternative="greater")
        rows.append(
            [
                f"p-values of clean classes, {channel}: excess below the diagonal (KS), p of it",
                f"{harm.statistic:.3f}, {harm.pvalue:.3g} ({len(p)} classes)",
            ]
        )
    return _table("rate | value", rows)


def _retrieval(findings: Rows) -> str:
    planted = [f for f in findings if f["kind"] == Kind.PLANTED and f["gated"]]
    groups = [
        (f"{share:g}", [f for f in planted if f["prevalence"] == share]) for share in PREVALENCES
    ]
    strong = [f for f in planted if f["prevalence"] >= _STRONG]
    groups += [
        (f"{name}, >= 0.1", [f for f in strong if f["artifact"] == name]) for name in ARTIFACTS
    ]
    rows = []
    for name, own in groups:
        if not own:
            continue
        found = [f["retrieval"] for f in own]
        lift = _mean(r["average_precision"] / r["prevalence"] for r in found)
        able = [r for r in found if r["carriers"] >= _FIRST]
        good = proportion(sum(r["precision_at_10"] >= 0.9 for r in able), len(able))
        means = [_number(_mean(r[key] for r in found)) for key in _RETRIEVED]
        view = f"{np.median([r['to_view'] for r in found]):g}"
        rows.append([name, str(len(own)), *means, _share(good), f"{lift:.1f}x", view])
    header = (
        "prevalence | classes | AUROC | AP | P@10 | P@25 | best F1 | F1 of those taken | purity "
        "of the cluster | its recall | P@10 >= 0.9, of 10 carriers or more | AP over chance | "
        "pictures to view"
    )
    return _table(header, rows)


def _localisation(findings: Rows) -> str:
    strong = [
        f
        for f in findings
        if f["kind"] == Kind.PLANTED and f["gated"] and f["prevalence"] >= _STRONG
    ]
    rows = []
    for name, artifact in ARTIFACTS.items():
        own = [f["localisation"] for f in strong if f["artifact"] == name]
        if not own:
            continue
        kind = proportion(sum(one["found_local"] == artifact.local for one in own), len(own))
        keys = ("area", "enrichment", "pointing", "pixel_precision", "iou")
        cells = [_number(_mean(one[key] for one in own)) if artifact.local else "" for key in keys]
        rows.append([name, str(len(own)), *cells, _share(kind)])
    header = (
        "artifact | classes | its area | enrichment | pointing | AP of pixels | IoU of regions | "
        "rightly called local or not"
    )
    return _table(header, rows)


def _causality(findings: Rows) -> str:
    planted = [f for f in findings if f["kind"] in (Kind.PLANTED, Kind.UNLEARNT)]
    strong = [f for f in planted if f["gated"] and f["prevalence"] >= _STRONG]
    calm = [f for f in findings if f["ignored"]]
    right = proportion(sum(f["verdict"] in _EFFECTIVE for f in strong), len(strong))
    quiet = proportion(sum(f["verdict"] not in _EFFECTIVE for f in calm), len(calm))
    local = [f for f in strong if ARTIFACTS[f["artifact"]].local]
    hans = proportion(sum(f["clever_hans"] for f in local), len(local))
    spared = proportion(sum(not f["clever_hans"] for f in calm), len(calm))
    rows = [
        ["effect claimed where there is one", _share(right)],
        ["no effect claimed in controls and where it is ignored", _share(quiet)],
        ["called Clever Hans where it is, local artifacts", _share(hans)],
        ["not called so in controls and where it is ignored", _share(spared)],
    ]
    for kind in dict.fromkeys(e["kind"] for f in planted for e in f["effects"]):
        pairs = np.array([*_pairs(planted, kind)])
        if len(pairs) >= 3 and np.ptp(pairs, axis=0).min() > 0:
            spearman = optional("scipy.stats", "scipy", "audit").spearmanr(*pairs.T).statistic
            signs = proportion(
                int((np.sign(pairs[:, 0]) == np.sign(pairs[:, 1])).sum()), len(pairs)
            )
            rows.append(
                [
                    f"{kind}: rank correlation with the exact effect; same sign",
                    f"{spearman:.2f}; {_share(signs)}",
                ]
            )
    return _table("proof | value", rows)


def _pairs(findings: Rows, kind: str) -> Iterator[tuple[float, float]]:
    """Estimated and exact effects; removal undoes what the class's own pictures carry."""
    for finding in findings:
        exact = -finding["carried"]["value"] if kind == "removal" else finding["effect"]["value"]
        yield from (
            (effect["mean"], exact)
            for effect in finding["effects"]
            if effect["kind"] == kind and np.isfinite(effect["mean"])
        )


def _mitigation(findings: Rows) -> str:
    done = [
        {"artifact": f["artifact"], **m}
        for f in findings
        for m in f.get("mitigation", [])
        if f["prevalence"] >= _STRONG
    ]
    rows = []
    for method in dict.fromkeys(m["method"] for m in done):
        for name in ("all", *ARTIFACTS):
            own = [m for m in done if m["method"] == method and name in ("all", m["artifact"])]
            if own:
                keys = ("clean", "clean_after", "attacked", "attacked_after", "regained")
                cells = [_number(_mean(m[key] for m in own)) for key in (*keys, "recovery")]
                rows.append([method, name, str(len(own)), *cells])
    header = (
        "method | artifact | classes | clean accuracy before | after | attacked before | after | "
        "share of the attack's loss regained | recovery R"
    )
    return _table(header, rows) if rows else ""


def _is_clean(one: dict[str, Any]) -> bool:
    return one["kind"] == Kind.CLEAN


def _table(header: str, rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {header} |", f"|{'---|' * (header.count('|') + 1)}"]
    lines += [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join(lines) + "\n"


def _mean(values: Iterable[float]) -> float:
    known = [value for value in values if np.isfinite(value)]
    return float(np.mean(known)) if known else float("nan")


def _number(value: float) -> str:
    return "" if not np.isfinite(value) else f"{value:.3g}"


def _share(estimate: Estimate) -> str:
    if estimate.count == 0:
        return ""
    low, high = 100 * estimate.low, 100 * estimate.high
    return f"{100 * estimate.value:.0f} % ({low:.0f} to {high:.0f})"


def _per_thousand(estimate: Estimate) -> str:
    low, high = 1000 * estimate.low, 1000 * estimate.high
    return f"{1000 * estimate.value:.0f} ({low:.0f} to {high:.0f}; {estimate.count} classes seen)"
