"""What is installed: one name, all its parts, every version pinned; and what importing it costs."""

import configparser
import importlib.metadata
import importlib.util
import re
import resource
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")


def listed(section, key):
    return [line for line in SETUP[section][key].splitlines() if line]


def normalized(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def folders():
    """The packages in the checkout, by their installed names."""
    for top in ("eblvm", "models", "recipes", "benchmarks"):
        for init in (ROOT / top).rglob("__init__.py"):
            parts = init.parent.relative_to(ROOT).parts
            yield ".".join(parts if top == "eblvm" else ("eblvm", *parts))


def test_the_listed_packages_are_the_folders():
    assert sorted(listed("options", "packages")) == sorted(folders())


def test_every_folder_with_code_is_a_package():
    for top in ("eblvm", "models", "benchmarks"):
        for file in (ROOT / top).rglob("*.py"):
            assert (file.parent / "__init__.py").is_file(), file


def test_constraints_pin_every_dependency():
    constraints = ROOT / "constraints.txt"
    if not constraints.is_file():
        pytest.skip("constraints.txt is not there yet")
    lines = [line.split("#")[0].strip() for line in constraints.read_text().splitlines()]
    pins = {}
    for line in filter(None, lines):
        assert not line.startswith("-"), "a constraints file names no index and no options"
        name, _, version = line.partition("==")
        assert re.fullmatch(r"[\w.!+]+", version.split(";")[0].strip()), line
        pins[normalized(name)] = version
    wanted = listed("options", "install_requires")
    for extra in SETUP["options.extras_require"]:
        wanted += listed("options.extras_require", extra)
    names = {normalized(re.match(r"[\w.-]+", line)[0]) for line in wanted}
    assert names <= pins.keys(), names - pins.keys()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The names in a wheel that is built from a copy of what git tracks, without network."""
    if (
        importlib.util.find_spec("setuptools") is None
        or int(importlib.metadata.version("setuptools").split(".")[0]) < 77
    ):
        pytest.skip("building needs setuptools >= 77 here: pip install 'setuptools>=77'")
    folder = tmp_path_factory.mktemp("wheel")
    tracked = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True
    )
    if tracked.returncode:
        pytest.skip("not a git checkout")
    source = folder / "source"
    for name in filter(None, tracked.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    build = [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "-q"]
    done = subprocess.run([*build, "-w", folder], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (file,) = folder.glob("*.whl")
    return zipfile.ZipFile(file)


def test_wheel_has_one_name_and_all_of_it(wheel):
    names = wheel.namelist()
    assert {n.split("/")[0] for n in names if ".dist-info" not in n.split("/")[0]} == {"eblvm"}
    expected = {"eblvm/py.typed"}
    for top in ("eblvm", "models", "recipes", "benchmarks"):
        prefix = "" if top == "eblvm" else "eblvm/"
        for file in (ROOT / top).rglob("*"):
            if file.suffix in (".py", ".yaml", ".pt"):
                expected.add(prefix + file.relative_to(ROOT).as_posix())
    assert expected <= set(names), expected - set(names)
    assert sum(name.endswith(".pt") for name in names) >= 3
    text = wheel.read(next(n for n in names if n.endswith("entry_points.txt"))).decode()
    assert "eblvm = eblvm.cli:main" in text


def cpu_seconds(code):
    """CPU seconds of a fresh interpreter that runs `code`."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code], check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_import_is_light():
    light = min(cpu_seconds("import eblvm; dir(eblvm)") for _ in range(2))
    lightning = cpu_seconds("import pytorch_lightning")
    assert light < 0.25 * lightning  # the promise is 1.1; attributes are imported when touched


BOTH = """
import time
import pytorch_lightning
lightning = time.process_time()
import eblvm.models
print(time.process_time() / lightning)
"""


@pytest.mark.slow
def test_importing_all_costs_hardly_more_than_lightning():
    """In one process: ours is Lightning plus a rest. Two processes differ by more than the rest."""
    command = [sys.executable, "-c", BOTH]
    ratios = [float(subprocess.check_output(command, text=True)) for _ in range(3)]
    assert min(ratios) < 1.1, ratios
