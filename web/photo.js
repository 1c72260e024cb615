// @ts-check
/** Taking a portrait with the webcam: preview, countdown, a still, another try. */

import { openCamera } from "./devices.js";
import { byId, pause } from "./dom.js";
import { JPEG_QUALITY } from "./picture.js";

const COUNT_FROM = 3;
const STILL_PX = 1024;

export class PhotoBooth {
  #video = byId("photo-video", HTMLVideoElement);
  #count = byId("photo-count", HTMLElement);
  /** @type {MediaStreamTrack | null} */ #track = null;
  /** @type {AbortController | null} */ #stopping = null;

  /**
   * Opens the camera and shows its mirrored preview.
   * @throws {import('./devices.js').DeviceError}
   */
  async open() {
    this.close();
    const stopping = new AbortController();
    this.#stopping = stopping;
    const track = await openCamera();
    if (stopping.signal.aborted) {
      track.stop();
      return;
    }
    this.#track = track;
    // A still wants more pixels than the conversation does; a camera that cannot, keeps its own.
    const larger = { width: { ideal: 1280 }, height: { ideal: 960 } };
    await track.applyConstraints({ ...track.getConstraints(), ...larger }).catch(() => undefined);
    this.#video.srcObject = new MediaStream([track]);
    await this.#video.play().catch(() => undefined);
  }

  get isReady() {
    return this.#track !== null && this.#video.videoWidth > 0;
  }

  /**
   * Counts down, then takes the middle square of the picture.
   * @returns {Promise<Blob | null>} JPEG, not mirrored; null when closed meanwhile
   */
  async take() {
    const signal = this.#stopping?.signal;
    if (!signal) return null;
    this.#count.hidden = false;
    for (let left = COUNT_FROM; left > 0 && !signal.aborted; left -= 1) {
      this.#count.textContent = String(left);
      await pause(800, signal);
    }
    this.#count.hidden = true;
    if (signal.aborted || !this.isReady) return null;
    const { videoWidth: width, videoHeight: height } = this.#video;
    const side = Math.min(width, height);
    const canvas = document.createElement("canvas");
    canvas.width = canvas.height = Math.min(side, STILL_PX);
    canvas
      .getContext("2d")
      ?.drawImage(this.#video, (width - side) / 2, (height - side) / 2, side, side, 0, 0, canvas.width, canvas.height);
    return new Promise((resolve) => canvas.toBlob(resolve, "image/jpeg", JPEG_QUALITY));
  }

  /** Closes the camera. */
  close() {
    this.#stopping?.abort();
    this.#stopping = null;
    this.#track?.stop();
    this.#track = null;
    this.#video.srcObject = null;
    this.#count.hidden = true;
  }
}
