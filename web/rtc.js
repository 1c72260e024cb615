// @ts-check
/**
 * One WebRTC call to the server: an audio and a video line both ways and the data channel
 * `control`. The offer never changes during the call; camera and microphone come and go with
 * `replaceTrack`.
 * @import {ClientMessage, ServerMessage, SessionRequest} from './protocol.js'
 */

import { createSession, endSession, resumeSession, sendCandidate } from "./api.js";
import { lowLatencyAudio } from "./sdp.js";

const CONNECT_TIMEOUT_MS = 15_000;
/** "disconnected" often heals by itself; after this long it counts as lost. */
const DISCONNECTED_GRACE_MS = 3_000;
/** The server speaks once a second; after so long without a word (sleep, another network) the
 * call counts as lost. */
const SILENCE_MS = 6_000;
const WATCH_EVERY_MS = 1_000;
const WEBCAM_MAX_BITRATE = 900_000;

/** Signalling worked, media did not get through. */
export class MediaPathError extends Error {
  name = "MediaPathError";
}

/** @typedef {{id: string, token: string}} SessionKey what a session is resumed with */

/**
 * @typedef {object} CallHandlers
 * @property {(message: ServerMessage) => void} onMessage
 * @property {(stream: MediaStream) => void} onStream the avatar's picture and sound
 * @property {() => void} onLost the call was up and is not any more; called once at most
 */

export class Call {
  /** @type {RTCPeerConnection} */ #peer;
  /** @type {RTCRtpTransceiver} */ #audio;
  /** @type {RTCRtpTransceiver} */ #video;
  /** @type {RTCDataChannel} */ #channel;
  /** @type {CallHandlers} */ #handlers;
  /** @type {SessionKey | null} */ #session = null;
  #remote = new MediaStream();
  #stopping = new AbortController();
  #isUp = false;
  /** @type {ReturnType<typeof setTimeout> | undefined} */ #grace;
  /** @type {ReturnType<typeof setInterval> | undefined} */ #watching;
  #heardAt = 0;

  /**
   * @param {CallHandlers} handlers
   * @param {MediaStreamTrack | null} microphone
   * @param {MediaStreamTrack | null} camera
   */
  constructor(handlers, microphone, camera) {
    this.#handlers = handlers;
    this.#peer = new RTCPeerConnection({ bundlePolicy: "max-bundle" });
    const streams = [new MediaStream()];
    this.#audio = this.#peer.addTransceiver(microphone ?? "audio", {
      direction: "sendrecv",
      streams,
    });
    this.#video = this.#peer.addTransceiver(camera ?? "video", {
      direction: "sendrecv",
      streams,
      sendEncodings: [{ maxBitrate: WEBCAM_MAX_BITRATE, maxFramerate: 30 }],
    });
    this.#channel = this.#peer.createDataChannel("control", { ordered: true });
    this.#listen();
  }

  get peer() {
    return this.#peer;
  }

  /** The session of this call, null before there is one. */
  get session() {
    return this.#session;
  }

  /**
   * Resolves when the control channel is open.
   * @param {Omit<SessionRequest, 'sdp' | 'type'>} choice what a new session begins with
   * @param {SessionKey | null} [previous] the session to go on with instead of a new one
   * @throws {import('./api.js').ApiError | MediaPathError | DOMException}
   */
  async open(choice, previous = null) {
    const peer = this.#peer;
    const signal = this.#stopping.signal;
    const offer = await peer.createOffer();
    const sdp = lowLatencyAudio(offer.sdp ?? "");
    const created = previous
      ? await resumeSession(previous.id, previous.token, sdp, signal)
      : await createSession({ ...choice, sdp, type: "offer" }, signal);
    const { answer, iceServers } = created;
    this.#session = { id: answer.session_id, token: answer.token };
    if (signal.aborted) {
      await endSession(answer.session_id, answer.token);
      throw new DOMException("The call was closed", "AbortError");
    }
    // Gathering starts with the local description: after the answer, so that the ICE servers
    // that came with it are used.
    if (iceServers.length > 0) peer.setConfiguration({ ...peer.getConfiguration(), iceServers });
    await peer.setLocalDescription({ type: "offer", sdp });
    await peer.setRemoteDescription({ type: "answer", sdp: lowLatencyAudio(answer.sdp) });
    await this.#opened();
  }

  /** @returns {Promise<void>} */
  #opened() {
    return new Promise((resolve, reject) => {
      const timer = setTimeout(fail, CONNECT_TIMEOUT_MS);
      const signal = this.#stopping.signal;
      const channel = this.#channel;
      const peer = this.#peer;
      function settle() {
        clearTimeout(timer);
        channel.removeEventListener("open", succeed);
        peer.removeEventListener("connectionstatechange", watch);
        signal.removeEventListener("abort", abort);
      }
      const succeed = () => {
        settle();
        this.#isUp = true;
        this.#watchSilence();
        resolve();
      };
      function fail() {
        settle();
        reject(new MediaPathError("No network path for sound and picture was found."));
      }
      function abort() {
        settle();
        reject(new DOMException("The call was closed", "AbortError"));
      }
      function watch() {
        if (peer.connectionState === "failed") fail();
      }
      signal.addEventListener("abort", abort);
      peer.addEventListener("connectionstatechange", watch);
      channel.addEventListener("open", succeed);
      if (signal.aborted) abort();
      else if (channel.readyState === "open") succeed();
    });
  }

  #listen() {
    const peer = this.#peer;
    peer.addEventListener("icecandidate", ({ candidate }) => {
      if (!this.#session || this.#stopping.signal.aborted) return;
      const { id, token } = this.#session;
      // A candidate that does not arrive costs one path, not the call.
      sendCandidate(id, token, {
        candidate: candidate?.candidate ?? "",
        sdpMid: candidate?.sdpMid ?? "0",
        sdpMLineIndex: candidate?.sdpMLineIndex ?? 0,
        usernameFragment: candidate?.usernameFragment ?? null,
      }).catch(() => undefined);
    });
    peer.addEventListener("track", ({ track, receiver }) => {
      playAtOnce(receiver);
      this.#remote.addTrack(track);
      this.#handlers.onStream(this.#remote);
    });
    peer.addEventListener("connectionstatechange", () => this.#watch());
    this.#channel.addEventListener("message", ({ data }) => this.#receive(data));
    this.#channel.addEventListener("close", () => this.#lost());
  }

  #watch() {
    const state = this.#peer.connectionState;
    clearTimeout(this.#grace);
    if (state === "failed" || state === "closed") this.#lost();
    if (state === "disconnected") {
      this.#grace = setTimeout(() => this.#lost(), DISCONNECTED_GRACE_MS);
    }
  }

  /** A computer that slept, or moved to another network, learns here that nobody speaks. */
  #watchSilence() {
    this.#heardAt = performance.now();
    this.#watching = setInterval(() => {
      if (performance.now() - this.#heardAt > SILENCE_MS) this.#lost();
    }, WATCH_EVERY_MS);
  }

  #lost() {
    if (!this.#isUp) return;
    this.#isUp = false;
    clearInterval(this.#watching);
    this.#handlers.onLost();
  }

  /** @param {unknown} data */
  #receive(data) {
    if (typeof data !== "string") return;
    this.#heardAt = performance.now();
    let message;
    try {
      message = JSON.parse(data);
    } catch {
      return;
    }
    if (message && typeof message.type === "string") this.#handlers.onMessage(message);
  }

  /**
   * Sends when the channel is open; otherwise the message is dropped, since state is sent
   * again after every connection.
   * @param {ClientMessage} message
   */
  send(message) {
    if (this.#channel.readyState === "open") this.#channel.send(JSON.stringify(message));
  }

  /** @param {MediaStreamTrack | null} track */
  async setCamera(track) {
    if (!this.#stopping.signal.aborted) await this.#video.sender.replaceTrack(track);
  }

  /** @param {MediaStreamTrack | null} track */
  async setMicrophone(track) {
    if (!this.#stopping.signal.aborted) await this.#audio.sender.replaceTrack(track);
  }

  /** Ends the call and its session, which frees the server's slot. Safe to call twice. */
  async close() {
    if (this.#stopping.signal.aborted) return;
    const ended = this.#session ? endSession(this.#session.id, this.#session.token) : null;
    this.abandon();
    await ended;
  }

  /** Ends the call and leaves its session to be resumed. Safe to call twice. */
  abandon() {
    if (this.#stopping.signal.aborted) return;
    this.#isUp = false;
    clearTimeout(this.#grace);
    clearInterval(this.#watching);
    this.#stopping.abort();
    this.#channel.close();
    this.#peer.close();
  }
}

/**
 * No buffering beyond what decoding needs.
 * @param {RTCRtpReceiver} receiver
 */
function playAtOnce(receiver) {
  if ("jitterBufferTarget" in receiver) receiver.jitterBufferTarget = 0;
  if ("playoutDelayHint" in receiver) receiver.playoutDelayHint = 0;
}
