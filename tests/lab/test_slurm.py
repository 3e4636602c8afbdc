"""Slurm: the sweep's units on a cluster of this machine alone, by the profile as it is.

Needs munge, slurmctld, slurmd and slurm-client, which are Debian packages of these names.
"""

from __future__ import annotations

import json
import os
import pwd
import shutil
import socket
import subprocess
import sys
import tempfile
from contextlib import ExitStack, closing
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CLIENTS = ("sbatch", "scancel", "scontrol", "sinfo", "squeue", "srun")
SETTINGS = ["tasks=[isles2022]", "methods=[feature-mse]", "frozen=[]", "seeds=[0]"]

# More processors and memory than there may be: the profile asks for them, and nobody checks.
CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
NodeName={host} NodeAddr=127.0.0.1 CPUs=8 RealMemory=64000
PartitionName=gpu Nodes={host} Default=YES
"""


def free_ports():
    """Two ports that nobody listens on."""
    with ExitStack() as stack:
        made = [stack.enter_context(closing(socket.socket())) for _ in range(2)]
        for each in made:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in made]


def write_cluster(folder):
    """Files of a cluster of one node, and clients that read them wherever a job calls them."""
    for name in ("state", "spool", "bin"):
        (folder / name).mkdir()
    key = folder / "munge.key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    config = folder / "slurm.conf"
    host, user = socket.gethostname().partition(".")[0], pwd.getpwuid(os.getuid()).pw_name
    text = CONFIG.format(folder=folder, host=host, user=user, ports=free_ports())
    config.write_text(text, "utf-8")
    # Snakemake's jobs forget SLURM_CONF, as a real cluster's configuration lies in /etc/slurm.
    for name in CLIENTS:
        client = folder / "bin" / name
        client.write_text(f'#!/bin/sh\nSLURM_CONF={config} exec {shutil.which(name)} "$@"\n')
        client.chmod(0o755)
    munge = [
        f"--{name}={folder}/munge.{end}"
        for name, end in (
            ("key-file", "key"),
            ("socket", "socket"),
            ("pid-file", "pid"),
            ("log-file", "log"),
            ("seed-file", "seed"),
        )
    ]
    return [
        ["munged", "--foreground", *munge],
        ["slurmctld", "-D", "-i", "-f", str(config)],
        ["slurmd", "-D", "-N", host, "-f", str(config)],
    ]


@pytest.fixture
def cluster(monkeypatch):
    """A Slurm of its own in a temporary folder, first in PATH; ended with all its jobs."""
    daemons = ("munged", "slurmctld", "slurmd")
    search = os.pathsep.join([os.environ["PATH"], "/usr/sbin", "/sbin"])
    absent = [name for name in (*daemons, *CLIENTS) if shutil.which(name, path=search) is None]
    if absent:
        pytest.skip(f"no Slurm: {', '.join(absent)} not installed")
    monkeypatch.setenv("PATH", search)
    # Not pytest's folder: the path of a socket has at most 107 characters.
    folder = Path(tempfile.mkdtemp(prefix="slurm-"))
    folder.chmod(0o755)
    commands = write_cluster(folder)
    monkeypatch.setenv("PATH", os.pathsep.join([str(folder / "bin"), search]))
    running = []
    try:
        with (folder / "said.log").open("w") as said:
            for command in commands:
                running.append(subprocess.Popen(command, stdout=said, stderr=said))
        # Clients wait for the controller, and this job for its node.
        first = subprocess.run(
            ["srun", "--immediate=30", "true"], capture_output=True, text=True, timeout=60
        )
        if first.returncode:
            pytest.skip(f"Slurm does not start here: {first.stderr.strip()}")
        yield folder
    finally:
        if running:
            subprocess.run(["scancel", "--partition=gpu"], capture_output=True)
        for process in reversed(running):
            process.terminate()
            process.wait()
        shutil.rmtree(folder)


@pytest.mark.slow
def test_slurm_runs_the_sweep_by_its_profile(cluster, tmp_path):
    program = shutil.which("snakemake")
    if program is None:
        pytest.skip("snakemake is not installed; pipx install snakemake")
    shutil.copytree(ROOT / "notebooks", tmp_path / "notebooks")
    for room in ("dcd_core", "dcd_lab"):
        (tmp_path / room).symlink_to(ROOT / room)
    # Two jobs, one after the other: the cohort with its teacher, and the student without one. Their
    # state is asked for after 2 seconds, by default after 40.
    asked = ["--omit-from", "choose", "--slurm-init-seconds-before-status-checks", "2"]
    config = ["profile=smoke", f"python={sys.executable}", f"set={json.dumps(SETTINGS)}"]
    command = [program, "-s", "notebooks/Snakefile", "--profile", "notebooks/cluster/slurm"]
    done = subprocess.run(
        [*command, *asked, "students", "--config", *config],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "DCD_ROOT": str(tmp_path), "PYTHONPATH": str(ROOT)},
        timeout=900,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert said.count("has been submitted with SLURM jobid") == 2
    made = {path.name for path in tmp_path.glob("runs/sweep/*/isles2022/*")}
    assert made == {"prepared", "undistilled-0.done"}
    assert len(list(tmp_path.glob("runs/isles2022-undistilled-s0-*/scores-*.csv"))) == 1
    queue = subprocess.run(["squeue", "--noheader"], capture_output=True, text=True, check=True)
    assert queue.stdout == ""
