"""The C++ kernels of the package; everything else about it stands in pyproject.toml.

Sources and headers are found by rule, so that a new file is compiled, triggers a rebuild when it
changes, and is part of the source distribution. They are compiled on all cores.
"""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

KERNELS = Path("sounding", "ops", "cpu")


def files(pattern: str) -> list[str]:
    return sorted(path.as_posix() for path in KERNELS.rglob(pattern))


class ParallelBuild(build_ext):
    """Compiles the files of an extension side by side; setuptools takes one after the other."""

    def build_extension(self, ext: Extension) -> None:
        compile_serially = self.compiler.compile

        def compile_side_by_side(sources: list[str], *args: object, **kwargs: object) -> list[str]:
            def compile_one(source: str) -> list[str]:
                return compile_serially([source], *args, **kwargs)

            with ThreadPoolExecutor(os.cpu_count()) as pool:
                return [name for names in pool.map(compile_one, sources) for name in names]

        self.compiler.compile = compile_side_by_side
        super().build_extension(ext)


setup(
    cmdclass={"build_ext": ParallelBuild},
    ext_modules=[
        # Plain C functions, no Python or torch headers. Without a compiler the package installs all
        # the same (optional) and runs on the reference.
        Extension(
            "sounding.ops.cpu.kernels",
            sources=files("*.cpp"),
            depends=files("*.h"),
            language="c++",
            extra_compile_args=[
                "-O3",
                "-std=c++17",
                "-Wall",
                "-Wextra",
                "-Wno-psabi",
                "-ffp-contract=fast",
            ],
            extra_link_args=["-pthread"],
            optional=True,
        )
    ],
)
