// Runs an exported file in onnxruntime-web, for engines.py: requests on stdin, detections on stdout.
// A request is N, H and W as int32, the pixels, and N heights and widths as int64; the answer is k
// as int32, and boxes, scores (float32) and classes (int64) of all images.
import fs from "node:fs";
import path from "node:path";
import { pathToFileURL } from "node:url";

const [folder, model, threads] = process.argv.slice(2);
const ort = await import(pathToFileURL(path.resolve(folder, "dist", "ort.node.min.mjs")));
ort.env.wasm.numThreads = Number(threads);
ort.env.logLevel = "error";
const session = await ort.InferenceSession.create(fs.readFileSync(model), { executionProviders: ["wasm"] });

function read(bytes) {
  const result = Buffer.alloc(bytes);
  for (let at = 0; at < bytes; ) {
    const count = fs.readSync(0, result, at, bytes - at, null);
    if (!count) process.exit(0);
    at += count;
  }
  return result.buffer;
}

function write(array) {
  const bytes = Buffer.from(array.buffer, array.byteOffset, array.byteLength);
  for (let at = 0; at < bytes.length; ) at += fs.writeSync(1, bytes, at);
}

write(Int32Array.of(0)); // loaded
while (true) {
  const [n, height, width] = new Int32Array(read(12));
  const { boxes, scores, classes } = await session.run({
    images: new ort.Tensor("uint8", new Uint8Array(read(n * height * width * 3)), [n, height, width, 3]),
    image_sizes: new ort.Tensor("int64", new BigInt64Array(read(16 * n)), [n, 2]),
  });
  write(Int32Array.of(scores.dims[1]));
  for (const { data } of [boxes, scores, classes]) write(data);
}
