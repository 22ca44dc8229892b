import itertools
import random
import tracemalloc

import numpy as np
import pytest
import torch
from scipy.stats import chi2

from mimkit.randomness import random_orders, sample_keys, scramble, seeded, shuffled

BITS = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15


def split_mix(value: int) -> int:
    """SplitMix64's step on Python's unbounded integers."""
    value = (value + GOLDEN) & BITS
    value = (value ^ (value >> 30)) * 0xBF58476D1CE4E5B9 & BITS
    value = (value ^ (value >> 27)) * 0x94D049BB133111EB & BITS
    return value ^ (value >> 31)


def signed(value: int) -> int:
    return value - 2**64 if value >= 2**63 else value


def unlikely(statistic: float, freedom: int) -> bool:
    """Whether a chi-square statistic is one in ten thousand, too uneven or too even."""
    return not 1e-4 < chi2.sf(statistic, freedom) < 1 - 1e-4


def test_scramble_gives_published_values():
    """The first outputs of SplitMix64 seeded with 0 and with 1234567."""
    assert scramble(torch.tensor(0)).item() == signed(0xE220A8397B1DCDAF)
    states = torch.tensor([signed((1234567 + i * GOLDEN) & BITS) for i in range(5)])
    assert scramble(states).tolist() == [
        signed(value)
        for value in (
            6457827717110365317,
            3203168211198807973,
            9817491932198370423,
            4593380528125082431,
            16408922859458223821,
        )
    ]


def test_scramble_equals_unbounded_integers():
    values = [0, 1, -1, 2**62, -(2**63), 2**63 - 1, 123456789, -987654321]
    assert scramble(torch.tensor(values)).tolist() == [signed(split_mix(value & BITS)) for value in values]


def test_every_key_is_its_own():
    images = torch.arange(1000)
    keys = torch.cat([sample_keys(seed, epoch, images) for seed in range(5) for epoch in range(5)])
    assert keys.dtype == torch.int64
    assert len(keys.unique()) == 25 * 1000


def test_key_does_not_depend_on_the_batch():
    images = torch.tensor([7, 3, 99])
    keys = sample_keys(1, 2, images)
    for image, key in zip(images, keys, strict=True):
        assert sample_keys(1, 2, image[None]).item() == key.item()
    assert torch.equal(sample_keys(1, 2, images.flip(0)), keys.flip(0))


def test_keys_stay_what_they_are():
    """A resumed run of an earlier version must draw the same masks: these values are part of the run's format."""
    first = split_mix(0)
    expected = [signed(split_mix((split_mix((first + 3) & BITS) + image) & BITS)) for image in (0, 5)]
    assert sample_keys(0, 3, torch.tensor([0, 5])).tolist() == expected


def test_orders_stay_what_they_are():
    """Places of the cells sorted by the signed outputs of a SplitMix64 that starts from the scrambled key."""
    for key in (0, 5, -3, 2**62):
        start = split_mix(key & BITS)
        values = [signed(split_mix((start + place * GOLDEN) & BITS)) for place in range(16)]
        expected = sorted(range(16), key=values.__getitem__)
        assert random_orders(torch.tensor([key]), 16).tolist() == [expected]


def test_keys_one_step_apart_give_no_shifted_orders():
    """SplitMix64's own increment between two keys must not give the same stream, one place later."""
    orders = random_orders(torch.tensor([1, signed((1 + GOLDEN) & BITS)]), 196)
    ranks = orders.argsort(dim=1)
    agreeing = (ranks[0, 1:].argsort() == ranks[1, :-1].argsort()).sum()
    assert agreeing < 10  # one is expected of unrelated orders, all 195 of shifted ones


def test_orders_are_permutations():
    for count in (1, 2, 36, 196):
        orders = random_orders(torch.arange(50), count)
        assert orders.shape == (50, count)
        assert orders.dtype == torch.int64
        assert torch.equal(orders.sort(dim=1).values, torch.arange(count).expand(50, -1))


def test_order_depends_on_its_key_alone():
    keys = sample_keys(0, 0, torch.arange(64))
    orders = random_orders(keys, 49)
    assert torch.equal(random_orders(keys.flip(0), 49), orders.flip(0))
    assert torch.equal(random_orders(keys[17:18], 49), orders[17:18])
    assert len(orders.unique(dim=0)) == 64


@pytest.mark.parametrize(
    "make",
    [
        lambda count: sample_keys(0, 0, torch.arange(count)),
        lambda count: torch.stack([sample_keys(0, epoch, torch.tensor(5)) for epoch in range(count)]),
        torch.arange,
    ],
    ids=["images of an epoch", "epochs of an image", "plain numbers"],
)
def test_all_orders_are_equally_likely(make):
    """Chi-square over the 24 orders of four cells."""
    draws = 6_000
    keys = make(draws)
    places = random_orders(keys, 4) @ torch.tensor([64, 16, 4, 1])
    counts = [(places == int("".join(map(str, order)), 4)).sum().item() for order in itertools.permutations(range(4))]
    assert sum(counts) == draws
    statistic = sum((count - draws / 24) ** 2 for count in counts) / (draws / 24)
    assert not unlikely(statistic, 23)


def test_every_rank_is_equally_likely_everywhere():
    """Chi-square of rank against place; rows and columns both sum to the draws, so (n − 1)² degrees of freedom."""
    draws, n = 20_000, 49
    orders = random_orders(sample_keys(0, 1, torch.arange(draws)), n)
    counts = torch.stack([orders[:, place].bincount(minlength=n) for place in range(n)]).double()
    expected = draws / n
    statistic = ((counts - expected).square().sum() / expected * (n - 1) / n).item()
    assert not unlikely(statistic, (n - 1) ** 2)


def test_neighbouring_images_and_epochs_are_independent():
    """Of 49 cells, 12 visible: two independent masks share 12·12/49 of them, with the hypergeometric spread."""
    draws, n, k = 20_000, 49, 12
    mean = k * k / n
    spread = (mean * (1 - k / n) * (n - k) / (n - 1) / draws) ** 0.5
    visible = random_orders(sample_keys(0, 0, torch.arange(draws + 1)), n) < k
    later = random_orders(sample_keys(0, 1, torch.arange(draws)), n) < k
    other_seed = random_orders(sample_keys(1, 0, torch.arange(draws)), n) < k
    for second in (visible[1:], later, other_seed):
        shared = (visible[:-1] & second).sum(dim=1).double().mean().item()
        assert abs(shared - mean) < 4 * spread


def test_orders_use_no_global_generator():
    torch.manual_seed(0)
    first = random_orders(sample_keys(3, 4, torch.arange(8)), 16)
    state = torch.get_rng_state()
    torch.manual_seed(1)
    assert torch.equal(random_orders(sample_keys(3, 4, torch.arange(8)), 16), first)
    torch.manual_seed(0)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_orders_are_the_same_on_a_gpu():
    images = torch.arange(1000)
    here = random_orders(sample_keys(1, 2, images), 196)
    there = random_orders(sample_keys(1, 2, images.cuda()), 196)
    assert torch.equal(here, there.cpu())


# Permutations that are evaluated at a few places

ALL = [*range(1, 70), 97, 127, 128, 129, 255, 256, 257, 961, 1021, 1023, 1024, 1025, 4096, 4097, 65_535, 65_537, 99_991]


def keys_of(count: int) -> np.ndarray:
    return sample_keys(0, 0, torch.arange(count)).numpy()


def whole(key: int, count: int) -> np.ndarray:
    return shuffled(np.array([key]), np.arange(count), np.array([count]))


@pytest.mark.parametrize("key", [0, 1, -1, 2**63 - 1, -(2**63), 123456789])
def test_shuffled_places_are_permutations(key: int) -> None:
    for count in ALL if key == 1 else ALL[::9]:
        values = whole(key, count)
        assert values.dtype == np.int64
        np.testing.assert_array_equal(np.sort(values), np.arange(count))


def test_shuffled_places_do_not_depend_on_what_else_is_asked_for() -> None:
    """Not on the other places, nor on their keys and counts."""
    expected = [whole(key, count) for key, count in ((5, 1000), (6, 1000), (5, 37))]
    some = np.array([999, 0, 500, 0])
    np.testing.assert_array_equal(shuffled(np.array([5]), some, np.array([1000])), expected[0][some])
    keys, counts, places = np.array([5, 6, 5, 6]), np.array([1000, 1000, 37, 1000]), np.array([999, 3, 36, 0])
    mixed = [expected[0][999], expected[1][3], expected[2][36], expected[1][0]]
    np.testing.assert_array_equal(shuffled(keys, places, counts), mixed)
    np.testing.assert_array_equal(places, [999, 3, 36, 0])
    assert len(shuffled(np.array([5]), np.array([], dtype=np.int64), np.array([10]))) == 0


def test_shuffled_places_stay_what_they_are() -> None:
    """A resumed run of an earlier version must take the same images: the same by Python's unbounded integers."""
    for key, count in ((0, 1), (0, 2), (1, 10), (-3, 64), (2**62, 1000), (7, 1_300_000)):
        side = next(n for n in itertools.count(1) if n * n >= count)
        for place in {0, 1, count // 2, count - 1} & set(range(count)):
            value = place
            while True:
                left, right, state = value // side, value % side, key & BITS
                for _ in range(16):
                    state = split_mix(state)
                    drawn = signed(split_mix((state + right) & BITS)) >> 1
                    left, right = right, (left + drawn) % side
                value = left * side + right
                if value < count:
                    break
            assert shuffled(np.array([key]), np.array([place]), np.array([count])) == [value]


@pytest.mark.parametrize("count", [2, 3, 4])
def test_all_permutations_are_equally_likely(count: int) -> None:
    draws = 24_000
    values = shuffled(np.repeat(keys_of(draws), count), np.tile(np.arange(count), draws), np.array([count]))
    numbers = values.reshape(draws, count) @ 10 ** np.arange(count)
    seen, counts = np.unique(numbers, return_counts=True)
    expected = draws / len(list(itertools.permutations(range(count))))
    assert len(seen) * expected == draws
    assert not unlikely(((counts - expected) ** 2).sum() / expected, len(seen) - 1)


@pytest.mark.parametrize("count", [5, 16, 37, 49, 64])
def test_every_image_is_equally_likely_at_every_place(count: int) -> None:
    """Chi-square of image against place over passes; rows and columns both sum to the passes."""
    passes = 3_000
    keys = np.array([sample_keys(3, epoch, torch.tensor([-1])).item() for epoch in range(passes)])
    places = np.tile(np.arange(count), passes)
    values = shuffled(np.repeat(keys, count), places, np.array([count]))
    counts = np.bincount(places * count + values, minlength=count**2)
    expected = passes / count
    statistic = ((counts - expected) ** 2).sum() / expected * (count - 1) / count
    assert not unlikely(statistic, (count - 1) ** 2)


@pytest.mark.parametrize("count", [16, 36, 37])
@pytest.mark.parametrize("apart", [1, 6])
def test_images_at_two_places_are_independent(count: int, apart: int) -> None:
    """Chi-square over all ordered pairs of images, neighbours and a row of the square apart."""
    draws = 100 * count**2
    pairs = np.tile([3, 3 + apart], draws)
    values = shuffled(np.repeat(keys_of(draws), 2), pairs, np.array([count])).reshape(draws, 2)
    counts = np.bincount(values[:, 0] * count + values[:, 1], minlength=count**2).reshape(count, count)
    assert not counts.diagonal().any()
    expected = draws / (count * (count - 1))
    others = counts[~np.eye(count, dtype=bool)]
    assert not unlikely(((others - expected) ** 2).sum() / expected, len(others) - 1)


@pytest.mark.parametrize("count", [10_000, 99_991, 2**17])
def test_long_permutations_look_random(count: int) -> None:
    """Neighbours, fixed points, rising steps, cycles and the next pass, each within four deviations."""
    for key in keys_of(4):
        values = whole(int(key), count)
        centred = (values - (count - 1) / 2) / count * 12**0.5
        for lag in (1, 2, round(count**0.5), count // 2):
            assert abs((centred[lag:] * centred[:-lag]).mean()) < 4 / (count - lag) ** 0.5
        assert (values == np.arange(count)).sum() < 8  # one is expected
        rising = (np.diff(values) > 0).sum()
        assert abs(rising - (count - 1) / 2) < 4 * ((count + 1) / 12) ** 0.5
        steps = np.bincount(np.diff(values) % count * 64 // count, minlength=64)
        assert not unlikely(((steps - count / 64) ** 2).sum() / (count / 64), 63)
        other = whole(int(key) + 1, count)
        assert abs(np.corrcoef(values, other)[0, 1]) < 4 / count**0.5
        assert (values == other).sum() < 8


def test_a_permutation_costs_what_is_asked_for() -> None:
    peaks = []
    for count in (1000, 10**12):
        tracemalloc.start()
        shuffled(np.array([1]), np.arange(256), np.array([count]))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert abs(peaks[1] - peaks[0]) < 1000  # Python's own numbers differ by some bytes
    assert peaks[0] < 100_000


def test_seeded_is_a_function_of_its_generator_and_leaves_no_trace():
    def drawn(seed):
        with seeded(np.random.default_rng(seed)):
            return torch.rand(3).tolist(), np.random.rand(3).tolist(), random.random()

    before = torch.get_rng_state(), str(np.random.get_state()), random.getstate()
    assert drawn(0) == drawn(0)
    assert all(a != b for a, b in zip(drawn(0), drawn(1), strict=True))
    with pytest.raises(RuntimeError), seeded(np.random.default_rng(0)):
        torch.rand(1) @ torch.rand(2)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (str(np.random.get_state()), random.getstate())
