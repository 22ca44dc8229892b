"""Parquet files of images, as of Hugging Face's data sets, local or fetched from a URL.

To start, only the number of rows and the classes are read, from the files' footers and one column. Reading one image
from a parquet file would decode a whole group of rows, so each file is rewritten once, into the cache:

    8 bytes       number of rows N, int64
    16 N bytes    offset and length of each image, int64
    the images, one after the other

Shapes: N rows of a file, S files.
"""

import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mimkit.data.shards.cache import Cache
from mimkit.data.shards.prefetch import FetchedFiles, RemoteFiles
from mimkit.data.shards.tar import number_classes
from mimkit.data.shards.urls import FIRST_WAITS, RemoteFile, download, map_in_threads, open_remote, with_retries
from mimkit.data.splits import choose_splits, split_of
from mimkit.data.string_array import StringArray
from mimkit.errors import BadImage, DataUnreachable
from mimkit.files import Location, below

_LABELS = ("label", "labels", "class", "cls", "fine_label")
_IMAGES = ("image", "img", "jpg", "jpeg", "png", "webp")


@dataclass(frozen=True, eq=False)
class _Rows:
    """What is known of a parquet file before it is fetched.

    Args:
        column: path of the column that holds encoded images.
        count: N.
        labels: int64 [N], positions in `classes`, -1 for none; or None.
        classes: names.
    """

    column: str
    count: int
    labels: np.ndarray | None
    classes: list[str]


@dataclass(frozen=True, eq=False)
class ParquetImages:
    """Images in rows of parquet files: a `Store`. Their names are the file's name and the row number.

    Args:
        path: what the files' names are relative to.
        files: the rewritten files.
        names: of all images.
        shards: int64, non-decreasing: the file of each image.
        rows: int64: its row in the file.
        labels: int64 or None.
        classes: their names, in the data set's own order.
        splits: TRAIN or HELD_OUT for each image, where the files' names say it.
    """

    path: Location
    files: FetchedFiles
    names: StringArray
    shards: np.ndarray
    rows: np.ndarray
    labels: np.ndarray | None
    classes: list[str] | None
    splits: np.ndarray | None

    def read(self, position: int) -> bytes:
        """The bytes of one image.

        Raises:
            BadImage: there is none in that row.
            DataUnreachable: its file cannot be fetched.
        """
        shard, row = int(self.shards[position]), int(self.rows[position])
        start, length = np.frombuffer(self.files.read(shard, 8 + 16 * row, 16), dtype="<i8").tolist()
        if not length:
            raise BadImage(below(self.path, self.names[position]), "no image in this row")
        return self.files.read(shard, start, length)

    def identity(self, positions: np.ndarray) -> bytes:
        """Sizes of the files."""
        sizes = np.array([file.size for file in self.files.remote.files], dtype="<i8")
        return sizes[self.shards[positions]].tobytes()

    def prefetch(self, current: Sequence[int], upcoming: Sequence[int]) -> None:
        """Passed on to the files."""
        self.files.prefetch(current, upcoming)


def is_parquet(path: Path) -> bool:
    """Whether a path names parquet files: one, several, or a folder of them without tar files."""
    if path.is_dir():
        return any(any(path.glob(f"{folders}*.parquet")) for folders in ("", "*/")) and not any(path.glob("*.tar"))
    return path.suffix == ".parquet"


def open_parquet(root: Location, files: Sequence[RemoteFile], cache: Cache) -> ParquetImages:
    """The images of parquet files.

    Files or their folders whose names begin with `train` and with one of `val`, `valid`, `validation`, `test` are split
    accordingly; then others are left out, as many data sets have test files without classes.

    Raises:
        ValueError: a file has no column of images, or several; pyarrow is missing.
        DataUnreachable: the server does not answer.
    """
    files, splits = choose_splits(files, [split_of(file.name) for file in files])
    found = list(map_in_threads(lambda file: _rows(file, cache), files, 16))
    counts = np.array([rows.count for rows in found])
    if not counts.sum():
        raise ValueError(f"no rows in the {len(files)} parquet files of {root}")
    labels, classes = join_labels([(rows.labels, rows.classes) for rows in found])
    names = StringArray.of(
        f"{file.name}/{row:06d}" for file, rows in zip(files, found, strict=True) for row in range(rows.count)
    )
    shards = np.repeat(np.arange(len(files)), counts)
    columns = {file: rows.column for file, rows in zip(files, found, strict=True)}
    return ParquetImages(
        root,
        FetchedFiles(RemoteFiles(files, cache, _Rewritten(columns), ".rows")),
        names,
        shards,
        np.concatenate([np.arange(count) for count in counts]),
        labels,
        classes,
        None if splits is None else splits[shards],
    )


def join_labels(
    found: Sequence[tuple[np.ndarray | None, list[str]]],
) -> tuple[np.ndarray, list[str]] | tuple[None, None]:
    """Labels of several files under one numbering of classes; (None, None) if any is missing, or all are the same."""
    classes = list(dict.fromkeys(name for _, names in found for name in names))
    if any(names != classes for _, names in found if names):
        classes = number_classes(classes)[1] or classes
    numbers = {name: number for number, name in enumerate(classes)}
    joined = []
    for labels, names in found:
        if labels is None or (len(labels) and (labels.min() < 0 or labels.max() >= len(names))):
            return None, None
        joined.append(np.array([numbers[name] for name in names], dtype=np.int64)[labels])
    return (np.concatenate(joined), classes) if len(classes) > 1 else (None, None)


def as_labels(values: Sequence[Any], declared: list[str] | None) -> tuple[np.ndarray | None, list[str]]:
    """Labels and class names, from numbers of declared names, or from numbers or texts that are names themselves."""
    if declared is not None:
        return np.array([-1 if value is None else value for value in values], dtype=np.int64), declared
    if not all(isinstance(value, int | str) for value in values):
        return None, []
    texts = [str(value) for value in values]
    labels, classes = number_classes(texts)
    return (
        (labels, classes) if labels is not None and classes is not None else (np.zeros(len(texts), np.int64), texts[:1])
    )


def _features_of(schema: Any) -> dict[str, Any]:
    """The features that Hugging Face's `datasets` declares in a pyarrow schema."""
    try:
        return json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"] or {}
    except (KeyError, ValueError, TypeError):
        return {}


def image_column(schema: Any, name: str) -> str:
    """The column of encoded images in a pyarrow schema, as the path of a leaf.

    Args:
        schema: of the file.
        name: of the file, for messages.

    Raises:
        ValueError: there is none, or more than one.
    """
    import pyarrow as pa

    def is_bytes(kind: Any) -> bool:
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    leaves = {}
    for field in schema:
        kind = field.type
        if is_bytes(kind):
            leaves[field.name] = field.name
        elif pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 and is_bytes(kind.field("bytes").type):
            leaves[field.name] = f"{field.name}.bytes"
    said = [
        key for key, kind in _features_of(schema).items() if isinstance(kind, dict) and kind.get("_type") == "Image"
    ]
    for wanted in (said, [*_IMAGES]):
        chosen = [leaves[key] for key in wanted if key in leaves]
        if len(chosen) == 1:
            return chosen[0]
    if len(leaves) != 1:
        what = f"several columns of bytes, {', '.join(leaves)}" if leaves else f"no column of images: {schema.names}"
        raise ValueError(f"{name} has {what}; expected one, called image")
    return next(iter(leaves.values()))


def label_column(schema: Any) -> tuple[str | None, list[str] | None]:
    """The column of classes in a pyarrow schema, and their names where declared; None where there is none."""
    features = _features_of(schema)
    noted = {
        key: kind for key, kind in features.items() if isinstance(kind, dict) and kind.get("_type") == "ClassLabel"
    }
    for key in [*(name for name in _LABELS if name in noted), *(noted if len(noted) == 1 else ())]:
        if isinstance(noted[key].get("names"), list) and key in schema.names:
            return key, [str(name) for name in noted[key]["names"]]
    return next((name for name in _LABELS if name in schema.names), None), None


def _rows(file: RemoteFile, cache: Cache) -> _Rows:
    """The `_Rows` of a file, from the cache or stored there for good."""
    name = f"{file.key}.rows.npz"
    try:
        with np.load(io.BytesIO(cache.get_small(name) or b""), allow_pickle=False) as arrays:
            about = json.loads(str(arrays["about"]))
            labels = arrays["labels"] if about["labelled"] else None
            return _Rows(about["column"], about["count"], labels, about["classes"])
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass  # not stored yet, or incomplete
    rows = _read_rows(file, cache)
    about = {"column": rows.column, "count": rows.count, "labelled": rows.labels is not None, "classes": rows.classes}
    buffer = io.BytesIO()
    np.savez(buffer, about=np.array(json.dumps(about)), labels=np.zeros(0) if rows.labels is None else rows.labels)
    cache.put_small(name, buffer.getvalue())
    return rows


def _read_rows(file: RemoteFile, cache: Cache) -> _Rows:
    _import_pyarrow(file.url)

    def ranged() -> _Rows:
        with open_remote(file.url) as source:
            return _rows_of(source, file.url)

    try:
        return with_retries(ranged, file.url, FIRST_WAITS)
    except ValueError as error:
        if "requested" not in str(error) and "seek" not in str(
            error
        ):  # fsspec's messages for a server without range requests
            raise
    whole = FetchedFiles(RemoteFiles([file], cache, suffix=".parquet"))
    return _rows_of(whole.file(0), file.url)


def _rows_of(source: Any, name: str) -> _Rows:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        opened = parquet.ParquetFile(source)
        schema = opened.schema_arrow
        column = image_column(schema, name)
        label, declared = label_column(schema)
        labels: np.ndarray | None = None
        classes: list[str] = []
        if label is not None:
            table = opened.read(columns=[label], use_threads=False)
            labels, classes = as_labels(table.column(0).to_pylist(), declared)
        return _Rows(column, opened.metadata.num_rows, labels, classes)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{name} cannot be read as a parquet file: {str(error).splitlines()[0]}") from error


class _Rewritten:
    """Downloads parquet files and rewrites them as the module describes.

    Args:
        columns: of each file, the column of its images.
    """

    def __init__(self, columns: dict[RemoteFile, str]) -> None:
        self.columns = columns

    def __call__(self, file: RemoteFile, target: Path, waits: Sequence[float]) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        fetched = target.with_name(f"{target.name}.parquet")
        try:
            download(file, fetched, waits)
            with parquet.ParquetFile(fetched) as source, target.open("wb") as out:
                count = source.metadata.num_rows
                places = np.zeros((count, 2), dtype="<i8")
                out.write(np.int64(count).astype("<i8").tobytes() + places.tobytes())
                row = 0
                for batch in source.iter_batches(batch_size=32, columns=[self.columns[file]], use_threads=False):
                    values = batch.column(0)
                    for value in values.field("bytes") if pa.types.is_struct(values.type) else values:
                        image = value.as_buffer() if value.is_valid else b""
                        places[row] = out.tell(), len(image or b"")
                        out.write(image or b"")
                        row += 1
                out.seek(8)
                out.write(places.tobytes())
        except pa.ArrowException as error:
            raise DataUnreachable(f"{file.url} is broken: {str(error).splitlines()[0]}") from error
        finally:
            fetched.unlink(missing_ok=True)


def _import_pyarrow(name: str) -> None:
    """Raise ValueError that says what to install, if pyarrow is missing."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise ValueError(f"{name} needs pyarrow: pip install 'mimkit[stream]'") from error
