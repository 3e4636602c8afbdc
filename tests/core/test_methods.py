"""Rivals: what every method must satisfy, whatever it compares."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
from outputs import labels, leaves, output
from torch.utils.checkpoint import checkpoint

from dcd_core import method as shared
from dcd_core.methods import METHODS, Method, build
from dcd_core.methods.frequency import FreeKD
from dcd_core.models import dynunet
from dcd_core.train import Distiller, Recipe
from dcd_core.types import ContractError

NARROW, WIDE = (4, 6), (8, 12)
each = pytest.mark.parametrize("name", METHODS)
adapting = pytest.mark.parametrize("name", ["feature-mse", "cwd-features", "reco"])
PAPERS = [n for n, made in METHODS.items() if isinstance(made, type) and issubclass(made, Method)]

# Where the formula itself says otherwise.
DEPENDS_ON_SIZE = {"dcd-released": "its zero padding loses the signal of small grids"}
CHUNKED = ("logits", "cwd-logits", "cwd-features", "feature-mse", "fitnets")
CHUNKED += ("reco", "reco-released", "freekd", "freekd-prompt-free", "acam")
CHUNKED += ("gaussian-highpass", "fourier-highpass")


def made(name, student=NARROW, teacher=WIDE, *, seed=0, **options):
    """The method, with the same weights every time."""
    torch.manual_seed(seed)
    return ready(build(name, student, teacher, **options))


def ready(method):
    """The same, its prompts taken as they are: training them is another file's matter."""
    if isinstance(method, FreeKD):
        method.trained.fill_(True)
    return method


def unadapted(name):
    """Options that leave a student of the teacher's width as it is."""
    known = inspect.signature(METHODS[name]).parameters
    options = {option: "none" for option in ("projection", "adapters") if option in known}
    # The masks' own term is no comparison: it is there between equals, too.
    return options | ({"diversity": 0.0} if name == "acam" else {})


def trained(method):
    return [p for p in method.parameters() if p.requires_grad]


def compared(method, out):
    """The student's tensors that the method looks at."""
    used = [out.logits] if getattr(method, "needs_logits", False) else []
    return used + [out.stages[i] for i in getattr(method, "stages", ())]


# --- values ---------------------------------------------------------------------------------------


@each
def test_a_student_like_its_teacher_has_nothing_to_learn(name):
    method = made(name, WIDE, WIDE, **unadapted(name))
    assert method(output(WIDE), output(WIDE), labels()).item() == pytest.approx(0, abs=1e-6)


@each
def test_a_student_unlike_its_teacher_has(name):
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


@each
def test_chunks_change_neither_the_loss_nor_its_gradients(name, monkeypatch):
    def everything():
        method = made(name).double()
        student = leaves(output(NARROW, dtype=torch.float64))
        loss = method(student, output(WIDE, seed=9, dtype=torch.float64), labels())
        loss.backward()
        return [loss, *(x.grad for x in [*compared(method, student), *trained(method)])]

    whole, pieces = everything(), []

    def counted(*arguments, **options):
        pieces.append(arguments)
        return checkpoint(*arguments, **options)

    monkeypatch.setattr(shared, "CHUNK", 2000)
    monkeypatch.setattr(shared, "checkpoint", counted)
    for one, other in zip(whole, everything(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    assert (len(pieces) > 2) == (name in CHUNKED)


@pytest.mark.parametrize("adapters", ["learned", "frozen", "orthogonal"])
@adapting
def test_adapted_chunk_by_chunk_is_adapted_before(name, adapters, monkeypatch):
    method = made(name, adapters=adapters).double()
    same = made(name, WIDE, WIDE, adapters="none").double()
    same.load_state_dict(method.state_dict(), strict=False)  # all but the adapters
    student = leaves(output(NARROW, dtype=torch.float64))
    adapted = tuple(a(s) for a, s in zip(method.adapters, student.stages, strict=False))
    teacher = output(WIDE, seed=9, dtype=torch.float64)
    whole = same(student._replace(stages=adapted), teacher, labels())
    monkeypatch.setattr(shared, "CHUNK", 2000)
    pieces = method(student, teacher, labels())
    learning = [*compared(method, student), *trained(method.adapters)]
    gradients = [torch.autograd.grad(loss, learning) for loss in (whole, pieces)]
    for one, other in [(whole, pieces), *zip(*gradients, strict=True)]:
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@adapting
def test_the_adapted_student_never_exists_whole(name, monkeypatch):
    """What autograd keeps until the way back is smaller than one adapted stage."""
    monkeypatch.setattr(shared, "CHUNK", 2000)
    student, teacher = leaves(output(NARROW)), output(WIDE, seed=9)
    given = {x.untyped_storage().data_ptr() for out in (student, teacher) for x in out.stages}
    sizes = [0]

    def kept(x):
        if x.untyped_storage().data_ptr() not in given:
            sizes.append(x.untyped_storage().nbytes())
        return x

    with torch.autograd.graph.saved_tensors_hooks(kept, lambda x: x):
        made(name)(student, teacher, labels())
    assert max(sizes) < teacher.stages[0].nbytes


# --- precision ------------------------------------------------------------------------------------


@each
def test_half_precision_stays_finite(name):
    # 300 squared is beyond float16.
    student = leaves(output(NARROW, dtype=torch.float16, scale=300))
    method = made(name)
    loss = method(student, output(WIDE, seed=9, dtype=torch.float16, scale=300), labels())
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
@pytest.mark.parametrize("label", [0, -1], ids=["background", "ignored"])
def test_a_patch_without_foreground_or_without_labels_is_finite(name, label):
    student, method = leaves(output(NARROW)), made(name)
    loss = method(student, output(WIDE, seed=9), torch.full_like(labels(), label))
    assert loss.isfinite()
    loss.backward()
    assert all(x.grad.isfinite().all() for x in compared(method, student))


# --- who is trained -------------------------------------------------------------------------------


@each
def test_gradients_reach_the_student_and_the_method_but_not_the_teacher(name):
    method = made(name)
    student, teacher = leaves(output(NARROW)), leaves(output(WIDE, seed=9))
    method(student, teacher, labels()).backward()
    learning = [*compared(method, student), *trained(method)]
    assert all(x.grad is not None and x.grad.abs().max() > 0 for x in learning)
    # DCD leaves that to the Distiller, where the teacher runs without gradients.
    if isinstance(method, Method):
        assert all(x.grad is None for x in (teacher.logits, *teacher.stages))


@each
def test_all_that_a_method_trains_is_optimised_and_saved(name):
    torch.manual_seed(0)
    student, teacher = dynunet(1, 2, channels=(4, 4, 8)), dynunet(1, 2, channels=(6, 8, 8))
    method = ready(build(name, student.channels, teacher.channels))
    distiller = Distiller(student, teacher, method).train()
    recipe = Recipe(optimizer="sgd", learning_rate=1.0, weight_decay=0.0)
    optimizer = recipe.build_optimizer(distiller.trainable())
    held = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert {id(p) for p in trained(method)} <= held
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
def test_a_saved_method_comes_back(name):
    one, other = made(name), made(name, seed=1)
    other.load_state_dict(one.state_dict())
    arguments = output(NARROW), output(WIDE, seed=9), labels()
    assert torch.equal(one(*arguments), other(*arguments))


@each
def test_a_copy_shares_nothing(name):
    one = made(name)
    other = copy.deepcopy(one)
    arguments = output(NARROW), output(WIDE, seed=9), labels()
    assert torch.equal(one(*arguments), other(*arguments))
    assert not {id(p) for p in one.parameters()} & {id(p) for p in other.parameters()}


# --- what is refused ------------------------------------------------------------------------------


@each
def test_an_unknown_option_is_refused(name):
    with pytest.raises(ContractError, match=f"option of {name}: got 'no_such'"):
        made(name, no_such=1)


@pytest.mark.parametrize(
    ("name", "options", "attempt"),
    [
        ("fitnet", {}, "'fitnets'"),
        ("wavelet_outputs", {}, "'wavelet-outputs'"),
        ("logits", {"temprature": 3.0}, "'temperature'"),
        ("gaussian-highpass", {"sigmas": 1.0}, "'sigma'"),
        ("dcd-released", {"levels": 2}, "no options"),
    ],
)
def test_what_is_nearest_to_an_unknown_name_is_proposed(name, options, attempt):
    with pytest.raises(ContractError, match=f"Try: {attempt}"):
        made(name, **options)


@each
def test_another_grid_is_refused(name):
    method = made(name)
    with pytest.raises(
        ContractError, match=r"(grid of encoder stage \d|logits of the teacher): got"
    ):
        method(output(NARROW), output(WIDE, size=8), labels())


# --- what is said ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PAPERS)
def test_a_method_names_its_source_its_changes_and_its_weight(name):
    said = ("Source:", "3D change:", "Differs from the authors' code:", "Options:", "`weight`")
    assert [part for part in said if part not in METHODS[name].__doc__] == []
    assert METHODS[name].weight > 0
    words = METHODS[name].__doc__.replace(",", " ").split()
    assert words[words.index("`weight`") + 1] == f"{METHODS[name].weight:g}"
