"""Probes against slow explicit versions and scikit-learn's own pieces; health on features of known shape."""

import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from mimkit.evaluation import probes

CLASSES = 4


def labelled(count: int, apart: float, seed: int, dim: int = 12) -> tuple[Tensor, Tensor]:
    """Features around one centre for each class, `apart` deviations from the origin."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    centres = torch.eye(dim)[:CLASSES] * apart
    return centres[labels] + torch.randn(count, dim, generator=generator), labels


def sets(apart: float, train: int = 200, test: int = 150) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (*labelled(train, apart, seed=1), *labelled(test, apart, seed=2))


def explicit_knn(train, train_labels, test, test_labels, k: int, temperature: float) -> float:
    right = 0
    for feature, label in zip(test.tolist(), test_labels.tolist(), strict=True):
        cosines = []
        for other, other_label in zip(train.tolist(), train_labels.tolist(), strict=True):
            dot = sum(a * b for a, b in zip(feature, other, strict=True))
            cosines.append((dot / math.hypot(*feature) / math.hypot(*other), other_label))
        votes = [0.0] * CLASSES
        for cosine, other_label in sorted(cosines, reverse=True)[:k]:
            votes[other_label] += math.exp(cosine / temperature)
        right += votes.index(max(votes)) == label
    return 100 * right / len(test)


@pytest.mark.parametrize("apart", [0.0, 1.5])
@pytest.mark.parametrize(("k", "temperature"), [(20, 0.07), (1, 0.07), (7, 1.0), (1000, 0.2)])
def test_knn_is_the_vote_written_out(apart, k, temperature, monkeypatch):
    monkeypatch.setattr(probes, "K", k)
    monkeypatch.setattr(probes, "TEMPERATURE", temperature)
    data = sets(apart, train=80, test=60)
    score = probes.knn(*data)
    assert score.accuracy == pytest.approx(explicit_knn(*data, k, temperature), abs=1e-9)
    assert (score.train_images, score.test_images, score.classes) == (80, 60, 4)


def test_knn_takes_more_test_images_than_fit_at_once():
    train, labels, test, test_labels = sets(1.5, test=2500)
    whole = probes.knn(train, labels, test, test_labels)
    parts = [probes.knn(train, labels, test[i::2], test_labels[i::2]).accuracy for i in (0, 1)]
    assert whole.accuracy == pytest.approx(sum(parts) / 2)


def test_knn_ignores_the_length_of_features():
    train, labels, test, test_labels = sets(1.5)
    lengths = torch.rand(len(train), 1, generator=torch.Generator().manual_seed(0)) * 100 + 0.1
    assert probes.knn(train * lengths, labels, test, test_labels) == probes.knn(train, labels, test, test_labels)


@pytest.mark.parametrize("apart", [0.0, 1.0, 2.0])
def test_linear_is_scikit_learns_search(apart):
    """Standardised features, C chosen on a fifth of the train set that no fit has seen, refitted on all of it."""
    train, labels, test, test_labels = sets(apart)
    scaler = StandardScaler().fit(train)
    order = np.random.default_rng(0).permutation(len(train))
    search = GridSearchCV(
        LogisticRegression(max_iter=200, tol=1e-3),
        {"C": [0.001, 0.01, 0.1, 1.0]},
        cv=[(order[len(train) // 5 :], order[: len(train) // 5])],
    ).fit(scaler.transform(train), labels)
    score = probes.linear(train, labels, test, test_labels)
    assert score.accuracy == pytest.approx(100 * search.score(scaler.transform(test), test_labels), abs=1e-9)
    assert (score.train_images, score.test_images, score.classes) == (200, 150, 4)


@pytest.mark.parametrize("probe", [probes.knn, probes.linear])
def test_separable_features_are_told_apart_and_random_ones_are_not(probe):
    assert probe(*sets(12.0)).accuracy == 100
    assert abs(probe(*sets(0.0, test=600)).accuracy - 25) < 3 * 100 * math.sqrt(0.25 * 0.75 / 600)


@pytest.mark.parametrize("probe", [probes.knn, probes.linear])
def test_the_test_set_takes_no_part(probe):
    """Which test images there are beside it changes no image's score."""
    train, labels, test, test_labels = sets(1.0)
    whole = probe(train, labels, test, test_labels)
    alone = [probe(train, labels, test[i : i + 1], test_labels[i : i + 1]).accuracy for i in range(20)]
    assert sum(alone) / 20 == probe(train, labels, test[:20], test_labels[:20]).accuracy
    assert probe(train, labels, test, test_labels) == whole


def test_linear_does_not_depend_on_scale_and_offset():
    train, labels, test, test_labels = sets(1.0)
    scale = torch.linspace(0.01, 100, train.shape[1])
    moved = probes.linear(train * scale + 5, labels, test * scale + 5, test_labels)
    assert moved.accuracy == probes.linear(train, labels, test, test_labels).accuracy


def test_constant_channels_do_no_harm():
    train, labels, test, test_labels = sets(1.0)
    train[:, -1] = test[:, -1] = 3.0
    without = probes.linear(train[:, :-1], labels, test[:, :-1], test_labels)
    assert probes.linear(train, labels, test, test_labels) == without


@pytest.mark.parametrize("probe", [probes.knn, probes.linear])
@pytest.mark.parametrize("labels", [[0], [1], [0, 1], [1, 1], [0, 0, 1]])
def test_hardly_any_images(probe, labels):
    """One image, one class, a class of one: a score all the same, so that no run ends over it."""
    train = torch.eye(8)[: len(labels)]
    score = probe(train, torch.tensor(labels), torch.eye(8)[:4], torch.tensor([0, 1, 1, 1]))
    assert score.accuracy in (0, 25, 50, 75, 100)
    assert score.classes == len(set(labels))


def test_health_of_isotropic_features():
    features = torch.randn(4000, 32, generator=torch.Generator().manual_seed(0))
    health = probes.health(features)
    assert health["effective_rank"] == pytest.approx(32, rel=0.01)
    assert health["feature_std"] == pytest.approx(1, rel=0.01)


def test_health_of_collapsed_features():
    noise = torch.randn(500, 32, generator=torch.Generator().manual_seed(0))
    collapsed = torch.ones(32) + 1e-4 * noise
    health = probes.health(collapsed)
    assert health["effective_rank"] == pytest.approx(1, abs=0.01)
    assert health["feature_std"] < 1e-3
    assert probes.health(torch.zeros(10, 4))["feature_std"] == 0


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_effective_rank_counts_equal_singular_values(rank):
    basis = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(0)))[0]
    health = probes.health(5 * basis[:, :rank] @ torch.eye(rank, 16))
    assert health["effective_rank"] == pytest.approx(rank, rel=1e-3)


def test_effective_rank_is_the_entropy_written_out():
    features = torch.randn(50, 6, generator=torch.Generator().manual_seed(0)) * torch.tensor([9, 4, 2, 1, 0.5, 0.1])
    singular = np.linalg.svd(features.numpy().astype(np.float64), compute_uv=False)
    shares = singular / singular.sum()
    expected = math.exp(-sum(p * math.log(p) for p in shares))
    assert probes.health(features)["effective_rank"] == pytest.approx(expected, rel=1e-4)
