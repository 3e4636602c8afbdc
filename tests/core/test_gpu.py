"""On a GPU the code is that of the CPU, and so are its values; the loss never waits for it."""

import copy

import numpy as np
import pytest
import torch
from oracles import relative
from outputs import labels, leaves, noise, output
from training import TINY, make_case, run

from dcd_core import models
from dcd_core.dcd import detail_distance
from dcd_core.infer import predict
from dcd_core.methods import METHODS, build
from dcd_core.methods.frequency import FreeKD
from dcd_core.models import resenc
from dcd_core.train import read_fit
from dcd_core.types import Output

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

CONVENTIONS = pytest.mark.parametrize("convention", ["orthonormal", "released"])
# Short and long axes, axes in pieces, odd sizes, one wavelet per axis.
CASES = [
    ("db4", (24, 16, 168)),
    ("haar", (64, 32, 16)),
    ("db4", (15, 18, 21)),
    (("haar", "db4", "sym5"), (32, 16, 24)),
]
EACH_CASE = pytest.mark.parametrize(("wavelet", "size"), CASES)


@pytest.fixture(autouse=True)
def _float32():
    """Products and convolutions in float32 proper, unless a test says otherwise."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        yield
    torch.set_float32_matmul_precision(before)


def moved(out):
    """An output on the GPU, every tensor of it a leaf that wants a gradient."""
    return Output(
        out.logits.detach().cuda().requires_grad_(),
        tuple(s.detach().cuda().requires_grad_() for s in out.stages),
    )


def pulled(loss, student, teacher):
    """A loss of two feature maps and its gradients in both, on the CPU."""
    student, teacher = (x.detach().clone().requires_grad_() for x in (student, teacher))
    value = loss(student, teacher)
    value.backward()
    return [x.detach().cpu() for x in (value, student.grad, teacher.grad)]


def worst(found, expected):
    """The largest relative difference of any pair."""
    return max(relative(a.double(), b.double()) for a, b in zip(found, expected, strict=True))


@CONVENTIONS
@EACH_CASE
def test_loss_and_gradients_are_those_of_the_cpu(wavelet, size, convention):
    def loss(student, teacher):
        return detail_distance(student, teacher, wavelet=wavelet, convention=convention)

    pair = [noise(2, 3, *size, seed=seed, dtype=torch.float64) for seed in (0, 1)]
    expected = pulled(loss, *pair)
    assert worst(pulled(loss, *(x.cuda() for x in pair)), expected) < 1e-12
    assert worst(pulled(loss, *(x.float().cuda() for x in pair)), expected) < 1e-5


@CONVENTIONS
def test_the_loss_can_be_captured_in_a_graph(convention):
    """Which forbids every wait, and every tensor whose size depends on a value."""
    student = noise(1, 4, 24, 24, 24).cuda().requires_grad_()
    teacher = noise(1, 4, 24, 24, 24, seed=1).cuda()

    def step():
        student.grad = None
        loss = detail_distance(student, teacher, convention=convention)
        loss.backward()
        return loss.detach()

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    student.grad = None
    with torch.cuda.graph(graph):
        captured = step()
    gradient = student.grad
    with torch.no_grad():
        student.copy_(noise(1, 4, 24, 24, 24, seed=2))
    graph.replay()
    value, kept = captured.clone(), gradient.clone()
    assert value.item() == pytest.approx(step().item(), rel=1e-6)
    assert torch.allclose(kept, student.grad, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_is_that_of_the_cpu(name):
    torch.manual_seed(0)
    method = build(name, (4, 6), (8, 12)).double()
    if isinstance(method, FreeKD):
        method.trained.fill_(True)
    student = leaves(output((4, 6), dtype=torch.float64))
    teacher = output((8, 12), seed=9, dtype=torch.float64)

    there, there_student = copy.deepcopy(method).cuda(), moved(student)
    expected = method(student, teacher, labels())
    found = there(there_student, moved(teacher), labels().cuda())
    expected.backward()
    found.backward()
    # Not closer: ReCo keeps the sizes of its regions in float32.
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    learning = [
        [out.logits, *out.stages, *made.parameters()]
        for made, out in ((there, there_student), (method, student))
    ]
    for one, other in zip(*learning, strict=True):
        assert (one.grad is None) == (other.grad is None)
        if one.grad is not None:
            torch.testing.assert_close(one.grad.cpu(), other.grad, rtol=1e-5, atol=1e-10)


def test_a_student_trains_there_and_is_read_back_anywhere(tmp_path):
    found = run(tmp_path, TINY)
    assert next(found.student.parameters()).is_cuda
    assert np.isfinite(found.history["segmentation"]).all()
    assert found.history["distillation"].iloc[-1] > 0
    again = read_fit(tmp_path)
    for name, weight in again.student.state_dict().items():
        assert torch.equal(weight, found.student.state_dict()[name].cpu()), name
    assert set(again.method) == set(found.method)


def test_a_prediction_is_that_of_the_cpu(tmp_path):
    torch.manual_seed(0)
    model = resenc(1, 2, channels=(4, 6, 8)).eval()
    image = make_case(0, size=24).image
    options = {"patch": (16, 16, 16), "overlap": 0.5, "precision": "32-true"}
    expected = predict(model, image, **options)
    found = predict(copy.deepcopy(model).cuda(), image, **options)
    assert found.is_cuda
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-4, atol=1e-5)
    path = models.save(copy.deepcopy(model).cuda(), tmp_path / "model.safetensors")
    assert path.read_bytes() == models.save(model, tmp_path / "same.safetensors").read_bytes()
