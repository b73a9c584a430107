"""Image classifiers by name: torchvision's, with their trained weights, or transformers' ResNet without any."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from textwrap import shorten
from typing import Any

from carpool.engines.python_model import PythonModel
from carpool.engines.tensors import Picture
from carpool.engines.torch_files import from_module, network_options
from carpool.errors import MissingExtra, ModelError

try:
    import torch
except ImportError as error:
    raise MissingExtra("torch", "torch") from error

# The ResNets that transformers builds as well: the blocks of each stage, and of which kind they are.
_RESNETS: dict[str, tuple[list[int], str]] = {
    "resnet18": ([2, 2, 2, 2], "basic"),
    "resnet34": ([3, 4, 6, 3], "basic"),
    "resnet50": ([3, 4, 6, 3], "bottleneck"),
    "resnet101": ([3, 4, 23, 3], "bottleneck"),
    "resnet152": ([3, 8, 36, 3], "bottleneck"),
}
_CLASSES = 1000


def load(
    name: str, weights: str = "", engine: str = "auto", device: str = "cpu", **options: str
) -> PythonModel:
    """The classifier, ready and warm. `weights` is empty for the trained ones, "none", or a file of them."""
    run_on = network_options(device, **options)
    torchvision, missing = _torchvision(name)
    if missing is None:
        module, picture = _from_torchvision(torchvision, name, weights)
    elif weights == "none" and name in _RESNETS:
        module, picture = _resnet(name, missing), Picture()
    else:
        raise missing
    shape = (3, picture.size, picture.size)
    return from_module(module.eval(), shape, name, engine, picture, **run_on)


def _torchvision(name: str) -> tuple[Any, ModelError | None]:
    """The library, or why it cannot be imported: one that was built for another torch fails in several ways."""
    try:
        import torchvision
    except ModuleNotFoundError as error:
        if error.name != "torchvision":
            raise  # something that it needs itself
        instead = f"; to try the load alone ({name}?weights=none), transformers will do" * (name in _RESNETS)
        message = f"{name} comes with torchvision, which is not installed"
        return None, ModelError(message, f"pip install torchvision{instead}")
    except (ImportError, OSError, RuntimeError) as error:
        ours = f"torchvision {version('torchvision')} does not go with torch {torch.__version__}"
        detail = "install the two that belong together, from one index, as this does: "
        detail += "pip install --force-reinstall torch torchvision"
        return None, ModelError(f"{name} comes with torchvision, and {ours} ({error})", detail)
    return torchvision, None


def _from_torchvision(torchvision: Any, name: str, weights: str) -> tuple[Any, Picture]:
    from PIL.Image import Resampling  # torchvision needs it

    models = torchvision.models
    if name not in models.list_models(module=models):
        raise ModelError(
            f"torchvision has no {name}", f"allowed: {', '.join(models.list_models(module=models))}"
        )
    trained = models.get_model_weights(name).DEFAULT
    try:
        module = models.get_model(name, weights=None if weights else trained)
    except OSError as error:  # of which all that urllib raises are
        detail = f"{error}; give a file (?weights=FILE.pth), or try the load alone (?weights=none)"
        raise ModelError(f"the trained weights of {name} cannot be fetched", detail) from error
    if weights not in ("", "none"):
        _read_weights(module, name, Path(weights))
    told = trained.transforms()
    filling = Resampling[told.interpolation.name]
    return module, Picture(told.crop_size[0], told.resize_size[0], tuple(told.mean), tuple(told.std), filling)


def _read_weights(module: Any, name: str, file: Path) -> None:
    if not file.is_file():
        raise ModelError(f"{file} does not exist", "expected a file of weights")
    try:
        weights = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # the library raises what it pleases, of which a KeyError says the least
        detail = "expected what torch.save(module.state_dict(), FILE) writes"
        raise ModelError(f"{file} is no file of weights", detail) from error
    try:
        module.load_state_dict(weights)
    except Exception as error:  # another model's, or something else
        raise ModelError(f"{file} does not hold the weights of {name}", _told(error)) from error


def _told(error: Exception) -> str:
    """The first lines below the heading, shortened: which keys are missing, and which nobody knows."""
    heading, *lines = str(error).splitlines()
    return " ".join(shorten(line, 200, placeholder=" ...") for line in lines[:3]) or heading


def _resnet(name: str, missing: ModelError) -> Any:
    """The network with random weights, the same at each start: good for measuring, and for nothing else."""
    try:
        from transformers import ResNetConfig, ResNetForImageClassification
    except ImportError:  # where torchvision does not go with torch, transformers' classifiers fail as well
        raise missing from None
    depths, kind = _RESNETS[name]
    widths = [64, 128, 256, 512] if kind == "basic" else [256, 512, 1024, 2048]
    torch.manual_seed(0)
    return _Logits(
        ResNetForImageClassification(
            ResNetConfig(
                depths=depths, layer_type=kind, hidden_sizes=widths, embedding_size=64, num_labels=_CLASSES
            )
        )
    )


class _Logits(torch.nn.Module):  # type: ignore[misc]  # torch is not installed where types are checked
    """A classifier of transformers that returns a tensor, as one of torchvision does."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, pictures: Any) -> Any:
        return self.network(pictures).logits
