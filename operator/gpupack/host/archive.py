"""The supervisor as one file that any Python 3.11 runs: `python3 -I -S gpupack-host.pyz`.

The init container writes it from the operator's image into a volume that the engine's container mounts. Equal sources
give an equal file.
"""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import gpupack

NAME = "gpupack-host.pyz"
_MAIN = "import sys\n\nfrom gpupack.host.run import main\n\nsys.exit(main())\n"
_LONG_AGO = (1980, 1, 1, 0, 0, 0)


def write(directory: Path) -> Path:
    """Where it was written. Raises OSError."""
    package = Path(gpupack.__file__).parent
    sources = {f"gpupack/host/{each.name}": each.read_text("utf-8") for each in sorted((package / "host").glob("*.py"))}
    files = {"__main__.py": _MAIN, "gpupack/__init__.py": (package / "__init__.py").read_text("utf-8"), **sources}
    partial = directory / f".{NAME}"
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            archive.writestr(zipfile.ZipInfo(name, _LONG_AGO), text)
    partial.chmod(0o644)
    os.replace(partial, directory / NAME)
    return directory / NAME
