"""Folders saved by Hugging Face's `datasets` (`save_to_disk`): memory-mapped Arrow files, read by row."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mimkit.data.shards.parquet import as_labels, image_column, join_labels, label_column
from mimkit.data.splits import choose_splits, split_of
from mimkit.data.string_array import StringArray
from mimkit.errors import BadImage

_SPLITS, _ONE = "dataset_dict.json", "state.json"


def is_saved_dataset(path: Path) -> bool:
    """Whether a folder was written by `save_to_disk`."""
    return (path / _SPLITS).is_file() or ((path / _ONE).is_file() and (path / "dataset_info.json").is_file())


class SavedDataset:
    """The images of a saved data set or of its splits: a `Store`. Their names are the split's name and the row number.

    Splits whose names begin with `train` and with one of `val`, `valid`, `validation`, `test` are used as such, and
    others left out; without both, all splits are taken.

    Args:
        path: the folder.

    Raises:
        ValueError: it cannot be read, has no column of images, or the package is missing.
    """

    shards = None

    def __init__(self, path: Path) -> None:
        self.path = path
        tables = _load(path)
        chosen, splits = choose_splits(list(tables), [split_of(name) for name in tables])
        self._tables = [tables[name] for name in chosen]
        counts = np.array([len(table) for table in self._tables])
        if not counts.sum():
            raise ValueError(f"{path} has no rows")
        self._limits = np.concatenate([[0], counts.cumsum()])
        self.names = StringArray.of(
            f"{name}/{row:06d}" if name else f"{row:06d}"
            for name, count in zip(chosen, counts, strict=True)
            for row in range(count)
        )
        labels, classes = join_labels([_labels(table) for table in self._tables])
        self.labels: np.ndarray | None = labels
        self.classes: list[str] | None = classes
        self._leaves = [image_column(table.features.arrow_schema, str(path)) for table in self._tables]
        self._images = [
            table.with_format("arrow", columns=[leaf.partition(".")[0]])
            for table, leaf in zip(self._tables, self._leaves, strict=True)
        ]
        self.splits = None if splits is None else splits[np.repeat(np.arange(len(counts)), counts)]

    def __reduce__(self) -> tuple[Any, ...]:
        return SavedDataset, (self.path,)

    def read(self, position: int) -> bytes:
        """One image as it is in its row.

        Raises:
            BadImage: there is none.
        """
        split = int(np.searchsorted(self._limits, position, side="right")) - 1
        value = self._images[split][position - int(self._limits[split])].column(0)[0].as_py()
        data = value.get("bytes") if isinstance(value, dict) else value
        if not data:
            named = isinstance(value, dict) and value.get("path")
            # The path is not followed: the author of a data set must not choose which local files are read.
            raise BadImage(self.path / self.names[position], "no image in this row" + (", only a path" * bool(named)))
        return data

    def identity(self, positions: np.ndarray) -> bytes:
        """The fingerprints that `datasets` keeps of the splits."""
        splits = np.searchsorted(self._limits, positions, side="right") - 1
        return "\0".join(self._tables[split]._fingerprint for split in np.unique(splits)).encode()

    def prefetch(self, current: Sequence[int], upcoming: Sequence[int]) -> None:
        """Nothing to do: the files are local."""


def _load(path: Path) -> dict[str, Any]:
    try:
        import datasets
    except ImportError as error:
        raise ValueError(f"{path} needs the package datasets: pip install 'mimkit[stream]'") from error
    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:  # of many types, where files are missing or broken
        raise ValueError(f"{path} cannot be read as a saved data set: {str(error).splitlines()[0]}") from error
    return dict(loaded) if isinstance(loaded, datasets.DatasetDict) else {"": loaded}


def _labels(table: Any) -> tuple[np.ndarray | None, list[str]]:
    column, declared = label_column(table.features.arrow_schema)
    if column is None:
        return None, []
    values = table.with_format("arrow", columns=[column])[:].column(0).to_pylist()
    return as_labels(values, declared)
