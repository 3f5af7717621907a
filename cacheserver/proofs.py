"""Proofs that a call comes from the process whose token it carries, for gRPC does not tell who is at the other end.

Law of this file: a proof is good once. It stands in a page that only the daemon and that process have mapped: its
descriptor is passed once, at Hello, and closed at both ends.
"""

from __future__ import annotations

import errno
import fcntl
import hmac
import os
import re
import threading

from artifactcache.errors import CacheError
from cacheserver import libc

PROOF_BYTES = 16
SLOTS = 256
PAGE_BYTES = SLOTS * PROOF_BYTES
_EMPTY = bytes(PROOF_BYTES)
_PROOF = re.compile(r"(0|[1-9][0-9]{0,2}):([0-9a-f]{32})")
_MFD_NOEXEC_SEAL = 0x0008  # Linux 6.3; where vm.memfd_noexec is 2, no memfd is made without it
# Who has the descriptor cannot take the page from under the mapping, which would end the daemon with SIGBUS.
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class Page:
    """The daemon's end of a page: SLOTS places of PROOF_BYTES."""

    def __init__(self, descriptor: int) -> None:
        """Raises OSError."""
        self._lock = threading.Lock()  # of two calls with one proof, one finds it; and none looks at what is unmapped
        self._is_open = True
        self._address = libc.map_shared(descriptor, PAGE_BYTES)
        self._slots = libc.memory(self._address, PAGE_BYTES)

    def take(self, proof: str) -> bool:
        """Whether this proof, `<slot>:<32 hexadecimal digits>`, stands in its slot; then it does so no more."""
        found = _PROOF.fullmatch(proof)
        if found is None or int(found[1]) >= SLOTS:
            return False
        begin, told = int(found[1]) * PROOF_BYTES, bytes.fromhex(found[2])
        with self._lock:
            if not self._is_open:
                return False
            stands = bytes(self._slots[begin : begin + PROOF_BYTES])
            if stands == _EMPTY or not hmac.compare_digest(stands, told):
                return False
            self._slots[begin : begin + PROOF_BYTES] = _EMPTY
        return True

    def close(self) -> None:
        """Unmaps the page; no proof is good any more."""
        with self._lock:
            if self._is_open:
                self._is_open = False
                libc.unmap(self._address, PAGE_BYTES)


def new_page() -> tuple[Page, int]:
    """A page, and the descriptor to pass; the caller closes it. Raises CacheError where there is no room for one."""
    try:
        descriptor = _memfd()
        try:
            os.pwrite(descriptor, bytes(PAGE_BYTES), 0)  # its memory is taken now: nothing can fail later
            fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, _SEALS)
            return Page(descriptor), descriptor
        except BaseException:
            os.close(descriptor)
            raise
    except OSError as error:
        raise CacheError(f"The daemon cannot make a page for this session's proofs: {error.strerror}.") from None


def _memfd() -> int:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        return os.memfd_create("artifactcache-proofs", flags | _MFD_NOEXEC_SEAL)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    return os.memfd_create("artifactcache-proofs", flags)
