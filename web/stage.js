// @ts-check
/**
 * The stage: the avatar's picture, the portrait before it moves, the person's own camera, and
 * the state of things in one word.
 * @import {PortraitInfo} from './protocol.js'
 */

import { byId, setIcon } from "./dom.js";

export class Stage {
  video = byId("video", HTMLVideoElement);
  #root = byId("stage", HTMLElement);
  #poster = byId("poster", HTMLImageElement);
  #state = byId("stage-state", HTMLElement);
  #selfView = byId("self-view", HTMLElement);
  #selfVideo = byId("self-video", HTMLVideoElement);
  #selfCaption = byId("self-caption", HTMLElement);
  /** @type {ReturnType<typeof setInterval> | undefined} */ #clock;
  #startedMs = 0;
  #isPaused = false;

  constructor() {
    this.video.addEventListener("playing", () => this.#root.classList.add("has-picture"));
  }

  /** @param {PortraitInfo} portrait */
  showPortrait(portrait) {
    this.#poster.src = portrait.thumbnail;
    this.#poster.alt = `Portrait: ${portrait.name}`;
    this.#root.classList.add("has-portrait");
  }

  /** @param {MediaStream} stream */
  play(stream) {
    if (this.video.srcObject !== stream) this.video.srcObject = stream;
    void this.video.play().catch(() => {
      // Sound may not start before a click; the picture always may.
      this.video.muted = true;
      void this.video.play().catch(() => undefined);
    });
  }

  /** Back to the still portrait. */
  stop() {
    this.video.srcObject = null;
    this.#root.classList.remove("has-picture");
    this.#isPaused = false;
  }

  /** Hides the picture that is frozen while a new call is opened. */
  dim() {
    this.#root.classList.remove("has-picture");
  }

  /** @param {boolean} isMarked whether the picture itself says that it is made by AI */
  setMarked(isMarked) {
    this.#root.classList.toggle("is-marked", isMarked);
  }

  /** @param {import('./conversation.js').Phase} phase */
  setPhase(phase) {
    document.body.dataset.phase = phase;
    clearInterval(this.#clock);
    if (phase === "live") {
      this.#startedMs = performance.now();
      this.#clock = setInterval(() => this.#showState(phase), 1000);
    }
    this.#showState(phase);
  }

  /** @param {boolean} isPaused */
  setPaused(isPaused) {
    this.#isPaused = isPaused;
    this.#showState("live");
  }

  /** @param {import('./conversation.js').Phase} phase */
  #showState(phase) {
    const seconds = Math.floor((performance.now() - this.#startedMs) / 1000);
    const clock = `${Math.floor(seconds / 60)}:${String(seconds % 60).padStart(2, "0")}`;
    const words = {
      idle: "Ready",
      starting: "Connecting",
      reconnecting: "Reconnecting",
      live: this.#isPaused ? "Paused" : `Live ${clock}`,
    };
    this.#state.dataset.state = phase === "live" && this.#isPaused ? "paused" : phase;
    const label = this.#state.lastElementChild;
    if (label) label.textContent = words[phase];
  }

  /** @param {MediaStreamTrack | null} track */
  setSelfView(track) {
    this.#selfVideo.srcObject = track ? new MediaStream([track]) : null;
    this.#selfView.hidden = !track;
  }

  /** @param {'off' | 'searching' | 'tracking' | null} state null before the server has told */
  setTracking(state) {
    const words = { off: "Not in use", searching: "Looking for you", tracking: "Tracking" };
    this.#selfView.dataset.state = state ?? "none";
    this.#selfCaption.textContent = state ? words[state] : "Your camera";
  }
}

/**
 * A button that is on or off: pressed state, icon and label together.
 * @param {HTMLButtonElement} button
 * @param {boolean} isOn
 * @param {{icon: string, label: string}} look
 */
export function setToggle(button, isOn, look) {
  button.setAttribute("aria-pressed", String(isOn));
  setIcon(button, look.icon);
  const label = button.querySelector(".tool-label");
  if (label) label.textContent = look.label;
}
