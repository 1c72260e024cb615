// @ts-check
/**
 * What the page says to a person: one message at a time on the stage, with at most one action,
 * and a polite live region for changes of state.
 */

import { ApiError } from "./api.js";
import { DeviceError } from "./devices.js";
import { byId, setIcon } from "./dom.js";
import { MediaPathError } from "./rtc.js";

/**
 * @typedef {object} Message
 * @property {'info' | 'warning' | 'error'} level
 * @property {string} title
 * @property {string} text
 * @property {{label: string, run: () => void}} [action]
 * @property {number} [countdownS] counts down in the message; the action appears at its end
 * @property {number} [lifeMs] goes away by itself; errors never do
 */

const ICONS = { info: "info", warning: "warning", error: "warning" };

export class Messages {
  #root = byId("message", HTMLElement);
  #title = byId("message-title", HTMLElement);
  #text = byId("message-text", HTMLElement);
  #action = byId("message-action", HTMLButtonElement);
  #countdown = byId("message-countdown", HTMLElement);
  #status = byId("status", HTMLElement);
  /** @type {ReturnType<typeof setTimeout> | undefined} */ #timer;
  /** @type {(() => void) | null} */ #run = null;

  constructor() {
    byId("message-close", HTMLButtonElement).addEventListener("click", () => this.clear());
    this.#action.addEventListener("click", () => {
      const run = this.#run;
      this.clear();
      run?.();
    });
  }

  /** @param {Message} message */
  show(message) {
    clearTimeout(this.#timer);
    this.#root.dataset.level = message.level;
    this.#root.setAttribute("role", message.level === "error" ? "alert" : "status");
    setIcon(this.#root, ICONS[message.level]);
    this.#title.textContent = message.title;
    this.#text.textContent = message.text;
    this.#run = message.action?.run ?? null;
    this.#action.hidden = !message.action;
    this.#action.textContent = message.action?.label ?? "";
    this.#countdown.hidden = true;
    this.#root.hidden = false;
    if (message.countdownS) this.#count(message.countdownS);
    else if (message.lifeMs) this.#timer = setTimeout(() => this.clear(), message.lifeMs);
  }

  /** @param {number} leftS */
  #count(leftS) {
    this.#countdown.hidden = false;
    this.#action.hidden = leftS > 0 || !this.#run;
    this.#countdown.textContent =
      leftS > 0 ? `Try again in ${leftS} s` : "You can try again now.";
    if (leftS > 0) this.#timer = setTimeout(() => this.#count(leftS - 1), 1000);
  }

  clear() {
    clearTimeout(this.#timer);
    if (this.#root.contains(document.activeElement)) {
      byId("start", HTMLButtonElement).focus();
    }
    this.#root.hidden = true;
    this.#run = null;
  }

  /**
   * Says something to screen readers only.
   * @param {string} text
   */
  announce(text) {
    this.#status.textContent = text;
  }
}

/**
 * A failure to start or to go on, in plain words.
 * @param {unknown} error
 * @param {boolean} wasLive
 * @param {() => void} retry
 * @returns {Message}
 */
export function failureMessage(error, wasLive, retry) {
  const again = { label: "Try again", run: retry };
  if (error instanceof DeviceError) {
    const action = error.code === "insecure-context" ? undefined : again;
    return { level: "error", title: error.title, text: error.message, action };
  }
  if (error instanceof ApiError && error.isTemporary && [429, 503].includes(error.status)) {
    return {
      level: "warning",
      title: error.title || "The server is full",
      text: error.detail,
      action: again,
      countdownS: error.retryAfterS,
    };
  }
  const title = wasLive ? "The connection was lost" : "The conversation did not start";
  if (error instanceof MediaPathError) {
    return {
      level: "error",
      title: wasLive ? title : "Sound and picture cannot get through",
      text:
        "The server answered, but no network path for media was found. A firewall or VPN may block UDP: " +
        "try another network, or ask whoever runs the server to set up TURN (“visavis doctor” tells what is missing).",
      action: again,
    };
  }
  if (error instanceof ApiError) {
    const text = error.detail ? `${error.title}. ${error.detail}` : `${error.title}.`;
    return { level: "error", title, text, action: again };
  }
  const reason = error instanceof Error && error.message ? error.message : "Something unexpected happened.";
  return { level: "error", title, text: reason, action: again };
}

/** Titles of the notices that a person meets in normal use; the text is the server's. */
const NOTICE_TITLES = {
  idle: "Ended after a long silence",
  face_missing: "Your face is not seen",
  frame_failed: "A picture could not be drawn",
  source_unusable: "That source cannot be used",
  quality_reduced: "A simpler picture for now",
  picture_frozen: "The picture waits",
  quality_restored: "Full quality again",
};

/**
 * @param {import('./protocol.js').Notice} notice
 * @returns {string}
 */
export function noticeTitle(notice) {
  const known = /** @type {Record<string, string>} */ (NOTICE_TITLES)[notice.code];
  if (known) return known;
  return { info: "Good to know", warning: "Please check", error: "Something is wrong" }[notice.level];
}
