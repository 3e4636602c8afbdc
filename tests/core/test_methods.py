"""What every method must satisfy, whatever it compares."""

import copy
import math
from inspect import signature

import pytest
import torch
from outputs import labels, leaves, output

from dcd_core.dcd import DCD
from dcd_core.errors import Positive
from dcd_core.method import StageMethod
from dcd_core.methods import METHODS, adapter_option, build, options_of
from dcd_core.methods.frequency import FreeKD
from dcd_core.models import dynunet
from dcd_core.train import Distiller, Recipe
from dcd_core.types import ContractError

NARROW, WIDE = (4, 6), (8, 12)
each = pytest.mark.parametrize("name", METHODS)
PAPERS = [n for n, made in METHODS.items() if isinstance(made, type) and not issubclass(made, DCD)]
# Where the formula itself says otherwise.
DEPENDS_ON_SIZE = {"dcd-released": "its zero padding loses the signal of small grids"}
ADAPTED_IN_CHUNKS = ("feature-mse", "cwd-features", "reco")
CHUNKED = (*ADAPTED_IN_CHUNKS, "logits", "cwd-logits", "fitnets", "reco-released", "acam")
CHUNKED += ("freekd", "freekd-prompt-free", "gaussian-highpass", "fourier-highpass")


def made(name, student=NARROW, teacher=WIDE, *, seed=0, chunk=None, **options):
    """The method, with the same weights every time; its prompts, if any, count as trained."""
    torch.manual_seed(seed)
    method = build(name, student, teacher, **options)
    method.chunk = chunk or method.chunk
    if isinstance(method, FreeKD):
        method.trained.fill_(True)
    return method


def unadapted(name):
    """Options that leave a student of the teacher's width as it is."""
    options = {adapter_option(name): "none"} if adapter_option(name) else {}
    # The masks' own term is no comparison: it is there between equals, too.
    return options | ({"diversity": 0.0} if name == "acam" else {})


def trained(method):
    return [p for p in method.parameters() if p.requires_grad]


def compared(method, out):
    """The student's tensors that the method looks at."""
    return [out.logits] if method.needs_logits else [out.stages[i] for i in method.stages]


@each
def test_a_student_like_its_teacher_has_nothing_to_learn_and_another_has(name):
    method = made(name, WIDE, WIDE, **unadapted(name))
    assert method(output(WIDE), output(WIDE), labels()).item() == pytest.approx(0, abs=1e-6)
    loss = made(name)(output(NARROW), output(WIDE, seed=9), labels())
    assert loss.shape == ()
    assert loss.item() > 1e-3


@each
def test_the_value_does_not_depend_on_the_size_of_the_patch(name):
    if name in DEPENDS_ON_SIZE:
        pytest.skip(DEPENDS_ON_SIZE[name])
    small, large = (
        made(name)(output(NARROW, size=n), output(WIDE, size=n, seed=9), labels(size=n)).item()
        for n in (8, 16)
    )
    assert small == pytest.approx(large, rel=0.2)


@pytest.mark.parametrize("name", CHUNKED)
def test_chunks_change_neither_the_loss_nor_its_gradients(name):
    def everything(chunk):
        method = made(name, chunk=chunk).double()
        student = leaves(output(NARROW, dtype=torch.float64))
        loss = method(student, output(WIDE, seed=9, dtype=torch.float64), labels())
        loss.backward()
        return [loss, *(x.grad for x in [*compared(method, student), *trained(method)])]

    for one, other in zip(everything(1 << 24), everything(2000), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", CHUNKED)
def test_less_is_kept_for_the_backward_pass_in_chunks_than_at_once(name):
    def kept(chunk):
        """Bytes of each tensor that autograd keeps, beside what the method was given."""
        student, teacher = leaves(output(NARROW)), output(WIDE, seed=9)
        given = [x for out in (student, teacher) for x in (out.logits, *out.stages)]
        given, sizes = {x.untyped_storage().data_ptr() for x in given}, {}

        def note(x):
            storage = x.untyped_storage()
            if storage.data_ptr() not in given:
                sizes[storage.data_ptr()] = storage.nbytes()
            return x

        with torch.autograd.graph.saved_tensors_hooks(note, lambda x: x):
            loss = made(name, chunk=chunk)(student, teacher, labels())
        assert loss.requires_grad
        return [*sizes.values(), 0]

    assert sum(kept(2000)) < sum(kept(1 << 24))
    if name in ADAPTED_IN_CHUNKS:  # not even one adapted stage
        assert max(kept(2000)) < output(WIDE).stages[0].nbytes


@each
@pytest.mark.parametrize("label", [None, 0, -1], ids=["labels", "background", "ignored"])
def test_half_precision_stays_finite_with_any_labels_and_with_none(name, label):
    # 300 squared is beyond float16.
    half = {"dtype": torch.float16, "scale": 300}
    student, teacher = leaves(output(NARROW, **half)), output(WIDE, seed=9, **half)
    target = labels() if label is None else torch.full_like(labels(), label)
    method = made(name)
    loss = method(student, teacher, target)
    loss.backward()
    assert loss.dtype == torch.float32
    assert loss.isfinite()
    assert all(x.grad.isfinite().all() for x in [*compared(method, student), *trained(method)])


@each
def test_autocast_changes_nothing(name):
    method, student, teacher = made(name), output(NARROW), output(WIDE, seed=9)
    expected = method(student, teacher, labels())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(method(student, teacher, labels()), expected)


@each
def test_gradients_reach_the_student_and_the_method_but_not_the_teacher(name):
    method = made(name)
    student, teacher = leaves(output(NARROW)), leaves(output(WIDE, seed=9))
    method(student, teacher, labels()).backward()
    learning = [*compared(method, student), *trained(method)]
    assert all(x.grad is not None and x.grad.abs().max() > 0 for x in learning)
    # DCD leaves that to the Distiller, where the teacher runs without gradients.
    if not isinstance(method, DCD):
        assert all(x.grad is None for x in (teacher.logits, *teacher.stages))


@each
def test_all_that_a_method_trains_is_optimised_and_saved(name):
    torch.manual_seed(0)
    student, teacher = dynunet(1, 2, channels=(4, 4, 8)), dynunet(1, 2, channels=(6, 8, 8))
    method = made(name, student.channels, teacher.channels)
    distiller = Distiller(student, teacher, method).train()
    recipe = Recipe(optimizer="sgd", learning_rate=1.0, weight_decay=0.0)
    optimizer = recipe.build_optimizer(distiller.trainable())
    before = copy.deepcopy(distiller.trained_state())
    # A third stage of 8 voxels: the fewest that db4 can split.
    image, target = output((1,), size=32).stages[0], labels(size=32, classes=2)
    distiller(image, target, distil=True).distillation.backward()
    optimizer.step()
    after = distiller.trained_state()
    for key, p in method.named_parameters():
        changed = not torch.equal(before[f"method.{key}"], after[f"method.{key}"])
        assert changed == p.requires_grad
    assert any(not torch.equal(before[k], after[k]) for k in after if k.startswith("student."))
    assert all(p.grad is None for p in distiller.teacher.parameters())


@each
def test_a_saved_method_comes_back_and_a_copy_shares_nothing(name):
    one, other = made(name), made(name, seed=1)
    other.load_state_dict(one.state_dict())
    copied = copy.deepcopy(one)
    arguments = output(NARROW), output(WIDE, seed=9), labels()
    assert one(*arguments) == other(*arguments) == copied(*arguments)
    assert not {id(p) for p in one.parameters()} & {id(p) for p in copied.parameters()}


@each
def test_only_integer_labels_with_an_axis_of_channels_are_a_target(name):
    method, arguments, target = made(name), (output(NARROW), output(WIDE, seed=9)), labels()
    flat = [target[:, 0], target[:, 0, :1]]  # (b, d, h, w), with d of 16 and of 1
    for wrong in (*flat, target.expand(-1, 2, -1, -1, -1), target[:1], target.float(), target > 0):
        with pytest.raises(ContractError, match=r"target: got .* integer labels \(2, 1, D, H, W\)"):
            method(*arguments, wrong)
    assert torch.equal(method(*arguments, target.to(torch.uint8)), method(*arguments, target))


@pytest.mark.parametrize("name", ["ifvd", "reco", "reco-released"])
def test_methods_of_regions_ask_for_labels(name):
    with pytest.raises(ContractError, match="target: got None"):
        made(name)(output(NARROW), output(WIDE))


def flat(out):
    """The same without an axis, as of a network in 2D."""
    return out._replace(stages=tuple(stage[:, :, 0] for stage in out.stages))


@each
def test_another_grid_is_refused(name):
    with pytest.raises(ContractError, match=r"(encoder stage \d|logits of the teacher): got"):
        made(name)(output(NARROW), output(WIDE, size=8), labels())


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        (output((1, 6)), output(WIDE), r"features of encoder stage 0: got .*; expected 4 and 8"),
        (output(NARROW), output((8, 11)), r"encoder stage 1: got .*; expected 6 and 12 channels"),
        (output(NARROW, batch=1), output(WIDE), r"encoder stage 0: got student \(1, 4, 16, 16,"),
        (output(NARROW), output((8,)), r"encoder stages: got \(2, 1\); expected at least 2"),
        (flat(output(NARROW)), flat(output(WIDE)), r"of the student: got \(2, 4, 16, 16\)"),
    ],
)
def test_features_of_other_networks_are_refused(student, teacher, message):
    with pytest.raises(ContractError, match=message):
        made("feature-mse")(student, teacher)


@pytest.mark.parametrize(
    ("name", "options", "attempt"),
    [
        ("fitnet", {}, "'fitnets'"),
        ("wavelet_outputs", {}, "'wavelet-outputs'"),
        ("logits", {"temprature": 3.0}, "'temperature'"),
        ("gaussian-highpass", {"sigmas": 1.0}, "'sigma'"),
        ("skd", {"node": 1}, "'nodes'"),
        ("dcd-released", {"levels": 2}, "no options"),
    ],
)
def test_what_is_nearest_to_an_unknown_name_is_proposed(name, options, attempt):
    with pytest.raises(ContractError, match=f"Try: {attempt}"):
        made(name, **options)


@pytest.mark.parametrize(
    ("name", "option"), [("at", "adapters"), ("cwd-logits", "regions"), ("aaa-only", "bands")]
)
def test_what_a_method_decides_itself_is_no_option(name, option):
    assert option not in options_of(name)
    with pytest.raises(ContractError, match=f"option of {name}: got '{option}'"):
        made(name, **{option: None})


@pytest.mark.parametrize(
    ("name", "option", "values"),
    [
        *((n, "temperature", (0.0, -1.0, math.inf, math.nan)) for n in ("logits", "cwd-features")),
        *((n, "temperature", (0.0,)) for n in ("dist", "cwd-logits", "cirkd", "reco")),
        ("gaussian-highpass", "sigma", (0.0,)),
        ("fourier-highpass", "cutoff", (-0.1, 0.6)),
        ("wavelet-outputs", "levels", (0,)),
        ("freekd-prompt-free", "levels", (0,)),
        ("freekd", "tokens", (1,)),
        ("acam", "masks", (1,)),
        ("skd", "nodes", (0,)),
        ("ifvd", "side", (0,)),
        ("reco", "masks", ("all",)),
        ("reco", "context", ("none",)),
        ("fitnets", "adapters", ("none",)),
        ("rkd", "stages", ([2], [-1], [])),
        ("feature-mse", "adapters", ("none",)),
    ],
)
def test_options_out_of_range_are_refused(name, option, values):
    for value in values:
        with pytest.raises(ContractError, match=f"{option}.*: got"):
            made(name, **{option: value})


class Powered(StageMethod):
    power: Positive = 2.0


def test_an_attribute_whose_annotation_is_a_check_is_an_option():
    assert {"power", "stages", "adapters"} <= {*Powered.options()}
    assert [Powered(NARROW, WIDE).power, Powered(NARROW, WIDE, power=3).power] == [2.0, 3]
    with pytest.raises(ContractError, match="power: got 0; expected a finite number above 0"):
        Powered(NARROW, WIDE, power=0)
    with pytest.raises(TypeError, match="'powr'"):
        Powered(NARROW, WIDE, powr=3)
    assert "at_least(1)" in str(signature(Recipe))  # an API reference shows it


def test_an_annotation_that_names_nothing_is_refused():
    unknown = type("Unknown", (StageMethod,), {"__annotations__": {"power": "Nowhere"}})
    with pytest.raises(ContractError, match="annotations of Unknown: got name 'Nowhere'"):
        unknown(NARROW, WIDE)


def test_networks_of_unequal_depth_are_refused():
    with pytest.raises(ContractError, match="encoder stages: got 1 in the student, 2"):
        build("at", (4,), WIDE)


@pytest.mark.parametrize("name", PAPERS)
def test_a_method_names_its_source_its_changes_and_its_weight(name):
    said = ("Source:", "3D change:", "Differs from the authors' code", "Options:", "`weight`")
    assert [part for part in said if part not in METHODS[name].__doc__] == []
    words = METHODS[name].__doc__.replace(",", " ").replace(";", " ").split()
    assert words[words.index("`weight`") + 1].rstrip(".") == f"{METHODS[name].weight:g}"
