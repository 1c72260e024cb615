// @ts-check
/**
 * Microphone and camera: opening, switching, muting, and saying in plain words what is wrong
 * when the browser refuses.
 */

/** @typedef {'microphone' | 'camera'} DeviceKind */

/** A device that cannot be used; `message` says what to do about it. */
export class DeviceError extends Error {
  /**
   * @param {string} code
   * @param {string} title
   * @param {string} advice
   */
  constructor(code, title, advice) {
    super(advice);
    this.name = "DeviceError";
    this.code = code;
    this.title = title;
  }
}

/** @type {MediaTrackConstraints} */
const MICROPHONE = {
  channelCount: { ideal: 1 },
  echoCancellation: true,
  noiseSuppression: true,
  autoGainControl: true,
};

/** @type {MediaTrackConstraints} */
const CAMERA = {
  width: { ideal: 640 },
  height: { ideal: 480 },
  frameRate: { ideal: 30 },
  facingMode: "user",
};

/**
 * @param {unknown} error what getUserMedia threw
 * @param {DeviceKind} kind
 * @returns {DeviceError}
 */
export function explain(error, kind) {
  if (error instanceof DeviceError) return error;
  const name = error instanceof DOMException ? error.name : "";
  const Kind = kind === "camera" ? "Camera" : "Microphone";
  switch (name) {
    case "NotAllowedError":
    case "SecurityError":
      return new DeviceError(
        "permission-denied",
        `${Kind} access is blocked`,
        `Open the site settings next to the address bar, allow the ${kind} for this page, and try again. ` +
          `If it is allowed there, check your system's privacy settings for the browser.`,
      );
    case "NotFoundError":
    case "OverconstrainedError":
      return new DeviceError(
        "no-device",
        `No ${kind} was found`,
        `Plug one in or switch it on, make sure your system lists it, and try again.`,
      );
    case "NotReadableError":
    case "AbortError":
      return new DeviceError(
        "device-busy",
        `The ${kind} is busy`,
        `Another program is using it or it stopped answering. Close other calls, unplug and replug it, and try again.`,
      );
    default:
      return new DeviceError(
        "device-failed",
        `The ${kind} could not be opened`,
        error instanceof Error && error.message ? error.message : "Try another device or browser.",
      );
  }
}

/** @throws {DeviceError} when this page cannot use devices or calls at all */
export function requireSupport() {
  if (!window.isSecureContext) {
    throw new DeviceError(
      "insecure-context",
      "This address is not secure",
      `Browsers lend the microphone and camera only to https:// pages and to localhost. ` +
        `Open this page as https://${location.host}, or on the server's own machine as ` +
        `http://localhost${location.port ? `:${location.port}` : ""}.`,
    );
  }
  if (!navigator.mediaDevices?.getUserMedia || !("RTCPeerConnection" in window)) {
    throw new DeviceError(
      "unsupported",
      "This browser cannot make calls",
      "Use a current version of Chrome, Edge, Firefox or Safari, with WebRTC allowed.",
    );
  }
}

/**
 * @param {DeviceKind} kind
 * @param {MediaTrackConstraints} wanted
 * @param {string} deviceId "" for the system's choice
 * @returns {Promise<MediaStreamTrack>}
 * @throws {DeviceError}
 */
async function open(kind, wanted, deviceId) {
  requireSupport();
  const constraints = deviceId ? { ...wanted, deviceId: { exact: deviceId } } : wanted;
  const field = kind === "camera" ? "video" : "audio";
  try {
    const stream = await navigator.mediaDevices.getUserMedia({ [field]: constraints });
    const track = stream.getTracks()[0];
    if (!track) throw new DOMException("no track", "NotFoundError");
    return track;
  } catch (error) {
    throw explain(error, kind);
  }
}

/** @param {string} [deviceId] */
export function openCamera(deviceId = "") {
  return open("camera", CAMERA, deviceId);
}

/** The microphone and camera in use. `onEnded` is called when one disappears by itself. */
export class Devices {
  /** @type {MediaStreamTrack | null} */ microphone = null;
  /** @type {MediaStreamTrack | null} */ camera = null;
  #muted = false;
  /** @type {(kind: DeviceKind) => void} */ #onEnded;

  /** @param {(kind: DeviceKind) => void} onEnded */
  constructor(onEnded) {
    this.#onEnded = onEnded;
  }

  /**
   * Opens the microphone, or another one, closing the one before.
   * @param {string} [deviceId]
   * @throws {DeviceError}
   */
  async startMicrophone(deviceId = "") {
    const track = await open("microphone", MICROPHONE, deviceId);
    this.microphone?.stop();
    this.microphone = track;
    track.enabled = !this.#muted;
    if ("contentHint" in track) track.contentHint = "speech";
    track.addEventListener("ended", () => {
      if (this.microphone === track) this.#onEnded("microphone");
    });
    return track;
  }

  /**
   * @param {string} [deviceId]
   * @throws {DeviceError}
   */
  async startCamera(deviceId = "") {
    const track = await openCamera(deviceId);
    this.camera?.stop();
    this.camera = track;
    if ("contentHint" in track) track.contentHint = "motion";
    track.addEventListener("ended", () => {
      if (this.camera === track) this.#onEnded("camera");
    });
    return track;
  }

  stopMicrophone() {
    this.microphone?.stop();
    this.microphone = null;
  }

  stopCamera() {
    this.camera?.stop();
    this.camera = null;
  }

  get muted() {
    return this.#muted;
  }

  set muted(muted) {
    this.#muted = muted;
    if (this.microphone) this.microphone.enabled = !muted;
  }
}

/**
 * Fills a select with the devices of one kind, keeping its choice. Names are only known once
 * the person has allowed access.
 * @param {HTMLSelectElement} select
 * @param {DeviceKind} kind
 */
export async function listDevices(select, kind) {
  if (!navigator.mediaDevices?.enumerateDevices) return;
  const wanted = kind === "camera" ? "videoinput" : "audioinput";
  const found = (await navigator.mediaDevices.enumerateDevices()).filter(
    (device) => device.kind === wanted && device.deviceId && device.deviceId !== "default",
  );
  const chosen = select.value;
  select.replaceChildren(new Option("System default", ""));
  found.forEach((device, index) => {
    const label = device.label || `${kind === "camera" ? "Camera" : "Microphone"} ${index + 1}`;
    select.append(new Option(label, device.deviceId));
  });
  select.value = found.some((device) => device.deviceId === chosen) ? chosen : "";
}
