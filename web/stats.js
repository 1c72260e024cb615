// @ts-check
/**
 * What this receiver measures, once a second: getStats for the network and the buffers,
 * requestVideoFrameCallback for the frames a person really sees.
 * @import {ClientStats} from './protocol.js'
 */

const INTERVAL_MS = 1000;

/**
 * The fields of one getStats report that are used here; times in seconds, timestamps in ms.
 * @typedef {object} Sample
 * @property {number} atMs
 * @property {number} framesDecoded
 * @property {number} bufferDelayS
 * @property {number} bufferCount
 */

/**
 * @param {number} value
 * @param {number} low
 * @param {number} high
 */
function bounded(value, low, high) {
  return Number.isFinite(value) ? Math.min(Math.max(value, low), high) : 0;
}

export class StatsReporter {
  /** @type {RTCPeerConnection} */ #peer;
  /** @type {HTMLVideoElement} */ #video;
  /** @type {(report: ClientStats) => void} */ #onReport;
  /** @type {ReturnType<typeof setInterval> | undefined} */ #timer;
  /** @type {Sample | null} */ #last = null;
  #shown = 0;
  #frameHandle = 0;

  /**
   * @param {RTCPeerConnection} peer
   * @param {HTMLVideoElement} video
   * @param {(report: ClientStats) => void} onReport
   */
  constructor(peer, video, onReport) {
    this.#peer = peer;
    this.#video = video;
    this.#onReport = onReport;
  }

  start() {
    this.#countFrames();
    this.#timer = setInterval(() => void this.#report(), INTERVAL_MS);
  }

  stop() {
    clearInterval(this.#timer);
    if (this.#frameHandle) this.#video.cancelVideoFrameCallback(this.#frameHandle);
    this.#frameHandle = 0;
  }

  #countFrames() {
    if (!("requestVideoFrameCallback" in this.#video)) return;
    this.#frameHandle = this.#video.requestVideoFrameCallback(() => {
      this.#shown += 1;
      this.#countFrames();
    });
  }

  async #report() {
    if (this.#peer.connectionState === "closed") return;
    const stats = await this.#peer.getStats();
    /** @type {any} */ let video = {};
    /** @type {any} */ let audio = {};
    let rttS = 0;
    for (const entry of stats.values()) {
      if (entry.type === "inbound-rtp" && entry.kind === "video") video = entry;
      if (entry.type === "inbound-rtp" && entry.kind === "audio") audio = entry;
      if (entry.type === "candidate-pair" && entry.nominated && entry.currentRoundTripTime) {
        rttS = entry.currentRoundTripTime;
      }
    }
    const sample = {
      atMs: performance.now(),
      framesDecoded: video.framesDecoded ?? 0,
      bufferDelayS: video.jitterBufferDelay ?? 0,
      bufferCount: video.jitterBufferEmittedCount ?? 0,
    };
    const last = this.#last;
    this.#last = sample;
    const shown = this.#shown;
    this.#shown = 0;
    if (!last) return;
    const elapsedS = Math.max((sample.atMs - last.atMs) / 1000, 0.001);
    // A hidden page shows no frames; what was decoded still tells whether they arrive.
    const isSeen = !document.hidden && this.#frameHandle !== 0;
    const frames = isSeen ? shown : sample.framesDecoded - last.framesDecoded;
    const emitted = sample.bufferCount - last.bufferCount;
    const waitedS = emitted > 0 ? (sample.bufferDelayS - last.bufferDelayS) / emitted : 0;
    this.#onReport({
      type: "client_stats",
      fps: bounded(frames / elapsedS, 0, 1000),
      jitter_buffer_ms: bounded(waitedS * 1000, 0, 60_000),
      rtt_ms: bounded(rttS * 1000, 0, 60_000),
      av_skew_ms: bounded(skewMs(audio, video), -60_000, 60_000),
      freezes: Math.round(bounded(video.freezeCount ?? 0, 0, 1e9)),
      frames_dropped: Math.round(bounded(video.framesDropped ?? 0, 0, 1e9)),
    });
  }
}

/**
 * How far the picture that plays now is behind the sound that plays now, by the sender's
 * clock; positive when the picture is late, 0 where the browser does not tell.
 * @param {{estimatedPlayoutTimestamp?: number}} audio
 * @param {{estimatedPlayoutTimestamp?: number}} video
 */
function skewMs(audio, video) {
  const heard = audio.estimatedPlayoutTimestamp;
  const seen = video.estimatedPlayoutTimestamp;
  return heard && seen ? heard - seen : 0;
}
