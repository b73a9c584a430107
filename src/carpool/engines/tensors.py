"""A network on one tensor as a model: inputs of one shape are stacked, what returns is cut into results.

It knows no library but numpy: what computes is a `Network`. Images become tensors where the model says how.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from carpool.errors import MissingExtra, ModelError

try:
    import numpy as np
except ImportError as error:
    raise MissingExtra("numpy", "local") from error

if TYPE_CHECKING:
    from carpool.engines.payloads import Array, Shape

_IMAGE_NET = "imagenet"  # the only recipe that has a name


class Network(Protocol):
    """A network as its library has loaded it; `run` is for one caller at a time."""

    @property
    def engine(self) -> str:
        """The library and its version."""

    @property
    def shape(self) -> Shape | None:
        """The shape of one input; `None` where the file does not say."""

    @property
    def dtype(self) -> str:
        """The type of its numbers."""

    @property
    def batch(self) -> int | None:
        """How many inputs it takes at once, where that is fixed."""

    @property
    def warm(self) -> Sequence[int]:
        """The batch sizes to run once before the first real batch, the largest first."""

    def run(self, batch: Any, /) -> Any:
        """An array, a list or a dict of arrays, each with one row for each input.

        It takes an array, or what `stage` makes of one, where the network has that: called in another thread,
        it brings the batch to where it is computed while another runs.
        """


@dataclass(frozen=True, slots=True)
class Picture:
    """How an image becomes a tensor [3, height, width]: resized, cut out of the middle, and normalised."""

    size: int = 224
    resize: int = 256
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)  # of ImageNet, as every model of it is trained
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    interpolation: int = 2  # of Pillow's numbers for it: bilinear

    def tensor(self, image: Any) -> Array:
        """The tensor of a `PIL.Image.Image`. However long it is, no more of it is resized than is kept."""
        # As torchvision does it, by which the models were trained: sizes are cut off, and places rounded.
        short = min(image.size)
        width, height = (max(self.size, int(self.resize * side / short)) for side in image.size)
        left, top = (round((side - self.size) / 2) for side in (width, height))
        # The square in the middle of the resized image, in pixels of the image as it is.
        across, down = image.width / width, image.height / height
        box = (left * across, top * down, (left + self.size) * across, (top + self.size) * down)
        resized = image.resize((self.size, self.size), self.interpolation, box)
        cut = np.asarray(resized, dtype=np.float32)
        mean, std = (np.array(each, dtype=np.float32) for each in (self.mean, self.std))
        normal: Array = (cut / np.float32(255) - mean) / std
        return normal.transpose(2, 0, 1)


def picture(name: str) -> Picture | None:
    """The recipe of this name; none for no name. Raises `ModelError`."""
    if name not in ("", _IMAGE_NET):
        raise ModelError(f"image={name} is not known", f"allowed: {_IMAGE_NET}")
    return Picture() if name else None


class TensorModel:
    """A network, behind what a Python model may have."""

    def __init__(self, network: Network, picture: Picture | None = None) -> None:
        self.engine = network.engine
        self.input_shape = network.shape
        self.input_dtype = network.dtype
        self._network = network
        self._stage: Callable[[Array], Any] = getattr(network, "stage", lambda batch: batch)
        self._picture = picture

    def __repr__(self) -> str:
        return f"TensorModel({self.engine}, {self.input_shape})"

    def warmup(self) -> None:
        """Run the network on nothing, in the batch sizes it asks for, where it is known what it takes."""
        if self.input_shape is None:
            return
        sizes = [size for size in self.input_shape if size is not None]
        if len(sizes) == len(self.input_shape):
            for count in self._network.warm:
                self.predict(np.zeros((count, *sizes), self.input_dtype))

    def preprocess(self, value: Any) -> Any:
        """An image as a tensor; anything else as it is."""
        if self._picture is None or not hasattr(value, "getpixel"):
            return value
        return self._picture.tensor(value)

    def collate(self, inputs: Sequence[Array]) -> Any:
        """One array of all, brought to the network."""
        return self._stage(np.stack(inputs))

    def predict(self, batch: Any) -> list[Any]:
        """One result for each row: an array, or a list or a dict of such where the network has many outputs."""
        fixed = self._network.batch
        if fixed is None or fixed == len(batch):
            return _rows(self._network.run(batch), len(batch))
        made: list[Any] = []
        for start in range(0, len(batch), fixed):
            part = batch[start : start + fixed]
            made += _rows(run_padded(self._network.run, part, fixed), len(part))
        return made


def run_padded(run: Callable[[Array], Any], batch: Array, count: int) -> Any:
    """The outputs of a batch that is filled up with zeros, without what these gave."""
    return cut(run(padded(batch, count)), len(batch))


def padded(batch: Array, count: int) -> Array:
    """The batch, filled up with zeros to so many rows."""
    return np.concatenate((batch, np.zeros((count - len(batch), *batch.shape[1:]), batch.dtype)))


def cut(outputs: Any, count: int) -> Any:
    """The first rows of the outputs."""
    if isinstance(outputs, Mapping):
        return {name: cut(output, count) for name, output in outputs.items()}
    if isinstance(outputs, (list, tuple)):
        return [cut(output, count) for output in outputs]
    return outputs[:count]


def _rows(outputs: Any, count: int) -> list[Any]:
    if isinstance(outputs, Mapping):
        columns = {name: _rows(output, count) for name, output in outputs.items()}
        return [{name: rows[place] for name, rows in columns.items()} for place in range(count)]
    if isinstance(outputs, (list, tuple)):
        parts = [_rows(output, count) for output in outputs]
        return parts[0] if len(parts) == 1 else [list(row) for row in zip(*parts, strict=True)]
    if not getattr(outputs, "shape", ()) or outputs.shape[0] != count:
        shape = list(getattr(outputs, "shape", ()))
        raise RuntimeError(f"the network returned the shape {shape} for a batch of {count}")
    return list(outputs)


def one_input(model: str, names: Sequence[str]) -> None:
    """Refuse a network that takes more than one tensor."""
    if len(names) != 1:
        raise ModelError(
            f"{model} takes {len(names)} inputs: {', '.join(names)}",
            "allowed: one; write a Python model (package.module:name) around it",
        )
