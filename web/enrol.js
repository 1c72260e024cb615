// @ts-check
/**
 * The dialog that adds a portrait, from the webcam or from a file, with the consent of the
 * face's owner. Nothing leaves this computer before "Add portrait" is pressed.
 * @import {PortraitInfo} from './protocol.js'
 */

import { ApiError, enrolPortrait } from "./api.js";
import { DeviceError } from "./devices.js";
import { byId } from "./dom.js";
import { PhotoBooth } from "./photo.js";
import { nameFromFile, PictureError, preparePicture } from "./picture.js";

/** @typedef {'photo' | 'upload'} Mode */

export class EnrolDialog {
  #dialog = byId("enrol", HTMLDialogElement);
  #title = byId("enrol-title", HTMLElement);
  #drop = byId("drop", HTMLElement);
  #file = byId("enrol-file", HTMLInputElement);
  #viewfinder = byId("viewfinder", HTMLElement);
  #preview = byId("enrol-preview", HTMLImageElement);
  #shutter = byId("photo-take", HTMLButtonElement);
  #again = byId("enrol-again", HTMLButtonElement);
  #name = byId("enrol-name", HTMLInputElement);
  #consent = byId("enrol-consent", HTMLInputElement);
  #submit = byId("enrol-submit", HTMLButtonElement);
  #error = byId("enrol-error", HTMLElement);
  #errorTitle = byId("enrol-error-title", HTMLElement);
  #errorText = byId("enrol-error-text", HTMLElement);
  #booth = new PhotoBooth();
  /** @type {Mode} */ #mode = "upload";
  /** @type {Blob | null} */ #picture = null;
  /** @type {AbortController | null} */ #sending = null;
  #previewUrl = "";
  /** @type {(portrait: PortraitInfo) => void} */ #onAdded;

  /** @param {(portrait: PortraitInfo) => void} onAdded */
  constructor(onAdded) {
    this.#onAdded = onAdded;
    const form = byId("enrol-form", HTMLFormElement);
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      void this.#send();
    });
    byId("enrol-cancel", HTMLButtonElement).addEventListener("click", () => this.#dialog.close());
    byId("enrol-close", HTMLButtonElement).addEventListener("click", () => this.#dialog.close());
    this.#dialog.addEventListener("close", () => this.#reset());
    this.#shutter.addEventListener("click", () => void this.#take());
    this.#again.addEventListener("click", () => void this.#startOver());
    this.#file.addEventListener("change", () => {
      const file = this.#file.files?.[0];
      if (file) void this.useFile(file);
    });
    this.#consent.addEventListener("change", () => this.#refresh());
    this.#listenToDrops();
  }

  /** Files may be dropped anywhere on the page, not only in the dialog. */
  #listenToDrops() {
    /** @param {DragEvent} event */
    const carriesFile = (event) => event.dataTransfer?.types.includes("Files") ?? false;
    let depth = 0;
    const show = () => document.body.classList.toggle("is-dropping", depth > 0);
    window.addEventListener("dragenter", (event) => {
      if (!carriesFile(event)) return;
      depth += 1;
      show();
    });
    window.addEventListener("dragleave", (event) => {
      if (!carriesFile(event)) return;
      depth = Math.max(0, depth - 1);
      show();
    });
    window.addEventListener("dragover", (event) => {
      if (carriesFile(event)) event.preventDefault();
    });
    window.addEventListener("drop", (event) => {
      depth = 0;
      show();
      if (!carriesFile(event)) return;
      event.preventDefault();
      const file = event.dataTransfer?.files[0];
      if (!file || this.#sending) return;
      if (!this.#dialog.open || this.#mode !== "upload") this.open("upload");
      void this.useFile(file);
    });
  }

  /** @param {Mode} mode */
  open(mode) {
    this.#reset();
    this.#mode = mode;
    this.#dialog.dataset.mode = mode;
    this.#title.textContent = mode === "photo" ? "Take a portrait" : "Upload a portrait";
    if (!this.#dialog.open) this.#dialog.showModal();
    void this.#startOver();
  }

  async #startOver() {
    this.#setPicture(null);
    this.#hideError();
    this.#file.value = "";
    if (this.#mode === "upload") {
      this.#file.focus();
      return;
    }
    try {
      await this.#booth.open();
      this.#refresh();
      this.#shutter.focus();
    } catch (error) {
      this.#fail(error);
    }
  }

  async #take() {
    this.#shutter.disabled = true;
    const still = await this.#booth.take();
    if (still) {
      this.#booth.close();
      this.#setPicture(still);
      this.#name.focus();
    }
    this.#refresh();
  }

  /** @param {File} file */
  async useFile(file) {
    this.#hideError();
    try {
      const picture = await preparePicture(file);
      if (!this.#dialog.open) return;
      if (!this.#name.value) this.#name.value = nameFromFile(file.name);
      this.#setPicture(picture);
      this.#name.focus();
    } catch (error) {
      this.#setPicture(null);
      this.#fail(error);
    }
  }

  /** @param {Blob | null} picture */
  #setPicture(picture) {
    if (this.#previewUrl) URL.revokeObjectURL(this.#previewUrl);
    this.#previewUrl = picture ? URL.createObjectURL(picture) : "";
    this.#picture = picture;
    if (picture) this.#preview.src = this.#previewUrl;
    else this.#preview.removeAttribute("src");
    this.#refresh();
  }

  #refresh() {
    const hasPicture = this.#picture !== null;
    const isSending = this.#sending !== null;
    this.#preview.hidden = !hasPicture;
    this.#drop.hidden = hasPicture || this.#mode !== "upload";
    this.#viewfinder.hidden = hasPicture || this.#mode !== "photo";
    this.#shutter.hidden = this.#viewfinder.hidden;
    this.#shutter.disabled = !this.#booth.isReady;
    this.#again.hidden = !hasPicture;
    this.#again.disabled = isSending;
    this.#again.textContent = this.#mode === "photo" ? "Retake" : "Choose another";
    this.#submit.disabled = !hasPicture || !this.#consent.checked || isSending;
    this.#submit.textContent = isSending ? "Preparing…" : "Add portrait";
    this.#dialog.setAttribute("aria-busy", String(isSending));
  }

  async #send() {
    if (!this.#picture || !this.#consent.checked || this.#sending) return;
    this.#hideError();
    const sending = new AbortController();
    this.#sending = sending;
    this.#refresh();
    try {
      const name = this.#name.value.trim() || "My portrait";
      const portrait = await enrolPortrait(this.#picture, name, sending.signal);
      this.#sending = null;
      this.#dialog.close();
      this.#onAdded(portrait);
    } catch (error) {
      if (sending.signal.aborted) return;
      this.#sending = null;
      this.#refresh();
      this.#fail(error);
    }
  }

  /** @param {unknown} error */
  #fail(error) {
    let title = "This picture cannot be used";
    let text = error instanceof Error ? error.message : String(error);
    if (error instanceof ApiError) {
      title = error.title;
      text = error.detail;
      if (error.status === 413 && !text) text = "Choose a smaller picture.";
    } else if (error instanceof DeviceError) {
      title = error.title;
    } else if (!(error instanceof PictureError)) {
      title = "Something went wrong";
    }
    this.#errorTitle.textContent = title;
    this.#errorText.textContent = text;
    this.#error.hidden = false;
    this.#error.scrollIntoView({ block: "nearest" });
  }

  #hideError() {
    this.#error.hidden = true;
    this.#errorTitle.textContent = "";
    this.#errorText.textContent = "";
  }

  #reset() {
    this.#sending?.abort();
    this.#sending = null;
    this.#booth.close();
    this.#consent.checked = false;
    this.#name.value = "";
    this.#file.value = "";
    this.#hideError();
    this.#setPicture(null);
  }
}
