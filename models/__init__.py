"""Vision Mamba backbones, written from their published facts and registered with timm."""

from vimlrp.models.labels import class_names, name_classes
from vimlrp.models.mambavision import MambaVision
from vimlrp.models.vim import VisionMamba
from vimlrp.models.vmamba import VMamba

__all__ = ["MambaVision", "VMamba", "VisionMamba", "class_names", "name_classes"]
