"""Builds the native module with CMake; everything else is declared in pyproject.toml."""

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from setuptools import Extension, find_namespace_packages, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent


class CMakeBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        cuda = os.environ.get("ONP_CUDA", "auto").lower()
        if cuda not in ("on", "off", "auto"):
            raise SystemExit(f"ONP_CUDA={os.environ['ONP_CUDA']} is not a choice: set it to ON, OFF or auto.")
        if cuda == "on" and not (shutil.which("nvcc") or os.environ.get("CUDACXX")):
            raise SystemExit(
                "ONP_CUDA=ON needs the CUDA compiler, and there is no nvcc on PATH: "
                "add it to PATH, point CUDACXX at it, or set ONP_CUDA=auto to build for the CPU."
            )
        import pybind11

        target = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        # A fresh folder every time: a cached one remembers tools of an isolated environment that is gone.
        with tempfile.TemporaryDirectory(prefix="onp-build-") as build:
            configure = [
                *("cmake", "-S", str(ROOT), "-B", build, "-G", "Ninja"),
                "-DCMAKE_BUILD_TYPE=Release",
                f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={target}",
                f"-DPython_EXECUTABLE={sys.executable}",
                f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
                f"-DONP_CUDA={cuda}",
                *shlex.split(os.environ.get("CMAKE_ARGS", "")),
            ]
            try:
                subprocess.run(configure, check=True)
                subprocess.run(["cmake", "--build", build], check=True)
            except FileNotFoundError:
                raise SystemExit("The native module needs cmake, and there is none on PATH.") from None
            except subprocess.CalledProcessError:
                raise SystemExit("CMake could not build onp_native; its own messages above say why.") from None


setup(
    # Namespace packages, because the folders bundle and pretrained hold data and no __init__.py.
    packages=[*find_namespace_packages(include=["onp", "onp.*"], exclude=["*.__pycache__"]), "onp_kernels"],
    package_dir={"onp_kernels": "kernels"},
    package_data={
        "onp_kernels": ["tiles.json"],
        "onp": ["py.typed", "bundle/**/*", "defend/report/templates/*", "pretrained/*", "scan/templates/*"],
    },
    ext_modules=[Extension("onp_native", sources=[])],
    cmdclass={"build_ext": CMakeBuild},
)
