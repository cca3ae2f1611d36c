"""A whole VMamba explained a second time: an explicit z-rule recursion in numpy, without autograd.

Written from the equations: nothing here uses the rules, the sites or the model's own code, only its
weights. Every step returns its output and what takes the relevance of that to its input,
R_i = sum_k z_ki / z_k R_k with every z_ki written out.
"""

import numpy as np
import pytest
import torch
from helpers import images, relative_error
from small_vmamba import GENERATIONS, small_vmamba
from test_independent import linear_relevance, shares, sigmoid, softplus

import vimlrp

GAMMA = 0.25
EPS = 1e-5
AGREE, AGREE_SINGLE = 1e-9, 1e-4


def part(weights, prefix):
    """The weights below a prefix."""
    return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}


def rows(x):
    return x.reshape(-1, x.shape[-1])


def projected(x, weight, bias=None):
    """A linear layer on the last axis."""
    out = rows(x) @ weight.T + (0 if bias is None else bias)

    def back(relevance):
        return linear_relevance(rows(x), weight, rows(relevance), bias).reshape(x.shape)

    return out.reshape(*x.shape[:-1], -1), back


def normalised(x, weight, bias):
    """Layer norm with a constant divisor: every output takes from every input of its row."""
    centred = rows(x) - rows(x).mean(-1, keepdims=True)
    sigma = np.sqrt((centred**2).mean(-1, keepdims=True) + EPS)
    out = centred / sigma * weight + bias
    channels = x.shape[-1]

    def back(relevance):
        centring = np.eye(channels) - 1 / channels
        parts = (weight / sigma)[:, :, None] * centring * rows(x)[:, None, :]  # (T, K, I)
        return (parts / out[:, :, None] * rows(relevance)[:, :, None]).sum(1).reshape(x.shape)

    return out.reshape(x.shape), back


def convolved(x, weight, bias, stride, padding, gamma, groups=1):
    """A convolution of a map (H, W, C)."""
    outputs, inputs, kernel, _ = weight.shape
    padded = np.pad(x, ((padding, padding), (padding, padding), (0, 0)))
    height, width = ((s - kernel) // stride + 1 for s in padded.shape[:2])
    first = np.arange(outputs) // (outputs // groups) * inputs
    channel = first[:, None] + np.arange(inputs)  # (D, I)
    out, taken = np.zeros((height, width, outputs)), {}
    for i in range(height):
        for j in range(width):
            top, left = i * stride, j * stride
            window = padded[top : top + kernel, left : left + kernel]
            parts = window[:, :, channel] * weight.transpose(2, 3, 0, 1)  # (k, k, D, I)
            flat = parts.transpose(0, 1, 3, 2).reshape(-1, outputs)
            flat = flat if bias is None else np.concatenate([flat, bias[None]])
            out[i, j] = flat.sum(0)
            taken[i, j] = shares(flat, gamma)[: kernel * kernel * inputs]

    def back(relevance):
        at_padded = np.zeros_like(padded)
        for (i, j), share in taken.items():
            given = (share * relevance[i, j]).reshape(kernel, kernel, inputs, outputs)
            for d in range(outputs):
                window = at_padded[i * stride :, j * stride :][:kernel, :kernel]
                window[:, :, channel[d]] += given[:, :, :, d]
        height, width = x.shape[:2]
        return at_padded[padding : padding + height, padding : padding + width]

    return out, back


def routes(height, width):
    """The cells, counted in rows, that each of the four routes visits one after another."""
    by_rows = [h * width + w for h in range(height) for w in range(width)]
    by_columns = [h * width + w for w in range(width) for h in range(height)]
    return by_rows, by_columns, by_rows[::-1], by_columns[::-1]


def scanned(u, order, x_proj, dt_proj, dt_bias, a_log, skip):
    """One route over u (L, E); outputs stand in the cells of u."""
    states = a_log.shape[1]
    length, channels = u.shape
    low = u[order] @ x_proj.T
    rank = low.shape[1] - 2 * states
    b, c = low[:, rank : rank + states], low[:, rank + states :]
    dt = softplus(low[:, :rank] @ dt_proj.T + dt_bias)
    shape = (length, channels, states)
    kept, driven, h = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    for t, cell in enumerate(order):
        if t:
            kept[t] = np.exp(dt[t][:, None] * -np.exp(a_log)) * h[t - 1]
        driven[t] = dt[t][:, None] * b[t] * u[cell][:, None]
        h[t] = kept[t] + driven[t]
    read = c[:, None] * h
    y = np.zeros_like(u)
    y[order] = read.sum(-1) + skip * u[order]

    def back(at_y):
        at_u = skip * u / y * at_y
        carried = np.zeros(shape[1:])
        for t in reversed(range(length)):
            cell = order[t]
            at_h = carried + read[t] / y[cell][:, None] * at_y[cell][:, None]
            at_u[cell] += (driven[t] / h[t] * at_h).sum(-1)
            carried = kept[t] / h[t] * at_h
        return at_u

    return y, back


def mixed(x, weights, gamma):
    """SS2D on a map (H, W, C)."""
    height, width, _ = x.shape
    inside, back_in = projected(x, weights["in_proj.weight"])
    inner = len(weights["dt_projs_bias"][0])
    branch, z = inside[..., :inner], inside[..., inner:]
    filtered, back_conv = convolved(
        branch, weights["conv2d.weight"], weights.get("conv2d.bias"), 1, 1, gamma, groups=inner
    )
    u = rows(filtered * sigmoid(filtered))
    scans = [
        scanned(
            u,
            order,
            weights["x_proj_weight"][k],
            weights["dt_projs_weight"][k],
            weights["dt_projs_bias"][k],
            weights["A_logs"].reshape(4, inner, -1)[k],
            weights["Ds"].reshape(4, inner)[k],
        )
        for k, order in enumerate(routes(height, width))
    ]
    total = sum(y for y, _ in scans)
    y, back_norm = normalised(total, weights["out_norm.weight"], weights["out_norm.bias"])
    y = y.reshape(height, width, inner)
    out, back_out = projected(y * z * sigmoid(z) if z.size else y, weights["out_proj.weight"])

    def back(relevance):
        at_product = back_out(relevance)
        at_y = at_product / 2 if z.size else at_product
        at_total = back_norm(rows(at_y))
        at_u = sum(scan_back(y / total * at_total) for y, scan_back in scans)
        at_branch = back_conv(at_u.reshape(filtered.shape))
        at_z = at_product / 2 if z.size else z
        return back_in(np.concatenate([at_branch, at_z], -1))

    return out, back


def expanded(x, weights):
    """The MLP."""
    hidden, back_first = projected(x, weights["fc1.weight"], weights["fc1.bias"])
    ratio = torch.special.ndtr(torch.from_numpy(hidden)).numpy()
    out, back_second = projected(hidden * ratio, weights["fc2.weight"], weights["fc2.bias"])
    return out, lambda relevance: back_first(back_second(relevance))


def joined(x, weights, norm, branch):
    """A normalised branch added to the stream."""
    inside, back_norm = normalised(x, weights[f"{norm}.weight"], weights[f"{norm}.bias"])
    added, back_branch = branch(inside)
    total = x + added

    def back(relevance):
        return x / total * relevance + back_norm(back_branch(added / total * relevance))

    return total, back


def coarser(x, weights, gamma):
    """The step between two stages, of either generation."""
    if "1.weight" in weights:
        out, back_conv = convolved(x, weights["1.weight"], weights["1.bias"], 2, 1, gamma)
        out, back_norm = normalised(out, weights["3.weight"], weights["3.bias"])
        return out, lambda relevance: back_conv(back_norm(relevance))
    height, width, channels = x.shape
    padded = np.pad(x, ((0, height % 2), (0, width % 2), (0, 0)))
    corners = [(0, 0), (1, 0), (0, 1), (1, 1)]
    merged = np.concatenate([padded[h::2, w::2] for h, w in corners], -1)
    out, back_norm = normalised(merged, weights["norm.weight"], weights["norm.bias"])
    out, back_reduction = projected(out, weights["reduction.weight"])

    def back(relevance):
        at_merged = back_norm(back_reduction(relevance))
        at_padded = np.zeros_like(padded)
        for k, (h, w) in enumerate(corners):
            at_padded[h::2, w::2] = at_merged[..., k * channels : (k + 1) * channels]
        return at_padded[:height, :width]

    return out, back


class IndependentVMamba:
    """One image (3, H, W) through a VMamba, and its relevance back."""

    def __init__(self, weights, image, gamma=GAMMA):
        self.weights, self.gamma, self.backs = weights, gamma, []
        x = self.stem(image.transpose(1, 2, 0))
        for s in range(1 + max(int(k.split(".")[1]) for k in weights if k.startswith("layers."))):
            stage = part(weights, f"layers.{s}.")
            for b in range(1 + max(int(k.split(".")[1]) for k in stage if k.startswith("blocks."))):
                x = self.block(x, part(stage, f"blocks.{b}."))
            down = part(stage, "downsample.")
            x = self.then(coarser(x, down, gamma)) if down else x
        last = part(weights, "classifier.")
        self.map = self.then(normalised(x, last["norm.weight"], last["norm.bias"]))
        self.pooled = self.map.mean((0, 1))
        self.logits = last["head.weight"] @ self.pooled + last["head.bias"]

    def then(self, step):
        out, back = step
        self.backs.append(back)
        return out

    def stem(self, image):
        weights = part(self.weights, "patch_embed.")
        first = weights["0.weight"]
        stride, padding = (4, 0) if first.shape[-1] == 4 else (2, 1)
        self.content, self.at_pixels = convolved(image, first, None, stride, padding, self.gamma)
        self.embedded = self.content + weights["0.bias"]
        x = self.then(normalised(self.embedded, weights["2.weight"], weights["2.bias"]))
        if "5.weight" not in weights:
            return x
        # The identity rule: the norm's output receives what its GELU received.
        x = x * torch.special.ndtr(torch.from_numpy(x)).numpy()
        x = self.then(convolved(x, weights["5.weight"], weights["5.bias"], 2, 1, self.gamma))
        return self.then(normalised(x, weights["7.weight"], weights["7.bias"]))

    def block(self, x, weights):
        op = part(weights, "op.")
        x = self.then(joined(x, weights, "norm", lambda inside: mixed(inside, op, self.gamma)))
        mlp = part(weights, "mlp.")
        if not mlp:
            return x
        return self.then(joined(x, weights, "norm2", lambda inside: expanded(inside, mlp)))

    def explain(self, target):
        """Of the first layer's output: (h, w, D)."""
        head = part(self.weights, "classifier.head.")
        at_pooled = head["weight"][target] * self.pooled  # out of the logit, as it is explained
        relevance = self.map / self.map.sum((0, 1)) * at_pooled
        for back in reversed(self.backs):
            relevance = back(relevance)
        return relevance

    def content_relevance(self, at_embedded):
        return self.content / self.embedded * at_embedded


CASES = {
    "v2": {"size": (16, 24)},
    "v2, odd maps": {"size": (18, 13)},
    "v2, wide scan of three states": {"size": (16, 16), "ssm_ratio": 2.0, "d_state": 3},
    "v0": {"size": (16, 24), "generation": "v0"},
    "v0, odd maps and a border": {"size": (22, 13), "generation": "v0"},
}


@pytest.fixture(scope="module", params=CASES)
def case(request):
    """A model, its images, and an independent run of each image."""
    options = dict(CASES[request.param])
    height, width = options.pop("size")
    model = small_vmamba(seed=3, **options)
    x = images(2, 24, seed=8)[:, :, :height, :width]
    weights = {k: v.numpy() for k, v in model.state_dict().items()}
    return model, x, [IndependentVMamba(weights, row.numpy()) for row in x]


def test_logits_agree(case):
    model, x, runs = case
    with torch.no_grad():
        logits = model(x)
    assert relative_error(logits, np.stack([run.logits for run in runs])) < 1e-12


def grid_of(run):
    """The grid of the first map: the stem's first outputs, two by two where it has a second."""
    cells = 2 if "patch_embed.5.weight" in run.weights else 1
    return cells, [-(-side // cells) for side in run.content.shape[:2]]


def patches_of(run, at_content):
    cells, (height, width) = grid_of(run)
    patches = np.zeros((height, width))
    for i, j in np.ndindex(at_content.shape[:2]):
        patches[i // cells, j // cells] += at_content[i, j].sum()
    return patches


def test_patch_and_pixel_relevances_agree(case):
    model, x, runs = case
    ours = vimlrp.explain(model, x, target=[1, 3])
    for i, (run, target) in enumerate(zip(runs, (1, 3), strict=True)):
        at_content = run.content_relevance(run.explain(target))
        assert relative_error(ours.patches[i], patches_of(run, at_content)) < AGREE
        assert relative_error(ours.pixels[i], run.at_pixels(at_content).sum(-1)) < AGREE


def test_relevance_of_the_embedding_agrees_channel_by_channel(case):
    model, x, runs = case
    ours = vimlrp.explain(model, x, target=2, record=["patch_embed.0"]).recorded["patch_embed.0"]
    for i, run in enumerate(runs):
        expected = run.explain(2).transpose(2, 0, 1)
        assert relative_error(ours.relevance[i], expected) < AGREE


def test_account_agrees(case):
    model, x, runs = case
    parts = vimlrp.explain(model, x, target=2).account.parts
    for i, run in enumerate(runs):
        at_embedded = run.explain(2)
        bias = run.weights["patch_embed.0.bias"] / run.embedded * at_embedded
        for kind, expected in [
            ("bias: patch_embedding", bias.sum()),
            ("bias: head", run.weights["classifier.head.bias"][2]),
            ("pixels", run.content_relevance(at_embedded).sum()),
        ]:
            assert float(parts[kind][i]) == pytest.approx(float(expected), rel=1e-8), kind
        assert float(sum(parts.values())[i]) == pytest.approx(float(run.logits[2]), rel=1e-10)


@pytest.mark.parametrize("generation", GENERATIONS)
def test_lrp_0_agrees_and_differs_from_gamma(generation):
    model, x = small_vmamba(seed=5, generation=generation), images(1, 16, seed=2)
    weights = {k: v.numpy() for k, v in model.state_dict().items()}
    composite = {"base": "without_gamma_rule", "patch_embedding": "zero"}
    ours = vimlrp.explain(model, x, target=0, composite=composite).pixels[0]
    zero, gamma = (IndependentVMamba(weights, x[0].numpy(), value) for value in (0.0, GAMMA))
    maps = [run.at_pixels(run.content_relevance(run.explain(0))).sum(-1) for run in (zero, gamma)]
    assert relative_error(ours, maps[0]) < AGREE
    assert relative_error(torch.from_numpy(maps[1]), maps[0]) > 1e-3


@pytest.mark.parametrize("generation", GENERATIONS)
def test_pixels_agree_in_float32(generation):
    model = small_vmamba(seed=4, dtype=torch.float32, generation=generation)
    x = images(1, 24, seed=9, dtype=torch.float32)[..., :16]
    weights = {k: v.double().numpy() for k, v in model.state_dict().items()}
    run = IndependentVMamba(weights, x[0].double().numpy())
    expected = run.at_pixels(run.content_relevance(run.explain(1))).sum(-1)
    ours = vimlrp.explain(model, x, target=1).pixels[0]
    assert ours.dtype == torch.float32
    assert relative_error(ours, expected) < AGREE_SINGLE
