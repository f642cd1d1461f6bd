"""Attacks on a running server: each kind that the issue names is tried here and comes to nothing."""

from __future__ import annotations

import io
import json
import logging
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="needs the extra annotate")

from PIL import Image  # noqa: E402
from serving import SIZE, Client, serving  # noqa: E402

from samtrain.annotator.config import AnnotateConfig, ServeConfig  # noqa: E402
from samtrain.annotator.safety import COOKIE, allowed_hosts  # noqa: E402
from samtrain.annotator.serve import Server, links_of  # noqa: E402
from samtrain.annotator.store import NewImage, open_store  # noqa: E402
from samtrain.ops.rle import encode_mask  # noqa: E402

JSON = {"Content-Type": "application/json"}
MASK = encode_mask(np.ones(SIZE, dtype=bool))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of one annotator, without tokens."""
    with serving(tmp_path_factory.mktemp("open"), max_upload_mb=0.1) as (server, _):
        yield server


@pytest.fixture(scope="module")
def team(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, dict[str, str]]]:
    """A server of two annotators with tokens."""
    with serving(tmp_path_factory.mktemp("team"), tokens=True) as found:
        yield found


# ---- another site's page


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "localhost@a.example", "[:"])
@pytest.mark.parametrize("path", ["/", "/api/health", "/api/images", "/static/app.js"])
def test_dns_rebinding_finds_nothing(server: Server, host: str, path: str) -> None:
    status, _, body = Client(server).raw("GET", path, headers={"Host": host})
    assert status == 403 and b"does not answer to the host" in body


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]"])
def test_the_names_of_this_machine_are_answered(server: Server, host: str) -> None:
    port = server.url.rpartition(":")[2]
    assert Client(server).raw("GET", "/api/health", headers={"Host": f"{host}:{port}"})[0] == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "https://evil.example"}, 403),
        ({"Origin": "null"}, 403),  # a sandboxed frame, a file
        ({"Origin": "http://127.0.0.1:1"}, 403),  # another port of this machine is another site
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Content-Type": "text/plain"}, 415),  # what a form can send
        ({"Content-Type": "application/x-www-form-urlencoded"}, 415),
        ({"Content-Type": "multipart/form-data; boundary=x"}, 415),
        ({"Content-Type": ""}, 415),
        ({"Sec-Fetch-Site": "same-origin"}, 201),
        ({"Content-Type": "application/json; charset=utf-8"}, 201),
    ],
)
def test_other_sites_cannot_write(server: Server, headers: dict[str, str], status: int) -> None:
    before = len(server.store.masks(1))
    body = json.dumps({"segmentation": MASK, "seconds": 1}).encode()
    assert Client(server).raw("POST", "/api/images/1/masks", body, {**JSON, **headers})[0] == status
    assert len(server.store.masks(1)) == before + (status == 201)


def test_the_servers_own_page_can_write(server: Server) -> None:
    headers = {"Origin": server.url, "Sec-Fetch-Site": "same-origin"}
    assert Client(server)("POST", "/api/images/1/masks", {"segmentation": MASK}, headers)[0] == 201


def test_other_sites_cannot_read(server: Server) -> None:
    ask = Client(server)
    assert ask.raw("GET", "/api/images", headers={"Sec-Fetch-Site": "cross-site"})[0] == 403
    assert ask.raw("GET", "/", headers={"Sec-Fetch-Site": "cross-site"})[0] == 200  # a link to the page works
    for path in ("/", "/api/images", "/api/images/1/pixels", "/static/app.js", "/api/images/99", "/api/nothing"):
        headers = {name.lower(): value for name, value in ask.raw("GET", path)[1].items()}
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy and "unsafe" not in policy
        assert headers["x-content-type-options"] == "nosniff" and headers["cross-origin-resource-policy"] == "same-origin"
        assert not [name for name in headers if name.startswith("access-control")] and "server" not in headers
    assert ask.raw("OPTIONS", "/api/images", headers={"Origin": "https://evil.example"})[0] == 403


def test_a_header_that_stands_twice_is_refused(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", Client(server).port), timeout=20) as connection:
        connection.sendall(b"GET /api/health HTTP/1.1\r\nHost: 127.0.0.1\r\nOrigin: http://127.0.0.1\r\nOrigin: null\r\n\r\n")
        assert b" 400 " in connection.recv(4096).splitlines()[0]


# ---- paths


@pytest.mark.parametrize(
    "path",
    [
        "/static/../app.py", "/static/..%2fapp.py", "/static/%2e%2e/%2e%2e/config.py", "/static/%2e%2e%2fapp.py",
        "/static/....//app.py", "/static//etc/passwd", "/static/%2fetc%2fpasswd", "/static/..\\app.py", "/static/..%5capp.py",
        "/static/index.html%00.js", "/static/", "/static/.", "/../../etc/passwd", "/static/%252e%252e%252fapp.py",
        "/api/images/..%2f..%2fetc%2fpasswd", "/api/images/1/tiles/0/0/..%2f0", "/api/images/1/../../../etc/passwd",
    ],
)  # fmt: skip
def test_no_path_of_a_client_reaches_a_file(server: Server, path: str) -> None:
    status, _, body = Client(server).raw("GET", path)
    assert status in (400, 404), body[:100]
    assert b"root:" not in body and b"import" not in body


# ---- sizes


def test_a_large_body_is_refused_before_it_is_read(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", Client(server).port), timeout=20) as connection:
        head = "POST /api/images/1/masks HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json"
        connection.sendall("\r\n".join([*head, f"Content-Length: {10**11}", "", ""]).encode())
        assert b" 413 " in connection.recv(4096).splitlines()[0]


def test_a_body_of_unknown_length_is_bounded_too(server: Server) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(20):
            yield b" " * 10_000

    status, _, body = Client(server).raw("POST", "/api/images/1/masks", chunks(), JSON)  # type: ignore[arg-type]
    assert status == 413 and b"annotate.max_upload_mb" in body


def test_nested_and_huge_json_is_refused(server: Server) -> None:
    ask = Client(server)
    for body in (b"[" * 50_000, b'{"a":' * 10_000, b"9" * 90_000, b"\xff\xfe", b"[]", b"7", b'{"points": [[1,2]]} x'):
        status, _, answer = ask.raw("POST", "/api/images/1/prompts", body, JSON)
        assert status == 400, (body[:20], answer[:200])


def test_a_bomb_and_a_broken_image_are_refused_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(tmp_path) as (server, _):
        monkeypatch.setenv("SAMTRAIN_MAX_IMAGE_PIXELS", "100000")
        (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
        stream = io.BytesIO()
        Image.new("1", (1000, 1000)).save(stream, "PNG")  # a million pixels in a few hundred bytes
        (tmp_path / "bomb.png").write_bytes(stream.getvalue())
        names = ("broken.png", "bomb.png", "gone.png")
        new = [NewImage(key=each, name=each, source=str(tmp_path / each), width=1000, height=1000) for each in names]
        broken, bomb, gone = (row.id for row in server.store.add_images(new))
        ask = Client(server)
        for path in ("tiles/0/0/0", "pixels"):
            status, answer = ask("GET", f"/api/images/{broken}/{path}")
            assert status == 422 and "broken.png: its image cannot be read" in answer["error"]
            status, answer = ask("GET", f"/api/images/{bomb}/{path}")
            assert status == 422 and "max_image_pixels=1000000" in answer["error"]
            status, answer = ask("GET", f"/api/images/{gone}/{path}")
            assert status == 404 and str(tmp_path) not in answer["error"]
        status, answer = ask("POST", f"/api/images/{bomb}/prompts", {"points": [[1, 1]], "labels": [1], "seq": 3})
        assert status == 422 and answer["seq"] == 3 and "max_image_pixels" in answer["error"]


# ---- people


def test_without_a_token_a_team_server_tells_nothing(team: tuple[Server, dict[str, str]]) -> None:
    server, tokens = team
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic YTpi"}, {"Cookie": f"{COOKIE}=wrong"}):
        ask = Client(server)
        for method, path in (
            ("GET", "/api/images"), ("GET", "/api/status"), ("GET", "/api/events"), ("POST", "/api/next"),
            ("GET", "/api/images/1/pixels"), ("POST", "/api/images/1/masks"), ("GET", "/api/export?format=coco"),
        ):  # fmt: skip
            assert ask(method, path, headers=headers)[0] == 401, path
    assert Client(server)("GET", "/api/health")[0] == 200
    assert Client(server).raw("GET", "/")[0] == 200


def test_a_token_becomes_a_cookie_that_scripts_cannot_read(team: tuple[Server, dict[str, str]]) -> None:
    server, tokens = team
    ask = Client(server)
    status, headers, body = ask.raw("POST", "/api/login", json.dumps({"token": tokens["ben"]}).encode(), JSON)
    cookie = headers["set-cookie"]
    assert status == 200 and json.loads(body) == {"annotator": "ben"}
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie and "Path=/" in cookie
    assert ask("GET", "/api/session", headers={"Cookie": cookie.split(";")[0]})[1]["annotator"] == "ben"
    assert ask("POST", "/api/login", {"token": "wrong"})[0] == ask("POST", "/api/login")[0] == 401


def test_nobody_reads_or_overwrites_the_work_of_another(team: tuple[Server, dict[str, str]]) -> None:
    server, tokens = team
    anna, ben = Client(server, tokens["anna"]), Client(server, tokens["ben"])
    lease = anna("POST", "/api/images/1/lease")[1]["token"]
    anna("PUT", "/api/images/1/draft", {"content": "anna's", "seq": 9})
    mask = anna("POST", "/api/images/1/masks", {"segmentation": MASK, "lease": lease})[1]
    # a draft belongs to its annotator, and another one's does not touch it
    assert ben("GET", "/api/images/1/draft")[1]["content"] is None
    assert ben("PUT", "/api/images/1/draft", {"content": "ben's", "seq": 99})[0] == 200
    assert ben("DELETE", "/api/images/1/draft")[0] == 200
    assert anna("GET", "/api/images/1/draft")[1]["content"] == "anna's"
    # nor does a lease that was overheard or guessed help
    for token in (None, "guess", lease):
        held = {} if token is None else {"lease": token}
        assert ben("POST", "/api/images/1/masks", {"segmentation": MASK, **held})[0] == 409
        assert ben("PUT", f"/api/masks/{mask['id']}", {"label": "mine", **held})[0] == 409
        assert ben("DELETE", f"/api/masks/{mask['id']}", held)[0] == 409
        assert ben("POST", "/api/images/1/finish", held)[0] == 409
    assert ben("POST", "/api/images/1/lease", {"token": lease})[0] == 409
    ben("DELETE", "/api/images/1/lease", {"token": "guess"})
    ben("DELETE", "/api/images/1/lease")
    assert server.store.image(1).leased_by == "anna"
    assert [each.label for each in server.store.masks(1)] == [None]


def test_tokens_reach_no_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.DEBUG), serving(tmp_path, tokens=True) as (server, tokens):
        ask = Client(server, tokens["anna"])
        ask("GET", f"/api/images?token={tokens['ben']}")
        ask("POST", "/api/login", {"token": tokens["anna"]})
        ask("GET", "/api/session")
        assert tokens["ben"].encode() not in (tmp_path / "annotations.db").read_bytes()
    text = caplog.text + "".join(capfd.readouterr())
    assert "GET /api/session: 200" in text
    assert not any(token in text for token in tokens.values())


def test_links_are_kept_where_only_their_owner_reads_them(tmp_path: Path) -> None:
    config = ServeConfig(
        annotate=AnnotateConfig(annotators=["anna"]), store="", embeddings="", links=str(tmp_path / "links.json")
    )
    with open_store(f"sqlite:///{tmp_path / 'a.db'}") as store:
        first = links_of(config, store, "http://h:1")
        again = links_of(config, store, "http://h:1")
        assert first == again and first["anna"].startswith("http://h:1/#token=")  # a fragment is not sent to any server
        token = first["anna"].partition("#token=")[2]
        assert store.annotator_of(token) == "anna"
        assert stat.S_IMODE((tmp_path / "links.json").stat().st_mode) == 0o600
        (tmp_path / "links.json").unlink()
        assert links_of(config, store, "http://h:1") != first  # a new token, because the store keeps only a hash
        assert store.annotator_of(token) is None


def test_another_host_demands_tokens() -> None:
    for host in ("0.0.0.0", "192.168.1.5", "::", "example.org"):
        with pytest.raises(ValueError, match=r"annotate.host is .* annotate.annotators=\[NAME"):
            AnnotateConfig(host=host)
        AnnotateConfig(host=host, annotators=["anna"])
    for host in ("127.0.0.1", "localhost", "::1", "127.0.0.2"):
        AnnotateConfig(host=host)


def test_without_annotators_only_loopback_needs_no_token(team: tuple[Server, dict[str, str]], tmp_path: Path) -> None:
    """Even if the settings were got round: who comes from elsewhere without a token is nobody."""
    with serving(tmp_path) as (server, _):
        object.__setattr__(server.service.settings, "host", "0.0.0.0")
        assert Client(server)("GET", "/api/images")[0] == 401


def test_hosts_follow_from_the_settings() -> None:
    assert allowed_hosts(AnnotateConfig()) == {"127.0.0.1", "localhost", "::1"}
    team = allowed_hosts(AnnotateConfig(host="0.0.0.0", annotators=["a"], allowed_hosts=["Lab.Example"]))
    assert {"*", "lab.example", "localhost"} <= team


# ---- errors of ours


def test_an_error_of_ours_tells_an_id_and_not_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(tmp_path) as (server, _):

        def fail(*_: Any, **__: Any) -> None:
            raise KeyError("secret of the machine")

        monkeypatch.setattr(server.store, "images", fail)
        status, answer = Client(server)("GET", "/api/images")
    assert status == 500 and set(answer) == {"error", "id"} and "secret" not in json.dumps(answer)
    assert answer["id"] in answer["error"] and answer["id"] in caplog.text and "secret of the machine" in caplog.text


def test_a_server_that_only_shows_refuses_writes(tmp_path: Path) -> None:
    with serving(tmp_path) as (server, _):
        config = ServeConfig(
            annotate=AnnotateConfig(port=0), store=server.config.store, embeddings=str(tmp_path / "e"), read_only=True
        )
        with Server(config) as second:
            assert Client(second)("POST", "/api/next")[0] == 403
            assert Client(second)("GET", "/api/images")[0] == 200


def test_an_address_in_use_is_said_with_its_keys(server: Server) -> None:
    config = ServeConfig(annotate=AnnotateConfig(port=Client(server).port), store=server.config.store, embeddings="e")
    with pytest.raises(ValueError, match=r"annotate.port=\d+ cannot be listened to .* give another annotate.port, or 0"):
        Server(config)
