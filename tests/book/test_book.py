"""What the book and the README say holds: names, options and examples."""

import importlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
from collections import OrderedDict
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pandas as pd
import pytest
import torch
from book_pages import BOOK, FENCE, PAGES, ROOT, blocks, prose
from PIL import Image
from torch import nn

from dcd_core.types import ContractError

README = (ROOT / "README.md").read_text("utf-8")
TEXT = "\n".join([README, *(prose(page) for page in PAGES)])


def test_names_of_the_packages_that_are_named_exist() -> None:
    def exists(name: str) -> bool:
        parent, _, last = name.rpartition(".")
        try:
            return hasattr(importlib.import_module(parent), last) or bool(
                importlib.import_module(name)
            )
        except ImportError:
            return False

    named = set(re.findall(r"`(dcd_(?:core|lab)(?:\.\w+)+)", TEXT))
    assert named
    assert [name for name in sorted(named) if not exists(name)] == []


def network(*channels: int) -> nn.Module:
    """A chain of convolutions named as the page's example names its network's stages."""
    downs = {
        f"down{i + 1}": nn.Conv3d(a, b, 3, stride=1 + (i > 0), padding=1)
        for i, (a, b) in enumerate(pairwise([1, *channels]))
    }
    up = {"up": nn.Upsample(scale_factor=4), "head": nn.Conv3d(channels[-1], 2, 1)}
    return nn.Sequential(OrderedDict(downs | up))


def test_the_example_of_using_the_loss_runs(tmp_path: Path) -> None:
    from nnunet import network_of, write

    from dcd_core.train import segmentation_loss

    training, _, wrapping, planning, pair = blocks(prose("howto/use-the-loss"), "python")
    torch.manual_seed(0)
    space: dict[str, Any] = {
        "batches": [(torch.randn(1, 1, 32, 32, 32), torch.randint(0, 2, (1, 1, 32, 32, 32)))] * 2,
        "segmentation_loss": segmentation_loss(),
    }
    for name, channels in {"teacher": (32, 64, 128), "student": (8, 16, 32)}.items():
        space["network"] = network(*channels)
        exec(wrapping.replace("(8, 16, 32)", str(channels)), space)
        space[name] = space["student"]
    before = [weight.detach().clone() for weight in space["student"].parameters()]
    exec(training.replace("start=100", "start=0").replace("ramp=200", "ramp=1"), space)
    assert space["weight"] == 0.2 * space["equal"] > 0  # the last step did distil
    assert all(projection.grad is not None for projection in space["distil"].parameters())
    after = space["student"].parameters()
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))

    made: dict[str, Any] = {"in_channels": 2, "classes": 3}
    made["folder"] = write(tmp_path / "run", network_of("ResidualEncoderUNet"))
    exec(planning, made)
    assert made["student"].channels == (8, 16, 32)
    stages = [made[name](torch.randn(1, 2, 16, 16, 16)).stages for name in ("teacher", "student")]
    assert all(t.shape[2:] == s.shape[2:] for t, s in zip(*stages, strict=True))

    features = {"student_features": torch.zeros(1, 2, 8, 8, 8)}
    features["teacher_features"] = torch.randn(1, 2, 8, 8, 8)
    exec(pair, features)
    assert float(features["distance"]) > 0


def test_the_whole_example_prints_what_the_page_shows(capsys: pytest.CaptureFixture[str]) -> None:
    _, example, *_ = blocks(prose("howto/use-the-loss"), "python")
    (shown,) = blocks(prose("howto/use-the-loss"), "text")
    exec(example, {})
    number = re.compile(r"\d+\.\d+")
    printed = capsys.readouterr().out
    assert number.sub("#", printed) == number.sub("#", shown)
    values = [[float(value) for value in number.findall(text)] for text in (printed, shown)]
    assert values[0] == pytest.approx(values[1], rel=0.02, abs=0.002)  # sums differ by processor


def test_the_example_of_adding_a_method_is_a_method() -> None:
    from dcd_core.models import dynunet
    from dcd_core.train import Distiller
    from dcd_core.types import Output

    example, line, _ = [body for _, body in FENCE.findall(prose("howto/add-a-method"))]
    assert len([text for text in example.splitlines() if text.strip()]) <= 20
    space: dict[str, Any] = {}
    exec(example, space)
    made = eval(f"{{{line}}}", space)["channel-correlation"]
    torch.manual_seed(0)
    one, other = torch.randn(2, 3, 4, 4, 4), torch.randn(2, 3, 4, 4, 4)
    loss = made((3,), (3,), adapters="none")(Output(one, (one,)), Output(other, (other,)))
    pairs = [[np.corrcoef(x.flatten(1)) for x in volume] for volume in (one, other)]
    assert float(loss) == pytest.approx(np.square(np.subtract(*pairs)).mean(), rel=1e-4)

    student, teacher = dynunet(1, 2, channels=(4, 4, 8)), dynunet(1, 2, channels=(6, 8, 8))
    distiller = Distiller(student, teacher, made(student.channels, teacher.channels)).train()
    losses = distiller(torch.randn(1, 1, 8, 8, 8), torch.zeros(1, 1, 8, 8, 8).long(), distil=True)
    losses.distillation.backward()
    assert all(p.grad.abs().max() > 0 for p in distiller.method.parameters())


def test_the_example_of_the_readme_gives_the_student_a_gradient() -> None:
    (example,) = blocks(README, "python")
    scope: dict[str, Any] = {}
    exec(example, scope)
    gradients = [p.grad for p in scope["distil"].parameters()]
    assert len(gradients) == 2
    assert all(g is not None and g.abs().sum() > 0 for g in gradients)


def test_the_table_of_the_study_counts_tested_runs_of_planned_seeds(tmp_path: Path) -> None:
    from dcd_study import recorded, rows

    def enter(
        arm: str, seed: int, tested: bool, finished: bool = True, task: str = "isles2022"
    ) -> None:
        entry = tmp_path / f"{task}-{arm}-{seed}-{tested}"
        entry.mkdir()
        job = {"arm": arm, "tested": tested, "recipe": {"seed": seed}, "cohort": {"task": task}}
        facts = {"job": job, "facts": {"cpu": "one kind", "gpu": None}}
        (entry / "run.json").write_text(json.dumps(facts), "utf-8")
        if finished:
            (entry / "fit.json").write_text('{"seconds": 1800}', "utf-8")

    for seed in (0, 1, 7):  # 7 is not planned
        enter("DCD", seed, True)
    enter("DCD", 2, False)  # a rung of the ladder
    enter("DCD", 2, True, task="brats2024")
    enter("logits", 0, True, finished=False)  # diverged
    enter("DCD", 1, True, task="vessels")
    plan = {"A": {"seeds": [0, 1, 2], "teachers": [5], "arms": {"DCD": {}, "logits": {}}}}
    plan["F"] = {"seeds": [0, 1], "tasks": ["ct", "vessels"], "arms": {"DCD": None}}
    assert rows(plan, recorded(tmp_path)) == [
        ["A", "teacher", "0", "1", "–", "–"],
        ["A", "DCD", "2", "3", "1.0", "one kind"],
        ["A", "logits", "0", "3", "–", "–"],
        ["F", "ct: DCD", "0", "2", "–", "–"],
        ["F", "vessels: DCD", "1", "2", "0.5", "one kind"],
    ]


def test_findings_and_scores_of_the_readme_are_those_of_the_study() -> None:
    from dcd_claims import scores, with_results

    assert with_results(README) == README, "run python book/_ext/dcd_claims.py"
    with pytest.raises(ContractError, match="markers"):
        with_results("# A page without a place for them")
    kept = pd.read_csv(ROOT / "results/study/06-isles-scores.csv")
    dice = kept.groupby("method").dice.mean()
    assert [arm for arm, mean in dice.items() if f"| {arm} | {mean:.3f} |" not in scores()] == []
    # README and the page on results say so.
    assert dice["equal compute"] > dice["undistilled"]


@pytest.mark.slow
def test_a_query_that_does_not_fit_stops_the_build(workspace: Path) -> None:
    pages, plan = workspace / "pages", "notebooks/params/endpoints.yml"
    (workspace / "book").mkdir()
    pages.mkdir()
    shutil.copy(ROOT / plan, workspace / plan)
    (pages / "conf.py").write_text('extensions = ["myst_parser", "dcd_claims"]\n', "utf-8")
    (pages / "index.md").write_text("# Page\n\n```{claims} mine\n```\n", "utf-8")
    places = os.pathsep.join([str(BOOK / "_ext"), str(ROOT)])

    def build(what: str) -> subprocess.CompletedProcess[str]:
        claim = {"id": "X", "statement": "Said.", "settled": "So.", "page": "index.md"}
        claim["queries"] = [{"kind": "needs", "what": what}]
        (workspace / "book" / "claims.yml").write_text(json.dumps({"mine": [claim]}), "utf-8")
        command = [sys.executable, "-W", "ignore", "-m", "sphinx", "-W", "-q", "-b", "text"]
        return subprocess.run(
            [*command, str(pages), str(workspace / "out")],
            env={**os.environ, "PYTHONPATH": places},
            capture_output=True,
            text=True,
        )

    good = build("clinical data")
    assert good.returncode == 0, good.stderr
    assert "open without clinical data" in (workspace / "out" / "index.txt").read_text("utf-8")
    bad = build("luck")
    assert bad.returncode != 0
    assert "needs: got 'luck'" in bad.stderr


def test_links_of_the_readme_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert [path for path in links if not (ROOT / path).exists()] == []


def test_every_finding_of_the_audit_has_its_place_in_the_release_and_a_test() -> None:
    from dcd_audit import findings

    rows = findings()
    assert [row["id"] for row in rows] == [f"A{number}" for number in range(1, 15)]
    lost = [
        test
        for row in rows
        for test in row["tests"]
        for file, name in [test.split("::")]
        if f"def {name}(" not in (ROOT / "tests" / file).read_text("utf-8")
    ]
    assert lost == []
    assert all(row["tests"] and (row["read"] or row["near"]) for row in rows)
    lines = [text for row in rows for text in row["read"].values()]
    assert [text for text in lines if not re.fullmatch(r"\d+(-\d+)?(, \d+(-\d+)?)*", text)] == []
    assert [row["measured_here"] for row in rows if "nan" in row["measured_here"]] == []


def test_pictures_of_real_cases_are_small_and_named_with_their_licences() -> None:
    pictures = sorted((BOOK / "_assets").glob("real-*.png"))
    page, notice = prose("notebooks/03-data"), (ROOT / "NOTICE").read_text("utf-8")
    assert len(pictures) == 2
    assert sum(file.stat().st_size for file in pictures) < 300_000
    assert [file.name for file in pictures if file.name not in notice] == []
    for text in (page, notice):
        assert "CC BY-SA 4.0" in text
        assert "Hernandez Petzsche" in text
        assert "Lesjak" in text


@pytest.mark.real
def test_pictures_of_real_cases_are_those_of_the_cases(real_cases: Path) -> None:
    from real_cases import pictures

    for name, drawn in pictures(real_cases).items():
        files = (io.BytesIO(drawn._repr_png_()), BOOK / "_assets" / name)
        new, kept = (np.asarray(Image.open(file).convert("L"), float) for file in files)
        assert new.shape == kept.shape
        assert np.abs(new - kept).mean() < 2  # another version of matplotlib moves a letter


def test_remote_loads_are_seen_and_links_are_not(tmp_path: Path) -> None:
    from dcd_offline import remote_loads

    (tmp_path / "page.html").write_text(
        """<link rel="stylesheet" href="https://a.example/x.css">
        <link rel="canonical" href="https://ok.example/"><a href="https://ok.example/">link</a>
        <script src="//b.example/x.js"></script><img src="local.png" srcset="https://c.example/2x">
        <img src="data:image/png;base64,AA=="><style>@import "https://d.example/x.css";</style>
        <p style="background: url(https://e.example/x.png)">url(https://ok.example/)</p>""",
        "utf-8",
    )
    (tmp_path / "sheet.css").write_text(
        "a{src:url('//f.example/x.woff2')} b{src:url(x.woff2)}", "utf-8"
    )
    hosts = [urlsplit(address).hostname for _, address in remote_loads(tmp_path)]
    assert sorted(str(host)[0] for host in hosts) == list("abcdef")
