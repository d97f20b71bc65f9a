"""Builds the optional native kernel; everything else about the package is in pyproject.toml."""

from glob import glob

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext


class OptionalKernel(build_ext):
    """Says in one line why the kernel was not built, and goes on without it."""

    def build_extension(self, ext: Extension) -> None:
        """Build it, or say why not."""
        try:
            super().build_extension(ext)
        except Exception as error:  # whatever a compiler, or the lack of one, comes to
            self.warn(f"headrace has no native kernel, images are decoded whole ({type(error).__name__}: {error})")


KERNEL = Extension(
    "pipeline.native._kernel",
    sources=sorted(glob("pipeline/native/*.c")),
    depends=sorted(glob("pipeline/native/*.h")),
    libraries=["jpeg", "m"],
    extra_compile_args=["-O3", "-std=c11", "-Wall", "-Wextra"],
    optional=True,
)

setup(ext_modules=[KERNEL], cmdclass={"build_ext": OptionalKernel})
