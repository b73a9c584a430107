"""A reranker: a cross-encoder that reads the query and a text together, from the hub or from a folder.

In this folder:

    pip install '..[torch]'
    MODEL=cross-encoder/ms-marco-MiniLM-L6-v2 carpool serve --model reranker:Model
    curl http://127.0.0.1:3000/rerank -H 'content-type: application/json' \
        -d '{"query": "What is a batch?", "texts": ["Inputs that travel together.", "A fruit."]}'
"""

import os

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer


class Model:
    """A score from 0 to 1 for each text."""

    def load(self, device):
        """Load the tokenizer and the network."""
        name = os.environ.get("MODEL", "cross-encoder/ms-marco-MiniLM-L6-v2")
        self.tokenizer = AutoTokenizer.from_pretrained(name)
        self.network = AutoModelForSequenceClassification.from_pretrained(name).to(device).eval()
        self.device = device

    def rerank(self, query, texts):
        """How well each text answers the query."""
        pairs = self.tokenizer([query] * len(texts), texts, padding=True, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            return self.network(**pairs.to(self.device)).logits[:, 0].sigmoid()
