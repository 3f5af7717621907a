"""What /proc says of a process: its program without its arguments, and the container or job it is in."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from cacheserver.programs import UNKNOWN, command, container, program

ID = "0f" * 32
OTHER = "ab" * 32


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("/usr/bin/python3.11 train.py --password s3cret", "/usr/bin/python3.11 train.py"),
        ("python -u /srv/train.py s3cret", "python /srv/train.py"),
        ("python -m torch.distributed.run train.py", "python -m torch.distributed.run"),
        ("python -c open('s3cret')", "python"),
        ("python -W s3cret train.py", "python"),
        ("python -Xs3cret train.py", "python"),
        ("python -uc s3cret", "python"),
        ("python token=s3cret", "python"),
        ("python", "python"),
        ("python3 /usr/bin/mlflow run --token s3cret", "python3 /usr/bin/mlflow"),
        ("-bash", "-bash"),
        ("/bin/sh -c curl s3cret", "/bin/sh"),
        ("bash -ex job.sh s3cret", "bash job.sh"),
        ("perl -e s3cret", "perl"),
        ("ruby tool.rb s3cret", "ruby tool.rb"),
        ("curl -u s3cret https://host", "curl"),
        ("mysql s3cret", "mysql"),
        ("train --token s3cret", "train"),
    ],
)
def test_commands(arguments: str, told: str) -> None:
    """The program and an interpreter's script; never what may be an option's value, or code."""
    assert command("\0".join(arguments.split(" ")).encode() + b"\0") == told


def test_odd_commands() -> None:
    """A process that calls itself a whole line, bytes that are no text, a very long name, and nothing at all."""
    assert command(b"python train.py --password=s3cret\0") == "python"
    assert command(b"caf\xe9\0") == "caf\\xe9"
    assert command(b"x" * 5000) == "x" * 256
    assert command(b"") is None
    assert command(b"\0\0") is None


@pytest.mark.parametrize(
    ("cgroup", "told"),
    [
        (f"0::/system.slice/docker-{ID}.scope", ID),
        (f"12:pids:/docker/{ID}\n0::/", ID),
        (f"0::/kubepods.slice/kubepods-burstable.slice/kubepods-pod1_2.slice/cri-containerd-{ID}.scope", ID),
        (f"0::/kubepods/besteffort/pod{'1' * 8}-aaaa/{ID}", ID),
        (f"0::/machine.slice/libpod-{ID}.scope/container", ID),
        (f"0::/kubepods.slice/crio-{ID}.scope", ID),
        (f"0::/docker/{OTHER}/docker/{ID}", ID),
        ("0::/system.slice/slurmstepd.scope/job_4711/step_0/user/task_0", "job_4711"),
        ("9:memory:/slurm/uid_1000/job_4711/step_batch\n1:name=systemd:/system.slice/slurmd.service", "job_4711"),
        ("0::/user.slice/user-1000.slice/session-3.scope", "session-3.scope"),
        ("0::/user.slice/user-1000.slice/user@1000.service/app.slice/run-u1.service", "run-u1.service"),
        ("0::/system.slice/cron.service", "cron.service"),
        (f"0::/x/{ID}0", None),
        ("0::/", None),
        ("", None),
        ("nonsense", None),
    ],
)
def test_containers(cgroup: str, told: str | None) -> None:
    """Docker, containerd, podman, CRI-O and Kubernetes, both versions of cgroups; Slurm; systemd's units."""
    assert container(cgroup) == told


def test_a_process() -> None:
    """This one, and one that has ended: of that nothing is known."""
    expected = command("\0".join([sys.orig_argv[0], *sys.orig_argv[1:]]).encode())
    assert program(os.getpid()).command == expected
    ended = subprocess.Popen(["true"])
    ended.wait()
    assert program(ended.pid) == UNKNOWN
    assert program(0) == UNKNOWN
