"""The verbs of the cache, each with what there is before, for a test that has every step of them fail.

Law of this file: a verb can be done again after it has failed, and then does what it is there for.
"""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from watchdog.observers.inotify_c import InotifyConstants, InotifyEvent, Mask, WatchDescriptor

from artifactcache import errors
from artifactcache.errors import CacheError, NotFound
from artifactcache.v1 import cache_pb2 as pb
from cacheserver import folderevents, fsck, uris
from cacheserver.connections import Connection
from cacheserver.handoff import Handoff
from cacheserver.healing import Healing
from cacheserver.meddling import Meddling
from cacheserver.pace import Pace
from cacheserver.publishing import Name
from cacheserver.register import Process, Register
from cacheserver.scrubbing import Scrubber
from cacheserver.selection import Selection
from cacheserver.sessions import Peer, Sessions
from cacheserver.stopping import Stopping
from cacheserver.tierstore import TierError
from cacheserver.treerecords import TREES
from cacheserver.words import Progress
from tests.rig.seam import Socket
from tests.rig.tier import lacking
from tests.unit.house import ROOT
from tests.unit.mortal import Place
from tests.unit.scenes import (
    OTHER,
    RUN,
    THIRD,
    broken_off,
    changed,
    cold,
    crowded,
    damaged_one,
    deleted,
    due,
    half_gone,
    held,
    index_damaged,
    index_met_damaged,
    is_whole,
    large_file,
    meddled,
    mirror_damaged,
    nowhere,
    of_a_model,
    offered_again,
    older,
    published,
    restored,
    rubbish,
    sharing,
    three_held,
    unsound,
    used,
    viewed,
    whole,
)

_NONE, _CREATED = WatchDescriptor(-1), Mask(InotifyConstants.IN_CREATE)
EVERYTHING = 2**62


@dataclass(frozen=True)
class Verb:
    """A verb.

    Attributes:
        prepare: makes what there is before; nothing of it fails. A daemon runs, unless it ends it.
        act: what is done.
        then: what must be so when it was done.
        lost: URIs of what may be another, or gone, from then on.
        answers: what else it raises than errors of ours: what it is there for, or what its caller has words for.
        ends: whether the daemon has ended after it, however it went.
        reads_all: whether it reads of everything: what the disk says to have lost then may be anything that is held.
    """

    name: str
    prepare: Callable[[Place], None]
    act: Callable[[Place], object]
    then: Callable[[Place], object] = lambda place: None
    lost: frozenset[str] = frozenset()
    answers: tuple[type[Exception], ...] = ()
    ends: bool = False
    reads_all: bool = False

    def __str__(self) -> str:
        return self.name


def _bring(place: Place) -> None:
    place.house.bring(ROOT)


def _find(place: Place) -> None:
    assert place.house.find(ROOT) or place.house.bring(ROOT)


def _view(place: Place) -> None:
    path = Path(place.house.store.view(held(place).tree))
    assert (path / "top").read_bytes() == b"4444" and (path / "zero").read_bytes() == b"" and (path / "hollow").is_dir()


def _view_again(place: Place) -> None:
    if place.house.find(ROOT, view=True) is None:
        place.house.bring(ROOT)
    _view(place)


def _link(place: Place) -> None:
    place.later(100.0)  # longer ago than a look counts
    with place.destination("a", "b", "hollow") as fd:
        assert place.house.store.link(held(place).tree, fd, os.geteuid()) == 4
        assert sorted(os.listdir(fd)) == ["a", "b", "hollow", "top"]


def _link_at_the_limit(place: Place) -> None:
    """The filesystem allows one more link than the first blob of the tree has, and no more."""
    real = place.seam.os.link

    def limited(source: str, name: bytes, **where: int) -> None:
        if os.stat(source, dir_fd=where["src_dir_fd"]).st_nlink > 1:
            raise OSError(31, "Too many links")
        real(source, name, **where)

    place.seam.os.link = limited
    try:
        _link(place)
    finally:
        place.seam.os.link = real


def _descriptors(place: Place) -> None:
    tree, store, fds = held(place).tree, place.house.store, list[int]()
    try:
        fds.append(store.open_manifest(tree))
        fds += store.open_blobs(tree, 0)
        assert sorted(os.pread(fd, 9, 0) for fd in fds[1:]) == [b"1", b"22", b"333", b"4444"]
    finally:
        place.give_back(fds)


def _handoff(place: Place) -> None:
    """All that a client asks for on the handoff socket, one after the other."""
    sessions = Sessions(place.house.leases)
    stopping = Stopping()
    handoff = Handoff(
        cast(socket.socket, None),
        sessions,
        place.house.store,
        lambda _: None,
        lambda _, __: None,
        stopping,
        lambda: 0.0,
    )
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    peer = Peer(os.geteuid(), os.getegid(), os.getpid())
    connection = Connection(cast(socket.socket, Socket(place.seam, ours)), peer, math.inf)

    def ask(request: pb.HandoffRequest, *fds: int) -> int:
        socket.send_fds(theirs, [request.SerializeToString()], fds)
        handoff._answer(connection)
        packet, found, _, _ = socket.recv_fds(theirs, 65536, 200)
        for fd in found:
            os.close(fd)
        reply = pb.HandoffReply.FromString(packet)
        if reply.HasField("failure"):
            raise errors.BY_NAME.get(reply.failure.error, CacheError)(reply.failure.message)
        return len(found)

    try:
        ask(pb.HandoffRequest(hello=pb.Hello(proves_calls=True)))
        assert connection.session is not None
        lease = sessions.lease(connection.session, held(place).tree)
        assert ask(pb.HandoffRequest(manifest=pb.ManifestRequest(lease=lease))) == 1
        assert ask(pb.HandoffRequest(blobs=pb.BlobsRequest(lease=lease))) == 4
        with place.destination("a", "b", "hollow") as fd:
            ask(pb.HandoffRequest(link=pb.LinkRequest(lease=lease)), fd)
        with place.destination() as fd:
            assert ask(pb.HandoffRequest(probe=pb.ProbeRequest()), fd) == 1
    finally:
        ours.close()
        theirs.close()
        if connection.session:
            sessions.close(connection.session)


def _verify(place: Place) -> None:
    place.house.store.verify(None, Progress())


def _scrub(place: Place) -> None:
    """A whole pass: one is always due."""
    pace = Pace(EVERYTHING, lambda: place.ticks, lambda seconds: None)
    Scrubber(place.house.store, 0.0, pace, lambda: place.now).look()


def _look_for_meddling(place: Place) -> None:
    """The watch has told of every blob and every manifest."""
    house = place.house
    meddling = Meddling(house.disk, house.index, house.store.verifier, house.store.lost_manifests)
    for path in place.root.glob("[bm]*s/*/*"):
        folder = folderevents._Folder(str(path.parent), False, meddling.events)
        meddling.events.told(folder, InotifyEvent(_NONE, _CREATED, 0, os.fsencode(path.name)))
    meddling.look()


def _heal(place: Place) -> None:
    """Begins what is due, and takes what has come."""
    healing = Healing(place.house.cache, place.house.index, lambda: place.ticks)
    healing.want([(ROOT, "")])
    for _ in range(2):
        healing.look()


def _quarantined(place: Place) -> None:
    assert not place.damaged & set(place.house.index.all_digests())
    place.damaged.clear()
    for uri in (ROOT, OTHER):
        place.house.bring(uri)
        is_whole(place, uri)


def _mended(place: Place) -> None:
    place.damaged.clear()
    is_whole(place)


def _sweep(place: Place) -> None:
    place.house.sweeper.sweep(free_bytes=EVERYTHING)


def _swept(place: Place) -> None:
    assert place.house.index.held(ROOT, "") is None and place.house.index.held(THIRD, "") is None


def _pin(place: Place) -> None:
    assert place.house.index.pins.pin(ROOT, "", owner=7, asked=ROOT, now=place.now, seconds=100.0)


def _pinned(place: Place) -> None:
    whole(place)
    _pin(place)


def _unpin(place: Place) -> None:
    place.house.index.pins.unpin([ROOT], "", place.now)


def _start(place: Place) -> None:
    if not place.is_open:
        place.open()


def _mend_index(place: Place) -> None:
    """Where that fails, the daemon tries again after a while, and goes on."""
    index_met_damaged(place)
    place.later(31.0)  # longer than it leaves a disk alone that has just failed
    try:
        place.house.store.mend_index()
    except CacheError:
        place.later(31.0)
        place.house.store.mend_index()
        raise


def _index_is_mended(place: Place) -> None:
    assert not place.house.index.is_damaged and not place.house.index.is_behind
    for uri in (ROOT, OTHER):
        place.house.bring(uri)
        is_whole(place, uri)


def _expire(place: Place) -> None:
    place.later(1000.0)
    place.house.store.leftovers.expire(math.inf)


def _expired(place: Place) -> None:
    assert place.house.disk.partials.waiting() == []


def _fsck(place: Place) -> None:
    if place.is_open:
        place.close()
    fsck.check(str(place.root))


def _publish(place: Place) -> None:
    sharing = place.house.sharing
    assert sharing and sharing.publishing
    sharing.publishing.publish(Name(ROOT, ""))


def _published(place: Place) -> None:
    """It is there with all that it needs; nor was it ever there without, for what is there is never removed."""
    assert place.cupboard and place.cupboard.keys(TREES) and not lacking(place.cupboard)


def _ask_alias(place: Place) -> None:
    assert place.house.cache.version_of(uris.parse("models:/m@best")).artifact.base == "models:/m/3"


def _register(place: Place) -> None:
    register = Register(str(place.root / "leases"), "boot")
    try:
        for tree in ("a" * 64, "b" * 64):
            register.add(Process(os.getpid(), 1), tree)
        register.remove(Process(os.getpid(), 1), "a" * 64)
    finally:
        register.close()


_ALL = frozenset({ROOT, THIRD})

VERBS = (
    Verb("cold fetch", cold, _bring, is_whole),
    Verb("cold fetch of a large file", large_file, _bring, is_whole),
    Verb("a large file goes on", broken_off, _bring, is_whole),
    Verb("fetch of blobs that are held", offered_again, lambda p: p.house.bring(THIRD)),
    Verb("fetch of a selection", cold, lambda p: p.house.bring(ROOT, Selection(("a/**",)))),
    Verb("warm fetch", whole, _find, is_whole),
    Verb("fetch that is due", due, _bring, is_whole),
    Verb("refresh of a changed file", changed, lambda p: p.house.bring(ROOT, refresh=True), is_whole, _ALL),
    Verb("view", whole, _view),
    Verb("warm view", viewed, _view_again),
    Verb("view that somebody meddled with", meddled, _view_again, lambda p: p.meddled.clear()),
    Verb("link", whole, _link),
    Verb("second inode", viewed, _link_at_the_limit),
    Verb("descriptors", whole, _descriptors),
    Verb("handoff", whole, _handoff, answers=(OSError,)),
    Verb("verify", damaged_one, _verify, _quarantined, _ALL | {OTHER}),
    Verb("scrub", damaged_one, _scrub, _quarantined, _ALL | {OTHER}),
    Verb("look for meddling", damaged_one, _look_for_meddling, _quarantined, _ALL | {OTHER}),
    Verb("healing", damaged_one, _heal, _mended, _ALL),
    Verb("fetch of what is damaged", damaged_one, _bring, _mended, _ALL),
    Verb("fetch of what was restored", restored, _bring, is_whole),
    Verb("fetch from the shared tier", published, _bring, is_whole, answers=(TierError,)),
    Verb("publication", sharing, _publish, _published, answers=(TierError,)),
    Verb("sweep", three_held, _sweep, _swept, _ALL),
    Verb("fetch that needs room", crowded, lambda p: p.house.bring("s3://bucket/new"), lost=_ALL),
    Verb("pin", whole, _pin),
    Verb("unpin", _pinned, _unpin),
    Verb(
        "fetch of what was deleted", deleted, lambda p: p.house.bring(RUN), lost=frozenset({RUN}), answers=(NotFound,)
    ),
    Verb("alias", of_a_model, _ask_alias),
    Verb("writing down of uses", used, lambda p: p.house.cache.record_uses()),
    Verb("tidying", half_gone, lambda p: p.house.sweeper.tidy(), lost=_ALL),
    Verb("end of leftovers", broken_off, _expire, _expired),
    Verb("register of views", lambda p: None, _register),
    Verb("first start", nowhere, _start, lost=frozenset({OTHER})),
    Verb("start", rubbish, _start),
    Verb("start with an older index", older, _start),
    Verb("start with a damaged index", index_damaged, _start, _index_is_mended, reads_all=True),
    Verb("start with a damaged mirror", mirror_damaged, _start, _index_is_mended),
    Verb("index made anew", viewed, _mend_index, _index_is_mended, reads_all=True),
    Verb("end", viewed, lambda p: p.close(), ends=True),
    Verb("fsck", unsound, _fsck, _quarantined, lost=_ALL | {OTHER}, answers=(OSError,), ends=True),
)
