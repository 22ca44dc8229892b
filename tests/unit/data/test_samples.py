"""Examples with annotations: what follows an image where a view cuts it, what is refused."""

import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.samples import centred
from mimkit.data import (
    Annotated,
    Boxes,
    PixelMap,
    PixelMapFiles,
    Points,
    Samples,
    TrainBatches,
    find_images,
    load_in_order,
    write_pack,
)
from mimkit.errors import BadImage
from mimkit.views import CenterCrop, Picture, RandomResizedCrop, Size

PHOTOS = {"count": 4, "size": 40}


@pytest.fixture
def annotated(photos: Path) -> Annotated:
    """Each photograph with all kinds of annotations; its map has its first channel."""
    images = find_images(photos)
    maps = [PixelMap(np.asarray(Image.open(images.path(i)))[..., 0]) for i in range(len(images))]
    return Annotated(
        images,
        maps=maps,
        boxes=[Boxes(np.full((i, 4), (0, 10, 20, 40))) for i in range(len(images))],
        points=[Points(np.full((2, 3, 2), 20.0)) for _ in range(len(images))],
        classes=[np.arange(i) for i in range(len(images))],
        labels=np.arange(len(images)),
        weights=[0.5] * len(images),
    )


def test_each_kind_comes_as_it_says(annotated: Annotated) -> None:
    (batch,) = load_in_order(centred(annotated, (20, 20)))
    inputs = batch.inputs("cpu")
    assert list(inputs) == ["images", "maps", "boxes", "points", "classes", "labels", "weights", "keys", "batch_key"]
    images, maps, boxes, points, classes, labels, weights, *_ = inputs.values()
    assert isinstance(images, torch.Tensor)
    assert isinstance(maps, torch.Tensor)
    assert (maps.dtype, maps.shape) == (torch.uint8, (4, 20, 20))
    assert [(box.dtype, *box.shape) for box in boxes] == [(torch.float32, i, 4) for i in range(4)]
    assert boxes[3].tolist() == [[0, 5, 10, 20]] * 3
    assert [(point.dtype, *point.shape) for point in points] == [(torch.float32, 2, 3, 2)] * 4
    assert (points[0] == 10).all()
    assert [one.tolist() for one in classes] == [[], [0], [0, 1], [0, 1, 2]]
    assert isinstance(labels, torch.Tensor)
    assert (labels.dtype, labels.tolist()) == (torch.int64, [0, 1, 2, 3])
    assert isinstance(weights, torch.Tensor)
    assert weights.dtype == torch.float32
    assert torch.equal(batch.images, images)


def test_a_map_follows_its_picture(annotated: Annotated) -> None:
    """Cut by the nearest pixel, the picture's first channel is the map, whatever was drawn."""
    view = RandomResizedCrop(interpolation=Image.Resampling.NEAREST)
    samples = Samples(annotated, view=view, size=(64, 64))  # where no nearest pixel is a tie
    pixels = samples.empty(8)
    viewed = samples.read(2, np.arange(100, 108), pixels)
    assert isinstance(viewed, list)
    assert all(one.cut is not None for one in viewed)
    tensors = samples.tensors(pixels, viewed)
    assert torch.equal(tensors["images"][:, 0], tensors["maps"])
    assert len({bytes(one.numpy().tobytes()) for one in tensors["maps"]}) == 8


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "int64", "float32", "float64", "bool"])
def test_maps_of_any_type(photos: Path, dtype: str) -> None:
    images = find_images(photos)
    values = np.arange(1600).reshape(40, 40).astype(dtype)
    (batch,) = load_in_order(centred(Annotated(images, maps=[PixelMap(values)] * 4), (40, 40)))
    maps = batch.tensors["maps"]
    assert isinstance(maps, torch.Tensor)
    expected = {"uint16": torch.int32, "float64": torch.float32}.get(dtype, getattr(torch, dtype, None))
    assert maps.dtype == expected
    np.testing.assert_array_equal(maps[0].numpy(), values)


def test_what_cannot_be_is_refused(photos: Path, annotated: Annotated) -> None:
    images = find_images(photos)
    with pytest.raises(ValueError, match="3 labels for 4 images"):
        Annotated(images, labels=[1, 2, 3])
    for name in ("images", "keys", "batch_key"):
        with pytest.raises(ValueError, match=f"no column can be called {name}"):
            Annotated(images, **{name: [1, 2, 3, 4]})
    small = Annotated(images, maps=[PixelMap(np.zeros((30, 40)))] * 4)
    with pytest.raises(ValueError, match="maps: a map of 40 x 30 pixels for an image of 40 x 40") as caught:
        list(load_in_order(centred(small, (8, 8))))
    assert str(images.path(0)) in str(caught.value.__notes__)

    def darkened(image: Picture, size: Size, rng: np.random.Generator) -> np.ndarray:
        return CenterCrop()(image, size) // 2

    (batch,) = load_in_order(Samples(Annotated(images, labels=range(4)), view=darkened, size=(8, 8)))
    assert batch.tensors["labels"].tolist() == [0, 1, 2, 3]  # type: ignore[union-attr]
    with pytest.raises(ValueError, match=r"view darkened does not say where it cuts, so that maps cannot"):
        list(load_in_order(Samples(annotated, view=darkened, size=(8, 8))))
    with pytest.raises(ValueError, match="1 or 3 channels, got 5"):
        centred(images, (8, 8), 5)
    some = Annotated(images, labels=[1, None, 2, 3])
    with pytest.raises(ValueError, match="some examples have labels and others do not"):
        list(load_in_order(centred(some, (8, 8))))


class BrokenMaps(list):
    """The third cannot be read."""

    def __getitem__(self, index):
        if index == 2:
            raise BadImage("third.png", "broken")
        return super().__getitem__(index)


def test_an_unreadable_annotation_counts_as_an_unreadable_image(photos: Path) -> None:
    images = find_images(photos)
    broken = Annotated(images, maps=BrokenMaps([PixelMap(np.zeros((40, 40)))] * 4))
    (batch,) = load_in_order(centred(broken, (8, 8)))
    assert batch.indices.tolist() == [0, 1, 3]
    assert batch.skipped == [(str(images.path(2)), "maps: third.png: broken")]


def test_values_of_no_such_shape() -> None:
    for made, values, message in [
        (Boxes, np.zeros((4, 5)), r"boxes are \[N, 4\], got \[4, 5\]"),
        (Boxes, np.zeros(4), r"got \[4\]"),
        (Boxes, [[0, 0, 5, 5], [20, 30, 5, 5]], r"got \[20, 30, 5, 5\]: are they x, y, width, height"),
        (Boxes, [[0, 0, np.nan, 5]], "left, top, right, bottom"),
        (Points, np.zeros((3, 1)), r"points are \[..., 2 or more\], got \[3, 1\]"),
        (Points, 5, r"got \[\]"),
        (PixelMap, np.zeros(3), r"got \[3\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            made(values)
    assert Boxes([]).values.shape == (0, 4)
    assert Points([]).values.shape == (0, 2)


def test_what_follows_x_and_y_stays(photos: Path) -> None:
    joints = [Points(np.array([[20, 20, 2], [10, 30, 0]]))] * 4
    (batch,) = load_in_order(centred(Annotated(find_images(photos), joints=joints), (20, 20)))
    assert batch.tensors["joints"][1].tolist() == [[10, 10, 2], [5, 15, 0]]


def test_a_column_has_one_type_in_all_batches(photos: Path) -> None:
    numbers = Annotated(find_images(photos), weights=[1, 1, 0.5, 0.5], counts=[1, 2, 3, 4])
    for batch in load_in_order(centred(numbers, (8, 8)), batch_size=2):
        weights, counts = batch.tensors["weights"], batch.tensors["counts"]
        assert isinstance(weights, torch.Tensor)
        assert isinstance(counts, torch.Tensor)
        assert (weights.dtype, counts.dtype) == (torch.float32, torch.int64)


def test_arrays_that_would_not_follow_their_image(photos: Path) -> None:
    raw = Annotated(find_images(photos), boxes=[np.array([[0, 0, 5, 5]])] * 4)
    with pytest.raises(ValueError, match=r"boxes of shape \[1, 4\] would not follow the image.* make it Boxes"):
        list(load_in_order(centred(raw, (8, 8))))
    with pytest.raises(ValueError, match=r"images are what find_images gives, .* got list of length 4"):
        Annotated([1, 2, 3, 4], labels=[1, 2, 3, 4])  # type: ignore[arg-type]
    picture = Image.new("L", (40, 40), 7)
    (batch,) = load_in_order(centred(Annotated(find_images(photos), maps=[PixelMap(picture)] * 4), (8, 8)))  # type: ignore[arg-type]
    assert (batch.tensors["maps"][0] == 7).all()


def test_what_no_tensor_holds(photos: Path) -> None:
    images = find_images(photos)
    with pytest.raises(ValueError, match="names holds <U1, which no tensor does"):
        list(load_in_order(centred(Annotated(images, names=["a", "b", "c", "d"]), (8, 8))))
    unlike = Annotated(images, maps=[PixelMap(np.zeros((40, 40, k))) for k in (1, 2, 3, 4)])
    with pytest.raises(ValueError, match=r"maps of shapes \(8, 8, 1\) and \(8, 8, 4\) cannot be stacked"):
        list(load_in_order(centred(unlike, (8, 8))))


def test_cuts_say_where_views_are_from(annotated: Annotated) -> None:
    """Boxes of a batch, mapped back, are those of the images."""
    samples = Samples(annotated, view=RandomResizedCrop(scale=(0.9, 1.0)), size=(32, 32))
    batch = next(TrainBatches(samples, batch_size=4).from_step(0))
    for cut, index, boxes, points in zip(
        batch.cuts, batch.indices.tolist(), batch.tensors["boxes"], batch.tensors["points"], strict=True
    ):
        assert cut is not None
        np.testing.assert_allclose(cut.to_source(points.numpy()), annotated.columns["points"][index].values, atol=1e-4)
        corners = cut.to_source(boxes.numpy().reshape(-1, 2, 2))
        left, top, right, bottom = cut.source
        expected = np.clip(annotated.columns["boxes"][index].values, (left, top, left, top), (right, bottom) * 2)
        np.testing.assert_allclose(np.sort(corners, axis=1).reshape(-1, 4), expected, atol=1e-4)


def test_images_turned_by_exif_are_not_annotated(tmp_path: Path) -> None:
    """Some annotate the pixels as stored, others as shown."""
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.new("RGB", (40, 40)).save(tmp_path / "a.jpg")
    Image.new("RGB", (40, 40)).save(tmp_path / "zz.jpg", exif=exif)
    images = find_images(tmp_path)
    boxes = Annotated(images, boxes=[Boxes([[0, 0, 5, 5]])] * 2)
    (batch,) = load_in_order(centred(boxes, (8, 8)))
    assert batch.skipped == [
        (str(tmp_path / "zz.jpg"), "turned by its EXIF data, and its annotations may be of the pixels as stored")
    ]
    (batch,) = load_in_order(centred(Annotated(images, labels=range(2)), (8, 8)))
    assert len(batch) == 2


def test_a_crop_whose_call_is_its_own(photos: Path, annotated: Annotated) -> None:
    """It is called, for images alone."""

    class Darker(CenterCrop):
        def __call__(self, image: object, size: Size, rng: np.random.Generator | None = None) -> np.ndarray:
            return super().__call__(image, size, rng) // 2  # type: ignore[arg-type]

    images = find_images(photos)
    (whole,), (dark,) = (load_in_order(Samples(images, view=v, size=(8, 8))) for v in (CenterCrop(), Darker()))
    assert torch.equal(dark.images, whole.images // 2)
    assert dark.cuts == [None] * 4
    with pytest.raises(ValueError, match="view Darker does not say where it cuts"):
        list(load_in_order(Samples(annotated, view=Darker(), size=(8, 8))))


def test_views_make_bytes_of_the_size(photos: Path) -> None:
    for wrong in (np.zeros((8, 8, 3)), np.zeros((8, 9, 3), np.uint8), np.zeros((3, 8, 8), np.uint8)):
        view = lambda image, size, rng, made=wrong: made  # noqa: E731
        with pytest.raises(ValueError, match=r"made .* expected uint8 \(8, 8, 3\)"):
            list(load_in_order(Samples(find_images(photos), view=view, size=(8, 8))))


def test_some_of_the_examples(annotated: Annotated) -> None:
    chosen = annotated.take([3, 1])
    (batch,) = load_in_order(centred(chosen, (8, 8)))
    assert batch.tensors["labels"].tolist() == [3, 1]  # type: ignore[union-attr]
    assert [len(one) for one in batch.tensors["boxes"]] == [3, 1]
    assert chosen.fingerprint() != annotated.fingerprint() == annotated.fingerprint()


def test_fingerprints_know_the_annotations(photos: Path) -> None:
    images = find_images(photos)

    def of(**columns: list) -> str:
        return Annotated(images, **columns).fingerprint()

    boxes = [Boxes([[0, 0, i, 5]]) for i in range(4)]
    assert of(boxes=boxes) == of(boxes=[Boxes(box.values.copy()) for box in boxes])
    others = [
        of(),
        of(boxes=boxes[::-1]),
        of(others=boxes),
        of(boxes=boxes, labels=[0, 1, 2, 3]),
        of(labels=[0, 1, 2, 3]),
    ]
    files = [of(maps=PixelMapFiles(f"{name}.png" for name in names)) for names in ("abcd", "abce")]  # type: ignore[arg-type]
    assert len({of(boxes=boxes), *others, *files}) == 8


def test_maps_in_files(photos: Path, tmp_path: Path) -> None:
    """Ids of 8 and 16 bits, and of palettes, as they are stored."""
    ids = np.arange(1600).reshape(40, 40) % 200
    Image.fromarray(ids.astype(np.uint8)).save(tmp_path / "0.png")
    Image.fromarray((ids * 300).astype(np.uint16)).save(tmp_path / "1.png")
    palette = Image.fromarray(ids.astype(np.uint8)).convert("P")
    palette.putdata(ids.ravel().tolist())
    palette.save(tmp_path / "2.png")
    (tmp_path / "3.png").write_bytes(b"none")
    files = PixelMapFiles(tmp_path / f"{i}.png" for i in range(4))
    assert [files[i].values.max() for i in range(3)] == [199, 59700, 199]
    (batch,) = load_in_order(centred(Annotated(find_images(photos), maps=files), (40, 40)))
    np.testing.assert_array_equal(batch.tensors["maps"][0], ids)
    np.testing.assert_array_equal(batch.tensors["maps"][1], ids * 300)
    assert "3.png: not an image" in batch.skipped[0][1]


def test_stores_with_shards_serve_annotated_images(photos: Path, tmp_path: Path) -> None:
    """Of a pack and of tar shards: the order, the shards read ahead, the labels beside the images."""
    images = find_images(photos)
    write_pack(images, None, tmp_path / "a.pack")
    for number in range(2):
        with tarfile.open(tmp_path / f"shard-{number}.tar", "w") as shard:
            for index in (2 * number, 2 * number + 1):
                shard.add(images.path(index), f"{index}.png")
    for data in (tmp_path / "a.pack", str(tmp_path / "shard-{0..1}.tar")):
        plain = find_images(data)
        numbered = Annotated(plain, numbers=np.arange(4))
        options = {"view": CenterCrop(), "size": (8, 8)}
        reference = TrainBatches(Samples(plain, **options), batch_size=2).from_step(0)
        for _, batch in zip(
            range(6), TrainBatches(Samples(numbered, **options), batch_size=2).from_step(0), strict=False
        ):
            expected = next(reference)
            assert torch.equal(batch.images, expected.images)
            assert batch.tensors["numbers"].tolist() == expected.indices.tolist()  # type: ignore[union-attr]


def test_a_batch_of_nothing_readable(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"no image")
    (batch,) = load_in_order(centred(Annotated(find_images(tmp_path), labels=[1]), (8, 8)))
    assert len(batch) == 0
    assert batch.images.shape == (0, 3, 8, 8)
