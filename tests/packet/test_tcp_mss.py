"""natcore/packet/tcp_mss: a SYN's MSS option is lowered, never raised; options that cannot be are left alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from natcore import ConfigurationError, NoNatEntry, Policy, Side, Verdict
from natcore.testhooks import wrappers
from natcore.testing import craft
from natcore.testing.oracle.packets import ones_sum
from support.frames import EIP, HOST, REMOTE, TCP, Ether, gateway, parsed, tcp

INSIDE, OUTSIDE = Side.INSIDE, Side.OUTSIDE
SYN, ACK = 2, 16
CSUM_PARTIAL = 1  # FrameFlag of natcore/frame.pxd
MSS = bytes((2, 4))
NOP, END = b"\1", b"\0"


def syn(options: bytes, flags: int = SYN) -> bytes:
    """A SYN with raw options, padded to whole words."""
    padded = options + bytes(-len(options) % 4)
    return craft.ether(craft.tcp((HOST, 5000), (REMOTE, 443), flags, options=padded))


def sent(frame: bytes, mss: int | None = 1360) -> bytes:
    """The options of what leaves; all its checksums are right."""
    verdict, out = gateway(policy=Policy(mss=mss)).translate_one(frame, INSIDE, 0.0)
    assert verdict is Verdict.OUTBOUND and out is not None
    segment = out[34:]
    assert ones_sum(out[26:34] + bytes((0, 6)) + len(segment).to_bytes(2, "big"), segment) == 0xFFFF
    return segment[20:]


def option(value: int) -> bytes:
    return MSS + value.to_bytes(2, "big")


@pytest.mark.parametrize(
    "value, expected", [(1460, 1360), (1361, 1360), (1360, 1360), (536, 536), (0, 0), (65535, 1360)]
)
@pytest.mark.parametrize("before", [b"", NOP * 4, NOP, NOP * 3], ids=["first", "later", "odd", "odd-later"])
def test_the_option_is_lowered_and_never_raised(value: int, expected: int, before: bytes) -> None:
    options = before + option(value)
    padding = bytes(-len(options) % 4)
    assert sent(syn(options)) == before + option(expected) + padding
    assert sent(syn(options), mss=None) == options + padding


def test_other_options_stay_as_they_are() -> None:
    linux = option(1460) + bytes((4, 2, 8, 10)) + bytes(range(8)) + NOP + bytes((3, 3, 7))
    assert sent(syn(linux)) == option(1360) + linux[4:]


def test_every_one_of_several_is_lowered() -> None:
    assert sent(syn(option(1460) * 10)) == option(1360) * 10


@pytest.mark.parametrize("options", [
    option(1460) + bytes((8, 1, 0, 0)),  # a length that is no option's
    option(1460) + bytes((8, 0, 0, 0)),
    option(1460) + bytes((8, 5, 0, 0)),  # one byte over
    option(1460) + NOP * 3 + bytes((8,)),  # a kind alone, at the end
    bytes((2, 3, 5)) + NOP + option(1460),  # an MSS of one byte
    bytes((2, 5, 5, 180, 0)) + NOP * 3,
    NOP * 2 + bytes((2, 4)),  # its value behind the header
    END + NOP * 3 + option(1460),  # behind the end of the list
    NOP * 8,
    b"",
])  # fmt: skip
def test_options_that_cannot_be_leave_the_packet_as_it_is(options: bytes) -> None:
    assert sent(syn(options)) == options


@given(st.binary(max_size=40).map(lambda raw: raw[: len(raw) // 4 * 4]), st.integers(28, 65495))
def test_whatever_the_options_only_an_mss_above_the_limit_changes(options: bytes, limit: int) -> None:
    after = sent(syn(options), mss=limit)
    assert len(after) == len(options)
    for at in range(len(options)):
        if after[at] != options[at]:
            assert limit in (int.from_bytes(after[at : at + 2], "big"), int.from_bytes(after[at - 1 : at + 1], "big"))


def test_only_a_syn_has_it_lowered() -> None:
    over = gateway(policy=Policy(mss=1360))
    over.translate_one(syn(option(1460)), INSIDE, 0.0)
    _, out = over.translate_one(syn(option(1460), ACK), INSIDE, 0.0)
    assert bytes(parsed(out)[TCP])[20:] == option(1460)


def test_the_answer_from_outside_is_clamped_and_so_is_a_retransmission() -> None:
    over = gateway(policy=Policy(mss=1360))
    for _ in range(2):
        _, out = over.translate_one(syn(option(1460)), INSIDE, 0.0)
        assert bytes(parsed(out)[TCP])[20:] == option(1360)
    for _ in range(2):
        ends = (REMOTE, 443), (EIP, parsed(out).sport)
        answer = craft.ether(craft.tcp(*ends, SYN | ACK, options=option(1460)))
        verdict, back = over.translate_one(answer, OUTSIDE, 0.0)
        assert verdict is Verdict.INBOUND and bytes(parsed(back)[TCP])[20:] == option(1360)


def test_a_hairpinned_syn_and_an_untranslated_one_are_clamped() -> None:
    over = gateway(policy=Policy(mss=1360))
    over.add(NoNatEntry("10.0.0.0/8", "192.168.0.0/16"))
    _, out = over.translate_one(tcp("S", sport=6000), INSIDE, 0.0)
    port = parsed(out).sport
    for destination, verdict in (((EIP, port), Verdict.HAIRPIN), (("192.168.0.1", 80), Verdict.UNTRANSLATED)):
        frame = craft.ether(craft.tcp((HOST, 5000), destination, SYN, options=option(1460)))
        got, out = over.translate_one(frame, INSIDE, 0.0)
        assert got is verdict and bytes(parsed(out)[TCP])[20:] == option(1360)


def test_an_unfinished_checksum_knows_nothing_of_options() -> None:
    frame = syn(option(1460))
    checksums = []
    for mss in (None, 1360):
        over = gateway(policy=Policy(mss=mss))
        verdict, out = wrappers.translate_frame(over._core.worker_capsule(), frame, INSIDE, 0, CSUM_PARTIAL)
        assert verdict == Verdict.OUTBOUND
        segment = Ether(out)[TCP]
        checksums.append(segment.chksum)
        assert bytes(segment)[20:] == option(mss or 1460)
    assert checksums[0] == checksums[1]


def test_a_damaged_checksum_stays_damaged() -> None:
    damaged = craft.ether(craft.tcp((HOST, 5000), (REMOTE, 443), SYN, options=option(1460), l4_damage=0x0101))
    over = gateway(policy=Policy(mss=1360))
    _, good = gateway(policy=Policy(mss=1360)).translate_one(syn(option(1460)), INSIDE, 0.0)
    _, bad = over.translate_one(damaged, INSIDE, 0.0)
    assert good is not None and bad is not None
    assert Ether(bad)[TCP].chksum != Ether(good)[TCP].chksum


@pytest.mark.parametrize("value", [27, 65496, 0, -1, 1360.0, True, "1360"])
def test_a_limit_that_cannot_be_is_refused(value: object) -> None:
    with pytest.raises(ConfigurationError, match=r"Policy\.mss"):
        Policy(mss=value)  # type: ignore[arg-type]
