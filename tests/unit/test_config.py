"""The configuration, and where a daemon lives by it."""

from __future__ import annotations

from typing import Any

import pytest

from cacheserver.config import ConfigError, keys, parse
from cacheserver.place import place, store_root
from cacheserver.settings import Config, EvictionConfig, IngestConfig, ScrubConfig, SharedConfig
from cacheserver.space import Amount

FULL = """\
[store]
root = "/srv/cache"
capacity = "500GiB"
min_free = "10%"

[origin]
tracking_uri = "http://mlflow.example:5000"
unreachable_after = 3
stale_after = 0.5
relist_after = 0
alias_ttl = 60
local_roots = ["/srv/mlflow", "/data"]

[access]
check = "caller"
decisions_kept = 5
users = "all"
allow = ["@students", "*"]
deny = ["mallory"]
operators = ["alice", "@mlops"]
administrators = ["root"]
views = false
hardlink_for_root = true

[audit]
file = "/var/log/cacheserver/audit.jsonl"
max_bytes = "1MiB"
files = 3
warn_refusals = 7
warn_downloads = 70

[scrub]
every = "1d"
rate = "1GiB"

[ingest]
folders = ["/srv/mlruns"]
settle = "1m"
every = "1h"
max_age = "1d"

[shared]
url = "s3://bucket/prefix"
read_only = true
endpoint = "http://127.0.0.1:9000"
profile = "near"
key_file = "/etc/cacheserver.key"
patience = 5
rate_min = "4MiB"
tree_max = "10GiB"
capacity = "1TiB"

[server]
socket_dir = "/run/somewhere"

[metrics]
listen = "[::1]:9464"
accounts = true

[page]
listen = "127.0.0.1:9465"

[log]
format = "json"
level = "warning"

[eviction]
policy = "lru"
high = "80%"
low = "70.5%"
grace = "2m"
trace = "/var/log/cacheserver.trace"
"""


def test_every_key_is_read() -> None:
    """A configuration that sets all keys to something else than their defaults has them all."""
    config = parse(FULL, "c.toml")
    assert config.store.root == "/srv/cache"
    assert config.store.capacity == Amount(500 * 2**30) and config.store.min_free == Amount(10, percent=True)
    assert config.origin.tracking_uri == "http://mlflow.example:5000" and config.origin.unreachable_after == 3.0
    assert (config.origin.stale_after, config.origin.relist_after, config.origin.alias_ttl) == (0.5, 0.0, 60.0)
    assert config.origin.local_roots == ["/srv/mlflow", "/data"]
    assert config.access.check == "caller" and config.access.users == "all" and config.access.hardlink_for_root is True
    assert config.access.operators == ["alice", "@mlops"] and config.access.allow == ["@students", "*"]
    assert config.audit.max_bytes == Amount(2**20)
    assert config.scrub == ScrubConfig(86_400.0, Amount(2**30))
    assert config.ingest == IngestConfig(["/srv/mlruns"], 60.0, 3600.0, 86_400.0)
    assert config.shared == SharedConfig(
        "s3://bucket/prefix",
        True,
        "http://127.0.0.1:9000",
        "near",
        "/etc/cacheserver.key",
        5.0,
        4 << 20,
        Amount(10 << 30),
        Amount(1 << 40),
    )
    assert config.server.socket_dir == "/run/somewhere"
    assert config.eviction == EvictionConfig("lru", 80.0, 70.5, 120.0, "/var/log/cacheserver.trace")
    for section, key, default in keys():
        assert getattr(getattr(config, section), key) != default, (section, key)


def test_nothing_has_to_be_configured() -> None:
    """An empty text, and sections without keys, are the defaults."""
    assert (
        parse("", "c.toml")
        == Config()
        == parse("[store]\n[origin]\n[access]\n[server]\n[eviction]\n[quotas]\n", "c.toml")
    )


@pytest.mark.parametrize("value", ["500", "1_000", "0"])
def test_bytes_may_be_a_plain_number(value: str) -> None:
    """A number without a unit is bytes."""
    assert parse(f"[store]\nmin_free = {value}", "c.toml").store.min_free == Amount(int(value))


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("90", 90), ("0.5", 0.5), ('"90s"', 90), ('"1.5m"', 90), ('" 2 h "', 7200), ('"1d"', 86_400), ('"1w"', 604_800)],
)
def test_a_duration_may_have_a_unit(value: str, seconds: float) -> None:
    """A number without one is seconds; every key that is a duration takes both."""
    assert parse(f"[origin]\nrelist_after = {value}", "c.toml").origin.relist_after == seconds
    assert parse('[origin]\nstale_after = "2s"', "c.toml").origin.stale_after == 2.0


@pytest.mark.parametrize(
    ("section", "key", "values"),
    [
        ("store", "root", ["1", "true", '""', '"relative/path"', '"~/cache"', "[]", '"/a\\u0000b"', '["/srv"]']),
        (
            "store",
            "capacity",
            ["0", "0.5", '"0%"', '"0.5B"', "-1", "1.5", "true", '""', '"lots"', '"101%"', '"-1GiB"', "[]"],
        ),
        ("store", "min_free", ['"100%"', "-1", "false", '"5 gib"', "{}"]),
        ("origin", "tracking_uri", ["5000", '""', '"mlflow.example"', "[]", '["http://x"]']),
        ("origin", "unreachable_after", ["0", "-1", "3601", "nan", "inf", '"10"', "true"]),
        ("origin", "stale_after", ["0", "-1", "3601", '"2"', "true"]),
        ("origin", "relist_after", ["-1", "nan", "inf", '"1x"', '"h"', '"-1h"', '"367d"', "true", "31622401"]),
        ("origin", "alias_ttl", ["-0.1", "nan", '"0"', "false", "[]"]),
        ("origin", "local_roots", ['"/srv"', "true", '["srv"]', '[""]', "[1]", '["/srv", "~/x"]', "{}", '[["/srv"]]']),
        ("ingest", "folders", ['"/srv"', '["mlruns"]', '["file:/srv"]', "{}"]),
        ("ingest", "settle", ["0", "-1", '"5"']),
        ("ingest", "every", ["0", "nan", "[]"]),
        ("ingest", "max_age", ["-1", '"367d"', "inf"]),
        ("access", "check", ['"callers"', '"None"', '""', "false", "[]", '["none"]', "{}"]),
        ("access", "users", ['"everybody"', "1", "true", "[]"]),
        ("access", "operators", ['"alice"', '[""]', "[1]", '["@"]', '["al ice"]', '["@@x"]', '["a:b"]', "{}"]),
        ("access", "hardlink_for_root", ["1", "0", '"true"', "[]"]),
        ("eviction", "policy", ['"fifo"', '"LRU"', "true", '["lru"]']),
        ("eviction", "high", ["95", "0.95", '"101%"', '"0%"', '"-1%"', '"nan%"', '"95"', "true"]),
        ("eviction", "low", ["90", '"100.1%"', '"1e1%"', "[]"]),
        ("eviction", "grace", ["-1", "nan", '"1"', "true", '"2y"']),
        ("eviction", "trace", ['"trace"', "1", '"~/t"', "[]"]),
        (
            "metrics",
            "listen",
            [
                *("9464", '"9464"', '":9464"', '"127.0.0.1"', '"127.0.0.1:0"', '"127.0.0.1:65536"', '"::1:9464"'),
                *('"[::1]"', '"a b:9464"', '"http://x:9464"', '"x:9464/metrics"', '"x\\n:9464"', "true", "[]"),
            ],
        ),
        ("metrics", "accounts", ['"yes"', "1"]),
        (
            "page",
            "listen",
            [
                *('"0.0.0.0:9465"', '"[::]:9465"', '"192.168.1.1:9465"', '"example.com:9465"', '"127.0.0.1"', "9465"),
                *('"127.evil.example:9465"', '"localhost.example:9465"', '"127.0.0.1:0"', '"[::1]"', "true", "[]"),
            ],
        ),
        ("log", "format", ['"plain"', '""', "1"]),
        ("log", "level", ['"INFO"', '"trace"', "20"]),
        ("server", "socket_dir", ['"run"', "1", '""', "[]", '"/' + "x" * 95 + '"']),
    ],
)
def test_a_value_that_cannot_be_used_is_shown_with_its_line(section: str, key: str, values: list[str]) -> None:
    """The message has the place, the key, the value and what to write instead."""
    for value in values:
        with pytest.raises(ConfigError) as wrong:
            parse(f"# a comment\n\n[{section}]\n{key} = {value}\n", "c.toml")
        assert str(wrong.value).startswith(f"c.toml:4: [{section}] {key} = "), value
        assert ": must be " in str(wrong.value), value


def test_the_page_is_for_this_host_only() -> None:
    """An address that others can reach is refused, with what to write instead, and how to come from elsewhere."""
    with pytest.raises(ConfigError, match=r'c.toml:2: \[page\] listen = .*"127.0.0.1:9465".*ssh -L'):
        parse('[page]\nlisten = "0.0.0.0:9465"', "c.toml")
    for address in ("127.0.0.1:9465", "127.9.9.9:1", "[::1]:9465", "localhost:65535", ""):
        assert parse(f'[page]\nlisten = "{address}"', "c.toml").page.listen == address


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\n[stores]\n", "c.toml:2: [stores] is no section. Did you mean store?"),
        ("\n[zzz]\n", "c.toml:2: [zzz] is no section. There are: store, origin, access, audit, scrub, ingest,"),
        ("[store.more]\n", "c.toml:1: [store] has no key more."),
        ("[store]\ncapacty = 1\n", "c.toml:2: [store] has no key capacty. Did you mean capacity?"),
        ("[store]\n  zzz = 1\n", "c.toml:2: [store] has no key zzz. There are: root, capacity, min_free."),
        ("[store]\ntracking_uri = 'http://x'\n", "c.toml:2: [store] has no key tracking_uri."),
        ("[store]\nroot = '/a'\n[access]\nroot = '/a'\n", "c.toml:4: [access] has no key root."),
        ("[store]\n'ro ot' = '/a'\n", "c.toml:2: [store] has no key ro ot."),
        ("root = '/a'\n", "c.toml:1: [root] is no section."),
    ],
)
def test_a_key_or_section_that_nobody_reads_does_not_exist(text: str, message: str) -> None:
    """A misspelt key is not ignored: the message has its line and the nearest that there is."""
    with pytest.raises(ConfigError) as wrong:
        parse(text, "c.toml")
    assert message in str(wrong.value)


@pytest.mark.parametrize(
    "text",
    ["[store", "root", "[store]\nroot = /a", "[store]\nroot = '/a'\nroot = '/b'", "[store]\n[store]", "a = \x00"],
)
def test_what_is_not_toml_is_said_to_be_so(text: str) -> None:
    """With the line and column that the parser gives, or with where the text ends."""
    with pytest.raises(
        ConfigError, match=r"^c\.toml: this is not TOML: .*(at line \d+, column \d+|end of document)\)\.$"
    ):
        parse(text, "c.toml")


def _place(environ: dict[str, str], text: str = "", uid: int = 4242) -> Any:
    return place(parse(text, "c.toml"), {"MLFLOW_TRACKING_URI": "http://env", "HOME": "/home/u", **environ}, uid)


def test_a_daemon_without_configuration_lives_in_the_users_folders() -> None:
    """The store is in the cache folder, the sockets are in the run-time folder, and only the user is served."""
    here = _place({"XDG_RUNTIME_DIR": "/run/user/4242"})
    assert here.root == "/home/u/.cache/cacheserver" and here.socket_dir == "/run/user/4242/cacheserver"
    assert here.tracking_uri == "http://env" and not here.serves_all
    assert _place({"XDG_CACHE_HOME": "/big"}).root == "/big/cacheserver"


def test_systemd_says_where_a_system_daemon_lives() -> None:
    """STATE_DIRECTORY and RUNTIME_DIRECTORY, of which systemd may give several, the first counts; all are served."""
    here = _place({"STATE_DIRECTORY": "/var/lib/c:/x", "RUNTIME_DIRECTORY": "/run/cacheserver:/run/y"})
    assert (here.root, here.socket_dir, here.serves_all) == ("/var/lib/c", "/run/cacheserver", True)


def test_a_unit_of_a_user_serves_that_user_only() -> None:
    """systemd's user manager sets the same variables, below the user's run-time folder."""
    here = _place({"RUNTIME_DIRECTORY": "/run/user/4242/cacheserver", "XDG_RUNTIME_DIR": "/run/user/4242/"})
    assert here.socket_dir == "/run/user/4242/cacheserver" and not here.serves_all


def test_the_configuration_wins_over_the_environment() -> None:
    """Each place that is configured is taken, whatever the environment says."""
    environ = {"STATE_DIRECTORY": "/s", "RUNTIME_DIRECTORY": "/r", "ARTIFACTCACHE_SOCKET_DIR": "/sockets"}
    here = _place(environ, FULL.replace('users = "all"', 'users = "self"'))
    assert (here.root, here.socket_dir) == ("/srv/cache", "/run/somewhere")
    assert here.tracking_uri == "http://mlflow.example:5000" and not here.serves_all
    assert _place({}, '[access]\nusers = "all"').serves_all
    assert _place(environ).socket_dir == "/sockets"
    assert store_root(parse(FULL, "c.toml"), {}) == "/srv/cache"


def test_without_a_tracking_server_there_is_nothing_to_cache() -> None:
    """The message says which two places it can be named in."""
    with pytest.raises(ConfigError, match="MLFLOW_TRACKING_URI, or \\[origin\\] tracking_uri"):
        place(Config(), {"HOME": "/home/u"}, 4242)


def test_the_environment_takes_the_place_of_keys() -> None:
    """Of a file's, and of defaults'; a text needs no quotes, and a list is written as in the file."""
    environ = {
        "CACHESERVER_STORE_CAPACITY": "1GiB",
        "CACHESERVER_STORE_ROOT": "/srv/other",
        "CACHESERVER_ORIGIN_STALE_AFTER": "0.25",
        "CACHESERVER_ACCESS_VIEWS": "false",
        "CACHESERVER_ACCESS_DENY": '["mallory", "@guests"]',
        "PATH": "/bin",
    }
    config = parse('[store]\ncapacity = "500GiB"\nmin_free = "10%"\n', "c.toml", environ)
    assert (config.store.capacity, config.store.min_free) == (Amount(2**30), Amount(10, percent=True))
    assert (config.store.root, config.origin.stale_after, config.access.views) == ("/srv/other", 0.25, False)
    assert config.access.deny == ["mallory", "@guests"]
    assert parse("", "the environment", {"CACHESERVER_EVICTION_POLICY": "lru"}).eviction.policy == "lru"


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        (
            "CACHESERVER_STORE_CAPACTY",
            "1GiB",
            "CACHESERVER_STORE_CAPACTY in the environment stands for no key. Did you",
        ),
        ("CACHESERVER_STORE_CAPACITY", "lots", "CACHESERVER_STORE_CAPACITY in the environment: must be bytes"),
        ("CACHESERVER_EVICTION_LOW", "99%", '[eviction] low = "99%" must be below'),
        (
            "CACHESERVER_ORIGIN_TRACKING_URI",
            "http://u:secret/x@host",
            "CACHESERVER_ORIGIN_TRACKING_URI in the environment: must",
        ),
    ],
)
def test_a_variable_that_cannot_be_used_is_told(variable: str, value: str, words: str) -> None:
    """By its name; what it says may be a secret."""
    with pytest.raises(ConfigError) as wrong:
        parse("", "c.toml", {variable: value})
    assert words in str(wrong.value) and "secret" not in str(wrong.value)


@pytest.mark.parametrize(
    "line",
    [
        *('url = "bucket"', 'url = "http://bucket/x"', 'url = "s3://user:secret@bucket"', 'url = "s3://bucket/../x"'),
        *('url = "s3://bucket//x"', 'url = "s3://bucket?x=1"', 'url = "s3:///x"', 'endpoint = "minio:9000"'),
        *('endpoint = "http://minio/path"', "patience = 0", 'rate_min = "0B"', "capacity = -1", "capacity = false"),
    ],
)
def test_what_no_shared_tier_can_be(line: str) -> None:
    """It is refused with its place, and with what to write."""
    with pytest.raises(ConfigError, match=r"c.toml:2: \[shared\] .* must be"):
        parse(f"[shared]\n{line}", "c.toml")
