"""A cache beside a dictionary: whatever is done with it, in whatever order, it holds what the dictionary says.

Law of this file: the model knows what the origin has, and what was held, pinned and leased; nothing of how it is kept.
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, ClassVar

from blake3 import blake3
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from artifactcache.errors import CacheError, Corrupted, NotFound, OriginUnavailable
from cacheserver import uris
from cacheserver.removal import remove
from cacheserver.selection import Selection
from cacheserver.words import Manifest, Progress, Resolved
from tests.rig.seam import AFTER, ANY, BEFORE, KILL, Fault, Killed, Seam
from tests.unit.house import FRESHNESS
from tests.unit.mortal import Place, assert_ours
from tests.unit.world import (
    ALIAS,
    BARE,
    CONTENTS,
    GRACE_SECONDS,
    NAMES,
    RUN,
    RUN_ROOT,
    VERSIONS,
    WEIGHTS,
    WHOLE,
    Files,
    Key,
    files_in,
    of_root,
    of_selection,
    of_uri,
    selected,
)


class CacheModel(RuleBasedStateMachine):
    """The cache in process, through its public verbs.

    Attributes:
        held: what is held, by URI and selection, and when the origin was seen to have it.
        leased: trees, with what is in them.
        run_seen_at: when the run was last asked for while it was there.
        fault: strikes the next verb.
    """

    seam: ClassVar[Seam]
    base: ClassVar[Path]

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(dir=self.base))
        self.place = Place(self.folder, self.seam)
        self.held: dict[Key, tuple[Files, float]] = {}
        self.pinned, self.ever_damaged = set[str](), set[str]()
        self.leased: list[tuple[str, Files]] = []
        self.fault: Fault | None = None
        self.stuck, self.run_seen_at = 0, -math.inf
        self.bytes = {blake3(content).hexdigest(): content for content in (*CONTENTS, *WEIGHTS.values())}

    @initialize()
    def begin(self) -> None:
        """A daemon that holds nothing, and an origin that has one of each."""
        self.place.open()
        origin = self.place.origin
        origin.run("r")
        for number, root in enumerate((*BARE, RUN_ROOT)):
            origin.files |= {f"{root}/{name}": CONTENTS[(number + n) % 5] for n, name in enumerate(NAMES[: number + 2])}
        for version in VERSIONS:
            root = f"s3://bucket/m/{version}"
            origin.versions[f"models:/m/{version}"] = Resolved(f"models:/m/{version}", root, (), True)
            origin.files |= {f"{root}/d/y": b"shared", f"{root}/weights": WEIGHTS[version]}
        origin.aliases[ALIAS] = "1"

    def teardown(self) -> None:
        """Nothing stays."""
        self.leased.clear()
        self.place.end()
        assert remove(str(self.folder)) is None

    # -- the origin ---------------------------------------------------------------------------------------------------

    @rule(root=of_root, name=st.sampled_from(NAMES), content=st.sampled_from((*CONTENTS, None)))
    def write(self, root: str, name: str, content: bytes | None) -> None:
        """A file is written, or rewritten, at the origin, or goes unless it is the last."""
        files = self.place.origin.files
        if content is not None:
            files[f"{root}/{name}"] = content
        elif len([uri for uri in files if uri.startswith(f"{root}/")]) > 1:
            files.pop(f"{root}/{name}", None)

    @rule(what=st.sampled_from(("alias", "run", "up", "up", "up", "down")))
    def change(self, what: str) -> None:
        """The alias stands for another version; the run is deleted, or is there again; the origin answers no more, or
        answers again."""
        origin = self.place.origin
        if what == "alias":
            origin.aliases[ALIAS] = next(v for v in VERSIONS if v != origin.aliases[ALIAS])
        elif what in ("up", "down"):
            origin.down = what == "down"
        elif origin.versions.pop(RUN, None) is None:
            origin.run("r")

    # -- the host -----------------------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from((30.0, 1000.0, 4000.0, -5000.0)))
    def jump(self, seconds: float) -> None:
        """Time goes by; or the clock is set back."""
        self.place.later(max(seconds, 0.0))
        self.place.house.now = self.place.now = self.place.now + min(seconds, 0.0)

    @rule(is_killed=st.booleans())
    def restart(self, is_killed: bool) -> None:
        """Another daemon has the store."""
        self.leased.clear()
        self.place.die() if is_killed else self.place.close()
        self.place.open()
        self.stuck = 0

    @rule(step=st.integers(0, 150), when=st.sampled_from((BEFORE, AFTER)), errno=st.sampled_from((KILL, ANY, ANY)))
    def arm(self, step: int, when: str, errno: int) -> None:
        """Something is going to fail in the next verb."""
        self.fault = Fault(step, when, errno)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def damage(self, data: st.DataObject) -> None:
        """A bad disk changes a blob's bytes."""
        digests = sorted(set(self.place.house.index.all_digests()) - self.place.damaged)
        if digests:
            digest = data.draw(st.sampled_from(digests))
            self.place.house.damage(digest)
            self.place.damaged.add(digest)
            self.ever_damaged.add(digest)

    # -- the verbs ----------------------------------------------------------------------------------------------------

    @rule(uri=of_uri, selection=of_selection, refresh=st.booleans())
    def fetch(self, uri: str, selection: Selection, refresh: bool) -> None:
        """What comes is what the origin has, or what it had when it was asked last, as long as that counts."""
        house, origin = self.place.house, self.place.origin

        def act() -> tuple[str, Any]:
            artifact = house.cache.version_of(uris.parse(uri)).artifact
            return artifact.uri, house.bring(artifact.uri, selection, refresh=refresh).held

        names = [f"models:/m/{version}" for version in VERSIONS] if uri == ALIAS else [uri]
        wanted = f"models:/m/{origin.aliases[ALIAS]}" if uri == ALIAS else uri
        before = {one: self._may_be(one, selection, refresh) for one in names}
        there, was_sound = self._at_origin(wanted, selection), self._holds_sound(wanted, selection.key)
        may_go = {key for key in self.held if key[0] == wanted and there is None} - {(u, "") for u in self.pinned}
        if uri == RUN and there is not None and not origin.down:
            self.run_seen_at = self.place.now
        result, error, has_failed = self._done(act, may_go)
        if result is not None:
            version, found = result
            assert uri != ALIAS or origin.down or has_failed or version == wanted
            content = self._content(found.tree)
            assert content in before[version], f"{version} has {sorted(content)}, and may be {before[version]}"
            if not has_failed and not origin.down:
                self.held[version, selection.key] = content, self.place.now
            self.held.setdefault((version, selection.key), (content, -math.inf))
        elif not has_failed and error is not None:
            if origin.down:
                assert isinstance(error, OriginUnavailable | Corrupted), f"{error!r}"
                assert refresh or uri == ALIAS or not was_sound, f"{error!r}"
            else:
                assert isinstance(error, NotFound | Corrupted) and there is None, f"{error!r}"
            self._look_again(may_go)
            for key in [key for key in self.held if key[0] == wanted and not origin.down]:
                self.held[key] = self.held[key][0], -math.inf  # it proves nothing any more

    @rule(uri=of_uri, selection=of_selection)
    def fetch_what_is_due(self, uri: str, selection: Selection) -> None:
        """The same, as most do it."""
        self.fetch(uri, selection, False)

    @rule(uri=of_uri, step=st.integers(0, 150), when=st.sampled_from((BEFORE, AFTER)))
    def fetch_in_vain(self, uri: str, step: int, when: str) -> None:
        """The same, and something fails in it."""
        self.fault = Fault(step, when, ANY)
        self.fetch(uri, WHOLE, False)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), way=st.sampled_from(("view", "link", "copy")))
    def hand_out(self, data: st.DataObject, way: str) -> None:
        """A client has exactly what is held, in whichever way it has it."""
        uri, key = data.draw(st.sampled_from(sorted(self.held)))
        held = self.place.house.index.held(uri, key)
        assert held is not None
        result, error, has_failed = self._done(lambda: self._hand_out(held.tree, way))
        if result is not None:
            assert result == self.held[uri, key][0]
        else:
            assert has_failed or (isinstance(error, Corrupted) and self._is_hurt(held.tree)), f"{error!r}"

    def _hand_out(self, tree: str, way: str) -> Files:
        store, found = self.place.house.store, self.place.house.store.tree(tree)
        if not (way == "view" and store.view_is_sound(tree)) and (found is None or store.unsound(found)):
            raise Corrupted("found by the look that each fetch takes.")
        if way == "view":
            return files_in(Path(store.view(tree)))
        manifest = self._manifest(tree)
        if way == "copy":
            fds = store.open_blobs(tree, 0) if manifest.size_bytes else []
            try:
                contents = [os.pread(fd, 1 << 20, 0) for fd in fds]
            finally:
                self.place.give_back(fds)
            filled = dict(zip([e.path for e in manifest.files if e.size], contents, strict=True))
            return {os.fsdecode(e.path): filled.get(e.path, b"") for e in manifest.files}
        with self.place.destination(*(os.fsdecode(folder) for folder in manifest.folders)) as fd:
            store.link(tree, fd, os.geteuid())
            linked = files_in(Path(f"/proc/self/fd/{fd}"))
        return linked | {os.fsdecode(e.path): b"" for e in manifest.files if not e.size}

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def lease(self, data: st.DataObject) -> None:
        """A client has a lease of what is held."""
        held = self.place.house.index.held(*data.draw(st.sampled_from(sorted(self.held))))
        assert held is not None
        self.place.house.leases.take(held.tree)
        self.leased.append((held.tree, self.held[held.uri, held.selection][0]))

    @precondition(lambda self: self.leased)
    @rule()
    def release(self) -> None:
        """The oldest lease ends."""
        self.place.house.leases.give_back(self.leased.pop(0)[0])

    @rule(uri=st.sampled_from((*BARE, RUN)))
    def pin(self, uri: str) -> None:
        """What is held can be pinned, and nothing else."""
        pins, now = self.place.house.index.pins, self.place.now
        result, _, _ = self._done(lambda: pins.pin(uri, "", owner=0, asked=uri, now=now, seconds=math.inf))
        assert result is None or result == ((uri, "") in self.held)
        self.pinned = self._pinned()
        assert not result or uri in self.pinned

    @precondition(lambda self: self.pinned)
    @rule()
    def unpin(self) -> None:
        """A pin is taken away."""
        pins, now, uri = self.place.house.index.pins, self.place.now, min(self.pinned)
        result, _, has_failed = self._done(lambda: pins.unpin([uri], "", now))
        assert has_failed or result == [uri]
        self.pinned = self._pinned()

    @precondition(lambda self: self.held)
    @rule()
    def sweep(self) -> None:
        """All goes that may, but what the clock calls young; what is pinned or leased stays."""
        self.place.later(1000.0)
        index, leased = self.place.house.index, {tree for tree, _ in self.leased}
        stays = {key for key in self.held if (h := index.held(*key)) and h.tree in leased | self._trees()}
        may_go = self.held.keys() - stays
        _, error, has_failed = self._done(lambda: self.place.house.sweeper.sweep(free_bytes=2**62) and None, may_go)
        assert error is None or has_failed
        self._look_again(may_go)
        trees = [self.held[key][0] for key in stays] + [content for _, content in self.leased]
        needed = {b""}.union(*(content.values() for content in trees))  # what has only such would free nothing
        old = [key for key in self.held.keys() - stays if not 0 <= self.place.now - self.held[key][1] <= GRACE_SECONDS]
        left = [key for key in old if not needed >= set(self.held[key][0].values()) and self._holds_sound(*key)]
        assert has_failed or not left, f"{left} could have gone"

    @precondition(lambda self: self.place.damaged)
    @rule()
    def verify(self) -> None:
        """Finds what is damaged; and what nobody needs goes, nothing else."""
        self.place.house.sweeper.tidy()
        result, _, _ = self._done(lambda: self.place.house.store.verify(None, Progress()))
        # What was put right by a fetch that failed then may have gone: its artifact lacks it still.
        may_lack = self.place.damaged | self.ever_damaged - set(self.place.house.index.all_digests())
        assert result is None or set(result.corrupted) <= may_lack

    # -- what must be true --------------------------------------------------------------------------------------------

    @invariant()
    def holds_what_it_should(self) -> None:
        """What the model says is held is held, and nothing is wrong with the store."""
        if not self.place.is_open:
            return
        self.place.damaged -= {d for d in self.place.damaged if self._is_right(d)}
        self.place.assert_sound(stuck=self.stuck, leases=len(self.leased))
        asked = {(held.uri, held.selection): held for held in self.place.house.index.asked()}
        assert asked.keys() == self.held.keys()
        for tree, content in [(held.tree, self.held[key][0]) for key, held in asked.items()] + self.leased:
            assert self._content(tree) == content

    # -- the mechanics ------------------------------------------------------------------------------------------------

    def _done(self, verb: Callable[[], Any], may_go: Collection[Key] = ()) -> tuple[Any, CacheError | None, bool]:
        """Does a verb. Returns what it gave, or its error; and whether something was made to fail, which ends the verb,
        the daemon, or neither.

        Args:
            may_go: URIs and selections of what may not be held any more where it fails.
        """
        fault, self.fault = self.fault, None
        result, error = None, None
        try:
            with self.seam.watching(fault):
                result = verb()
        except Killed:
            pass
        except CacheError as caught:
            assert_ours(caught)
            error = caught.with_traceback(None)
        has_failed = self.seam.has_fired
        if self.seam.is_dead:
            result = None
            self.leased.clear()
            self.place.die()
            self.place.open()
            self.stuck = 0
        elif has_failed:
            self.stuck += 1
        if has_failed:
            self._look_again(may_go)
        return result, error, has_failed

    def _look_again(self, may_go: Collection[Key]) -> None:
        """What is held after something has failed, or gone, on the way: what was held, but for some that may go, and
        what may have come."""
        asked = {(one.uri, one.selection): self._content(one.tree) for one in self.place.house.index.asked()}
        gone = self.held.keys() - asked.keys()
        assert gone <= set(may_go), f"{gone - set(may_go)} are not held any more"
        for key in gone:
            del self.held[key]
        for (uri, selection), content in asked.items():
            if (uri, selection) not in self.held or self.held[uri, selection][0] != content:
                assert content in self._may_be(uri, Selection.from_key(selection), False)
                self.held[uri, selection] = content, self.place.now

    def _trees(self) -> set[str]:
        """The trees that are pinned, whatever else they are held as."""
        index = self.place.house.index
        return {held.tree for uri in self.pinned if (held := index.held(uri, ""))}

    def _pinned(self) -> set[str]:
        return {uri for uri, _ in self.place.house.index.pins.untils(self.place.now)}

    def _at_origin(self, uri: str, selection: Selection) -> Files | None:
        origin = self.place.origin
        if uri == RUN and RUN not in origin.versions:
            return None
        root = RUN_ROOT if uri == RUN else f"s3://bucket/m/{uri[-1]}" if uri.startswith("models:") else uri
        return self._below(root, selection)

    def _below(self, root: str, selection: Selection) -> Files:
        files = self.place.origin.files
        found = {u.removeprefix(f"{root}/"): c for u, c in files.items() if u.startswith(f"{root}/")}
        return selected(found, selection)

    def _may_be(self, uri: str, selection: Selection, refresh: bool) -> list[Files]:
        """What a fetch may give: what the origin has; what was held of it a while ago, or when it was last up."""
        down, now = self.place.origin.down, self._at_origin(uri, selection)
        found = [] if down or now is None else [now]
        down = down or self.fault is not None  # it may be the origin's answer that does not come
        for (other, key), (content, at) in self.held.items():
            trusted = not refresh and 0 <= self.place.now - at < FRESHNESS.relist_after
            if other == uri and key in ("", selection.key) and (down or trusted):
                found.append(selected(content, selection))
        known = 0 <= self.place.now - self.run_seen_at < FRESHNESS.relist_after
        if uri == RUN and known and not refresh:  # where its files are is remembered for as long
            found.append(self._below(RUN_ROOT, selection))
        return found

    def _content(self, tree: str) -> Files:
        return {os.fsdecode(e.path): self.bytes[e.digest] if e.size else b"" for e in self._manifest(tree).files}

    def _manifest(self, tree: str) -> Manifest:
        found = self.place.house.store.tree(tree)
        assert found is not None
        return found.manifest

    def _is_hurt(self, tree: str) -> bool:
        """Whether a tree lacks a blob, or has one that somebody has damaged."""
        found = self.place.house.store.tree(tree)
        return found is None or bool(found.missing) or bool(self.place.damaged & set(found.rows))

    def _is_right(self, digest: str) -> bool:
        path = self.place.house.blob(digest)
        return path.exists() and blake3(path.read_bytes()).hexdigest() == digest

    def _holds_sound(self, uri: str, key: str) -> bool:
        held = self.place.house.index.held(uri, key)
        return held is not None and not self._is_hurt(held.tree)
