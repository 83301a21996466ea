"""Train CLIP models with far fewer image and text tokens."""

__version__ = "0.1.0"
