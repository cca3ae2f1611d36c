"""Models that many tests read and none changes."""

import pytest
import timm
import torch
from helpers import enliven, seeded, small_vim

import vimlrp  # noqa: F401  (registers the models)

# The models are so small that several threads would only wait for each other.
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def same_random_numbers():
    """Let a test draw the same numbers alone and among others, and round them the same."""
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def vim():
    """Float64, two blocks, biases and all branches alive."""
    return small_vim()


@pytest.fixture(scope="session")
def bias_free_vim():
    """The same without biases, but that of the step size."""
    return small_vim(biases=False)


@pytest.fixture(scope="session")
def registered_vim():
    """The registered test model in float32."""
    with seeded():
        model = timm.create_model("test_vim", num_classes=10).eval()
    enliven(model)
    return model


@pytest.fixture
def full_precision():
    """Single precision on a GPU as on a CPU, without TF32."""
    places = (torch.backends.cudnn.conv, torch.backends.cuda.matmul)
    before = [place.fp32_precision for place in places]
    for place in places:
        place.fp32_precision = "ieee"
    yield
    for place, precision in zip(places, before, strict=True):
        place.fp32_precision = precision
