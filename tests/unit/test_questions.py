"""Questions to the origin: each comes to an end, and what it says is what happened."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from artifactcache.errors import DaemonUnavailable, OriginUnavailable
from cacheserver.http import Access, Http
from cacheserver.looking import Looked, look
from cacheserver.questions import QUESTIONS_MAX, Questions
from tests.unit.house import PATIENCE_SECONDS


@pytest.fixture
def questions() -> Iterator[Questions]:
    """Threads that wait for a tenth of a second."""
    made = Questions(0.1)
    yield made
    made.close()


def test_an_answer(questions: Questions) -> None:
    """It is given as it came, from the tracking server's threads as from a store's."""
    assert questions.ask("runs:/r", lambda: 1) == questions.ask("s3://b", lambda: 1, store="s3://b") == 1


def test_no_answer(questions: Questions) -> None:
    """Who asks is told how long it was waited for, and of what."""
    go_on = threading.Event()
    with pytest.raises(OriginUnavailable, match=r"^runs:/r: the origin has not answered within 0\.1 s"):
        questions.ask("runs:/r", lambda: go_on.wait(PATIENCE_SECONDS))
    go_on.set()


def test_a_question_that_ran_into_a_time_of_its_own() -> None:
    """That was not our time, and nothing is said of it."""

    def ask() -> None:
        raise TimeoutError("the socket has waited for an hour")

    patient = Questions(PATIENCE_SECONDS)
    with pytest.raises(OriginUnavailable) as told:
        patient.ask("runs:/r", ask)
    assert f"{PATIENCE_SECONDS:g} s" not in str(told.value)
    patient.close()


def test_too_many_questions_that_hang(questions: Questions) -> None:
    """The next one does not begin, and is told so; another user's do, a store's, and those of folders of this host."""
    go_on = threading.Event()

    def hang() -> bool:
        return go_on.wait(PATIENCE_SECONDS)

    def ask() -> None:
        with pytest.raises(OriginUnavailable):
            questions.ask("runs:/r", hang)

    waiting = [threading.Thread(target=ask) for _ in range(QUESTIONS_MAX // 2)]
    for each in waiting:
        each.start()
    for each in waiting:
        each.join(PATIENCE_SECONDS)
    with pytest.raises(OriginUnavailable, match="too many other questions"):
        questions.ask("runs:/r", lambda: 1)
    kept = looked(questions, "/health", lambda _: Access({}, True, None))
    assert kept.trouble == "" and "too many other questions" in kept.unasked, "that says nothing of the server"
    assert questions.ask("runs:/r", lambda: 1, owner=1001) == 1
    assert questions.ask("s3://b", lambda: 1, store="s3://b") == 1
    assert questions.ask("file:/d", lambda: 1, is_local=True) == 1
    go_on.set()


def test_a_look_ends_with_its_credentials(questions: Questions) -> None:
    """What goes with a question is had in the time of that question, of its very URL; outside of the API nothing goes
    but certificates. A plugin that fails is what stands in the way; one that hangs is not waited for."""
    go_on, signed = threading.Event(), list[str]()

    def seen(path: str, plugin: Callable[[], object]) -> str:
        def anew(url: str) -> Access:
            signed.append(url)
            plugin()
            return Access({}, True, None)

        return looked(questions, path, anew).trouble

    assert "Connection refused" in seen("/api/2.0/x?a=b", int) and "Connection refused" in seen("/health", int)
    assert signed == ["http://127.0.0.1:1/api/2.0/x?a=b", "http://127.0.0.1:1/api/2.0/"]
    assert "cannot be had: invalid literal" in seen("/health", lambda: int("x"))
    said = seen("/health", lambda: go_on.wait(PATIENCE_SECONDS))
    assert said == "what has to go with a question is not to be had within 0.1 s"
    go_on.set()


def looked(questions: Questions, path: str, anew: Callable[[str], Access]) -> Looked:
    """What comes of a look at a port where nobody listens."""
    return look(Http(time.monotonic), "http://127.0.0.1:1", path, anew, 0.1, partial(questions.ask, "it"))


@pytest.mark.parametrize("store", ["", "s3://b"])
def test_the_daemons_end(store: str) -> None:
    """Whoever waits is told so, while the question still hangs; so is who waits for a turn, and who asks after that."""
    patient, go_on, told = Questions(PATIENCE_SECONDS), threading.Event(), list[str]()

    def ask() -> None:
        with pytest.raises(DaemonUnavailable) as error:
            patient.ask("runs:/r", lambda: go_on.wait(PATIENCE_SECONDS), store=store)
        told.append(str(error.value))

    callers = [threading.Thread(target=ask) for _ in range(QUESTIONS_MAX + 1)]
    for caller in callers:
        caller.start()
    patient.close()
    for caller in callers:
        caller.join(PATIENCE_SECONDS)
    assert len(told) == len(callers) and not go_on.is_set()
    go_on.set()
    with pytest.raises(DaemonUnavailable):
        patient.ask("runs:/r", lambda: 1, store=store)
    with pytest.raises(DaemonUnavailable):
        looked(patient, "/health", lambda _: Access({}, True, None))
