"""MambaVision and its relevance written out in numpy: an explicit z-rule recursion.

Written from the equations: nothing here uses the rules, the sites or the model's own code, only its
weights, and no gradient is taken. Every layer keeps what each of its inputs contributed to each
output, and passes R_i = sum_k z_ki / z_k R_k. One image at a time; maps are (H, W, C).
"""

from collections import defaultdict
from math import erf, sqrt

import numpy as np
from small_mambavision import SMALL
from test_independent import GAMMA, shares, sigmoid, softplus


class Account(defaultdict):
    """What left the stream, by kind."""

    def __init__(self):
        super().__init__(float)


class Affine:
    """z = W x + b for rows x (T, I) and W (O, I), with a bias in the account."""

    def __init__(self, x, weight, bias, kind, gamma=0.0):
        parts = x.T[:, :, None] * weight.T[:, None, :]  # (I, T, O)
        if bias is not None:
            parts = np.concatenate([parts, np.broadcast_to(bias, (1, *parts.shape[1:]))])
        self.parts, self.inputs, self.kind, self.gamma = parts, x.shape[1], kind, gamma
        self.out = parts.sum(0)

    def relevance(self, at_out, account):
        given = (shares(self.parts, self.gamma) * at_out).sum(-1)  # (I + 1, T)
        account[f"bias: {self.kind}"] += given[self.inputs :].sum()
        return given[: self.inputs].T


class Convolution:
    """A 2-D convolution as a linear layer on windows (T, 9 C), padded by zeros on every side."""

    def __init__(self, x, weight, bias, stride, kind, gamma):
        self.shape, self.stride = x.shape, stride
        height, width, channels = x.shape
        self.rows, self.columns = ((side - 1) // stride + 1 for side in (height, width))
        padded = np.zeros((height + 2, width + 2, channels))
        padded[1:-1, 1:-1] = x
        windows = np.stack([padded[place].reshape(-1) for place in self.places()])
        rows = weight.transpose(0, 2, 3, 1).reshape(len(weight), -1)
        self.affine = Affine(windows, rows, bias, kind, gamma)
        self.out = self.affine.out.reshape(self.rows, self.columns, -1)

    def places(self):
        for i in range(self.rows):
            for j in range(self.columns):
                top, left = i * self.stride, j * self.stride
                yield slice(top, top + 3), slice(left, left + 3)

    def relevance(self, at_out, account):
        height, width, channels = self.shape
        padded = np.zeros((height + 2, width + 2, channels))
        given = self.affine.relevance(at_out.reshape(-1, at_out.shape[-1]), account)
        for place, window in zip(self.places(), given, strict=True):
            padded[place] += window.reshape(3, 3, channels)
        return padded[1:-1, 1:-1]


class BatchNorm:
    """(x - mean) / sqrt(var + eps) * weight + bias, all but x fixed."""

    def __init__(self, x, weights, eps):
        scale = weights["weight"] / np.sqrt(weights["running_var"] + eps)
        self.scaled = scale * x
        self.shift = weights["bias"] - scale * weights["running_mean"]
        self.out = self.scaled + self.shift

    def relevance(self, at_out, account):
        account["bias: batch_norm"] += (self.shift / self.out * at_out).sum()
        return self.scaled / self.out * at_out


class LayerNorm:
    """A linear layer that centres, scales by a fixed number for each row, and shifts."""

    def __init__(self, x, weights):
        self.x, dim = x, x.shape[1]
        inverse = 1 / np.sqrt(x.var(1) + 1e-5)
        centring = np.eye(dim) - 1 / dim
        self.parts = np.einsum("te,ed,t,d->etd", x, centring, inverse, weights["weight"])
        self.bias = weights["bias"]
        self.out = self.parts.sum(0) + self.bias

    def relevance(self, at_out, account):
        account["bias: normalisation"] += (self.bias / self.out * at_out).sum()
        return (self.parts / self.out * at_out).sum(-1).T


class Sum:
    """A stream and a branch, which share in proportion."""

    def __init__(self, stream, branch):
        self.stream, self.branch, self.out = stream, branch, stream + branch

    def relevance(self, at_out):
        # An exact zero is a sum of exact zeros: padded cells under a branch without biases.
        safe = np.where(self.out == 0, 1, self.out)
        return self.stream / safe * at_out, self.branch / safe * at_out


def part_of(weights, prefix):
    return {
        k.removeprefix(f"{prefix}."): v for k, v in weights.items() if k.startswith(f"{prefix}.")
    }


def gelu(x):
    return 0.5 * x * (1 + np.vectorize(erf)(x / sqrt(2)))


def gelu_tanh(x):
    return 0.5 * x * (1 + np.tanh(sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


class ConvBlock:
    def __init__(self, x, weights, gamma):
        names = [part_of(weights, name) for name in ("conv1", "norm1", "conv2", "norm2")]
        self.conv1 = Convolution(x, names[0]["weight"], names[0]["bias"], 1, "convolution", gamma)
        self.norm1 = BatchNorm(self.conv1.out, names[1], 1e-5)
        hidden = gelu_tanh(self.norm1.out)
        self.conv2 = Convolution(
            hidden, names[2]["weight"], names[2]["bias"], 1, "convolution", gamma
        )
        self.norm2 = BatchNorm(self.conv2.out, names[3], 1e-5)
        self.sum = Sum(x, self.norm2.out)
        self.out = self.sum.out

    def relevance(self, at_out, account):
        at_x, at_branch = self.sum.relevance(at_out)
        for layer in (self.norm2, self.conv2, self.norm1, self.conv1):
            at_branch = layer.relevance(at_branch, account)
        return at_x + at_branch


class CentredConvolution:
    """Three taps along a sequence (L, E), one sequence, no bias."""

    def __init__(self, x, weight, gamma):
        length, self.gamma = len(x), gamma
        self.parts = np.zeros((3, *x.shape))
        for t in range(length):
            for tap in range(3):
                if 0 <= t + tap - 1 < length:
                    self.parts[tap, t] = weight[:, 0, tap] * x[t + tap - 1]
        self.out = self.parts.sum(0)

    def relevance(self, at_out):
        given, length = shares(self.parts, self.gamma) * at_out, len(at_out)
        at_x = np.zeros(at_out.shape)
        for t in range(length):
            for tap in range(3):
                if 0 <= t + tap - 1 < length:
                    at_x[t + tap - 1] += given[tap, t]
        return at_x


class Scan:
    """h_t = exp(dt A) h + dt B u and y = C h + D u over one window, step by step."""

    def __init__(self, u, weights):
        states = weights["A_log"].shape[1]
        rank = weights["dt_proj.weight"].shape[1]
        low = u @ weights["x_proj.weight"].T
        b, self.c = low[:, rank : rank + states], low[:, rank + states :]
        step = low[:, :rank] @ weights["dt_proj.weight"].T + 2 * weights["dt_proj.bias"]
        dt = softplus(step)
        shape = (*u.shape, states)
        self.kept, self.driven, self.h = np.zeros(shape), np.zeros(shape), np.zeros(shape)
        for t in range(len(u)):
            if t:
                decay = np.exp(-dt[t][:, None] * np.exp(weights["A_log"]))
                self.kept[t] = decay * self.h[t - 1]
            self.driven[t] = (dt[t] * u[t])[:, None] * b[t]
            self.h[t] = self.kept[t] + self.driven[t]
        self.read = self.c[:, None] * self.h
        self.skip = weights["D"] * u
        self.out = self.read.sum(-1) + self.skip

    def relevance(self, at_out):
        at_u = self.skip / self.out * at_out
        carried = np.zeros(self.h.shape[1:])
        for t in reversed(range(len(at_out))):
            at_h = carried + self.read[t] / self.out[t][:, None] * at_out[t][:, None]
            at_u[t] += (self.driven[t] / self.h[t] * at_h).sum(-1)
            carried = self.kept[t] / self.h[t] * at_h
        return at_u


class MambaMixer:
    def __init__(self, x, weights, options):
        self.into = Affine(x, weights["in_proj.weight"], None, "projection")
        half = self.into.out.shape[1] // 2
        self.left = CentredConvolution(
            self.into.out[:, :half], weights["conv1d_x.weight"], options["gamma"]
        )
        self.right = CentredConvolution(
            self.into.out[:, half:], weights["conv1d_z.weight"], options["gamma"]
        )
        u, z = (c.out * sigmoid(c.out) for c in (self.left, self.right))
        self.scan, self.half = Scan(u, weights), half
        joined = np.concatenate([self.scan.out, z], axis=1)
        self.onto = Affine(joined, weights["out_proj.weight"], None, "projection")
        self.out = self.onto.out

    def relevance(self, at_out, account):
        at_joined = self.onto.relevance(at_out, account)
        at_u = self.scan.relevance(at_joined[:, : self.half])
        at_left = self.left.relevance(at_u)
        at_right = self.right.relevance(at_joined[:, self.half :])
        return self.into.relevance(np.concatenate([at_left, at_right], axis=1), account)


class AttentionHead:
    def __init__(self, q, k, v):
        self.products = q[:, None] * k[None] / sqrt(q.shape[1])  # (L, L, d)
        self.scores = self.products.sum(-1)
        powers = np.exp(self.scores - self.scores.max(1, keepdims=True))
        self.weights = powers / powers.sum(1, keepdims=True)
        self.parts = self.weights[:, :, None] * v[None]  # (query, key, d)
        self.out = self.parts.sum(1)

    def relevance(self, at_out, account, rule):
        """Of queries, keys and values."""
        given = self.parts / self.out[:, None] * at_out[:, None]
        if rule == "constant":
            return np.zeros_like(at_out), np.zeros_like(at_out), given.sum(0)
        at_weights = given.sum(-1) / 2
        total = at_weights.sum(1, keepdims=True)
        at_scores = self.scores * (at_weights - self.weights * total)
        account["softmax"] += at_weights.sum() - at_scores.sum()
        at_products = self.products / self.scores[:, :, None] * at_scores[:, :, None] / 2
        return at_products.sum(1), at_products.sum(0), given.sum(0) / 2


class SelfAttention:
    def __init__(self, x, weights, options):
        self.qkv = Affine(x, weights["qkv.weight"], weights["qkv.bias"], "projection")
        dim, heads = x.shape[1], options["heads"]
        # Columns of the projection: queries, keys and values, each head by head.
        self.split = self.qkv.out.reshape(len(x), 3, heads, dim // heads)
        self.heads = [AttentionHead(*self.split[:, :, h].transpose(1, 0, 2)) for h in range(heads)]
        joined = np.concatenate([head.out for head in self.heads], axis=1)
        self.proj = Affine(joined, weights["proj.weight"], weights["proj.bias"], "projection")
        self.out, self.rule = self.proj.out, options["attention"]

    def relevance(self, at_out, account):
        at_heads = np.split(self.proj.relevance(at_out, account), len(self.heads), axis=1)
        at_qkv = np.zeros_like(self.split)
        for h, (head, at_head) in enumerate(zip(self.heads, at_heads, strict=True)):
            at_qkv[:, :, h] = np.stack(head.relevance(at_head, account, self.rule), axis=1)
        return self.qkv.relevance(at_qkv.reshape(len(at_qkv), -1), account)


class TokenBlock:
    """One window (L, D)."""

    def __init__(self, x, weights, options):
        self.norm1 = LayerNorm(x, part_of(weights, "norm1"))
        mixer = part_of(weights, "mixer")
        kind = MambaMixer if "A_log" in mixer else SelfAttention
        self.mixer = kind(self.norm1.out, mixer, options)
        self.sum1 = Sum(x, self.mixer.out * weights["gamma_1"])
        self.norm2 = LayerNorm(self.sum1.out, part_of(weights, "norm2"))
        mlp = part_of(weights, "mlp")
        self.fc1 = Affine(self.norm2.out, mlp["fc1.weight"], mlp["fc1.bias"], "projection")
        self.fc2 = Affine(gelu(self.fc1.out), mlp["fc2.weight"], mlp["fc2.bias"], "projection")
        self.sum2 = Sum(self.sum1.out, self.fc2.out * weights["gamma_2"])
        self.out = self.sum2.out

    def relevance(self, at_out, account):
        at_stream, at_branch = self.sum2.relevance(at_out)
        for layer in (self.fc2, self.fc1, self.norm2):
            at_branch = layer.relevance(at_branch, account)
        at_stream, at_branch = self.sum1.relevance(at_stream + at_branch)
        for layer in (self.mixer, self.norm1):
            at_branch = layer.relevance(at_branch, account)
        return at_stream + at_branch


class TokenLevel:
    """The blocks of a level, window by window; cells beyond the map are zeros at its start."""

    def __init__(self, x, weights, side, options):
        self.shape, self.side = x.shape, side
        self.padded = tuple(-(-extent // side) * side for extent in x.shape[:2])
        x, out = self.pad(x), np.zeros((*self.padded, x.shape[2]))
        self.windows = []
        for place in self.places():
            tokens, chain = x[place].reshape(side * side, -1), []
            for j in range(1 + max(int(k.split(".")[1]) for k in weights if k[:6] == "blocks")):
                chain.append(TokenBlock(tokens, part_of(weights, f"blocks.{j}"), options))
                tokens = chain[-1].out
            self.windows.append(chain)
            out[place] = tokens.reshape(side, side, -1)
        self.out = out[: self.shape[0], : self.shape[1]]

    def pad(self, x):
        padded = np.zeros((*self.padded, x.shape[2]))
        padded[: x.shape[0], : x.shape[1]] = x
        return padded

    def places(self):
        for top in range(0, self.padded[0], self.side):
            for left in range(0, self.padded[1], self.side):
                yield slice(top, top + self.side), slice(left, left + self.side)

    def relevance(self, at_out, account):
        at_out, at_x = self.pad(at_out), np.zeros((*self.padded, self.shape[2]))
        for place, chain in zip(self.places(), self.windows, strict=True):
            at_tokens = at_out[place].reshape(self.side**2, -1)
            for block in reversed(chain):
                at_tokens = block.relevance(at_tokens, account)
            at_x[place] = at_tokens.reshape(self.side, self.side, -1)
        return at_x[: self.shape[0], : self.shape[1]]


class IndependentMambaVision:
    """One image (3, H, W) through a MambaVision, and its relevance back."""

    def __init__(self, weights, image, gamma=GAMMA, attention="constant"):
        self.weights, self.layers = weights, []
        options = {"gamma": gamma, "attention": attention}
        x = self.stem(image.transpose(1, 2, 0), gamma)
        for i, heads in enumerate(SMALL["num_heads"]):
            part = part_of(weights, f"levels.{i}")
            if i < 2:
                x = self.add(ConvBlock(x, part_of(part, "blocks.0"), gamma))
            else:
                side = SMALL["window_size"][i]
                x = self.add(TokenLevel(x, part, side, {**options, "heads": heads}))
            down = part.get("downsample.reduction.0.weight")
            if down is not None:
                x = self.add(Convolution(x, down, None, 2, "convolution", gamma))
        self.final = self.add(BatchNorm(x, part_of(weights, "norm"), 1e-5))
        self.pooled = self.final.mean((0, 1))
        self.logits = weights["head.weight"] @ self.pooled + weights["head.bias"]

    def add(self, layer):
        self.layers.append(layer)
        return layer.out

    def stem(self, x, gamma):
        part = part_of(self.weights, "patch_embed.conv_down")
        self.first = Convolution(x, part["0.weight"], None, 2, "patch_embedding", gamma)
        x = np.maximum(self.add(BatchNorm(self.first.out, part_of(part, "1"), 1e-4)), 0)
        x = self.add(Convolution(x, part["3.weight"], None, 2, "convolution", gamma))
        return np.maximum(self.add(BatchNorm(x, part_of(part, "4"), 1e-4)), 0)

    def explain(self, target):
        """Relevance of the pixels (H, W), of the first convolution's outputs, and the account."""
        account = Account()
        parts = self.pooled * self.weights["head.weight"][target]
        account["bias: head"] = self.weights["head.bias"][target]
        at_map = self.final / self.final.shape[0] / self.final.shape[1] / self.pooled * parts
        for layer in reversed(self.layers):
            at_map = layer.relevance(at_map, account)
        pixels = self.first.relevance(at_map, Account()).sum(-1)
        account["pixels"] = pixels.sum()
        return pixels, at_map.sum(-1), account
