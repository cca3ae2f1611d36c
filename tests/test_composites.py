"""Composites are data: named, printable, open to users, and strict."""

import pytest
from helpers import OnePatch
from torch import nn

import vimlrp
from vimlrp.attention_rules import AttnLRP, ConstantAttention, ConstantGate
from vimlrp.composites import COMPOSITES, RULES, Composite, parse_rule
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
    Share,
    ShareFactors,
    Zero,
)
from vimlrp.sites import SITE_KINDS, Site


def test_default_is_the_papers_composite_for_vision_mamba():
    assert Composite().rules == {
        "activation": Identity(),
        "step": Gradient(),
        "gate": Share(0.5, 0.5),
        "normalisation": ConstantNormaliser(),
        "batch_norm": Zero(),
        "scan": ConstantFactors(("A", "B", "C")),
        "attention": ConstantAttention(),
        "excitation": ConstantGate(),
        "pooling": Gradient(),
        "convolution": Gamma(0.25),
        "projection": Zero(),
        "head": Zero(),
        "patch_embedding": Gamma(0.25),
        "residual": Gradient(),
    }


@pytest.mark.parametrize(
    ("name", "kind", "rule"),
    [
        ("without_activation_rule", "activation", Gradient()),
        ("without_scan_rule", "scan", Gradient()),
        ("without_gate_rule", "gate", Gradient()),
        ("without_norm_rule", "normalisation", Gradient()),
        ("without_attention_rule", "attention", Gradient()),
        ("attnlrp_attention", "attention", AttnLRP()),
        ("without_gamma_rule", "convolution", Zero()),
        ("gate_to_signal", "gate", Share(1, 0)),
        ("gate_to_gate", "gate", Share(0, 1)),
        ("gamma_projections", "projection", Gamma(0.25)),
    ],
)
def test_an_ablation_changes_one_rule(name, kind, rule):
    changed = {k for k in SITE_KINDS if COMPOSITES[name][k] != COMPOSITES["mambalrp"][k]}
    assert changed == {kind}
    assert COMPOSITES[name][kind] == rule


@pytest.mark.parametrize("name", COMPOSITES)
def test_a_named_composite_has_a_fitting_rule_for_every_kind(name, vim):
    assert set(COMPOSITES[name]) == set(SITE_KINDS)
    assert all(kind in rule.kinds for kind, rule in COMPOSITES[name].items())
    resolved = Composite(name).resolve(vim)
    assert set(resolved) == {m for m in vim.modules() if isinstance(m, Site)}


@pytest.mark.parametrize("name", COMPOSITES)
def test_printing_shows_every_rule(name):
    text = str(Composite(name, {"head": Epsilon(0.5), "layers.*.mixer.out_proj": Gamma(0.1)}))
    lines = text.splitlines()
    assert lines[0] == f"composite {name}"
    shown = dict(line.split(maxsplit=1) for line in lines[1:])
    expected = {**COMPOSITES[name], "head": Epsilon(0.5), "layers.*.mixer.out_proj": Gamma(0.1)}
    assert shown == {kind: str(rule) for kind, rule in expected.items()}


def test_named_composites_cannot_be_changed():
    with pytest.raises(TypeError):
        COMPOSITES["mine"] = {}
    with pytest.raises(TypeError):
        RULES["mine"] = Zero
    with pytest.raises(AttributeError):
        Composite().base = "epsilon"


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("zero", Zero()),
        (" gamma ( 0.1 ) ", Gamma(0.1)),
        ("gamma", Gamma(0.25)),
        ("epsilon(1e-3)", Epsilon(1e-3)),
        ("share(1, 0)", Share(1.0, 0.0)),
        ("constant_factors", ConstantFactors()),
        ("constant_factors(A, C)", ConstantFactors(("A", "C"))),
        ("identity()", Identity()),
        ("flat", Flat()),
        ("box", Box()),
        ("gradient", Gradient()),
        ("constant_normaliser", ConstantNormaliser()),
        ("constant_attention", ConstantAttention()),
        ("attnlrp", AttnLRP()),
    ],
)
def test_rules_are_read_from_text(text, rule):
    assert parse_rule(text) == rule


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sharpen",
        "gamma(",
        "gamma(a)",
        "gamma(0.1, 0.2)",
        "gamma(-1)",
        "gamma(nan)",
        "epsilon(0)",
        "zero(1)",
        "constant_factors(A, Q)",
        "box(1)",
        "box(0, 1)",
        "share(1, 2, 3)",
        "Gamma",
        "gamma(0.1); zero",
    ],
)
def test_text_that_is_no_rule_is_refused(text):
    with pytest.raises(CompositeError):
        parse_rule(text)


def test_unknown_rule_is_told_which_there_are():
    with pytest.raises(CompositeError, match=r"unknown rule 'sharpen'.*gamma"):
        parse_rule("sharpen")


def test_a_mapping_stands_over_a_named_composite():
    composite = Composite.ensure({"base": "gradient_x_input", "activation": "identity"})
    assert composite.rules == {**COMPOSITES["gradient_x_input"], "activation": Identity()}
    assert Composite.ensure({"gate": Share(1, 0)}).rules == COMPOSITES["gate_to_signal"]
    assert Composite.ensure(composite) is composite


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("lrp", "unknown composite 'lrp'; the composites are mambalrp"),
        ({"base": "lrp"}, "unknown composite 'lrp'"),
        ({"base": 3}, "unknown composite"),
        ({"gate": 0.5}, "is no rule"),
        ({"gate": None}, "is no rule"),
        ({"gate": "gamma"}, r"Gamma\(gamma=0\.25\) does not fit gate.*share"),
        ({"activation": "zero"}, "does not fit activation"),
        ({"head": "flat"}, "does not fit head"),
        (["mambalrp"], "a name, a mapping or a Composite, not list"),
    ],
)
def test_composites_that_cannot_be_are_refused(given, message):
    with pytest.raises(CompositeError, match=message):
        Composite.ensure(given)


def test_a_pattern_wins_over_a_kind_and_a_later_one_over_an_earlier(vim):
    composite = Composite.ensure(
        {
            "layers.*.mixer.*_proj": "gamma(1)",
            "layers.1.mixer.out_proj": "gamma(2)",
            "projection": "gamma(3)",
            "layers.1.mixer.x_proj": "zero",
        }
    )
    rules = composite.resolve(vim)
    modules = vim.get_submodule
    assert rules[modules("layers.0.mixer.in_proj")] == Gamma(1)
    assert rules[modules("layers.1.mixer.out_proj")] == Gamma(2)
    assert rules[modules("layers.0.mixer.x_proj_b")] == Gamma(3)
    assert rules[modules("layers.1.mixer.x_proj")] == Zero()
    assert rules[modules("layers.0.mixer.conv1d")] == Gamma(0.25)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"Projection": "zero"}, "neither a kind of site .* nor a pattern"),
        ({"layers.9.*": "zero"}, r"'layers\.9\.\*' is neither"),
        ({"layers.0.mixer": "zero"}, "neither"),
        ({"layers.0.mixer.gate": "gamma"}, r"does not fit layers\.0\.mixer\.gate"),
        ({"layers.0.*": "gamma"}, "does not fit"),
    ],
)
def test_patterns_that_miss_or_do_not_fit_are_refused(vim, changes, message):
    with pytest.raises(CompositeError, match=message):
        Composite.ensure(changes).resolve(vim)


def test_a_kind_of_site_without_a_rule_is_refused():
    class Squeeze(Site):
        kind = "squeeze"

        def plain(self, x):
            return x

    model = OnePatch()
    model.extra = Squeeze()
    with pytest.raises(CompositeError, match="mambalrp has no rule for extra, a site of kind"):
        Composite().resolve(model)


def test_a_model_without_sites_gets_no_rules():
    assert Composite().resolve(nn.Linear(2, 2)) == {}


def test_every_rule_can_be_named():
    public = {Gradient, Identity, Share, ConstantNormaliser, ConstantFactors, Zero, Epsilon, Gamma}
    public |= {ConstantAttention, AttnLRP, ConstantGate, GammaSum, ShareFactors}
    assert set(RULES.values()) == public | {Flat, Box}
    assert vimlrp.COMPOSITES is COMPOSITES


@pytest.mark.parametrize("text", ["share(0.5, nan)", "share(inf, 0)"])
def test_shares_are_finite(text):
    with pytest.raises(CompositeError, match="finite"):
        parse_rule(text)
