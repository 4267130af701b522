"""Values behave as the standard library's frozen dataclasses do, and the import that they make cheap stays so."""

import ast
import copy
import dataclasses
import inspect
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from natcore import (
    Add,
    Applied,
    Behaviour,
    DeliveryPolicy,
    DnatEntry,
    Eip,
    Event,
    Gateway,
    Generated,
    Link,
    NoNatEntry,
    Policy,
    Remove,
    Replace,
    Side,
    SnatEntry,
    Timeouts,
    Verdict,
    config,
)
from natcore.deterministic import Share
from natcore.entries.table import Entry
from natcore.internal.values import dataclass, field

SNAT = SnatEntry("10.0.0.0/16", pool=["203.0.113.1", Eip("203.0.113.2", "10.9.9.9")], name="x")
HANDLE = Entry(1, SNAT)
VALUES = [
    Link(address="192.0.2.1", mtu=1400),
    Timeouts(udp=150),
    Behaviour(mapping="endpoint-independent"),
    Policy(ports="block", block_size=64, tcp=Behaviour()),
    DeliveryPolicy(batch=7),
    Eip("203.0.113.1"),
    SNAT,
    DnatEntry("203.0.113.1", (80, 81), [("10.0.0.1", 2), ("10.0.0.2", 1)], (8080, 8081)),
    NoNatEntry("10.0.0.0/8", "192.168.0.0/16"),
    Generated(b"frame", Side.INSIDE, Verdict.LOCAL),
    Event(1.0, "conflict", None, None, 0, 6, 2),
    Add(SNAT),
    Remove(HANDLE),
    Replace(HANDLE, SNAT),
    Applied([HANDLE], 0),
    Share(Link(address="10.0.0.1").address, Eip("203.0.113.1"), 1, 2),
]
NAMES = [type(value).__name__ for value in VALUES]


def standard(value):
    """A dataclass of the standard library with the same fields and values, unchecked."""
    kind = type(value)
    rows = [(item.name, item.type) for item in dataclasses.fields(value)]
    twin = dataclasses.make_dataclass(kind.__name__, rows, frozen=True, slots=True)
    return twin(*(getattr(value, name) for name, _ in rows))


@pytest.mark.parametrize("value", VALUES, ids=NAMES)
class TestAsTheStandardLibrarys:
    def test_repr(self, value):
        assert repr(value) == repr(standard(value))

    def test_equality_and_hash(self, value):
        same = dataclasses.replace(value)
        assert value == same
        assert value != standard(value) and value != object()
        if isinstance(value, Applied):
            with pytest.raises(TypeError, match="unhashable"):
                hash(value)
        else:
            assert hash(value) == hash(same) == hash(standard(value))

    def test_nothing_can_be_set_or_deleted(self, value):
        name = dataclasses.fields(value)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError, match=name):
            setattr(value, name, 1)
        with pytest.raises(dataclasses.FrozenInstanceError, match=name):
            delattr(value, name)
        with pytest.raises(dataclasses.FrozenInstanceError, match="another"):
            value.another = 1
        assert not hasattr(value, "__dict__")

    def test_fields_replace_and_asdict(self, value):
        names = list(type(value).__annotations__)
        assert dataclasses.is_dataclass(value) and dataclasses.is_dataclass(type(value))
        assert [item.name for item in dataclasses.fields(type(value))] == names
        assert list(inspect.signature(type(value)).parameters) == names
        assert value.__replace__() == value
        if not isinstance(value, Remove | Replace | Applied):
            assert list(dataclasses.asdict(value)) == names

    def test_copies_and_pickles(self, value):
        assert copy.copy(value) == value
        if not isinstance(value, Remove | Replace | Applied):
            assert copy.deepcopy(value) == value
            assert pickle.loads(pickle.dumps(value)) == value


def test_a_replaced_field_is_checked_as_any_other():
    assert dataclasses.replace(Policy(), blocks=2).blocks == 2
    with pytest.raises(ValueError, match=r"Policy\.blocks"):
        dataclasses.replace(Policy(), blocks=0)


def test_defaults_are_in_the_signature():
    given = inspect.signature(Policy).parameters
    assert (given["block_size"].default, given["mapping"].default) == (512, "endpoint-independent")
    assert {each.kind for each in given.values()} == {inspect.Parameter.KEYWORD_ONLY}
    assert inspect.signature(Eip).parameters["address"].default is inspect.Parameter.empty


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Policy("random"), r"Policy\(\) takes 0 positional arguments, got 1"),
        (lambda: Eip("203.0.113.1", None, 3), r"Eip\(\) takes 2 positional arguments, got 3"),
        (lambda: Eip(), r"Eip\(\) needs the argument 'address'"),
        (lambda: Policy(bloks=1), r"Policy\(\) got an unexpected keyword argument 'bloks'"),
        (lambda: Eip("203.0.113.1", address="203.0.113.2"), r"Eip\(\) got the argument 'address' twice"),
    ],
)
def test_wrong_arguments_are_type_errors_that_name_them(call, message):
    with pytest.raises(TypeError, match=message):
        call()


def test_what_is_hidden_is_neither_shown_nor_compared():
    @dataclass(frozen=True, slots=True)
    class Made:
        seen: int
        hidden: object = field(repr=False, compare=False)

    assert repr(Made(1, "x")).endswith("Made(seen=1)")
    assert Made(1, "x") == Made(1, "y") != Made(2, "x")
    match Made(1, "x"):
        case Made(seen, hidden):
            assert (seen, hidden) == (1, "x")


def test_plans_show_counts_and_no_internals():
    with Gateway() as gateway:
        plan = gateway.plan([Add(SNAT)])
        assert repr(plan) == f"Plan(changes=({Add(SNAT)!r},), kept=0, drained=0, ended=0, held='')"


def test_the_import_needs_none_of_the_slow_modules():
    """Where numpy does not import them itself. benchmarks/instructions.py counts what an import takes."""
    program = (
        "import numpy, sys; before = set(sys.modules); import natcore\n"
        "print(*sorted(name for name in set(sys.modules) - before if not name.startswith('natcore')))"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    slow = {"dataclasses", "inspect", "pathlib", "urllib.parse", "numpy.typing", "typing_extensions", "json", "asyncio"}
    assert not slow & set(done.stdout.split())


@pytest.mark.parametrize("name", ["Link", "Policy", "Eip", "SnatEntry", "DnatEntry", "NoNatEntry"])
def test_what_checkers_see_of_a_constructor_are_the_fields_and_their_defaults(name):
    """Its types are wider than the fields', which have what was given in one form."""
    tree = ast.parse(Path(config.__file__).read_text())
    [kind] = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
    fields = {node.target.id: node.value for node in kind.body if isinstance(node, ast.AnnAssign)}
    [shown] = [inner for node in kind.body if isinstance(node, ast.If) for inner in node.body]
    arguments = [*shown.args.args[1:], *shown.args.kwonlyargs]
    defaults = [*shown.args.defaults, *shown.args.kw_defaults]
    missing = [None] * (len(arguments) - len(defaults))
    assert [each.arg for each in arguments] == list(fields)
    if name not in ("SnatEntry",):  # its pool has a default only since a field needs one behind it
        given = dict(zip(fields, [*missing, *defaults], strict=True))
        assert {key: node and ast.unparse(node) for key, node in given.items()} == {
            key: node and ast.unparse(node) for key, node in fields.items()
        }
