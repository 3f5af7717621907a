"""The table of attacks: what mallory tries against what alice has in the cache, and what refuses it.

Each `how` is Python that runs in a process of mallory's own user, with the names of `tests/rig/intruder.py`. It is
refused where it raises one of the errors of `refusal`, and has succeeded where it raises none.
"""

from __future__ import annotations

from typing import NamedTuple


class Attack(NamedTuple):
    """One attempt.

    Attributes:
        name: as tests and SECURITY.md have it.
        how: what mallory runs; empty where another test has it.
        by: what refuses it.
        refusal: the errors that say so, by class.
        verb: of the audit log's line; empty where the attempt is no call about an artifact.
        held_by: the test that holds it, where `how` is empty.
    """

    name: str
    how: str
    by: str
    refusal: str = "PermissionDenied"
    verb: str = ""
    held_by: str = ""


_GATE = "the gate: the tracking server does not show it to mallory"
_URI = "the reading of URIs"
_ROLE = "the role"
_MODES = "modes and the view's ACL"
_LOGIN = "the tracking server: no such login"
_SESSION = "sessions: a lease is its session's"
_FOLDER = "the checks of a folder to link into"
_OWNER = "bytes that belong to the daemon, read-only"
_PRESENT = "the checks of presented headers"
_KERNEL = "the kernel"
_CLOSED = "PermissionError"
_BAD = "InvalidRequest"
_NO_LINKS = "InvalidRequest|ModeUnavailable"


def _fetch(name: str, what: str, by: str = _GATE, refusal: str = "PermissionDenied", verb: str = "Fetch") -> Attack:
    return Attack(name, f"client.fetch({what})", by, refusal, verb)


READING = (
    _fetch("a hit by its run", "f'runs:/{run}'"),
    _fetch("a path of it", "f'runs:/{run}/model'"),
    _fetch("one file of it", "f'runs:/{run}/notes'"),
    _fetch("a path that nobody has fetched", "f'runs:/{run}/model/weights'"),
    _fetch("the scheme in capitals", "f'RUNS:/{run}'"),
    _fetch("by run_id", "run_id=run"),
    _fetch("by run_id and path", "run_id=run, artifact_path='model'"),
    _fetch("a version", "f'models:/{model}/{version}'"),
    _fetch("a version with zeros before it", "f'models:/{model}/000{version}'"),
    _fetch("a path of a version", "f'models:/{model}/{version}/weights'"),
    _fetch("an alias", "f'models:/{model}@champion'"),
    _fetch("the latest version", "f'models:/{model}/latest'"),
    _fetch("a stage", "f'models:/{model}/None'"),
    _fetch("a logged model", "f'models:/{logged}'"),
    _fetch("a file of a logged model", "f'models:/{logged}/MLmodel'"),
    _fetch("its bare URI", "f'mlflow-artifacts:/{inside}'"),
    _fetch("its bare URI with the server", "f'mlflow-artifacts://{host}/{inside}'"),
    _fetch("a file by its bare URI", "f'mlflow-artifacts:/{inside}/notes'"),
    _fetch("the http form", "f'{server}/api/2.0/mlflow-artifacts/artifacts/{inside}'"),
    _fetch("the http form in capitals", "f'HTTP://{host}/api/2.0/mlflow-artifacts/artifacts/{inside}'"),
    _fetch("the folder of all her runs", "f'mlflow-artifacts:/{experiment}'"),
    _fetch("the http form of another path", "f'{server}/api/2.0/mlflow-artifacts/artifacts{inside}'"),
    _fetch("an escaped experiment", "f'mlflow-artifacts:/%3{experiment}/{tail}'", _GATE, "PermissionDenied|NotFound"),
    _fetch("up and down again", "f'mlflow-artifacts:/x/../{inside}'", _URI, _BAD),
    _fetch("up and down again, escaped", "f'mlflow-artifacts:/x/%2E%2e/{inside}'", _URI, _BAD),
    _fetch("out of his own run", "f'runs:/{mine}/../../{run}/artifacts'", _URI, _BAD),
    _fetch("a file of the host", "'file:///etc/shadow'"),
    _fetch("the store as a file", "f'file://{store}/index.db'"),
    _fetch("one pattern", "f'runs:/{run}', include='notes'"),
    _fetch("all but one pattern", "f'runs:/{run}', exclude='notes'"),
    _fetch("with refresh", "f'runs:/{run}', refresh=True"),
    _fetch("as a copy", "f'runs:/{run}', 'a-copy', mode='copy'"),
    _fetch("as hard links", "f'runs:/{run}', 'links', mode='hardlink'"),
    _fetch("as clones", "f'runs:/{run}', 'clones', mode='reflink'", _GATE, "PermissionDenied|ModeUnavailable"),
    Attack("warming it", "client.warm(f'runs:/{run}')", _GATE, verb="Fetch"),
    Attack("warming it anew", "client.warm(f'runs:/{run}', refresh=True)", _GATE, verb="Fetch"),
    Attack("its files' digests", "client.inspect(f'runs:/{run}')", _GATE, verb="Inspect"),
    Attack("the digests of a version", "client.inspect(f'models:/{model}@champion')", _GATE, verb="Inspect"),
    Attack("having it verified", "client.verify(f'runs:/{run}')", _GATE, verb="Verify"),
    Attack("why it is kept", "client.explain(f'runs:/{run}')", _GATE, verb="Explain"),
    Attack(
        "without a login", "without_login(lambda: client.fetch(f'runs:/{run}'))", _LOGIN, "Unauthenticated", "Fetch"
    ),
    Attack(
        "alice's name, a guessed password",
        "with_login('alice', 'guessed', lambda: client.fetch(f'runs:/{run}'))",
        _LOGIN,
        "Unauthenticated",
        "Fetch",
    ),
    Attack(
        "headers that name alice",
        "by_hand(f'runs:/{run}', {'X-Forwarded-User': 'alice', 'Remote-User': 'alice', 'X-Remote-User': 'alice'})",
        _PRESENT,
        _BAD,
    ),
    Attack("his login, and no header", "by_hand(f'runs:/{run}', {}, login={})", _LOGIN, "Unauthenticated", "Fetch"),
)

ROLES = (
    Attack("pinning", "client.pin(f'runs:/{run}')", _GATE, verb="Fetch"),
    Attack("pinning, by hand", "pinned(f'runs:/{run}')", _ROLE, verb="Pin"),
    Attack("pinning what is his", "pinned(f'runs:/{mine}')", _ROLE, verb="Pin"),
    Attack("unpinning", "client.unpin(f'runs:/{run}')", _ROLE),
    Attack("evicting", "client.sweep(free_bytes=1)", _ROLE),
    Attack("the plan of an eviction", "client.sweep(dry_run=True)", _ROLE),
    Attack("verifying everything", "client.verify()", _ROLE),
    Attack("the audit log", "list(client.audit())", _ROLE),
    Attack("others' accounts", "client.usage(everybody=True)", _ROLE),
    Attack("what others have fetched", "nothing([one for one in client.list() if run in str(one)])", _ROLE, "Nothing"),
)

PATHS = (
    Attack("listing her view", "os.listdir(view)", _MODES, _CLOSED),
    Attack("a file of her view", "open(f'{view}/notes').read()", _MODES, _CLOSED),
    Attack("her working directory", "open(f'/proc/{alice_pid}/cwd/notes').read()", _KERNEL, _CLOSED),
    Attack("her root", "open(f'/proc/{alice_pid}/root{view}/notes').read()", _KERNEL, _CLOSED),
    Attack("her descriptors", "os.listdir(f'/proc/{alice_pid}/fd')", _KERNEL, _CLOSED),
    Attack("her environment", "open(f'/proc/{alice_pid}/environ').read()", _KERNEL, _CLOSED),
    Attack("her memory", "open(f'/proc/{alice_pid}/mem', 'rb').read(1)", _KERNEL, _CLOSED),
    Attack("taking her descriptors", "take_descriptors(alice_pid)", _KERNEL, "PermissionError|Nothing"),
    Attack("her private copy", "open(f'{alice_home}/private/copy/notes').read()", "her folder's mode", _CLOSED),
    Attack("the daemon's environment", "open(f'/proc/{daemon_pid}/environ').read()", _KERNEL, _CLOSED),
    Attack("the daemon's descriptors", "os.listdir(f'/proc/{daemon_pid}/fd')", _KERNEL, _CLOSED),
    Attack("the daemon's memory", "open(f'/proc/{daemon_pid}/mem', 'rb').read(1)", _KERNEL, _CLOSED),
    Attack("a manifest", "open(f'{store}/manifests/{digest[:2]}/{digest[2:]}').read()", _MODES, _CLOSED),
    Attack("a blob", "open(f'{store}/blobs/{blob[:2]}/{blob[2:]}').read()", _MODES, _CLOSED),
    Attack("which views there are", "os.listdir(f'{store}/views')", _MODES, _CLOSED),
    Attack("a view that is being built", "os.listdir(f'{store}/staging')", _MODES, _CLOSED),
    Attack("which blobs there are", "os.listdir(f'{store}/blobs')", _MODES, _CLOSED),
    Attack("the index", "open(f'{store}/index.db', 'rb').read(1)", _MODES, _CLOSED),
    Attack("the audit log's file", "open(f'{store}/audit.jsonl').read()", _MODES, _CLOSED),
    Attack("a link of a view's file", "os.link(f'{view}/notes', 'linked')", _MODES, _CLOSED),
    Attack("a link of a blob", "os.link(f'{store}/blobs/{blob[:2]}/{blob[2:]}', 'linked')", _MODES, _CLOSED),
    Attack("moving her view", "os.rename(view, 'moved')", _MODES, "PermissionError|OSError"),
    Attack("a view of his own making", "os.mkdir(f'{store}/views/{\"0\" * 64}')", _MODES, _CLOSED),
    Attack("O_PATH, then below", "below(os.open(view, os.O_PATH), 'notes')", _MODES, _CLOSED),
    Attack("O_PATH, then anew", "os.open(f'/proc/self/fd/{os.open(view, os.O_PATH)}', os.O_RDONLY)", _MODES, _CLOSED),
    Attack("opening its door", "os.chmod(view, 0o777)", _MODES, _CLOSED),
    Attack("an ACL of his own", "os.setxattr(view, 'system.posix_acl_access', acl)", _MODES, _CLOSED),
)

WRITING = (
    Attack("a view of his own, written to", "open(f'{own_view}/notes', 'r+b')", _OWNER, _CLOSED),
    Attack("a file less in a view of his own", "os.unlink(f'{own_view}/notes')", _OWNER, _CLOSED),
    Attack("a file more in a view of his own", "open(f'{own_view}/more', 'w')", _OWNER, _CLOSED),
    Attack("a passed descriptor, written to", "os.write(blob_fd(), b'x')", _OWNER, "OSError"),
    Attack("a passed descriptor, cut off", "os.ftruncate(blob_fd(), 0)", _OWNER, "OSError"),
    Attack("a passed descriptor, opened anew", "os.open(f'/proc/self/fd/{blob_fd()}', os.O_RDWR)", _OWNER, _CLOSED),
    Attack("a passed descriptor, its mode", "os.fchmod(blob_fd(), 0o666)", _OWNER, _CLOSED),
    Attack(
        "a passed descriptor, linked", "os.link(f'/proc/self/fd/{blob_fd()}', 'l')", _OWNER, "PermissionError|OSError"
    ),
    Attack("a manifest's descriptor, written to", "os.write(manifest_fd(), b'x')", _OWNER, "OSError"),
    Attack("a hard link, written to", "open(f'{own_links}/notes', 'r+b')", _OWNER, _CLOSED),
    Attack("a hard link, cut off", "os.truncate(f'{own_links}/notes', 0)", _OWNER, _CLOSED),
    Attack("a hard link, its mode", "os.chmod(f'{own_links}/notes', 0o666)", _OWNER, _CLOSED),
    Attack("a hard link of a hard link", "open(linked(f'{own_links}/notes'), 'r+b')", _OWNER, _CLOSED),
)

LINKING = (
    Attack("no descriptor", "link()", _FOLDER, _BAD),
    Attack("two descriptors", "link(*2 * [folder()])", _FOLDER, _BAD),
    Attack("253 descriptors", "link(*253 * [folder()])", _FOLDER, _BAD),
    Attack("a file's descriptor", "link(os.open('file', os.O_RDWR | os.O_CREAT))", _FOLDER, _NO_LINKS),
    Attack("a pipe's", "link(os.pipe()[0])", _FOLDER, _NO_LINKS),
    Attack("a socket's", "link(socket.socketpair()[0].detach())", _FOLDER, _NO_LINKS),
    Attack("a device's", "link(os.open('/dev/zero', os.O_RDWR))", _FOLDER, _NO_LINKS),
    Attack("memory's", "link(os.memfd_create('m'))", _FOLDER, _NO_LINKS),
    Attack("/proc's", "link(os.open('/proc/self', os.O_RDONLY))", _FOLDER, _NO_LINKS),
    Attack("/etc's", "link(os.open('/etc', os.O_RDONLY))", _FOLDER, _NO_LINKS),
    Attack("her folder's", "link(os.open(alice_home, os.O_PATH))", _FOLDER, _NO_LINKS),
    Attack("the store's", "link(os.open(store, os.O_PATH))", _FOLDER, _NO_LINKS),
    Attack("all views'", "link(os.open(f'{store}/views', os.O_PATH))", _FOLDER, _NO_LINKS),
    Attack("her view's", "link(os.open(view, os.O_PATH))", _FOLDER, _NO_LINKS),
    Attack("a folder that all may write", "link(os.open(open_folder, os.O_RDONLY))", _FOLDER, _NO_LINKS),
    Attack("a folder swapped for hers", "swapping(open_folder)", _FOLDER, "Nothing"),
    Attack("a symlink within", "link(folder(symlink=open_folder))", _FOLDER, _NO_LINKS),
)

PROBING = (
    Attack("a probe beside two descriptors", "probe(*2 * [folder()])", _FOLDER, _BAD),
    Attack("a probe into a file", "probe(os.open('file', os.O_RDWR | os.O_CREAT))", _FOLDER, _NO_LINKS),
    Attack("a probe into a pipe", "probe(os.pipe()[0])", _FOLDER, _NO_LINKS),
    Attack("a probe into /etc", "probe(os.open('/etc', os.O_RDONLY))", _FOLDER, _NO_LINKS),
    Attack("a probe into her folder", "probe(os.open(alice_home, os.O_PATH))", _FOLDER, _NO_LINKS),
    Attack("a probe into the store", "probe(os.open(store, os.O_PATH))", _FOLDER, _NO_LINKS),
    Attack("a probe into all views", "probe(os.open(f'{store}/views', os.O_PATH))", _FOLDER, _NO_LINKS),
    Attack("a probe into her view", "probe(os.open(view, os.O_PATH))", _FOLDER, _NO_LINKS),
    Attack("a probe where all may write", "probe(os.open(open_folder, os.O_RDONLY))", _FOLDER, _NO_LINKS),
    Attack("a probe in another's place", "probe(folder_with('probe'))", _FOLDER, _BAD),
    Attack("a probe through a symlink", "probe(folder_with('probe', open_folder))", _FOLDER, _BAD),
    Attack("a probe, written to", "os.write(probe(), b'x')", _OWNER, "OSError"),
    Attack("a probe, opened anew", "os.open(f'/proc/self/fd/{probe()}', os.O_RDWR)", _OWNER, _CLOSED),
    Attack("a linked probe, written to", "os.open(f'/proc/self/fd/{probe(folder())}', os.O_RDWR)", _OWNER, _CLOSED),
)

SESSIONS = (
    Attack(
        "her token on a connection of his",
        "joined(alice_token)",
        "sessions: a token is its process's",
        "Unauthenticated",
    ),
    Attack("a guessed token", "joined('x' * 43)", "sessions: there is none", "Unauthenticated"),
    Attack("a guessed token, in a call", "called('x' * 43, run)", "sessions: there is none", "Unauthenticated"),
    Attack("no token, in a call", "called('', run)", "sessions: there is none", "Unauthenticated"),
    Attack(
        "her token in a call",
        "called(alice_proved, run)",
        "a call is its process's",
        "Unauthenticated",
    ),
    Attack("linking by her lease", "link(folder(), lease=alice_lease)", _SESSION, _BAD),
    Attack("the blobs of her lease", "own.ask(blobs=pb.BlobsRequest(lease=alice_lease))", _SESSION, _BAD),
    Attack("the manifest of her lease", "own.ask(manifest=pb.ManifestRequest(lease=alice_lease))", _SESSION, _BAD),
    Attack("leases by their numbers", "guess_leases(alice_lease + 50)", _SESSION, _BAD),
    Attack("a line too many in a header", "present({'X': 'a\\r\\nHost: evil'})", _PRESENT, _BAD),
    Attack("a line too many in a name", "present({'X: a\\r\\nY': 'b'})", _PRESENT, _BAD),
    Attack("another host", "present({'Host': 'elsewhere.example'})", _PRESENT, _BAD),
    Attack("a request in a request", "present({'Transfer-Encoding': 'chunked'})", _PRESENT, _BAD),
    Attack("other bytes for all, by a header", "present({'X-Original-URL': '/mine'})", _PRESENT, _BAD),
    Attack("another host, by a header", "present({'x-forwarded-host': 'elsewhere.example'})", _PRESENT, _BAD),
    Attack("another method, by a header", "present({'X-HTTP-Method-Override': 'HEAD'})", _PRESENT, _BAD),
    Attack("part of an answer", "present({'Range': 'bytes=0-0'})", _PRESENT, _BAD),
    Attack("33 headers", "present({f'X-{n}': 'x' for n in range(33)})", _PRESENT, _BAD),
    Attack("headers of 33 KB", "present({'X': 'x' * 33_000})", _PRESENT, _BAD),
)

_HOARDING, _HANDOFF = "tests/test_hoarding.py::", "tests/test_handoff.py::"


def _elsewhere(name: str, held_by: str, by: str) -> Attack:
    return Attack(name, "", by, held_by=held_by)


ELSEWHERE = (
    _elsewhere("hits while she downloads", "tests/test_caller_access.py::test_two_who_wait_are_judged_each", _GATE),
    _elsewhere("a token after its session", "tests/test_sessions.py::test_a_token_ends_with_its_session", "sessions"),
    _elsewhere("symlinks swapped in", f"{_HANDOFF}test_a_folder_swapped_for_a_symlink_while_linking", _FOLDER),
    _elsewhere("a mount within", f"{_HANDOFF}test_a_folder_that_something_is_mounted_on", _FOLDER),
    _elsewhere("a filesystem that is mute", f"{_HANDOFF}test_a_folder_of_a_filesystem_that_never_answers", _FOLDER),
    _elsewhere("connections that say nothing", f"{_HOARDING}test_connections_that_say_nothing", "quotas"),
    _elsewhere("descriptors not read", f"{_HOARDING}test_descriptors_that_nobody_reads", "quotas"),
    _elsewhere("fetches that wait", f"{_HOARDING}test_fetches_that_wait_for_the_origin", "quotas"),
    _elsewhere("answers not read", f"{_HOARDING}test_answers_that_nobody_reads", "quotas"),
    _elsewhere("calls that do not go on", f"{_HOARDING}test_calls_that_do_not_go_on", "quotas"),
    _elsewhere(
        "a symlink for a root",
        "tests/test_origin_guards.py::test_a_symlink_into_a_listed_folder_lists_nothing",
        "local_roots: by name and by where it is",
    ),
    _elsewhere(
        "a root beside the tracking server",
        "tests/test_origin_guards.py::test_a_run_elsewhere_on_the_tracking_servers_host",
        "the checks of where credentials go",
    ),
    _elsewhere("malformed packets", "tests/test_sessions.py::test_malformed_packets", "the reading of packets"),
    _elsewhere("origins that lie of sizes", "tests/test_lying_origin.py::test_bytes_that_are_not_as_listed", "sizes"),
    _elsewhere("a version of another's run", "tests/unit/test_sources.py::test_a_version_is_what_its_bytes_are", _GATE),
    _elsewhere("users who are denied", "tests/test_audit.py::test_who_is_not_served", "deny"),
)

BY_MALLORY = READING + ROLES + PATHS + WRITING + LINKING + PROBING + SESSIONS
ATTACKS = BY_MALLORY + ELSEWHERE
