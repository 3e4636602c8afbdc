"""Values that prose cites."""

from __future__ import annotations

_HIDDEN = "application/papermill.record/"  # myst-nb strips outputs whose mime type starts so


def glue(name: str, value: object) -> None:
    """Give `value` a name that prose can cite, as in {glue:text}`notebooks/05-brats.ipynb::name:s`.

    Numbers and strings stay invisible in the notebook's page; figures and tables are shown too.
    myst-nb finds them by the metadata written here. Outside a notebook nothing happens.
    """
    from IPython import get_ipython
    from IPython.core.formatters import format_display_data
    from IPython.display import display

    if get_ipython() is None:
        return
    if type(value).__module__ == "numpy" and hasattr(value, "item"):
        value = value.item()  # np.float64(0.5) would be cited with its type
    prefix = _HIDDEN if isinstance(value, bool | int | float | str) else ""
    data, described = format_display_data(value)
    described = {**described, "scrapbook": {"name": name, "mime_prefix": prefix}}
    display({prefix + kind: item for kind, item in data.items()}, raw=True, metadata=described)
