// @ts-check
/**
 * The HTTP API, one function per endpoint. Every failure is an `ApiError` that carries the
 * server's RFC 9457 problem, or one written here when no server answered.
 * @import {PortraitInfo, SessionAnswer, SessionRequest, Candidate} from './protocol.js'
 */

const UNREACHABLE_STATUS = 0;
const DEFAULT_RETRY_S = 10;

/** A request that did not succeed; `message` is a sentence for a person. */
export class ApiError extends Error {
  /**
   * @param {number} status HTTP status, 0 when there was no answer
   * @param {string} title
   * @param {string} detail
   * @param {number} [retryAfterS] from Retry-After, seconds; only meaningful for 429 and 503
   * @param {string} [code] last part of the problem's type, such as `full`
   */
  constructor(status, title, detail, retryAfterS = DEFAULT_RETRY_S, code = "") {
    super(detail || title);
    this.name = "ApiError";
    this.status = status;
    this.title = title;
    this.detail = detail;
    this.retryAfterS = retryAfterS;
    this.code = code;
  }

  /** True when trying again later, unchanged, can work. */
  get isTemporary() {
    if (this.code === "engine-unusable") return false;
    return [UNREACHABLE_STATUS, 429, 502, 503, 504].includes(this.status);
  }
}

/**
 * @param {Headers} headers
 * @returns {number} seconds
 */
function retryAfter(headers) {
  const raw = headers.get("Retry-After");
  if (!raw) return DEFAULT_RETRY_S;
  const seconds = /^\d+$/.test(raw.trim())
    ? Number(raw)
    : (Date.parse(raw) - Date.now()) / 1000;
  return Number.isFinite(seconds) ? Math.min(Math.max(Math.ceil(seconds), 1), 3600) : DEFAULT_RETRY_S;
}

/**
 * @param {Response} response
 * @returns {Promise<ApiError>}
 */
async function problemOf(response) {
  const wait = retryAfter(response.headers);
  try {
    const body = await response.json();
    const title = typeof body.title === "string" ? body.title : response.statusText;
    const detail = typeof body.detail === "string" ? body.detail : "";
    const code = typeof body.type === "string" ? body.type.split(/[/:]/).pop() : "";
    return new ApiError(response.status, title, detail, wait, code);
  } catch {
    return new ApiError(response.status, `The server answered ${response.status}`, "", wait);
  }
}

/**
 * @param {string} path
 * @param {RequestInit} init
 * @returns {Promise<Response>} always with an ok status
 * @throws {ApiError}
 */
async function request(path, init) {
  let response;
  try {
    response = await fetch(path, { ...init, cache: "no-store" });
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") throw error;
    throw new ApiError(
      UNREACHABLE_STATUS,
      "The server cannot be reached",
      "Check that the server is running and that this computer is online.",
    );
  }
  if (!response.ok) throw await problemOf(response);
  return response;
}

/**
 * @param {unknown} body
 * @returns {RequestInit}
 */
function json(body) {
  return {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify(body),
  };
}

/** @returns {Promise<PortraitInfo[]>} */
export async function listPortraits() {
  return (await request("/api/portraits", {})).json();
}

/**
 * Enrols a portrait. The body is the picture itself; the name and the consent that the
 * person ticked travel as query parameters.
 * @param {Blob} picture JPEG
 * @param {string} name
 * @param {AbortSignal} [signal]
 * @returns {Promise<PortraitInfo>}
 */
export async function enrolPortrait(picture, name, signal) {
  const query = new URLSearchParams({ name, consent: "true" });
  const init = { method: "POST", headers: { "Content-Type": picture.type }, body: picture, signal };
  return (await request(`/api/portraits?${query}`, init)).json();
}

/**
 * Opens a session. The ICE servers, when the server has any, come in `Link` headers with
 * rel="ice-server" (RFC 9725, section 4.6).
 * @param {SessionRequest} body
 * @param {AbortSignal} [signal]
 * @returns {Promise<{answer: SessionAnswer, iceServers: RTCIceServer[]}>}
 */
export async function createSession(body, signal) {
  const response = await request("/api/sessions", { ...json(body), signal });
  return {
    answer: await response.json(),
    iceServers: iceServersOf(response.headers.get("Link") ?? ""),
  };
}

/**
 * Gives a session whose peer was lost a new one; portrait, sources and codes stay as they were.
 * @param {string} sessionId
 * @param {string} token
 * @param {string} sdp the new offer
 * @param {AbortSignal} [signal]
 * @returns {Promise<{answer: SessionAnswer, iceServers: RTCIceServer[]}>}
 */
export async function resumeSession(sessionId, token, sdp, signal) {
  const path = `/api/sessions/${encodeURIComponent(sessionId)}/resume`;
  const init = json({ sdp, type: "offer" });
  const headers = { ...init.headers, Authorization: `Bearer ${token}` };
  const response = await request(path, { ...init, headers, signal });
  return {
    answer: await response.json(),
    iceServers: iceServersOf(response.headers.get("Link") ?? ""),
  };
}

/**
 * @param {string} sessionId
 * @param {string} token
 * @param {Candidate} candidate
 */
export async function sendCandidate(sessionId, token, candidate) {
  const init = json(candidate);
  init.headers = { ...init.headers, Authorization: `Bearer ${token}` };
  await request(`/api/sessions/${encodeURIComponent(sessionId)}/candidates`, init);
}

/**
 * Ends a session. Outlives the page (`keepalive`) and never fails: the server frees the slot
 * of a silent session by itself.
 * @param {string} sessionId
 * @param {string} token
 */
export async function endSession(sessionId, token) {
  const headers = { Authorization: `Bearer ${token}` };
  const path = `/api/sessions/${encodeURIComponent(sessionId)}`;
  await request(path, { method: "DELETE", headers, keepalive: true }).catch(() => undefined);
}

/**
 * ICE servers of a Link header: `<turn:host>; rel="ice-server"; username="u"; credential="c"`.
 * @param {string} header
 * @returns {RTCIceServer[]}
 */
export function iceServersOf(header) {
  /** @type {RTCIceServer[]} */
  const servers = [];
  for (const [, url, rest] of header.matchAll(/<([^>]*)>((?:\s*;\s*[\w-]+="(?:[^"\\]|\\.)*")*)/g)) {
    /** @type {Record<string, string>} */
    const fields = {};
    for (const [, name, value] of (rest ?? "").matchAll(/([\w-]+)="((?:[^"\\]|\\.)*)"/g)) {
      if (name) fields[name] = (value ?? "").replace(/\\(.)/g, "$1");
    }
    if (!url || fields.rel !== "ice-server") continue;
    servers.push({ urls: url, username: fields.username, credential: fields.credential });
  }
  return servers;
}
