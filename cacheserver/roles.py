"""Whom the daemon serves, and what each may do beside reading: operators and administrators.

Law of this file: it is asked at each call, and goes by the host's names of now: whoever is put out of a group has lost
what it gave as soon as that is noticed. What cannot be told lets nobody in.
"""

from __future__ import annotations

from artifactcache.errors import PermissionDenied
from cacheserver.identities import Identities, Identity
from cacheserver.sessions import Peer
from cacheserver.settings import AccessConfig

ROOT = 0
OPERATOR = "operator"
ADMINISTRATOR = "administrator"
_WHO = {
    OPERATOR: "Only operators may {what}: root, the daemon's own user, and those that [access] operators or"
    " administrators in its configuration names.",
    ADMINISTRATOR: "Only administrators may {what}: root, the daemon's own user, and those that [access] administrators"
    " in its configuration names.",
}
_SILENT = (
    "The host's name service does not answer, so that nobody knows who uid {uid} is: try again in a moment; if that"
    " does not help, tell the administrator of this host that `getent passwd {uid}` fails."
)


class Roles:
    """The lists of the configuration, and those who need not be on them: root, and the daemon's own user.

    Args:
        own: the daemon's user ID.
        serves_all: whether it serves others at all.

    Attributes:
        access: the lists; they may change.
    """

    def __init__(self, access: AccessConfig, identities: Identities, own: int, *, serves_all: bool) -> None:
        self.access = access
        self.identities = identities
        self._own = own
        self._serves_all = serves_all

    def admit(self, peer: Peer) -> None:
        """Raises PermissionDenied where the daemon does not serve somebody."""
        if peer.uid == self._own or (self._serves_all and peer.uid == ROOT):
            return
        if not self._serves_all:
            raise PermissionDenied(
                f"This daemon serves only the user who started it (uid {self._own}), and you are uid {peer.uid}. Start"
                " one of your own, or ask the administrator for a system daemon."
            )
        if self.access.allow or self.access.deny:
            self._admit(peer.uid, self.identities.of(peer))

    def _admit(self, uid: int, one: Identity) -> None:
        if not one.is_told:
            raise PermissionDenied(_SILENT.format(uid=uid))
        # Some sources of names, SSSD as some distributions build it, say "not found" also when they are stopped:
        # whoever is denied by name must not come in by that.
        if self.access.deny and not one.is_named:
            raise PermissionDenied(
                f"The host knows no user with uid {uid}, so that nobody can tell whether [access] deny in the daemon's"
                " configuration means you: ask the administrator of this host for a user name."
            )
        if one.is_denied_by(self.access.deny):
            raise PermissionDenied(
                f"[access] deny in the daemon's configuration names you, {one.caller.user}, or one of your groups: only"
                " the administrator of this host can change that."
            )
        if self.access.allow and not one.caller.is_one_of(self.access.allow):
            groups = ", ".join(sorted(one.caller.groups))
            raise PermissionDenied(
                f"[access] allow in the daemon's configuration names neither you, {one.caller.user}, nor one of your"
                f" groups ({groups}): ask the administrator of this host to add you there, or to a group that it names."
            )

    def of(self, peer: Peer) -> tuple[str, ...]:
        """The roles that somebody has."""
        if peer.uid in (ROOT, self._own):
            return OPERATOR, ADMINISTRATOR
        access = self.access
        if not access.operators and not access.administrators:
            return ()
        caller = self.identities.of(peer).caller
        if caller.is_one_of(access.administrators):
            return OPERATOR, ADMINISTRATOR
        return (OPERATOR,) if caller.is_one_of(access.operators) else ()

    def require(self, peer: Peer, role: str, what: str) -> None:
        """Raises PermissionDenied where somebody does not have a role. `what` it is for finishes "Only … may"."""
        if role in self.of(peer):
            return
        one = self.identities.of(peer)
        why = f"You are {one.caller.user}, uid {peer.uid}." if one.is_told else _SILENT.format(uid=peer.uid)
        raise PermissionDenied(f"{_WHO[role].format(what=what)} {why}")

    def sees_all(self, peer: Peer) -> bool:
        """Whether somebody is shown also what others have fetched."""
        return self.access.check == "none" or OPERATOR in self.of(peer)
