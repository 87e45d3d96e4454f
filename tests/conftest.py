"""What every test may use: golden files, compared or, with `--regenerate`, written anew; and draws that repeat."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest

GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--regenerate", action="store_true", help="write golden files anew instead of comparing")


def pytest_configure(config: pytest.Config) -> None:
    """Hypothesis draws the same examples at every run and watches no clock, so that no run fails by chance or because
    its machine is slow. Whoever looks for new failures says which draws to try: `--hypothesis-seed=N`."""
    if config.getoption("--hypothesis-profile"):
        return
    hypothesis.settings.register_profile(
        "gpupack", deadline=None, database=None, derandomize=config.getoption("--hypothesis-seed") is None,
        suppress_health_check=[hypothesis.HealthCheck.too_slow],
    )  # fmt: skip
    hypothesis.settings.load_profile("gpupack")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """`-m written` are all tests that compare with what they can write."""
    for item in items:
        if "regenerating" in getattr(item, "fixturenames", ()):
            item.add_marker("written")


@pytest.fixture
def regenerating(request: pytest.FixtureRequest) -> bool:
    """Whether files are to be written anew. Whoever writes some asks here, so that `make verify` finds it."""
    return bool(request.config.getoption("--regenerate"))


@pytest.fixture
def golden(regenerating: bool) -> Callable[[str, str], None]:
    """`golden("explain/packed.txt", text)`: the text is the product and must be what the file holds."""

    def compare(name: str, text: str) -> None:
        path = GOLDEN / name
        if regenerating:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        assert path.exists(), f"{path} does not exist; write it with: pytest --regenerate"
        assert text == path.read_text(), f"{path} differs; if the new text is right: pytest --regenerate"

    return compare
