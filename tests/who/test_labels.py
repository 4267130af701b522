"""Labels: the account that had an inside address at the time of the question, by tables and leases."""

from __future__ import annotations

import os
from datetime import datetime
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from natcore import ConfigurationError
from natcore.labels import CalledLabels, LabelFile, Labels, labels_at
from natcore.who.evidence import ask_all
from natcore.who.labels import labelled
from natcore.who.query import Store, what, who
from natcore.who.question import Question
from support.lives import ANN, EPOCH, Log, at

HOST = IPv4Address("10.0.0.5")


def iso(seconds: float) -> str:
    return at(seconds).isoformat()


def found(labels: Labels, start: float, end: float | None = None, host: IPv4Address = HOST) -> list[str]:
    return list(labels.find(host, at(start), at(start if end is None else end)))


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "accounts.csv"
    path.write_text(
        "prefix,label,from,until\n"
        f"10.0.0.5,first,{iso(0)},{iso(100)}\n10.0.0.5,second,{iso(100)},{iso(500)}\n10.0.0.0/24,building,,\n"
    )
    return path


def test_a_label_holds_from_its_begin_until_its_end(table: Path) -> None:
    labels = LabelFile(table)
    asked = [found(labels, seconds) for seconds in (-1, 0, 99.9, 100, 499, 500)]
    assert asked == [["building"], ["first"], ["first"], ["second"], ["second"], ["building"]]
    assert found(labels, 50, 200) == ["first", "second"]
    assert found(labels, 50, host=IPv4Address("10.0.0.6")) == ["building"]
    assert found(labels, 50, host=IPv4Address("10.0.1.6")) == []


def test_a_file_that_changed_is_read_again(table: Path) -> None:
    labels = LabelFile(table)
    table.write_text("address,label\n10.0.0.5,other\n")
    os.utime(table, ns=(1, 1))
    assert found(labels, 50) == ["other"]
    table.unlink()
    with pytest.raises(ConfigurationError, match="readable file"):
        found(labels, 50)


def test_an_answer_has_the_labels_of_its_time(table: Path, tmp_path: Path) -> None:
    folder = Log(tmp_path / "log").tick(0).session(7, ANN, 90, [(90, 300)], 300).tick(9000).write()
    labels = LabelFile(table)
    one = labelled(who(folder, "203.0.113.1", 4000, protocol="tcp", at=at(95), tolerance=0), labels)
    assert one.matches[0].labels == ("first",)
    assert labelled(what(folder, "10.0.0.5", at=at(0), until=at(1000)), labels).matches[0].labels == ("first", "second")
    question = Question("203.0.113.1", 4000, "tcp", at(200), None, 2.0, None)
    evidence, (answer,) = ask_all([("1", question)], Store(folder), labels=labels)
    assert answer.matches[0].labels == ("second",) and evidence.answers[0]["answer"]["matches"][0]["labels"] == [
        "second"
    ]


def test_a_function_is_asked(tmp_path: Path) -> None:
    def account(address: IPv4Address, start: datetime, end: datetime) -> list[str]:
        return [f"{address} {start.timestamp() - EPOCH:g} {end.timestamp() - EPOCH:g}"]

    assert found(CalledLabels(account), 5, 6) == ["10.0.0.5 5 6"]


def test_leases_of_kea(tmp_path: Path) -> None:
    """Renewed at 50, then released at 120, then a lease of another host from 130 on."""
    path = tmp_path / "kea-leases4.csv"
    head = "address,hwaddr,client_id,valid_lifetime,expire,subnet_id,fqdn_fwd,fqdn_rev,hostname,state,user_context,pool_id\n"
    path.write_text(head + "".join(
        f"10.0.0.5,{mac},,{seconds},{EPOCH + expire},1,0,0,{name},{state},,0\n" for mac, seconds, expire, name, state in (
            ("aa:aa", 100, 100, "ann.", 0), ("aa:aa", 100, 150, "ann.", 0), ("aa:aa", 0, 120, "ann.", 0),
            ("bb:bb", 50, 180, "", 0), ("bb:bb", 50, 180, "", 2), ("cc:cc", 50, 250, "", 1),
        )
    ))  # fmt: skip
    labels = labels_at(f"kea:{path}")
    asked = [found(labels, seconds) for seconds in (-1, 10, 60, 125, 140, 181, 220)]
    assert asked == [[], ["aa:aa ann"], ["aa:aa ann"], [], ["bb:bb"], [], []]


def test_leases_of_dnsmasq_say_that_they_are_of_now(tmp_path: Path) -> None:
    path = tmp_path / "dnsmasq.leases"
    path.write_text(
        f"{EPOCH + 100} aa:aa 10.0.0.5 ann 01:aa:aa\n0 bb:bb 10.0.0.6 * *\nduid 00:01\n{EPOCH} 1 fd00::1 x 00\n"
    )
    labels = labels_at(f"dnsmasq:{path}")
    assert (
        found(labels, 99) == ["aa:aa ann (the lease when asked; since when is not known)"] and found(labels, 100) == []
    )
    assert found(labels, 1e6, host=IPv4Address("10.0.0.6")) == ["bb:bb (the lease when asked; since when is not known)"]


@pytest.mark.parametrize(("form", "text", "message"), [
    ("csv", "prefix,label\n10.0.0.5,", "line 2 must have a prefix"),
    ("csv", "prefix,label\n10.0.0.5/8,x", "line 2: .* has host bits set"),
    ("csv", "prefix,label,from\n10.0.0.5,x,2026-01-01", "line 2: a time must have its zone"),
    ("csv", "prefix,label,from,until\n10.0.0.5,x,2026-01-02T00:00:00Z,2026-01-01T00:00:00Z", "until must be after from"),
    ("dnsmasq", "hello", "line 1 is no lease of dnsmasq"),
    ("dnsmasq", "² aa 10.0.0.5 * *", "line 1 is no lease of dnsmasq"),
    ("dnsmasq", f"{10**17} aa 10.0.0.5 * *", "x: "),
    ("kea", "address,expire\n10.0.0.5,1", "10.0.0.5 is no lease of Kea"),
    ("kea", f"address,valid_lifetime,expire\n10.0.0.5,{10**17},1700000000", "x: "),
    ("kea", f"address,valid_lifetime,expire\n10.0.0.5,{10**11},1700000000", "x: "),
    ("csv", f"prefix,label\n10.0.0.5,{'x' * 200_000}", "field larger than"),
    ("isc", "", "form must be 'csv'"),
])  # fmt: skip
def test_a_wrong_line_is_named(tmp_path: Path, form: str, text: str, message: str) -> None:
    (tmp_path / "x").write_text(text)
    with pytest.raises(ConfigurationError, match=message):
        LabelFile(tmp_path / "x", form)
