"""`clipa export`, `clipa import` and `clipa verify`: weights in and out, and the proof that they are the same."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import tyro

from .._checks import check_between


Target = Literal["open_clip", "hugging_face"]


@dataclass(frozen=True)
class Export:
    """Write a model for users of open_clip or Hugging Face, with inputs and embeddings to check it by.

    What the other side cannot compute is refused by name.
    """

    path: tyro.conf.Positional[str]
    """A finished run, an open_clip or a Hugging Face directory, or hf-hub:org/name."""
    to: Target
    """open_clip: for open_clip.create_model_and_transforms("local-dir:..."). hugging_face: for from_pretrained."""
    out: Path
    """Directory to write."""
    numerics: Literal["open_clip", "as_trained"] = "open_clip"
    """How an open_clip directory is read: as open_clip computes it, or as its JAX weights were trained."""
    ema: bool = False
    """Write the averaged weights, of a run that kept them."""
    json: bool = False
    """Print one JSON object as the last line."""

    def run(self) -> dict[str, Any]:
        """Load, write, and store a probe."""
        from ..interop import export_hugging_face, export_open_clip, load_pretrained, write_probe

        pretrained = load_pretrained(self.path, numerics=self.numerics, ema=self.ema)
        export = export_open_clip if self.to == "open_clip" else export_hugging_face
        export(pretrained, self.out)
        write_probe(pretrained.model, self.out)
        result = {"out": str(self.out), "form": self.to, **_size(pretrained.model)}
        _print_table(result)
        return result


@dataclass(frozen=True)
class Import:
    """Read foreign weights into a run directory, which `clipa evaluate` and `load_pretrained` take."""

    path: tyro.conf.Positional[str]
    """An open_clip or a Hugging Face directory, hf-hub:org/name, or an open_clip weight file alone with --model."""
    out: Path
    """Directory to write: config.json, model.safetensors, tokenizer/."""
    model: str = ""
    """For a weight file alone: one of open_clip's names, as ViT-L-14-CLIPA."""
    numerics: Literal["open_clip", "as_trained"] = "open_clip"
    """open_clip: as open_clip computes the model. as_trained: for weights from JAX (CLIPA, SigLIP), tanh GELU and
    epsilon 1e-6."""
    image_size: int | None = None
    """Side in pixels to move the model to, its image positions resampled. Default: its own."""
    context_length: int | None = None
    """Tokens to move the model to, its text positions resampled. Default: its own."""
    json: bool = False
    """Print one JSON object as the last line."""

    def run(self) -> dict[str, Any]:
        """Load, write, and store a probe."""
        from ..interop import load_open_clip, load_pretrained, move_pretrained, save_pretrained, write_probe

        if self.model:
            pretrained = load_open_clip(self.path, model=self.model, numerics=self.numerics)
        else:
            pretrained = load_pretrained(self.path, numerics=self.numerics)
        pretrained = move_pretrained(pretrained, image_size=self.image_size, context_length=self.context_length)
        save_pretrained(pretrained, self.out)
        write_probe(pretrained.model, self.out)
        result = {"out": str(self.out), **_size(pretrained.model), "tokenizer": pretrained.found_tokenizer is not None}
        _print_table(result)
        return result


@dataclass(frozen=True)
class Verify:
    """Check that a model computes what it should: largest and mean difference over normalised embeddings."""

    path: tyro.conf.Positional[str]
    """A run, an open_clip or a Hugging Face directory."""
    against: Literal["probe", "open_clip"] = "probe"
    """probe: the embeddings stored beside the weights. open_clip: the PyTorch model that open_clip makes of them."""
    tolerance: float = 1e-5
    """Largest difference allowed; 2e-3 where an accelerator multiplies in less than float32."""
    numerics: Literal["open_clip", "as_trained"] = "open_clip"
    """How an open_clip directory is read."""
    json: bool = False
    """Print one JSON object as the last line."""

    def run(self) -> dict[str, Any]:
        """Load, compute, compare."""
        check_between("tolerance", self.tolerance, 0.0, 2.0)
        from ..interop import compare_to_open_clip, compare_to_probe, load_pretrained

        pretrained = load_pretrained(self.path, numerics=self.numerics)
        if self.against == "probe":
            differences = compare_to_probe(pretrained.model, self.path)
        else:
            differences = compare_to_open_clip(pretrained, self.path)
        result = {name: asdict(difference) for name, difference in differences.items()}
        _print_table(
            {
                f"{name} {kind}": f"{value:.2e}"
                for name, difference in result.items()
                for kind, value in difference.items()
            }
        )
        worst = max(difference.largest for difference in differences.values())
        # Not a number is no agreement either.
        if not worst <= self.tolerance:
            raise ValueError(f"{self.path} is off by {worst:.2e}, more than the tolerance of {self.tolerance:.0e}.")
        return result


def _size(model: Any) -> dict[str, Any]:
    from ..models import count_parameters

    return {"parameters": count_parameters(model)}


def _print_table(result: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(show_header=False)
    for name, value in result.items():
        table.add_row(name, f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value))
    Console().print(table)
