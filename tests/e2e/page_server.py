"""A small stand-in for the server, for looking at the page and testing it.

Speaks the HTTP API and the control channel of `realtime.protocol` with drawn placeholder
faces in place of networks: the mouth follows the loudness of the microphone, the voice comes
straight back. Needs no weights and little CPU; measures nothing, so its figures are made up.

Run `python tests/e2e/page_server.py --port 8100`; the line it prints names the URL.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import math
import secrets
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import av
import cv2
import msgspec
import numpy as np
import uvicorn
from aiortc import (
    MediaStreamTrack,
    RTCDataChannel,
    RTCPeerConnection,
    RTCSessionDescription,
    VideoStreamTrack,
)
from aiortc.mediastreams import MediaStreamError
from aiortc.sdp import candidate_from_sdp
from numpy.typing import NDArray
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from realtime import protocol

Image = NDArray[np.uint8]

WEB = Path(__file__).resolve().parents[2] / "web"
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; media-src 'self' blob:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
MAX_PICTURE_BYTES = 12 * 1024 * 1024
FLAT_PICTURE_STD = 12.0
PRESETS: dict[protocol.Factor, list[str]] = {
    "lip": [],
    "pose": ["neutral", "turn_left", "thinking"],
    "eye": ["neutral", "look_left", "wink"],
    "exp": ["neutral", "smile", "grin", "surprise", "doubt", "thinking"],
}
FACTORS: tuple[protocol.Factor, ...] = ("lip", "pose", "eye", "exp")
PEOPLE = [
    ("ines", "Ines", (214, 176, 148), (52, 40, 36), (196, 208, 201)),
    ("tomas", "Tomás", (226, 190, 164), (94, 72, 50), (178, 190, 206)),
    ("amara", "Amara", (138, 94, 70), (28, 24, 24), (214, 196, 168)),
    ("kenji", "Kenji", (222, 184, 150), (36, 34, 38), (198, 186, 200)),
    ("ruth", "Ruth", (232, 200, 180), (176, 172, 168), (168, 186, 178)),
    ("milo", "Milo", (184, 136, 106), (66, 44, 32), (206, 182, 170)),
]


def draw_face(
    colors: tuple[tuple[int, int, int], ...], size: int, *, mouth: float, sway: float, blink: float
) -> Image:
    """A placeholder face, (size, size, 3) uint8 RGB; `mouth`, `blink` 0..1, `sway` -1..1."""
    skin, hair, backdrop = (np.asarray(color, np.float32) for color in colors)
    ramp = np.linspace(1.06, 0.82, size, dtype=np.float32)[:, None, None]
    image = np.clip(ramp * backdrop, 0, 255).repeat(size, axis=1).astype(np.uint8)
    unit = size / 512
    x, y = 256 + 10 * sway, 250 + 4 * abs(sway)

    def oval(cx: float, cy: float, rx: float, ry: float, color: NDArray[np.float32]) -> None:
        center, axes = (int(cx * unit), int(cy * unit)), (int(rx * unit), max(1, int(ry * unit)))
        fill = tuple(float(c) for c in np.clip(color, 0, 255))
        cv2.ellipse(image, center, axes, 0, 0, 360, fill, -1, cv2.LINE_AA)

    white, dark = np.full(3, 244, np.float32), np.full(3, 30, np.float32)
    oval(x, y - 26, 132, 158, hair)
    oval(256, 560, 210, 150, backdrop * 0.45)
    oval(256 + 5 * sway, 400, 48, 70, skin * 0.86)
    oval(x, y + 8, 104, 136, skin)
    oval(x, y - 124, 112, 54, hair)
    for side in (-1, 1):
        eye_x = x + 42 * side
        oval(eye_x, y - 10, 19, 11 * (1 - blink) + 1, white)
        oval(eye_x + 3 * sway, y - 10, 9 * (1 - blink), 9 * (1 - blink), dark)
        oval(eye_x, y - 36, 23, 4, hair)
    oval(x, y + 32, 11, 7, skin * 0.84)
    oval(x, y + 78, 33, 5 + 22 * mouth, np.asarray((150, 62, 62), np.float32))
    oval(x, y + 78, 26, 0.5 + 15 * mouth, dark)
    return np.asarray(image, np.uint8)


def jpeg(image_rgb: Image, size: int) -> bytes:
    """`image_rgb` (H, W, 3) at `size` px square, as JPEG."""
    small = cv2.resize(image_rgb, (size, size), interpolation=cv2.INTER_AREA)
    encoded, data = cv2.imencode(".jpg", cv2.cvtColor(small, cv2.COLOR_RGB2BGR))
    if not encoded:
        raise ValueError("JPEG encoding failed")
    return bytes(data)


def problem(
    status: int, title: str, detail: str, headers: dict[str, str] | None = None
) -> Response:
    """An RFC 9457 answer."""
    body = protocol.Problem(type="about:blank", title=title, status=status, detail=detail)
    media_type = "application/problem+json"
    return Response(protocol.encode(body), status, headers, media_type)


def reply(value: object, status: int = 200) -> Response:
    """`value` as JSON."""
    return Response(protocol.encode(value), status, media_type="application/json")


class Voice(MediaStreamTrack):
    """The microphone sent back, and its loudness, 0 to 1, as it passes."""

    kind = "audio"

    def __init__(self, source: MediaStreamTrack) -> None:
        super().__init__()
        self.source = source
        self.level = 0.0

    async def recv(self) -> av.AudioFrame:
        """The next frame, unchanged."""
        frame = await self.source.recv()
        assert isinstance(frame, av.AudioFrame)
        samples = frame.to_ndarray().astype(np.float32) / 32768
        loudness = min(1.0, float(np.sqrt(np.mean(samples**2))) * 6)
        self.level = max(loudness, self.level * 0.7)
        return frame


class Avatar(VideoStreamTrack):
    """The drawn face, moved by the voice and the clock, or an enrolled picture, still."""

    def __init__(self, portrait: Portrait, size: int) -> None:
        super().__init__()
        self.portrait = portrait
        self.size = size
        self.voice: Voice | None = None
        self.is_paused = False
        self.frames = 0

    async def recv(self) -> av.VideoFrame:
        """The next frame at the track's pace."""
        pts, time_base = await self.next_timestamp()
        self.frames += 1
        now = self.frames / 30
        level = self.voice.level if self.voice and not self.is_paused else 0.0
        image = self.portrait.draw(
            self.size, mouth=level, sway=math.sin(now * 0.9), blink=1.0 if now % 3.5 < 0.12 else 0.0
        )
        frame = av.VideoFrame.from_ndarray(image, format="rgb24")
        frame.pts, frame.time_base = pts, time_base
        return frame


class Portrait:
    """A drawn person, or a picture that was uploaded."""

    def __init__(
        self,
        portrait_id: str,
        name: str,
        colors: tuple[tuple[int, int, int], ...] = (),
        picture: Image | None = None,
    ) -> None:
        self.id = portrait_id
        self.name = name
        self.colors = colors
        self.picture = picture

    def draw(self, size: int, *, mouth: float, sway: float, blink: float) -> Image:
        """(size, size, 3) uint8 RGB."""
        if self.picture is not None:
            return np.asarray(cv2.resize(self.picture, (size, size)), np.uint8)
        return draw_face(self.colors, size, mouth=mouth, sway=sway, blink=blink)

    def info(self) -> protocol.PortraitInfo:
        """What `GET /api/portraits` says about it."""
        return protocol.PortraitInfo(
            id=self.id,
            name=self.name,
            kind="uploaded" if self.picture is not None else "bundled",
            thumbnail=f"/api/portraits/{self.id}/thumbnail",
        )


class Session:
    """One peer: its connection, its control channel and the state the page changes."""

    def __init__(self, portrait: Portrait, request: protocol.SessionRequest) -> None:
        self.id = secrets.token_hex(6)
        self.token = secrets.token_urlsafe(16)
        self.peer = RTCPeerConnection()
        self.avatar = Avatar(portrait, request.size)
        self.webcam_s = -math.inf
        self.marked = request.marked
        self.tasks: set[asyncio.Task[None]] = set()
        self.factors = {
            factor: protocol.FactorState(factor, "mic" if factor == "lip" else "idle", None, 1.0)
            for factor in FACTORS
        }
        for factor, choice in request.sources.items():
            self.factors[factor] = protocol.FactorState(factor, choice.source, choice.name, 1.0)
        self.peer.on("track", self.receive)
        self.peer.on("datachannel", self.control)

    def spawn(self, work: Awaitable[None]) -> None:
        """Runs `work` until it ends or the session does."""
        task = asyncio.ensure_future(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def receive(self, track: MediaStreamTrack) -> None:
        """A track of the page: the voice goes back, the webcam is only watched."""
        if track.kind == "audio":
            self.avatar.voice = Voice(track)
            self.peer.addTrack(self.avatar.voice)
        else:
            self.peer.addTrack(self.avatar)
            self.spawn(self.watch(track))

    async def watch(self, track: MediaStreamTrack) -> None:
        """Notes when the last webcam frame came."""
        with contextlib.suppress(MediaStreamError):
            while True:
                await track.recv()
                self.webcam_s = time.monotonic()

    def control(self, channel: RTCDataChannel) -> None:
        """Greets on the control channel, then answers and reports."""
        channel.on("message", lambda data: self.obey(channel, data))
        channel.send(protocol.encode(self.hello()).decode())
        if self.marked:
            channel.send(protocol.encode(self.state()).decode())
        self.spawn(self.report(channel))

    def hello(self) -> protocol.Hello:
        """What the page learns first."""
        slider = protocol.Slider
        sources: list[protocol.SourceKind] = ["webcam", "preset", "slider", "idle"]
        return protocol.Hello(
            version=protocol.PROTOCOL_VERSION,
            session_id=self.id,
            engine="openvino",
            engine_reason="No NVIDIA GPU was found, so the networks run on this CPU in INT8.",
            portrait=self.avatar.portrait.id,
            size=self.avatar.size,
            fps=25,
            algorithmic_latency_ms=80,
            presets=PRESETS,
            clips=["nodding", "listening"],
            sliders={
                "lip": [slider("open", "Open"), slider("round", "Round")],
                "pose": [slider(n.lower(), n, -1.0) for n in ("Yaw", "Pitch", "Roll")],
                "eye": [slider("left_right", "Left / right", -1.0), slider("blink", "Blink")],
                "exp": [slider("brows", "Brows", -1.0), slider("smile", "Smile", -1.0)],
            },
            allowed_sources={
                f: ["mic", *sources] if f == "lip" else [*sources, "clip"] for f in FACTORS
            },
            factors=list(self.factors.values()),
        )

    def obey(self, channel: RTCDataChannel, data: str | bytes) -> None:
        """Carries out one message of the page; a bad one is answered by a notice."""
        try:
            message = protocol.decode_client(data)
        except msgspec.ValidationError as error:
            notice = protocol.Notice("warning", "bad_message", str(error))
            channel.send(protocol.encode(notice).decode())
            return
        if isinstance(message, protocol.SetSource):
            old = self.factors[message.factor]
            changes = {"source": message.source, "name": message.name}
            self.factors[message.factor] = msgspec.structs.replace(old, **changes)
        elif isinstance(message, protocol.SetGain):
            old = self.factors[message.factor]
            self.factors[message.factor] = msgspec.structs.replace(old, gain=message.gain)
        elif isinstance(message, protocol.Pause):
            self.avatar.is_paused = message.paused
        elif isinstance(message, protocol.SetMark):
            self.marked = message.marked
        else:
            return
        channel.send(protocol.encode(self.state()).decode())

    def state(self) -> protocol.State:
        """What the page has changed so far."""
        return protocol.State(self.avatar.is_paused, list(self.factors.values()), self.marked)

    async def report(self, channel: RTCDataChannel) -> None:
        """Sends made-up figures once a second."""
        while channel.readyState == "open":
            age_s = time.monotonic() - self.webcam_s
            stage = protocol.StageMs(21.4, 33.8 + 3 * math.sin(time.monotonic()), 41.0)
            stats = protocol.Stats(
                fps=25.0, added_latency_ms=stage, algorithmic_latency_ms=80, av_skew_ms=-4.2,
                frames=self.avatar.frames, late=0, held=0, dropped=0, stages={"render": stage},
                webcam="tracking" if age_s < 1 else "off",
            )  # fmt: skip
            channel.send(protocol.encode(stats).decode())
            await asyncio.sleep(1)

    async def close(self) -> None:
        """Ends the peer connection and everything that runs for it."""
        for task in list(self.tasks):
            task.cancel()
        await self.peer.close()


class PageServer:
    """The HTTP side: portraits, sessions, and the files of the page."""

    def __init__(self) -> None:
        self.portraits = {
            person_id: Portrait(person_id, name, (skin, hair, backdrop))
            for person_id, name, skin, hair, backdrop in PEOPLE
        }
        self.sessions: dict[str, Session] = {}

    def app(self) -> Starlette:
        """The ASGI application."""
        routes = [
            Route("/api/portraits", self.list_portraits, methods=["GET"]),
            Route("/api/portraits", self.enrol, methods=["POST"]),
            Route("/api/portraits/{id}/thumbnail", self.thumbnail),
            Route("/api/sessions", self.open_session, methods=["POST"]),
            Route("/api/sessions/{id}", self.end_session, methods=["DELETE"]),
            Route("/api/sessions/{id}/candidates", self.candidate, methods=["POST"]),
            Mount("/", StaticFiles(directory=WEB, html=True)),
        ]
        return Starlette(
            routes=routes, middleware=[Middleware(SecurityHeaders)], lifespan=self.lifespan
        )

    @contextlib.asynccontextmanager
    async def lifespan(self, _app: Starlette) -> AsyncIterator[None]:
        """Closes what is still open at the end."""
        yield
        await asyncio.gather(*(session.close() for session in self.sessions.values()))

    async def list_portraits(self, _request: Request) -> Response:
        """`GET /api/portraits`."""
        return reply([portrait.info() for portrait in self.portraits.values()])

    async def thumbnail(self, request: Request) -> Response:
        """A square JPEG."""
        portrait = self.portraits.get(request.path_params["id"])
        if portrait is None:
            return problem(404, "No such portrait", "It may have been removed.")
        image = portrait.draw(512, mouth=0.0, sway=0.0, blink=0.0)
        return Response(jpeg(image, 512), media_type="image/jpeg")

    async def enrol(self, request: Request) -> Response:
        """`POST /api/portraits?name=&consent=true` with the picture as body.

        A nearly flat picture stands for one without a face.
        """
        if request.query_params.get("consent") != "true":
            return problem(403, "Consent is missing", "Confirm that the face's owner agrees.")
        data = await request.body()
        if len(data) > MAX_PICTURE_BYTES:
            return problem(413, "The picture is too large", "At most 12 MB are accepted.")
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR) if data else None
        if decoded is None:
            return problem(415, "Not a picture", "Send a JPEG, PNG or WebP file.")
        if float(np.std(decoded)) < FLAT_PICTURE_STD:
            detail = "Use a picture where one face is clearly visible from the front."
            return problem(422, "No face was found", detail)
        side = min(decoded.shape[:2])
        top, left = (decoded.shape[0] - side) // 2, (decoded.shape[1] - side) // 2
        picture = cv2.cvtColor(decoded[top : top + side, left : left + side], cv2.COLOR_BGR2RGB)
        name = request.query_params.get("name") or "My portrait"
        portrait = Portrait(
            f"up-{secrets.token_hex(4)}", name[:64], picture=np.asarray(picture, np.uint8)
        )
        self.portraits[portrait.id] = portrait
        return reply(portrait.info(), 201)

    async def open_session(self, request: Request) -> Response:
        """`POST /api/sessions`."""
        try:
            wanted = msgspec.json.decode(await request.body(), type=protocol.SessionRequest)
        except msgspec.ValidationError as error:
            return problem(422, "The request is not valid", str(error))
        portrait = self.portraits.get(wanted.portrait)
        if portrait is None:
            return problem(404, "No such portrait", "Choose another portrait.")
        session = Session(portrait, wanted)
        await session.peer.setRemoteDescription(RTCSessionDescription(wanted.sdp, wanted.type))
        await session.peer.setLocalDescription(await session.peer.createAnswer())
        self.sessions[session.id] = session
        answer = protocol.SessionAnswer(
            session.peer.localDescription.sdp, "answer", session.id, session.token
        )
        return reply(answer, 201)

    def owned(self, request: Request) -> Session | None:
        """The session of this request, when its token is right."""
        session = self.sessions.get(request.path_params["id"])
        given = request.headers.get("Authorization", "")
        return session if session and given == f"Bearer {session.token}" else None

    async def candidate(self, request: Request) -> Response:
        """`POST /api/sessions/{id}/candidates`."""
        session = self.owned(request)
        if session is None:
            return problem(404, "No such session", "It may have ended.")
        body = msgspec.json.decode(await request.body(), type=protocol.Candidate)
        if not body.candidate:
            await session.peer.addIceCandidate(None)
            return Response(status_code=204)
        candidate = candidate_from_sdp(body.candidate.removeprefix("candidate:"))
        candidate.sdpMid, candidate.sdpMLineIndex = body.sdp_mid, body.sdp_m_line_index
        await session.peer.addIceCandidate(candidate)
        return Response(status_code=204)

    async def end_session(self, request: Request) -> Response:
        """`DELETE /api/sessions/{id}`."""
        session = self.owned(request)
        if session is None:
            return problem(404, "No such session", "It may have ended.")
        del self.sessions[session.id]
        await session.close()
        return Response(status_code=204)


class SecurityHeaders:
    """The headers the real server sends with every answer."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Adds the headers to the answer's start."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                extra = {"content-security-policy": CSP, "x-content-type-options": "nosniff"}
                pairs = [(k.encode(), v.encode()) for k, v in extra.items()]
                message["headers"] = [*message["headers"], *pairs]
            await send(message)

        await self.app(scope, receive, with_headers)


def serve(port: int, announce: Callable[[str], None]) -> None:
    """Serves until interrupted; `announce` gets the URL once the port is bound."""
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(("127.0.0.1", port))
    announce(f"http://localhost:{listener.getsockname()[1]}/")
    config = uvicorn.Config(PageServer().app(), log_level="warning", timeout_graceful_shutdown=1)
    uvicorn.Server(config).run(sockets=[listener])


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    serve(parser.parse_args().port, lambda url: print(url, flush=True))


if __name__ == "__main__":
    main()
