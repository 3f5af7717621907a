"""Proofs that a call comes from this process: each is written into a page that only it and the daemon have mapped.

A token alone is worth nothing to another process then, nor is a call that was overheard: the daemon clears a proof when
it has seen it. Nothing here takes a lock, for a signal's handler, or a finalizer, may call in the middle of a call.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from artifactcache.deadline import Deadline
from artifactcache.errors import DaemonUnavailable

PROOF_BYTES = 16
SLOTS = 256
PAGE_BYTES = SLOTS * PROOF_BYTES
LOOK_AGAIN_SECONDS = 0.002  # where all slots wait for the daemon, which tells of none that it has cleared
_EMPTY = bytes(PROOF_BYTES)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
_libc.munmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
_libc.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_MAP_FAILED = ctypes.c_void_p(-1).value


class Page:
    """This process's end of a page. It is unmapped when nobody has this object any more, and so never under a call."""

    def __init__(self, descriptor: int) -> None:
        """Map a page by its descriptor, which the caller closes. Raises DaemonUnavailable where it cannot be mapped."""
        self._pid, self._address = os.getpid(), 0
        # Not mmap.mmap, which keeps a descriptor: a child of a fork would inherit that.
        address = _libc.mmap(None, PAGE_BYTES, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_SHARED, descriptor, 0)
        if address in (None, _MAP_FAILED):
            reason = os.strerror(ctypes.get_errno())
            raise DaemonUnavailable(f"the page for proofs that the daemon passed cannot be mapped: {reason}")
        self._address = address
        _libc.madvise(address, PAGE_BYTES, mmap.MADV_DONTFORK)  # a child has a session of its own
        self._slots = memoryview((ctypes.c_ubyte * PAGE_BYTES).from_address(address)).cast("B")
        # Taken from the end: who calls one after the other always has the same one. Each is in one of both.
        self._free = list(range(SLOTS))
        self._given: dict[bytes, int] = {}

    @contextmanager
    def proof(self, deadline: Deadline) -> Iterator[str]:
        """Prove one call, which is over at the end of the block. Give what to send with it: `<slot>:<hex digits>`."""
        proof, slot = os.urandom(PROOF_BYTES), self._take(deadline)
        self._write(slot, proof)  # first: an empty slot that was given counts as one that the daemon has cleared
        self._given[proof] = slot
        try:
            yield f"{slot}:{proof.hex()}"
        finally:
            # In a child that was forked during the call this is the parent's page, and not there.
            if os.getpid() == self._pid and self._given.pop(proof, None) is not None:
                self._write(slot, _EMPTY)  # of a call that has not reached the daemon nothing stays
                self._free.append(slot)

    def _take(self, deadline: Deadline) -> int:
        while True:
            try:
                return self._free.pop()
            except IndexError:
                deadline.remaining()
            if not self._take_back():
                time.sleep(LOOK_AGAIN_SECONDS)

    def _take_back(self) -> bool:
        """Take back the slots that the daemon has cleared: their calls go on, and need them no more."""
        for proof, slot in list(self._given.items()):
            if self._read(slot) == _EMPTY and self._given.pop(proof, None) is not None:
                self._free.append(slot)
        return bool(self._free)

    def _read(self, slot: int) -> bytes:
        return bytes(self._slots[slot * PROOF_BYTES : (slot + 1) * PROOF_BYTES])

    def _write(self, slot: int, proof: bytes) -> None:
        self._slots[slot * PROOF_BYTES : (slot + 1) * PROOF_BYTES] = proof

    def __del__(self, getpid: Callable[[], int] = os.getpid, unmap: Callable[[int, int], int] = _libc.munmap) -> None:
        # By default arguments, for at the interpreter's end the module's own names are gone.
        if self._address and getpid() == self._pid:
            unmap(self._address, PAGE_BYTES)
