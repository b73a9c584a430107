"""A scikit-learn model: four measures of a flower in, its kind out.

In this folder:

    pip install .. scikit-learn
    carpool serve --model iris:Model
    curl http://127.0.0.1:3000/predict -H 'content-type: application/json' -d '{"data": [5.1, 3.5, 1.4, 0.2]}'
"""

from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier


class Model:
    """Inputs of another shape are refused with 422, and fail nobody else."""

    input_shape = (4,)

    def load(self, device):
        """Train; yours would be read from a file."""
        flowers = load_iris()
        self.names = flowers.target_names
        self.forest = RandomForestClassifier(50, random_state=0).fit(flowers.data, flowers.target)

    def predict(self, inputs):
        """The name of each flower."""
        return self.names[self.forest.predict(inputs)].tolist()
