"""Retention rules, what is kept warm, and quotas in a configuration; contradictions, and what is warned of."""

from __future__ import annotations

import math

import pytest

from cacheserver.advice import warnings
from cacheserver.allowances import Allowance
from cacheserver.config import ConfigError, parse
from cacheserver.eviction import POLICIES
from cacheserver.retention import Rule, spell
from cacheserver.schedules import read
from cacheserver.settings import QuotasConfig, WarmConfig
from cacheserver.space import Amount

RULES = """\
[[retention]]
name = "all of it"
tracking_uri = "https://mlflow.example/"
experiment = "prod/*"
model = "resnet*"
alias = "champion"
owner = "alice"
status = "FINISHED"
deleted = false
keep = "30d"
keep_last = 3
drop = "5w"
priority = -2
[retention.tag]
team = "vision"
"mlflow.source.type" = "JOB*"

[[retention]]
keep = "always"

[[retention]]
drop = 0
"""


def test_a_rule_with_everything() -> None:
    """Every key is read; a rule without a name is called by its number."""
    first, second, third = parse(RULES, "c.toml").retention
    assert first == Rule(
        name="all of it",
        tracking_uri="https://mlflow.example",
        experiment="prod/*",
        model="resnet*",
        alias="champion",
        owner="alice",
        tag={"team": "vision", "mlflow.source.type": "JOB*"},
        status="FINISHED",
        deleted=False,
        keep=30 * 86_400.0,
        keep_last=3,
        drop=35 * 86_400.0,
        priority=-2,
    )
    assert second == Rule(name="retention 2", keep=math.inf) and third == Rule(name="retention 3", drop=0.0)


def test_what_is_kept_warm() -> None:
    """With its period, or its times, and its patterns."""
    text = (
        '[[warm]]\nuri = "models:/resnet@champion"\n'
        '[[warm]]\nuri = "runs:/a/m"\nevery = "1h"\ninclude = ["*.onnx"]\nexclude = ["x/**"]\n'
        '[[warm]]\nuri = "runs:/a"\nat = "Mon..Fri 06:30"\n'
    )
    assert parse(text, "c.toml").warm == (
        WarmConfig("models:/resnet@champion", 900.0),
        WarmConfig("runs:/a/m", 3600.0, (), ("*.onnx",), ("x/**",)),
        WarmConfig("runs:/a", math.inf, read(["Mon..Fri 06:30"])),
    )


def test_quotas() -> None:
    """Of users, of everybody else, and of groups; an empty entry is no limit."""
    text = (
        '[quotas.user."*"]\nheld = "20%"\ndownloads = 8\nrate = "100MiB"\n[quotas.user.alice]\n'
        '[quotas.group."data science".x]\n'
    )
    with pytest.raises(ConfigError, match=r'^c\.toml:6: \[quotas.group."data science"\]: must be the name'):
        parse(text, "c.toml")
    assert parse(text.replace('"data science".x', "students") + "held = 5", "c.toml").quotas == QuotasConfig(
        {"*": Allowance(Amount(20, percent=True), 8, 100 * 2**20), "alice": Allowance()},
        {"students": Allowance(Amount(5))},
    )


def test_the_policies_are_those_that_there_are() -> None:
    """Each can be configured."""
    for policy in POLICIES:
        assert parse(f'[eviction]\npolicy = "{policy}"', "c.toml").eviction.policy == policy


@pytest.mark.parametrize(
    ("key", "values"),
    [
        ("name", ['""', "1", '"a\\nb"', f'"{"x" * 1001}"']),
        ("model", ["3", '""', "[]", '["a"]']),
        ("tracking_uri", ['"/"', "1"]),
        ("tag", ['"team"', "{}", "{ team = 1 }", '{ a.b = "c" }', '{ "" = "x" }']),
        ("status", ['"failed"', '"DELETED"', "true"]),
        ("deleted", ['"true"', "1"]),
        ("keep", ['"ever"', "0", '"0d"', '"11y"', '"3660d1h"', "-1", "inf", "true"]),
        ("keep_last", ["0", "-1", "1.0", '"3"', "true", "1000001"]),
        ("drop", ['"never"', "-1", '"-1d"', "false", "nan"]),
        ("priority", ["1.5", '"high"', "1001", "-1001", "true"]),
    ],
)
def test_a_value_that_a_rule_cannot_use(key: str, values: list[str]) -> None:
    """The message has the line of this rule, not of another one that has the same key."""
    for value in values:
        with pytest.raises(ConfigError) as wrong:
            parse(f'[[retention]]\nkeep = "1d"\nname = "a"\n\n[[retention]]\n{key} = {value}\n', "c.toml")
        assert str(wrong.value).startswith(f"c.toml:6: [[retention]] {key} = "), value
        assert ": must be " in str(wrong.value), value


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[[warm]]\nuri = "models:/resnet"', "c.toml:2: [[warm]] uri = 'models:/resnet': must be an artifact URI. "),
        ("[[warm]]\nevery = 5", "c.toml:1: [[warm]] has no uri: write which artifact it is"),
        ('[[warm]]\nuri = "runs:/a"\nevery = 0', "c.toml:3: [[warm]] every = 0: must be seconds, from 1"),
        (
            '[[warm]]\nuri = "runs:/a"\nat = "6h"',
            "c.toml:3: [[warm]] at = '6h': must be a time of day in quotes, as in",
        ),
        ('[[warm]]\nuri = "runs:/a"\nat = 06:30:00', "c.toml:3: [[warm]] at = datetime.time(6, 30): must be a time of"),
        ('[[warm]]\nuri = "runs:/a"\nat = "Mon-Fri 06:30"', 'as in "06:30", "Mon..Fri 06:30" or "Sat,Sun 09:00"'),
        ('[[warm]]\nuri = "runs:/a"\nat = "Mo 06:30"', "days are Mon, Tue, Wed, Thu, Fri, Sat, Sun."),
        ('[[warm]]\nuri = "runs:/a"\ninclude = "*"', "c.toml:3: [[warm]] include = '*': must be a list of patterns"),
        ('[[warm]]\nuri = "runs:/a"\nexclude = ["[b-a]"]', "must be patterns that can be read"),
        ("[quotas.user.alice]\ndownloads = 0", "c.toml:2: [quotas.user.alice] downloads = 0: must be a whole number"),
        ("[quotas.user.alice]\nheld = 0", "c.toml:2: [quotas.user.alice] held = 0: must be more than nothing"),
        ('[quotas.user."*"]\nrate = "10%"', "c.toml:2: [quotas.user.\"*\"] rate = '10%': must be bytes per second"),
        ("[quotas.user.alice]\nrate = 0", "must be bytes per second, as in"),
        ("[quotas.user]\nalice = { helt = 1 }", "c.toml:2: [quotas.user.alice] has no key helt. Did you mean held?"),
        ("[quotas.user]\nheld = 1", "c.toml:2: [quotas.user] held is a user's or group's name here: write [quotas"),
        ('[quotas.group."*"]\nheld = 1', 'for every user without an entry write [quotas.user."*"]'),
        ("[quotas.users.alice]", "c.toml:1: [quotas] has no users: write [quotas.user.alice]"),
        ("quotas = 1", "c.toml:1: quotas are sections: write [quotas.user.alice]"),
        ("[quotas]\nuser = 1", "c.toml:2: [quotas.user] has quotas below it"),
        ("[retention]\nkeep = 1", "c.toml:1: There may be several of retention: write [[retention]] above each."),
        ('warm = ["runs:/a"]', "c.toml:1: There may be several of warm: write [[warm]] above each."),
        ("[[store]]", "c.toml:1: store is a section: write [store] once."),
        (
            "[[retention]]\nkeep = 1\n[[retention]]\nkeeep = 1",
            "c.toml:4: [[retention]] has no key keeep. Did you mean keep?",
        ),
        ("[[retentions]]", "c.toml:1: [retentions] is no section. Did you mean retention?"),
        ("[[warm]]\n" * 1001, "c.toml:1001: More than 1000 of [[warm]] are too many."),
    ],
)
def test_what_cannot_be_used_is_told_with_its_line(text: str, message: str) -> None:
    """And with what to write instead."""
    with pytest.raises(ConfigError) as wrong:
        parse(text, "c.toml")
    assert message in str(wrong.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[eviction]\nlow = "95%"', 'c.toml:2: [eviction] low = "95%" must be below high = "95%"'),
        ('[eviction]\nhigh = "80%"', 'c.toml:2: [eviction] low = "90%" must be below high = "80%"'),
        ('[eviction]\nhigh = "50%"\nlow = "60%"', 'c.toml:3: [eviction] low = "60%" must be below high = "50%"'),
        (
            '[store]\nroot = "/srv/c/"\n[eviction]\ntrace = "/srv/c/trace"',
            "c.toml:4: [eviction] trace: must be outside the store",
        ),
        (
            '[[retention]]\nkeep = 1\n\n[[retention]]\nmodel = "x"',
            'c.toml:4: [[retention]] "retention 2" does nothing: write keep, keep_last, drop or priority.',
        ),
        (
            '[[retention]]\nkeep = "always"\ndrop = "1d"',
            '"retention 1" always keeps what it also drops: leave out drop',
        ),
        ('[[retention]]\nkeep = "always"\nkeep_last = 1', "always keeps all versions, and so the last ones"),
        ('[[retention]]\nkeep = "2d"\ndrop = "1d"', "drops what it still keeps: write a drop that is longer than keep"),
        (
            '[[retention]]\nkeep = 1\nname = "a"\n[[retention]]\nkeep = 1\nname = "a"',
            'c.toml:4: [[retention]] "a" has the name of another rule',
        ),
        (
            '[[warm]]\nuri = "runs:/b"\n[[warm]]\nuri = "runs:/a"\nevery = 900\nat = "06:30"',
            "c.toml:3: [[warm]] runs:/a has both every and at: leave out at to have it looked at so often, or",
        ),
    ],
)
def test_what_contradicts_itself_is_refused(text: str, message: str) -> None:
    """Although each value for itself could be used."""
    with pytest.raises(ConfigError) as wrong:
        parse(text, "c.toml")
    assert message in str(wrong.value)


@pytest.mark.parametrize(
    "text",
    [
        '[eviction]\nhigh = "100%"\nlow = "99.9%"',
        '[store]\nroot = "/srv/c"\n[eviction]\ntrace = "/srv/cache.trace"',
        '[[retention]]\nmodel = "x"\nkeep_last = 3\ndrop = 0',
        '[[retention]]\nstatus = "FAILED"\nkeep = "1d"\ndrop = "1d"',
        '[[retention]]\ndeleted = true\ndrop = 0\n[[warm]]\nuri = "models:/m@a"',
        '[origin]\nalias_ttl = "2w"\n[[warm]]\nuri = "models:/m@a"\nat = "06:30"',
        '[[retention]]\nmodel = "m"\ndrop = "3d"\n[[warm]]\nuri = "models:/m@a"\nat = "Mon..Fri 06:30"',
        '[store]\ncapacity = "99%"',
        '[origin]\ntracking_uri = "http://m:5000/"\n[[retention]]\ntracking_uri = "http://m:5000/"\nkeep = 1',
        "[origin]\nunreachable_after = 1",
        '[access]\nusers = "all"\noperators = ["a"]\n[quotas.user.alice]',
        '[store]\ncapacity = "1GiB"\n[quotas.user.a]\nheld = "90%"',
        "",
    ],
)
def test_what_is_meant_is_not_warned_of(text: str) -> None:
    """It is used as it is."""
    assert warnings(parse(text, "c.toml")) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[store]\ncapacity = "95%"\nmin_free = "10%"', "capacity of 95% is never reached"),
        ("[origin]\nunreachable_after = 1\nstale_after = 3", "stale_after of 3 s counts as 1 s"),
        ('[store]\ncapacity = "1GiB"\n[quotas.user.a]\nheld = "2GiB"', "held is more than [store] capacity"),
        ("[quotas.group.students]", "[quotas.group] students: limits nothing"),
        ('[quotas.user."*"]', "[quotas.user] *: limits nothing"),
        ('[access]\nusers = "self"\n[quotas.user.a]\ndownloads = 1', "can only limit the daemon's own user"),
        ('[access]\nusers = "self"\noperators = ["a"]', "operators can be left out"),
        (
            '[origin]\ntracking_uri = "http://m:5000"\n[[retention]]\ntracking_uri = "http://other*"\nkeep = 1',
            '"retention 1" matches nothing: [origin] tracking_uri is http://m:5000.',
        ),
        ('[[retention]]\ndeleted = true\nalias = "champion"\nkeep = 1', "matches nothing: a version that was deleted"),
        ("[[retention]]\ndeleted = true\nkeep_last = 1", "matches nothing: a version that was deleted"),
        ('[[retention]]\nmodel = "models:/resnet"\nkeep = 1', "matches nothing: a registered model has a name"),
        ('[[retention]]\nkeep = "always"', "keeps everything, always"),
        ('[[retention]]\ndrop = "0s"', "drops everything at once"),
        ('[[warm]]\nuri = "runs:/a"\n[[warm]]\nuri = "runs:/a"', "[[warm]] runs:/a is there twice."),
        (
            '[[retention]]\nmodel = "res*"\ndrop = "5m"\n[[warm]]\nuri = "models:/resnet@champion"',
            '[[warm]] models:/resnet@champion goes before it is looked at again: Rule "retention 1" drops',
        ),
        (
            '[[retention]]\nmodel = "m"\ndrop = "2d"\n[[warm]]\nuri = "models:/m@a"\nat = "Mon..Fri 06:30"',
            "[[warm]] models:/m@a goes before it is looked at again",
        ),
        ('[origin]\nalias_ttl = "1h"\n[[warm]]\nuri = "models:/m/latest"', "[origin] alias_ttl is longer"),
    ],
)
def test_what_is_surely_not_meant_is_warned_of(text: str, message: str) -> None:
    """One sentence for it, and the configuration can be used."""
    (warning,) = warnings(parse(text, "c.toml"))
    assert message in warning


def test_a_tracking_uri_with_a_password_is_not_shown() -> None:
    """Not even where a rule does not match it."""
    text = '[origin]\ntracking_uri = "http://u:secret@m"\n[[retention]]\ntracking_uri = "x"\nkeep = 1'
    assert "secret" not in " ".join(warnings(parse(text, "c.toml")))


def test_a_duration_reads_as_it_was_written() -> None:
    """In the largest unit that it is a whole number of."""
    for written in ("1w", "30d", "36h", "90m", "45s", "0.5s"):
        rule = parse(f'[[retention]]\nkeep = "{written}"', "c.toml").retention[0]
        assert spell(rule.keep) == written
    assert spell(0.0) == "0s"
