"""Open shards at a URL as a `Store`: their images are listed before any shard is fetched.

A shard is fetched as a whole when its first image is read, and `Order` keeps a shard's images close together in an
epoch. A batch stays a function of its number: there is no stream position to save or to replay.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mimkit.data.images import Store
from mimkit.data.shards.cache import GIGABYTE, Cache
from mimkit.data.shards.parquet import open_parquet
from mimkit.data.shards.prefetch import MOST_OPEN, FetchedFiles, RemoteFiles
from mimkit.data.shards.tar import INDEX_VERSION, Index, Shards, build_index, pack_index, unpack_index
from mimkit.data.shards.urls import RemoteFile, download, download_small, map_in_threads, path_of, remote_files, root_of
from mimkit.errors import DataUnreachable
from mimkit.progress import Progress, speaking

_BUILT_AT_ONCE = 4


def open_url(url: str, cache: Cache) -> Store:
    """The images of the tar or parquet shards that a URL names.

    `https://host/train-{000..012}.tar`, `s3://bucket/*/*.tar`, `hf://datasets/user/name`: one shard, several, or a
    folder of them.

    Raises:
        FileNotFoundError: a shard is missing.
        ValueError: the URL names no shards, one is malformed, a package is missing, or the cache is too small.
        DataUnreachable: the server does not answer.
    """
    files = remote_files(url)
    root = root_of(url)
    _refuse_small(cache, files)
    if all(file.name.endswith(".parquet") for file in files):
        return open_parquet(root, files, cache)
    if not all(file.name.endswith(".tar") for file in files):
        raise ValueError(f"{url} names neither .tar nor .parquet files only")
    indices = _indices(files, cache)
    return Shards.of(root, _checked(files, cache, indices), [file.name for file in files], indices)


def _refuse_small(cache: Cache, files: Sequence[RemoteFile]) -> None:
    """Raise ValueError where a cache cannot hold the shards that are read at a time.

    These are two windows of shards, as some data workers begin the next one while others still read the last.
    """
    largest = sum(sorted((file.size for file in files), reverse=True)[:MOST_OPEN])
    if largest > cache.limit:
        raise ValueError(
            f"a cache of {cache.limit / GIGABYTE:g} GB cannot hold the {min(len(files), MOST_OPEN)} shards that are "
            f"read at a time: give --cache-gb {largest / GIGABYTE * 1.01:.2g} (MIMKIT_CACHE_GB), or make smaller shards"
        )


def _indices(files: Sequence[RemoteFile], cache: Cache) -> list[Index]:
    """The index of each shard: from the cache, published beside it on the server, or built by reading the shard."""
    kept = {file: index for file in files if (index := _cached(file, cache)) is not None}
    missing = [file for file in files if file not in kept]
    for file, index in zip(missing, map_in_threads(_published, missing, 16), strict=True):
        if index is not None:
            _store(file, cache, index)
            kept[file] = index
    unknown = [file for file in missing if file not in kept]
    if unknown:
        size = sum(file.size for file in unknown) / GIGABYTE
        with Progress(steps=len(unknown), done=0, images_per_step=1, unit="shard", silent=not speaking()) as progress:
            progress.line(
                f"{len(unknown)} shards, {size:.2g} GB, have no index beside them: reading each once to build it"
            )
            progress.summary = "indexed"
            built = map_in_threads(lambda file: _build(file, cache), unknown, _BUILT_AT_ONCE)
            for done, (file, index) in enumerate(zip(unknown, built, strict=True), start=1):
                kept[file] = index
                progress.step(done)
    return [kept[file] for file in files]


def _cached(file: RemoteFile, cache: Cache) -> Index | None:
    data = cache.get_small(f"{file.key}.npz")
    return None if data is None else _unpack_for(data, file)


def _store(file: RemoteFile, cache: Cache, index: Index) -> None:
    cache.put_small(f"{file.key}.npz", pack_index(index, np.array([INDEX_VERSION, file.size, 0], dtype=np.int64)))


def _published(file: RemoteFile) -> Index | None:
    """The index published beside a shard, named as beside local ones, or without the dot."""
    path = path_of(file.url)
    folder, _, name = path.rpartition("/")
    query = file.url.removeprefix(path)
    for candidate in (f".{name}.index.npz", f"{name}.index.npz"):
        # An index is smaller than its shard, where a member's header alone takes 512 bytes.
        data = download_small(f"{folder}/{candidate}{query}", most=file.size)
        if data is not None and (index := _unpack_for(data, file)) is not None:
            return index
    return None


def _unpack_for(data: bytes, file: RemoteFile) -> Index | None:
    unpacked = unpack_index(data)
    return unpacked[1] if unpacked is not None and unpacked[0][1] == file.size else None


def _build(file: RemoteFile, cache: Cache) -> Index:
    fetched = FetchedFiles(RemoteFiles([file], cache))
    index = build_index(fetched.file(0), file.url)
    _store(file, cache, index)
    return index


def _checked(files: Sequence[RemoteFile], cache: Cache, indices: Sequence[Index]) -> FetchedFiles:
    places = {file: index.places for file, index in zip(files, indices, strict=True)}
    return FetchedFiles(RemoteFiles(files, cache, _FetchChecked(places)))


class _FetchChecked:
    """Downloads shards, and checks that their members are where the index says, as a published index may be outdated.

    Args:
        places: of each shard, int64 [N, 2], offset and length of each image.
    """

    def __init__(self, places: dict[RemoteFile, np.ndarray]) -> None:
        self.places = places

    def __call__(self, file: RemoteFile, target: Path, waits: Sequence[float]) -> None:
        download(file, target, waits)
        with target.open("rb") as shard:
            for start, length in self.places[file].tolist():
                shard.seek(start - 512 + 124)
                digits = shard.read(12).strip(b"\0 ")
                if digits.isdigit() and int(digits, 8) != length:
                    raise DataUnreachable(
                        f"the index published beside {file.url} is of another file: build it again, or remove it"
                    )
