"""Networks on one tensor: from an ONNX file to results, on both libraries."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from carpool.engines.python_model import PythonModel
from carpool.engines.tensor_files import load_onnx
from carpool.engines.tensors import Picture
from carpool.errors import BadInput, ModelError
from carpool.wire import payload
from carpool.wire.call import INFER
from tests.engines import tiny_onnx

ENGINES = ("openvino", "onnxruntime")


def write(folder: Path, onnx: bytes) -> str:
    (folder / "tiny.onnx").write_bytes(onnx)
    return str(folder / "tiny.onnx")


def npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def infer(model: PythonModel, *values: Any) -> list[Any]:
    answers = model.run([b'{"data": ' + json.dumps(value).encode() + b"}" for value in values], INFER)
    return [answer if isinstance(answer, Exception) else json.loads(answer) for answer in answers]


@pytest.mark.parametrize("engine", ENGINES)
def test_the_input_shape_is_the_files(tmp_path: Path, engine: str) -> None:
    """Flat or nested, stacked by shape; a wrong one fails alone."""
    model = load_onnx(write(tmp_path, tiny_onnx.doubled("n", 2, "width")), engine)
    assert model.info["input_shape"] == [2, None]
    narrow, wrong, wide = infer(model, [[1], [2]], [1, 2, 3], [[1, 2], [3, 4]])
    assert (narrow, wide) == ([[2], [4]], [[2, 4], [6, 8]])
    assert "expected float32 of the shape [2, any]" in str(wrong)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("fixed", [1, 3])
def test_a_file_with_a_fixed_batch_is_run_in_such_batches(tmp_path: Path, engine: str, fixed: int) -> None:
    """The last of them is filled up, and nobody sees what with."""
    model = load_onnx(write(tmp_path, tiny_onnx.doubled(fixed, 2)), engine)
    assert infer(model, *([place, 1] for place in range(5))) == [[2 * place, 2] for place in range(5)]


@pytest.mark.parametrize("engine", ENGINES)
def test_several_outputs_are_an_object(tmp_path: Path, engine: str) -> None:
    """By the names that the file has for them."""
    model = load_onnx(write(tmp_path, tiny_onnx.doubled("n", 1, outputs=2)), engine)
    assert infer(model, [3], [4]) == [{"y0": [6], "y1": [6]}, {"y0": [8], "y1": [8]}]


@pytest.mark.parametrize("engine", ENGINES)
def test_what_cannot_be_served_is_said(tmp_path: Path, engine: str) -> None:
    """Two inputs, none, no file, no ONNX."""
    with pytest.raises(ModelError, match="takes 2 inputs: x0, x1: allowed: one"):
        load_onnx(write(tmp_path, tiny_onnx.doubled("n", 1, inputs=2)), engine)
    with pytest.raises(ModelError, match=r"takes 0 inputs.*allowed: one"):
        load_onnx(write(tmp_path, tiny_onnx.constant()), engine)
    with pytest.raises(
        ModelError, match=r"is not an ONNX model that can be loaded: (Unable to read|.*Protobuf)"
    ):
        load_onnx(write(tmp_path, b"?"), engine)
    with pytest.raises(ModelError, match="does not exist"):
        load_onnx(str(tmp_path / "no.onnx"), engine)


@pytest.mark.parametrize(("dtype", "value"), [("int64", 2**40 + 5), ("float64", 1e300)])
def test_numbers_of_64_bits_run_where_they_are_not_cut_to_32(tmp_path: Path, dtype: str, value: float) -> None:
    """That is on ONNX Runtime, unless OpenVINO was asked for: this then takes 32 bits."""
    path = write(tmp_path, tiny_onnx.same(dtype, "n", 2))
    model = load_onnx(path)
    assert "onnxruntime" in str(model.info["engine"])
    assert model.info["input_dtype"] == dtype
    item = payload.head(payload.NPY, {}) + npy(np.array([value, -7], dtype))
    (answer,) = model.run([item], INFER)
    assert not isinstance(answer, Exception)
    assert json.loads(answer) == [value, -7]
    narrow = load_onnx(path, "openvino")
    assert narrow.info["input_dtype"] == dtype.replace("64", "32")
    assert infer(narrow, [5, -7]) == [[5, -7]]
    (refused,) = narrow.run([item], INFER)
    assert isinstance(refused, BadInput)
    assert f"that {dtype.replace('64', '32')} has not: it goes from" in str(refused)


def test_numbers_of_32_bits_and_less_stay_on_openvino(tmp_path: Path) -> None:
    """It is the faster one."""
    for dtype in ("float32", "int32", "uint16", "bool"):
        model = load_onnx(write(tmp_path, tiny_onnx.same(dtype, "n", 2)))
        assert "openvino" in str(model.info["engine"])
        assert model.info["input_dtype"] == dtype


@pytest.mark.parametrize("dtype", [name for name in tiny_onnx.ELEMENTS if name not in ("str", "bfloat16")])
def test_onnx_runtime_takes_all_types_of_numbers_that_numpy_has(tmp_path: Path, dtype: str) -> None:
    """Each as it is."""
    model = load_onnx(write(tmp_path, tiny_onnx.same(dtype, "n", 2)), "onnxruntime")
    assert model.info["input_dtype"] == dtype
    assert infer(model, [0, 1]) == [[0, 1]]


@pytest.mark.parametrize("dtype", ["str", "bfloat16", "uint32", "uint64"])
def test_types_that_openvino_does_not_compute_with_are_refused(tmp_path: Path, dtype: str) -> None:
    """With those that it does, in its own words for them."""
    path = write(tmp_path, tiny_onnx.same(dtype, "n", 2))
    with pytest.raises(
        ModelError, match=r"takes a tensor of .*: allowed on OpenVINO: f32, .* boolean, f64, i64"
    ):
        load_onnx(path, "openvino")


def test_an_image_is_cut_and_normalised_where_the_model_takes_such(tmp_path: Path) -> None:
    """As the models of ImageNet were trained; without a recipe an image is a tensor of another shape."""
    file = io.BytesIO()
    Image.new("RGB", (300, 260), (255, 0, 128)).save(file, "png")
    item = payload.head("image/png", {}) + file.getvalue()
    path = write(tmp_path, tiny_onnx.doubled("n", 3, 224, 224))
    (result,) = load_onnx(path, image="imagenet").run([item], INFER)
    assert not isinstance(result, Exception)
    middle = np.array(json.loads(result))[:, 112, 112] / 2
    assert middle == pytest.approx([(1 - 0.485) / 0.229, -0.456 / 0.224, (128 / 255 - 0.406) / 0.225], abs=0.02)
    (refused,) = load_onnx(path).run([item], INFER)
    assert isinstance(refused, BadInput)
    with pytest.raises(ModelError, match="image=other is not known: allowed: imagenet"):
        load_onnx(path, image="other")


@pytest.mark.parametrize("size", [(224, 224), (1, 500), (999, 301)])
def test_every_image_becomes_a_tensor_of_the_same_shape(size: tuple[int, int]) -> None:
    """However long and thin."""
    assert Picture().tensor(Image.new("RGB", size)).shape == (3, 224, 224)


@pytest.mark.parametrize("filling", [Image.Resampling.BILINEAR, Image.Resampling.BICUBIC])
@pytest.mark.parametrize("mode", ["noise", "waves"])
@pytest.mark.parametrize(
    "size",
    [(640, 427), (375, 500), (256, 256), (224, 224), (1000, 1000), (60, 40), (7, 5), (1600, 300), (3, 999)],
)
def test_the_middle_is_that_of_the_whole_image_resized(
    size: tuple[int, int], mode: str, filling: Image.Resampling
) -> None:
    """As torchvision does it: resized to 256, cut to 224; large, small, tall or wide."""
    width, height = size
    if mode == "noise":
        # Not up to black and white, where bicubic interpolation is cut off after either of its two passes.
        pixels = np.random.default_rng(1).integers(64, 192, (height, width, 3), dtype=np.uint8)
    else:
        rows, columns = np.mgrid[:height, :width]
        waves = [np.sin(rows / 9), np.cos(columns / 7), np.sin((rows + columns) / 20)]
        pixels = (127.5 + 127.5 * np.stack(waves, axis=-1)).astype(np.uint8)
    image = Image.fromarray(pixels)
    wide, high = (int(256 * side / min(size)) for side in size)
    left, top = round((wide - 224) / 2.0), round((high - 224) / 2.0)
    whole = image.resize((wide, high), filling)
    expected = np.asarray(whole.crop((left, top, left + 224, top + 224)), dtype=np.float32)
    made = Picture(mean=(0, 0, 0), std=(1, 1, 1), interpolation=filling).tensor(image).transpose(1, 2, 0) * 255
    assert np.abs(made - expected).max() <= 2.01  # levels of 255: two roundings


def test_a_long_thin_image_takes_no_memory() -> None:
    """Resized as a whole, this one would take 2 GB: Pillow counts the blocks of 16 MiB that it takes."""
    image = Image.new("RGB", (8000, 1))
    Image.core.reset_stats()
    Picture().tensor(image)
    taken = Image.core.get_stats()
    assert taken["allocated_blocks"] + taken["reused_blocks"] <= 4
