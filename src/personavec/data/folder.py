"""Which files of a folder are a data set: all that can be read; what is left out is named, or refused."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from personavec.data.readers import ENDINGS, UNPACKED, csv_columns, form, short
from personavec.data.tables import schema_of
from personavec.errors import DataError
from personavec.runs.json_files import read_json
from personavec.runs.progress import tell

PACKED = frozenset({*UNPACKED, ".zip", ".tar", ".tgz", ".tbz2", ".rar", ".7z"})
"""Endings of files that may hold data: a folder with one of them that cannot be read is not a whole data set."""
ABOUT = frozenset({"dataset_info.json", "dataset_infos.json"})
"""Files of `datasets` about the data, which hold no rows."""
NAMED = 8
"""Files of a folder that are named."""


def data_files(folder: Path) -> tuple[Path, ...]:
    """The files of a folder that are its data set, in order, or those of `Dataset.save_to_disk` in it.

    Says on stderr what is read where there are several, and what is left out.

    Raises:
        DataError: There is none, one that cannot be read, or tables of differing columns.
    """
    if (folder / "dataset_dict.json").is_file():
        splits = _shown(part.name for part in sorted(folder.iterdir()) if part.is_dir())
        raise DataError(f"expected one data set, got the splits {splits} in {folder}; pass the folder of one of them")
    if (folder / "state.json").is_file() and (saved := _saved(folder / "state.json")):
        return saved
    files: list[Path] = []
    others: list[str] = []
    for path in sorted(folder.iterdir()):
        if path.is_file() and form(path) and path.name not in ABOUT and not path.name.startswith("."):
            files.append(path)
        elif path.is_file() and path.suffix in PACKED:
            raise DataError(f"expected files that can be read in {folder}, got {path.name}; unpack it, or move it away")
        elif form(path) or not path.name.startswith("."):
            others.append(path.name + "/" * path.is_dir())
    if not files:
        raise DataError(
            f"expected a folder with files that end in {ENDINGS}, got {_shown(others) or 'an empty one'} in {folder}; "
            "pass one that has some"
        )
    if len(kinds := {form(path) for path in files}) == 1:
        _check_alike(files, kinds.pop())
    if len(files) > 1:
        tell(f"read in {folder} as one data set: {_shown(path.name for path in files)}")
    if others:
        tell(f"not read in {folder}: {_shown(others)}")
    return tuple(files)


def _saved(state: Path) -> tuple[Path, ...]:
    """The Arrow files of `Dataset.save_to_disk`, in its order; none where that file is of something else."""
    try:
        names = [str(part["filename"]) for part in read_json(state, strict=False)["_data_files"]]
    except (ValueError, KeyError, TypeError):
        return ()
    files = tuple(state.parent / Path(name).name for name in names)
    if absent := [path.name for path in files if not path.is_file()]:
        raise DataError(
            f"expected the files of Dataset.save_to_disk in {state.parent}, got no {_shown(absent)}; copy it"
        )
    return files


def _shown(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(names[:NAMED]) + (f" and {len(names) - NAMED} more" if len(names) > NAMED else "")


def _check_alike(files: Sequence[Path], kind: str) -> None:
    """Tables that are read as one must have the same columns, or what is written from them would lack some."""
    columns: Any = {".parquet": _fields, ".arrow": _fields, ".csv": csv_columns}.get(kind)
    for file in files[1:] if columns else ():
        first, other = columns(files[0]), columns(file)
        if first != other:
            differing = sorted({*first} ^ {*other})
            got = f"{', '.join(differing[:5])} in only one of them" if differing else "other types or another order"
            raise DataError(
                f"expected the same columns in all files of a folder, got {got} ({files[0].name}, {file.name}); give "
                "them the same columns, or screen them one by one"
            )


def _fields(path: Path) -> list[str]:
    import pyarrow as pa

    try:
        return [f"{field.name} ({field.type})" for field in schema_of(path)]
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"expected a table, got {path} ({short(error)}); write it again") from error
