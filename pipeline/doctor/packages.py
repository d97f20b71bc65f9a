"""What is installed: versions, who provides OpenCV, and whether decoder and OpenCV use the processor's vectors."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from importlib.metadata import packages_distributions, version
from types import ModuleType

from pipeline.doctor.finding import Finding, ok, warning
from pipeline.native import kernel, why_not

_VECTORS = {"x86_64": "AVX2", "AMD64": "AVX2", "aarch64": "NEON", "arm64": "NEON"}
"""By processor: the instructions that make resizing as fast as it was measured to be."""


def check_versions() -> Iterator[Finding]:
    """The versions that decide what a run computes and how fast."""
    from pipeline.training.environment import versions  # not above: it takes torch's two seconds

    yield ok("versions", ", ".join(f"{name} {number}" for name, number in versions().items() if number is not None))


def check_cv2() -> Iterator[Finding]:
    """Who provides `cv2`: of two, the one installed last has overwritten files of the other."""
    providers = sorted(set(packages_distributions().get("cv2", ())))
    named = ", ".join(f"{name} {version(name)}" for name in providers)
    if len(providers) > 1:
        keep = "opencv-python-headless"
        others = " ".join(name for name in providers if name != keep)
        yield warning(
            "cv2",
            f"{named} overwrite each other's files; "
            f"pip uninstall {others}, then pip install --force-reinstall --no-deps {keep}",
        )
    else:
        yield ok("cv2", f"provided by {named or 'no distribution that pip knows'}")


def check_decoders() -> Iterator[Finding]:
    """Which decoder reads the files, and whether it and OpenCV use the processor's vector instructions."""
    import cv2
    import simplejpeg
    from PIL import features

    pillow = f"Pillow {version('pillow')} with libjpeg-turbo {features.version_feature('libjpeg_turbo') or '(none)'}"
    yield ok("decoder", f"simplejpeg {simplejpeg.__version__} (libjpeg-turbo) for plain JPEG, {pillow} for the rest")
    if os.environ.get("JSIMD_FORCENONE") == "1":
        yield warning("SIMD", "JSIMD_FORCENONE keeps libjpeg-turbo from vector instructions; unset JSIMD_FORCENONE")
    yield kernel_finding(kernel, why_not)
    yield simd_finding(cv2.getCPUFeaturesLine(), platform.machine())


def kernel_finding(kernel: ModuleType | None, why_not: str) -> Finding:
    """Whether the native kernel is there; that it is not is no fault."""
    if kernel is None:
        return ok("kernel", f"{why_not}; images are decoded whole for each crop, transforms.resize=auto is fast")
    huffman = "" if kernel.replaces_libjpegs else ", by libjpeg's own Huffman decoder, for this libjpeg is not known"
    return ok(
        "kernel", f"built: of plain JPEGs only what a crop shows is decoded{huffman}; transforms.resize=auto is fused"
    )


def simd_finding(features_line: str, processor: str) -> Finding:
    """Whether OpenCV has the instructions it wants on `processor`.

    In its own list `*` is in front of what it chooses at run time, and `?` behind what this processor lacks.
    """
    words = [word.lstrip("*") for word in features_line.split()]
    there = [word for word in words if not word.endswith("?")]
    wanted = _VECTORS.get(processor)
    if wanted is not None and wanted not in there:
        return warning(
            "SIMD",
            f"OpenCV {wanted} is missing on this {processor}, and resizing slow for it; "
            "install opencv-python-headless from a wheel, or use another machine",
        )
    return ok("SIMD", f"OpenCV uses {' '.join(there) or 'no vector instructions that it names'}")
