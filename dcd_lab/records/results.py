"""Tables and figures, each with its provenance."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dcd_core.errors import nearest
from dcd_core.storage import atomic, locked
from dcd_core.types import ContractError
from dcd_lab.records.identity import facts, file_hash, plain_data
from dcd_lab.records.places import plain, root, write_json, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import DataFrame


def save(
    table: DataFrame | Sequence[Mapping[str, Any]],
    profile: str,
    notebook: str,
    name: str,
    **extra: Any,
) -> Path:
    """Write `results/<profile>/<notebook>-<name>.csv` and a JSON sidecar with its provenance.

    Floats keep six significant digits. `seed` and `params` in `extra` go into the facts; every
    other item of `extra` is written beside them. Returns the path of the CSV file.
    """
    import pandas

    rows = table if isinstance(table, pandas.DataFrame) else [*table]
    frame, path = pandas.DataFrame(rows), _result(profile, notebook, name)
    _refuse_unreadable(f"result {path.name}", table, frame, extra)
    text = frame.to_csv(index=False, float_format="%.6g", lineterminator="\n")
    seed, given = extra.pop("seed", None), extra.pop("params", None)
    sidecar = {
        "profile": profile,
        "notebook": notebook,
        "columns": [str(column) for column in frame.columns],
        "rows": len(frame),
        "sha256": hashlib.sha256(text.encode("utf-8")).hexdigest(),
        **extra,
        "facts": facts(seed=seed, params=given),
    }
    write_text(path, text)
    write_json(path.with_suffix(".json"), sidecar, default=plain_data)
    return path


def _refuse_unreadable(
    what: str, table: object, frame: DataFrame, extra: Mapping[str, Any]
) -> None:
    """Raise ContractError for what could not be read back as it was."""
    names, complex_ones = [*map(str, frame.columns)], [*frame.select_dtypes("complex").columns]
    got = "a mapping" if isinstance(table, Mapping) else "complex numbers" if complex_ones else ""
    if len({*names}) < max(1, len(names)):
        got = f"the columns {names}"
    if taken := {"profile", "notebook", "columns", "rows", "sha256", "facts"} & {*extra}:
        got = f"{sorted(taken)} beside the table, which the sidecar has"
    if got:
        expected = "a table, or rows, of named columns of real numbers and text"
        raise ContractError(what, got, expected, "pandas.DataFrame, and other names")


def load(profile: str, notebook: str, name: str) -> DataFrame:
    """Return a table that `save` wrote; ContractError says which notebook to run if it is absent.

    It must be as it was written, by the hash and the number of rows in its sidecar. Only empty
    fields are missing values: a method called "null" stays a string.
    """
    path = _result(profile, notebook, name)
    attempt = f"python notebooks/run.py --profile {profile} {notebook} --force"
    _refuse_absent(path, attempt)
    what, wanted = f"result {path.name}", "the hash and the number of rows in its sidecar"
    try:
        sidecar = json.loads(path.with_suffix(".json").read_text("utf-8"))
        sha256, rows = sidecar["sha256"], sidecar["rows"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        got = f"no sidecar ({type(error).__name__})"
        raise ContractError(what, got, wanted, attempt) from None
    if file_hash(path) != sha256 or len(table := _read(path)) != rows:
        raise ContractError(what, "another content than was written", wanted, attempt)
    return table


def published(name: str = "published") -> DataFrame:
    """Return a table of cited numbers from `results/published`; its column `source` cites them."""
    folder = root() / "results" / "published"
    known = [path.stem for path in folder.glob("*.csv")]
    path = folder / f"{plain(name)}.csv"
    _refuse_absent(path, nearest(name, known))
    return _read(path)


def _result(profile: str, notebook: str, name: str) -> Path:
    file = f"{plain(notebook)}-{plain(name)}.csv"
    return root() / "results" / plain(profile) / file


def _refuse_absent(path: Path, attempt: str) -> None:
    if not path.is_file():
        raise ContractError("result", "no file", path.relative_to(root()).as_posix(), attempt)


def _read(path: Path) -> DataFrame:
    import pandas

    return pandas.read_csv(path, keep_default_na=False, na_values=["", "nan"])


def save_figure(
    figure: Figure,
    profile: str,
    notebook: str,
    name: str,
    *,
    tables: Sequence[str | os.PathLike[str]] = (),
    vector: bool = False,
    function: str = "",
) -> Path:
    """Write `figures/<profile>/<notebook>-<name>` as PNG (110 dpi), or as SVG when `vector`.

    The same figure always gives the same bytes. `tables` are the result files it was drawn from and
    `function` the one that drew it (default: the figure's label); both enter figures/INDEX.yml,
    except in the profile smoke. Returns the path of the image.
    """
    import matplotlib

    suffix = "svg" if vector else "png"
    path = root() / "figures" / plain(profile) / f"{plain(notebook)}-{plain(name)}.{suffix}"
    stripped = {"Date": None, "Creator": None} if vector else {"Software": None}
    with matplotlib.rc_context({"svg.hashsalt": "dcd"}), atomic(path) as temporary:
        figure.savefig(temporary, format=suffix, dpi=110, bbox_inches="tight", metadata=stripped)
    if profile != "smoke":
        drawn_by = function or str(figure.get_label()) or None
        results = [_relative(table) for table in tables]
        _index(path, {"function": drawn_by, "notebook": notebook, "results": results})
    return path


def _relative(path: str | os.PathLike[str]) -> str:
    """Return a path as seen from the project, so that no folder of this machine is recorded."""
    absolute = (root() / path).resolve()
    inside = absolute.is_relative_to(root())
    return absolute.relative_to(root()).as_posix() if inside else absolute.name


def _index(path: Path, entry: dict[str, Any]) -> None:
    import yaml

    index = root() / "figures" / "INDEX.yml"
    with locked(index.parent):
        known = yaml.safe_load(index.read_text("utf-8")) if index.is_file() else None
        known = {**(known or {}), path.relative_to(index.parent).as_posix(): entry}
        head = "# Which function, notebook and result files made each figure; written by records.\n"
        write_text(index, head + yaml.safe_dump(known, sort_keys=True, allow_unicode=True))
