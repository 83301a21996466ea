"""Foreign weight files as lazy mappings from names to NumPy arrays. Nothing in a file is executed."""

import zipfile
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors


class Arrays(Mapping[str, np.ndarray]):
    """Arrays by name. Each is read from its file when asked for, and not kept."""

    @abstractmethod
    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of one array, without reading it. KeyError where there is none."""

    def __contains__(self, name: object) -> bool:
        # The inherited one would read the array.
        try:
            self.shape(str(name))
        except KeyError:
            return False
        return True


def open_arrays(path: Path | str) -> Arrays:
    """Open a weight file by its suffix.

    Floating arrays keep their type, bfloat16 included; what reads them converts.

    Args:
        path: `.safetensors`, `.npz`, or a PyTorch file (`.pt`, `.pth`, `.bin`), which needs the extra `torch`. A
            training checkpoint's `state_dict` is unwrapped, and so is the `module.` before names.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, holds other things than arrays, or has another suffix.
        ImportError: a PyTorch file, and PyTorch is not installed.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no weight file {path}.")
    if path.suffix == ".safetensors":
        return _Safetensors(path)
    if path.suffix == ".npz":
        return _Npz(path)
    if path.suffix in (".pt", ".pth", ".bin"):
        return _Torch(path)
    raise ValueError(f"{path} is no known weight file: its suffix must be .safetensors, .npz, .pt, .pth or .bin.")


class Renamed(Arrays):
    """Some arrays of another mapping, under other names."""

    def __init__(self, arrays: Arrays, names: Mapping[str, str]) -> None:
        """Take `arrays[old]` as `new` for each `new: old` of `names`."""
        self._arrays, self._names = arrays, dict(names)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._arrays.shape(self._names[name])

    def __getitem__(self, name: str) -> np.ndarray:
        return self._arrays[self._names[name]]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


# Quantised files use further types; they need scales that only their maker knows.
_NUMPY_TYPES = {"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U64", "U32", "U16", "U8", "BOOL"}


class _Safetensors(Arrays):
    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with self._open() as file:
                slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
                self._shapes = {name: tuple(part.get_shape()) for name, part in slices.items()}
                types = {name: part.get_dtype() for name, part in slices.items()}
        except (safetensors.SafetensorError, OSError) as error:
            raise ValueError(f"{path} is not a whole safetensors file: {error}.") from error
        foreign = [f"{name} ({kind})" for name, kind in types.items() if kind not in _NUMPY_TYPES]
        if foreign:
            raise ValueError(f"{path} holds arrays of types that NumPy lacks: {', '.join(foreign[:5])}.")

    # The file is mapped into memory, and its pages count as this process's own for as long as it stays open. Opened
    # anew for each array, no more than one array is in memory beside those already converted.
    def _open(self) -> Any:
        return safetensors.safe_open(self._path, framework="numpy")

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def __getitem__(self, name: str) -> np.ndarray:
        self.shape(name)
        try:
            with self._open() as file:
                return file.get_tensor(name)
        except (safetensors.SafetensorError, OSError) as error:
            raise ValueError(f"{self._path}: {name} cannot be read: {error}.") from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


class _Npz(Arrays):
    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with zipfile.ZipFile(path) as file:
                self._shapes = {name.removesuffix(".npy"): _npy_shape(file, name) for name in file.namelist()}
        except _NPZ_FAULTS as error:
            raise ValueError(f"{path} is not a whole npz file of arrays: {error}.") from error

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def __getitem__(self, name: str) -> np.ndarray:
        self.shape(name)
        try:
            with np.load(self._path, allow_pickle=False) as file:
                return file[name]
        except _NPZ_FAULTS as error:
            raise ValueError(f"{self._path}: {name} cannot be read: {error}.") from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


_NPZ_FAULTS = (zipfile.BadZipFile, ValueError, OSError, EOFError, KeyError, NotImplementedError, MemoryError)


def _npy_shape(file: zipfile.ZipFile, name: str) -> tuple[int, ...]:
    """Shape in the header of one member, checked against the bytes that the member has."""
    with file.open(name) as member:
        version = np.lib.format.read_magic(member)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(member)
        if dtype.hasobject:
            raise ValueError(f"{name} holds Python objects, not numbers")
        # Python's integers, because a hostile shape may overflow NumPy's.
        needed = dtype.itemsize
        for side in shape:
            needed *= side
        held = file.getinfo(name).file_size - member.tell()
        if needed != held:
            raise ValueError(f"{name} should hold {needed} bytes by its shape {shape}, but has {held}")
    return shape


class _Torch(Arrays):
    def __init__(self, path: Path) -> None:
        torch = _torch()
        try:
            # Files of PyTorch before 1.6 are no zip archives and cannot be mapped.
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        except Exception as error:  # damaged files raise a dozen classes, most of them bare RuntimeError
            raise ValueError(
                f"{path} is not a PyTorch file of plain tensors, or is damaged: {str(error).splitlines()[0]}"
            ) from error
        tensors = _state_dict(loaded)
        if not tensors or not all(isinstance(tensor, torch.Tensor) for tensor in tensors.values()):
            raise ValueError(f"{path} holds no table of tensors by name; save the model's state_dict() alone.")
        self._path = path
        self._tensors: dict[str, Any] = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._tensors[name].shape)

    def __getitem__(self, name: str) -> np.ndarray:
        tensor = self._tensors[name].detach()
        if str(tensor.dtype) == "torch.bfloat16":
            tensor = tensor.float()
        return tensor.numpy()

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)


def _state_dict(loaded: Any) -> dict[str, Any]:
    for key in ("state_dict", "model"):
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            return loaded[key]
    return loaded if isinstance(loaded, dict) and all(isinstance(name, str) for name in loaded) else {}


def _torch() -> Any:
    import importlib

    try:
        return importlib.import_module("torch")
    except ImportError as error:
        raise ImportError(
            "PyTorch files need PyTorch: pip install 'clipa_eqx[torch]', or convert the file to safetensors."
        ) from error
