"""An image classifier: any that transformers loads, from its hub or from a folder. JPEG in, labels out.

In this folder:

    pip install '..[torch,vision]'
    MODEL=microsoft/resnet-18 carpool serve --model image_classifier:Model
    curl http://127.0.0.1:3000/predict -H 'content-type: image/jpeg' --data-binary @cat.jpg
"""

import os

import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification


class Model:
    """The three most likely labels of a picture."""

    def load(self, device):
        """Load the network and the recipe by which its pictures are prepared."""
        name = os.environ.get("MODEL", "microsoft/resnet-18")
        self.prepare = AutoImageProcessor.from_pretrained(name)
        self.network = AutoModelForImageClassification.from_pretrained(name).to(device).eval()
        self.device = device

    def preprocess(self, image):
        """One `PIL.Image` to a tensor, in a thread."""
        return self.prepare(image, return_tensors="pt")["pixel_values"][0]

    def collate(self, tensors):
        """The tensors of a batch as one."""
        return torch.stack(tensors).to(self.device)

    def predict(self, batch):
        """The probabilities of all labels, for each picture."""
        with torch.inference_mode():
            return self.network(batch).logits.softmax(dim=1)

    def postprocess(self, chances):
        """What a caller gets."""
        best = chances.argsort()[::-1][:3]
        return [
            {"label": self.network.config.id2label[place], "score": chances[place]} for place in best.tolist()
        ]
