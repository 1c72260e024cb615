// @ts-check
/**
 * The controls of the four factors: source, strength, presets and sliders. The server is the
 * truth: what a person changes is sent, and what comes back in `state` is shown.
 * @import {ClientMessage, Factor, FactorState, Hello, SessionRequest, Slider, SourceKind} from './protocol.js'
 */

import { byId, element, icon, readable, throttled } from "./dom.js";

/** @type {{factor: Factor, title: string, hint: string, icon: string}[]} */
const FACTORS = [
  { factor: "lip", title: "Lips", hint: "The mouth as you speak", icon: "lips" },
  { factor: "pose", title: "Head", hint: "Turn, nod and tilt", icon: "head" },
  { factor: "eye", title: "Eyes", hint: "Gaze and blinking", icon: "eye" },
  { factor: "exp", title: "Expression", hint: "Brows, smile and mood", icon: "mood" },
];

/** @type {Record<SourceKind, string>} */
const SOURCES = {
  mic: "Microphone",
  webcam: "Webcam",
  preset: "Preset",
  slider: "Sliders",
  idle: "Idle motion",
  clip: "Clip",
};

/** What a factor does without a webcam. @type {Record<Factor, SourceKind>} */
const WITHOUT_CAMERA = { lip: "mic", pose: "idle", eye: "idle", exp: "idle" };

const FADE_MS = 250;
const SEND_INTERVAL_MS = 60;
const MAX_GAIN = 2;

/**
 * @typedef {object} ControlHandlers
 * @property {(message: ClientMessage) => void} send
 * @property {() => void} onWantCamera the person asked for the camera from a control
 */

export class Controls {
  #root = byId("factors", HTMLElement);
  #hint = byId("controls-hint", HTMLElement);
  /** @type {FactorControl[]} */ #factors;
  #isCameraOn = false;

  /** @param {ControlHandlers} handlers */
  constructor(handlers) {
    this.#factors = FACTORS.map((about) => new FactorControl(about, handlers));
    this.#root.append(...this.#factors.map((control) => control.root));
    this.disable();
  }

  /** @param {Hello} hello what this session allows; settings of a session before are sent again */
  enable(hello) {
    this.#hint.hidden = true;
    for (const control of this.#factors) control.enable(hello);
    this.update(hello.factors);
  }

  disable() {
    this.#hint.hidden = false;
    for (const control of this.#factors) control.disable();
  }

  /** @param {FactorState[]} states */
  update(states) {
    for (const state of states) {
      this.#factors.find((control) => control.factor === state.factor)?.update(state);
    }
  }

  /**
   * A camera that is switched on takes over head, eyes and expression where they idle; switched
   * off, it leaves nothing waiting for it.
   * @param {boolean} isOn
   */
  setCamera(isOn) {
    this.#isCameraOn = isOn;
    for (const control of this.#factors) control.setCamera(isOn);
  }

  /**
   * What to open a session with: what the person has set, and before that only what follows
   * from the camera.
   * @returns {SessionRequest['sources']}
   */
  get sources() {
    /** @type {SessionRequest['sources']} */
    const sources = {};
    for (const { factor, state } of this.#factors) {
      if (state) sources[factor] = { source: state.source, name: state.name };
      else if (this.#isCameraOn && factor !== "lip") sources[factor] = { source: "webcam" };
    }
    return sources;
  }
}

/** One factor's card. */
class FactorControl {
  /** @type {Factor} */ factor;
  /** @type {HTMLElement} */ root;
  /** @type {FactorState | null} */ state = null;
  /** @type {ControlHandlers} */ #handlers;
  /** @type {HTMLSelectElement} */ #source;
  /** @type {HTMLSelectElement} */ #name;
  /** @type {HTMLInputElement} */ #gain;
  /** @type {HTMLOutputElement} */ #gainText;
  #presets = element("div", { class: "presets", role: "group" });
  #sliders = element("div", { class: "sliders", hidden: true });
  /** @type {HTMLElement} */ #cameraHint;
  /** @type {Record<string, string[]>} */ #names = {};
  /** @type {Map<string, number>} slider values of this and earlier sessions */ #values = new Map();
  /** @type {Map<string, number>} slider values not sent yet */ #moved = new Map();
  #isCameraOn = false;
  #sendGain;
  #sendSliders;

  /**
   * @param {{factor: Factor, title: string, hint: string, icon: string}} about
   * @param {ControlHandlers} handlers
   */
  constructor(about, handlers) {
    this.factor = about.factor;
    this.#handlers = handlers;
    const id = (/** @type {string} */ part) => `${about.factor}-${part}`;
    this.#source = element("select", { id: id("source"), class: "select", "aria-label": `${about.title} source` });
    this.#name = element("select", { class: "select select-name", "aria-label": `${about.title}: which one`, hidden: true });
    this.#gain = element("input", {
      id: id("gain"), type: "range", class: "range", min: 0, max: MAX_GAIN, step: 0.05, value: 1,
    });
    this.#gainText = element("output", { class: "value", for: id("gain") }, "100 %");
    this.#presets.setAttribute("aria-label", `${about.title} presets`);
    this.#cameraHint = this.#makeCameraHint();
    this.root = element("section", { class: "factor", "aria-labelledby": id("title") },
      element("div", { class: "factor-head" },
        icon(about.icon),
        element("div", { class: "factor-title" },
          element("h3", { id: id("title") }, about.title),
          element("p", {}, about.hint),
        ),
        this.#source,
      ),
      this.#cameraHint,
      this.#name,
      this.#presets,
      this.#sliders,
      element("div", { class: "strength" },
        element("label", { for: id("gain") }, "Strength"), this.#gain, this.#gainText,
      ),
    );
    this.#sendGain = throttled((_key, /** @type {number} */ gain) => {
      handlers.send({ type: "set_gain", factor: this.factor, gain });
    }, SEND_INTERVAL_MS);
    this.#sendSliders = throttled(() => {
      const values = Object.fromEntries(this.#moved);
      this.#moved.clear();
      handlers.send({ type: "set_slider", factor: this.factor, values });
    }, SEND_INTERVAL_MS);
    this.#listen();
    this.#showGain(1);
  }

  #makeCameraHint() {
    const button = element("button", { type: "button", class: "link" }, "Turn it on");
    button.addEventListener("click", () => this.#handlers.onWantCamera());
    return element("p", { class: "factor-note", hidden: true }, "The camera is off. ", button);
  }

  #listen() {
    this.#source.addEventListener("change", () => {
      const source = /** @type {SourceKind} */ (this.#source.value);
      this.#choose(source, this.#names[source]?.[0] ?? null);
    });
    this.#name.addEventListener("change", () => {
      this.#choose(/** @type {SourceKind} */ (this.#source.value), this.#name.value);
    });
    this.#gain.addEventListener("input", () => {
      const gain = this.#gain.valueAsNumber;
      this.#showGain(gain);
      this.#sendGain("gain", gain);
    });
    this.#gain.addEventListener("dblclick", () => {
      this.#showGain(1);
      this.#sendGain("gain", 1);
    });
    this.#presets.addEventListener("click", (event) => {
      const button = event.target instanceof Element ? event.target.closest("button") : null;
      if (button) this.#choose("preset", button.value);
    });
  }

  /**
   * @param {SourceKind} source
   * @param {string | null} name
   */
  #choose(source, name) {
    const message = { factor: this.factor, source, name, fade_ms: FADE_MS };
    this.#handlers.send({ type: "set_source", ...message });
    this.update({ factor: this.factor, source, name, gain: this.#gain.valueAsNumber });
  }

  /** @param {number} gain */
  #showGain(gain) {
    const percent = `${Math.round(gain * 100)} %`;
    this.#gain.value = String(gain);
    this.#gain.style.setProperty("--fill", `${(gain / MAX_GAIN) * 100}%`);
    this.#gain.setAttribute("aria-valuetext", percent);
    this.#gainText.textContent = percent;
  }

  /** @param {Hello} hello */
  enable(hello) {
    const earlier = this.state;
    this.#names = { preset: hello.presets[this.factor], clip: hello.clips };
    const allowed = (hello.allowed_sources[this.factor] ?? []).filter(
      (source) => this.#names[source]?.length !== 0,
    );
    this.#source.replaceChildren(...allowed.map((source) => new Option(SOURCES[source], source)));
    for (const control of [this.#source, this.#name, this.#gain]) control.disabled = false;
    const offersPresets = this.factor === "exp" && allowed.includes("preset");
    this.#presets.replaceChildren(...(offersPresets ? (this.#names.preset ?? []).map(presetButton) : []));
    this.#showSliders(hello.sliders[this.factor] ?? []);
    if (earlier && Math.abs(earlier.gain - 1) > 0.001) this.#sendGain("gain", earlier.gain);
    if (this.#values.size > 0) {
      const values = Object.fromEntries(this.#values);
      this.#handlers.send({ type: "set_slider", factor: this.factor, values });
    }
  }

  disable() {
    if (this.#source.options.length === 0) this.#source.append(new Option("–", ""));
    for (const control of this.root.querySelectorAll("select, input, .presets button")) {
      /** @type {HTMLInputElement} */ (control).disabled = true;
    }
    this.#cameraHint.hidden = true;
  }

  /** @param {FactorState} state */
  update(state) {
    this.state = state;
    this.#source.value = state.source;
    const names = this.factor === "exp" && state.source === "preset" ? [] : this.#names[state.source] ?? [];
    this.#name.hidden = names.length === 0;
    if (names.length > 0) {
      this.#name.replaceChildren(...names.map((name) => new Option(readable(name), name)));
      this.#name.value = state.name ?? names[0] ?? "";
    }
    for (const button of this.#presets.querySelectorAll("button")) {
      const isOn = state.source === "preset" && state.name === button.value;
      button.setAttribute("aria-pressed", String(isOn));
    }
    this.#sliders.hidden = state.source !== "slider" || this.#sliders.childElementCount === 0;
    // While a person moves the slider, its own echo must not pull it back.
    if (document.activeElement !== this.#gain) this.#showGain(state.gain);
    this.#showCameraHint();
  }

  /** @param {boolean} isOn */
  setCamera(isOn) {
    const wasOn = this.#isCameraOn;
    this.#isCameraOn = isOn;
    const source = this.state?.source;
    const isAllowed = [...this.#source.options].some((option) => option.value === "webcam");
    if (isOn && !wasOn && source === "idle" && isAllowed) this.#choose("webcam", null);
    if (!isOn && wasOn && source === "webcam") this.#choose(WITHOUT_CAMERA[this.factor], null);
    this.#showCameraHint();
  }

  #showCameraHint() {
    const isOn = this.#isCameraOn;
    this.#cameraHint.hidden = isOn || this.#source.disabled || this.state?.source !== "webcam";
  }

  /** @param {Slider[]} sliders */
  #showSliders(sliders) {
    const known = new Set(sliders.map((slider) => slider.name));
    for (const name of this.#values.keys()) if (!known.has(name)) this.#values.delete(name);
    const rows = sliders.map((slider) => this.#sliderRow(slider));
    if (rows.length === 0) {
      this.#sliders.replaceChildren();
      return;
    }
    const reset = element("button", { type: "button", class: "link" }, "Reset all");
    reset.addEventListener("click", () => {
      for (const input of this.#sliders.querySelectorAll("input")) {
        input.value = input.defaultValue;
        input.dispatchEvent(new Event("input"));
      }
    });
    this.#sliders.replaceChildren(...rows, reset);
  }

  /** @param {Slider} slider */
  #sliderRow(slider) {
    const id = `${this.factor}-slider-${slider.name.replace(/\W+/g, "-")}`;
    const { minimum = 0, maximum = 1, default: initial = 0 } = slider;
    const span = maximum - minimum || 1;
    const input = element("input", {
      id, type: "range", class: "range", min: minimum, max: maximum, step: "any", value: initial,
    });
    const output = element("output", { class: "value", for: id });
    const show = () => {
      const value = input.valueAsNumber;
      input.style.setProperty("--fill", `${((value - minimum) / span) * 100}%`);
      output.textContent = value.toFixed(2).replace("-", "−");
      input.setAttribute("aria-valuetext", value.toFixed(2));
    };
    input.value = String(this.#values.get(slider.name) ?? initial);
    show();
    input.addEventListener("input", () => {
      show();
      this.#values.set(slider.name, input.valueAsNumber);
      this.#moved.set(slider.name, input.valueAsNumber);
      this.#sendSliders("values", null);
    });
    return element("div", { class: "slider" },
      element("label", { for: id }, slider.label), input, output,
    );
  }
}

/** @param {string} name */
function presetButton(name) {
  return element("button", { type: "button", class: "chip", value: name, "aria-pressed": "false" },
    readable(name),
  );
}
