"""Option search with scikit-learn: `python examples/trainers/skorch_classifier.py`.

The number of solver steps is a hyperparameter: `GridSearchCV` clones the estimator, fits it with
each value, and compares them on held-out points of two spirals, which a single step cannot
separate. Needs skorch and scikit-learn.

What to watch:

- Pass skorch the class and `module__max_steps=...`, so that each clone builds its own layer. NumPy
  numbers are accepted; an invalid option raises when the module is built, before any training.
- The best estimator is pickled and copied together with its layer, so f must be a module: Python
  can neither pickle nor copy a lambda.
- Inputs must be float32, like the weights: `X.astype("float32")`.
- Without a tol, a `LinearCell` on a CPU takes all steps in one op, and measures no residual.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from torch_revdeq import LinearCell, RevDEQ

try:
    import numpy as np
    from sklearn.model_selection import GridSearchCV
    from skorch import NeuralNetClassifier
    from skorch.callbacks import Callback, GradientNormClipping
except ModuleNotFoundError as error:
    raise SystemExit(
        f"skorch_classifier: {error}; pip install '.[trainers]' in the clone"
    ) from None


class Classifier(nn.Module):
    """Two coordinates to a fixed point, to logits of two classes."""

    def __init__(self, max_steps: int = 8, beta: float = 0.5, width: int = 32) -> None:
        super().__init__()
        self.equilibrium = RevDEQ(LinearCell(2, width), max_steps=max_steps, beta=beta)
        self.head = nn.Linear(width, 2)

    def forward(self, X: Tensor) -> Tensor:
        """Logits."""
        return self.head(self.equilibrium(X))


class SolverHistory(Callback):
    """Writes the statistics of each solve into skorch's history."""

    def on_batch_end(self, net: Any, training: bool = False, **_: Any) -> None:
        """Record training batches only."""
        if training:
            for name, number in net.module_.equilibrium.stats.as_dict("solver_").items():
                net.history.record_batch(name, number)


def spirals(points: int = 600) -> tuple[np.ndarray, np.ndarray]:
    """Points (points, 2) in float32 on two spirals of two turns each, and their classes."""
    drawn = np.random.default_rng(0)
    classes = np.arange(points) % 2
    angle = 4 * np.pi * np.sqrt(drawn.random(points)) + 0.5
    turned = angle + np.pi * classes
    spiral = angle[:, None] / 4 * np.stack([np.cos(turned), np.sin(turned)], 1)
    return (spiral + drawn.normal(0, 0.04, spiral.shape)).astype("float32"), classes


def main() -> None:
    """Search, and print the scores."""
    torch.set_num_threads(1)  # tensors this small gain nothing from a second
    torch.manual_seed(0)
    X, y = spirals()
    given: dict[str, Any] = {
        "criterion": nn.CrossEntropyLoss,
        "optimizer": torch.optim.AdamW,
        "lr": 1e-2,
        "max_epochs": 30,
        "batch_size": 100,
        "train_split": None,
        "callbacks": [SolverHistory(), GradientNormClipping(1.0)],
        "verbose": 0,
    }
    net = NeuralNetClassifier(Classifier, **given)
    how: dict[str, Any] = {"cv": 3, "scoring": "accuracy", "error_score": "raise"}
    search = GridSearchCV(net, {"module__max_steps": [1, 2, 4, 8]}, **how).fit(X, y)
    for options, score in zip(
        search.cv_results_["params"], search.cv_results_["mean_test_score"], strict=True
    ):
        print(f"{options} {score:.3f}")
    best: Any = search.best_estimator_
    print(f"best {search.best_params_}, {best.history[-1, 'batches', -1]}")


if __name__ == "__main__":
    main()
