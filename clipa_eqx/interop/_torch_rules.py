"""Rules for the layers that PyTorch models name alike."""

from ._mapping import Rule, transposed


def linear_rules(ours: str, theirs: str) -> list[Rule]:
    """A linear layer with a bias."""
    return [Rule(f"{ours}.weight", f"{theirs}.weight", transposed), Rule(f"{ours}.bias", f"{theirs}.bias")]


def norm_rules(ours: str, theirs: str) -> list[Rule]:
    """A layer norm."""
    return [Rule(f"{ours}.scale", f"{theirs}.weight"), Rule(f"{ours}.bias", f"{theirs}.bias")]
