// @ts-check
/**
 * What the address asks for, and the clean view: only the picture, for OBS and window capture.
 */

import { byId } from "./dom.js";

/**
 * @typedef {object} Wishes
 * @property {boolean} isClean `view=clean`
 * @property {string} portrait `portrait=ID`, "" when not asked
 * @property {boolean} isAutostart `autostart=1`
 * @property {boolean} wantsCamera `camera=1`
 * @property {boolean} wantsSound `sound=1`: plays the avatar's voice
 * @property {boolean} wantsMark `mark=1`: shows "AI" in the picture itself
 */

/**
 * @param {string} search location.search
 * @returns {Wishes}
 */
export function wishesOf(search) {
  const query = new URLSearchParams(search);
  /** @param {string} name */
  const isOn = (name) => ["1", "true", "yes", ""].includes(query.get(name) ?? "no");
  return {
    isClean: query.get("view") === "clean",
    portrait: query.get("portrait") ?? "",
    isAutostart: isOn("autostart"),
    wantsCamera: isOn("camera"),
    wantsSound: isOn("sound"),
    wantsMark: isOn("mark"),
  };
}

/** The way out is shown only while somebody moves: a capture of the window stays clean. */
const AWAKE_MS = 2500;

export class CleanView {
  #leave = byId("clean-leave", HTMLButtonElement);
  #enter = byId("clean-enter", HTMLButtonElement);
  /** @type {ReturnType<typeof setTimeout> | undefined} */ #sleep;

  constructor() {
    this.#enter.addEventListener("click", () => this.set(true));
    this.#leave.addEventListener("click", () => this.set(false));
    for (const event of ["pointermove", "pointerdown", "keydown"]) {
      window.addEventListener(event, () => this.#wake(), { passive: true });
    }
    window.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.isOn && !document.querySelector("dialog[open]")) {
        this.set(false);
      }
    });
  }

  get isOn() {
    return document.body.dataset.view === "clean";
  }

  #wake() {
    if (!this.isOn) return;
    document.body.classList.add("is-awake");
    clearTimeout(this.#sleep);
    this.#sleep = setTimeout(() => document.body.classList.remove("is-awake"), AWAKE_MS);
  }

  /** @param {boolean} isOn */
  set(isOn) {
    if (isOn === this.isOn) return;
    document.body.dataset.view = isOn ? "clean" : "full";
    (isOn ? this.#leave : this.#enter).focus();
  }
}

/**
 * The dialog that explains how to get into a meeting.
 * @param {() => string} portraitId the portrait chosen now, "" when none
 */
export function setUpHowTo(portraitId) {
  const dialog = byId("howto", HTMLDialogElement);
  const link = byId("howto-link", HTMLInputElement);
  const copy = byId("howto-copy", HTMLButtonElement);
  byId("howto-open", HTMLButtonElement).addEventListener("click", () => {
    const url = new URL("/", location.href);
    url.search = new URLSearchParams({
      view: "clean",
      portrait: portraitId() || "ID",
      autostart: "1",
    }).toString();
    link.value = url.href;
    copy.textContent = "Copy";
    dialog.showModal();
  });
  byId("howto-close", HTMLButtonElement).addEventListener("click", () => dialog.close());
  copy.addEventListener("click", () => {
    link.select();
    const copied = navigator.clipboard?.writeText(link.value) ?? Promise.reject(new Error("none"));
    copied.then(
      () => (copy.textContent = "Copied"),
      () => (copy.textContent = "Press Ctrl+C"),
    );
  });
}
