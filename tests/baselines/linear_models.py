"""Classifiers of which every gradient is known."""

import torch
from torch import nn


class LinearClassifier(nn.Module):
    """Logits W x + b on flattened pixels, the weights reshaped to (C, 3, H, W) as `slopes`."""

    def __init__(self, size=8, classes=4, dtype=torch.float64):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.head = nn.Linear(3 * size * size, classes, dtype=dtype)
        with torch.no_grad():
            self.head.weight.copy_(torch.randn(self.head.weight.shape, generator=generator))
            self.head.bias.copy_(torch.randn(classes, generator=generator))
        self.size = size

    @property
    def slopes(self):
        return self.head.weight.detach().unflatten(1, (3, self.size, self.size))

    def forward(self, x):
        return self.head(x.flatten(1))


class SmoothClassifier(LinearClassifier):
    """The same of tanh(x): not linear, and with bounded derivatives."""

    def forward(self, x):
        return super().forward(torch.tanh(x))


class ConvolutionalClassifier(nn.Module):
    """One convolution as only stage, pooled: a class activation map is exact."""

    def __init__(self, channels=5, classes=4):
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 2, 2)
        self.stage = nn.Conv2d(channels, channels, 1)
        self.head = nn.Linear(channels, classes)
        self.feature_info = [
            {"module": "stem", "num_chs": channels, "reduction": 2},
            {"module": "stage", "num_chs": channels, "reduction": 4},
        ]

    def maps(self, x):
        return self.stage(self.stem(x))

    def forward(self, x):
        return self.head(self.maps(x).mean((2, 3)))
