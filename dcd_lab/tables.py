"""Tables of scores: whether their columns are there, hold numbers, and name every row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from dcd_core.types import ContractError

# Columns that say which row it is; every other numeric column is a metric.
KEYS = ("task", "profile", "method", "seed", "case", "fold", "region", "lesion", "epoch", "step")
WHERE = ("method", "seed", "case")


def require(table: pd.DataFrame, *names: str) -> None:
    """Raise ContractError unless this is a table that has each of the columns once."""
    if not isinstance(table, pd.DataFrame):
        got, attempt = type(table).__name__, "pandas.DataFrame(rows)"
        raise ContractError("table", got, "a pandas.DataFrame", attempt)
    columns = list(table.columns)
    if missing := [name for name in names if name not in columns]:
        raise ContractError("columns", columns, f"also {missing}", "rename them")
    if twice := [name for name in names if columns.count(name) > 1]:
        raise ContractError("columns", f"{twice} more than once", "each once", "rename them")


def numbers(table: pd.DataFrame, *metrics: str) -> pd.DataFrame:
    """The table with these columns in float64; NaN where there is no value.

    Raises ContractError for what is no real number: text, or complex numbers, whose imaginary part
    would be dropped.
    """
    require(table, *metrics)
    return table.assign(**{name: _numbers(name, table[name]) for name in metrics})


def _numbers(name: str, column: pd.Series) -> np.ndarray:
    what = f"column {name!r}"
    if column.dtype.kind == "c":
        return floats(what, column.to_numpy())
    try:
        return column.to_numpy(np.float64, na_value=np.nan)
    except (TypeError, ValueError, OverflowError) as error:
        expected, attempt = "real numbers, empty where there is none", "pandas.to_numeric"
        raise ContractError(what, str(error), expected, attempt) from None


def refuse_unnamed(table: pd.DataFrame, *keys: str) -> None:
    """Raise ContractError where a row does not say of which method, seed or case it is."""
    require(table, *keys)
    if unnamed := int(table[list(keys)].isna().any(axis=1).sum()):
        expected, attempt = f"{', '.join(keys)} in every row", "leaving these rows out"
        raise ContractError("table", f"{unnamed} rows without them", expected, attempt)


def floats(what: str, values: Any) -> np.ndarray:
    """A copy of values in float64; ContractError for what is no real number."""
    fault = "complex numbers"
    try:
        if not np.iscomplexobj(values):
            return np.array(values, np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        fault = str(error)
    raise ContractError(what, fault, "real numbers", "numpy.asarray(x, float)")
