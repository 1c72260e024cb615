// @ts-check
/**
 * Changes to SDP that have no API: 10 ms mono Opus packets, asked of the server in the offer
 * and of the browser in the answer (each side packs by what the *other* side's SDP asks).
 */

const PTIME_MS = 10;
const OPUS = { minptime: String(PTIME_MS), useinbandfec: "1", stereo: "0", "sprop-stereo": "0" };

/**
 * @param {string} sdp an offer or an answer
 * @returns {string} the same with `a=ptime:10` and mono Opus in every audio section
 */
export function lowLatencyAudio(sdp) {
  return sdp
    .split(/(?=^m=)/m)
    .map((section) => (section.startsWith("m=audio") ? audioSection(section) : section))
    .join("");
}

/** @param {string} section */
function audioSection(section) {
  const lines = section.split(/\r?\n/).filter((line) => line !== "" && !/^a=(max)?ptime:/.test(line));
  const payload = section.match(/^a=rtpmap:(\d+) opus\//im)?.[1];
  if (payload !== undefined) {
    const prefix = `a=fmtp:${payload} `;
    const at = lines.findIndex((line) => line.startsWith(prefix));
    const given = at < 0 ? "" : (lines[at] ?? "").slice(prefix.length);
    const line = prefix + mergedParameters(given);
    if (at >= 0) lines[at] = line;
    else lines.splice(lines.findIndex((l) => l.startsWith(`a=rtpmap:${payload} `)) + 1, 0, line);
  }
  lines.push(`a=ptime:${PTIME_MS}`);
  return `${lines.join("\r\n")}\r\n`;
}

/** @param {string} given the parameters of one fmtp line */
function mergedParameters(given) {
  /** @type {Record<string, string>} */
  const parameters = {};
  for (const pair of given.split(";")) {
    const [name, value = ""] = pair.trim().split("=");
    if (name) parameters[name] = value;
  }
  const merged = Object.entries({ ...parameters, ...OPUS });
  return merged.map(([name, value]) => `${name}=${value}`).join(";");
}
