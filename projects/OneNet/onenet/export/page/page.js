// The page: image, video and camera in, drawings and a list out.

import { loadDetector } from "./detector.js";

const DEFAULT_THRESHOLD = 0.3;
const COLORS = ["#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#800000"];
const $ = (id) => document.getElementById(id);
const [canvas, video] = [$("canvas"), $("video")];
const pen = canvas.getContext("2d");
let detector, source, found = [], stream = null, playing = 0;

async function load() {
  const device = $("device").value;
  $("status").textContent = "Loading the model ...";
  try {
    detector = await loadDetector(device);
  } catch (error) {
    if (device === "wasm") return tell(error);
    $("device").value = "wasm";
    return load();
  }
  const { metadata } = detector;
  $("status").textContent = `Detects ${metadata.class_names.join(", ")}.`;
  if (source && video.paused) await detectOn(source);
}

async function setUp() {
  const adapter = await navigator.gpu?.requestAdapter().catch(() => null);
  const isReal = Boolean(adapter) && !adapter.info?.isFallbackAdapter; // not one in software
  if (adapter) $("device").add(new Option("GPU", "webgpu", isReal, isReal));
  await load();
  const calibrated = Boolean(detector?.metadata.thresholds);
  $("calibrated-label").hidden = !calibrated;
  $("calibrated").checked = calibrated;
  $("threshold").value = DEFAULT_THRESHOLD;
  show();
}

function tell(error) {
  $("status").textContent = `This failed: ${error.message ?? error}`;
}

// An ImageData of the pixels as they are stored, upright.
async function pixelsOf(image) {
  const options = { colorSpaceConversion: "none", premultiplyAlpha: "none" };
  const bitmap = image instanceof Blob ? await createImageBitmap(image, options) : image;
  const [width, height] = [bitmap.videoWidth ?? bitmap.width, bitmap.videoHeight ?? bitmap.height];
  const reader = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  reader.drawImage(bitmap, 0, 0);
  return reader.getImageData(0, 0, width, height);
}

async function detectOn(image) {
  const start = performance.now();
  source = image;
  if (!detector) return show(); // load() detects when the model is there
  found = await detector.detect(image);
  $("status").textContent = `${Math.round(performance.now() - start)} ms`;
  show();
}

function thresholdOf(classId) {
  return $("calibrated").checked ? detector.metadata.thresholds[classId] : Number($("threshold").value);
}

function show() {
  $("value").textContent = $("calibrated").checked ? "auto" : Number($("threshold").value).toFixed(2);
  if (!source) return;
  const shown = found.filter(({ score, classId }) => score >= thresholdOf(classId));
  canvas.width = source.width;
  canvas.height = source.height;
  pen.putImageData(source, 0, 0);
  const unit = Math.max(source.width, source.height) / 400;
  pen.lineWidth = 2 * unit;
  pen.font = `${12 * unit}px sans-serif`;
  pen.textBaseline = "top";
  for (const detection of shown.toReversed()) drawBox(detection, unit);
  $("results").replaceChildren(...shown.map(listItem));
}

function drawBox({ score, classId, box: [x0, y0, x1, y1] }, unit) {
  const text = label(score, classId);
  pen.strokeStyle = pen.fillStyle = COLORS[classId % COLORS.length];
  pen.strokeRect(x0, y0, x1 - x0, y1 - y0);
  const [width, height] = [pen.measureText(text).width + 4 * unit, 14 * unit];
  const left = Math.max(0, Math.min(x0, source.width - width));
  const top = Math.max(0, y0 - height);
  pen.fillRect(left, top, width, height);
  pen.fillStyle = "#fff";
  pen.fillText(text, left + 2 * unit, top + unit);
}

const label = (score, classId) => `${detector.metadata.class_names[classId]} ${score.toFixed(2)}`;

function listItem({ score, classId, box }) {
  const item = document.createElement("li");
  item.textContent = `${label(score, classId)}: ${box.map(Math.round).join(", ")}`;
  Object.assign(item.dataset, { score, classId, box: box.join(" ") });
  return item;
}

function stop() {
  playing += 1; // ends the loop that runs
  video.pause();
  stream?.getTracks().forEach((track) => track.stop());
  stream = null;
  $("stop").hidden = true;
}

async function play(media) {
  stop();
  const run = playing;
  video.srcObject = media instanceof MediaStream ? (stream = media) : null;
  if (!stream) video.src = URL.createObjectURL(media);
  $("stop").hidden = false;
  await video.play();
  while (run === playing) {
    await detectOn(await pixelsOf(video));
    await new Promise(requestAnimationFrame);
  }
}

async function open(file) {
  if (file.type.startsWith("video/")) return play(file);
  stop();
  await detectOn(await pixelsOf(file));
}

$("file").addEventListener("change", ({ target }) => {
  if (target.files.length) open(target.files[0]).catch(tell);
  target.value = ""; // so that the same file can be chosen again
});
$("camera").addEventListener("click", () =>
  navigator.mediaDevices
    .getUserMedia({ video: { facingMode: "environment" } })
    .then(play)
    .catch(tell));
$("stop").addEventListener("click", stop);
$("device").addEventListener("change", load);
$("calibrated").addEventListener("change", show);
$("threshold").addEventListener("input", () => {
  $("calibrated").checked = false;
  show();
});
setUp();
