"""What the pages show, without a browser: the gateway's own figures, and errors in words."""

from __future__ import annotations

import html
import json
import re
import signal
import subprocess
import sys
from urllib.parse import quote, urlencode

import pytest

from natcore.console import pages, words
from natcore.console.charts import chart
from natcore.console.gateways import Gateways
from natcore.control.client import Client
from natcore.errors import ConfigurationError, ControlError
from support.command_line import call, call_json
from support.console import HOSTILE, STEPS, Visitor, World
from support.frames import udp


def text_of(page: str) -> str:
    """A page's words."""
    body = page.partition("<main")[2]
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", body)).split())


def test_all_gateways_are_on_one_page(visitor: Visitor) -> None:
    shown = text_of(visitor.get("/").text)
    assert "ngw-1" in shown and "hostile" in shown and "1 0 bit/s" in shown


def test_the_overview_has_the_gateway_s_own_figures(here: World, visitor: Visitor) -> None:
    page = visitor.get("/g/ngw-1/").text
    shown, counters = text_of(page), here.gateway.counters()
    for words_ in (f"{counters['forwarded']:,} packets so far", "subscriber limit 10", "vpc-1", "audit ● Enabled"):
        assert words_ in shown, shown
    assert page.count('<svg viewBox="0 0 600 100"') == 3  # traffic, packets, sessions
    assert "Traffic: out now" in page


def test_sessions_are_filtered_sorted_and_paged(here: World, visitor: Visitor) -> None:
    with Client(here.folder / "ngw-1.sock") as client:
        rows = client.ask("sessions", sort="bytes", limit=1000, page="")
        some = client.ask("sessions", subscriber="10.0.0.9", limit=0)

    def inside(page: str) -> list[str]:
        found = re.findall(r'data-label="Inside"><span><a[^>]*>([\d.]+)</a>:(\d+)<', page)
        return [f"{address}:{port}" for address, port in found]

    path, seen = "/g/ngw-1/sessions?sort=bytes", []
    pages = 0
    while path:
        page = visitor.get(path).text
        seen += inside(page)
        pages += 1
        following = re.search(r'rel="next" href="([^"]*)"', page)
        if following is None:
            previous = re.search(r'rel="prev" href="([^"]*)"', page)
            assert previous is not None
            back = visitor.get(f"/g/ngw-1/sessions{html.unescape(previous[1])}").text
            assert inside(back) == seen[(pages - 2) * 100 : (pages - 1) * 100]
        path = f"/g/ngw-1/sessions{html.unescape(following[1])}" if following else ""
    assert seen == [f"{row['inside_ip']}:{row['inside_port']}" for row in rows]
    filtered = visitor.get(
        "/g/ngw-1/sessions?" + urlencode({"subscriber": "10.0.0.9", "protocol": "", "sort": "session"})
    ).text
    assert len(inside(filtered)) == len(some) and f"of {len(some)} sessions that match" in text_of(filtered)
    wrong = visitor.get("/g/ngw-1/sessions?subscriber=ten")
    assert wrong.status == 200 and "subscriber must be an address or a prefix" in text_of(wrong.text)
    assert 'value="ten"' in wrong.text  # what was typed stays


def test_ports_have_their_threshold_and_what_is_held_down(visitor: Visitor) -> None:
    page = visitor.get("/g/ngw-1/ports?outside=203.0.113.1").text
    shown = text_of(page)
    assert "a warning comes at 80 % in use" in shown and "warning from 256 ports" in shown and "held down" in shown
    assert "203.0.113.2" not in shown
    assert "must be an address or a prefix" in text_of(visitor.get("/g/ngw-1/ports?outside=x").text)


def test_who_answers_as_the_command_line_does_now_and_then(here: World, visitor: Visitor) -> None:
    row = here.one_session()
    endpoint = f"{row['outside_ip']}:{row['outside_port']}"
    now = visitor.get("/g/ngw-1/who?" + urlencode({"endpoint": endpoint, "protocol": row["protocol"]})).text
    told = call("who", endpoint, "--protocol", row["protocol"], "--live", "--instance", here.folder / "ngw-1.sock")
    assert told.strip() in html.unescape(now)
    here.parquet.wait(20)
    at = "2026-11-20T12:03:17Z"
    then = visitor.get(
        "/g/ngw-1/who?" + urlencode({"endpoint": endpoint, "protocol": "tcp", "when": "then", "at": at})
    ).text
    told = call("who", endpoint, "--protocol", "tcp", "--at", at, "--log", here.folder / "rows", exit_code=4)
    assert told.strip() in html.unescape(then) and '<figure class="timeline">' in then
    for wrong, said in (
        ({"endpoint": "203.0.113.1"}, "must have a port where the gateway is asked"),
        ({"endpoint": "203.0.113.1:x"}, "an address, a colon and a port"),
        ({"endpoint": endpoint, "protocol": "tcp", "when": "then", "at": "noon"}, "the time must be such as"),
        (
            {"endpoint": endpoint, "protocol": "tcp", "when": "then", "at": at, "tolerance": "x"},
            "the tolerance must be a number",
        ),
        (
            {"endpoint": endpoint, "protocol": "", "when": "then", "at": at},
            "the protocol must be given where a port is",
        ),
        ({"endpoint": "203.0.113.1", "when": "then", "at": at}, "unless the remote is given"),
        (
            {"endpoint": endpoint, "protocol": "tcp", "when": "span", "from": at, "until": "late"},
            "the end of the span must be such as",
        ),
        (
            {"endpoint": endpoint, "protocol": "tcp", "when": "then", "at": at, "log": "/etc"},
            "the session log must be audit (parquet) of",
        ),
    ):
        assert said in text_of(visitor.get(f"/g/ngw-1/who?{urlencode(wrong)}").text)


def test_explain_answers_as_the_command_line_does(here: World, visitor: Visitor) -> None:
    frame = udp("10.0.0.200", 999).hex()
    page = html.unescape(visitor.get(f"/g/ngw-1/explain?frame={frame}&side=inside").text)
    told = call("explain", "--live", frame, "--instance", here.folder / "ngw-1.sock")
    assert [line for line in told.splitlines() if "port" not in line][-1] in page and "OUTBOUND" in page
    assert "frame must be pairs of hexadecimal digits" in visitor.get("/g/ngw-1/explain?frame=zz").text


def test_entries_have_what_a_reload_would_change(here: World, visitor: Visitor) -> None:
    shown = text_of(visitor.get("/g/ngw-1/entries").text)
    assert "1 office SNAT 10.0.0.0/16 by 203.0.113.1, 203.0.113.2" in shown and "start log nat" in shown
    assert "replace" not in shown
    before = here.file.read_text()
    try:
        here.file.write_text(before.replace('"10.0.0.80"', '"10.0.0.81"'))
        shown = text_of(visitor.get("/g/ngw-1/entries").text)
        assert (
            "replace dnat 'web': tcp 203.0.113.1:443 to 10.0.0.80:8443 -> tcp 203.0.113.1:443 to 10.0.0.81:8443"
            in shown
        )
        here.file.write_text(before.replace("max_sessions = 4000", "max_sessions = 4001"))
        assert "a restart is needed" in text_of(visitor.get("/g/ngw-1/entries").text)
        here.file.write_text("[")
        assert "not TOML" in text_of(visitor.get("/g/ngw-1/entries").text)
    finally:
        here.file.write_text(before)


def test_top_has_what_sessions_had_so_far_before_any_script_runs(here: World, visitor: Visitor) -> None:
    with Client(here.folder / "ngw-1.sock") as client:
        rows = client.ask("subscribers", sort="sessions", limit=20)
    page = visitor.get("/g/ngw-1/top?sort=sessions").text
    assert re.findall(r'id="top-([\d.]+)"', page) == [row["subscriber"] for row in rows]
    shown = text_of(page)
    assert f"{rows[0]['packets_out']:,} packets" in shown and f"{rows[0]['sessions']:,} sessions" in shown
    assert "What the sessions that are open now had so far" in shown


def test_the_last_hour_is_asked_for_once(here: World, visitor: Visitor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look after the first takes the samples that are new, and shows the same as the first did."""
    asked: list[int] = []
    real = Client.ask

    def counted(client: Client, verb: str, **arguments: object) -> list[dict[str, object]]:
        rows = real(client, verb, **arguments)
        if verb == "history":
            asked.append(len(rows))
        return rows

    monkeypatch.setattr(Client, "ask", counted)
    pages._SAMPLES.clear()
    charts = [re.findall("<svg.*?</svg>", visitor.get("/g/ngw-1/").text, re.S) for _ in range(2)]
    assert charts[0] == charts[1] and len(charts[0]) > 3
    assert asked[0] == STEPS + 1 and asked[1:] == [0]


def test_live_parts_come_again_and_again(visitor: Visitor) -> None:
    assert "packets so far" in visitor.part("/g/ngw-1/live/")
    assert "Rows of audit" in visitor.part("/g/ngw-1/live/log")
    assert "Rates over the last" in visitor.part("/g/ngw-1/live/top?sort=sessions")
    assert "ngw-1" in visitor.part("/live")
    assert visitor.get("/g/ngw-1/live/entries").status == 404


def test_names_of_the_configuration_are_text(visitor: Visitor) -> None:
    for page in ("", "sessions", "entries", "log"):
        shown = visitor.get(f"/g/hostile/{page}").text
        assert HOSTILE not in shown
        assert (html.escape(HOSTILE) in shown) is (page != "log")
    for path in (f"/g/{quote(HOSTILE, safe='')}/", f"/g/ngw-1/sessions?entry={quote(HOSTILE)}", f"/{quote(HOSTILE)}",
                 f"/g/ngw-1/who?endpoint={quote(HOSTILE)}", f"/g/ngw-1/log/stop?name={quote(HOSTILE)}"):  # fmt: skip
        assert HOSTILE not in visitor.get(path).text


def test_a_gateway_that_is_gone_is_told(visitor: Visitor) -> None:
    answer = visitor.get("/g/nowhere/")
    assert answer.status == 503 and "no gateway" in text_of(answer.text)
    assert visitor.get("/g/ngw-1/nowhere").status == 404
    assert visitor.get("/g/ngw-1").headers["location"].endswith("/g/ngw-1/")


def test_two_gateways_of_one_name_are_refused(tmp_path: object) -> None:
    with pytest.raises(ControlError, match="must have names of their own"):
        Gateways(["/a/ngw-1.sock", "/b/ngw-1.sock"])
    assert Gateways(["/a/ngw-1.sock", "/b/ngw-2.sock"]).names() == ["ngw-1", "ngw-2"]


@pytest.mark.parametrize(
    "query",
    [
        {"endpoint": "203.0.113.1:²"}, {"endpoint": f"203.0.113.1:{'9' * 5000}"}, {"endpoint": "²:1"},
        {"endpoint": "203.0.113.1:1", "protocol": "²"}, {"endpoint": "203.0.113.1:1", "protocol": "²", "when": "then"},
        {"endpoint": "203.0.113.1:1", "protocol": "tcp", "when": "then", "at": "0001-01-01T00:00:00+23:59"},
        {"endpoint": "203.0.113.1:1", "protocol": "tcp", "when": "then", "at": "9999-12-31T23:59:59-23:59"},
        {"endpoint": "203.0.113.1:1", "protocol": "tcp", "when": "then", "at": "2026-11-20", "remote": "198.51.100.7:²"},
    ],
)  # fmt: skip
def test_what_is_no_question_is_a_problem_of_the_page(visitor: Visitor, query: dict[str, str]) -> None:
    answer = visitor.get(f"/g/ngw-1/who?{urlencode(query)}")
    assert answer.status == 200 and "must be" in text_of(answer.text)


@pytest.mark.parametrize("asked", ["entry", "protocol"])
@pytest.mark.parametrize("value", ["²", "9" * 5000])
def test_a_number_is_of_plain_digits(visitor: Visitor, asked: str, value: str) -> None:
    answer = visitor.get(f"/g/ngw-1/sessions?{urlencode({asked: value})}")
    assert answer.status == 200 and f"{asked} must be" in text_of(answer.text)


@pytest.mark.parametrize(
    "listen",
    ["8433", "127.0.0.1:", ":8433", "127.0.0.1:http", "127.0.0.1:70000", "127.0.0.1:²", f"127.0.0.1:{'9' * 5000}"],
)
def test_a_wrong_address_is_named(listen: str) -> None:
    from natcore.console.app import listen as parse

    with pytest.raises(ConfigurationError, match=r"--listen must be an address and a port"):
        parse(listen)


def test_the_command_prints_the_address_and_ends_by_a_signal(here: World) -> None:
    command = [sys.executable, "-m", "natcore.cli.main", "console", "--listen", "127.0.0.1:0", "--json"]
    with subprocess.Popen(
        [*command, "--instance", here.folder / "ngw-1.sock"], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        told = json.loads(process.stdout.readline())
        assert told["write"] is False
        assert "ngw-1" in Visitor(told["url"]).get("/g/ngw-1/").text
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) in (0, -signal.SIGTERM)
    assert "must be an address and a port" in call_json("console", "--listen", "x", exit_code=64)["error"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (words.rate(999, "bit/s"), "999 bit/s"), (words.rate(1_234_567, "bit/s"), "1.2 Mbit/s"),
        (words.rate(0.25, "packets/s"), "0.2 packets/s"), (words.rate(999_999, "bit/s"), "1.0 Mbit/s"),
        (words.volume(1023), "1,023 B"), (words.volume(1_048_576), "1.0 MiB"), (words.volume(1_048_575), "1.0 MiB"),
        (words.share(1, 3), "33 %"), (words.share(1, 300), "0.3 %"), (words.share(0, 0), "-"),
        (words.duration(0), "0 s"), (words.duration(9.94), "9.9 s"), (words.duration(59.7), "1 min"),
        (words.duration(3725), "1 h 2 min"), (words.duration(90_000), "1 d 1 h"), (words.duration(-1), "0 s"),
    ],
)  # fmt: skip
def test_numbers_have_their_unit(text: str, said: str) -> None:
    assert text == said


def test_a_chart_has_gaps_and_says_in_words_what_it_shows() -> None:
    drawn = chart("Ports", [0, 10, 20, 30], [("used", [1, None, 3, 4])], lambda value: f"{value:g} ports", threshold=8)
    assert drawn is not None
    assert [len(piece.split()) for piece in drawn.lines[0].pieces] == [1, 2]
    assert drawn.about == "Ports: used now 4 ports, at least 1 ports, at most 4 ports"
    assert (drawn.top, drawn.threshold) == ("10 ports", 22.2)
    assert chart("Ports", [0], [("used", [1])], str) is None
