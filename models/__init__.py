"""Vision Mamba backbones, written from their published facts and registered with timm."""

from vimlrp.models.labels import class_names
from vimlrp.models.vim import VisionMamba

__all__ = ["VisionMamba", "class_names"]
