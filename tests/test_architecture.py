"""The rooms and what each may know: read from their cimport and import lines, so that no hall grows unseen."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CORE = ROOT / "natcore"
PACKAGE = ROOT / "python" / "natcore"

# Every room of the core from the ground up, with the rooms that it may know. A new room is added here first.
MAY_KNOW: dict[str, set[str]] = {
    # the ground: words, headers, arithmetic
    "hints": set(),
    "spin": {"hints"},
    "wire": set(),
    "text": set(),
    "frame": set(),
    "verdict": set(),
    "memory": set(),
    "random": set(),
    "slab": {"hints"},
    "links": set(),
    "checksum": set(),
    "flow": {"wire"},
    "index": {"memory", "hints"},
    # the state
    "_journal": {"hints", "memory", "spin", "_events"},
    "_events": {"hints", "memory", "spin"},
    "_blocks": {"memory", "flow"},
    "_overload": {"memory", "slab", "flow", "index"},
    "_ports": {"hints", "memory", "random", "flow", "index", "spin", "_blocks", "_overload"},
    "_draw": {"hints", "random", "index", "_blocks", "_overload", "_ports"},
    "_mappings": {"hints", "memory", "random", "slab", "links", "flow", "index", "spin", "_ports", "_draw"},
    "_rules": {"hints", "memory", "wire", "_mappings"},
    "_sessions": {
        "hints",
        "memory",
        "slab",
        "links",
        "checksum",
        "flow",
        "index",
        "wire",
        "_journal",
        "_mappings",
        "_ports",
    },
    "_sweep": {"hints", "index", "links", "spin", "_journal", "_ports", "_mappings", "_sessions"},
    "_tcp": {"wire", "_sessions"},
    "_icmp": {"hints", "memory", "wire", "frame", "checksum", "spin"},
    "_synqueue": {"frame", "memory", "spin"},
    "_fragments": {"memory", "slab", "links", "flow", "index", "wire"},
    "_flows": {"hints", "memory", "spin", "wire", "frame", "flow", "verdict", "_parse"},
    "paths": set(),
    "state": {
        "paths",
        "spin",
        "_events",
        "_flows",
        "_fragments",
        "_icmp",
        "_journal",
        "_mappings",
        "_ports",
        "_rules",
        "_sessions",
        "_synqueue",
    },
    # the way of a packet
    "_parse": {"hints", "wire", "frame", "checksum", "flow", "index", "verdict"},
    "_rewrite": {"hints", "wire", "frame", "checksum", "_parse", "_sessions"},
    "_mss": {"hints", "wire", "frame", "checksum", "_parse"},
}
GROUND = {"hints", "spin", "wire", "frame", "verdict", "memory", "random", "slab", "checksum", "flow", "index"}
MAY_KNOW["_hold"] = {"hints", "spin", "state"}
MAY_KNOW["_limits"] = {*GROUND, "state", "_events", "_mappings", "_ports", "_sessions", "_sweep"}
MAY_KNOW["_foresee"] = {*GROUND, "state", "_mappings", "_parse", "_ports", "_rules", "_sessions"}
MAY_KNOW["_split"] = {"hints", "wire", "frame", "checksum", "_icmp", "_parse"}
MAY_KNOW["_admit"] = set(MAY_KNOW) - {"_hold", "_icmp", "_rewrite", "_mss", "_synqueue", "_journal"}
MAY_KNOW["_reopen"] = {*GROUND, "state", "_admit", "_limits", "_mappings", "_parse", "_sessions", "_tcp"}
MAY_KNOW["_cross"] = {*GROUND, "state", "_admit", "_parse", "_ports", "_rules"}
MAY_KNOW["_identify"] = {*GROUND, "state", "_parse"}
MAY_KNOW["_quoted"] = {*GROUND, "state", "_identify", "_admit", "_parse", "_ports", "_sessions", "_tcp"}
MAY_KNOW["_pieces"] = {
    *GROUND,
    "state",
    "_admit",
    "_fragments",
    "_identify",
    "_icmp",
    "_parse",
    "_rewrite",
    "_sessions",
    "_split",
    "_tcp",
}
MAY_KNOW["_unsolicited"] = {*GROUND, "state", "_icmp", "_parse", "_ports", "_sessions", "_synqueue"}
MAY_KNOW["_account"] = {"hints", "wire", "frame", "state", "_parse", "_sessions", "_tcp"}
MAY_KNOW["_answer"] = {*GROUND, "state", "_icmp", "_parse", "_ports"}
MAY_KNOW["_owner"] = {*GROUND, "state", "_admit", "_cross", "_overload", "_parse", "_pieces", "_ports", "_quoted"}
MAY_KNOW["_owner"] |= {"_rules", "_sessions"}
MAY_KNOW["_time"] = {"hints", "links", "state", "_hold", "_pieces", "_sessions", "_sweep", "_unsolicited"}
MAY_KNOW["_check"] = {"hints", "slab", "index", "state", "_blocks", "_mappings", "_overload", "_ports", "_sessions"}
MAY_KNOW["_translate"] = set(MAY_KNOW)
MAY_KNOW["_crew"] = {"memory", "state", "_fragments", "_icmp", "_journal", "_mappings", "_ports", "_sessions"}
MAY_KNOW["_crew"] |= {"_synqueue"}
MAY_KNOW["_entries"] = {"hints", "index", "state", "_journal", "_mappings", "_ports", "_sessions", "_sweep"}
MAY_KNOW["_look"] = {"hints", "state", "_mappings", "_ports", "_sessions", "_sweep", "_tcp", "_time"}
MAY_KNOW["_storage"] = {
    "memory",
    "index",
    "state",
    "_blocks",
    "_fragments",
    "_icmp",
    "_journal",
    "_mappings",
    "_overload",
}
MAY_KNOW["_storage"] |= {"links", "_ports", "_sessions", "_synqueue"}
# the plane: frames without NAT, then what joins them to a translator
MAY_KNOW["arp"] = {"hints", "wire"}
MAY_KNOW["kernel"] = set()
MAY_KNOW["_device"] = {"kernel"}
MAY_KNOW["_cut"] = {"hints", "memory", "wire", "checksum", "kernel", "_device"}
MAY_KNOW["_frames"] = {"hints", "memory", "kernel", "_device", "_cut"}
MAY_KNOW["_fanout"] = {"kernel"}
MAY_KNOW["_ring"] = {"hints", "frame", "memory", "kernel", "_device", "_cut", "_fanout", "_frames"}
MAY_KNOW["unfinished"] = {"hints", "wire", "checksum"}
MAY_KNOW["_umem"] = {"wire", "kernel"}
MAY_KNOW["_queue"] = {"kernel", "_umem"}
MAY_KNOW["_xdp"] = {"hints", "wire", "kernel", "unfinished", "_device", "_umem", "_queue"}
MAY_KNOW["_bpf"] = set()
MAY_KNOW["_nexthop"] = {"memory"}
MAY_KNOW["_waiting"] = {"frame", "memory", "kernel", "_device", "_nexthop"}
MAY_KNOW["_worker"] = {
    *GROUND,
    "paths",
    "arp",
    "kernel",
    "_device",
    "_hold",
    "_nexthop",
    "_waiting",
    "_ports",
    "state",
    "_time",
    "_translate",
}
# the boundaries to Python, and the tests' own
MAY_KNOW["_encode_sls"] = {"text", "_journal"}
MAY_KNOW["_encode_ipfix"] = {"hints", "_journal"}
MAY_KNOW["_encode_rowbinary"] = {"_journal"}
MAY_KNOW["_encode_syslog"] = {"text", "_journal"}
MAY_KNOW["_plane"] = {*MAY_KNOW["_worker"], "_worker"}
MAY_KNOW["_rows"] = {"hints", "spin", "state", "_hold", "_journal", "_look", "_sessions", "_sweep", "_time"}
MAY_KNOW["_tables"] = {"hints", "state", "_events", "_hold", "_limits", "_look", "_ports", "_rows"}
MAY_KNOW["_explain"] = {*GROUND, "state", "_look", "_mappings", "_parse", "_pieces", "_ports", "_quoted", "_rows"}
MAY_KNOW["_explain"] |= {"_admit", "_owner", "_rules", "_sessions", "_time", "_translate"}
MAY_KNOW["_flowlog"] = {"hints", "memory", "spin", "state", "_flows", "_hold", "_rows"}
MAY_KNOW["_gateway"] = set(MAY_KNOW)
MAY_KNOW["_testing"] = set(MAY_KNOW) - {"_gateway"}
MAY_KNOW["_testing_ports"] = {"index", "random", "_ports"}
MAY_KNOW["_testing_plane"] = {"frame", "kernel", "_nexthop", "_waiting"}
MAY_KNOW["_fuzz"] = {"hints", "checksum", "frame", "state", "verdict", "wire", "_hold", "_time", "_translate"}
MAY_KNOW["_tamper"] = set(MAY_KNOW) - {"_gateway", "_testing"}

READ_VERDICTS = {"_flows", "_fuzz"}  # they say what was decided elsewhere
GIVE_VERDICTS = {"verdict", "_parse", "_admit", "_quoted", "_translate", "_worker", "_plane", "_gateway", "_testing"}
GIVE_VERDICTS |= {"_answer", "_cross", "_explain", "_owner", "_pieces", "_reopen", "_unsolicited"}
BOUNDARIES = {
    "_ring",
    "_plane",
    "_encode_sls",
    "_encode_ipfix",
    "_encode_rowbinary",
    "_encode_syslog",
    "_flowlog",
    "_rows",
    "_explain",
    "_storage",
    "_gateway",
    "_testing",
}  # they may raise our errors
PYTHON_NAMES = re.compile(r"^(def|cpdef|class|cdef class) ", re.M)

HALL = 900  # lines; from 450 on a file wants a second look

CORE_FILES = sorted([*CORE.glob("*.pyx"), *CORE.glob("*.pxd")])
PYTHON_FILES = sorted([*PACKAGE.rglob("*.py"), *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")])
CIMPORT = re.compile(
    r"^\s*(?:from\s+natcore\s+cimport\s+(?P<names>[\w, ]+)|from\s+natcore\.(?P<room>\w+)\s+cimport"
    r"|cimport\s+natcore\.(?P<whole>\w+))",
    re.M,
)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def rooms_known(source: str) -> set[str]:
    """The rooms that cimport lines name."""
    known = set()
    for match in CIMPORT.finditer(source):
        names = match["room"] or match["whole"] or match["names"]
        known |= {name.strip() for name in names.split(",")}
    return known


def without_comments(source: str) -> str:
    return re.sub(r"#.*", "", re.sub(r'""".*?"""', "", source, flags=re.S))


@pytest.mark.parametrize("path", CORE_FILES, ids=name_of)
def test_a_room_knows_only_what_it_may(path: Path) -> None:
    room = path.stem
    assert room in MAY_KNOW, f"{name_of(path)}: a new room; say in MAY_KNOW what it may know"
    known = rooms_known(path.read_text()) - {room}
    assert known <= MAY_KNOW[room], f"{name_of(path)} may not know {sorted(known - MAY_KNOW[room])}"


def test_no_room_knows_one_above_it() -> None:
    """The lists themselves allow no circle."""
    seen: set[str] = set()
    waiting = dict(MAY_KNOW)
    while waiting:
        ready = [room for room, known in waiting.items() if known & set(MAY_KNOW) <= seen]
        assert ready, f"a circle among {sorted(waiting)}"
        for room in ready:
            seen.add(room)
            del waiting[room]


@pytest.mark.parametrize("path", [p for p in CORE_FILES if p.stem not in GIVE_VERDICTS | READ_VERDICTS], ids=name_of)
def test_state_gives_no_verdicts(path: Path) -> None:
    """Only the way of a packet says why one is dropped; what it stands on does not know the reasons."""
    assert not re.search(r"\bDROP_\w+|natcore\.verdict", without_comments(path.read_text()))


@pytest.mark.parametrize("path", CORE_FILES, ids=name_of)
def test_directives_live_in_the_build_only(path: Path) -> None:
    source = path.read_text()
    assert not re.search(r"^#\s*(cython|distutils)\s*:", source, re.M), "compiler directives belong to CMakeLists.txt"
    assert not re.search(r"@cython\.(boundscheck|wraparound|cdivision|initializedcheck)", source)
    assert not re.search(r"^\s*(DEF|IF|ELIF)\s|^\s*include\s+[\"']", without_comments(source), re.M), (
        "no DEF, IF, include"
    )


@pytest.mark.parametrize("path", CORE_FILES, ids=name_of)
def test_wire_and_core_never_touch_python_below_the_boundary(path: Path) -> None:
    """Below the boundary no room imports a Python module of ours: knowledge goes upwards only."""
    if path.stem in BOUNDARIES:
        return
    assert not re.search(r"^\s*(from|import)\s+natcore(\.\w+)?\s+import|^\s*import\s+natcore", path.read_text(), re.M)


@pytest.mark.parametrize("path", [*CORE_FILES, *PYTHON_FILES], ids=name_of)
def test_a_file_says_what_it_is_in_one_line(path: Path) -> None:
    first = path.read_text().lstrip().split("\n", 1)[0]
    assert first.startswith(('"""', "# ")), f"{name_of(path)}: its first line is {first!r}"
    assert len(first) <= 130


@pytest.mark.parametrize("path", [*CORE_FILES, *PYTHON_FILES], ids=name_of)
def test_no_room_becomes_a_hall(path: Path) -> None:
    lines = len(path.read_text().splitlines())
    assert lines <= HALL, f"{name_of(path)} has {lines} lines: split it along the design"


def test_the_core_is_no_package_of_its_own() -> None:
    """Without __init__.py the folder of sources does not shadow the installed package."""
    assert not (CORE / "__init__.py").exists()


def test_every_room_is_built() -> None:
    cmake = (ROOT / "CMakeLists.txt").read_text()
    match = re.search(r"set\(NATCORE_ROOMS\s([^)]*)\)", cmake)
    assert match is not None
    assert {path.stem for path in CORE.glob("*.pyx")} <= {*match[1].split(), "_fuzz"}  # NATCORE_FUZZ builds that one


def test_every_room_that_python_sees_has_a_stub() -> None:
    """Besides the tests' own door: no code that is checked for types goes through it."""
    rooms = [path for path in CORE.glob("*.pyx") if path.stem not in ("_testing", "_fuzz")]
    shown = [path.stem for path in rooms if PYTHON_NAMES.search(path.read_text())]
    missing = [room for room in shown if not (PACKAGE / f"{room}.pyi").exists()]
    assert not missing, f"no stub beside the modules: {missing}"


def test_the_public_init_only_names() -> None:
    """natcore/__init__.py holds the public names, nothing else."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    allowed = (ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign, ast.Expr)
    assert [type(node).__name__ for node in tree.body if not isinstance(node, allowed)] == []
