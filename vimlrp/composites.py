"""Composites: named data that give every kind of site its rule."""

import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from types import MappingProxyType

from torch import nn

from vimlrp.attention_rules import AttnLRP, ConstantAttention, ConstantGate
from vimlrp.errors import CompositeError
from vimlrp.input_rules import Box, Flat
from vimlrp.rules import (
    ConstantFactors,
    ConstantNormaliser,
    Epsilon,
    Gamma,
    GammaSum,
    Gradient,
    Identity,
    Rule,
    Share,
    ShareFactors,
    Zero,
)
from vimlrp.sites import SITE_KINDS, Site

__all__ = ["COMPOSITES", "RULES", "Composite", "parse_rule"]

RULES: Mapping[str, type[Rule]] = MappingProxyType(
    {
        "gradient": Gradient,
        "identity": Identity,
        "share": Share,
        "constant_normaliser": ConstantNormaliser,
        "constant_factors": ConstantFactors,
        "constant_attention": ConstantAttention,
        "constant_gate": ConstantGate,
        "attnlrp": AttnLRP,
        "zero": Zero,
        "epsilon": Epsilon,
        "gamma": Gamma,
        "gamma_sum": GammaSum,
        "share_factors": ShareFactors,
        "flat": Flat,
        "box": Box,
    }
)
"""Rules by the names that `parse_rule` and the command line take."""

_RULE_TEXT = re.compile(r"^\s*(\w+)\s*(?:\(([^()]*)\))?\s*$")


def parse_rule(text: str) -> Rule:
    """Read a rule such as "zero", "gamma(0.1)" or "share(1, 0)".

    Args:
        text: A name of `RULES`, with the rule's arguments in brackets if it takes any.

    Raises:
        CompositeError: If there is no such rule, or its arguments do not fit.
    """
    match = _RULE_TEXT.match(text)
    if match is None or match[1] not in RULES:
        raise CompositeError(f"unknown rule {text!r}; the rules are {', '.join(RULES)}")
    rule = RULES[match[1]]
    words = [word.strip() for word in (match[2] or "").split(",") if word.strip()]
    try:
        return rule(*_arguments(rule, words))
    except (TypeError, ValueError) as error:
        fields = inspect.signature(rule)
        raise CompositeError(
            f"cannot read the rule {text!r}: {match[1]}{fields} ({error})"
        ) from None


def _arguments(rule: type[Rule], words: list[str]) -> list[object]:
    if rule is ConstantFactors and words:
        return [tuple(words)]
    return [float(word) for word in words]


_GRADIENT: dict[str, Rule] = {
    "activation": Gradient(),
    "step": Gradient(),
    "gate": Gradient(),
    "normalisation": Gradient(),
    "batch_norm": Zero(),
    "scan": Gradient(),
    "attention": Gradient(),
    "excitation": Gradient(),
    "pooling": Gradient(),
    "convolution": Zero(),
    "projection": Zero(),
    "head": Zero(),
    "patch_embedding": Zero(),
    "residual": Gradient(),
}

_MAMBALRP: dict[str, Rule] = {
    **_GRADIENT,
    "activation": Identity(),
    "gate": Share(0.5, 0.5),
    "normalisation": ConstantNormaliser(),
    "scan": ConstantFactors(),
    "attention": ConstantAttention(),
    "excitation": ConstantGate(),
    "convolution": Gamma(0.25),
    "patch_embedding": Gamma(0.25),
}

COMPOSITES: Mapping[str, Mapping[str, Rule]] = MappingProxyType(
    {
        "mambalrp": _MAMBALRP,
        "gradient_x_input": _GRADIENT,
        "without_activation_rule": {**_MAMBALRP, "activation": Gradient()},
        "without_scan_rule": {**_MAMBALRP, "scan": Gradient()},
        "without_gate_rule": {**_MAMBALRP, "gate": Gradient()},
        "without_norm_rule": {**_MAMBALRP, "normalisation": Gradient()},
        "without_attention_rule": {**_MAMBALRP, "attention": Gradient()},
        "without_gamma_rule": {**_MAMBALRP, "convolution": Zero()},
        "gate_to_signal": {**_MAMBALRP, "gate": Share(1.0, 0.0)},
        "gate_to_gate": {**_MAMBALRP, "gate": Share(0.0, 1.0)},
        "attnlrp_attention": {**_MAMBALRP, "attention": AttnLRP()},
        "norm_rule_only": {**_GRADIENT, "normalisation": ConstantNormaliser()},
        "epsilon": {
            **_MAMBALRP,
            "convolution": Epsilon(),
            "projection": Epsilon(),
            "head": Epsilon(),
        },
        "gamma_projections": {**_MAMBALRP, "projection": Gamma(0.25)},
    }
)
"""The named composites.

`mambalrp` is the paper's for Vision Mamba and the default. `gradient_x_input` is the plain
gradient. The five `without_*_rule` drop one rule each (the paper's ablations), `gate_to_signal`
and `gate_to_gate` hold one factor of the gate constant (its appendix C.5), `norm_rule_only` is the
LRP baseline of its Table 1, `gamma_projections` a composite of its Table 6.
"""


@dataclass(frozen=True)
class Composite:
    """Which rule acts at which site.

    Args:
        base: A name of `COMPOSITES`.
        changes: Rules that replace those of the base, by kind of site, or by a pattern of module
            names such as "layers.*.mixer.out_proj". A pattern wins over a kind, and a later
            pattern over an earlier one.

    Example:
        >>> Composite("mambalrp", {"projection": Gamma(0.1)}).rules["projection"]
        Gamma(gamma=0.1)
    """

    base: str = "mambalrp"
    changes: Mapping[str, Rule] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.base not in COMPOSITES:
            raise CompositeError(
                f"unknown composite {self.base!r}; the composites are {', '.join(COMPOSITES)}"
            )
        for key, rule in self.changes.items():
            if not isinstance(rule, Rule):
                raise CompositeError(
                    f"{key!r} was given {rule!r}, which is no rule of vimlrp.rules"
                )
            if key in SITE_KINDS:
                _check_kind(key, rule, key)

    @classmethod
    def ensure(cls, given: "str | Composite | Mapping[str, Rule | str]") -> "Composite":
        """Make a composite of a name, a mapping over a named one, or a composite.

        Args:
            given: For example "mambalrp", or {"base": "mambalrp", "projection": "gamma(0.1)"};
                without "base" the mapping stands over `mambalrp`.

        Raises:
            CompositeError: If a name or a rule is unknown.
        """
        if isinstance(given, Composite):
            return given
        if isinstance(given, str):
            return cls(given)
        if not isinstance(given, Mapping):
            raise CompositeError(
                f"a composite is a name, a mapping or a Composite, not {type(given).__name__}"
            )
        entries = dict(given)
        base = entries.pop("base", "mambalrp")
        rules = {key: parse_rule(r) if isinstance(r, str) else r for key, r in entries.items()}
        return cls(base if isinstance(base, str) else repr(base), rules)

    @property
    def rules(self) -> dict[str, Rule]:
        """The rule of every kind of site, patterns left out."""
        kinds = {key: rule for key, rule in self.changes.items() if key in SITE_KINDS}
        return {**COMPOSITES[self.base], **kinds}

    @property
    def patterns(self) -> dict[str, Rule]:
        """The rules given for patterns of module names."""
        return {key: rule for key, rule in self.changes.items() if key not in SITE_KINDS}

    def resolve(self, model: nn.Module) -> dict[nn.Module, Rule]:
        """Give every site of a model its rule.

        Args:
            model: A model built from sites.

        Raises:
            CompositeError: If a pattern matches no site, or a rule does not fit one.
        """
        sites = {name: module for name, module in model.named_modules() if isinstance(module, Site)}
        self._check_patterns(sites)
        rules = self.rules
        return {site: self._rule_of(name, site, rules) for name, site in sites.items()}

    def _rule_of(self, name: str, site: Site, rules: Mapping[str, Rule]) -> Rule:
        matching = [rule for key, rule in self.patterns.items() if fnmatchcase(name, key)]
        rule = matching[-1] if matching else rules.get(site.kind)
        if rule is None:
            raise CompositeError(f"{self.base} has no rule for {name}, a site of kind {site.kind}")
        _check_kind(site.kind, rule, name)
        return rule

    def _check_patterns(self, sites: Mapping[str, Site]) -> None:
        for key in self.patterns:
            if not any(fnmatchcase(name, key) for name in sites):
                raise CompositeError(
                    f"{key!r} is neither a kind of site ({', '.join(SITE_KINDS)}) nor a pattern "
                    f"that matches a site of this model, such as {next(iter(sites), 'none')!r}"
                )

    def __str__(self) -> str:
        return "\n".join([f"composite {self.base}", *self._lines()])

    def _lines(self) -> Iterator[str]:
        width = max(map(len, [*SITE_KINDS, *self.patterns]))
        for key, rule in {**self.rules, **self.patterns}.items():
            yield f"  {key:<{width}}  {rule}"


def _check_kind(kind: str, rule: Rule, where: str) -> None:
    if kind not in rule.kinds:
        fitting = [name for name, other in RULES.items() if kind in other.kinds]
        raise CompositeError(
            f"{rule} does not fit {where}, a site of kind {kind}; rules that do: "
            f"{', '.join(fitting)}"
        )
