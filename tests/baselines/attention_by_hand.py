"""Hidden attention as its equations say it: every entry on its own, every matrix whole."""

import torch


def unrolled(dt, A, B, C, order):
    """Equation 14 as it is written, one entry, channel and state at a time, by positions."""
    batch, directions, length, channels = dt.shape
    steps = order.steps(length)
    alpha = torch.zeros(batch, channels, length, length, dtype=torch.float64)
    for k in range(directions):
        for t in range(length):
            for s in range(t + 1):
                now, then = steps[k, t], steps[k, s]
                entry = torch.zeros(batch, channels, dtype=torch.float64)
                for n in range(A.shape[2]):
                    decay = torch.ones(batch, channels, dtype=torch.float64)
                    for between in range(s + 1, t + 1):
                        decay *= torch.exp(dt[:, k, steps[k, between]] * A[k, :, n])
                    drive = dt[:, k, then] * B[:, k, then, n, None]
                    entry += C[:, k, now, n, None] * decay * drive
                alpha[:, :, now, then] += entry
    return alpha


def observed(model, blocks, x, target):
    """What the blocks' scans were given, and the gradient at what their norms were given.

    By hooks on a plain pass, which the package does not use.
    """
    scans, streams, handles = [], [], []
    for block in blocks:
        mixer = getattr(block, "mixer", None) or block.op
        handles += [
            mixer.scan.register_forward_pre_hook(lambda site, args: scans.append((site, args))),
            block.norm.register_forward_pre_hook(lambda _, args: streams.append(args[0])),
        ]
    value = model(x).gather(1, target[:, None]).sum()
    for handle in handles:
        handle.remove()
    slopes = torch.autograd.grad(value, streams)
    return [
        (unrolled(*args[1:5], args[6] if len(args) > 6 else site.order).mean(1).detach(), slope)
        for (site, args), slope in zip(scans, slopes, strict=True)
    ]


def step(kind, alpha, slope):
    """I + alpha, or I + (slope alpha)+, (B, L, L)."""
    if kind == "attribution":
        weights = slope.mean(-1).flatten(1)
        alpha = torch.relu(alpha * weights[:, None, :])
    return torch.eye(alpha.shape[1], dtype=alpha.dtype) + alpha


def shared_out(coarse, fine):
    """Who hands how much to whom, (coarse cells, fine cells): squares of cells in equal parts."""
    (rows, columns), (height, width) = coarse, fine
    down, across = height // rows, width // columns
    shares = torch.zeros(rows * columns, height * width, dtype=torch.float64)
    for y in range(height):
        for x in range(width):
            shares[y // down * columns + x // across, y * width + x] = 1 / (down * across)
    return shares
