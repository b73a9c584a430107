"""PyTorch networks: files, options, and OpenVINO in torch's place. Run where torch is installed."""

from __future__ import annotations

import copy
import io
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from carpool.engines.python_model import PythonModel
from carpool.engines.tensors import Picture
from carpool.errors import BadInput, ModelError
from carpool.wire import payload
from carpool.wire.call import INFER

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.filterwarnings("ignore")  # torch and transformers deprecate their own parts

from carpool.engines import torch_files, vision  # noqa: E402 (only where there is a torch)
from carpool.engines.agreement import difference  # noqa: E402
from carpool.engines.torch import TorchNetwork  # noqa: E402
from tests.engines import tiny_torch  # noqa: E402

INPUTS = np.random.default_rng(1).standard_normal((5, *tiny_torch.SHAPE)).astype(np.float32)


def infer(model: PythonModel, *values: Any) -> list[Any]:
    items = [b'{"data": ' + json.dumps(np.asarray(value).tolist()).encode() + b"}" for value in values]
    return [
        answer if isinstance(answer, Exception) else json.loads(answer) for answer in model.run(items, INFER)
    ]


def expected(module: Any) -> Any:
    with torch.inference_mode():
        return module.eval()(torch.from_numpy(INPUTS)).numpy()


def test_a_torchscript_file_is_served_with_the_shape_it_is_given(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It does not say one itself; without one torch says what is wrong, and the log what to pass."""
    path = tiny_torch.script(tiny_torch.Tiny(), tmp_path / "tiny.pt")
    model = torch_files.load(path, shape="3,4,4")
    *results, wrong = infer(model, *INPUTS, [1, 2])
    assert np.array(results) == pytest.approx(expected(tiny_torch.Tiny()), abs=1e-5)
    assert isinstance(wrong, BadInput)
    assert "does not say the shape" not in caplog.text
    assert np.array(infer(torch_files.load(path), *INPUTS)) == pytest.approx(np.array(results), abs=1e-5)
    assert "tiny.pt does not say the shape of its input" in caplog.text
    assert "pass tiny.pt?shape=3,224,224" in caplog.text


def test_an_exported_program_says_its_shape(tmp_path: Path) -> None:
    """And is refused where its batch size was frozen."""
    path = tiny_torch.export(tiny_torch.Tiny(), tmp_path / "tiny.pt2")
    model = torch_files.load(path)
    assert model.info["input_shape"] == [3, 4, 4]
    assert np.array(infer(model, *INPUTS)) == pytest.approx(expected(tiny_torch.Tiny()), abs=1e-5)
    frozen = tiny_torch.export(tiny_torch.Tiny(), tmp_path / "frozen.pt2", is_dynamic=False)
    with pytest.raises(ModelError, match="export it with dynamic_shapes"):
        torch_files.load(frozen)


def test_networks_on_whole_numbers_are_served(tmp_path: Path) -> None:
    """An exported program says its type, a TorchScript file is told, and OpenVINO gives the same."""
    ids = [[1, 2, 3, 4], [9, 9, 0, 5]]
    with torch.inference_mode():
        wanted = tiny_torch.Lookup()(torch.tensor(ids)).numpy()
    exported = tiny_torch.export(tiny_torch.Lookup(), tmp_path / "ids.pt2", example=tiny_torch.IDS)
    script = tiny_torch.script(tiny_torch.Lookup(), tmp_path / "ids.pt", tiny_torch.IDS)
    told = {"shape": "4", "dtype": "int64"}
    for model in (torch_files.load(exported), torch_files.load(script, **told)):
        assert model.info["input_dtype"] == "int64"
        assert np.array(infer(model, *ids)) == pytest.approx(wanted, abs=1e-6)
    for model in (torch_files.load(exported, "openvino"), torch_files.load(script, "openvino", **told)):
        assert np.array(infer(model, *ids)) == pytest.approx(wanted, abs=0.01)


def test_a_type_that_numpy_does_not_have_is_refused(tmp_path: Path) -> None:
    """With those that it does have."""
    path = tiny_torch.script(tiny_torch.Tiny(), tmp_path / "tiny.pt")
    with pytest.raises(ModelError, match=r"tiny\.pt cannot take bfloat16: allowed: float32, .*int64"):
        torch_files.load(path, dtype="bfloat16")
    path = tiny_torch.export(
        tiny_torch.Tiny().bfloat16(), tmp_path / "tiny.pt2", example=(tiny_torch.EXAMPLE[0].bfloat16(),)
    )
    with pytest.raises(ModelError, match=r"tiny\.pt2 cannot take bfloat16: allowed: float32"):
        torch_files.load(path)


@pytest.mark.parametrize("name", ["x.pt", "x.pt2"])
def test_a_file_that_holds_no_network_is_said(tmp_path: Path, name: str) -> None:
    """A state dict, most often."""
    with pytest.raises(ModelError, match="does not exist"):
        torch_files.load(str(tmp_path / name))
    torch.save(tiny_torch.Tiny().state_dict(), tmp_path / name)
    with pytest.raises(ModelError, match=r"is not a (TorchScript file|torch\.export archive)"):
        torch_files.load(str(tmp_path / name))


def test_bf16_is_near(tmp_path: Path) -> None:
    """Eight bits of precision, and float32 in the results."""
    model = torch_files.from_module(tiny_torch.Tiny(), tiny_torch.SHAPE, "tiny", bf16=True)
    given = np.array(infer(model, *INPUTS))
    wanted = expected(tiny_torch.Tiny())
    assert given == pytest.approx(wanted, abs=0.05)
    assert np.abs(given - wanted).max() > 1e-6


@pytest.mark.parametrize("kind", [tiny_torch.Tiny, tiny_torch.Viewing, tiny_torch.Layout])
def test_convolutions_have_their_channels_last_where_nothing_else_changes(kind: type) -> None:
    """A module that cannot, or that would give something else, stays as it is."""
    network = kind().eval()
    model = torch_files.from_module(network, tiny_torch.SHAPE, "tiny")
    is_last = network.convolution.weight.is_contiguous(memory_format=torch.channels_last)
    assert is_last == (kind is tiny_torch.Tiny) == ("channels last" in str(model.info["engine"]))
    assert np.array(infer(model, *INPUTS)) == pytest.approx(expected(kind()), abs=1e-5)
    assert np.array(infer(model, INPUTS[0])) == pytest.approx(expected(kind())[:1], abs=1e-5)


def test_a_script_and_an_exported_program_have_them_last_too(tmp_path: Path) -> None:
    """As what says its shape."""
    exported = torch_files.load(tiny_torch.export(tiny_torch.Tiny(), tmp_path / "tiny.pt2"))
    path = tiny_torch.script(tiny_torch.Tiny(), tmp_path / "tiny.pt")
    for model in (exported, torch_files.load(path, shape="3,4,4")):
        assert "channels last" in str(model.info["engine"])
        assert np.array(infer(model, *INPUTS)) == pytest.approx(expected(tiny_torch.Tiny()), abs=1e-5)
    for shape in ("", "3,any,4"):
        assert "channels last" not in str(torch_files.load(path, shape=shape).info["engine"])


def test_a_lone_picture_is_computed_with_weights_that_are_packed() -> None:
    """With the outputs it had; what they were not packed for, other sizes or weights, is computed as before."""
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, stride=2, padding=1), torch.nn.ReLU()).eval()
    plain = copy.deepcopy(network)
    model = torch_files.from_module(network, (3, 8, 8), "tiny")
    assert str(model.info["engine"]).endswith("channels last, weights packed")
    assert "forward" in vars(network[0])

    def same(*shape: int) -> bool:
        pictures = torch.rand(shape, generator=torch.Generator().manual_seed(1))
        with torch.inference_mode():
            return bool(torch.allclose(network(pictures), plain(pictures), atol=1e-6))

    assert all(same(*shape) for shape in [(1, 3, 8, 8), (2, 3, 8, 8), (1, 3, 9, 5), (3, 8, 8)])
    network[0].weight = torch.nn.Parameter(network[0].weight * 2)
    assert not same(1, 3, 8, 8)
    plain[0].weight = network[0].weight
    assert same(1, 3, 8, 8)


@pytest.mark.parametrize(
    "convolution",
    [
        lambda: tiny_torch.Adding(3, 4, 3),
        lambda: torch.nn.Conv2d(3, 4, 3, padding="same"),
        lambda: torch.nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"),
        lambda: torch.nn.utils.parametrizations.weight_norm(torch.nn.Conv2d(3, 4, 3)),
        lambda: torch.nn.utils.weight_norm(torch.nn.Conv2d(3, 4, 3)),
    ],
)
def test_convolutions_that_compute_otherwise_are_not_packed(convolution: Callable[[], Any]) -> None:
    """They may change their weights or what they are given, at each call. The others are."""
    network = torch.nn.Sequential(convolution(), torch.nn.Conv2d(4, 4, 1)).eval()
    wanted = expected(network)
    model = torch_files.from_module(network, tiny_torch.SHAPE, "tiny")
    assert ["forward" in vars(each) for each in network] == [False, True]
    assert np.array(infer(model, INPUTS[0])) == pytest.approx(wanted[:1], abs=1e-5)


def test_weights_are_not_packed_where_that_changes_anything() -> None:
    """As the outputs, or the precision; or where it is not wanted."""
    guarded = torch_files.from_module(tiny_torch.Guarded().eval(), tiny_torch.SHAPE, "tiny")
    options = [
        torch_files.network_options("cpu", bf16="true"),
        torch_files.network_options("cpu", pack="false"),
    ]
    others = [
        torch_files.from_module(tiny_torch.Tiny().eval(), tiny_torch.SHAPE, "", **each) for each in options
    ]
    for model in (guarded, *others):
        assert str(model.info["engine"]).endswith("channels last")
    assert np.array(infer(guarded, INPUTS[0])) == pytest.approx(expected(tiny_torch.Tiny())[:1], abs=1e-5)


def test_compiled_networks_see_few_batch_sizes() -> None:
    """Powers of 2, filled up with zeros that nobody gets."""
    seen: set[int] = set()
    network = tiny_torch.Tiny().eval()
    network.register_forward_pre_hook(lambda module, inputs: seen.add(len(inputs[0])))
    options = torch_files.network_options("cpu", "", "eager")
    compiled = TorchNetwork(network, tiny_torch.SHAPE, **options)
    assert compiled.run(INPUTS) == pytest.approx(expected(tiny_torch.Tiny()), abs=1e-5)
    assert len(compiled.run(INPUTS[:1])) == 1
    assert seen == {1, 8}
    seen.clear()
    model = torch_files.from_module(network, tiny_torch.SHAPE, "tiny", **options)
    assert seen == {1, 2, 4, 8, 16, 32}
    assert np.array(infer(model, *INPUTS)) == pytest.approx(expected(tiny_torch.Tiny()), abs=1e-5)


@pytest.mark.parametrize("compiler", ["", "eager"])
def test_batches_are_staged_before_others_are_run(compiler: str) -> None:
    """Each is then run as if it had been given whole, without the rows that fill it up."""
    network = TorchNetwork(tiny_torch.Tiny().eval(), tiny_torch.SHAPE, compiler=compiler)
    staged = [network.stage(INPUTS[:3]), network.stage(INPUTS[3:])]
    assert list(map(len, staged)) == [3, 2]
    outputs = np.concatenate([network.run(each) for each in staged])
    assert outputs == pytest.approx(expected(tiny_torch.Tiny()), abs=1e-5)


@pytest.mark.parametrize("option", [{"bf16": "maybe"}, {"compile": "gcc"}, {"pack": "maybe"}])
def test_options_that_are_not_known_are_refused(option: dict[str, str]) -> None:
    """With what is."""
    with pytest.raises(ModelError, match="is not known: allowed"):
        torch_files.network_options("cpu", **option)


@pytest.mark.parametrize("device", ["cuda:99", "gpu", "meta"])
def test_a_device_that_is_not_there_is_told_from_a_wrong_file(tmp_path: Path, device: str) -> None:
    """With those that are."""
    message = f"device {device} cannot be used: there is cpu"
    path = tiny_torch.script(tiny_torch.Tiny(), tmp_path / "tiny.pt")
    with pytest.raises(ModelError, match=message):
        torch_files.load(path, device=device)
    with pytest.raises(ModelError, match=message):
        vision.load("resnet18", weights="none", device=device)


@pytest.mark.parametrize("shape", ["-1", "0,4", "x", "3,,4", "1.5", "-1,any"])
def test_a_shape_has_sizes_from_1(tmp_path: Path, shape: str) -> None:
    """Or any."""
    path = tiny_torch.script(tiny_torch.Tiny(), tmp_path / "tiny.pt")
    with pytest.raises(ModelError, match=f"shape={shape} is not a shape: allowed: sizes from 1, or any"):
        torch_files.load(path, shape=shape)


def test_on_openvino_a_network_gives_what_it_gives_on_torch(tmp_path: Path) -> None:
    """For any number of inputs; how far it is off is said."""
    module = tiny_torch.Tiny().eval()
    model = torch_files.from_module(module, tiny_torch.SHAPE, "tiny", "openvino")
    assert "from torch (off by" in str(model.info["engine"])
    assert np.array(infer(model, *INPUTS)) == pytest.approx(expected(module), abs=0.05)
    assert np.array(infer(model, INPUTS[0])) == pytest.approx(expected(module)[:1], abs=0.05)


def test_on_openvino_an_exported_program_gives_what_it_gives_on_torch(tmp_path: Path) -> None:
    """As any other module."""
    path = tiny_torch.export(tiny_torch.Tiny(), tmp_path / "tiny.pt2")
    model = torch_files.load(path, "openvino")
    assert np.array(infer(model, *INPUTS)) == pytest.approx(expected(tiny_torch.Tiny()), abs=0.05)


def test_a_conversion_that_is_off_is_refused_with_the_difference() -> None:
    """Here the trace has frozen the number of rows."""
    with pytest.raises(ModelError, match=r"frozen on OpenVINO differs from torch by 0\.33"):
        torch_files.from_module(tiny_torch.Frozen().eval(), tiny_torch.SHAPE, "frozen", "openvino")


def test_what_cannot_be_converted_or_run_is_said() -> None:
    """An unknown shape, an engine for something else."""
    with pytest.raises(ModelError, match="its input shape is not known"):
        torch_files.from_module(tiny_torch.Tiny().eval(), None, "tiny", "openvino")
    with pytest.raises(ModelError, match="allowed: auto, torch, openvino"):
        torch_files.from_module(tiny_torch.Tiny().eval(), None, "tiny", "onnxruntime")


def test_differences_are_parts_of_the_expected_length() -> None:
    """Other shapes and other numbers of outputs are infinitely far."""
    one = np.array([3.0, 4.0])
    assert difference(one, np.array([3.0, 4.5])) == pytest.approx(0.1)
    assert difference({"a": one, "b": one}, [one, one]) == 0
    assert difference(one, [one, one]) == float("inf")
    assert difference(one, one[:1]) == float("inf")


def test_resnet18_without_weights_is_served_from_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where torchvision is missing; the trained weights are then refused with what to install."""
    pytest.importorskip("transformers")
    monkeypatch.setitem(sys.modules, "torchvision", None)
    model = vision.load("resnet18", weights="none")
    picture = np.random.default_rng(0).random((3, 224, 224))
    (logits,) = infer(model, picture)
    assert len(logits) == 1000
    message = (
        "resnet18 comes with torchvision, which is not installed: pip install torchvision; to try .*transform"
    )
    with pytest.raises(ModelError, match=message):
        vision.load("resnet18")
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModelError, match=message):
        vision.load("resnet18", weights="none")
    with pytest.raises(ModelError, match=r"pip install torchvision$"):
        vision.load("mobilenet_v2", weights="none")


def test_a_torchvision_for_another_torch_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To install it would change nothing; and it takes transformers' classifiers with it."""
    (tmp_path / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    (tmp_path / "torchvision-0.1.dist-info").mkdir()
    (tmp_path / "torchvision-0.1.dist-info" / "METADATA").write_text("Name: torchvision\nVersion: 0.1\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.setitem(sys.modules, "transformers", None)
    torch_version = re.escape(torch.__version__)
    pair = rf"torchvision 0\.1 does not go with torch {torch_version} \(operator .*\): install the two"
    for name, weights in (("resnet18", ""), ("resnet18", "none"), ("vit_b_16", "")):
        with pytest.raises(ModelError, match=f"{name} comes with torchvision, and {pair}"):
            vision.load(name, weights)


class Torchvision(ModuleType):
    """What is used of the library, with a classifier that has weights of its own."""

    def __init__(self, **told: Any) -> None:
        super().__init__("torchvision")
        preset = {"crop_size": [4], "resize_size": [5], "mean": (0, 0, 0), "std": (1, 1, 1)}
        preset |= {"interpolation": SimpleNamespace(name="BILINEAR")} | told
        trained = SimpleNamespace(transforms=lambda: SimpleNamespace(**preset))
        self.models = ModuleType("models")
        self.models.__dict__.update(
            list_models=lambda module: ["tiny"],
            get_model_weights=lambda name: SimpleNamespace(DEFAULT=trained),
            get_model=lambda name, weights: tiny_torch.Tiny(),
        )


def test_weights_that_are_not_the_models_are_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which keys are missing, and which nobody knows; not all of them."""
    monkeypatch.setitem(sys.modules, "torchvision", Torchvision())
    state = tiny_torch.Tiny().state_dict()
    path = tmp_path / "state.pth"
    torch.save(state, path)
    assert np.array(infer(vision.load("tiny", str(path)), *INPUTS)) == pytest.approx(
        expected(tiny_torch.Tiny()), abs=1e-5
    )
    del state["head.bias"]
    torch.save(state | {f"layer{place}.weight": torch.zeros(1) for place in range(100)}, path)
    with pytest.raises(
        ModelError, match=r'weights of tiny: Missing.* "head\.bias"\. Unexpected.* "layer0'
    ) as info:
        vision.load("tiny", str(path))
    assert len(str(info.value)) < 600
    path.write_bytes(b"hello")
    with pytest.raises(ModelError, match=r"state\.pth is no file of weights: expected what torch\.save"):
        vision.load("tiny", str(path))
    with pytest.raises(ModelError, match=r"no\.pth does not exist"):
        vision.load("tiny", str(tmp_path / "no.pth"))


def test_images_are_resized_as_the_weights_come_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many were trained with bicubic interpolation."""
    pixels = np.random.default_rng(2).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "png")
    for name, number in (("BILINEAR", 2), ("BICUBIC", 3)):
        told = Torchvision(interpolation=SimpleNamespace(name=name))
        monkeypatch.setitem(sys.modules, "torchvision", told)
        picture = Picture(4, 5, (0, 0, 0), (1, 1, 1), number).tensor(Image.fromarray(pixels))
        with torch.inference_mode():
            wanted = tiny_torch.Tiny()(torch.from_numpy(picture[None].copy())).numpy()
        item = payload.head("image/png", {}) + file.getvalue()
        (answer,) = vision.load("tiny").run([item], INFER)
        assert not isinstance(answer, Exception)
        assert np.array([json.loads(answer)]) == pytest.approx(wanted, abs=1e-5)
