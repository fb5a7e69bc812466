"""A Slurm of one node, this machine, that lives as long as a test needs it."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "squeue", "sinfo")

USUAL = Path("/etc/slurm/slurm.conf")  # where a step of a job looks: Snakemake keeps SLURM_CONF from it

PATH = f"{os.environ['PATH']}:/usr/sbin"

CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
SlurmctldPort={port}
SlurmdPort={slurmd_port}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc={folder}/completed.txt
MinJobAge=300
ReturnToService=2
MpiDefault=none
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory={memory}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def why_not() -> str:
    """Why there can be no Slurm here; empty where there can."""
    if os.geteuid() != 0:
        return "a Slurm of one node is started by root alone"
    if USUAL.exists():
        return f"{USUAL}: there is a Slurm on this machine already"
    missing = [name for name in PROGRAMS if shutil.which(name, path=PATH) is None]
    return f"{', '.join(missing)} not found; apt-get install slurm-wlm munge" if missing else ""


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def slurm_node(folder: Path) -> Iterator[dict[str, str]]:
    """The environment in which commands of Slurm reach the node."""
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    configuration = folder / "slurm.conf"
    memory = psutil.virtual_memory().total // 2**20 - 500
    host = socket.gethostname().partition(".")[0]
    ports = {"port": free_port(), "slurmd_port": free_port()}
    configuration.write_text(CONFIGURATION.format(folder=folder, host=host, memory=memory, **ports))
    environment = {**os.environ, "PATH": PATH, "SLURM_CONF": str(configuration)}
    files = {"key-file": key, "socket": folder / "munge.socket", "log-file": folder / "munge.log"}
    files |= {"pid-file": folder / "munge.pid", "seed-file": folder / "munge.seed"}
    munge = ["munged", "--foreground", "--force", *(f"--{name}={path}" for name, path in files.items())]
    commands = [munge, ["slurmctld", "-D", "-i"], ["slurmd", "-D", "-N", host]]
    daemons = []
    USUAL.parent.mkdir(exist_ok=True)
    USUAL.unlink(missing_ok=True)  # a link whose Slurm is gone
    USUAL.symlink_to(configuration)
    try:
        for command in commands:
            with (folder / f"{command[0]}.out").open("w") as log:
                daemons.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
            time.sleep(1)
        _wait_until_idle(environment)
        yield environment
    finally:
        USUAL.unlink()
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            daemon.wait(timeout=30)


def _wait_until_idle(environment: dict[str, str]) -> None:
    command, end = ["sinfo", "--noheader", "--format=%T"], time.monotonic() + 60
    state = ""
    while time.monotonic() < end:
        shown = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        state = shown.stdout.strip() or shown.stderr.strip()
        if state == "idle":
            return
        time.sleep(0.5)
    raise RuntimeError(f"the node is {state}")
