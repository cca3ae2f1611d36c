"""A whole Vim explained a second time: an explicit z-rule recursion in numpy, without autograd.

Written from the equations: nothing here uses the rules, the sites or the model's own code, only its
weights. Relevance is passed as R_i = sum_k z_ki / z_k R_k with every z_ki written out.
"""

import numpy as np
import pytest
import torch
from helpers import OnePatch, images, random, relative_error, small_vim

import vimlrp
from vimlrp.input_rules import Box

GAMMA = 0.25
EPS = 1e-5
AGREE = 1e-9


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softplus(x):
    return np.log1p(np.exp(-np.abs(x))) + np.maximum(x, 0)


def shares(contributions, gamma=0.0):
    """What part of its relevance an output gives to each contribution along the first axis."""
    z = contributions.sum(0)
    winning = np.where(z > 0, np.maximum(contributions, 0), np.minimum(contributions, 0))
    weighed = contributions + gamma * winning
    return weighed / weighed.sum(0)


def linear_relevance(x, weight, relevance, bias=None):
    """LRP-0 through rows of x (T, I) times weight (O, I)."""
    contributions = x.T[:, :, None] * weight.T[:, None, :]  # (I, T, O)
    if bias is not None:
        contributions = np.concatenate(
            [contributions, np.broadcast_to(bias, (1, *relevance.shape))]
        )
    return (shares(contributions) * relevance).sum(-1)[: x.shape[1]].T


class Direction:
    """Convolution, activation and scan of one direction, on a sequence already in its order."""

    def __init__(self, weights, suffix, x):
        self.x = x
        self.taps = weights[f"conv1d{suffix}.weight"][:, 0]  # (E, width)
        self.conv_bias = weights[f"conv1d{suffix}.bias"]
        self.v = self.conv_contributions().sum(0)
        self.u = self.v * sigmoid(self.v)
        self.A = -np.exp(weights[f"A{suffix}_log"])
        self.D = weights[f"D{suffix}"]
        states = self.A.shape[1]
        low = self.u @ weights[f"x_proj{suffix}.weight"].T
        rank = low.shape[1] - 2 * states
        self.B, self.C = low[:, rank : rank + states], low[:, rank + states :]
        step = low[:, :rank] @ weights[f"dt_proj{suffix}.weight"].T
        self.dt = softplus(step + weights[f"dt_proj{suffix}.bias"])
        self.run()

    def conv_contributions(self):
        """Each tap's and the bias's part of the convolution, (width + 1, L, E)."""
        length, channels = self.x.shape
        width = self.taps.shape[1]
        parts = np.zeros((width + 1, length, channels))
        for t in range(length):
            for tap in range(width):
                source = t - (width - 1) + tap
                if source >= 0:
                    parts[tap, t] = self.taps[:, tap] * self.x[source]
        parts[width] = self.conv_bias
        return parts

    def run(self):
        length, channels = self.u.shape
        shape = (length, channels, self.A.shape[1])
        self.kept, self.driven, self.h = np.zeros(shape), np.zeros(shape), np.zeros(shape)
        for t in range(length):
            if t:
                self.kept[t] = np.exp(self.dt[t][:, None] * self.A) * self.h[t - 1]
            self.driven[t] = self.dt[t][:, None] * self.B[t] * self.u[t][:, None]
            self.h[t] = self.kept[t] + self.driven[t]
        self.read = self.C[:, None] * self.h  # (L, E, N)
        self.skip = self.D * self.u
        self.y = self.read.sum(-1) + self.skip

    def relevance(self, at_y, gamma):
        """From the scan's output down to the convolution's input, (L, E)."""
        at_u = self.skip / self.y * at_y
        carried = np.zeros(self.h.shape[1:])
        for t in reversed(range(len(at_y))):
            at_h = carried + self.read[t] / self.y[t][:, None] * at_y[t][:, None]
            at_u[t] += (self.driven[t] / self.h[t] * at_h).sum(-1)
            carried = self.kept[t] / self.h[t] * at_h
        # Identity rule: the convolution's output receives what its activation received.
        return self.conv_relevance(at_u, gamma)

    def conv_relevance(self, at_v, gamma):
        parts = shares(self.conv_contributions(), gamma) * at_v
        width = self.taps.shape[1]
        at_x = np.zeros_like(self.x)
        for t in range(len(at_x)):
            for tap in range(width):
                source = t - (width - 1) + tap
                if source >= 0:
                    at_x[source] += parts[tap, t]
        return at_x


class IndependentVim:
    """One image (3, H, W) through a Vim, and its relevance back."""

    def __init__(self, weights, image, stride, place):
        self.weights, self.image, self.stride, self.known = weights, image, stride, {}
        self.kernel = weights["patch_embed.proj.weight"].shape[-1]
        height, width = image.shape[1:]
        self.rows, self.columns = ((s - self.kernel) // stride + 1 for s in (height, width))
        self.embed(place)
        self.blocks, self.residuals, self.normed = [], [], []
        hidden, residual = self.tokens, None
        depth = 1 + max(int(k.split(".")[1]) for k in weights if k.startswith("layers."))
        for i in range(depth):
            prefix = f"layers.{i}."
            part = {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
            mixer = {k.removeprefix("mixer."): v for k, v in part.items() if k.startswith("mixer.")}
            summands = (hidden, np.zeros_like(hidden) if residual is None else residual)
            residual = summands[0] + summands[1]
            n = self.norm(residual, part["norm.weight"])
            block = self.mix(mixer, n)
            self.blocks.append((summands, n, mixer, block))
            hidden = block["out"]
        self.last = (hidden, residual)
        self.final = self.norm(hidden + residual, weights["norm_f.weight"])
        self.pooled = self.final[self.special[0]]
        self.logits = weights["head.weight"] @ self.pooled + weights["head.bias"]

    def windows(self):
        for i in range(self.rows):
            for j in range(self.columns):
                top, left = i * self.stride, j * self.stride
                yield slice(top, top + self.kernel), slice(left, left + self.kernel)

    def embed(self, place):
        weight = self.weights["patch_embed.proj.weight"]
        self.content = np.stack(
            [(weight * self.image[:, r, c]).sum((1, 2, 3)) for r, c in self.windows()]
        )
        patches = self.content + self.weights["patch_embed.proj.bias"]
        count = len(patches)
        index = {"middle": count // 2, "head": 0, "tail": count}[place]
        self.special = [index]
        self.patch_rows = [t for t in range(count + 1) if t != index]
        sequence = np.concatenate([patches[:index], self.weights["cls_token"][0], patches[index:]])
        self.tokens = sequence + self.weights["pos_embed"][0]

    @staticmethod
    def norm(x, weight):
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + EPS) * weight

    @staticmethod
    def mix(weights, n):
        x, z = np.split(n @ weights["in_proj.weight"].T, 2, axis=1)
        forward = Direction(weights, "", x)
        backward = Direction(weights, "_b", x[::-1])
        gate = z * sigmoid(z)
        gated = [forward.y * gate / 2, backward.y[::-1] * gate / 2]
        out = (gated[0] + gated[1]) @ weights["out_proj.weight"].T
        return {"directions": (forward, backward), "gated": gated, "out": out}

    def relevance(self, target, gamma):
        """Of the tokens' channels, (L, D)."""
        at_pooled = linear_relevance(
            self.pooled[None],
            self.weights["head.weight"][target : target + 1],
            self.logits[None, target : target + 1],
            self.weights["head.bias"][target : target + 1],
        )
        at_sum = np.zeros_like(self.final)
        at_sum[self.special[0]] = at_pooled[0]
        total = self.last[0] + self.last[1]
        at_hidden, at_residual = (part / total * at_sum for part in self.last)
        for summands, n, weights, block in reversed(self.blocks):
            at_residual = at_residual + self.mixer_relevance(n, weights, block, at_hidden, gamma)
            total = summands[0] + summands[1]
            at_hidden, at_residual = (part / total * at_residual for part in summands)
        return at_hidden + at_residual

    @staticmethod
    def mixer_relevance(n, weights, block, at_out, gamma):
        gated = block["gated"]
        total = gated[0] + gated[1]
        at_total = linear_relevance(total, weights["out_proj.weight"], at_out)
        at_x, at_z = 0, 0
        for k, direction in enumerate(block["directions"]):
            at_product = gated[k] / total * at_total
            at_z = at_z + at_product / 2
            at_y = at_product / 2
            turned = direction.relevance(at_y[::-1] if k else at_y, gamma)
            at_x = at_x + (turned[::-1] if k else turned)
        return linear_relevance(n, weights["in_proj.weight"], np.concatenate([at_x, at_z], 1))

    def explain(self, target, gamma):
        if (target, gamma) not in self.known:
            self.known[target, gamma] = self.relevance(target, gamma)
        return self.known[target, gamma]

    def content_relevance(self, at_tokens):
        """The share of the patches' content in their tokens, (M, D)."""
        return self.content / self.tokens[self.patch_rows] * at_tokens[self.patch_rows]

    def pixels(self, at_content, rule):
        """(H, W): each output's relevance over the pixels of its window."""
        weight = self.weights["patch_embed.proj.weight"]
        out = np.zeros(self.image.shape)
        for (rows, columns), relevance in zip(self.windows(), at_content, strict=True):
            window = self.image[:, rows, columns]
            for d, share in enumerate(relevance):
                out[:, rows, columns] += share * rule(window, weight[d])
        return out.sum(0)


def zero_shares(window, weight):
    return shares((window * weight).reshape(-1)).reshape(window.shape)


def gamma_shares(window, weight):
    return shares((window * weight).reshape(-1), GAMMA).reshape(window.shape)


def flat_shares(window, weight):
    return np.full(window.shape, 1 / window.size)


def box_shares(window, weight):
    low, high = (np.array(bound).reshape(3, 1, 1) for bound in (Box().low, Box().high))
    parts = window * weight - low * np.maximum(weight, 0) - high * np.minimum(weight, 0)
    return parts / parts.sum()


PATCH_RULES = {"gamma": gamma_shares, "zero": zero_shares, "flat": flat_shares, "box": box_shares}

CASES = {
    "middle": {"class_token": "middle", "depth": 3},
    "head": {"class_token": "head"},
    "tail, overlapping patches": {"class_token": "tail", "stride": 4, "img_size": 24},
}


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """A model, its images, and an independent run of each image."""
    options = CASES[request.param]
    model = small_vim(seed=3, **options)
    x = images(2, options.get("img_size", 32), seed=8)
    weights = {k: v.numpy() for k, v in model.state_dict().items()}
    stride = options.get("stride", 8)
    runs = [IndependentVim(weights, row.numpy(), stride, options["class_token"]) for row in x]
    return model, x, runs


def test_logits_agree(case):
    model, x, runs = case
    with torch.no_grad():
        logits = model(x)
    assert relative_error(logits, np.stack([run.logits for run in runs])) < 1e-12


@pytest.mark.parametrize(("composite", "gamma"), [("mambalrp", GAMMA), ("without_gamma_rule", 0.0)])
def test_token_relevances_agree(case, composite, gamma):
    model, x, runs = case
    ours = vimlrp.explain(model, x, target=[1, 3], composite=composite).tokens
    for i, (run, target) in enumerate(zip(runs, (1, 3), strict=True)):
        assert relative_error(ours[i], run.explain(target, gamma).sum(-1)) < AGREE


def test_gamma_moves_the_map_by_more_than_any_tolerance_here(case):
    _, _, runs = case
    with_gamma = runs[0].explain(1, GAMMA).sum(-1)
    assert relative_error(with_gamma, runs[0].explain(1, 0.0).sum(-1)) > 1e-3


@pytest.mark.parametrize("rule", PATCH_RULES)
def test_patch_and_pixel_relevances_agree(case, rule):
    model, x, runs = case
    ours = vimlrp.explain(model, x, target=2, composite={"patch_embedding": rule})
    for i, run in enumerate(runs):
        at_content = run.content_relevance(run.explain(2, GAMMA))
        patches = at_content.sum(-1).reshape(run.rows, run.columns)
        assert relative_error(ours.patches[i], patches) < AGREE
        assert relative_error(ours.pixels[i], run.pixels(at_content, PATCH_RULES[rule])) < AGREE


def test_account_agrees(case):
    model, x, runs = case
    parts = vimlrp.explain(model, x, target=2).account.parts
    for i, run in enumerate(runs):
        at_tokens = run.explain(2, GAMMA)
        position = run.weights["pos_embed"][0] / run.tokens * at_tokens
        special = run.weights["cls_token"][0] / run.tokens[run.special] * at_tokens[run.special]
        bias = run.weights["patch_embed.proj.bias"]
        patch_bias = bias / run.tokens[run.patch_rows] * at_tokens[run.patch_rows]
        head = run.weights["head.bias"][2]
        for kind, expected in [
            ("position embedding", position.sum()),
            ("class token", special.sum()),
            ("bias: patch_embedding", patch_bias.sum()),
            ("bias: head", head),
            ("pixels", run.content_relevance(at_tokens).sum()),
        ]:
            assert float(parts[kind][i]) == pytest.approx(float(expected), rel=1e-8), kind


@pytest.mark.parametrize("rule", ["zero", "gamma(0)"])
def test_pixels_of_a_linear_one_patch_model_are_x_times_w_transposed_g(rule):
    model = OnePatch()
    x, target = random(2, 3, 6, 6), 1
    pixels = vimlrp.explain(model, x, target=target, composite={"patch_embedding": rule}).pixels
    gradient = torch.einsum("d,dcij->cij", model.head.weight[target], model.proj.weight).detach()
    assert relative_error(pixels, (x * gradient).sum(1)) < 1e-14
