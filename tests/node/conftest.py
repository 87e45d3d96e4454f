from __future__ import annotations

import pytest

from gpupack.errors import Unavailable
from gpupack.node import binaries


@pytest.fixture(scope="session")
def programs() -> binaries.Binaries:
    """The control plane's programs: at once if cached, else downloaded or built (minutes)."""
    try:
        return binaries.obtain(binaries.control_plane())
    except Unavailable as problem:
        pytest.skip(str(problem))
