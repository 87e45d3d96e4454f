"""The image, made by its Dockerfile's own steps on the distribution's packages: small, nobody's root, and it works."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from gpupack.demo.stage import ACCOUNT, OPERATOR
from gpupack.node.binaries import cache_home
from gpupack.node.controlplane import ControlPlane

from .image import CHROOT, Refused, Stage, base_root, build, run_in, size_bytes
from .journey import Journey, manual

ROOT = Path(__file__).parents[1]
MOST_BYTES = 150 * 10**6


@pytest.fixture(scope="module")
def base() -> Path:
    if os.geteuid() != 0:
        pytest.skip("root folders are made and entered by root alone; run it as root, or in a container")
    if shutil.which("debootstrap") is None:
        pytest.skip("debootstrap is not installed: apt-get install debootstrap")
    return base_root(cache_home(os.environ) / "gpupack" / "image")


@pytest.fixture(scope="module")
def image(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    workshop = tmp_path_factory.mktemp("image")
    yield build(ROOT / "deploy" / "Dockerfile", ROOT, base, workshop)
    shutil.rmtree(workshop)


def test_the_image_adds_little_to_its_base_and_holds_no_engine(base: Path, image: Stage) -> None:
    assert size_bytes(image.root) - size_bytes(base) < MOST_BYTES
    packages = {path.name for path in (image.root / "opt" / "gpupack").glob("lib/python3*/site-packages/*")}
    assert "gpupack" in packages
    assert not packages & {"vllm", "torch", "pip"}
    assert not (image.root / "usr" / "bin" / "gcc").exists()


def test_it_runs_as_nobody_and_knows_its_command(image: Stage) -> None:
    assert image.user == "65532:65532"
    assert run_in(image, [*image.entrypoint, "--version"], env={}).startswith("gpupack ")
    assert image.command == ["operator"]


def test_a_step_that_fails_or_is_not_known_is_refused(base: Path, tmp_path: Path) -> None:
    dockerfile = tmp_path / "Dockerfile"
    dockerfile.write_text("FROM debian:bookworm-slim\nRUN echo so far \\\n  && false\n")
    with pytest.raises(Refused, match="ended with 1"):
        build(dockerfile, ROOT, base, tmp_path / "failing")
    dockerfile.write_text("FROM debian:bookworm-slim\nHEALTHCHECK NONE\n")
    with pytest.raises(Refused, match="HEALTHCHECK"):
        build(dockerfile, ROOT, base, tmp_path / "unknown")


def as_the_deployment_runs_it(image: Stage, cluster: ControlPlane) -> list[str]:
    """Its user, its account's files and variables, and a root file system that cannot be written."""
    root, url = image.root, httpx.URL(cluster.url)
    account = root / "run" / "secrets" / "kubernetes.io" / "serviceaccount"  # /var/run is a link to /run, absolute
    account.mkdir(parents=True)
    namespace, name = ACCOUNT.split(":")[2:]
    (account / "token").write_text(cluster.kubectl("create", "token", name, "--namespace", namespace).strip())
    (account / "ca.crt").write_bytes(cluster.certificate_authority.read_bytes())
    environ = {**image.environ, "KUBERNETES_SERVICE_HOST": url.host, "KUBERNETES_SERVICE_PORT": str(url.port)}
    enter = 'mount --bind "$0" "$0" && mount -o remount,bind,ro "$0" && exec "$@"'
    return [
        "unshare", "--mount", "--propagation", "private", "sh", "-c", enter, str(root), CHROOT,
        f"--userspec={image.user}", str(root), "/usr/bin/env", "-i",
        *(f"{name}={value}" for name, value in environ.items()), *image.entrypoint,
    ]  # fmt: skip


def test_the_operator_of_the_image_serves_a_model_from_a_root_that_nobody_can_write(
    image: Stage, journey: Journey
) -> None:
    stage = journey.stage
    stage.stop_operator()
    stage.start_operator(program=as_the_deployment_runs_it(image, stage.cluster))
    try:
        journey.apply(manual("chat", 2))
        journey.until_ready("chat", 2)
        code = stage.stop_operator()
    finally:
        stage.start_operator()
    assert code == 0, stage.log(OPERATOR)
    journey.edit("chat", replicas=1)
    journey.until_ready("chat", 1)
