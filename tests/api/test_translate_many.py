"""Frames in memory as a caller has them: lists, any buffer, arrays that tell where each frame goes; and what is refused."""

from __future__ import annotations

import array
import mmap

import numpy as np
import pytest

from natcore import ConfigurationError, DnatEntry, Error, Gateway, NoNatEntry, Side, SnatEntry, Verdict
from natcore.testing import craft

INSIDE = "10.0.0.5"


def made(**more: object) -> Gateway:
    gateway = Gateway(seed=5, **more)
    gateway.add(SnatEntry("10.0.0.0/16", pool="203.0.113.1"))
    gateway.add(DnatEntry("203.0.113.1", 80, "10.0.0.7", 80))
    gateway.add(NoNatEntry("10.0.0.0/16", "192.168.0.0/16"))
    return gateway


def mixed(count: int = 40) -> list[bytes]:
    """Frames of several lengths, for several verdicts."""
    frames = []
    for i in range(count):
        kinds = [
            craft.ether(craft.udp((INSIDE, 1000 + i), ("198.51.100.7", 53), bytes(i))),
            craft.ether(craft.udp(("172.16.0.1", 1000 + i), ("198.51.100.7", 53))),
            craft.ether(craft.udp((INSIDE, 2000 + i), ("192.168.0.1", 53), bytes(1200))),
            craft.ether(craft.tcp((INSIDE, 3000 + i), ("203.0.113.1", 80), 2)),
            b"",
        ]
        frames.append(bytes(kinds[i % len(kinds)]))
    return frames


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("part", [1, 7, 512])
def test_many_are_one_after_the_other(monkeypatch: pytest.MonkeyPatch, workers: int, part: int) -> None:
    monkeypatch.setattr("natcore.internal.arguments.PART_FRAMES", part)
    with made(workers=workers) as gateway, made(workers=workers) as other:
        frames = mixed()
        many = gateway.translate_many(frames, Side.INSIDE, now=1.0)
        assert many == [other.translate_one(frame, Side.INSIDE, now=1.0) for frame in frames]
        assert {verdict for verdict, _ in many} == {
            Verdict.OUTBOUND, Verdict.DROP_NO_SNAT_ENTRY, Verdict.UNTRANSLATED, Verdict.HAIRPIN, Verdict.DROP_MALFORMED,
        }  # fmt: skip
        back = [frame for _, frame in many if frame is not None]
        assert len(back) == sum(verdict.is_forwarded for verdict, _ in many)
        assert gateway.counters() == other.counters()


def test_each_may_have_its_own_side_and_time() -> None:
    with made() as gateway, made() as other:
        frames = mixed(10)
        sides = np.array([0, 1] * 5, np.uint8)
        nows = np.arange(10, dtype=np.float64)
        many = gateway.translate_many(iter(frames), sides, nows)
        assert many == [other.translate_one(f, int(s), float(n)) for f, s, n in zip(frames, sides, nows, strict=True)]


def test_a_long_frame_does_not_make_all_rows_long() -> None:
    from natcore.internal.arguments import MAX_FRAME, PART_BYTES, parts_of

    frames = [b"x"] * 100 + [bytes(MAX_FRAME)] + [b"x"] * 100
    parts = [frames[part] for part in parts_of(frames)]
    assert [frame for part in parts for frame in part] == frames
    assert all(len(part) * max(map(len, part)) <= PART_BYTES for part in parts)


def test_no_frames_give_no_verdicts() -> None:
    with made() as gateway:
        assert gateway.translate_many([], Side.INSIDE, now=0.0) == []
        for bad in ({"side": 2}, {"now": -1.0}, {"now": np.zeros(1)}, {"side": np.zeros(1, np.uint8)}):
            with pytest.raises(ConfigurationError, match=next(iter(bad))):
                gateway.translate_many([], **{"side": 0, "now": 0.0, **bad})
    with pytest.raises(Error, match="closed"):
        gateway.translate_many([], 0, 0.0)


# ---- any buffer ------------------------------------------------------------------------------------------------------

FRAME = mixed(1)[0]


def mapped(frame: bytes) -> mmap.mmap:
    memory = mmap.mmap(-1, len(frame))
    memory[:] = frame
    return memory


BUFFERS = {
    "bytearray": bytearray(FRAME),
    "memoryview": memoryview(FRAME),
    "array": array.array("B", FRAME),
    "signed": array.array("b", bytes(FRAME)),
    "words": memoryview(np.frombuffer(FRAME[: len(FRAME) // 2 * 2], np.uint16)),
    "numpy": np.frombuffer(FRAME, np.uint8),
    "row": np.frombuffer(FRAME * 2, np.uint8).reshape(2, -1)[1],
    "plane": np.frombuffer(FRAME, np.uint8).reshape(1, -1),
    "mmap": mapped(FRAME),
    "void": np.frombuffer(FRAME, np.dtype((np.void, len(FRAME))))[0],
}


@pytest.mark.parametrize("name", BUFFERS)
def test_any_contiguous_buffer_is_a_frame(name: str) -> None:
    before = bytes(memoryview(BUFFERS[name]).cast("B"))
    with made() as gateway, made() as other:
        assert gateway.translate_one(BUFFERS[name], Side.INSIDE, 0.0) == other.translate_one(before, Side.INSIDE, 0.0)
        assert gateway.translate_many([BUFFERS[name]], Side.INSIDE, 1.0)[0][0] is Verdict.OUTBOUND
        assert gateway.explain(BUFFERS[name], Side.INSIDE).verdict is Verdict.OUTBOUND
        assert bytes(memoryview(BUFFERS[name]).cast("B")) == before


def released() -> memoryview:
    view = memoryview(bytearray(FRAME))
    view.release()
    return view


NO_FRAMES = {
    "strided": (memoryview(FRAME)[::2], r"frame must be contiguous, got strides \(2,\)"),
    "columns": (np.zeros((4, 4), np.uint8).T[:, 1:], r"frame must be contiguous"),
    "text": ("text", r"frame must be a buffer of bytes, got 'text'"),
    "number": (7, r"frame must be a buffer of bytes, got 7"),
    "nothing": (None, r"frame must be a buffer of bytes, got None"),
    "released": (released(), r"frame must be a buffer of bytes, got .*released"),
    "objects": (np.array([None]), r"frame must be a buffer of bytes"),
    "long": (bytes((1 << 20) + 1), r"frame must have at most 1,048,576 bytes, got 1,048,577"),
}


@pytest.mark.parametrize("name", NO_FRAMES)
def test_what_is_no_frame_is_refused(name: str) -> None:
    given, message = NO_FRAMES[name]
    with made() as gateway:
        for call in (gateway.translate_one, gateway.explain):
            with pytest.raises(ConfigurationError, match=message):
                call(given, Side.INSIDE, 0.0)
        with pytest.raises(ConfigurationError, match=message.replace("frame", r"frames\[1\]", 1)):
            gateway.translate_many([FRAME, given], Side.INSIDE, 0.0)
        assert gateway.counters()["received"] == 0


# ---- where each frame goes -------------------------------------------------------------------------------------------


def test_egress_is_where_each_frame_goes() -> None:
    with made() as gateway:
        [(_, sent)] = gateway.translate_many([FRAME], Side.INSIDE, 0.0)
        assert sent is not None
        answer = craft.ether(
            craft.udp(("198.51.100.7", 53), ("203.0.113.1", int.from_bytes(sent[34:36], "big")), b"answer")
        )
        frames = [*mixed(5), bytes(answer)]
        rows = np.zeros((6, 2048), np.uint8)
        for row, frame in zip(rows, frames, strict=True):
            row[: len(frame)] = np.frombuffer(frame, np.uint8)
        lengths = np.array([len(frame) for frame in frames], np.uint32)
        sides = np.array([0, 0, 0, 0, 0, 1], np.uint8)
        egress = np.full(6, 77, np.uint8)
        verdicts = gateway.translate(rows, lengths, sides, 0.0, egress=egress)
        assert egress.tolist() == [1, 255, 1, 0, 255, 0]
        assert Verdict(verdicts[5]) is Verdict.INBOUND
        assert egress.tolist() == [
            255 if (to := Verdict(verdict).egress(Side(side))) is None else to
            for verdict, side in zip(verdicts, sides, strict=True)
        ]


def test_every_verdict_says_whether_and_where_a_packet_goes() -> None:
    forwarded = {Verdict.OUTBOUND, Verdict.INBOUND, Verdict.HAIRPIN, Verdict.UNTRANSLATED}
    assert {verdict for verdict in Verdict if verdict.is_forwarded} == forwarded
    assert Verdict.OUTBOUND.egress(Side.INSIDE) is Side.OUTSIDE
    assert Verdict.INBOUND.egress(Side.OUTSIDE) is Side.INSIDE
    assert Verdict.HAIRPIN.egress(Side.INSIDE) is Side.INSIDE
    assert [Verdict.UNTRANSLATED.egress(side) for side in Side] == [Side.OUTSIDE, Side.INSIDE]
    assert {verdict.egress(side) for verdict in set(Verdict) - forwarded for side in Side} == {None}


# ---- arrays ----------------------------------------------------------------------------------------------------------


def arrays(count: int = 4) -> dict[str, np.ndarray]:
    return {
        "frames": np.zeros((count, 128), np.uint8),
        "lengths": np.zeros(count, np.uint32),
        "out": np.zeros(count, np.uint8),
        "egress": np.zeros(count, np.uint8),
    }


def call(gateway: Gateway, side: object = 0, now: object = 0.0, **given: np.ndarray) -> np.ndarray:
    return gateway.translate(given.pop("frames"), given.pop("lengths"), side, now, **given)


def test_no_rows_are_no_verdicts() -> None:
    with made() as gateway:
        assert call(gateway, **arrays(0)).shape == (0,)
        assert call(gateway, side=np.zeros(0, np.uint8), now=np.zeros(0), **arrays(0)).shape == (0,)


def test_rows_without_bytes_are_refused() -> None:
    message = r"frames must have rows of 1 byte or more, got shape \(4, 0\)"
    with made() as gateway, pytest.raises(ConfigurationError, match=message):
        call(gateway, **{**arrays(), "frames": np.zeros((4, 0), np.uint8)})


@pytest.mark.parametrize("name", ["frames", "lengths", "out", "egress"])
def test_a_strided_array_is_refused_by_its_name(name: str) -> None:
    given = arrays(8)
    given = {each: value[: 4 if each != name else None] for each, value in given.items()}
    given[name] = given[name][::2]
    with made() as gateway, pytest.raises(ConfigurationError, match=f"{name}.* strides"):
        call(gateway, **given)


@pytest.mark.parametrize("pair", [("frames", "lengths"), ("frames", "out"), ("lengths", "out"), ("frames", "egress"),
                                  ("lengths", "egress"), ("out", "egress")], ids="-".join)  # fmt: skip
def test_overlapping_arrays_are_refused_by_name(pair: tuple[str, str]) -> None:
    given = arrays()
    first, second = given[pair[0]], given[pair[1]]
    given[pair[1]] = first.reshape(-1).view(np.uint8)[: second.nbytes].view(second.dtype).reshape(second.shape)
    with made() as gateway, pytest.raises(ConfigurationError, match="memory with") as refused:
        call(gateway, **given)
    assert all(name in str(refused.value) for name in pair)


def test_the_sides_may_not_be_where_egress_is_written() -> None:
    given = arrays()
    with made() as gateway, pytest.raises(ConfigurationError, match="egress must not share memory with side"):
        call(gateway, side=given["egress"], **given)
