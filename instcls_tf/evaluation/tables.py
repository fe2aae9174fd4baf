"""Features as tables for other tools: one row for each image."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np

# Rows that are turned into text, or into a group of a Parquet file, at a time.
_ROWS_AT_ONCE = 10_000


def write_csv(
    file: BinaryIO,
    *,
    backbone: np.ndarray,
    projection: np.ndarray,
    labels: np.ndarray,
    ids: np.ndarray,
    paths: Sequence[str],
) -> None:
    """Columns `path`, `id`, `label`, and one for each feature, `backbone_0` and so on.

    Args:
      file: to write into.
      backbone: `[N, F]`.
      projection: `[N, D]`.
      labels: `[N]`, -1 if unknown.
      ids: `[N]`.
      paths: `[N]` text; bytes of names that are no UTF-8 are written as they are.
    """
    import csv

    text = io.TextIOWrapper(file, "utf-8", "surrogateescape", newline="", write_through=True)
    table = csv.writer(text, lineterminator="\n")
    features = [
        f"{kind}_{i}"
        for kind, rows in (("backbone", backbone), ("projection", projection))
        for i in range(rows.shape[1])
    ]
    table.writerow(["path", "id", "label", *features])
    for start in range(0, len(ids), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        columns = paths[part], ids[part].tolist(), labels[part].tolist()
        # The shortest decimals that give the same float32 again.
        rows = np.concatenate([backbone[part], projection[part]], axis=1).astype(str).tolist()
        table.writerows([*about, *row] for *about, row in zip(*columns, rows))
    text.detach()


def write_parquet(
    file: BinaryIO,
    *,
    backbone: np.ndarray,
    projection: np.ndarray,
    labels: np.ndarray,
    ids: np.ndarray,
    paths: Sequence[str],
) -> None:
    """Columns `path`, `id`, `label`, and `backbone` and `projection` as lists of a fixed length.

    Args:
      file, backbone, projection, labels, ids: see `write_csv`.
      paths: `[N]` text; bytes of names that are no UTF-8 are written as `\\xe9`.
    """
    import pyarrow as pa
    from pyarrow import parquet

    def vectors(rows: np.ndarray) -> Any:
        return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(rows).ravel()), rows.shape[1])

    writer: Any = None
    for start in range(0, max(1, len(ids)), _ROWS_AT_ONCE):
        part = slice(start, start + _ROWS_AT_ONCE)
        columns = {
            "path": pa.array([_plain(path) for path in paths[part]], pa.string()),
            "id": pa.array(ids[part]),
            "label": pa.array(labels[part]),
            "backbone": vectors(backbone[part]),
            "projection": vectors(projection[part]),
        }
        table = pa.table(columns)
        writer = writer or parquet.ParquetWriter(file, table.schema)
        writer.write_table(table)
    writer.close()


def _plain(path: str) -> str:
    return path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
