"""How a student is distilled in nnU-Net: by variables of the environment, or by one YAML file."""

import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from dcd_core.errors import nearest, one_of, require, within
from dcd_core.methods import METHODS, options_of
from dcd_core.types import ContractError

PREFIX = "DCD_NNUNET_"
"""What a variable begins with; DCD_NNUNET_SETTINGS names the YAML file, the others a setting."""


@dataclass(frozen=True)
class Settings:
    """All that the trainer asks for; what nnU-Net decides itself keeps nnU-Net's values.

    `DCD_NNUNET_<NAME>` sets a field, and so does a key of the YAML file. ContractError for a value
    that is out of range.
    """

    teacher: str = ""
    """Folder of the trained teacher, <trainer>__<plans>__<configuration>; "none" needs none."""
    fold: int | str | None = None
    """Fold of the teacher; by default the student's, whose val cases it has not seen either."""
    checkpoint: str = "checkpoint_final.pth"
    method: str = "dcd"
    """Name out of `dcd_core.methods.METHODS`, or "none" for the undistilled student."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Options of the method."""
    factor: int = 4
    """The teacher's features per stage are divided by it, down to `floor`."""
    floor: int = 8
    channels: list[int] | None = None
    """Features per stage, instead of `factor` and `floor`."""
    network: str | None = None
    """"PlainConvUNet" or "ResidualEncoderUNet", where it is another than the teacher's."""
    blocks: list[int] | None = None
    """Blocks, or convolutions of a plain U-Net, per stage; by default those nnU-Net plans."""
    norm: str | None = None
    """"InstanceNorm3d" or "BatchNorm3d", where it is another than the teacher's."""
    balance: str = "gradient"
    """"gradient": the weight is a ratio of gradient norms; "fixed": it multiplies the loss."""
    peak: float | None = None
    """Final weight: by default 0.2 of the gradient, or the release's 0.01 if fixed."""
    start: float | None = None
    """Epochs without distillation: by default a tenth of all, or the release's 150 if fixed."""
    ramp: float | None = None
    """Epochs in which the weight rises: by default a fifth, or the release's 800 if fixed."""
    epochs: int = 1000
    iterations: int = 250
    val_iterations: int = 50
    prepare: int = 50
    """Batches on which a method such as FreeKD may learn of the teacher alone."""
    mirroring: bool = True
    deep_supervision: bool = True
    name: str = ""
    """Appended to the name of the plans, and so to that of the folder, to tell students apart."""

    def __post_init__(self) -> None:
        for names, (fits, expected) in _RULES.items():
            for name in names.split():
                within(name, getattr(self, name), fits(getattr(self, name)), expected)
        one_of("balance", self.balance, "gradient", "fixed")
        if self.method != "none" and self.method not in METHODS:
            expected, attempt = "a name out of METHODS, or 'none'", nearest(self.method, METHODS)
            raise ContractError("method", repr(self.method), expected, attempt)
        start = self.schedule()["start"]
        if self.method != "none" and start >= self.epochs:
            got = f"{start}, of {self.epochs} epochs"
            raise ContractError("start", got, "an epoch of the training", "an earlier start")

    def schedule(self) -> dict[str, float]:
        """Keywords of `kd_weight`, in epochs."""
        usual = {"peak": 0.2, "start": 0.1 * self.epochs, "ramp": 0.2 * self.epochs}
        if self.balance == "fixed":  # of the release, for BraTS 2024
            usual = {"peak": 0.01, "start": 150.0, "ramp": 800.0}
        given = {key: getattr(self, key) for key in usual}
        return {key: usual[key] if value is None else value for key, value in given.items()}

    def method_options(self, *, regions: bool) -> dict[str, Any]:
        """The method's options; one that reads logits is told whether they are of `regions`."""
        told = {"regions": regions} if "regions" in options_of(self.method) else {}
        return {**told, **self.options}

    def identity(self) -> dict[str, Any]:
        """What a resumed training must share: all but the place of the teacher."""
        return {key: value for key, value in asdict(self).items() if key != "teacher"}


def read_settings(environment: Mapping[str, str]) -> Settings:
    """The settings that variables and their YAML file give, variables first.

    Values are YAML. `~` and `$NAME` in the teacher's path are replaced. ContractError, with the
    nearest known one, for an unknown name, and for a file that is missing or no YAML.
    """
    named = {k.removeprefix(PREFIX): v for k, v in environment.items() if k.startswith(PREFIX)}
    file = named.pop("SETTINGS", None)
    given = _parsed("\n".join(f"{key.lower()}: {text}" for key, text in named.items()))
    if file is not None:
        try:
            given = _parsed(Path(file).expanduser().read_text("utf-8"), file) | given
        except (OSError, UnicodeDecodeError) as error:
            expected = "a YAML file of settings"
            raise ContractError(f"{PREFIX}SETTINGS", error, expected, "the path of one") from None
    known = [each.name for each in fields(Settings)]
    for name in given:
        if name not in known:
            attempt = nearest(str(name), known)
            raise ContractError("setting", repr(name), f"one of {', '.join(known)}", attempt)
    teacher = os.path.expandvars(os.path.expanduser(str(given.pop("teacher", ""))))
    return Settings(teacher, **given)


def _parsed(text: str, source: str = "the environment") -> dict[str, Any]:
    require("nnunet", "yaml")
    import yaml

    try:
        return dict(yaml.safe_load(text) or {})
    except (yaml.YAMLError, TypeError, ValueError) as error:
        got = " ".join(str(error).split())
        raise ContractError(f"settings of {source}", got, "YAML", "lines of name: value") from None


def _whole(value: Any, least: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and 0 <= value < math.inf


def _widths(value: Any) -> bool:
    return value is None or (isinstance(value, list) and bool(value) and all(map(_whole, value)))


_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "fold": (lambda x: x in (None, "all") or _whole(x, 0), "a number from 0, or 'all'"),
    "factor floor epochs iterations val_iterations prepare": (_whole, "a count of at least 1"),
    "channels blocks": (_widths, "a list of counts, one per stage"),
    "peak start ramp": (lambda x: x is None or _number(x), "a finite number, 0 or more"),
    "mirroring deep_supervision": (lambda x: isinstance(x, bool), "true or false"),
    "options": (lambda x: isinstance(x, dict), "names with values"),
    "checkpoint balance method": (lambda x: isinstance(x, str), "a name"),
    "name": (lambda x: bool(re.fullmatch(r"[A-Za-z0-9-]*", str(x))), "letters and digits"),
    "network": (lambda x: x in (None, "PlainConvUNet", "ResidualEncoderUNet"), "one of nnU-Net"),
    "norm": (lambda x: x in (None, "InstanceNorm3d", "BatchNorm3d"), "instance or batch norm"),
}
