"""What a SPEC means."""

from __future__ import annotations

from pathlib import Path

import pytest

from carpool.errors import ModelError
from carpool.models.spec import resolve


def test_a_directory_holds_a_text_model(tmp_path: Path) -> None:
    """As before."""
    local = resolve(str(tmp_path), "onnxruntime")
    assert local.arguments == {"directory": str(tmp_path), "engine": "onnxruntime"}
    assert local.takes == "text"


def test_a_python_name_is_looked_for_from_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker is told where that was."""
    monkeypatch.chdir(tmp_path)
    local = resolve("package.module:Model")
    assert local.arguments == {"target": "package.module:Model", "folder": str(tmp_path)}
    assert local.takes == "data"


def test_a_file_is_loaded_by_what_its_suffix_says(tmp_path: Path) -> None:
    """With the options behind the question mark."""
    for name, loader in (
        ("a.onnx", "tensor_files:load_onnx"),
        ("a.pt", "torch_files:load"),
        ("a.pt2", "torch_files:load"),
    ):
        (tmp_path / name).touch()
        local = resolve(f"{tmp_path / name}?image=imagenet", "openvino")
        assert local.loader == f"carpool.engines.{loader}"
        assert local.arguments == {"path": str(tmp_path / name), "engine": "openvino", "image": "imagenet"}
        assert local.takes == "data"


def test_torchscript_is_told_what_an_exported_program_says(tmp_path: Path) -> None:
    """Its shape and its type; in the other's place they would be another's."""
    for name in ("a.pt", "a.pt2"):
        (tmp_path / name).touch()
    local = resolve(f"{tmp_path / 'a.pt'}?shape=any,4&dtype=int64")
    assert (local.arguments["shape"], local.arguments["dtype"]) == ("any,4", "int64")
    with pytest.raises(ModelError, match="dtype is not known: allowed: image, bf16, compile"):
        resolve(f"{tmp_path / 'a.pt2'}?dtype=int64")


@pytest.mark.parametrize(
    ("spec", "arguments"),
    [
        ("resnet18", {"name": "resnet18", "engine": "auto"}),
        ("resnet50?weights=none", {"name": "resnet50", "engine": "auto", "weights": "none"}),
        ("torchvision:vit_b_16?bf16=true", {"name": "vit_b_16", "engine": "auto", "bf16": "true"}),
    ],
)
def test_classifiers_of_torchvision_have_names(spec: str, arguments: dict[str, str]) -> None:
    """The common ones without a prefix; whether there is such a one, the worker finds out."""
    local = resolve(spec)
    assert local.loader == "carpool.engines.vision:load"
    assert local.arguments == arguments


@pytest.mark.parametrize(
    ("spec", "allowed"),
    [
        ("resnet18?size=3", "bf16, compile, weights, pack"),
        ("minilm?x=1", "none"),
        ("a.b:c?weights=none", "none"),
    ],
)
def test_options_that_a_spec_does_not_have_are_refused(spec: str, allowed: str) -> None:
    """With those that it has."""
    with pytest.raises(ModelError, match=f"is not known: allowed: {allowed}"):
        resolve(spec)


@pytest.mark.parametrize("spec", ["no-such", "a b:c", "module:", "/no/such/folder"])
def test_anything_else_is_refused_with_what_is_allowed(spec: str) -> None:
    """Nothing is imported to find out."""
    with pytest.raises(
        ModelError, match=r"is no name, directory, file or Python .*allowed: minilm, a directory"
    ):
        resolve(spec)
