"""gateway.toml: what a good file makes, and that an error names file, key, value and what is expected."""

from __future__ import annotations

import inspect
import ipaddress
import json
import warnings
from dataclasses import fields
from datetime import date, datetime
from pathlib import Path

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from natcore import sinks
from natcore.config import Behaviour, DeliveryPolicy, DnatEntry, Eip, Link, NoNatEntry, Policy, SnatEntry, Timeouts
from natcore.errors import CapacityError, ConfigurationError
from natcore.gateway import Gateway
from natcore.service import configuration_file, tables
from natcore.service.configuration_file import SettingsError, load
from natcore.service.tables import FileTables, GatewayTable
from support.search import examples

WHOLE = """
[gateway]
instance = "ngw-1"
vpc_id = "vpc-1"
max_sessions = 1000
window = 600
inside = { address = "10.0.0.1", mtu = 1400 }

[policy]
filtering = "address-dependent"
port_ranges = [[1024, 2047], [4096, 8191]]
tcp = { filtering = "address-and-port-dependent" }

[timeouts]
udp = 180

[[snat]]
source = "10.0.0.0/16"
pool = [{ address = "203.0.113.1", private_ip = "172.16.10.13" }, "203.0.113.8-203.0.113.9"]
name = "office"

[[snat]]
source = "10.1.0.0/16"
pool = "203.0.113.16/30"

[[log]]
sink = "parquet"
folder = "FOLDER"
name = "audit"
delivery = { backoff_max = 5 }

[plane]
inside = "lan0"
outside = "wan0"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "gateway.toml"


def error_of(file: Path, text: str) -> SettingsError:
    """What loading and making it raises; the message names all of its parts."""
    file.write_text(text)
    with pytest.raises(SettingsError) as caught:
        load(file).make_gateway().close()
    error = caught.value
    assert isinstance(error, ConfigurationError)
    for part in (str(file), error.key, "" if error.value is None else repr(error.value), error.problem):
        assert part in str(error)
    return error


def test_a_whole_file_makes_what_the_constructors_would(file: Path, tmp_path: Path) -> None:
    file.write_text(WHOLE.replace("FOLDER", str(tmp_path / "log")))
    settings = load(file)
    assert settings.gateway == {
        "instance": "ngw-1", "vpc_id": "vpc-1", "max_sessions": 1000, "window": 600,
        "inside": Link(address="10.0.0.1", mtu=1400),
        "policy": Policy(filtering="address-dependent", port_ranges=((1024, 2047), (4096, 8191)),
                         tcp=Behaviour(filtering="address-and-port-dependent")),
        "timeouts": Timeouts(udp=180),
    }  # fmt: skip
    office, other = settings.snat
    assert office.name == "office"
    assert office.pool == (Eip("203.0.113.1", "172.16.10.13"), Eip("203.0.113.8"), Eip("203.0.113.9"))
    assert other.source == ipaddress.IPv4Network("10.1.0.0/16") and len(other.pool) == 4
    assert settings.plane == {"inside": "lan0", "outside": "wan0"}
    (log,) = settings.logs
    assert log.options == {"name": "audit", "delivery": DeliveryPolicy(backoff_max=5.0)}
    assert log.make_sink().delivery_type == "parquet"
    assert not (tmp_path / "log").exists()  # nothing is opened by a check
    with settings.make_gateway() as gateway:
        assert isinstance(gateway, Gateway)


def test_an_empty_file_leaves_every_default(file: Path) -> None:
    file.write_text("")
    settings = load(file)
    assert (settings.gateway, settings.snat, settings.logs, settings.plane) == ({}, (), (), None)


def test_the_keys_are_the_constructors_arguments() -> None:
    own_tables = {"policy", "timeouts"}
    assert set(GatewayTable.__struct_fields__) == set(inspect.signature(Gateway).parameters) - own_tables
    for table, values in ((tables.PolicyTable, Policy), (tables.TimeoutsTable, Timeouts),
                          (tables.DeliveryTable, DeliveryPolicy), (tables.LinkTable, Link),
                          (tables.EipTable, Eip)):  # fmt: skip
        assert list(table.__struct_fields__) == [item.name for item in fields(values)]


@pytest.mark.parametrize(
    ("text", "key", "value", "problem"),
    [
        ("[gateway]\nmax_session = 5", "gateway.max_session", None, "max_sessions"),
        ("[gatway]\n", "gatway", None, "gateway"),
        ("[gateway]\nmax_sessions = '5'", "gateway.max_sessions", "5", "a whole number"),
        ("[gateway]\nkind = 'intranet'", "gateway.kind", "intranet", "'vpc'"),
        ("[gateway.inside]\nmtu = 10", "gateway.inside.mtu", 10, "68 and 65535"),
        ("[policy]\nports = 'blocks'", "policy.ports", "blocks", "'random'"),
        ("[policy]\nfiltering = 'none'", "policy.filtering", "none", "'address-dependent'"),
        ("[policy.udp]\nmapping = 'x'", "policy.udp.mapping", "x", "'endpoint-independent'"),
        ("[policy.udp]\nfilter = 'x'", "policy.udp.filter", None, "filtering"),
        ("[timeouts]\nudp = 0", "timeouts.udp", 0, "0.001 and"),
        ("[timeouts]\nudp = '5 min'", "timeouts.udp", "5 min", "a number"),
        ("[[snat]]\nsource = '10.0.0.0/8'", "snat[0].pool", None, "missing"),
        ("[[snat]]\nsource = '10.0.0.1/8'\npool = '203.0.113.1'", "snat[0].source", "10.0.0.1/8", "prefix"),
        ("[[snat]]\nsource = '10.0.0.0/8'\npool = 7", "snat[0].pool", 7, "a string"),
        ("[[snat]]\nsource = '10.0.0.0/8'\npool = '203.0.113.300'", "snat[0].pool", "203.0.113.300", "IPv4 address"),
        ("[[snat]]\nsource = '10.0.0.0/8'\npool = [{ address = '1.2.3.4', privat = '1' }]",
         "snat[0].pool[0].privat", None, "private_ip"),
        ("[[snat]]\nsource = '10.0.0.0/8'\npool = ['1.2.3.4', { address = '1.2.3.5', private_ip = 'x' }]",
         "snat[0].pool[1].private_ip", "x", "IPv4 address"),
        ("[[snat]]\nsource = '10.0.0.0/8'\npool = '1.2.3.4'\n[[snat]]\nsource = '10.0.0.0/8'\npool = '1.2.3.5'",
         "snat[1].source", "10.0.0.0/8", ""),
        ("[[dnat]]\nport = 80", "dnat[0].port", None, "external_port"),
        ("[[dnat]]\nexternal_ip = '1.2.3.4'\nexternal_port = 0\ninternal_ip = '10.0.0.5'\ninternal_port = 80",
         "dnat[0].external_port", 0, "1 and 65535"),
        ("[[no_nat]]\nsource = '10.0.0.0/8'\ndestination = 'x'", "no_nat[0].destination", "x", "IPv4 prefix"),
        ("[[no_nat]]\nsource = '10.0.0.0/8'", "no_nat[0].destination", None, "missing"),
        ("[[log]]\nfolder = 'x'", "log[0].sink", None, "parquet"),
        ("[[log]]\nsink = 'paper'", "log[0].sink", "paper", "parquet"),
        ("[[log]]\nsink = 'parquet'", "log[0].folder", None, "missing"),
        ("[[log]]\nsink = 'parquet'\npath = 'y'", "log[0].path", None, "folder"),
        ("[[log]]\nsink = 'parquet'\nfolder = 'x'\npath = 'y'", "log[0].path", None, "folder"),
        ("[[log]]\nsink = 'parquet'\nfolder = 'x'\ndelivery = { batch = 0 }", "log[0].delivery.batch", 0, "between 1 and"),
        ("[[log]]\nsink = 'parquet'\nfolder = 'x'\ndelivery = { batsh = 1 }", "log[0].delivery.batsh", None, "batch"),
        ("[plane]\ninside = 'lan0'", "plane.outside", None, "missing"),
        ("[plane]\ninside = 5\noutside = 'wan0'", "plane.inside", 5, "a string or a list"),
    ],
)  # fmt: skip
def test_an_error_names_key_value_and_what_is_expected(
    file: Path, text: str, key: str, value: object, problem: str
) -> None:
    error = next(each for each in error_of(file, text).errors if each.key == key)
    assert error.value == value and problem in error.problem


def test_a_sinks_own_error_names_its_key(file: Path) -> None:
    file.write_text("[[log]]\nsink = 'parquet'\nfolder = 'x'\nroll_bytes = -1")
    with pytest.raises(SettingsError, match="whole number") as caught:
        load(file).logs[0].make_sink()
    assert (caught.value.key, caught.value.value) == ("log[0].roll_bytes", -1)


def test_a_file_that_is_not_toml_or_not_there_is_named(file: Path) -> None:
    with pytest.raises(SettingsError, match=r"gateway\.toml: cannot be read: No such file"):
        load(file)
    file.write_text("[gateway\n")
    with pytest.raises(SettingsError, match=r"gateway\.toml: not TOML: .*line 1"):
        load(file)


def test_times_below_the_minima_of_the_rfcs_are_warnings_of_the_file(file: Path) -> None:
    file.write_text("[timeouts]\nudp = 30\n")
    (warning,) = load(file).warnings
    assert "RFC 4787" in warning


class _SecretSink:
    delivery_type = "secret"

    def __init__(self, access_key_id: str, access_key_secret: str, clock: object = None) -> None:
        self.pair = access_key_id, access_key_secret


def test_secrets_come_from_a_file_or_the_environment_only(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sinks, "DELIVERY_TYPES", {"secret": "SecretSink"})
    monkeypatch.setattr(sinks, "SecretSink", _SecretSink, raising=False)
    secret = tmp_path / "key"
    secret.write_text("s3cret\n")
    monkeypatch.setenv("NATCORE_ACCESS_KEY_ID", "from-environment")
    file.write_text(f"[[log]]\nsink = 'secret'\naccess_key_secret_file = '{secret}'")
    settings = load(file)
    assert settings.logs[0].make_sink().pair == ("from-environment", "s3cret")
    assert "s3cret" not in repr(settings)

    file.write_text("[[log]]\nsink = 'secret'\naccess_key_secret = 's3cret'")
    with pytest.raises(
        SettingsError, match=r"log\[0\]\.access_key_secret: a secret; give access_key_secret_file or "
    ) as caught:
        load(file)
    assert "s3cret" not in str(caught.value)

    file.write_text(f"[[log]]\nsink = 'secret'\naccess_key_secret_file = '{tmp_path / 'none'}'")
    with pytest.raises(SettingsError, match=r"access_key_secret_file.*cannot be read"):
        load(file)

    monkeypatch.delenv("NATCORE_ACCESS_KEY_ID")
    file.write_text(f"[[log]]\nsink = 'secret'\naccess_key_secret_file = '{secret}'")
    with pytest.raises(SettingsError, match=r"log\[0\]\.access_key_id: missing"):
        load(file)


def test_every_table_is_known_to_the_error_messages() -> None:
    assert tables.TABLES[""] is FileTables
    assert {name.partition(".")[0] for name in tables.TABLES if name} == set(FileTables.__struct_fields__)


def test_every_kind_of_entry_comes_from_the_file(tmp_path: Path) -> None:
    path = tmp_path / "gateway.toml"
    path.write_text("""
        [gateway]
        max_sessions = 100
        [policy]
        mapping = "address-and-port-dependent"
        ports = "preserve"
        parity = true
        pooling = "paired-soft"
        sessions_per_subscriber = 10
        [[snat]]
        source = "10.0.0.0/16"
        pool = { address = "203.0.113.1", private_ip = "172.16.0.9" }
        [[dnat]]
        external_ip = "203.0.113.1"
        external_port = [8000, 8009]
        internal_ip = [["10.0.0.5", 3], ["10.0.0.6", 1]]
        internal_port = [9000, 9009]
        protocol = "udp"
        name = "game"
        [[dnat]]
        external_ip = "203.0.113.2"
        external_port = "any"
        internal_ip = "10.0.0.7"
        internal_port = "any"
        protocol = "any"
        [[no_nat]]
        source = "10.0.0.0/16"
        destination = "10.0.0.0/8"
    """)
    with load(path).make_gateway() as gateway:
        assert [row.entry for row in gateway.entries()] == [
            SnatEntry("10.0.0.0/16", pool=Eip("203.0.113.1", private_ip="172.16.0.9")),
            DnatEntry("203.0.113.1", (8000, 8009), [("10.0.0.5", 3), ("10.0.0.6", 1)], (9000, 9009), "udp", "game"),
            DnatEntry("203.0.113.2", "any", "10.0.0.7", "any", "any"),
            NoNatEntry("10.0.0.0/16", "10.0.0.0/8"),
        ]
        assert (gateway.policy.ports, gateway.policy.sessions_per_subscriber) == ("preserve", 10)


# ---- every error at once, with its line ---------------------------------------------------------------------------------


BAD = """
[gateway]
max_session = 5
workers = 0
window = "long"

[gateway.outside]
mtu = 10

[policy]
ports = "blocks"
pooling = "single"
icmp_rate = -1
tcp = { mapping = "x" }

[timeouts]
udp = 0
icmp = 0

[[snat]]
source = "10.0.0.1/8"
pool = [
    "203.0.113.1",
    { address = "203.0.113.300", private = "x" },
]

[[snat]]
pool = 5

[[dnat]]
external_ip = "x"
external_port = 0
internal_ip = "10.0.0.5"
internal_port = 70000
protocol = "sctp"

[[log]]
sink = "parquet"
path = "y"
delivery = { batch = 0, linger = -1 }

[[log]]
sink = "paper"

[plane]
inside = ["lan0"]
driver = "dpdk"
"""


def test_every_error_of_a_file_is_told_at_once_with_its_line(file: Path) -> None:
    file.write_text(BAD)
    with pytest.raises(SettingsError) as caught:
        load(file, to_run=True)
    assert [(each.line, each.key) for each in caught.value.errors] == [
        (3, "gateway.max_session"), (4, "gateway.workers"), (5, "gateway.window"), (8, "gateway.outside.mtu"),
        (11, "policy.ports"), (12, "policy.pooling"), (13, "policy.icmp_rate"), (14, "policy.tcp.mapping"),
        (17, "timeouts.udp"), (18, "timeouts.icmp"), (21, "snat[0].source"), (24, "snat[0].pool[1].private"),
        (27, "snat[1].source"), (28, "snat[1].pool"), (31, "dnat[0].external_ip"),
        (32, "dnat[0].external_port"), (34, "dnat[0].internal_port"), (35, "dnat[0].protocol"),
        (37, "log[0].folder"), (39, "log[0].path"),
        (40, "log[0].delivery.linger"), (40, "log[0].delivery.batch"), (43, "log[1].sink"), (45, "plane.outside"),
        (47, "plane.driver"),
    ]  # fmt: skip
    assert (
        str(caught.value)
        .splitlines()[0]
        .startswith(f"{file}:3: gateway.max_session: unknown key; known ones are billing")
    )


def test_every_conflict_among_entries_is_told(file: Path) -> None:
    entry = "[[snat]]\nsource = '10.{}.0.0/16'\npool = '203.0.113.1'\n"
    error = error_of(
        file, "".join(entry.format(each) for each in (1, 2, 1, 3, 2)) + entry.format("4").replace("203", "127")
    )
    assert [(each.line, each.key) for each in error.errors] == [
        (8, "snat[2].source"), (14, "snat[4].source"), (18, "snat[5].pool"),
    ]  # fmt: skip


def test_a_file_full_of_errors_tells_the_first_hundred(file: Path) -> None:
    error = error_of(file, "[[snat]]\n" * 150)
    assert len(error.errors) == 101 and error.errors[-1].problem == "200 errors more"


LOG = "[[log]]\nsink = 'parquet'\nfolder = '{}'\n"
PLANE = "[plane]\ninside = 'lan0'\noutside = 'wan0'\n"


@pytest.mark.parametrize(
    ("text", "key", "problem"),
    [
        ("", "plane", "missing; `run` needs"),
        ("[plane]\ninside = 'wan0'\noutside = 'wan0'", "plane.outside", "none of the inside interfaces"),
        ("[plane]\ninside = []\noutside = 'wan0'", "plane.inside", "names of 1 to 15 bytes"),
        ("[plane]\ninside = 'lan0'\noutside = 'wan0'\ncpus = [4711]", "plane.cpus", "one for each worker (1)"),
        ("[gateway]\nworkers = 2\n" + PLANE + "cpus = [0]", "plane.cpus", "one for each worker (2)"),
        ("[gateway]\nframing = 'ip'\n" + PLANE, "plane.framing", "'ethernet' for a plane"),
        (PLANE + LOG.format("x") + "on_failure = 'stop'", "log[0].on_failure", "'forward' or 'refuse'"),
        (PLANE + LOG.format("x") + "name = 'a/b'", "log[0].name", "at most 64 letters"),
        (PLANE + LOG.format("x") + "name = 'a'\n" + LOG.format("y") + "name = 'a'", "log[1].name", "unique"),
        (PLANE + LOG.format("x") + LOG.format("x"), "log[1]", "one log's, and is that of log[0]"),
        (PLANE + LOG.format("x") + "roll_bytes = -1", "log[0].roll_bytes", "whole number"),
        ("[gateway]\nbilling = 'by-specification'\n" + PLANE + LOG.format("x"), "log[0].billing", "'by-usage'"),
    ],
)
def test_a_check_refuses_what_a_run_would_refuse(file: Path, text: str, key: str, problem: str) -> None:
    file.write_text(text)
    with pytest.raises(SettingsError) as caught:
        load(file, to_run=True)
    assert caught.value.key == key and problem in caught.value.problem
    if key.startswith("plane"):
        load(file)  # to ask what it would do needs no interface


def test_logs_without_names_have_those_of_their_sinks(file: Path) -> None:
    file.write_text(LOG.format("x") + LOG.format("y") + LOG.format("z") + "name = 'audit'\n")
    assert [log.name for log in load(file).logs] == ["parquet", "parquet-2", "audit"]


def test_a_log_has_rows_of_refusals_if_asked(file: Path) -> None:
    file.write_text(LOG.format("x") + "refusals = true\n" + LOG.format("y"))
    assert [log.options.get("refusals", False) for log in load(file).logs] == [True, False]
    file.write_text(LOG.format("x") + "refusals = 'yes'\n")
    with pytest.raises(SettingsError, match="refusals must be True or False, got 'yes'"):
        load(file)


# ---- whatever a file has --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text, message", [
    ("a = " + "[" * 3000 + "]" * 3000, "too deep"),
    ("[a" + ".a" * 3000 + "]", "unknown|too deep"),
    ("[gateway]\nseed = " + "9" * 5000, "not TOML"),
    ("[gateway]\nseed = 0x" + "f" * 5000, r"gateway.seed must .*, got a whole number of 20,000 bits"),
    ("[gateway]\nworkers = 99999999999999999999999", r"gateway.workers"),
    ('[[log]]\nsink = "parquet"\nfolder = 5', r"log\[0\].folder must be a path .*, got 5"),
    ('[[log]]\nsink = "parquet"\nfolder = "a\\u0000b"', r"log\[0\].folder"),
    ('[[log]]\nsink = "parquet"\nfolder = "x"\nspool = 5', r"log\[0\].spool must be a path .*, got 5"),
    ('[[log]]\nsink = ["parquet"]', r"log\[0\].sink must be .*, got \['parquet'\]"),
    ('[[log]]\nsink = "clickhouse"\nurl = "http://[::1"', r"log\[0\].url must be 'https://HOST' .*, got 'http://\[::1'"),
    ('[[log]]\nsink = "clickhouse"\nurl = "http://host:99999"', r"log\[0\].url"),
    ('[[log]]\nsink = "sls"\nendpoint = 5\nproject = "p"\nlogstore = "l"', r"log\[0\].endpoint must be .*, got 5"),
    ('[[log]]\nsink = "syslog"\nhost = "h"\ntls = { ca = 5 }', r"log\[0\].tls"),
    ('[[log]]\nsink = "kafka"\nbootstrap_servers = "h"\ntopic = "t"\nconfig = { a = [1] }', r"log\[0\].config"),
    ('[gateway]\n"a.b" = 1', r"gateway.a.b: unknown key; known ones are"),
    ('["a`b"]\nx = 1', r"a`b: unknown"),
    ("[gateway]\ninstance = 2026-01-01", "gateway.instance"),
])  # fmt: skip
def test_no_file_makes_a_traceback(file: Path, text: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in configuration_file.SECRETS:
        monkeypatch.setenv(f"NATCORE_{name.upper()}", "x")
    file.write_text(text)
    with pytest.raises(SettingsError, match=message) as caught:
        settings = load(file)
        settings.make_gateway()
        for log in settings.logs:
            log.make_sink()
    assert str(file) in str(caught.value) and len(str(caught.value)) < 2000


@pytest.mark.parametrize("text", [
    '[[log]]\nsink = "clickhouse"\nurl = "http://h"\npasword = "hunter2"',
    '[[log]]\nsink = "clickhouse"\nurl = "http://user:hunter2@h"',
    '[[log]]\nsink = "clickhouse"\nurl = "http://user:hunter2@[h"',
    '[[log]]\nsink = "sls"\nproject = "p"\nlogstore = "l"\nendpoint = "https://u:hunter2@x"',
    '[[log]]\nsink = "kafka"\nbootstrap_servers = "h"\ntopic = 5\nconfig = { "sasl.password" = "hunter2" }',
    '[[log]]\nsink = "kafka"\nbootstrap_servers = "h"\ntopic = "t"\nconfig = { "sasl.password" = ["hunter2"] }',
    '[gateway]\nacess_key_secret = "hunter2"',
    '[gateway]\npassword = ["hunter2"]',
    '[[log]]\nsink = "clickhouse"\nurl = "http://h"\npassword_file = ["hunter2"]',
    '[[log]]\nsink = { password = "hunter2" }',
    'password = "hunter2"',
])  # fmt: skip
def test_no_error_shows_a_secret(file: Path, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    from natcore.cli.command import failing

    file.write_text(text)
    for as_json in (True, False):
        with pytest.raises(typer.Exit), failing(as_json):
            for log in load(file).logs:
                log.make_sink()
    with pytest.raises(SettingsError) as caught:
        for log in load(file).logs:
            log.make_sink()
    told = capsys.readouterr()
    everything = told.out + told.err + str(caught.value) + repr(caught.value) + repr(caught.value.value)
    assert "hunter2" not in everything and str(file) in told.out and str(file) in told.err


@pytest.mark.parametrize(
    "log", ['sink = "ipfix"\nhost = "h"', 'sink = "sls"\nendpoint = "https://h"\nproject = "p"\nlogstore = "l"']
)
def test_a_sink_that_takes_labels_if_asked_is_asked(file: Path, log: str) -> None:
    (file.parent / "accounts.csv").write_text("prefix,label,from,until\n")
    told = f'[[log]]\n{log}\nlabels = "accounts.csv"\n'
    for more in ("", "label = false"):
        file.write_text(told + more)
        with pytest.raises(
            SettingsError, match=r"log\[0\].labels: sink '(ipfix|sls)' takes no labels unless label = true"
        ):
            load(file)
    file.write_text(told + "label = true")
    assert load(file).logs[0].arguments["label"] is True


def test_no_repr_of_what_was_read_shows_a_secret(file: Path) -> None:
    file.write_text(
        '[[log]]\nsink = "kafka"\nbootstrap_servers = "h"\ntopic = "t"\nconfig = { "sasl.password" = "hunter2" }'
    )
    settings = load(file)
    (log,) = settings.logs
    assert "hunter2" not in repr(settings) + repr(log) + repr(log.make_sink()) + str(vars(type(log)))


WORDS = st.sampled_from(
    sorted(
        {
            "gateway",
            "policy",
            "timeouts",
            "snat",
            "dnat",
            "no_nat",
            "log",
            "plane",
            *GatewayTable.__struct_fields__,
            *(
                item.name
                for each in (Policy, Timeouts, DeliveryPolicy, SnatEntry, DnatEntry, NoNatEntry, Link, Eip)
                for item in fields(each)
            ),
            "sink",
            "folder",
            "spool",
            "url",
            "host",
            "port",
            "endpoint",
            "project",
            "logstore",
            "topic",
            "bootstrap_servers",
            "config",
            "tls",
            "delivery",
            "redact_destination",
            "password_file",
            "transport",
            "batch_rows",
            "timeout",
            "table",
            "user",
            "a.b",
            "",
            "\x1b[31m",
        }
    )
)
SCALARS = st.one_of(
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=8),
    st.datetimes(),
    st.dates(),
    st.sampled_from(
        [
            "parquet",
            "jsonlines",
            "sls",
            "clickhouse",
            "kafka",
            "syslog",
            "ipfix",
            "10.0.0.0/8",
            "203.0.113.1",
            "203.0.113.0-203.0.113.4",
            "any",
            "tcp",
            "random",
            "block",
            "deterministic",
            "http://[::1",
            "https://u:p@h",
            "vpc",
            "NAT",
            "\x00",
            "x" * 300,
        ]
    ),
)
VALUES = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=4), max_leaves=8
)
TABLES = st.dictionaries(WORDS, VALUES, max_size=6)
FILES = (
    st.fixed_dictionaries(
        {},
        optional={
            "gateway": TABLES,
            "policy": TABLES,
            "timeouts": TABLES,
            "plane": TABLES,
            "snat": st.lists(TABLES, max_size=3),
            "dnat": st.lists(TABLES, max_size=2),
            "no_nat": st.lists(TABLES, max_size=2),
            "log": st.lists(
                st.builds(
                    lambda table, kind: {**table, "sink": kind},
                    TABLES,
                    st.sampled_from(["parquet", "jsonlines", "clickhouse", "syslog", "ipfix", "sls", "kafka", 5]),
                ),
                max_size=2,
            ),
        },
    )
    | TABLES
)


def toml(value: object) -> str:
    """A value as TOML, inline."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value).replace("\x7f", "\\u007f")
    if isinstance(value, dict):
        return "{" + ", ".join(f"{toml(key)} = {toml(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, datetime | date):
        return value.isoformat()
    return repr(value)


def read(file: Path, text: str | bytes) -> None:
    """What becomes of a file: a configuration that makes sinks and a gateway, or an error that names the file."""
    file.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    try:
        settings = load(file, to_run=True)
        for log in settings.logs:
            log.make_sink()
        if settings.gateway.get("max_sessions", 0) < 100_000 and settings.gateway.get("records", 0) < 100_000:
            settings.make_gateway().close()
    except (ConfigurationError, CapacityError) as error:
        for each in error.errors if isinstance(error, SettingsError) else [error]:
            assert len(str(each)) < 4000 and str(each).isprintable(), each
            assert str(file) in str(each) or not isinstance(each, SettingsError)


@given(FILES)
@examples(100)
def test_any_tables_are_a_configuration_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, tables: dict[str, object]
) -> None:
    file = tmp_path_factory.getbasetemp() / "fuzzed.toml"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        read(file, "\n".join(f"{toml(key)} = {toml(value)}" for key, value in tables.items()))


@given(st.binary(max_size=200) | st.text(max_size=200) | st.text("[]{}=.\"'\\#\n ,a1_-", max_size=200))
@examples(100)
def test_any_text_is_a_configuration_or_an_error(tmp_path_factory: pytest.TempPathFactory, text: str | bytes) -> None:
    read(tmp_path_factory.getbasetemp() / "fuzzed.toml", text)
