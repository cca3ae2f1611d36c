"""Relevance sums to the target, cut by cut, and where it does not, the place is named."""

import sys

import pytest
import torch
from helpers import OnePatch, images, relative_error, small_vim
from torch import nn

import vimlrp
from vimlrp.errors import MissingDependencyError, UnsupportedModelError

LAYOUTS = {
    "middle": {},
    "head": {"class_token": "head"},
    "tail": {"class_token": "tail"},
    "double": {"class_token": "double"},
    "none": {"class_token": "none", "global_pool": "avg"},
    "overlapping": {"stride": 4, "img_size": 24},
    "undivided": {"divide_out": False},
    "not square": {"img_size": (24, 40)},
    "border left over": {"img_size": 30},
}


def picture(options, dtype=torch.float64):
    size = options.get("img_size", 32)
    height, width = size if isinstance(size, tuple) else (size, size)
    generator = torch.Generator().manual_seed(2)
    return torch.randn(3, 3, height, width, generator=generator, dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_cut_sums_to_the_target_without_biases(layout):
    model = small_vim(biases=False, **LAYOUTS[layout])
    conservation = vimlrp.check_conservation(model, picture(LAYOUTS[layout]), tolerance=1e-9)
    assert conservation.holds
    assert conservation.broken == ()
    for cut in conservation.cuts:
        assert relative_error(cut.relevance, conservation.target) < 1e-9, cut.name


@pytest.mark.parametrize("target", [None, 3])
def test_every_cut_sums_to_the_target_in_float32(target):
    model = small_vim(biases=False, depth=3, embed_dim=32, dtype=torch.float32)
    x = images(4, dtype=torch.float32)
    for sample in x:
        conservation = vimlrp.check_conservation(model, sample, target=target, tolerance=1e-5)
        assert [c.name for c in conservation.cuts if conservation.error_of(c) > 1e-5] == []


def test_cuts_run_from_the_input_to_the_output(bias_free_vim):
    conservation = vimlrp.check_conservation(bias_free_vim, images())
    names = [cut.name for cut in conservation.cuts]
    assert names == ["token_sum", "layers.0", "layers.1", "norm_f", "head"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_with_biases_only_rounding_is_unaccounted_for(layout):
    model, x = small_vim(**LAYOUTS[layout]), picture(LAYOUTS[layout])
    conservation = vimlrp.check_conservation(model, x, tolerance=1e-9)
    assert conservation.holds
    assert conservation.broken == ()
    assert any(float(cut.absorbed.abs().max()) > 1e-3 for cut in conservation.cuts)
    relevance = vimlrp.explain(model, x)
    assert relevance.account.residue.abs().max() < 1e-12
    assert relative_error(relevance.tokens.sum(1), conservation.cuts[0].relevance) < 1e-12


def test_with_biases_only_rounding_is_unaccounted_for_in_float32(registered_vim):
    relevance = vimlrp.explain(registered_vim, images(4, 64, dtype=torch.float32))
    residue = relevance.account.residue / relevance.account.target
    assert residue.abs().max() < 1e-4


@pytest.mark.parametrize("patch_rule", ["zero", "gamma", "flat", "box"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_pixels_and_patches_have_one_sum(layout, patch_rule):
    model, x = small_vim(**LAYOUTS[layout]), picture(LAYOUTS[layout])
    relevance = vimlrp.explain(model, x, composite={"patch_embedding": patch_rule})
    pixels, patches = (m.flatten(1).sum(1) for m in (relevance.pixels, relevance.patches))
    assert relative_error(pixels, patches) < 1e-11
    assert relative_error(relevance.account.parts["pixels"], pixels) < 1e-14
    assert relevance.account.residue.abs().max() < 1e-11


def test_the_account_of_tokens_adds_up(vim):
    relevance = vimlrp.explain(vim, images())
    parts = relevance.account.parts
    at_tokens = sum(
        parts[kind]
        for kind in ("pixels", "class token", "position embedding", "bias: patch_embedding")
    )
    assert relative_error(at_tokens, relevance.tokens.sum(1)) < 1e-11


def test_border_that_no_patch_reads_has_no_relevance():
    relevance = vimlrp.explain(small_vim(img_size=30), images(1, 30))
    assert relevance.pixels[:, 24:].abs().max() == 0
    assert relevance.pixels[:, :, 24:].abs().max() == 0
    assert relevance.pixels[:, :24, :24].abs().min() > 0


ABLATIONS = {
    "without_activation_rule": "activation",
    "without_gate_rule": "gate",
    "without_norm_rule": "normalisation",
    "without_scan_rule": "scan",
}


@pytest.mark.parametrize("composite", ABLATIONS)
def test_dropping_one_rule_breaks_conservation_at_its_sites_alone(bias_free_vim, composite):
    conservation = vimlrp.check_conservation(
        bias_free_vim, images(), composite=composite, tolerance=1e-9
    )
    assert not conservation.holds
    kinds = {site.kind for site in conservation.broken}
    # Without the scan's rule relevance also runs through the step size: a softplus, and biases.
    allowed = {"scan", "step"} if composite == "without_scan_rule" else {ABLATIONS[composite]}
    assert ABLATIONS[composite] in kinds
    assert kinds <= allowed
    assert composite.split("_")[1][:4] in str(conservation) or "broken at" in str(conservation)


@pytest.mark.parametrize("composite", ["gate_to_signal", "gate_to_gate", "without_gamma_rule"])
def test_other_ways_to_share_conserve_too(bias_free_vim, composite):
    x = images()
    assert vimlrp.check_conservation(bias_free_vim, x, composite=composite, tolerance=1e-9).holds


@pytest.mark.parametrize("composite", ["gate_to_signal", "gate_to_gate"])
def test_gate_variants_account_for_biases_on_the_side_that_gets_nothing(vim, composite):
    account = vimlrp.explain(vim, images(), composite=composite).account
    assert account.residue.abs().max() < 1e-12
    share = account.parts["bias: convolution"].abs().max()
    assert (share > 0) == (composite == "gate_to_signal")


@pytest.mark.parametrize("composite", ["epsilon", "gamma_projections"])
def test_rules_of_linear_layers_conserve_with_what_they_absorb(vim, composite):
    x = images()
    conservation = vimlrp.check_conservation(vim, x, composite=composite, tolerance=1e-9)
    assert conservation.holds, str(conservation)
    assert vimlrp.explain(vim, x, composite=composite).account.residue.abs().max() < 1e-11


def test_epsilon_large_enough_to_matter_stands_in_the_account(vim):
    composite = {"projection": "epsilon(0.5)", "patch_embedding": "epsilon(0.1)"}
    account = vimlrp.explain(vim, images(), composite=composite).account
    assert (account.parts["stabiliser"] / account.target).abs().min() > 1e-3
    assert account.residue.abs().max() < 1e-11


def test_one_broken_site_is_named_among_all_others(bias_free_vim):
    conservation = vimlrp.check_conservation(
        bias_free_vim,
        images(),
        composite={"layers.1.mixer.gate": "gradient"},
        tolerance=1e-9,
    )
    assert [site.name for site in conservation.broken] == ["layers.1.mixer.gate"]
    held = {c.name for c in conservation.cuts if conservation.error_of(c) < 1e-9}
    assert held == {"layers.1", "norm_f", "head"}
    assert "broken at layers.1.mixer.gate (gate, Gradient())" in str(conservation)
    (site,) = conservation.broken
    assert relative_error(site.passed, 2 * site.received) < 1e-9


def test_broken_sites_come_worst_first(bias_free_vim):
    conservation = vimlrp.check_conservation(
        bias_free_vim, images(), composite="gradient_x_input", tolerance=1e-9
    )
    gaps = [float((s.gap / conservation.target).abs().max()) for s in conservation.broken]
    assert len(gaps) > 5
    assert gaps == sorted(gaps, reverse=True)


def test_every_site_that_relevance_passes_above_the_first_cut_is_weighed(bias_free_vim):
    conservation = vimlrp.check_conservation(bias_free_vim, images())
    names = {site.name for site in conservation.sites}
    mixer = {"in_proj", "conv1d", "conv1d_b", "act", "scan", "gate_act", "gate", "out_proj"}
    expected = {f"layers.{i}.mixer.{name}" for i in range(2) for name in mixer}
    expected |= {"layers.0.norm", "layers.1.norm", "layers.1.residual"}
    expected |= {"residual", "norm_f", "head"}
    assert names == expected


@pytest.mark.parametrize("contrast", [None, 0])
def test_target_and_contrast_reach_the_check(vim, contrast):
    x = images()
    conservation = vimlrp.check_conservation(vim, x, target=2, contrast=contrast)
    logits = vim(x).detach()
    expected = logits[:, 2] - (0 if contrast is None else logits[:, 0])
    assert relative_error(conservation.target, expected) < 1e-12


def test_text_says_verdict_cuts_and_numbers(bias_free_vim):
    text = str(vimlrp.check_conservation(bias_free_vim, images()))
    assert "conservation holds" in text
    for name in ("token_sum", "layers.0", "layers.1", "norm_f", "head"):
        assert name in text


@pytest.mark.parametrize("suffix", ["png", "pdf", "svg"])
def test_plot_writes_a_picture(bias_free_vim, tmp_path, suffix):
    pytest.importorskip("matplotlib")
    conservation = vimlrp.check_conservation(bias_free_vim, images())
    path = conservation.plot(tmp_path / "new" / f"scatter.{suffix}", cut="layers.0")
    assert path.stat().st_size > 1000
    assert list(path.parent.iterdir()) == [path]


def test_plot_of_an_unknown_cut_says_which_there_are(bias_free_vim, tmp_path):
    pytest.importorskip("matplotlib")
    conservation = vimlrp.check_conservation(bias_free_vim, images())
    with pytest.raises(vimlrp.VimLRPError, match="token_sum"):
        conservation.plot(tmp_path / "x.png", cut="layers.9")


def test_plot_without_matplotlib_says_how_to_install_it(bias_free_vim, tmp_path, monkeypatch):
    conservation = vimlrp.check_conservation(bias_free_vim, images())
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'vimlrp\[plot\]'"):
        conservation.plot(tmp_path / "x.png")
    assert list(tmp_path.iterdir()) == []


def test_model_that_does_not_list_its_cuts_is_told_to():
    with pytest.raises(UnsupportedModelError, match=r"complete_cuts\(\)"):
        vimlrp.check_conservation(OnePatch(), images(1, 6))


def test_a_site_used_twice_is_accounted_for_once():
    class Twice(OnePatch):
        def __init__(self):
            super().__init__(classes=4)
            with torch.no_grad():
                self.head.bias.copy_(torch.arange(4) + 1.0)

        def forward(self, x):
            return self.head(super().forward(x))

        def complete_cuts(self):
            return ("token_sum",)

    conservation = vimlrp.check_conservation(Twice(), images(1, 6), tolerance=1e-9)
    assert conservation.holds, str(conservation)
    assert conservation.broken == ()


@pytest.mark.parametrize("composite", ["mambalrp", "gradient_x_input"])
def test_check_and_explanation_agree(vim, composite):
    x = images()
    conservation = vimlrp.check_conservation(vim, x, composite=composite)
    relevance = vimlrp.explain(vim, x, composite=composite)
    assert relative_error(relevance.tokens.sum(1), conservation.cuts[0].relevance) < 1e-12


def test_linear_glue_of_the_user_is_inside_the_cuts(bias_free_vim):
    class Glued(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner
            self.glue = nn.Linear(5, 5, bias=False).double()

        def forward(self, x):
            return self.glue(self.inner(x))

        def complete_cuts(self):
            return tuple(f"inner.{name}" for name in self.inner.complete_cuts())

    assert vimlrp.check_conservation(Glued(bias_free_vim), images(), tolerance=1e-9).holds
