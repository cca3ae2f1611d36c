"""Vision Mamba backbones, written from their published facts."""
