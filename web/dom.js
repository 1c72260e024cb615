// @ts-check
/** Small, typed helpers over the DOM. Nothing here knows about Visavis. */

/**
 * The element with this id, of this class.
 * @template {Element} T
 * @param {string} id
 * @param {new () => T} type
 * @returns {T}
 * @throws {TypeError} when the page has no such element (a mistake in index.html)
 */
export function byId(id, type) {
  const found = document.getElementById(id);
  if (!(found instanceof type)) throw new TypeError(`#${id} is not a ${type.name}`);
  return found;
}

/**
 * A new element. `attributes` that are false or null are left out, true becomes "".
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K} tag
 * @param {Record<string, string | number | boolean | null>} [attributes]
 * @param {...(Node | string)} children
 * @returns {HTMLElementTagNameMap[K]}
 */
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value === null) continue;
    made.setAttribute(name, value === true ? "" : String(value));
  }
  made.append(...children);
  return made;
}

/**
 * A decorative icon from the sprite in index.html.
 * @param {string} name symbol id without its `i-` prefix
 * @returns {SVGSVGElement}
 */
export function icon(name) {
  const space = "http://www.w3.org/2000/svg";
  const svg = document.createElementNS(space, "svg");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  const use = document.createElementNS(space, "use");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

/**
 * Points an existing icon at another symbol.
 * @param {Element} button any element that holds one icon
 * @param {string} name
 */
export function setIcon(button, name) {
  button.querySelector("use")?.setAttribute("href", `#i-${name}`);
}

/**
 * At most one call per `intervalMs` for each key; the last value always gets through.
 * @template T
 * @param {(key: string, value: T) => void} action
 * @param {number} intervalMs
 * @returns {(key: string, value: T) => void}
 */
export function throttled(action, intervalMs) {
  /** @type {Map<string, {value: T} | null>} */
  const pending = new Map();
  /** @param {string} key */
  function settle(key) {
    const waiting = pending.get(key);
    if (!waiting) {
      pending.delete(key);
      return;
    }
    pending.set(key, null);
    action(key, waiting.value);
    setTimeout(() => settle(key), intervalMs);
  }
  return (key, value) => {
    if (pending.has(key)) {
      pending.set(key, { value });
      return;
    }
    pending.set(key, null);
    action(key, value);
    setTimeout(() => settle(key), intervalMs);
  };
}

/**
 * @param {number} ms
 * @param {AbortSignal} [signal] ends the wait at once; the promise still resolves
 * @returns {Promise<void>}
 */
export function pause(ms, signal) {
  return new Promise((resolve) => {
    if (signal?.aborted) return resolve();
    const timer = setTimeout(done, ms);
    function done() {
      clearTimeout(timer);
      signal?.removeEventListener("abort", done);
      resolve();
    }
    signal?.addEventListener("abort", done);
  });
}

/**
 * A name from the wire made readable: `raised_brows` becomes `Raised brows`.
 * @param {string} name
 */
export function readable(name) {
  const words = name.replace(/[_-]+/g, " ").trim();
  return words.charAt(0).toUpperCase() + words.slice(1);
}
