import os
import re
import subprocess
import sys
import sysconfig
from importlib import metadata
from pathlib import Path

import pytest

import onp_native

ROOT = Path(__file__).resolve().parent.parent
IMPORTS = "import onp_native, onp_kernels.reference_graph, onp.search.message_passing.ops; print(onp_native.__file__)"


@pytest.fixture
def installed() -> metadata.Distribution:
    """What pip installed; a plain look-up in the checkout would find what a build left there."""
    path = [sysconfig.get_path("platlib"), sysconfig.get_path("purelib")]
    return next(iter(metadata.distributions(name="onp-defense", path=path)))


def run(*command: str, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess:
    return subprocess.run(command, cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("folder", ["checkout", "elsewhere"])
def test_the_three_names_import(folder: str, tmp_path: Path):
    """In the checkout ./onp comes first on the path, and must still find the compiled module."""
    done = run(sys.executable, "-W", "error", "-c", IMPORTS, cwd=ROOT if folder == "checkout" else tmp_path)
    assert done.returncode == 0, done.stderr
    assert "onp_native" in done.stdout


def test_module_says_whether_it_has_cuda():
    assert isinstance(onp_native.with_cuda, bool)


def test_module_needs_neither_torch_nor_a_cuda_library():
    """Built once for every torch version, and imported where there is no driver."""
    binary = Path(onp_native.__file__).read_bytes()
    for library in (b"libtorch", b"libc10", b"libcudart.so"):
        assert library not in binary


def test_torch_is_no_build_requirement():
    text = (ROOT / "pyproject.toml").read_text()
    requires = re.search(r"^requires = \[(.*)\]$", text, re.MULTILINE)
    assert requires and "pybind11" in requires[1] and "torch" not in requires[1]


def test_the_installed_distribution_is_complete(installed: metadata.Distribution):
    files = {str(file) for file in installed.files or []}
    if not any(file.startswith("onp/") for file in files):
        pytest.skip("installed as editable: the package is the checkout itself")
    data = (path for pattern in ("bundle/**/*", "pretrained/*") for path in ROOT.glob(f"onp/{pattern}") if path.is_file())
    sources = [*ROOT.glob("onp/**/*.py"), *data]
    wanted = {path.relative_to(ROOT).as_posix() for path in sources}
    wanted |= {f"onp_kernels/{path.name}" for path in ROOT.glob("kernels/*.*")}
    assert wanted <= files, f"run `pip install .` again: without {sorted(wanted - files)}"
    assert not any(file.startswith(("tests/", "bench/", "kernels/")) for file in files)


def test_no_runtime_requirement_beyond_the_declared(installed: metadata.Distribution):
    always = [line for line in installed.requires or [] if "extra ==" not in line]
    names = {re.split(r"[^a-z0-9-]", line.lower())[0] for line in always}
    toml = {"tomli", "tomli-w"}  # to read options and write them; Python has the first from 3.11 on
    assert names == {"gymnasium", "jinja2", "numpy", "pillow", "rich", "safetensors", "scipy", "torch"} | toml


def test_what_the_tests_and_the_extras_install_is_pinned():
    """Among them torchvision beside timm, which would otherwise take one that does not go with the installed torch."""
    text = (ROOT / "pyproject.toml").read_text()
    extras = re.search(r"^\[project.optional-dependencies\]\n(.*?)\n\n", text, re.MULTILINE | re.DOTALL)[1]
    lines = {line.split(" = ")[0]: line for line in re.sub(r",\n +", ", ", extras).splitlines() if " = " in line}
    assert "torchvision" in lines["timm"]
    wanted = {re.split(r"[^a-z0-9-]", name)[0] for line in lines.values() for name in re.findall(r'"([a-z][^"]*)"', line)}
    pinned = set(re.findall(r"^([a-z0-9-]+)(?:==|<)", (ROOT / "constraints.txt").read_text(), re.MULTILINE))
    compiled_by_the_user = {"torch-scatter", "torch-sparse"}
    assert wanted - pinned - compiled_by_the_user <= {"tensorboard"}


@pytest.mark.parametrize(
    ("choice", "sentence"),
    [("ON", r"ONP_CUDA=ON needs .* no nvcc on PATH"), ("sometimes", "set it to ON, OFF or auto")],
)
def test_an_impossible_cuda_choice_is_one_sentence(choice: str, sentence: str, tmp_path: Path):
    build = ("build_ext", "--build-lib", str(tmp_path / "lib"), "--build-temp", str(tmp_path / "temp"))
    done = run(sys.executable, "setup.py", "-q", *build, ONP_CUDA=choice, PATH="", CUDACXX="")
    assert done.returncode == 1
    assert re.search(sentence, done.stderr.strip().splitlines()[-1])
    assert "Traceback" not in done.stderr
