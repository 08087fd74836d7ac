"""Record tables: a list of frozen records to Parquet and back, byte for byte reproducible."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any

from evalq.errors import StoreError
from evalq.store.files import atomic_write

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["read_table", "record_schema", "write_table"]


def record_schema(record: type) -> pa.Schema:
    """The Arrow schema of a record class: one column a field, in order."""
    import pyarrow as pa

    kinds: dict[Any, pa.DataType] = {
        str: pa.string(),
        int: pa.int64(),
        float: pa.float64(),
        bool: pa.bool_(),
    }
    fields = []
    hints = typing.get_type_hints(record)
    for field in dataclasses.fields(record):
        hint = hints[field.name]
        optional = False
        if isinstance(hint, UnionType):
            (hint,) = (a for a in typing.get_args(hint) if a is not NoneType)
            optional = True
        fields.append(pa.field(field.name, kinds[hint], nullable=optional))
    return pa.schema(fields)


def write_table(path: Path, record: type, rows: Sequence[Any]) -> None:
    """Write records as Parquet, atomically. The same rows give the same bytes.

    Raises:
        StoreError: the disk is full or cannot be written.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = record_schema(record)
    columns = {f.name: [getattr(r, f.name) for r in rows] for f in schema}
    for name, values in columns.items():
        if schema.field(name).type == pa.string():
            # Parquet holds UTF-8 only; a lone surrogate in a model's output must not lose the run.
            columns[name] = [
                v if v is None else v.encode("utf-8", "replace").decode("utf-8") for v in values
            ]
    table = pa.table(columns, schema=schema)
    with atomic_write(path) as stream:
        pq.write_table(table, stream, compression="zstd")


def read_table(path: Path, record: type, dictionary: Sequence[str] = ()) -> pa.Table:
    """The table in ``path``, checked to have the columns of ``record``.

    Args:
        path: a Parquet file.
        record: the class of its rows.
        dictionary: text columns that repeat, to be read dictionary-encoded (a fraction of the
            memory).

    Raises:
        StoreError: missing, no Parquet, or other columns.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(path, read_dictionary=list(dictionary))
    except FileNotFoundError:
        raise StoreError(f"{path} is missing", hint="Run the plan again: it resumes.") from None
    except (OSError, pa.ArrowInvalid) as error:
        raise StoreError(f"{path} is no readable Parquet file: {error}") from None
    expected = record_schema(record).names
    if table.schema.names != expected:
        odd = sorted(set(table.schema.names) ^ set(expected))
        raise StoreError(
            f"{path} has other columns than this evalq writes: {', '.join(odd) or 'other order'}",
            hint="It was made by another version of evalq.",
        )
    return table
