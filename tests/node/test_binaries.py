"""Where the real programs come from: the order of the sources, the digests, the cache."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from gpupack.errors import Invalid, Unavailable
from gpupack.node import binaries
from gpupack.node.binaries import Binaries, Platform

SCRIPT = b"#!/bin/sh\necho released\n"
HERE = binaries.this_platform()
needs_go = pytest.mark.skipif(shutil.which("go") is None, reason="Go is not installed")

GO_MOD = """module example.test/tools

go 1.21

require example.test/plain/v2 v2.3.4

require (
	example.test/packed v0.5.0
)

replace example.test/plain/v2 => ./modules/plain
replace example.test/packed => ./modules/packed
"""
PROGRAMS = """
[[program]]
name = "plain"
module = "example.test/plain/v2"
package = "./plain"
variables = { "main.version" = "{version},{major}.{minor}" }
url = "https://releases.example.test/plain/{version}/{os}/{arch}/plain"
checksums = "https://releases.example.test/plain/{version}/{os}/{arch}/plain.sha256"

[[program]]
name = "packed"
module = "example.test/packed"
package = "./packed"
url = "https://releases.example.test/packed-{version}-{os}-{arch}.tar.gz"
checksums = "https://releases.example.test/packed/SHA256SUMS"
"""
MAIN_GO = 'package main\n\nvar version = "unset"\n\nfunc main() { println("built", version) }\n'
PLAIN = f"/plain/v2.3.4/{HERE.os}/{HERE.arch}/plain"
PACKED = f"/packed-v0.5.0-{HERE.os}-{HERE.arch}.tar.gz"


def packed(script: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        member = tarfile.TarInfo("packed-v0.5.0/packed")
        member.size = len(script)
        tar.addfile(member, io.BytesIO(script))
    return file.getvalue()


class Releases:
    """A release server on loopback: what it has, and what it was asked for."""

    def __init__(self) -> None:
        self.files = {PLAIN: SCRIPT, PACKED: packed(SCRIPT)}
        self.asked: list[str] = []
        releases = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                releases.asked.append(self.path)
                content = releases.files.get(self.path)
                self.send_response(404 if content is None else 200)
                self.end_headers()
                self.wfile.write(content or b"")

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def releases() -> Iterator[Releases]:
    releases = Releases()
    thread = threading.Thread(target=releases.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield releases
    releases.server.shutdown()
    releases.server.server_close()
    thread.join()


class Bench:
    """A module folder with two programs, an empty cache, and an environment without Go."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "module"
        self.folder.mkdir()
        (self.folder / "go.mod").write_text(GO_MOD)
        (self.folder / "programs.toml").write_text(PROGRAMS)
        self.environ = {"HOME": str(folder), "XDG_CACHE_HOME": str(folder / "cache"), "PATH": str(folder / "no-such")}
        self.said: list[str] = []
        self.pin({})

    def pin(self, contents: dict[str, bytes]) -> None:
        lines = (
            f"{hashlib.sha256(data).hexdigest()}  https://releases.example.test{path}\n"
            for path, data in contents.items()
        )
        (self.folder / "SHA256SUMS").write_text("# a comment\n" + "".join(lines))

    @property
    def wanted(self) -> binaries.ModuleFolder:
        return binaries.read_module_folder(self.folder, "tools")

    @property
    def cache(self) -> Path:
        return self.wanted.cache(HERE, self.environ)

    def obtain(self) -> Binaries:
        return binaries.obtain(self.wanted, environ=self.environ, progress=self.said.append, connect_seconds=0.2)

    def with_go(self) -> None:
        """A Go, and two small programs that it can build offline."""
        go = shutil.which("go")
        assert go is not None
        self.environ["GOCACHE"] = subprocess.check_output([go, "env", "GOCACHE"], text=True).strip()
        self.environ["PATH"] = os.pathsep.join((str(Path(go).parent), os.environ["PATH"]))
        for name, module in (("plain", "example.test/plain/v2"), ("packed", "example.test/packed")):
            (self.folder / name).mkdir()
            (self.folder / name / "main.go").write_text(MAIN_GO)
            (self.folder / "modules" / name).mkdir(parents=True)
            (self.folder / "modules" / name / "go.mod").write_text(f"module {module}\n\ngo 1.21\n")


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def put(folder: Path, *names: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(SCRIPT)
        (folder / name).chmod(0o755)


def run(program: Path) -> str:
    done = subprocess.run([program], capture_output=True, text=True, check=True)
    return (done.stdout or done.stderr).strip()


def test_a_full_cache_answers_at_once_and_asks_nobody(bench: Bench) -> None:
    put(bench.cache, "plain", "packed")
    got = bench.obtain()
    assert (got["plain"], got["packed"]) == (bench.cache / "plain", bench.cache / "packed")
    assert bench.said == []


def test_kubebuilder_assets_come_first_and_the_cache_fills_the_gaps(bench: Bench, tmp_path: Path) -> None:
    put(bench.cache, "plain", "packed")
    put(tmp_path / "assets", "plain")
    bench.environ["KUBEBUILDER_ASSETS"] = str(tmp_path / "assets")
    got = bench.obtain()
    assert (got["plain"], got["packed"]) == (tmp_path / "assets" / "plain", bench.cache / "packed")


def test_kubebuilder_assets_that_are_no_folder_are_the_users_mistake(bench: Bench) -> None:
    bench.environ["KUBEBUILDER_ASSETS"] = "/no/such/folder"
    with pytest.raises(Invalid, match="KUBEBUILDER_ASSETS"):
        bench.obtain()


def test_the_cache_is_named_by_versions_and_platform(bench: Bench, tmp_path: Path) -> None:
    wanted = bench.wanted
    folder = wanted.cache(Platform(os="linux", arch="arm64"), bench.environ)
    assert folder == tmp_path / "cache" / "gpupack" / "tools" / "plain-v2.3.4-packed-v0.5.0-linux-arm64"


def test_pinned_releases_are_downloaded_checked_and_kept(bench: Bench, releases: Releases) -> None:
    bench.pin(releases.files)
    bench.environ["GPUPACK_RELEASE_MIRROR"] = releases.url
    got = bench.obtain()
    assert (run(got["plain"]), run(got["packed"])) == ("released", "released")
    assert sorted(path.name for path in bench.cache.iterdir()) == ["packed", "plain"]
    bench.obtain()
    assert sorted(releases.asked) == sorted([PLAIN, PACKED])


def test_a_release_with_another_digest_is_thrown_away(bench: Bench, releases: Releases) -> None:
    bench.pin(releases.files)
    releases.files[PLAIN] = SCRIPT + b"# one line more\n"
    bench.environ["GPUPACK_RELEASE_MIRROR"] = releases.url
    with pytest.raises(Unavailable, match=r"SHA-256 is [0-9a-f]{64}, pinned is"):
        bench.obtain()
    assert not (bench.cache / "plain").exists()


def test_a_release_whose_digest_is_not_pinned_is_not_even_asked_for(bench: Bench, releases: Releases) -> None:
    bench.pin({PLAIN: SCRIPT})
    bench.environ["GPUPACK_RELEASE_MIRROR"] = releases.url
    with pytest.raises(Unavailable, match=r"no pinned digest for the .* release of packed"):
        bench.obtain()
    assert releases.asked == [PLAIN]


def test_a_server_that_does_not_answer_is_given_up_soon_and_not_asked_again(bench: Bench) -> None:
    bench.pin({PLAIN: SCRIPT, PACKED: b""})
    with socket.socket() as black_hole, socket.socket() as fills_it:
        black_hole.bind(("127.0.0.1", 0))
        black_hole.listen(0)  # one connection fills it; what comes then is dropped
        fills_it.connect(black_hole.getsockname())
        bench.environ["GPUPACK_RELEASE_MIRROR"] = f"http://127.0.0.1:{black_hole.getsockname()[1]}"
        with pytest.raises(Unavailable, match="timed out"):
            bench.obtain()
    assert [line for line in bench.said if line.startswith("downloading")] == ["downloading plain v2.3.4"]


def test_without_go_and_without_a_network_it_says_what_would_help(bench: Bench) -> None:
    with pytest.raises(Unavailable) as refusal:
        bench.obtain()
    said = str(refusal.value)
    for expected in ("cannot get plain, packed", "Go is not installed", "install Go", str(bench.cache), "KUBEBUILDER_"):
        assert expected in said


@needs_go
def test_what_cannot_be_downloaded_is_built_from_the_pinned_modules(bench: Bench, releases: Releases) -> None:
    bench.with_go()
    bench.pin({PACKED: packed(SCRIPT)})
    bench.environ["GPUPACK_RELEASE_MIRROR"] = releases.url
    got = bench.obtain()
    assert (run(got["plain"]), run(got["packed"])) == ("built v2.3.4,2.3", "released")
    assert any(line.startswith("building plain v2.3.4 (1 of 1)") for line in bench.said)


@needs_go
def test_a_digest_that_is_wrong_costs_one_build_and_never_lets_the_release_in(bench: Bench, releases: Releases) -> None:
    bench.with_go()
    bench.pin({PLAIN: b"something else", PACKED: packed(SCRIPT)})
    bench.environ["GPUPACK_RELEASE_MIRROR"] = releases.url
    got = bench.obtain()
    assert (run(got["plain"]), run(got["packed"])) == ("built v2.3.4,2.3", "released")
    assert any("thrown away" in line for line in bench.said)


@needs_go
def test_a_build_that_fails_is_told_with_its_last_lines(bench: Bench) -> None:
    bench.with_go()
    (bench.folder / "plain" / "main.go").write_text("package main\n\nfunc main() { nonsense() }\n")
    with pytest.raises(Unavailable, match="undefined: nonsense"):
        bench.obtain()
    assert list(bench.cache.iterdir()) == []


@needs_go
def test_two_processes_at_once_build_each_program_once(bench: Bench) -> None:
    bench.with_go()
    code = (
        "import pathlib, sys; from gpupack.node import binaries as b;"
        f"got = b.obtain(b.read_module_folder(pathlib.Path({str(bench.folder)!r}), 'tools'));"
        "print(got['plain'], got['packed'])"
    )
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code], env={**bench.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for _ in range(2)
    ]  # fmt: skip
    said = [process.communicate(timeout=120) for process in both]
    assert [printed for printed, _ in said] == [f"{bench.cache / 'plain'} {bench.cache / 'packed'}\n"] * 2
    assert sum("built 2 of 2" in errors for _, errors in said) == 1


def test_pins_are_read_from_the_publishers_checksum_files(bench: Bench, releases: Releases) -> None:
    digest = hashlib.sha256(SCRIPT).hexdigest()
    other = "0" * 64
    releases.files[f"{PLAIN}.sha256"] = f"{digest}\n".encode()
    name = PACKED.removeprefix("/")
    releases.files["/packed/SHA256SUMS"] = f"{other}  another.tar.gz\n{digest}  {name}\n".encode()
    environ = {"GPUPACK_RELEASE_MIRROR": releases.url}
    text = binaries.pin(bench.wanted, targets=(HERE,), environ=environ)
    (bench.folder / "SHA256SUMS").write_text(text)
    assert bench.wanted.digests == {f"https://releases.example.test{path}": digest for path in (PLAIN, PACKED)}
    assert text.startswith("# a comment\n")


@pytest.mark.parametrize("wanted", [binaries.control_plane(), binaries.helm()], ids=lambda folder: folder.name)
def test_every_pin_of_the_repository_is_of_a_release_that_is_wanted(wanted: binaries.ModuleFolder) -> None:
    targets = [Platform(os=system, arch=arch) for system in ("linux", "darwin") for arch in ("amd64", "arm64")]
    assert set(wanted.digests) <= {each.fill(each.url, target) for each in wanted.programs for target in targets}


def test_every_program_of_the_control_plane_has_a_pinned_release_for_linux() -> None:
    folder = binaries.control_plane()
    for target in (Platform(os="linux", arch="amd64"), Platform(os="linux", arch="arm64")):
        assert [each.name for each in folder.programs if each.fill(each.url, target) not in folder.digests] == []


def test_the_repository_pins_the_versions_of_the_control_plane() -> None:
    versions = {program.name: program.version for program in binaries.control_plane().programs}
    kubernetes = dict.fromkeys(("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl"), "v1.37.1")
    assert versions == {**kubernetes, "etcd": "v3.7.1"}
