"""Quality of frozen features: k-NN and a linear probe with labels, the spectrum without.

Shapes: N M images, D width of a feature, L classes.
"""

import warnings
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

K = 20  # nearest neighbours that vote, at most the number of training features
TEMPERATURE = 0.07  # a vote weighs exp(cosine / temperature)
INVERSE_PENALTIES = (0.001, 0.01, 0.1, 1.0)  # scikit-learn's C, which the linear probe chooses from these


@dataclass(frozen=True)
class Score:
    """Top-1 accuracy on held-out images, in percent, with the numbers of images and classes."""

    accuracy: float
    train_images: int
    test_images: int
    classes: int


def knn(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor) -> Score:
    """Weighted vote of the `K` nearest training features (Wu et al. 2018; the protocol of DINO).

    Args:
        train, test: features [N, D] and [M, D]; compared by cosine.
        train_labels, test_labels: int64 [N] and [M].
    """
    classes = int(max(train_labels.max(), test_labels.max())) + 1
    train, test = (torch.nn.functional.normalize(x.float(), dim=1) for x in (train, test))
    correct = 0
    for chunk, labels in zip(test.split(1024), test_labels.split(1024), strict=True):
        cosine, nearest = (chunk @ train.T).topk(min(K, len(train)), dim=1)
        votes = torch.zeros(len(chunk), classes).scatter_add_(1, train_labels[nearest], (cosine / TEMPERATURE).exp())
        correct += int((votes.argmax(dim=1) == labels).sum())
    return Score(100 * correct / len(test), len(train), len(test), int(train_labels.unique().numel()))


def linear(train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor) -> Score:
    """Multinomial logistic regression on standardised features, its L2 penalty chosen on a fifth of the train split.

    The test split influences no choice. Deterministic.

    Args:
        train, test: features [N, D] and [M, D].
        train_labels, test_labels: int64 [N] and [M].
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    mean, std = train.float().mean(dim=0), train.float().std(dim=0, correction=0).clamp_min(1e-6)
    x, x_test = (((split.float() - mean) / std).numpy().astype(np.float64) for split in (train, test))
    y, y_test = train_labels.numpy(), test_labels.numpy()

    def accuracy(inverse_penalty: float, fit: np.ndarray, on: np.ndarray, on_labels: np.ndarray) -> float:
        if len(np.unique(y[fit])) < 2:  # a single class: it is always predicted
            return float((on_labels == y[order[0]]).mean())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # an unfinished fit still gives a fair lower bound
            model = LogisticRegression(C=inverse_penalty, max_iter=200, tol=1e-3).fit(x[fit], y[fit])
        return float(model.score(on, on_labels))

    order = np.random.default_rng(0).permutation(len(x))
    fifth = max(1, len(x) // 5)
    choose, fit = order[:fifth], order[fifth:]
    best = max(INVERSE_PENALTIES, key=lambda c: accuracy(c, fit, x[choose], y[choose]))
    return Score(100 * accuracy(best, order, x_test, y_test), len(x), len(x_test), len(np.unique(y)))


def health(features: Tensor) -> dict[str, float]:
    """Two numbers that need no labels, from features [N, D]; both fall when the encoder collapses.

    Returns:
        `effective_rank`: RankMe, the exponential of the singular values' entropy (Garrido et al. 2023), at most
        min(N, D). `feature_std`: mean over channels of the standard deviation over images of unit-length features,
        times √D, so that isotropic ones have 1.
    """
    features = features.float()
    singular = torch.linalg.svdvals(features)
    spectrum = singular / singular.sum().clamp_min(1e-12) + 1e-7
    unit = torch.nn.functional.normalize(features, dim=1)
    return {
        "effective_rank": float(torch.exp(-(spectrum * spectrum.log()).sum())),
        "feature_std": float(unit.std(dim=0, correction=0).mean() * features.shape[1] ** 0.5),
    }
