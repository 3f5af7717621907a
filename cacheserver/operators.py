"""Who may pin, unpin and sweep.

Law of this file: users and groups are the host's, asked for at each call: what an administrator changes counts at once.
"""

from __future__ import annotations

import grp
import pwd

from cacheserver.sessions import Peer

ROOT = 0


class Operators:
    """Root, the daemon's own user, and whom the configuration names.

    Args:
        names: of users, or of groups with "@" before them.
        own: the daemon's user ID.
    """

    def __init__(self, names: list[str], own: int) -> None:
        self._names = names
        self._own = own

    def admits(self, peer: Peer) -> bool:
        """Whether somebody is an operator."""
        if peer.uid in (ROOT, self._own):
            return True
        return any(self._is(peer, name) for name in self._names)

    def _is(self, peer: Peer, name: str) -> bool:
        try:
            if name.startswith("@"):
                return grp.getgrnam(name[1:]).gr_gid in (peer.gid, *peer.groups)
            return pwd.getpwnam(name).pw_uid == peer.uid
        except KeyError:  # the host has no such user or group
            return False
