// @ts-check
/**
 * What this receiver measures, once a second: getStats for the network and the buffers,
 * requestVideoFrameCallback for the frames a person really sees.
 * @import {ClientStats} from './protocol.js'
 */

const INTERVAL_MS = 1000;
/** Frames whose timing is kept between two reports; more never come. */
const MAX_TIMINGS = 240;

/**
 * The fields of one getStats report that are used here; times in seconds, timestamps in ms.
 * @typedef {object} Sample
 * @property {number} atMs
 * @property {number} framesDecoded
 * @property {Waits} picture
 * @property {Waits} voice
 * @property {Waits} decoding
 */

/**
 * Seconds waited so far, and by how many frames or samples.
 * @typedef {{totalS: number, count: number}} Waits
 */

/**
 * The mean wait of what came since the last report, in ms; getStats has sums only.
 * @param {Waits} now
 * @param {Waits} before
 */
function waitedMs(now, before) {
  const count = now.count - before.count;
  return count > 0 ? bounded(((now.totalS - before.totalS) / count) * 1000, 0, 60_000) : 0;
}

/** @param {number[]} values @returns {number} their 95th percentile, 0 of none */
function p95(values) {
  if (values.length === 0) return 0;
  const sorted = [...values].sort((a, b) => a - b);
  return bounded(sorted[Math.ceil(sorted.length * 0.95) - 1] ?? 0, 0, 60_000);
}

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
  /** from a frame's last packet until it is shown, ms @type {number[]} */ #present = [];
  /** from a frame's capture, by the sender's reports, until it is shown, ms @type {number[]} */ #glass = [];
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
    this.#frameHandle = this.#video.requestVideoFrameCallback((_now, frame) => {
      this.#shown += 1;
      const { expectedDisplayTime, receiveTime, captureTime } = frame;
      if (receiveTime && this.#present.length < MAX_TIMINGS) {
        this.#present.push(expectedDisplayTime - receiveTime);
      }
      if (captureTime && this.#glass.length < MAX_TIMINGS) {
        this.#glass.push(expectedDisplayTime - captureTime);
      }
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
      picture: waits(video.jitterBufferDelay, video.jitterBufferEmittedCount),
      voice: waits(audio.jitterBufferDelay, audio.jitterBufferEmittedCount),
      decoding: waits(video.totalDecodeTime, video.framesDecoded),
    };
    const last = this.#last;
    this.#last = sample;
    const { shown, present, glass } = this.#takeFrames();
    if (!last) return;
    const elapsedS = Math.max((sample.atMs - last.atMs) / 1000, 0.001);
    // A hidden page shows no frames; what was decoded still tells whether they arrive.
    const isSeen = !document.hidden && this.#frameHandle !== 0;
    const frames = isSeen ? shown : sample.framesDecoded - last.framesDecoded;
    this.#onReport({
      type: "client_stats",
      fps: bounded(frames / elapsedS, 0, 1000),
      jitter_buffer_ms: waitedMs(sample.picture, last.picture),
      voice_buffer_ms: waitedMs(sample.voice, last.voice),
      decode_ms: waitedMs(sample.decoding, last.decoding),
      present_ms: p95(present),
      glass_ms: p95(glass),
      rtt_ms: bounded(rttS * 1000, 0, 60_000),
      jitter_ms: bounded((video.jitter ?? 0) * 1000, 0, 60_000),
      av_skew_ms: bounded(skewMs(audio, video), -60_000, 60_000),
      freezes: count(video.freezeCount),
      freeze_ms: bounded((video.totalFreezesDuration ?? 0) * 1000, 0, 86_400_000),
      frames_dropped: count(video.framesDropped),
      packets_lost: count((video.packetsLost ?? 0) + (audio.packetsLost ?? 0)),
    });
  }

  /** What was shown since the last report; begins to count anew. */
  #takeFrames() {
    const taken = { shown: this.#shown, present: this.#present, glass: this.#glass };
    this.#shown = 0;
    this.#present = [];
    this.#glass = [];
    return taken;
  }
}

/**
 * @param {number | undefined} totalS
 * @param {number | undefined} count
 * @returns {Waits}
 */
function waits(totalS, count) {
  return { totalS: totalS ?? 0, count: count ?? 0 };
}

/** @param {number | undefined} value a counter that the browser may not have */
function count(value) {
  return Math.round(bounded(value ?? 0, 0, 1e9));
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
