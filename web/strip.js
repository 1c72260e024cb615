// @ts-check
/**
 * The live strip: what the session delivers right now, in numbers.
 * @import {ClientStats, Hello, Stats} from './protocol.js'
 */

import { byId } from "./dom.js";

const NONE = "–";
const WEBCAM = { off: "Off", searching: "Searching", tracking: "Tracking" };
/** Beyond these a number is marked; the first is where lips visibly leave the sound. */
const SKEW_LIMIT_MS = 45;
const LATENCY_LIMIT_MS = 120;
const BUFFER_LIMIT_MS = 150;
/** The browser's skew jumps by a frame from report to report; this much of each counts. */
const SKEW_WEIGHT = 0.25;

export class Strip {
  #fps = byId("strip-fps", HTMLElement);
  #latency = byId("strip-latency", HTMLElement);
  #algorithmic = byId("strip-algorithmic", HTMLElement);
  #skew = byId("strip-skew", HTMLElement);
  #buffer = byId("strip-buffer", HTMLElement);
  /** smoothed, as this browser plays; null until it tells @type {number | null} */ #played = null;
  #engine = byId("strip-engine", HTMLButtonElement);
  #engineReason = byId("strip-engine-reason", HTMLElement);
  #webcam = byId("strip-webcam", HTMLElement);
  /** frames per second the server promises */ #wantedFps = 25;

  constructor() {
    this.#engine.addEventListener("keydown", (event) => {
      if (event.key === "Escape") this.#engine.blur();
    });
  }

  /** @param {Hello} hello */
  begin(hello) {
    this.#wantedFps = hello.fps;
    set(this.#algorithmic, hello.algorithmic_latency_ms.toFixed(0), "ms");
    this.#engine.textContent = hello.engine;
    this.#engine.disabled = false;
    this.#engineReason.textContent = hello.engine_reason;
  }

  /** @param {Stats} stats what the server measured */
  update(stats) {
    const p95 = stats.added_latency_ms.p95;
    set(this.#latency, p95.toFixed(0), "ms", p95 > LATENCY_LIMIT_MS);
    set(this.#algorithmic, stats.algorithmic_latency_ms.toFixed(0), "ms");
    // What this browser plays counts; until it tells, what left the server.
    const skew = this.#played ?? stats.av_skew_ms;
    const sign = skew >= 0.5 ? "+" : skew <= -0.5 ? "−" : "";
    set(this.#skew, sign + Math.abs(skew).toFixed(0), "ms", Math.abs(skew) > SKEW_LIMIT_MS);
    set(this.#webcam, WEBCAM[stats.webcam]);
    this.#webcam.dataset.state = stats.webcam;
  }

  /** @param {ClientStats} report what this page measured: the frames a person sees */
  shown(report) {
    set(this.#fps, report.fps.toFixed(0), "fps", report.fps < this.#wantedFps * 0.8);
    const bufferMs = report.jitter_buffer_ms ?? 0;
    // A hidden page shows nothing, and not every browser tells when it does.
    const shownMs = report.present_ms ? ` / ${report.present_ms.toFixed(0)}` : "";
    set(this.#buffer, bufferMs.toFixed(0) + shownMs, "ms", bufferMs > BUFFER_LIMIT_MS);
    const skewMs = report.av_skew_ms ?? 0;
    if (skewMs !== 0) {
      const before = this.#played ?? skewMs;
      this.#played = before + SKEW_WEIGHT * (skewMs - before);
    }
  }

  end() {
    this.#played = null;
    for (const cell of [this.#fps, this.#latency, this.#algorithmic, this.#skew, this.#buffer]) {
      set(cell, NONE);
    }
    set(this.#webcam, NONE);
    this.#webcam.dataset.state = "off";
    this.#engine.textContent = NONE;
    this.#engine.disabled = true;
    this.#engineReason.textContent = "";
  }
}

/**
 * @param {HTMLElement} cell
 * @param {string} value
 * @param {string} [unit]
 * @param {boolean} [isPoor]
 */
function set(cell, value, unit = "", isPoor = false) {
  const small = document.createElement("small");
  small.textContent = unit;
  cell.replaceChildren(value, ...(unit ? [" ", small] : []));
  cell.classList.toggle("is-poor", isPoor);
}
