// @ts-check
/** The microphone's level, drawn about 30 times a second, and a hint when it stays silent. */

const FLOOR_DB = -60;
const SILENCE_DB = -55;
const SILENCE_MS = 6000;
const DRAW_MS = 33;
const CALM_DRAW_MS = 250;

export class LevelMeter {
  /** @type {HTMLElement} */ #root;
  /** @type {HTMLElement} */ #bar;
  /** @type {(isSilent: boolean) => void} */ #onSilence;
  /** @type {AudioContext | null} */ #context = null;
  /** @type {MediaStreamAudioSourceNode | null} */ #input = null;
  #frame = 0;
  #level = 0;

  /**
   * @param {HTMLElement} root has role="meter", 0 to 100, and a `.meter-bar` inside
   * @param {(isSilent: boolean) => void} onSilence called when silence begins and ends
   */
  constructor(root, onSilence) {
    this.#root = root;
    this.#onSilence = onSilence;
    this.#bar = /** @type {HTMLElement} */ (root.querySelector(".meter-bar"));
  }

  /** @param {MediaStreamTrack} track a live audio track */
  start(track) {
    this.stop();
    this.#context ??= new AudioContext({ latencyHint: "playback" });
    const context = this.#context;
    void context.resume().catch(() => undefined);
    const analyser = context.createAnalyser();
    analyser.fftSize = 1024;
    this.#input = context.createMediaStreamSource(new MediaStream([track]));
    this.#input.connect(analyser);
    this.#run(track, analyser);
  }

  /**
   * @param {MediaStreamTrack} track
   * @param {AnalyserNode} analyser
   */
  #run(track, analyser) {
    const samples = new Float32Array(analyser.fftSize);
    const isCalm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    let drawnMs = 0;
    let heardMs = performance.now();
    let isSilent = false;
    /** @param {number} nowMs */
    const draw = (nowMs) => {
      this.#frame = requestAnimationFrame(draw);
      if (nowMs - drawnMs < (isCalm ? CALM_DRAW_MS : DRAW_MS)) return;
      drawnMs = nowMs;
      analyser.getFloatTimeDomainData(samples);
      let energy = 0;
      for (const sample of samples) energy += sample * sample;
      const db = 10 * Math.log10(energy / samples.length + 1e-12);
      this.#show(Math.min(Math.max(1 - db / FLOOR_DB, 0), 1));
      const isListening = track.enabled && analyser.context.state === "running";
      if (db > SILENCE_DB || !isListening) heardMs = nowMs;
      if (isSilent !== nowMs - heardMs > SILENCE_MS) {
        isSilent = !isSilent;
        this.#onSilence(isSilent);
      }
    };
    this.#frame = requestAnimationFrame(draw);
  }

  /** @param {number} level 0 to 1; falls slower than it rises */
  #show(level) {
    this.#level = Math.max(level, this.#level * 0.85);
    this.#bar.style.transform = `scaleX(${this.#level.toFixed(3)})`;
    this.#root.setAttribute("aria-valuenow", String(Math.round(this.#level * 10) * 10));
  }

  stop() {
    cancelAnimationFrame(this.#frame);
    this.#input?.disconnect();
    this.#input = null;
    this.#level = 0;
    this.#show(0);
    this.#onSilence(false);
  }
}
