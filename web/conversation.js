// @ts-check
/**
 * The life of a conversation: idle → starting → live → (reconnecting → live)* → idle. It owns
 * the call and tries again by itself when one is lost: first with the same session, which the
 * server keeps for half a minute, then with a new one. It knows nothing of the page.
 * @import {ClientMessage, ServerMessage, SessionRequest} from './protocol.js'
 */

import { ApiError, endSession } from "./api.js";
import { Call, MediaPathError } from "./rtc.js";
import { pause } from "./dom.js";

const RETRY_DELAYS_MS = [300, 1000, 2000, 4000, 8000];
/** How often to ask a server that is still loading its networks. */
const MAX_WAITS = 40;

/** @typedef {'idle' | 'starting' | 'live' | 'reconnecting'} Phase */
/** @typedef {Omit<SessionRequest, 'sdp' | 'type'>} Choice */

/**
 * @typedef {object} ConversationHandlers
 * @property {(phase: Phase) => void} onPhase
 * @property {(message: ServerMessage) => void} onMessage
 * @property {(stream: MediaStream) => void} onStream
 * @property {(error: unknown, wasLive: boolean) => void} onFailure it gave up; phase is idle
 * @property {(error: ApiError) => void} onWait the server is still loading; it is asked again
 * @property {() => Choice} choose what to open a session with, asked again at every attempt
 */

export class Conversation {
  /** @type {ConversationHandlers} */ #handlers;
  /** @type {import('./devices.js').Devices} */ #devices;
  /** @type {Call | null} */ #call = null;
  /** @type {import('./rtc.js').SessionKey | null} the lost session, while it may be resumed */
  #kept = null;
  /** @type {Phase} */ #phase = "idle";
  #stopping = new AbortController();

  /**
   * @param {import('./devices.js').Devices} devices
   * @param {ConversationHandlers} handlers
   */
  constructor(devices, handlers) {
    this.#devices = devices;
    this.#handlers = handlers;
  }

  get phase() {
    return this.#phase;
  }

  /** The peer connection of the present call, for measuring. */
  get peer() {
    return this.#call?.peer ?? null;
  }

  /** @param {Phase} phase */
  #enter(phase) {
    if (phase === this.#phase) return;
    this.#phase = phase;
    this.#handlers.onPhase(phase);
  }

  /**
   * Opens the first call. Failure ends in phase idle, told through `onFailure`.
   * @param {() => Promise<void>} prepare opens the microphone
   */
  async start(prepare) {
    if (this.#phase !== "idle") return;
    this.#stopping = new AbortController();
    const signal = this.#stopping.signal;
    this.#enter("starting");
    try {
      await prepare();
      if (signal.aborted) return;
      await this.#dialWhenReady(signal);
      if (!signal.aborted) this.#enter("live");
    } catch (error) {
      if (!signal.aborted) await this.#giveUp(error, false);
    }
  }

  /** @param {AbortSignal} signal */
  async #dialWhenReady(signal) {
    for (let waits = 0; ; waits += 1) {
      try {
        return await this.#dial();
      } catch (error) {
        const isLoading = error instanceof ApiError && error.code === "not-ready";
        if (!isLoading || waits >= MAX_WAITS || signal.aborted) throw error;
        this.#handlers.onWait(error);
        await Promise.all([this.#call?.close(), pause(error.retryAfterS * 1000, signal)]);
        if (signal.aborted) throw error;
      }
    }
  }

  async #dial() {
    const { onMessage, onStream, choose } = this.#handlers;
    const { microphone, camera } = this.#devices;
    const handlers = { onMessage, onStream, onLost: () => void this.#reconnect() };
    const call = new Call(handlers, microphone, camera);
    this.#call = call;
    await call.open(choose(), this.#kept);
    this.#kept = null;
    // The devices may have changed while the call was being opened.
    if (this.#devices.camera !== camera) await call.setCamera(this.#devices.camera);
    if (this.#devices.microphone !== microphone) {
      await call.setMicrophone(this.#devices.microphone);
    }
  }

  async #reconnect() {
    if (this.#phase !== "live") return;
    this.#enter("reconnecting");
    const signal = this.#stopping.signal;
    /** @type {unknown} */
    let failure = null;
    this.#kept = this.#call?.session ?? null;
    for (const delayMs of RETRY_DELAYS_MS) {
      if (this.#kept) this.#call?.abandon();
      else void this.#call?.close();
      await this.#waitForNetwork(failure instanceof ApiError && failure.status === 503
        ? failure.retryAfterS * 1000
        : delayMs, signal);
      if (signal.aborted) return;
      try {
        await this.#dial();
        if (!signal.aborted) this.#enter("live");
        return;
      } catch (error) {
        if (signal.aborted) return;
        failure = error;
        const canHelp =
          error instanceof MediaPathError || (error instanceof ApiError && error.isTemporary);
        if (canHelp) continue;
        if (!this.#kept) break;
        // The server does not know the session any more: the next try opens a new one.
        this.#kept = null;
      }
    }
    await this.#giveUp(failure, true);
  }

  /**
   * Waits, but not longer than until the browser says the network is back.
   * @param {number} delayMs
   * @param {AbortSignal} signal
   */
  async #waitForNetwork(delayMs, signal) {
    const online = new AbortController();
    const wake = () => online.abort();
    window.addEventListener("online", wake, { once: true });
    signal.addEventListener("abort", wake, { once: true });
    await pause(delayMs, online.signal);
    window.removeEventListener("online", wake);
    signal.removeEventListener("abort", wake);
  }

  /**
   * @param {unknown} error
   * @param {boolean} wasLive
   */
  async #giveUp(error, wasLive) {
    this.#forget();
    const closing = this.#call?.close();
    this.#call = null;
    this.#enter("idle");
    this.#handlers.onFailure(error, wasLive);
    await closing;
  }

  /** Ends a lost session that nobody will resume. */
  #forget() {
    if (this.#kept) void endSession(this.#kept.id, this.#kept.token);
    this.#kept = null;
  }

  /** Opens a new call with a new choice, keeping microphone and camera open. */
  async restart() {
    if (this.#phase === "idle") return;
    this.#forget();
    this.#stopping.abort();
    this.#stopping = new AbortController();
    const signal = this.#stopping.signal;
    this.#enter("starting");
    const closing = this.#call?.close();
    this.#call = null;
    // One session less before one more: the server may have a single slot.
    await Promise.race([closing, pause(3000)]);
    if (signal.aborted) return;
    try {
      await this.#dial();
      if (!signal.aborted) this.#enter("live");
    } catch (error) {
      if (!signal.aborted) await this.#giveUp(error, true);
    }
  }

  /** Ends everything now. The server is told even when the page is going away. */
  async stop() {
    this.#stopping.abort();
    this.#forget();
    const closing = this.#call?.close();
    this.#call = null;
    this.#enter("idle");
    await closing;
  }

  /** @param {ClientMessage} message */
  send(message) {
    this.#call?.send(message);
  }

  /** Hands the devices' present tracks to the call. */
  async updateTracks() {
    await this.#call?.setCamera(this.#devices.camera);
    await this.#call?.setMicrophone(this.#devices.microphone);
  }
}
