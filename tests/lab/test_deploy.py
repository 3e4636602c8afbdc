"""Deploy: counts follow from shapes, exports say what the network says, int8 nearly so."""

import copy
import pickle
from collections import OrderedDict
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from outputs import noise as patch
from torch import nn

from dcd_core.models import Segmenter, dynunet, parameters, resenc
from dcd_core.types import ContractError
from dcd_lab import deploy
from dcd_lab.compress import prune
from dcd_lab.deploy.export import adds_in_32_bits
from dcd_lab.deploy.int8 import rounded_values, rounded_weights

PACKAGES = ("nncf", "onnx", "onnxruntime", "onnxscript", "openvino")
ABSENT = [name for name in PACKAGES if find_spec(name) is None]
needs_extra = pytest.mark.skipif(bool(ABSENT), reason=f"extra [deploy]: no {', '.join(ABSENT)}")
ENDINGS = pytest.mark.parametrize("ending", [".xml", ".onnx"], ids=["openvino", "onnxruntime"])
BUILDERS = {
    "dynunet": lambda: dynunet(2, 3, channels=(4, 6, 8)),
    "resenc": lambda: resenc(2, 3, channels=(4, 6), blocks=(1, 1), deep_supervision=True),
}


PATCHES = [patch(1, 2, 16, 16, 16), patch(2, 2, 8, 16, 24, seed=1)]


def three():
    """One convolution of each kind."""
    torch.manual_seed(0)
    down, up = nn.Conv3d(2, 5, 3, stride=2, padding=1), nn.ConvTranspose3d(5, 4, 2, 2)
    layers = {"down": down, "up": up, "head": nn.Conv3d(4, 3, 1)}
    return Segmenter(nn.Sequential(OrderedDict(layers)), ["down"], [5])


def test_macs_are_those_of_the_formula():
    model, (b, n) = three(), (2, 8)
    down = 2 * 5 * 27 * (n // 2) ** 3
    up = 5 * 4 * 8 * (n // 2) ** 3  # every input voxel meets every weight once
    head = 4 * 3 * n**3
    assert deploy.macs(model, (b, 2, n, n, n)) == b * (down + up + head)


@pytest.mark.slow
def test_a_cost_states_what_was_measured_and_how():
    model, before = three().train(), torch.get_num_threads()
    cost = deploy.cost(model, (1, 2, 8, 8, 8), threads=1, rounds=3)
    assert cost.parameters == parameters(model) == (2 * 27 + 1) * 5 + 5 * 4 * 8 + 4 + (4 + 1) * 3
    assert cost.macs == deploy.macs(model, (1, 2, 8, 8, 8))
    assert np.isnan(cost.peak_mib) or 0 <= cost.peak_mib < 20
    assert 0 < cost.low_ms <= cost.latency_ms <= cost.high_ms
    assert (cost.threads, cost.device) == (1, "cpu")
    assert torch.get_num_threads() == before
    assert model.training


@pytest.mark.slow
def test_the_peak_is_that_of_what_exists_at_once():
    """Weights of 32 MiB, input of 4 MiB, output of 64 MiB: all, and not twice as much."""
    model = Segmenter(nn.Conv3d(1, 16, 1), (), ())
    model.network.ballast = nn.Parameter(torch.ones(2**23))
    peak = deploy.peak_mib(model, (1, 1, 64, 128, 128), threads=1)
    # Linux counts resident pages in batches, for each processor: up to some 1.5 MiB come late.
    assert np.isnan(peak) or 98 < peak < 120


@pytest.fixture(scope="module", params=BUILDERS, ids=BUILDERS)
def exported(request, tmp_path_factory):
    """A network and its ONNX file."""
    pytest.importorskip("onnxscript", reason="needs the extra [deploy]")
    torch.manual_seed(0)
    model = BUILDERS[request.param]()
    path = tmp_path_factory.mktemp("export") / f"{request.param}.onnx"
    return model, deploy.export_onnx(model, path, (1, 2, 8, 8, 8))


@needs_extra
def test_the_export_is_the_network_on_any_batch_and_grid(exported):
    model, path = exported
    assert model.training, "as it was"
    largest = max(model.eval()(x).logits.abs().max().item() for x in PATCHES)
    assert deploy.check_export(model, path, PATCHES) < 1e-4 * largest
    model.train()


@needs_extra
@pytest.mark.parametrize("regions", [False, True])
def test_an_export_knows_whether_its_logits_are_those_of_regions(regions, tmp_path):
    """Read as classes of one softmax, logits of overlapping regions are wrong without an error."""
    model = BUILDERS["dynunet"]()
    model.regions = regions
    path = deploy.export_onnx(model, tmp_path / "model.onnx", (1, 2, 8, 8, 8))
    rounded = [deploy.quantize(path, tmp_path / f"int8{s}", PATCHES) for s in (".onnx", ".xml")]
    runtimes = [deploy.load(path, runtime=runtime) for runtime in ("onnxruntime", "openvino")]
    networks = [*runtimes, *map(deploy.load, rounded)]
    assert [network.regions for network in networks] == [regions] * 4


@needs_extra
def test_networks_of_one_shape_have_one_graph_and_others_another(exported, tmp_path):
    """What a distilled student costs is what an undistilled one costs: only weights differ."""
    model, _ = exported
    files = []
    for name in ("one", "two"):
        other = copy.deepcopy(model)
        with torch.no_grad():
            for weight in other.parameters():  # equal ones would be stored once
                weight.normal_()
        files.append(deploy.export_onnx(other, tmp_path / f"{name}.onnx", (1, 2, 8, 8, 8)))
    wider = deploy.export_onnx(
        dynunet(2, 3, channels=(4, 6, 10)), tmp_path / "wider.onnx", (1, 2, 8, 8, 8)
    )
    hashes = [deploy.graph_hash(file) for file in (*files, wider)]
    assert hashes[0] == hashes[1] != hashes[2]
    with pytest.raises(ContractError, match="an ONNX file"):
        deploy.graph_hash(tmp_path / "none.onnx")


@needs_extra
def test_images_of_a_batch_computed_abreast_are_those_of_one_after_the_other(exported):
    model, path = exported
    given = {"runtime": "openvino", "threads": 2, "abreast": True}
    batch = torch.cat([patch(1, 2, 16, 8, 8, seed=seed) for seed in range(5)])
    assert (
        deploy.check_export(model.eval(), deploy.load(path, **given), [batch], tolerance=1e-4) > 0
    )
    in_bfloat16 = deploy.load(path, **given, bfloat16=True)
    assert deploy.check_export(model, in_bfloat16, [batch], tolerance=0.1) > 0
    model.train()
    with pytest.raises(ContractError, match="runtime of bfloat16 or abreast"):
        deploy.load(path, abreast=True)


@needs_extra
def test_another_network_is_refused(exported):
    model, path = exported
    other = copy.deepcopy(model)
    with torch.no_grad():
        next(iter(other.parameters())).add_(0.1)  # a factor would vanish in the norm
    with pytest.raises(ContractError, match=r"logits .* off.*within 0\.001"):
        deploy.check_export(other, path, PATCHES)
    next(iter(other.parameters())).data.fill_(float("nan"))
    with pytest.raises(ContractError, match="off"):
        deploy.check_export(other, path, PATCHES)


@needs_extra
def test_an_export_is_a_segmenter_of_either_runtime_that_survives_pickling(exported):
    model, path = exported
    for runtime in ("onnxruntime", "openvino"):
        network = deploy.load(path, threads=1, runtime=runtime)
        assert relative_error(model, network) < 1e-4
        again = pickle.loads(pickle.dumps(network))
        output = again(PATCHES[0])
        assert again.network.runtime == runtime
        assert torch.equal(output.logits, network(PATCHES[0]).logits)
        assert (output.stages, output.deep) == ((), ())


SHAPE, BROKEN = (1, 2, 8, 8, 8), [PATCHES[0], torch.full_like(PATCHES[0], torch.nan)]
REFUSED = [
    (lambda: deploy.load("absent.onnx"), r"\.onnx or \.xml"),
    (lambda: deploy.load("."), r"\.onnx or \.xml"),
    (lambda: deploy.load("a.xml", runtime="onnxruntime"), r"runtime of \.xml"),
    (lambda: deploy.export_onnx(three(), "a.onnx", (1, 3, 8, 8, 8)), "network divide"),
    (
        lambda: deploy.export_onnx(BUILDERS["dynunet"](), "a", (1, 2, 10, 8, 8)),
        "the network divide",
    ),
    (lambda: deploy.quantize("a.onnx", "b.xml", []), "batches of training cases"),
    (lambda: deploy.quantize("a.onnx", "b.xml", BROKEN), "batch 2.*NaN"),
    (lambda: deploy.quantize("a.onnx", "a.pt", PATCHES), r"\.xml or \.onnx"),
    (lambda: deploy.simulate_int8(three(), []), "batches of training cases"),
    (lambda: deploy.simulate_int8(three(), BROKEN), "batch 2.*NaN"),
    (lambda: deploy.simulate_int8(three(), PATCHES, keep_float=["dow"]), "keep_float"),
    (lambda: deploy.simulate_int8(three(), PATCHES, percentile=50), "percentile"),
    (lambda: deploy.cost(three(), SHAPE, rounds=0), "at least 1"),
    (lambda: deploy.cost(three(), SHAPE, threads=0), "at least 1"),
]


@pytest.mark.parametrize(("call", "words"), REFUSED)
def test_what_cannot_be_deployed_is_refused(call, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.xml").touch()
    with pytest.raises(ContractError, match=words):
        call()


def test_a_cut_file_is_named(tmp_path, monkeypatch):
    """By the runtime, or by one that stands for it and reads nothing."""
    fake = tmp_path / "packages" / "onnxruntime" / "__init__.py"
    fake.parent.mkdir(parents=True)
    runtime = "class SessionOptions: pass\ndef InferenceSession(*_, **__): raise OSError"
    fake.write_text(runtime, "utf-8")
    monkeypatch.syspath_prepend(fake.parents[1])
    (tmp_path / "cut.onnx").write_bytes(b"\x08\x0a")
    with pytest.raises(ContractError, match=r"a whole file.*cut\.onnx"):
        deploy.load(tmp_path / "cut.onnx")


def test_what_is_not_installed_is_named_with_its_extra(monkeypatch, tmp_path):
    monkeypatch.setattr("dcd_core.errors.find_spec", lambda name: None)
    exported, path = tmp_path / "a.onnx", tmp_path / "b.xml"
    exported.touch()
    for call, extra in (
        (lambda: deploy.export_onnx(three(), path, (1, 2, 8, 8, 8)), "deploy"),
        (lambda: deploy.quantize(exported, path, PATCHES), "deploy"),
        (lambda: deploy.load(exported), "deploy"),
        (lambda: prune(BUILDERS["resenc"](), PATCHES[0], parameters=100), "compress"),
    ):
        with pytest.raises(ContractError, match=rf"\.\[{extra}\]"):
            call()


def relative_error(model, other, patches=PATCHES):
    """Root mean square of the difference over that of the logits."""
    with torch.inference_mode():
        pairs = [(model.eval()(x).logits, other(x).logits) for x in patches]
    differences = torch.cat([(one - two).flatten() for one, two in pairs])
    return (differences.norm() / torch.cat([one.flatten() for one, _ in pairs]).norm()).item()


@needs_extra
@ENDINGS
def test_int8_is_near_and_what_stays_in_float_is_exact(exported, ending, tmp_path):
    model, path = exported
    whole = deploy.load(deploy.quantize(path, tmp_path / f"a{ending}", PATCHES))
    edges = deploy.load(deploy.quantize(path, tmp_path / f"b{ending}", PATCHES, keep_float="edges"))
    assert 1e-3 < relative_error(model, edges) < relative_error(model, whole) < 0.2
    heads = {f"heads.{i}" for i in range(1, 9)}  # of deep supervision: they are not exported
    kept = [
        name
        for name, layer in model.network.named_modules()
        if isinstance(layer, nn.Conv3d | nn.ConvTranspose3d) and name not in heads
    ]
    path = deploy.quantize(path, tmp_path / f"c{ending}", PATCHES, keep_float=kept)
    assert relative_error(model, deploy.load(path)) < 1e-4


@needs_extra
@ENDINGS
def test_int8_that_could_overflow_is_warned_of_or_made_not_to(
    exported, ending, tmp_path, monkeypatch
):
    model, path = exported
    eight = deploy.quantize(path, tmp_path / f"eight{ending}", PATCHES)
    for module in ("export", "int8"):
        monkeypatch.setattr(f"dcd_lab.deploy.{module}.adds_in_32_bits", lambda: False)
    with pytest.warns(UserWarning, match="int8 can overflow on this processor"):
        deploy.load(eight)
    seven = deploy.load(deploy.quantize(path, tmp_path / f"seven{ending}", PATCHES))
    assert relative_error(model, seven) < 0.2


@pytest.mark.parametrize(
    ("flags", "safe"),
    [("avx2 fma", False), ("avx2 avx512f", False), ("avx2 avx_vnni", True), ("neon", True)],
)
def test_processors_whose_int8_overflows_are_known_by_their_flags(flags, safe, monkeypatch):
    monkeypatch.setattr("pathlib.Path.read_text", lambda *_: f"flags\t\t: fpu {flags}\n")
    assert adds_in_32_bits() == safe


@needs_extra
def test_transposed_convolutions_are_right(tmp_path):
    """Some int8 engines get them wrong by more than their values: every output is looked at."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.ConvTranspose3d(2, 4, 2, 2), nn.Conv3d(4, 3, 1))
    model = Segmenter(network, ["0"], [4])
    path = deploy.export_onnx(model, tmp_path / "up.onnx", (1, 2, 8, 8, 8))
    for name in ("openvino.xml", "onnxruntime.onnx"):
        quantised = deploy.quantize(path, tmp_path / name, PATCHES)
        error = deploy.check_export(model, quantised, PATCHES, tolerance=0.03)
        assert error > 1e-4, "or nothing was quantised"


@needs_extra
def test_a_layer_that_is_not_there_is_refused(exported, tmp_path):
    with pytest.raises(ContractError, match="keep_float: got 'absent'"):
        deploy.quantize(exported[1], tmp_path / "a.xml", PATCHES, keep_float=["absent"])


@pytest.mark.parametrize("axis", [0, 1])
def test_rounded_weights_are_those_of_the_formula(axis):
    weight = patch(4, 5, 3, 3, 3)
    weight.select(axis, 1).zero_()
    rounded = rounded_weights(weight, axis).numpy()
    for i, channel in enumerate(np.moveaxis(weight.numpy(), axis, 0)):
        step = np.abs(channel).max() / 127
        expected = np.round(channel / step) * step if step else channel
        np.testing.assert_allclose(np.moveaxis(rounded, axis, 0)[i], expected, atol=1e-6)


@pytest.mark.parametrize(("low", "high"), [(-1.0, 2.0), (0.0, 2.0), (-3.0, 0.0), (0.0, 0.0)])
def test_rounded_values_are_those_of_the_formula(low, high):
    x = patch(1, 2, 8, 8, 8) * 2
    x[0, 0, 0, 0, 0] = 0
    rounded = rounded_values(x, low, high).numpy()
    step = (high - low) / 255
    zero = round(-low / step) if step else 0
    integers = np.clip(np.round(x.numpy() / (step or 1)) + zero, 0, 255) if step else zero
    np.testing.assert_allclose(rounded, (integers - zero) * step, atol=1e-5)
    assert rounded[0, 0, 0, 0, 0] == 0


def test_the_simulation_is_its_parts():
    model = three().eval()
    simulated = deploy.simulate_int8(model, PATCHES[:1], percentile=99.0)
    with torch.inference_mode():
        value = clean = PATCHES[0]
        for name, axis in (("down", 0), ("up", 1), ("head", 0)):
            layer = model.network.get_submodule(name)
            low, high = np.percentile(clean.numpy(), [1, 99])
            rounded = copy.deepcopy(layer)
            rounded.weight.data = rounded_weights(layer.weight.data, axis)
            value = rounded(rounded_values(value, min(low, 0.0), max(high, 0.0)))
            clean = layer(clean)
        torch.testing.assert_close(simulated(PATCHES[0]).logits, value)
    assert simulated.spec is None
    assert relative_error(model, simulated, PATCHES[:1]) > 1e-3


def test_what_is_kept_in_float_is_not_simulated():
    model = three()
    kept = deploy.simulate_int8(model, PATCHES, keep_float=["down", "up", "head"])
    assert relative_error(model, kept) == 0
    one = deploy.simulate_int8(model, PATCHES, keep_float=["down", "up"]).network
    assert torch.equal(one.down.weight, model.network.down.weight)
    assert not torch.equal(one.head.weight, model.network.head.weight)
