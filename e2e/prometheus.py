"""A real Prometheus beside the cluster, for journeys that ask it or let the operator ask it."""

from __future__ import annotations

import contextlib
import shutil
import ssl
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from gpupack.demo.stage import wait_for
from gpupack.node.controlplane import free_ports
from gpupack.node.keeper import Keeper

STARTING_SECONDS = 20.0


class Prometheus:
    """A real one at `url`, asked over its API."""

    def __init__(self, url: str, trust: ssl.SSLContext | None = None) -> None:
        self.url = url
        self._client = httpx.Client(
            base_url=f"{url}/api/v1", trust_env=False, timeout=10.0, verify=True if trust is None else trust
        )

    def answers(self) -> bool:
        try:
            return self._client.get("/status/buildinfo").is_success
        except httpx.TransportError:
            return False

    def series(self, expression: str) -> list[tuple[dict[str, str], float]]:
        """Labels and value of each; an expression that Prometheus does not understand fails."""
        answer = self._client.get("/query", params={"query": expression})
        assert answer.is_success, f"{expression}: {answer.text}"
        return [(each["metric"], float(each["value"][1])) for each in answer.json()["data"]["result"]]

    def close(self) -> None:
        self._client.close()


def found(program: str) -> str:
    path = shutil.which(program)
    if path is None:
        pytest.skip(f"{program} is not installed: apt-get install prometheus")
    return path


@contextlib.contextmanager
def prometheus(
    folder: Path, scraped: Sequence[Mapping[str, Any]], certificate: Path | None = None
) -> Iterator[Prometheus]:
    """Runs with these scrape configs, every second; over TLS with a certificate, a .crt that has its .key beside it."""
    program = found("prometheus")
    (folder / "prometheus.yml").write_text(
        yaml.safe_dump({"global": {"scrape_interval": "1s"}, "scrape_configs": list(scraped)})
    )
    (port,) = free_ports(1)
    command = [
        program, f"--config.file={folder / 'prometheus.yml'}", f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]  # fmt: skip
    trust = None
    if certificate is not None:
        tls = {"cert_file": str(certificate), "key_file": str(certificate.with_suffix(".key"))}
        (folder / "web.yml").write_text(yaml.safe_dump({"tls_server_config": tls}))
        command.append(f"--web.config.file={folder / 'web.yml'}")
        trust = ssl.create_default_context(cafile=str(certificate))
    logs = folder / "logs"
    logs.mkdir()
    with Keeper(logs) as keeper:
        keeper.start("prometheus", command)
        asked = Prometheus(f"http{'' if trust is None else 's'}://127.0.0.1:{port}", trust)
        try:
            wait_for(asked.answers, STARTING_SECONDS, f"Prometheus answers: {keeper.log('prometheus')}")
            yield asked
        finally:
            asked.close()
            keeper.stop("prometheus")
