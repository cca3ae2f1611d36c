"""Conservation, cut by cut: does the relevance of a layer sum to the logit, and if not, where."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vimlrp.composites import Composite
from vimlrp.engine import check_eager, explaining
from vimlrp.errors import InputError, UnsupportedModelError
from vimlrp.explainer import CompositeLike
from vimlrp.inputs import Images, batches
from vimlrp.layers import LayerRecord, alias, watch_layers
from vimlrp.models import class_names
from vimlrp.optional import optional
from vimlrp.rules import Rule
from vimlrp.targets import Target, seed
from vimlrp.tracing import Absorption, collecting
from vimlrp.wrapping import wrap

__all__ = ["Conservation", "Cut", "SiteFlow", "check_conservation"]


@dataclass(frozen=True)
class Cut:
    """A set of tensors through which all relevance must pass.

    Args:
        name: The module that returns them.
        relevance: Their relevance, per sample (B,).
        absorbed: What biases, class tokens and stabilisers took between this cut and the output.
    """

    name: str
    relevance: Tensor
    absorbed: Tensor


@dataclass(frozen=True)
class SiteFlow:
    """What one site did to the relevance that reached it, per sample (B,) each.

    Args:
        name: Of the site.
        kind: Of the site.
        rule: That acted there.
        received: Relevance of its output.
        passed: Relevance of its inputs.
        absorbed: What its bias or stabiliser took.
    """

    name: str
    kind: str
    rule: Rule
    received: Tensor
    passed: Tensor
    absorbed: Tensor

    def folded(self, count: int) -> "SiteFlow":
        """The flow per sample, where a site saw several rows of each.

        Args:
            count: Samples.
        """
        sums = (x.view(count, -1).sum(1) for x in (self.received, self.passed, self.absorbed))
        return SiteFlow(self.name, self.kind, self.rule, *sums)

    @property
    def gap(self) -> Tensor:
        """What came into being, or got lost, at this site."""
        return self.passed + self.absorbed - self.received


@dataclass(frozen=True)
class Conservation:
    """The account of a batch, cut by cut and site by site.

    Args:
        target: The value explained, (B,).
        cuts: From the input to the output.
        sites: In the order in which the model ran them.
        tolerance: Relative to the target; a site or cut beyond it is broken.
    """

    target: Tensor
    cuts: tuple[Cut, ...]
    sites: tuple[SiteFlow, ...]
    tolerance: float

    def error_of(self, cut: Cut) -> float:
        """The largest relative difference of a cut and its absorptions from the target."""
        gap = cut.relevance + cut.absorbed - self.target
        return float((gap / self._scale()).abs().max())

    @property
    def holds(self) -> bool:
        """Whether relevance is conserved at every cut."""
        return all(self.error_of(cut) <= self.tolerance for cut in self.cuts)

    @property
    def broken(self) -> tuple[SiteFlow, ...]:
        """The sites that do not conserve, the worst first."""
        errors = {id(s): float((s.gap / self._scale()).abs().max()) for s in self.sites}
        bad = [site for site in self.sites if errors[id(site)] > self.tolerance]
        return tuple(sorted(bad, key=lambda site: -errors[id(site)]))

    def plot(self, path: str | Path, cut: str | None = None) -> Path:
        """Draw the paper's figure: relevance summed over a cut against the logit.

        Args:
            path: Of the PNG, PDF or SVG file.
            cut: The name of a cut; the first, nearest to the input, by default.

        Raises:
            InputError: If there is no such cut.
            MissingDependencyError: If matplotlib is missing.
        """
        cuts = {c.name: c for c in self.cuts}
        name = self.cuts[0].name if cut is None else cut
        if name not in cuts:
            raise InputError(f"there is no cut {name!r}; the cuts are {', '.join(cuts)}")
        return _scatter(self.target, cuts[name], Path(path))

    def _scale(self) -> Tensor:
        return self.target.abs().clamp(min=torch.finfo(self.target.dtype).tiny)

    def __str__(self) -> str:
        verdict = "holds" if self.holds else "is broken"
        lines = [
            f"conservation {verdict} (tolerance {self.tolerance:g}); mean over {len(self.target)} "
            f"samples, target {float(self.target.mean()):+.5f}",
            f"{'cut':<24} {'relevance':>12} {'absorbed':>12} {'error':>10}",
        ]
        lines += [
            f"{cut.name:<24} {float(cut.relevance.mean()):>+12.5f} "
            f"{float(cut.absorbed.mean()):>+12.5f} {self.error_of(cut):>10.1e}"
            for cut in self.cuts
        ]
        lines += [
            f"broken at {site.name} ({site.kind}, {site.rule}): received "
            f"{float(site.received.mean()):+.5f}, passed on {float(site.passed.mean()):+.5f}"
            for site in self.broken[:5]
        ]
        return "\n".join(lines)


def check_conservation(
    model: nn.Module,
    images: Images,
    *,
    target: Target = None,
    contrast: Target = None,
    composite: CompositeLike = "mambalrp",
    tolerance: float = 1e-3,
) -> Conservation:
    """Measure where a composite conserves relevance in a model and where it does not.

    At a complete cut of the graph (a block's branch and its residual stream together) relevance
    and what was absorbed after it sum to the target, if every site after it conserves.

    Args:
        model: A model built from sites that lists its complete cuts (`complete_cuts`).
        images: As for `vimlrp.explain`; they are run as one batch.
        target: What to explain; the predicted class by default.
        contrast: A class to subtract.
        composite: The rules.
        tolerance: Relative to the target, for the verdict; the numbers do not depend on it.

    Raises:
        UnsupportedModelError: If the model does not list its cuts, or has a part without a rule.
    """
    check_eager(model)
    model = wrap(model)
    cuts = _cuts_of(model)
    chosen = Composite.ensure(composite)
    (batch,) = batches(images, model, 2**31)
    ledger = _Ledger(model)
    with explaining(model, batch.x, chosen, ledger) as trace:
        with watch_layers(model, cuts, trace) as streams:
            logits = model(batch.x.detach().clone())
        value = seed(logits, target, contrast, class_names(model)).value
        tensors = [x for name in cuts for x in streams[name]]
        gradients = torch.autograd.grad(value.sum(), tensors, allow_unused=True)
    known = {
        id(x): torch.zeros_like(x) if g is None else g
        for x, g in zip(tensors, gradients, strict=True)
    }
    account = ledger.close(len(batch.x))
    return Conservation(
        value.detach(),
        tuple(
            _cut(
                name, streams[name], [known[id(x)] for x in streams[name]], account, value.detach()
            )
            for name in cuts
        ),
        tuple(account),
        tolerance,
    )


def _cuts_of(model: nn.Module) -> tuple[str, ...]:
    cuts = getattr(model, "complete_cuts", None)
    if cuts is None:
        raise UnsupportedModelError(
            f"{type(model).__name__} does not say where all its relevance can be cut: give it a "
            "method complete_cuts() that names modules, as vimlrp.models.VisionMamba does"
        )
    return tuple(cuts())


def _cut(
    name: str,
    streams: Sequence[Tensor],
    gradients: Sequence[Tensor],
    account: Sequence[SiteFlow],
    like: Tensor,
) -> Cut:
    relevance = LayerRecord.of(streams, gradients).relevance.flatten(1).sum(1)
    return Cut(name, relevance, _absorbed_after(name, account, like))


def _absorbed_after(name: str, account: Sequence[SiteFlow], like: Tensor) -> Tensor:
    """What sites absorbed between the last site inside the module `name` and the output."""
    inside = [i for i, s in enumerate(account) if s.name == name or s.name.startswith(f"{name}.")]
    after = account[max(inside, default=-1) + 1 :]
    return sum((site.absorbed for site in after), torch.zeros_like(like))


class _Ledger:
    """A watcher that weighs the relevance at both ends of every site.

    Args:
        model: Names the sites.
    """

    def __init__(self, model: nn.Module) -> None:
        self._names = {module: name for name, module in model.named_modules()}
        self._visits: list[tuple[nn.Module, Rule, dict[str, Tensor], list[Absorption]]] = []

    def visit(self, site: nn.Module, rule: Rule, args: tuple[Any, ...]) -> Any:
        """Run the site between two pairs of scales, with a list of its own for what it absorbs."""
        sums: dict[str, Tensor] = {}
        absorptions: list[Absorption] = []
        self._visits.append((site, rule, sums, absorptions))
        with collecting(absorptions):
            out = rule.run(site, *(_weigh(x, "passed", sums) for x in args))
        return _weigh(out, "received", sums)

    def constant(self, x: Tensor) -> Tensor:
        """Detach."""
        return x.detach()

    def close(self, count: int) -> list[SiteFlow]:
        """The flows through all sites that relevance reached.

        Args:
            count: Samples in the batch; windows of a map may have been run as samples of their own.
        """
        flows = [self._flow(*visit) for visit in self._visits if "received" in visit[2]]
        return [flow.folded(count) for flow in flows]

    def _flow(
        self,
        site: nn.Module,
        rule: Rule,
        sums: dict[str, Tensor],
        absorptions: list[Absorption],
    ) -> SiteFlow:
        received = sums["received"]
        taken = sum((a.share for a in absorptions), torch.zeros_like(received))
        # Where relevance turns to pixels there is no gradient below: the account says what arrived.
        passed = sums.get("passed", received - taken)
        return SiteFlow(self._names[site], str(site.kind), rule, received, passed, taken)


def _weigh(x: Any, end: str, sums: dict[str, Tensor]) -> Any:
    """Add x times its gradient to `sums[end]` in the backward pass."""
    if not isinstance(x, Tensor) or not x.requires_grad:
        return x
    x = alias(x)
    value = x.detach()

    def weigh(gradient: Tensor | None) -> None:
        if gradient is None:  # no relevance came this way
            return
        relevance = (value * gradient).flatten(1).sum(1)
        sums[end] = sums[end] + relevance if end in sums else relevance

    x.register_hook(weigh)
    return x


def _scatter(target: Tensor, cut: Cut, path: Path) -> Path:
    figure = optional("matplotlib.figure", "matplotlib", "plot").Figure(
        figsize=(4.2, 4), layout="constrained"
    )
    axes = figure.add_subplot()
    x, y = target.float().cpu().numpy(), cut.relevance.float().cpu().numpy()
    low, high = float(min(x.min(), y.min())), float(max(x.max(), y.max()))
    axes.plot([low, high], [low, high], color="0.7", zorder=1, label="conserved")
    axes.scatter(x, y, s=18, color="#0b6e99", zorder=2, label=f"at {cut.name}")
    axes.set(xlabel="target logit", ylabel="sum of relevance")
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return path
