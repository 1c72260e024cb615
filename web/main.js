// @ts-check
/**
 * Puts the page together: portraits, devices, conversation, controls, numbers and messages.
 * @import {Hello, Notice, PortraitInfo, SessionRequest, ServerMessage} from './protocol.js'
 */

import { ApiError } from "./api.js";
import { Controls } from "./controls.js";
import { Conversation } from "./conversation.js";
import { Devices, explain, listDevices, requireSupport } from "./devices.js";
import { byId } from "./dom.js";
import { EnrolDialog } from "./enrol.js";
import { failureMessage, Messages, noticeTitle } from "./messages.js";
import { LevelMeter } from "./meter.js";
import { PortraitTray } from "./portraits.js";
import { setToggle, Stage } from "./stage.js";
import { StatsReporter } from "./stats.js";
import { Strip } from "./strip.js";
import { CleanView, setUpHowTo, wishesOf } from "./view.js";

const NOTICE_MS = 8000;

const startButton = byId("start", HTMLButtonElement);
const micButton = byId("mic", HTMLButtonElement);
const cameraButton = byId("camera", HTMLButtonElement);
const pauseButton = byId("pause", HTMLButtonElement);
const recenterButton = byId("recenter", HTMLButtonElement);
const echoButton = byId("echo", HTMLButtonElement);
const micSelect = byId("mic-select", HTMLSelectElement);
const cameraSelect = byId("camera-select", HTMLSelectElement);
const sizeSelect = byId("size-select", HTMLSelectElement);
const markSwitch = byId("mark-switch", HTMLInputElement);
const silenceHint = byId("silence-hint", HTMLElement);
const sessionNote = byId("session-note", HTMLElement);

const wishes = wishesOf(location.search);
const messages = new Messages();
const stage = new Stage();
const strip = new Strip();
const cleanView = new CleanView();
const meter = new LevelMeter(byId("meter", HTMLElement), (isSilent) => {
  silenceHint.hidden = !isSilent;
});
const devices = new Devices((kind) => void deviceEnded(kind));
const controls = new Controls({
  send: (message) => conversation.send(message),
  onWantCamera: () => void toggleCamera(true),
});
const tray = new PortraitTray(portraitChosen);
const enrol = new EnrolDialog((portrait) => {
  tray.add(portrait);
  messages.announce(`Portrait ${portrait.name} added and chosen`);
});
/** @type {StatsReporter | null} */
let reporter = null;
let isPaused = false;
/** The portrait of the present session, "" before the first. */
let portraitInUse = "";

const conversation = new Conversation(devices, {
  onPhase: phaseChanged,
  onMessage: received,
  onStream: (stream) => stage.play(stream),
  onFailure: (error, wasLive) => {
    messages.show(failureMessage(error, wasLive, () => void start()));
  },
  onWait: (error) => {
    messages.show({ level: "info", title: "The server is not ready yet", text: error.message });
  },
  choose() {
    portraitInUse = tray.chosen?.id ?? "";
    const size = /** @type {SessionRequest['size']} */ (Number(sizeSelect.value));
    const marked = markSwitch.checked;
    return { portrait: portraitInUse, sources: controls.sources, size, marked };
  },
});

// --- starting and stopping ------------------------------------------------------------

async function start() {
  if (!tray.chosen) {
    tray.focus();
    return;
  }
  messages.clear();
  await conversation.start(async () => {
    requireSupport();
    if (devices.microphone?.readyState !== "live") await devices.startMicrophone(micSelect.value);
    if (devices.microphone) meter.start(devices.microphone);
    void refreshDevices();
  });
}

/** @param {import('./conversation.js').Phase} phase */
function phaseChanged(phase) {
  stage.setPhase(phase);
  reporter?.stop();
  reporter = null;
  const isIdle = phase === "idle";
  const isLive = phase === "live";
  showStart(phase);
  for (const button of [pauseButton, echoButton]) button.disabled = !isLive;
  recenterButton.disabled = !isLive || !devices.camera;
  if (!isLive) {
    setPaused(false);
    controls.disable();
    strip.end();
    stage.dim();
    stage.setTracking(null);
  }
  if (isIdle) {
    stage.setMarked(false);
    meter.stop();
    devices.stopMicrophone();
    if (devices.camera) void toggleCamera(false);
    setEcho(false);
    stage.stop();
    messages.announce("Stopped");
  }
  if (phase === "starting") messages.announce("Connecting");
  if (phase === "reconnecting") {
    messages.show({
      level: "warning",
      title: "Connection lost, reconnecting",
      text: "Keep this page open. Your settings are kept.",
    });
  }
  if (isLive) {
    messages.clear();
    messages.announce("Live. Your avatar speaks as you do.");
    measure();
  }
  showNote();
}

/** @param {import('./conversation.js').Phase} phase */
function showStart(phase) {
  const isIdle = phase === "idle";
  const label = startButton.querySelector(".start-label");
  if (label) label.textContent = isIdle ? "Start" : phase === "live" ? "Stop" : "Cancel";
  startButton.querySelector("use")?.setAttribute("href", isIdle ? "#i-play" : "#i-stop");
  startButton.disabled = isIdle && !tray.chosen;
}

function measure() {
  const peer = conversation.peer;
  if (!peer) return;
  reporter = new StatsReporter(peer, stage.video, (report) => {
    strip.shown(report);
    conversation.send(report);
  });
  reporter.start();
}

/** A note that the picture size waits for the next start. */
function showNote() {
  sessionNote.hidden = conversation.phase === "idle";
}

// --- what the server says -------------------------------------------------------------

/** @param {ServerMessage} message */
function received(message) {
  switch (message.type) {
    case "hello":
      return begin(message);
    case "state":
      controls.update(message.factors);
      showMark(message.marked);
      return setPaused(message.paused);
    case "stats":
      strip.update(message);
      return stage.setTracking(message.webcam);
    case "notice":
      return noticed(message);
    default:
      return undefined;
  }
}

/** @param {Notice} notice */
function noticed(notice) {
  const message = { level: notice.level, title: noticeTitle(notice), text: notice.message };
  if (notice.code === "idle") {
    // The server ends the session on purpose: connecting again would undo that.
    void conversation.stop();
    messages.show({ ...message, action: { label: "Start again", run: () => void start() } });
  } else if (notice.code === "face_found") {
    messages.clear();
    messages.announce(notice.message);
  } else {
    messages.show({ ...message, lifeMs: notice.level === "error" ? undefined : NOTICE_MS });
  }
}

/** @param {Hello} hello */
function begin(hello) {
  controls.enable(hello);
  markSwitch.disabled = hello.mark_required;
  byId("mark-note", HTMLElement).hidden = !hello.mark_required;
  strip.begin(hello);
}

// --- devices --------------------------------------------------------------------------

/** @param {boolean} isOn */
async function toggleCamera(isOn) {
  cameraButton.disabled = true;
  try {
    if (isOn) await devices.startCamera(cameraSelect.value);
    else devices.stopCamera();
    await conversation.updateTracks();
    if (isOn) void refreshDevices();
  } catch (error) {
    const problem = explain(error, "camera");
    messages.show({
      level: "error",
      title: problem.title,
      text: problem.message,
      action: { label: "Try again", run: () => void toggleCamera(true) },
    });
  } finally {
    cameraButton.disabled = false;
    showCamera();
  }
}

function showCamera() {
  const isOn = devices.camera !== null;
  setToggle(cameraButton, isOn, { icon: isOn ? "camera" : "camera-off", label: "Camera" });
  stage.setSelfView(devices.camera);
  recenterButton.disabled = !isOn || conversation.phase !== "live";
  controls.setCamera(isOn);
}

/** @param {boolean} isMuted */
function setMuted(isMuted) {
  devices.muted = isMuted;
  setToggle(micButton, !isMuted, {
    icon: isMuted ? "mic-off" : "mic",
    label: isMuted ? "Muted" : "Mic",
  });
}

/** @param {import('./devices.js').DeviceKind} kind */
async function deviceEnded(kind) {
  if (kind === "camera") {
    await toggleCamera(false);
    messages.show({ level: "warning", title: "The camera went away", text: "The avatar goes on without it." });
    return;
  }
  try {
    const track = await devices.startMicrophone();
    meter.start(track);
    await conversation.updateTracks();
  } catch (error) {
    const problem = explain(error, "microphone");
    messages.show({ level: "error", title: problem.title, text: problem.message });
  }
}

async function refreshDevices() {
  await listDevices(micSelect, "microphone");
  await listDevices(cameraSelect, "camera");
}

async function microphoneSelected() {
  if (!devices.microphone) return;
  try {
    const track = await devices.startMicrophone(micSelect.value);
    meter.start(track);
    await conversation.updateTracks();
  } catch (error) {
    const problem = explain(error, "microphone");
    messages.show({ level: "error", title: problem.title, text: problem.message });
  }
}

// --- the conversation's switches ------------------------------------------------------

/** @param {boolean} paused */
function setPaused(paused) {
  isPaused = paused;
  setToggle(pauseButton, paused, {
    icon: paused ? "play" : "pause",
    label: paused ? "Resume" : "Pause",
  });
  if (conversation.phase === "live") stage.setPaused(paused);
}

/** @param {boolean} isMarked whether the pictures of this session say "AI" */
function showMark(isMarked) {
  markSwitch.checked = isMarked;
  stage.setMarked(isMarked);
}

/** @param {boolean} isOn */
function setEcho(isOn) {
  stage.video.muted = !isOn;
  setToggle(echoButton, isOn, { icon: "headphones", label: "Hear me" });
}

/**
 * @param {PortraitInfo} portrait
 * @param {boolean} isSettled
 */
function portraitChosen(portrait, isSettled) {
  stage.showPortrait(portrait);
  showStart(conversation.phase);
  if (isSettled && conversation.phase === "live" && portrait.id !== portraitInUse) {
    messages.announce(`Changing to ${portrait.name}`);
    void conversation.restart();
  }
}

async function loadPortraits() {
  try {
    await tray.load(wishes.portrait);
  } catch (error) {
    const problem = error instanceof ApiError ? error : null;
    messages.show({
      level: "error",
      title: problem?.title ?? "The portraits could not be loaded",
      text: problem?.detail || "Try again in a moment.",
      action: { label: "Try again", run: () => void loadPortraits() },
    });
  }
}

// --- wiring ---------------------------------------------------------------------------

startButton.addEventListener("click", () => {
  void (conversation.phase === "idle" ? start() : conversation.stop());
});
micButton.addEventListener("click", () => setMuted(!devices.muted));
cameraButton.addEventListener("click", () => void toggleCamera(devices.camera === null));
pauseButton.addEventListener("click", () => {
  setPaused(!isPaused);
  conversation.send({ type: "pause", paused: isPaused });
});
markSwitch.addEventListener("change", () => {
  conversation.send({ type: "set_mark", marked: markSwitch.checked });
});
recenterButton.addEventListener("click", () => {
  conversation.send({ type: "recenter" });
  messages.announce("Recentred");
});
echoButton.addEventListener("click", () => {
  setEcho(stage.video.muted);
  if (!stage.video.muted) {
    messages.show({
      level: "info",
      title: "Use headphones",
      text: "You hear yourself as others do. Through loudspeakers the sound would loop back into the microphone.",
      lifeMs: NOTICE_MS,
    });
  }
});
micSelect.addEventListener("change", () => void microphoneSelected());
cameraSelect.addEventListener("change", () => {
  if (devices.camera) void toggleCamera(true);
});
byId("take-photo", HTMLButtonElement).addEventListener("click", () => enrol.open("photo"));
byId("upload", HTMLButtonElement).addEventListener("click", () => enrol.open("upload"));
navigator.mediaDevices?.addEventListener("devicechange", () => void refreshDevices());
window.addEventListener("pagehide", () => void conversation.stop());
setUpHowTo(() => tray.chosen?.id ?? "");

stage.setPhase("idle");
strip.end();
setMuted(false);
markSwitch.checked = wishes.wantsMark;
showCamera();
showStart("idle");
if (wishes.isClean) cleanView.set(true);
void refreshDevices();
await loadPortraits();
if (wishes.isAutostart) {
  if (wishes.portrait && tray.chosen?.id !== wishes.portrait) {
    messages.show({
      level: "error",
      title: "This portrait does not exist",
      text: `The address asks for “${wishes.portrait}”. Choose another one from the tray.`,
    });
  } else if (tray.chosen) {
    if (wishes.wantsCamera) await toggleCamera(true);
    await start();
    if (wishes.wantsSound) setEcho(true);
  }
}
