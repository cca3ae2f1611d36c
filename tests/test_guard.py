"""The guard finds every non-linear function of the input that runs outside a site, and names it."""

import copy
import ctypes
import gc
import weakref

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F  # noqa: N812
from helpers import OnePatch, images, relative_error, small_vim
from torch import nn

import vimlrp
from vimlrp.errors import UnsupportedModelError
from vimlrp.sites import Linear, PatchEmbedding


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * ctx.saved_tensors[0] * gradient


class WithSetup(torch.autograd.Function):
    @staticmethod
    def forward(x):
        return 3 * x

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, gradient):
        return 3 * gradient


class LinearLooking(torch.autograd.Function):
    """Its forward is linear, its backward is anything."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 0


class ThroughNumpy(torch.autograd.Function):
    """Its kernel is invisible to the dispatcher."""

    @staticmethod
    def forward(ctx, x):
        return torch.from_numpy(x.detach().numpy() ** 3)

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class ThroughNumpyWithSetup(torch.autograd.Function):
    @staticmethod
    def forward(x):
        return torch.from_numpy(x.detach().numpy() ** 3)

    @staticmethod
    def setup_context(ctx, inputs, output):
        pass

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class ThroughMemory(torch.autograd.Function):
    """Its kernel reads raw memory: only the graph shows that it ran."""

    @staticmethod
    def forward(ctx, x):
        memory = x.untyped_storage()
        values = np.frombuffer(ctypes.string_at(memory.data_ptr(), memory.nbytes()))
        return torch.from_numpy(values.reshape(x.shape) ** 3)

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def no_grad(x):
    with torch.no_grad():
        return x * 2


def added_in_place(x):
    y = x * 1
    y.add_(1)
    return y


def slice_assigned(x):
    y = x.clone()
    y[:, 0] = 0
    return y


def written_into_a_buffer(x):
    y = torch.zeros(x.shape, dtype=x.dtype)
    y[:, 1:] = x[:, 1:]
    return y


def item_decides(x):
    return x * 2 if x.sum().item() > 0 else x * 3


def truth_decides(x):
    return x * 2 if x.sum() > 0 else x * 3


def through_numpy(x):
    return torch.from_numpy(x.detach().numpy() * 2.0)


def data_through_numpy(x):
    return x + torch.from_numpy(x.data.numpy() ** 2)


def data(x):
    return x + x.data * x


def stand_in_batch_norm(x):
    return nn.BatchNorm2d(1).double().eval()(x[:, None])[:, 0]


def written_out(x):
    y = torch.empty(x.shape, dtype=x.dtype)
    with torch.no_grad():
        return torch.add(x, x, out=y)


PLANTED = {
    "functional silu": (F.silu, "silu"),
    "functional gelu": (F.gelu, "gelu"),
    "sigmoid": (torch.sigmoid, "sigmoid"),
    "product of two branches": (lambda x: x * x.flip(1), "mul"),
    "matrix product of two branches": (lambda x: x @ (x.mT @ x), "bmm"),
    "quotient of two branches": (lambda x: x / x.flip(1), "div"),
    "mask of its own sign": (lambda x: x * (x > 0), "gt"),
    "softmax": (lambda x: x.softmax(-1), "softmax"),
    "in-place add": (added_in_place, "in-place operation add_"),
    "slice assignment": (slice_assigned, "in-place operation"),
    "write into a fresh buffer": (written_into_a_buffer, "in-place operation copy_"),
    "out=": (written_out, "in-place operation add"),
    "where": (lambda x: torch.where(x > 0, x, 2 * x), "gt"),
    "where on an integer copy": (lambda x: torch.where(x.bool(), x, 2 * x), "where|_to_copy"),
    "index by a dependent order": (lambda x: x[:, x[0, :, 0].argsort()], "sort"),
    "custom Function": (Square.apply, "custom autograd Function Square"),
    "custom Function with setup_context": (WithSetup.apply, "custom autograd Function WithSetup"),
    "custom Function of linear looks": (LinearLooking.apply, "Function LinearLooking"),
    "custom Function through numpy": (ThroughNumpy.apply, "ThroughNumpy"),
    "custom Function through numpy with setup_context": (
        ThroughNumpyWithSetup.apply,
        "ThroughNumpyWithSetup",
    ),
    "custom Function through raw memory": (ThroughMemory.apply, "Function ThroughMemory"),
    "sqrt": (lambda x: (x + 100).sqrt(), "sqrt"),
    "exp": (torch.exp, "exp"),
    "power": (lambda x: x**2, "pow"),
    "absolute value": (torch.abs, "abs"),
    "clamp": (lambda x: x.clamp(min=0), "clamp"),
    "rounding": (torch.round, "round"),
    "conversion to integers": (lambda x: x + x.long() * 2.0, "long|_to_copy|mul|cut"),
    "maximum": (lambda x: x.amax(-1, keepdim=True), "amax"),
    "max pooling": (lambda x: F.max_pool1d(x, 1), "pool"),
    "detach": (lambda x: x + 3 * x.detach(), "detach"),
    "data": (data, "applies data"),
    "no_grad": (no_grad, "no_grad"),
    "item": (item_decides, "_local_scalar_dense"),
    "truth value": (truth_decides, "gt|_local_scalar_dense"),
    "layer norm": (lambda x: F.layer_norm(x, x.shape[-1:]), "layer_norm"),
    "batch norm": (stand_in_batch_norm, "batch_norm"),
    "numpy": (through_numpy, "applies detach"),
    "numpy of data": (data_through_numpy, "applies data"),
    "norm": (lambda x: x + x.norm(), "norm"),
    "dot product with itself": (lambda x: x * torch.dot(x.flatten(), x.flatten()), "dot"),
    "attention": (lambda x: F.scaled_dot_product_attention(x, x, x), "attention|softmax|bmm"),
    "einsum of two branches": (lambda x: torch.einsum("bld,bkd->blk", x, x) @ x, "bmm"),
}


class Planted(nn.Module):
    """A mixer with something behind it."""

    def __init__(self, mixer, function):
        super().__init__()
        self.mixer = mixer
        self.function = function

    def forward(self, x):
        return self.function(self.mixer(x))


def planted(vim, function, place=1):
    model = copy.deepcopy(vim)
    model.layers[place].mixer = Planted(model.layers[place].mixer, function)
    return model


@pytest.mark.parametrize("defect", PLANTED)
def test_planted_defect_is_refused_by_module_and_operation(vim, defect):
    function, operation = PLANTED[defect]
    with pytest.raises(UnsupportedModelError, match=operation) as caught:
        vimlrp.explain(planted(vim, function), images(1))
    message = str(caught.value)
    if "raw memory" not in defect:  # found in the graph, after the pass
        assert "layers.1.mixer (Planted" in message
    assert "vimlrp.sites" in message
    assert "supported family: vim" in message


LINEAR_GLUE = {
    "flip": lambda x: x.flip(1),
    "permute": lambda x: x.permute(0, 2, 1).contiguous().permute(0, 2, 1),
    "roll": lambda x: x.roll(1, 1),
    "mean": lambda x: x + x.mean(dim=1, keepdim=True),
    "sum": lambda x: x + x.sum(dim=1, keepdim=True),
    "index map": lambda x: x[:, torch.arange(x.shape[1] - 1, -1, -1)],
    "gather": lambda x: x.gather(1, torch.zeros(x.shape, dtype=torch.int64)),
    "constant mask": lambda x: x * (torch.arange(x.shape[1]) % 2)[:, None],
    "constant where": lambda x: torch.where(torch.arange(x.shape[-1]) < 4, x, 2 * x),
    "masked fill": lambda x: x.masked_fill(torch.arange(x.shape[-1]) < 4, 0.0),
    "scale": lambda x: -x / 4 + (1 - x),
    "concatenation": lambda x: torch.cat([x[:, :3], x[:, 3:]], dim=1),
    "stack": lambda x: torch.stack([x, x]).sum(0),
    "split": lambda x: sum(x.chunk(2, dim=-1)).repeat(1, 1, 2),
    "upsampling": lambda x: F.interpolate(x[:, None], scale_factor=1.0, mode="bilinear")[:, 0],
    "padding": lambda x: F.pad(x, (0, 0, 1, 0))[:, 1:],
    "average pooling": lambda x: F.avg_pool1d(x, 3, 1, 1),
    "unfold": lambda x: x.unfold(1, 2, 1).sum(-1)[:, :1] + x,
    "expand": lambda x: x + x[:, :1].expand_as(x),
    "einsum with a constant": lambda x: torch.einsum("bld,de->ble", x, torch.eye(16).double()),
    "dropout in evaluation": lambda x: F.dropout(x, 0.5, training=False),
    "cumulative sum": lambda x: x.cumsum(1),
    "shape arithmetic": lambda x: x * x.shape[1] + torch.zeros_like(x),
}


@pytest.mark.parametrize("glue", LINEAR_GLUE)
def test_linear_glue_passes_and_conserves(bias_free_vim, glue):
    model = planted(bias_free_vim, LINEAR_GLUE[glue], place=0)
    relevance = vimlrp.explain(model, images(2))
    if glue != "scale":  # it adds a constant
        target = relevance.account.target
        assert relative_error(relevance.tokens.sum(1), target) < 1e-9


@pytest.mark.parametrize(
    "module",
    [nn.Linear(16, 16, bias=False), nn.Conv1d(17, 17, 1, bias=False)],
    ids=["linear", "conv"],
)
def test_linear_layers_of_torch_pass_and_conserve(bias_free_vim, module):
    model = planted(bias_free_vim, module.double(), place=0)
    relevance = vimlrp.explain(model, images(2))
    assert relative_error(relevance.tokens.sum(1), relevance.account.target) < 1e-9


def test_multiplication_by_a_parameter_passes(bias_free_vim):
    scale = nn.Parameter(torch.linspace(0.5, 2, 16).double())
    model = planted(bias_free_vim, lambda x: x * scale, place=0)
    relevance = vimlrp.explain(model, images(2))
    assert relative_error(relevance.tokens.sum(1), relevance.account.target) < 1e-9
    assert scale.grad is None


def test_linear_layer_with_a_bias_leaves_it_in_the_residue(bias_free_vim):
    layer = nn.Linear(16, 16).double()
    model = planted(bias_free_vim, layer, place=0)
    relevance = vimlrp.explain(model, images(2))
    assert relevance.account.residue.abs().min() > 1e-6
    with torch.no_grad():
        layer.bias.zero_()
    assert vimlrp.explain(model, images(2)).account.residue.abs().max() < 1e-12


class Detour(nn.Module):
    """A mixer that hands one branch to its gate behind a no_grad block."""

    def __init__(self, mixer):
        super().__init__()
        self.inner = mixer

    def forward(self, x):
        mixer = self.inner
        a, b = mixer.in_proj(x).chunk(2, dim=-1)
        with torch.no_grad():
            a = mixer.conv1d(a)
        return mixer.out_proj(mixer.gate(a, mixer.gate_act(b)))


def test_no_grad_block_that_ends_in_a_site_is_refused(vim):
    model = copy.deepcopy(vim)
    model.layers[1].mixer = Detour(model.layers[1].mixer)
    with pytest.raises(UnsupportedModelError, match="cuts the gradient"):
        vimlrp.explain(model, images(1))


def test_defect_in_the_head_is_named(vim):
    model = copy.deepcopy(vim)
    model.head = nn.Sequential(model.head, nn.Softmax(-1))
    with pytest.raises(UnsupportedModelError, match=r"head\.1 \(Softmax.*softmax"):
        vimlrp.explain(model, images(1))


def test_defect_in_the_model_itself_is_named(vim):
    class Sharpened(type(vim)):
        def forward_head(self, x, pre_logits=False):
            return super().forward_head(x, pre_logits).exp()

    model = copy.deepcopy(vim)
    model.__class__ = Sharpened
    with pytest.raises(UnsupportedModelError, match=r"the model itself \(Sharpened.*exp"):
        vimlrp.explain(model, images(1))


@pytest.mark.parametrize("method", ["explain", "check_conservation"])
@pytest.mark.parametrize("name", ["edgenext_xx_small", "xcit_nano_12_p16_224"])
def test_models_without_sites_are_refused_with_help(name, method):
    model = timm.create_model(name)
    with pytest.raises(UnsupportedModelError) as caught:
        getattr(vimlrp, method)(model.eval(), images(1, 64, dtype=torch.float32))
    assert any(word in str(caught.value) for word in ("vim", "complete_cuts"))


def test_linear_model_without_a_patch_embedding_is_refused():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).double()
    with pytest.raises(UnsupportedModelError, match="no patch embedding site"):
        vimlrp.explain(model, images(1, 2))


def test_output_that_does_not_depend_on_the_input_is_refused():
    class Deaf(OnePatch):
        def forward(self, x):
            super().forward(x)
            return torch.ones(len(x), 3, dtype=x.dtype)

    with pytest.raises(UnsupportedModelError, match="does not depend on its input"):
        vimlrp.explain(Deaf(), images(1, 6))


class Counted(OnePatch):
    def __init__(self):
        super().__init__()
        self.forwards = 0

    def forward(self, x):
        self.forwards += 1
        return super().forward(x)


def test_verdict_is_kept_per_model_shape_and_composite():
    model = Counted()
    vimlrp.explain(model, images(1, 6))
    assert model.forwards == 2
    vimlrp.explain(model, images(3, 6))
    assert model.forwards == 3
    vimlrp.explain(model, images(1, 6), composite="gradient_x_input")
    assert model.forwards == 5
    vimlrp.explain(model.float(), images(1, 6, dtype=torch.float32))
    assert model.forwards == 7


def test_refusal_is_not_taken_for_a_verdict(vim):
    model = planted(vim, F.silu)
    for _ in range(2):
        with pytest.raises(UnsupportedModelError):
            vimlrp.explain(model, images(1))


def test_verdict_is_taken_anew_when_a_module_is_replaced():
    model = Counted()
    vimlrp.explain(model, images(1, 6))
    model.head = Linear(4, 3, kind="head").double()
    vimlrp.explain(model, images(1, 6))
    assert model.forwards == 4
    model.head = nn.Sequential(model.head, nn.GELU())
    with pytest.raises(UnsupportedModelError, match="gelu"):
        vimlrp.explain(model, images(1, 6))


def test_verdict_is_taken_anew_when_a_forward_is_patched():
    model = Counted()
    vimlrp.explain(model, images(1, 6))
    plain = model.head.forward
    model.head.forward = lambda x: plain(x).tanh()
    with pytest.raises(UnsupportedModelError, match="tanh"):
        vimlrp.explain(model, images(1, 6))


def test_verdict_is_taken_anew_when_a_hook_is_added():
    model = Counted()
    vimlrp.explain(model, images(1, 6))
    model.head.register_forward_hook(lambda module, args, output: output.tanh())
    with pytest.raises(UnsupportedModelError, match="tanh"):
        vimlrp.explain(model, images(1, 6))


def test_own_passes_outside_an_explanation_stay_plain(vim):
    x = images(1)
    with pytest.raises(UnsupportedModelError):
        vimlrp.explain(planted(vim, F.silu), x)
    leaf = x.clone().requires_grad_()
    vim(leaf).sum().backward()
    assert leaf.grad.abs().sum() > 0
    assert (F.silu(x * x) > -1).all()
    vim.zero_grad()


def test_nothing_is_left_behind_after_refusing(vim):
    model = planted(vim, F.silu)
    model.train()
    flags = {name: module.training for name, module in model.named_modules()}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UnsupportedModelError):
        vimlrp.explain(model, images(1), record=["layers.0"])
    assert {name: module.training for name, module in model.named_modules()} == flags
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_a_model_can_be_freed_after_its_verdict():
    model = OnePatch()
    vimlrp.explain(model, images(1, 6))
    alive = weakref.ref(model)
    del model
    gc.collect()
    assert alive() is None


class Mirrored(OnePatch):
    def forward(self, x):
        return super().forward(x.flip(-1))


class Normalising(OnePatch):
    def forward(self, x):
        return super().forward((x - 0.5) / 2)


class Padding(OnePatch):
    def forward(self, x):
        return super().forward(F.pad(x, (0, 1, 0, 1)))


class Stem(OnePatch):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 3, 1, bias=False).double()

    def forward(self, x):
        return super().forward(self.stem(x))


@pytest.mark.parametrize("model_class", [Mirrored, Normalising, Padding, Stem])
def test_patch_embedding_that_reads_something_else_is_refused(model_class):
    with pytest.raises(UnsupportedModelError, match="proj does not read the model's input"):
        vimlrp.explain(model_class(), images(1, 6))


def test_patch_embedding_may_read_a_copy():
    class Copying(OnePatch):
        def forward(self, x):
            return super().forward(x.clone().contiguous())

    assert vimlrp.explain(Copying(), images(1, 6)).account.residue.abs().max() < 1e-12


def test_two_patch_embeddings_are_refused():
    class Twice(OnePatch):
        def __init__(self):
            super().__init__()
            self.second = PatchEmbedding(3, 4, 6, 6).double()

        def forward(self, x):
            return super().forward(x) + self.head(self.second(x).flatten(1))

    with pytest.raises(UnsupportedModelError, match=r"second.*a second patch embedding"):
        vimlrp.explain(Twice(), images(1, 6))


def test_a_way_around_the_patch_embedding_is_refused():
    class Around(OnePatch):
        def __init__(self):
            super().__init__()
            self.shortcut = Linear(108, 3).double()

        def forward(self, x):
            return super().forward(x) + self.shortcut(x.flatten(1))

    with pytest.raises(UnsupportedModelError, match="cuts the gradient"):
        vimlrp.explain(Around(), images(1, 6))


def test_verdict_does_not_depend_on_grad_mode():
    model = small_vim(seed=9)
    with torch.no_grad():
        relevance = vimlrp.explain(model, images(1))
    assert relevance.account.residue.abs().max() < 1e-10
