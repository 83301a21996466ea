"""Weights in and out."""

from ._pretrained import load_pretrained as load_pretrained, Preprocess as Preprocess, Pretrained as Pretrained
