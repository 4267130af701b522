"""The base needs numpy alone; what else a use needs belongs to an extra, and a missing one is an error that names it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]

BLOCK = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocked())
"""
PACKAGES = {
    "pyroute2", "pyarrow", "duckdb", "typer", "rich", "msgspec", "aliyun", "lz4", "google", "requests", "urllib3",
    "confluent_kafka", "matplotlib", "prometheus_client", "hypothesis", "pytest", "scapy", "starlette", "uvicorn",
    "jinja2", "markupsafe",
}  # fmt: skip

GATEWAY = """
from natcore import Gateway, Side, SnatEntry
gateway = Gateway(instance="ngw-1", vpc_id="vpc-1")
gateway.add(SnatEntry("10.0.0.0/16", pool="203.0.113.1"))
"""
FRAME = "02000000000102000000000208004500001c00000000401146920a000005c633640714e900350008b680"
CORE = f"""
import sys, tempfile
from natcore.sinks import ClickHouseSink, IpfixSink, JsonLinesSink, MemorySink, SyslogSink
memory, folder = MemorySink(), tempfile.mkdtemp()
gateway.start_session_log(memory, name="memory", spool=folder + "/spool")
gateway.start_session_log(JsonLinesSink(folder + "/rows"), name="lines")
verdict, translated = gateway.translate_one(bytes.fromhex("{FRAME}"), Side.INSIDE, now=0.0)
assert verdict.name == "OUTBOUND", verdict
assert str(gateway.explain(bytes.fromhex("{FRAME}"), Side.INSIDE))
gateway.close()
assert memory.records["kind"].tolist().count(0) == 1
print(sorted({{name.partition(".")[0] for name in sys.modules}} & {PACKAGES}))
"""
# A use, and the extra that its error names.
USES = {
    'gateway.forward(inside="lo", outside="lo2")': "plane",
    'from natcore.sinks import ParquetSink; ParquetSink("rows")': "parquet",
    "from natcore.who.query import who": "query",
    "from natcore.cli.main import app": "cli",
    "from natcore.service.configuration_file import load": "cli",
    'from natcore.sinks import SlsSink; SlsSink("https://cn-hangzhou.log.aliyuncs.com", "p", "l", access_key_id="i", '
    'access_key_secret="s")': "sls",
    'from natcore.sinks import KafkaSink; KafkaSink("localhost:9092", "t")': "kafka",
    "from natcore.testing import SlsServer": "testing",
    "import natcore.metrics": "metrics",
    "import natcore.console.words": "console",
}


def run(script: str, folder: Path, blocked: set[str] = PACKAGES) -> subprocess.CompletedProcess[str]:
    """A program in a Python where blocked packages are not installed."""
    program = BLOCK.format(blocked=blocked) + script
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", program], cwd=folder, capture_output=True, text=True, check=False
    )


def test_the_base_depends_on_numpy_alone() -> None:
    assert [re.split(r"[><=]", each)[0] for each in PROJECT["dependencies"]] == ["numpy"]


def test_all_is_every_extra() -> None:
    [everything] = EXTRAS["all"]
    assert set(everything.removeprefix("natcore[").removesuffix("]").split(",")) == EXTRAS.keys() - {"all"}


def test_translation_and_the_log_run_without_any_extra(tmp_path: Path) -> None:
    done = run(GATEWAY + CORE, tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n"


@pytest.fixture(scope="module")
def refused(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What each use says where it is refused, in one interpreter without any extra."""
    script = f"""{GATEWAY}
import json
from natcore import Error
def refusal(use):
    try:
        exec(use, {{"gateway": gateway}})
    except Error as error:
        return f"{{type(error).__name__}} {{error}}"
    return "nothing was refused"
print(json.dumps({{use: refusal(use) for use in {list(USES)}}}))
"""
    done = run(script, tmp_path_factory.mktemp("extras"))
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.mark.parametrize("use", USES, ids=USES.values())
def test_a_missing_extra_is_named_where_it_is_needed(refused: dict[str, str], use: str) -> None:
    found = re.fullmatch(r"MissingExtraError (\w+) is not installed: pip install 'natcore\[(\w+)\]'", refused[use])
    assert found is not None, refused[use]
    assert found[2] == USES[use] and found[1] in PACKAGES


def test_a_picture_names_its_extra(tmp_path: Path) -> None:
    script = "from natcore.who import plots\ntry: plots.check_picture('a.png')\nexcept Exception as error: print(error)"
    assert run(script, tmp_path, {"matplotlib"}).stdout == "matplotlib is not installed: pip install 'natcore[plot]'\n"


def test_the_command_names_its_extra_in_one_line(tmp_path: Path) -> None:
    done = run("from natcore.cli import run_program\nrun_program()", tmp_path)
    assert (done.returncode, done.stderr) == (78, "error: typer is not installed: pip install 'natcore[cli]'\n")


def test_a_file_needs_the_libraries_of_its_own_sinks_alone(tmp_path: Path) -> None:
    """`natcore check` of a file with a sink without a library works where no sink's library is installed."""
    (tmp_path / "gateway.toml").write_text('[gateway]\n[[log]]\nsink = "clickhouse"\nurl = "http://127.0.0.1:8123"\n')
    script = "from natcore.service.configuration_file import load\nprint(load('gateway.toml').logs[0].make_sink())"
    done = run(script, tmp_path, PACKAGES - {"typer", "rich", "msgspec"})
    assert done.stdout == "<ClickHouseSink http://127.0.0.1:8123 default.session_log>\n", done.stderr


def test_every_extra_is_tried() -> None:
    assert {*USES.values(), "plot"} == EXTRAS.keys() - {"all"}
