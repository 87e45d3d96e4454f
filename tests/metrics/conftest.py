"""Texts as the exporters print them, cut to what matters: vLLM's V1 engine, dcgm-exporter before and after 4.9."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def vllm_page() -> bytes:
    return _page("vllm-0.33.txt")


@pytest.fixture
def dcgm_before() -> bytes:
    """Framebuffer in MiB, every row once per pod that shares the GPU, a MIG row, and a blank that was let through."""
    return _page("dcgm-exporter-4.8.txt")


@pytest.fixture
def dcgm_after() -> bytes:
    """Framebuffer in bytes, other names, another case of `hostname`."""
    return _page("dcgm-exporter-4.9.txt")


def _page(name: str) -> bytes:
    return (Path(__file__).parent / "pages" / name).read_bytes()
