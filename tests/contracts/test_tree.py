"""What must hold of the source tree itself."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_source_root_is_no_package_or_pythons_own_operator_breaks() -> None:
    assert not (ROOT / "operator" / "__init__.py").exists()


def test_the_lock_file_pins_versions_and_hashes_and_names_no_address() -> None:
    lock = (ROOT / "requirements" / "dev.txt").read_text()
    requirements = re.findall(r"^([a-zA-Z0-9._-]+)(==\S+)?", lock, flags=re.MULTILINE)
    assert requirements
    assert [name for name, pin in requirements if not pin] == []
    assert "--hash=sha256:" in lock
    assert "://" not in lock
    assert "index-url" not in lock


def test_the_core_install_pulls_neither_vllm_nor_torch() -> None:
    lock = (ROOT / "requirements" / "dev.txt").read_text()
    assert not re.search(r"^(vllm|torch)==", lock, flags=re.MULTILINE)


def test_no_large_file_is_tracked() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode != 0:
        return  # an unpacked source archive has no index to look at
    tracked = (ROOT / name for name in listed.stdout.split("\0") if name)
    assert [path.name for path in tracked if path.is_file() and path.stat().st_size > 1_500_000] == []
