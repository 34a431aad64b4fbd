/** Bytes of base64 text. */
function bytesFromBase64(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const raw = atob(text), bytes = new Uint8Array(raw.length);
  for (let i = 0; i < raw.length; i++) bytes[i] = raw.charCodeAt(i);
  return bytes;
}

async function gunzip(bytes) {
  if (typeof DecompressionStream === "undefined") throw new Error("this browser cannot unpack gzip data; use one from 2023 or later");
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

const ARRAY_TYPES = { u8: [Uint8Array, 1], u16: [Uint16Array, 2], u32: [Uint32Array, 4] };

/** Undo the delta coding and the byte planes of one array; rows of `columns` values, interleaved. */
function decodePlanes(bytes, rows, columns, type) {
  const [Kind, width] = ARRAY_TYPES[type];
  const out = new Kind(rows * columns), one = new Kind(1);
  for (let c = 0; c < columns; c++) {
    const base = c * width * rows;
    one[0] = 0;
    for (let r = 0; r < rows; r++) {
      let delta = bytes[base + r];
      if (width > 1) delta |= bytes[base + rows + r] << 8;
      if (width > 2) delta |= (bytes[base + 2 * rows + r] << 16) | (bytes[base + 3 * rows + r] << 24);
      one[0] += delta;  // typed arrays wrap around, as the writer's arithmetic does
      out[r * columns + c] = one[0];
    }
  }
  return out;
}

/** The page's 3D data: the header with `data`, a map from array name to typed array. */
async function readPayload() {
  const header = JSON.parse(document.getElementById("r3d-header").textContent);
  const text = document.getElementById("r3d-data").textContent;
  header.data = {};
  if (text) {
    const block = await gunzip(bytesFromBase64(text));
    for (const [name, a] of Object.entries(header.arrays)) {
      header.data[name] = decodePlanes(block.subarray(a.offset, a.offset + a.bytes), a.rows, a.columns, a.type);
    }
  }
  return header;
}
