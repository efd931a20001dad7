// The exported OneNet in the browser: an image's pixels in, detections out, as onenet_runtime has them.

const BUILDS = { wasm: "./ort/ort.wasm.min.mjs", webgpu: "./ort/ort.webgpu.min.mjs" };
const BITS = 22; // of the weights' fractions, as Pillow has them

/** Loads the model for "wasm" or "webgpu". */
export async function loadDetector(device) {
  const ort = await import(BUILDS[device]);
  ort.env.wasm.wasmPaths = new URL("./ort/", import.meta.url).href;
  ort.env.wasm.numThreads = crossOriginIsolated ? Math.min(4, navigator.hardwareConcurrency) : 1;
  ort.env.logLevel = "error";
  const metadata = await (await fetch("metadata.json")).json();
  const session = await ort.InferenceSession.create("model.onnx", { executionProviders: [device] });
  const detector = { metadata, detect: (image) => detect(ort, session, metadata, image) };
  await detector.detect(new ImageData(64, 64)); // fails here where the GPU lacks something
  return detector;
}

/** All detections of an ImageData, best first, whatever the score; boxes in its pixels. */
async function detect(ort, session, metadata, image) {
  const [height, width] = resizedShape(image.height, image.width, metadata);
  if (!height || !width) throw new Error("the image is too narrow");
  const side = metadata.size_divisibility;
  const [rows, columns] = [height, width].map((x) => Math.ceil(x / side) * side);
  const pixels = resizeBilinear(image.data, image.width, image.height, width, height);
  const batch = new Uint8Array(rows * columns * 3);
  const order = metadata.input_format === "RGB" ? [0, 1, 2] : [2, 1, 0];
  for (let y = 0; y < height; y++)
    for (let x = 0; x < width; x++)
      for (let c = 0; c < 3; c++)
        batch[(y * columns + x) * 3 + c] = pixels[(y * width + x) * 4 + order[c]];
  const { boxes, scores, classes } = await session.run({
    images: new ort.Tensor("uint8", batch, [1, rows, columns, 3]),
    image_sizes: new ort.Tensor("int64", BigInt64Array.of(BigInt(height), BigInt(width)), [1, 2]),
  });
  const limits = [image.width, image.height];
  const scales = [image.width / width, image.height / height];
  return Array.from(scores.data, (score, i) => ({
    score,
    classId: Number(classes.data[i]),
    box: Array.from(boxes.data.subarray(4 * i, 4 * i + 4), (value, j) =>
      Math.min(Math.max(value * scales[j % 2], 0), limits[j % 2])),
  })).filter(({ score, box: [x0, y0, x1, y1] }) => score > 0 && x1 > x0 && y1 > y0);
}

/** Height and width by Detectron2's ResizeShortestEdge. */
export function resizedShape(height, width, { min_size: minSize, max_size: maxSize }) {
  if (!minSize) return [height, width];
  let scale = minSize / Math.min(height, width);
  let sizes = height < width ? [minSize, scale * width] : [scale * height, minSize];
  if (Math.max(...sizes) > maxSize) {
    scale = maxSize / Math.max(...sizes);
    sizes = sizes.map((x) => x * scale);
  }
  return sizes.map((x) => Math.floor(x + 0.5));
}

/** Resizes RGBA pixels as Pillow's BILINEAR, with its antialiasing and rounding. */
export function resizeBilinear(pixels, width, height, newWidth, newHeight) {
  const wide = resizeAxis(pixels, height, 4 * width, width, newWidth, 4);
  return resizeAxis(wide, newWidth, 4, height, newHeight, 4 * newWidth);
}

// Resizes one axis: of `lines` lines, which begin `lineStep` bytes apart and whose pixels lie `step` apart.
function resizeAxis(pixels, lines, lineStep, size, newSize, step) {
  if (size === newSize) return pixels;
  const taps = filterTaps(size, newSize);
  const alongRows = step === 4;
  const newLineStep = alongRows ? 4 * newSize : lineStep;
  const result = new Uint8ClampedArray(lines * newSize * 4);
  for (let line = 0; line < lines; line++)
    taps.forEach(({ first, weights }, i) => {
      for (let c = 0; c < 3; c++) {
        let sum = 2 ** (BITS - 1);
        let from = line * lineStep + first * step + c;
        for (const weight of weights) {
          sum += pixels[from] * weight;
          from += step;
        }
        result[line * newLineStep + i * step + c] = sum >> BITS;
      }
    });
  return result;
}

// For each new pixel, the first old one that it is made of, and the weights.
function filterTaps(size, newSize) {
  const scale = size / newSize;
  const support = Math.max(scale, 1);
  return Array.from({ length: newSize }, (_, i) => {
    const centre = (i + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - support + 0.5));
    const end = Math.min(size, Math.trunc(centre + support + 0.5));
    const weights = [];
    for (let x = first; x < end; x++)
      weights.push(Math.max(0, 1 - Math.abs((x - centre + 0.5) / support)));
    const total = weights.reduce((a, b) => a + b, 0);
    return { first, weights: weights.map((w) => Math.trunc(0.5 + (w / total) * 2 ** BITS)) };
  });
}
