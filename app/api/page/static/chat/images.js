const LONGEST_SIDE = 1568;
const QUALITY = 0.9;

/** The images among files, as data URLs; large ones smaller, since a request's body is limited. @returns {Promise<string[]>} */
export async function imagesOf(files) {
  const images = [...files].filter((file) => file.type.startsWith("image/"));
  return Promise.all(images.map(dataUrl));
}

async function dataUrl(file) {
  const bitmap = await createImageBitmap(file);
  const scale = Math.min(1, LONGEST_SIDE / Math.max(bitmap.width, bitmap.height));
  if (scale === 1 && /png|jpeg|webp/.test(file.type) && file.size < 2 ** 20) return read(file);
  const canvas = document.createElement("canvas");
  canvas.width = Math.round(bitmap.width * scale);
  canvas.height = Math.round(bitmap.height * scale);
  canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/jpeg", QUALITY);
}

const read = (file) =>
  new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(file);
  });
