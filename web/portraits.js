// @ts-check
/**
 * The tray of portraits: a native radio group, so that arrow keys work everywhere.
 * @import {PortraitInfo} from './protocol.js'
 */

import { listPortraits } from "./api.js";
import { byId, element } from "./dom.js";

const REMEMBERED = "visavis.portrait";
/** Arrow keys pass over portraits; only the one a person rests on counts. */
const SETTLE_MS = 450;

/** @returns {string} the portrait chosen last time on this browser, or "" */
function remembered() {
  try {
    return localStorage.getItem(REMEMBERED) ?? "";
  } catch {
    return "";
  }
}

/** @param {string} id */
function remember(id) {
  try {
    localStorage.setItem(REMEMBERED, id);
  } catch {
    // Storage can be switched off; then nothing is remembered.
  }
}

export class PortraitTray {
  #list = byId("portrait-list", HTMLElement);
  #empty = byId("portrait-empty", HTMLElement);
  /** @type {(portrait: PortraitInfo, isSettled: boolean) => void} */ #onChoose;
  /** @type {PortraitInfo[]} */ #portraits = [];
  /** @type {ReturnType<typeof setTimeout> | undefined} */ #settle;
  /** @type {PortraitInfo | null} */ chosen = null;

  /**
   * @param {(portrait: PortraitInfo, isSettled: boolean) => void} onChoose called at once with
   *   `isSettled` false, and with true when the choice has stood for a moment
   */
  constructor(onChoose) {
    this.#onChoose = onChoose;
    this.#list.addEventListener("change", (event) => {
      if (event.target instanceof HTMLInputElement) this.choose(event.target.value);
    });
  }

  /**
   * Loads and shows the portraits.
   * @param {string} [wanted] id to choose, before the remembered one
   * @throws {import('./api.js').ApiError}
   */
  async load(wanted = "") {
    this.#list.setAttribute("aria-busy", "true");
    try {
      this.#portraits = await listPortraits();
    } finally {
      this.#list.removeAttribute("aria-busy");
    }
    this.#list.replaceChildren(...this.#portraits.map(card));
    this.#empty.hidden = this.#portraits.length > 0;
    for (const id of [wanted, remembered()]) {
      if (this.#portraits.some((portrait) => portrait.id === id)) {
        this.choose(id);
        break;
      }
    }
  }

  /** @param {PortraitInfo} portrait a portrait that was just enrolled; it becomes the choice */
  add(portrait) {
    this.#portraits = [portrait, ...this.#portraits.filter((other) => other.id !== portrait.id)];
    this.#list.querySelector(`[data-portrait="${CSS.escape(portrait.id)}"]`)?.remove();
    this.#list.prepend(card(portrait));
    this.#empty.hidden = true;
    this.choose(portrait.id);
    this.#list.scrollTo({ left: 0, top: 0 });
  }

  /** @param {string} id */
  choose(id) {
    const portrait = this.#portraits.find((candidate) => candidate.id === id);
    if (!portrait) return;
    this.chosen = portrait;
    remember(id);
    for (const input of this.#list.querySelectorAll("input")) input.checked = input.value === id;
    this.#onChoose(portrait, false);
    clearTimeout(this.#settle);
    this.#settle = setTimeout(() => this.#onChoose(portrait, true), SETTLE_MS);
  }

  /** Moves the keyboard to the tray. */
  focus() {
    const input = this.#list.querySelector("input:checked") ?? this.#list.querySelector("input");
    if (input instanceof HTMLElement) input.focus();
  }
}

/** @param {PortraitInfo} portrait */
function card(portrait) {
  const picture = element("img", {
    src: portrait.thumbnail,
    alt: "",
    width: 160,
    height: 160,
    loading: "lazy",
    decoding: "async",
    draggable: "false",
  });
  const label = element("label", { class: "portrait", "data-portrait": portrait.id },
    element("input", { type: "radio", name: "portrait", value: portrait.id }),
    element("span", { class: "portrait-picture" }, picture),
    element("span", { class: "portrait-name" }, portrait.name),
  );
  if (portrait.kind === "uploaded") {
    label.append(element("span", { class: "portrait-badge" }, "Yours"));
  }
  return label;
}
