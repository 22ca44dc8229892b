import pytest
import torch

from helpers import parts
from mimkit.losses import absolute, masked_mean, squared


def test_distances_element_by_element():
    prediction, target = torch.tensor([[1.0, -2.0, 3.0]]), torch.tensor([[0.5, 2.0, 3.0]])
    assert squared(prediction, target).tolist() == [[0.25, 16.0, 0.0]]
    assert absolute(prediction, target).tolist() == [[0.5, 4.0, 0.0]]


@pytest.mark.parametrize("distance", [squared, absolute])
def test_masked_mean_of_distances_equals_loops(distance):
    mask = parts.hide(3, (2, 4), count=5)
    prediction, target = (parts.images(3, (2, 4), 6, seed).permute(0, 2, 3, 1) for seed in (0, 1))
    total, cells = 0.0, 0
    for b in range(3):
        for i in range(2):
            for j in range(4):
                if mask.hidden[b, i, j]:
                    difference = (prediction[b, i, j] - target[b, i, j]).double()
                    each = difference**2 if distance is squared else difference.abs()
                    total += each.sum().item() / 6
                    cells += 1
    assert cells == 15
    loss = masked_mean(distance(prediction, target), mask.on((2, 4)))
    assert loss.shape == ()
    assert loss.item() == pytest.approx(total / cells, rel=1e-6)


def test_soft_mask_weighs_cells():
    """Cells of a coarser grid count by the share of them that is hidden."""
    distances = torch.tensor([1.0, 2.0, 4.0]).reshape(1, 1, 3, 1)
    hidden = torch.tensor([0.0, 0.5, 1.0]).reshape(1, 1, 3)
    assert masked_mean(distances, hidden).item() == pytest.approx((0.5 * 2 + 4) / 1.5)


def test_visible_cells_and_their_values_have_no_part():
    distances = parts.images(2, (3, 3), 4).permute(0, 2, 3, 1).abs()
    hidden = parts.hide(2, (3, 3), count=4).on((3, 3))
    loss = masked_mean(distances, hidden)
    changed = torch.where(hidden.bool()[..., None], distances, 1e6 * distances)
    assert masked_mean(changed, hidden) == loss


def test_all_hidden_is_the_plain_mean():
    distances = parts.images(2, (3, 3), 4).permute(0, 2, 3, 1)
    assert torch.allclose(masked_mean(distances, torch.ones(2, 3, 3)), distances.mean())
