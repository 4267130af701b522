"""The folders and what each may use: read from cimport and import lines, so that the layout stays what it says it is."""

from __future__ import annotations

import ast
import re
import tomllib
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CORE = ROOT / "natcore"
PACKAGE = ROOT / "python" / "natcore"

# The core's folders from the ground up: a module uses only its own folder and those before it.
# Above the folders lies the C interface: frame.pxd, which uses nothing, and the shims that re-export.
FOLDERS = ["base", "packet", "log", "tables", "workers", "nat", "io", "api", "testhooks"]
C_INTERFACE = {"frame", "translate"}

# Only the packet's path decides what becomes of a packet; what it stands on does not know the reasons.
KNOWS_NO_VERDICT = {"base", "log", "tables", "workers"}
READS_VERDICTS = {"log/flow_table"}  # it writes down what was decided elsewhere
RAISES = {"io/af_packet", "workers/table_memory"}  # below the api, but called by Python only: they may raise our errors

PYTHON_NAMES = re.compile(r"^(def|cpdef|class|cdef class) ", re.M)
MOST_LINES = 900  # from 450 on a file wants a second look

CORE_FILES = sorted([*CORE.rglob("*.pyx"), *CORE.rglob("*.pxd")])
PYTHON_FILES = sorted([*PACKAGE.rglob("*.py"), *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")])
CIMPORT = re.compile(r"^\s*(?:from\s+natcore\.(?P<module>[\w.]+)\s+cimport|cimport\s+natcore\.(?P<whole>[\w.]+))", re.M)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def module_of(path: Path) -> str:
    """folder/name of a core module."""
    return str(path.relative_to(CORE).with_suffix(""))


def folder_of(path: Path) -> str:
    return module_of(path).rpartition("/")[0]


def modules_used(source: str) -> set[str]:
    """The modules that cimport lines name, as folder/name."""
    return {(match["module"] or match["whole"]).replace(".", "/") for match in CIMPORT.finditer(source)}


@cache
def text_of(path: Path) -> str:
    return path.read_text()


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(text_of(path))


def without_comments(source: str) -> str:
    return re.sub(r"#.*", "", re.sub(r'""".*?"""', "", source, flags=re.S))


def test_a_folder_uses_only_those_above_it() -> None:
    wrong: dict[str, list[str]] = {}
    for path in CORE_FILES:
        if not (folder := folder_of(path)):
            continue
        assert folder in FOLDERS, f"{name_of(path)}: a new folder; say in FOLDERS where it stands"
        may_use = set(FOLDERS[: FOLDERS.index(folder) + 1])
        below = {
            used
            for used in modules_used(text_of(path))
            if used not in C_INTERFACE and used.rpartition("/")[0] not in may_use
        }
        if below:
            wrong[name_of(path)] = sorted(below)
    assert not wrong, f"modules that use what is below them in {FOLDERS}"


def test_no_module_of_a_folder_uses_itself_through_others() -> None:
    """Within a folder too there is no circle."""
    uses: dict[str, set[str]] = {}
    for path in CORE_FILES:
        uses.setdefault(module_of(path), set()).update(modules_used(text_of(path)) - {module_of(path)})
    done: set[str] = set()
    while waiting := {module: used for module, used in uses.items() if module not in done}:
        ready = {module for module, used in waiting.items() if used <= done}
        assert ready, f"a circle among {sorted(waiting)}"
        done |= ready


def test_the_c_interface_is_declarations_only() -> None:
    wrong = [name_of(path) for path in CORE_FILES if not folder_of(path) and path.suffix != ".pxd"]
    assert not wrong, "code belongs into a folder"


def test_state_gives_no_verdicts() -> None:
    """Only the way of a packet says why one is dropped; what it stands on does not know the reasons."""
    wrong = [
        name_of(path)
        for path in CORE_FILES
        if folder_of(path) in KNOWS_NO_VERDICT
        and module_of(path) not in READS_VERDICTS
        and re.search(r"\bDROP_\w+|natcore\.packet\.verdict", without_comments(text_of(path)))
    ]
    assert not wrong


def test_directives_live_in_the_build_only() -> None:
    for path in CORE_FILES:
        source, name = text_of(path), name_of(path)
        assert not re.search(r"^#\s*(cython|distutils)\s*:", source, re.M), (
            f"{name}: compiler directives belong to CMakeLists.txt"
        )
        assert not re.search(r"@cython\.(boundscheck|wraparound|cdivision|initializedcheck)", source), name
        assert not re.search(r"^\s*(DEF|IF|ELIF)\s|^\s*include\s+[\"']", without_comments(source), re.M), (
            f"{name}: no DEF, IF, include"
        )


def test_no_python_of_ours_below_the_api() -> None:
    """Knowledge goes upwards only: below the api no module imports our Python modules, but for its errors."""
    wrong = [
        name_of(path)
        for path in CORE_FILES
        if folder_of(path) not in ("api", "testhooks")
        and module_of(path) not in RAISES
        and re.search(r"^\s*(from|import)\s+natcore(\.[\w.]+)?\s+import|^\s*import\s+natcore", text_of(path), re.M)
    ]
    assert not wrong


def test_a_file_says_what_it_is_in_one_line() -> None:
    firsts = {name_of(path): text_of(path).lstrip().split("\n", 1)[0] for path in [*CORE_FILES, *PYTHON_FILES]}
    assert not {name: line for name, line in firsts.items() if not line.startswith(('"""', "# ")) or len(line) > 130}


def test_no_file_is_too_long_to_read() -> None:
    """Docstrings in numpydoc sections are the reference's pages, and do not count."""
    lines = {
        name_of(path): len(re.sub(r'^ +""".*?"""$', "", text_of(path), flags=re.S | re.M).splitlines())
        for path in [*CORE_FILES, *PYTHON_FILES]
    }
    assert not {name: count for name, count in lines.items() if count > MOST_LINES}, "split them along the design"


def test_the_core_is_no_package_of_its_own() -> None:
    """Without __init__.py the folder of sources does not shadow the installed package."""
    assert not list(CORE.rglob("__init__.py"))


def test_no_folder_is_in_the_core_and_in_the_package() -> None:
    """A folder's name says on which side of the boundary a module lies."""
    assert not {path.parent.name for path in PACKAGE.rglob("__init__.py")} & set(FOLDERS)


def test_every_module_is_built() -> None:
    cmake = (ROOT / "CMakeLists.txt").read_text()
    match = re.search(r"set\(NATCORE_MODULES\s([^)]*)\)", cmake)
    assert match is not None
    product = set(match[1].split())
    modules = {module_of(path) for path in CORE.rglob("*.pyx")}
    assert {module for module in modules if not module.startswith("testhooks/")} == product


def test_cython_lists_whatever_a_module_uses() -> None:
    """The build compiles a module anew when a file of that list changes, and no other module."""
    pytest.importorskip("Cython", reason="Cython is not installed")
    from Cython.Build.Dependencies import DependencyTree
    from Cython.Compiler.Main import Context
    from Cython.Compiler.Options import CompilationOptions

    tree = DependencyTree(Context.from_options(CompilationOptions(include_path=[str(ROOT)])), quiet=True)
    for path in CORE.rglob("*.pyx"):
        used: set[Path] = set()
        waiting = {path, path.with_suffix(".pxd")}
        while waiting:
            one = waiting.pop()
            if one.exists() and one not in used:
                used.add(one)
                waiting |= {CORE / f"{module}.pxd" for module in modules_used(one.read_text())}
        listed = {Path(name).resolve() for name in tree.all_dependencies(str(path))}
        assert used <= listed, f"{name_of(path)}: {sorted(map(name_of, used - listed))} not listed"


def test_what_only_tests_use_is_in_no_wheel() -> None:
    """The modules of testhooks are built with NATCORE_TESTING, which is off; their stubs are left out."""
    cmake = (ROOT / "CMakeLists.txt").read_text()
    assert re.search(r'option\(NATCORE_TESTING "[^"]*" OFF\)', cmake)
    block = re.search(r"if\(NATCORE_TESTING\)\s*list\(APPEND NATCORE_MODULES\s([^)]*)\)", cmake)
    assert block is not None
    assert set(block[1].split()) == {module_of(path) for path in (CORE / "testhooks").glob("*.pyx")}
    configuration = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]
    assert "natcore/testhooks/*.pyi" in configuration["scikit-build"]["wheel"]["exclude"]
    assert "NATCORE_TESTING" not in str(configuration)


def test_every_module_that_python_sees_has_a_stub() -> None:
    """Besides the test hooks: no code that is checked for types goes through them."""
    modules = [path for path in CORE.rglob("*.pyx") if module_of(path) != "testhooks/wrappers"]
    shown = [module_of(path) for path in modules if PYTHON_NAMES.search(path.read_text())]
    missing = [module for module in shown if not (PACKAGE / f"{module}.pyi").exists()]
    assert not missing, f"no stub beside the modules: {missing}"


def test_the_public_init_only_names() -> None:
    """natcore/__init__.py holds the public names, nothing else; some are imported late."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    wanted = (ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign, ast.Expr)
    late = [node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"]
    nodes = [*tree.body, *(inner for node in late for inner in node.body)]
    assert [type(node).__name__ for node in nodes if not isinstance(node, wanted) and node not in late] == []


def test_no_folder_reaches_into_anothers_privates() -> None:
    """A name with a leading underscore is imported by modules of its own folder only."""
    folders = sorted(path for path in PACKAGE.iterdir() if (path / "__init__.py").exists())
    for path in (module for folder in folders for module in folder.rglob("*.py")):
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("natcore."):
                other = (node.module or "").split(".")[1]
                private = [alias.name for alias in node.names if alias.name.startswith("_")]
                own = path.relative_to(PACKAGE).parts[0]
                assert other == own or not private, f"{name_of(path)} imports {private} of natcore.{other}"


# What reaches a private attribute of another class's object: one function, which the package's own modules use.
REACHES = {"internal/parts.py": {"gateway._parts"}, "service/succession.py": {"os._exit"}}
OF_NAMED_TUPLES = {"_asdict", "_fields", "_make", "_replace"}  # public, by the standard library's naming


def privates_reached(module: ast.Module) -> list[str]:
    """`obj._name` of each object that is neither self nor cls, nor of the enclosing class, which knows its own names."""
    found: list[str] = []

    def own_names(node: ast.ClassDef) -> set[str]:
        slots = [
            each.value for each in ast.walk(node) if isinstance(each, ast.Constant) and isinstance(each.value, str)
        ]
        attributes = [each.attr for each in ast.walk(node) if isinstance(each, ast.Attribute) and is_self(each.value)]
        return {*slots, *attributes, *(each.name for each in node.body if isinstance(each, ast.FunctionDef))}

    def is_self(value: ast.expr) -> bool:
        return isinstance(value, ast.Name) and value.id in ("self", "cls")

    def look(node: ast.AST, own: set[str]) -> None:
        if isinstance(node, ast.ClassDef):
            own = own_names(node)
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            inherited = isinstance(node.value, ast.Call) and ast.unparse(node.value.func) == "super"
            if not (is_self(node.value) or inherited or node.attr in own | OF_NAMED_TUPLES):
                found.append(ast.unparse(node))
        for child in ast.iter_child_nodes(node):
            look(child, own)

    look(module, set())
    return found


def test_no_class_reaches_into_anothers_privates() -> None:
    """What parts need of each other is handed over as an interface: Parts, PlaneCalls, Intake, Listener."""
    reached = {str(path.relative_to(PACKAGE)): set(privates_reached(tree_of(path))) for path in PACKAGE.rglob("*.py")}
    assert {name: names for name, names in reached.items() if names} == REACHES


def test_a_private_attribute_of_another_object_is_found() -> None:
    source = """
class One:
    __slots__ = ("_slot",)
    def same(self, other):
        return self._a == other._a and other._slot and super()._b and named._replace(x=1) and Two._private
def outside(one):
    return one._a
"""
    assert privates_reached(ast.parse(source)) == ["Two._private", "one._a"]
