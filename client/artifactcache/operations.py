"""The calls of those who look after the store: pins, sweeps, explanations, accounts, the audit log, overviews."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from artifactcache import request
from artifactcache.deadline import Deadline
from artifactcache.results import Explained, Pinned, Progress, Swept, Usage

if TYPE_CHECKING:
    from artifactcache.calls import Calls
    from artifactcache.overviews import Overview

Patterns = str | Iterable[str]
OnProgress = Callable[[Progress], object]


class Operations:
    """A part of `Client`."""

    def _calls(self) -> Calls:
        raise NotImplementedError

    def pin(
        self,
        uri: str | None = None,
        *,
        run_id: str | None = None,
        artifact_path: str | None = None,
        include: Patterns = (),
        exclude: Patterns = (),
        for_seconds: float | None = None,
        progress: OnProgress | None = None,
        timeout: float | None = None,
    ) -> Pinned:
        """Make an artifact present, and promise not to evict it for so many seconds, None until it is unpinned.

        An alias is pinned as the version that it stands for now. For operators, else PermissionDenied.
        """
        wanted = request.selection(uri, run_id, artifact_path, include, exclude)
        seconds = request.pin_seconds(for_seconds)
        request.callback(progress)
        deadline = Deadline(request.timeout(timeout))
        return self._calls().pin(wanted, seconds, progress, deadline)

    def unpin(
        self,
        uri: str | None = None,
        *,
        run_id: str | None = None,
        artifact_path: str | None = None,
        include: Patterns = (),
        exclude: Patterns = (),
        timeout: float | None = None,
    ) -> tuple[str, ...]:
        """End the pins of a version, or those made by this URI; return the versions. For operators.

        Raises NotFound where there is no such pin.
        """
        wanted = request.selection(uri, run_id, artifact_path, include, exclude)
        return self._calls().unpin(wanted, Deadline(request.timeout(timeout)))

    def sweep(self, *, dry_run: bool = False, free_bytes: int | None = None, timeout: float | None = None) -> Swept:
        """Evict what the store's limits and rules want gone now, or at least `free_bytes`. For operators.

        With `dry_run` nothing goes: the result is the plan. Where less could go than was wanted, the result says why.
        """
        request.flag(dry_run, "dry_run")
        count = request.free_bytes(free_bytes)
        return self._calls().sweep(dry_run, count, Deadline(request.timeout(timeout)))

    def explain(
        self,
        uri: str | None = None,
        *,
        run_id: str | None = None,
        artifact_path: str | None = None,
        include: Patterns = (),
        exclude: Patterns = (),
        timeout: float | None = None,
    ) -> Explained:
        """Ask why an artifact that is held is kept, or how soon it would go. Raises NotFound where it is not held."""
        wanted = request.selection(uri, run_id, artifact_path, include, exclude)
        return self._calls().explain(wanted, Deadline(request.timeout(timeout)))

    def audit(
        self,
        *,
        user: str | None = None,
        artifact: str | None = None,
        refused: bool = False,
        since: float | None = None,
        follow: bool = False,
        timeout: float | None = None,
    ) -> Iterator[dict[str, Any]]:
        """Read the audit log, the oldest line first: who attempted to read what, and what came of it. For operators.

        docs/access.md describes each field. A line that tells of lines that were lost has `time`, `lost` and `reason`.

        Args:
            user: Only attempts of this user, by name or by number.
            artifact: Only of what matches this pattern, as it was asked for or resolved to; `*` crosses slashes.
            refused: Only those that were refused.
            since: Only those since then, in seconds since the epoch.
            follow: Go on with those that come, until the iterator is closed.
        """
        wanted = request.audited(user, artifact, since)
        request.flag(refused, "refused")
        request.flag(follow, "follow")
        deadline = Deadline(request.timeout(timeout))
        return self._calls().audit(*wanted[:2], refused, wanted[2], follow, deadline)

    def usage(self, *, everybody: bool = False, timeout: float | None = None) -> tuple[Usage, ...]:
        """Ask what is on this user's account, or on everybody's, the fullest first: that is for administrators."""
        request.flag(everybody, "everybody")
        return self._calls().usage(everybody, Deadline(request.timeout(timeout)))

    def overview(self, *, since: float | None = None, timeout: float | None = None) -> Overview:
        """Look at the daemon: what is held, who uses it, what is under way, what would go next, and what is wrong.

        Where it checks access, others than operators are shown what is on their own account.

        Args:
            since: Of the history only what came after that, in seconds since the epoch.
        """
        return self._calls().overview(request.moment(since, "since"), Deadline(request.timeout(timeout)))

    def page(self, *, timeout: float | None = None) -> tuple[str, float]:
        """Ask for an address of the daemon's page that lets in who opens it first, as this user.

        Return it, and for how many seconds it is good. Raises NotFound where the daemon shows no page.
        """
        return self._calls().page(Deadline(request.timeout(timeout)))
