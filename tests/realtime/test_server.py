"""The page, security headers, hosts and origins, start and stop of the server."""

from __future__ import annotations

import asyncio
import dataclasses
import socket
from pathlib import Path

import pytest
import websockets

from realtime.serve import AnnouncingServer, ServeError, run_server
from realtime.settings import Settings, is_loopback
from tests.fakes import FakeEngine
from tests.serving import client, make_web, serving, until

pytestmark = pytest.mark.unit


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(web_dir=make_web(tmp_path / "web", {"grey": 120, "dark": 70}))


async def test_the_page_is_served_with_a_strict_policy(settings: Settings) -> None:
    (settings.web_dir / "secret.py").write_text("1")
    (settings.web_dir / ".hidden.html").write_text("1")
    (settings.web_dir / "tsconfig.json").write_text("{}")
    async with serving(settings) as running:
        page = await running.http.get("/")
        assert page.status_code == 200
        assert "<title>page</title>" in page.text
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert page.headers["x-content-type-options"] == "nosniff"
        assert page.headers["cache-control"] == "no-cache"
        assert "access-control-allow-origin" not in page.headers
        script = await running.http.get("/main.js")
        assert "javascript" in script.headers["content-type"]
        again = await running.http.get(
            "/main.js", headers={"If-None-Match": script.headers["etag"]}
        )
        assert again.status_code == 304
        assert (await running.http.get("/portraits/grey.png")).status_code == 200
        for path in (
            "/secret.py", "/.hidden.html", "/tsconfig.json", "/protocol.d.ts", "/missing.js",
            "/portraits", "/..%2f..%2fetc/passwd", "/portraits/../../x.js", "/%00.js",
        ):  # fmt: skip
            assert (await running.http.get(path)).status_code in (400, 404), path


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("127.0.0.1:1", True),
        ("localhost", True),
        ("[::1]:8080", True),
        ("evil.example", False),
        ("127.0.0.1.evil.example", False),
        ("192.0.2.1", False),
    ],
)
async def test_a_loopback_server_answers_only_to_loopback_names(
    settings: Settings, host: str, allowed: bool
) -> None:
    async with serving(settings) as running:
        response = await running.http.get("/healthz", headers={"Host": host})
        assert response.status_code == (200 if allowed else 403)
        if not allowed:
            assert response.headers["content-type"] == "application/problem+json"


async def test_other_names_can_be_allowed(settings: Settings) -> None:
    open_to_one = dataclasses.replace(settings, allowed_hosts=("avatar.example",))
    async with serving(open_to_one) as running:
        for host, status in (("avatar.example", 200), ("evil.example", 403)):
            response = await running.http.get("/healthz", headers={"Host": host})
            assert response.status_code == status


async def test_other_sites_cannot_change_anything(settings: Settings) -> None:
    async with serving(settings) as running, client(running) as made:
        foreign = {"Origin": "https://evil.example"}
        for path in ("/api/sessions", "/api/portraits"):
            response = await running.http.post(path, headers=foreign, content=b"{}")
            assert response.status_code == 403
            assert response.json()["type"] == "/problems/foreign-origin"
        same = {"Origin": running.url}
        response = await running.http.post("/api/sessions", headers=same, content=b"{}")
        assert response.status_code == 400
        preflight = await running.http.options("/api/sessions", headers=foreign)
        assert "access-control-allow-origin" not in preflight.headers
        await made.open("grey", size=256)
        url = f"{running.url.replace('http', 'ws')}/api/sessions/{made.session_id}/events"
        with pytest.raises(websockets.InvalidStatus) as refused:
            async with websockets.connect(
                f"{url}?token={made.token}", origin="https://evil.example"
            ):
                pass
        assert refused.value.response.status_code == 403


async def test_an_unforeseen_failure_shows_no_trace(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(settings) as running:

        def broken(owner: str) -> list[object]:
            raise RuntimeError("secret detail")

        monkeypatch.setattr(running.hub.portraits, "list", broken)
        response = await running.http.get("/api/portraits")
        assert response.status_code == 500
        assert response.headers["content-type"] == "application/problem+json"
        assert "secret" not in response.text
        assert "secret detail" in caplog.text


async def test_stopping_closes_every_session(settings: Settings) -> None:
    async with serving(settings) as running:
        async with client(running) as made:
            await made.open("grey", size=256)
            assert running.hub.session_count == 1
            await running.hub.stop()
            async with asyncio.timeout(3):
                await made.closed.wait()
        assert running.hub.session_count == 0


async def test_bundled_portraits_are_prepared_once_and_broken_ones_vanish(
    settings: Settings,
) -> None:
    (settings.web_dir / "portraits" / "dark.png").write_bytes(b"no picture")
    engine = FakeEngine()
    async with serving(settings, engine_factory=lambda: engine) as running:  # type: ignore[arg-type, return-value]
        await until(lambda: len(running.hub.portraits.list("")) == 1)
        for _ in range(2):
            async with client(running) as made:
                assert (await made.open("grey", size=256)).status_code == 201
        # The engine's first picture was the one that its speed was measured with.
        assert engine.calls["appearance"] == 2


def test_a_folder_without_a_listing_is_read_and_strange_listings_are_not(tmp_path: Path) -> None:
    from realtime.portraits import _read_folder

    web = make_web(tmp_path / "web", {"grey": 120})
    folder = tmp_path / "mine"
    folder.mkdir()
    source = (web / "portraits" / "grey.png").read_bytes()
    (folder / "Aunt May.png").write_bytes(source)
    (folder / "notes.txt").write_text("x")
    assert [e.info.id for e in _read_folder(folder)] == ["aunt-may"]
    (folder / "portraits.json").write_text(
        '[{"id":"a","name":"A","file":"../web/portraits/grey.png"},'
        '{"id":"B!","name":"B","file":"Aunt May.png"},{"id":"c","name":"C","file":"Aunt May.png"}]'
    )
    assert [e.info.id for e in _read_folder(folder)] == ["c"]
    (folder / "portraits.json").write_text("{}")
    with pytest.raises(ValueError, match=r"portraits\.json"):
        _read_folder(folder)
    assert _read_folder(tmp_path / "missing") == []


def test_settings_refuse_nonsense(tmp_path: Path) -> None:
    for bad in (
        {"port": 70_000},
        {"max_sessions": 0},
        {"max_size_px": 500},
        {"public_ip": "nonsense"},
        {"tls_key": tmp_path},
    ):
        with pytest.raises(ValueError, match=r"port|max|size|TLS|address"):
            Settings(**bad)  # type: ignore[arg-type]
    assert Settings(host="::1", port=1).url == "http://[::1]:1"
    assert Settings(host="0.0.0.0", port=2).url == "http://localhost:2"
    assert is_loopback("localhost")
    assert not is_loopback("192.0.2.1")


def test_a_taken_port_is_told(settings: Settings) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        busy = dataclasses.replace(settings, port=taken.getsockname()[1])
        with pytest.raises(ServeError, match="cannot be used"):
            run_server(busy)


def test_the_server_announces_itself_once_and_stops_on_request(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from realtime import serve

    tell = serve.announce
    servers: list[AnnouncingServer] = []
    original = AnnouncingServer.__init__

    def remember(self: AnnouncingServer, *args: object) -> None:
        original(self, *args)  # type: ignore[arg-type]
        servers.append(self)

    def announce_and_stop(ready: Settings) -> None:
        tell(ready)
        servers[0].should_exit = True

    monkeypatch.setattr(AnnouncingServer, "__init__", remember)
    monkeypatch.setattr(serve, "announce", announce_and_stop)
    quiet = dataclasses.replace(settings, port=0, prepare_portraits=False)
    run_server(quiet, engine_factory=FakeEngine)  # type: ignore[arg-type]
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("Visavis is ready: http://127.0.0.1:")
    assert not lines[0].endswith(":0")


def test_an_engine_that_cannot_run_ends_the_server_with_its_reason(settings: Settings) -> None:
    def broken() -> FakeEngine:
        raise RuntimeError("no weights here.")

    with pytest.raises(ServeError, match="no weights here"):
        run_server(dataclasses.replace(settings, port=0), engine_factory=broken)  # type: ignore[arg-type]
