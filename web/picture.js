// @ts-check
/** Pictures chosen by a person, made ready to send. */

export const JPEG_QUALITY = 0.95;
const MAX_SIDE_PX = 2048;
const MAX_FILE_BYTES = 30 * 1024 * 1024;

/** A file that cannot be used; `message` is a sentence for a person. */
export class PictureError extends Error {
  name = "PictureError";
}

/**
 * Decodes, turns upright, shrinks to at most 2048 px and encodes again as JPEG, so that place,
 * time and camera written into the file never leave this computer.
 * @param {File} file
 * @returns {Promise<Blob>}
 * @throws {PictureError}
 */
export async function preparePicture(file) {
  if (file.size > MAX_FILE_BYTES) {
    throw new PictureError("This file is larger than 30 MB. Choose a smaller picture.");
  }
  let bitmap;
  try {
    bitmap = await createImageBitmap(file, { imageOrientation: "from-image" });
  } catch {
    throw new PictureError(
      "This file is not a picture this browser can read. Use a JPEG, PNG or WebP file.",
    );
  }
  const scale = Math.min(1, MAX_SIDE_PX / Math.max(bitmap.width, bitmap.height));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(bitmap.width * scale));
  canvas.height = Math.max(1, Math.round(bitmap.height * scale));
  const context = canvas.getContext("2d");
  if (context) {
    context.fillStyle = "#ffffff";
    context.fillRect(0, 0, canvas.width, canvas.height);
    context.imageSmoothingQuality = "high";
    context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  }
  bitmap.close();
  const encoded = await new Promise((/** @type {(blob: Blob | null) => void} */ resolve) =>
    canvas.toBlob(resolve, "image/jpeg", JPEG_QUALITY),
  );
  if (!encoded) throw new PictureError("This picture could not be encoded. Try another one.");
  return encoded;
}

/**
 * A name for a portrait from a file's name.
 * @param {string} fileName
 */
export function nameFromFile(fileName) {
  const stem = fileName.replace(/\.[^.]*$/, "").replace(/[_-]+/g, " ");
  return stem.replace(/[^\p{L}\p{N} .]/gu, "").trim().slice(0, 40);
}
