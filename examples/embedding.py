"""A text embedding model, written out: a tokenizer, ONNX Runtime, the mean over the tokens.

In this folder:

    pip install '..[onnx]'
    MODEL_DIR=$(carpool pull | tail -1) carpool serve --model embedding:Model
    curl http://127.0.0.1:3000/embed -H 'content-type: application/json' -d '{"input": "What is a batch?"}'
"""

import os
from pathlib import Path

import numpy as np
import onnxruntime
import tokenizers


class Model:
    """Vectors of texts; `carpool` makes them 1 long."""

    def load(self, device):
        """Read the files; `device` is where the server wants the model to run."""
        folder = Path(os.environ["MODEL_DIR"])
        self.tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        self.tokenizer.enable_truncation(256)
        self.tokenizer.enable_padding()
        self.session = onnxruntime.InferenceSession(folder / "model.onnx")

    def embed(self, texts):
        """One vector for each text, whatever length the others have."""
        rows = self.tokenizer.encode_batch(texts)
        ids, mask = (np.array([getattr(row, name) for row in rows]) for name in ("ids", "attention_mask"))
        feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        states = self.session.run(None, feeds)[0]
        return (states * mask[:, :, None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)
