"""Plans of the student: those of the teacher, narrower; stock nnU-Net predicts by them."""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dcd_core.models import BLOCKS, shrink
from dcd_core.models.nnunet import Trained, configured, read_file
from dcd_core.nnunet.settings import Settings
from dcd_core.types import ContractError

_COUNTS = {"PlainConvUNet": "n_conv_per_stage", "ResidualEncoderUNet": "n_blocks_per_stage"}


def student_plans(
    plans: Mapping[str, Any], configuration: str, settings: Settings
) -> dict[str, Any]:
    """Plans whose `configuration` has the student's network; all else is as it was.

    ContractError for a student that is not narrower than the teacher, or has other stages, and for
    plans without the configuration, or of an nnU-Net before 2.5.
    """
    made = copy.deepcopy(dict(plans))
    architecture = architecture_of(made, configuration)
    options = architecture["arch_kwargs"]
    wide = options["features_per_stage"]
    narrow = settings.channels or list(shrink(wide, settings.factor, settings.floor))
    fits = len(narrow) == len(wide) and all(map(int.__le__, narrow, wide)) and narrow != wide
    if not fits:
        expected = f"{len(wide)} stages, none wider than the teacher's {wide}, and one narrower"
        attempt = "a larger factor, a lower floor, or fewer channels"
        raise ContractError("features per stage of the student", narrow, expected, attempt)
    options["features_per_stage"] = narrow
    if settings.norm:
        options["norm_op"] = f"torch.nn.{settings.norm}"
    if settings.network or settings.blocks:
        _set_blocks(architecture, settings)
    made["configurations"][configuration]["architecture"] = architecture
    if settings.name:
        made["plans_name"] = f"{made['plans_name']}_{settings.name}"
    return made


def architecture_of(plans: Mapping[str, Any], configuration: str) -> dict[str, Any]:
    """A copy of the architecture that plans have for a configuration."""
    try:
        architecture = copy.deepcopy(dict(configured(plans, configuration)["architecture"]))
        options = architecture["arch_kwargs"]
        options["features_per_stage"] = list(options["features_per_stage"])  # U-Nets have them
        return architecture
    except KeyError as error:
        known = sorted(plans["configurations"])
        expected = f"one of {known}, of nnU-Net 2.5 or later"
        got = f"{configuration}, of which {error} is missing"
        raise ContractError("configuration", got, expected, "planning again") from None


def _set_blocks(architecture: dict[str, Any], settings: Settings) -> None:
    """Give an architecture another kind or number of blocks."""
    module, _, kind = architecture["network_class_name"].rpartition(".")
    network = settings.network or kind
    if not {kind, network} <= {*_COUNTS}:
        raise ContractError("network of the plans", kind, f"one of {[*_COUNTS]}", "other plans")
    options = architecture["arch_kwargs"]
    stages = len(options["features_per_stage"])
    planned = options.pop(_COUNTS[kind])
    if network != kind:  # as nnU-Net would plan it
        residual = [*BLOCKS, *[BLOCKS[-1]] * stages]
        planned = residual[:stages] if network == "ResidualEncoderUNet" else [2] * stages
    blocks = settings.blocks or planned
    if len(blocks) != stages:
        raise ContractError("blocks", blocks, f"one count for each of {stages} stages", "none")
    options[_COUNTS[network]] = blocks
    architecture["network_class_name"] = f"{module}.{network}"


def check_teacher(
    trained: Trained, plans: Mapping[str, Any], configuration: str, dataset: Mapping[str, Any]
) -> None:
    """Raise ContractError unless a teacher was trained on this data, prepared by these plans."""
    theirs = _facts(trained.plans, trained.configuration, trained.dataset)
    ours = _facts(plans, configuration, dataset)
    for name in ours | theirs:
        if theirs.get(name) != ours.get(name):
            got, expected = (f"{name} {facts.get(name)}" for facts in (theirs, ours))
            attempt = f"-p {trained.plans.get('plans_name')}, {trained.configuration} and the data "
            attempt += "set of the teacher, or another teacher"
            raise ContractError("teacher", got, f"{expected}, as in these plans", attempt)


def _facts(
    plans: Mapping[str, Any], configuration: str, dataset: Mapping[str, Any]
) -> dict[str, Any]:
    """What decides which images a network was trained on, and on which grids it sees them."""
    chosen = configured(plans, configuration)
    facts = {"data set": plans.get("dataset_name")}
    facts |= {name: dataset.get(name) for name in ("channel_names", "labels")}
    facts |= {"regions_class_order": dataset.get("regions_class_order")}
    facts |= {"transpose_forward": plans.get("transpose_forward")}
    names = ["spacing", "normalization_schemes", "use_mask_for_norm", "preprocessor_name"]
    facts |= {name: chosen.get(name) for name in names}
    if "CTNormalization" in (chosen.get("normalization_schemes") or []):
        name = "foreground_intensity_properties_per_channel"
        facts[name] = plans.get(name)
    architecture = architecture_of(plans, configuration)
    facts["network"] = architecture["network_class_name"].rpartition(".")[2]
    return facts | dict(architecture["arch_kwargs"])


def refuse_other_student(
    results: Any, trainer: str, plans: Mapping[str, Any], configuration: str
) -> None:
    """Raise ContractError where another student has the folder in nnU-Net's `results` already."""
    folder = Path(results, plans["dataset_name"])
    file = folder / f"{trainer}__{plans['plans_name']}__{configuration}" / "plans.json"
    ours = architecture_of(plans, configuration)
    if file.is_file() and architecture_of(read_file(file), configuration) != ours:
        attempt = "DCD_NNUNET_NAME with a word that tells this student apart"
        raise ContractError(str(file), "another student", "the plans of this one", attempt)
