"""Forks and their friends: no crash, no hang, no channel that two processes share."""

from __future__ import annotations

import itertools
import os
import subprocess
import textwrap
from pathlib import Path

import pytest

from tests.rig import plugin
from tests.rig.caller import Caller
from tests.rig.mlflow_server import MlflowServer
from tests.rig.slow import slow_but
from tests.rig.trees import SMALL

SECONDS_MAX = 120
# In each child: it is served as itself, and by a hit. What went wrong is its exit status.
CHILDREN = """
import artifactcache, faulthandler, os, signal, threading, time

def works():
    with artifactcache.Client() as client:
        return client.whoami().pid == os.getpid() and artifactcache.fetch(uri).hit

def child(body=works):
    pid = os.fork()
    if pid == 0:
        faulthandler.register(signal.SIGALRM, chain=True)
        signal.alarm(30)  # a child that hangs ends, and says where
        try:
            os._exit(0 if body() else 3)
        except BaseException as error:
            os.write(2, repr(error).encode())
            os._exit(4)
    return pid

def ended(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""


@pytest.fixture(scope="module")
def logged(mlflow_proxied: MlflowServer) -> str:
    """The artifact of this module."""
    return f"runs:/{mlflow_proxied.run(SMALL)}"


@pytest.fixture
def uri(alice: Caller, logged: str) -> str:
    """The same, and it is held."""
    alice.fetch(logged)
    return logged


def test_fork_between_calls(alice: Caller, uri: str) -> None:
    """A process that has called forks; parent and child both go on calling, each as itself."""
    code = """
        import artifactcache, json
        artifactcache.fetch(uri)
        with artifactcache.Client() as client:
            client.fetch(uri)
            pids = []
            for _ in range(3):
                reader, writer = os.pipe()
                pid = os.fork()
                if pid == 0:
                    try:
                        found = [client.whoami().pid == os.getpid(), artifactcache.fetch(uri).hit]
                    except BaseException as error:
                        found = repr(error)
                    os.write(writer, json.dumps(found).encode())
                    os._exit(0)
                os.close(writer)
                with os.fdopen(reader) as pipe:
                    pids.append(json.load(pipe))
                os.waitpid(pid, 0)
                assert client.whoami().pid == os.getpid()
        result = pids
    """
    assert alice.run(code, uri=uri) == [[True, True]] * 3


def test_a_child_takes_no_lease_with_it(alice: Caller, uri: str) -> None:
    """The end of a forked child ends none of the parent's leases, and the parent's session stays its own."""
    code = """
        import artifactcache
        with artifactcache.Client() as client:
            fetched = client.fetch(uri)
            before = client.stats().lease_count
            pid = os.fork()
            if pid == 0:
                os._exit(0)
            os.waitpid(pid, 0)
            result = [before, client.stats().lease_count]
    """
    before, after = alice.run(code, uri=uri)
    assert before == after >= 1


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing(alice: Caller, uri: str, room: Path, method: str) -> None:
    """Workers of every start method call, as PyTorch's DataLoader workers do."""
    script = room / "workers.py"
    script.write_text(
        "import multiprocessing, sys, artifactcache\n"
        "def work(number):\n"
        "    return artifactcache.fetch(sys.argv[1]).hit\n"
        "if __name__ == '__main__':\n"
        "    artifactcache.fetch(sys.argv[1])\n"
        "    with multiprocessing.get_context(sys.argv[2]).Pool(3) as pool:\n"
        "        assert all(pool.map(work, range(12)))\n"
        "    print('fine')\n"
    )
    process = alice.popen((str(alice.interpreter.python), str(script), uri, method))
    out, _ = process.communicate(timeout=120)
    assert (process.returncode, out) == (0, b"fine\n")


def script(alice: Caller, room: Path, text: str, *arguments: str) -> tuple[int, str, str]:
    """Run a file of Python as alice; its status, output and errors."""
    path = room / "script.py"
    path.write_text(text)
    process = alice.popen((str(alice.interpreter.python), str(path), *arguments), stderr=subprocess.PIPE)
    try:
        out, err = process.communicate(timeout=SECONDS_MAX)
    finally:
        process.kill()
    return process.returncode, out.decode(), err.decode()


def test_fork_before_the_first_call(alice: Caller, uri: str) -> None:
    """Neither has called yet: both call afterwards."""
    assert alice.run(CHILDREN + "result = [ended(child()), works(), ended(child())]", uri=uri) == [0, True, 0]


def test_fork_during_the_first_call(alice: Caller, uri: str) -> None:
    """Other threads import grpc and open the channel at that moment: the child finds no lock that nobody gives back."""
    code = """
        def call(): artifactcache.fetch(uri)
        threads = [threading.Thread(target=call) for _ in range(3)]
        for thread in threads:
            thread.start()
        result = []
        for _ in range(8):
            result.append(ended(child()))
        for thread in threads:
            thread.join(30)
        result.append(any(thread.is_alive() for thread in threads))
    """
    for _ in range(4):
        assert alice.run(CHILDREN + textwrap.dedent(code), uri=uri) == [0] * 8 + [False]


def test_fork_during_calls(alice: Caller, uri: str) -> None:
    """Threads stream all the time: no call of theirs fails, and each child calls for itself."""
    code = """
        client, stop, wrong, counts = artifactcache.Client(), [], [], [0, 0, 0]
        def call(number):
            while not stop:
                try:
                    (lambda: client.fetch(uri).release(), client.list, client.stats)[number]()
                    counts[number] += 1
                except BaseException as error:
                    wrong.append(repr(error))
        threads = [threading.Thread(target=call, args=(number,)) for number in range(3)]
        for thread in threads:
            thread.start()
        result = [ended(child(works if number % 4 == 0 else lambda: True)) for number in range(120)]
        before = list(counts)
        deadline = time.monotonic() + 30
        while not all(new > old for new, old in zip(counts, before)) and time.monotonic() < deadline:
            time.sleep(0.01)
        stop.append(True)
        for thread in threads:
            thread.join(30)
        result = [sum(map(abs, result)), wrong, all(new > old for new, old in zip(counts, before))]
    """
    assert alice.run(CHILDREN + textwrap.dedent(code), uri=uri) == [0, [], True]


def test_fork_in_a_thread_and_in_a_child(alice: Caller, uri: str) -> None:
    """A thread forks, a child of a fork forks, and everybody calls before and after."""
    code = """
        found = []
        def fork():
            artifactcache.fetch(uri)
            found.append(ended(child()))
        thread = threading.Thread(target=fork)
        thread.start()
        thread.join(60)
        found.append(ended(child(lambda: works() and ended(child(lambda: works() and ended(child()) == 0)) == 0)))
        found.append(works())
        result = found
    """
    assert alice.run(CHILDREN + textwrap.dedent(code), uri=uri) == [0, 0, True]


def test_a_view_outlives_the_child(alice: Caller, uri: str) -> None:
    """A child that was forked with a view's lease, called and released it, ends: the parent's lease is still there."""
    code = """
        with artifactcache.Client() as client:
            fetched = client.fetch(uri)
            before = client.stats().lease_count
            statuses = [ended(child(lambda: (fetched.release(), works())[1])) for _ in range(3)]
            last = time.monotonic() + 30  # the daemon hears a moment after us that the last child has ended
            while client.stats().lease_count > before and time.monotonic() < last:
                time.sleep(0.01)
            result = [statuses, client.stats().lease_count - before, os.path.isdir(fetched)]
    """
    assert alice.run(CHILDREN + textwrap.dedent(code), uri=uri) == [[0, 0, 0], 0, True]


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_process_pool_executor(alice: Caller, uri: str, room: Path, method: str) -> None:
    """Its own threads run beside the workers, and the parent calls in between."""
    text = """
import concurrent.futures, multiprocessing, sys, artifactcache
def work(number):
    return artifactcache.fetch(sys.argv[1]).hit
if __name__ == "__main__":
    artifactcache.fetch(sys.argv[1])
    context = multiprocessing.get_context(sys.argv[2])
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as pool:
        jobs = [pool.submit(work, number) for number in range(8)]
        assert artifactcache.fetch(sys.argv[1]).hit
        assert all(job.result(60) for job in jobs)
    print("fine")
"""
    assert script(alice, room, text, uri, method) == (0, "fine\n", "")


@pytest.mark.parametrize(
    ("method", "is_used_before"),
    slow_but(
        itertools.product(("fork", "spawn", "forkserver"), (False, True)),
        lambda case: case in (("fork", True), ("spawn", True)),
    ),
)
def test_data_loader(alice: Caller, uri: str, room: Path, method: str, is_used_before: bool) -> None:
    """PyTorch's workers fetch for each item, over two epochs, and the parent before, between and after."""
    if why := plugin.reason_not_to_run("torch"):
        pytest.skip(why)
    torch = Path(alice.interpreter.env["PYTHONPATH"].partition(os.pathsep)[0]) / plugin.FOLDER.name / "torch"
    text = """
import sys, warnings
sys.path.append(sys.argv[4])
import artifactcache
from torch.utils.data import DataLoader, Dataset
class Items(Dataset):
    def __len__(self):
        return 16
    def __getitem__(self, number):
        return (artifactcache.fetch(sys.argv[1]).path / "data" / "weights.bin").read_bytes()[number]
if __name__ == "__main__":
    warnings.simplefilter("ignore")
    if sys.argv[3] == "True":
        artifactcache.fetch(sys.argv[1])
    for _ in range(2):
        loader = DataLoader(Items(), batch_size=4, num_workers=2, multiprocessing_context=sys.argv[2], timeout=60)
        assert sorted(int(each) for batch in loader for each in batch) == list(range(16))
        assert artifactcache.fetch(sys.argv[1]).hit
    print("fine")
"""
    status, out, err = script(alice, room, text, uri, method, str(is_used_before), str(torch))
    assert (status, out) == (0, "fine\n"), err


def test_other_programs(alice: Caller, uri: str) -> None:
    """A program that is started while threads call ends as it would anywhere."""
    code = """
        import subprocess
        stop = []
        def call():
            while not stop:
                artifactcache.fetch(uri).release()
        threads = [threading.Thread(target=call) for _ in range(2)]
        for thread in threads:
            thread.start()
        result = [subprocess.run(["/bin/true"], timeout=60).returncode for _ in range(200)]
        stop.append(True)
        for thread in threads:
            thread.join(30)
        result = [sum(map(abs, result)), any(thread.is_alive() for thread in threads)]
    """
    assert alice.run(CHILDREN + textwrap.dedent(code), uri=uri) == [0, False]
