"""Requests over kept connections: what one answer leaves behind is no trouble of the next."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from cacheserver.http import Access, ElsewhereError, Http, StatusError
from tests.rig import lying
from tests.rig.lying import Lie, LyingOrigin, Reply, flat

ACCESS = Access({}, True, None)


@pytest.fixture
def liar() -> Iterator[LyingOrigin]:
    """An origin of the test's own."""
    with lying.lying_origin() as server:
        yield server


@pytest.mark.parametrize(("status", "error"), [(302, ElsewhereError), (404, StatusError)])
def test_an_answer_without_a_body_has_ended(liar: LyingOrigin, status: int, error: type[Exception]) -> None:
    """The next request on its connection is answered, although somebody still holds the answer before it: if that
    ended only when it is freed, it would do so while the next one is under way."""
    seen = set()

    def empty(reply: Reply) -> None:
        seen.add(reply.peer)
        reply.head(status, Location="file:///etc/x", Content_Length=0)

    url = f"{liar.uri}{lying.DOWNLOADS}/{liar.run(Lie(flat(), lambda path: empty))}/x"
    http, held = Http(time.monotonic), []
    for _ in range(3):
        with pytest.raises(error) as found, http.get(url, ACCESS, 5.0):
            pass
        held.append(found)  # with its traceback, and so the answer
    assert len(seen) == 1, "and the connection is kept"
