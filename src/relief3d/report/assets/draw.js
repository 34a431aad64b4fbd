const GLSL = "#version 300 es\nprecision highp float;\n";
const PACK = `
vec4 packed(float z) {  // depth in 24 bits of colour, for picking
  vec3 c = fract(z * vec3(1.0, 256.0, 65536.0));
  return vec4(c - vec3(c.yz / 256.0, 0.0), 1.0);
}`;

const SHADERS = {
  mesh: [`
    layout(location=0) in vec3 position; layout(location=1) in vec3 colour; layout(location=2) in vec3 normal;
    uniform mat4 clip; uniform vec3 low, size, eye;
    out vec3 tint, facing, toEye;
    void main() {
      vec3 p = low + position * size;
      tint = colour; facing = normal; toEye = eye - p;
      gl_Position = clip * vec4(p, 1.0);
    }`, `${PACK}
    in vec3 tint, facing, toEye; uniform int shading, pick; uniform vec3 up; out vec4 pixel;
    void main() {
      if (pick == 1) { pixel = packed(gl_FragCoord.z); return; }
      vec3 n = normalize(facing) * (gl_FrontFacing ? 1.0 : -1.0), v = normalize(toEye);
      float head = clamp(dot(n, v), 0.0, 1.0), sky = 0.5 + 0.5 * dot(n, up);
      vec3 c;
      if (shading == 0) c = tint * (0.86 + 0.14 * head);
      else if (shading == 1) c = mix(vec3(0.52, 0.50, 0.52), vec3(0.96, 0.95, 0.93), sky) * (0.42 + 0.58 * head);
      else c = 0.5 + 0.5 * n;
      if (!gl_FrontFacing) c *= 0.62;
      pixel = vec4(c, 1.0);
    }`],
  points: [`
    layout(location=0) in vec3 position; layout(location=1) in vec3 colour; layout(location=2) in float confidence;
    uniform mat4 clip; uniform vec3 low, size; uniform float pixels, limits, threshold; out vec3 tint;
    void main() {
      tint = colour;
      gl_Position = confidence < threshold ? vec4(2.0, 2.0, 2.0, 1.0) : clip * vec4(low + position * size, 1.0);
      gl_PointSize = clamp(pixels / gl_Position.w, limits, 24.0 * limits);
    }`, `${PACK}
    in vec3 tint; uniform int pick; out vec4 pixel;
    void main() {
      vec2 d = gl_PointCoord - 0.5;
      if (dot(d, d) > 0.25) discard;
      pixel = pick == 1 ? packed(gl_FragCoord.z) : vec4(tint, 1.0);
    }`],
  lines: [`
    layout(location=0) in vec3 a; layout(location=1) in vec3 b; layout(location=2) in vec4 colour;
    uniform mat4 clip; uniform vec2 viewport; uniform float thickness; out vec4 tint; out float side;
    void main() {
      vec4 p = clip * vec4(a, 1.0), q = clip * vec4(b, 1.0);
      float w = 1e-4;  // cut at the eye plane: a point behind it has no place on the screen
      if (p.w < w && q.w < w) { gl_Position = vec4(2.0, 2.0, 2.0, 1.0); return; }
      if (p.w < w) p = mix(p, q, (w - p.w) / (q.w - p.w));
      if (q.w < w) q = mix(q, p, (w - q.w) / (p.w - q.w));
      vec2 along = normalize((q.xy / q.w - p.xy / p.w) * viewport + 1e-6);
      float s = (gl_VertexID & 1) == 0 ? -1.0 : 1.0;
      vec4 at = gl_VertexID < 2 ? p : q;
      at.xy += vec2(-along.y, along.x) / viewport * s * (thickness + 1.0) * at.w;
      tint = colour; side = s * (thickness + 1.0) * 0.5;
      gl_Position = at;
    }`, `
    in vec4 tint; in float side; uniform float thickness; out vec4 pixel;
    void main() { pixel = vec4(tint.rgb, tint.a * clamp(thickness * 0.5 + 0.5 - abs(side), 0.0, 1.0)); }`],
  picture: [`
    uniform mat4 clip; uniform vec3 corners[4]; out vec2 at;
    void main() {
      at = vec2(gl_VertexID & 1, gl_VertexID >> 1);
      gl_Position = clip * vec4(corners[gl_VertexID], 1.0);
    }`, `
    in vec2 at; uniform sampler2D image; uniform float opacity; out vec4 pixel;
    void main() { pixel = vec4(texture(image, at).rgb, opacity); }`],
  grid: [`
    uniform mat4 clip; uniform vec3 centre, right, forward; uniform float reach; out vec2 at;
    void main() {
      vec2 s = vec2(gl_VertexID & 1, gl_VertexID >> 1) * 2.0 - 1.0;
      at = s * reach;
      gl_Position = clip * vec4(centre + right * at.x + forward * at.y, 1.0);
    }`, `
    in vec2 at; uniform float step, reach; uniform vec3 ink; out vec4 pixel;
    float lines(float spacing) {
      vec2 g = at / spacing, d = abs(fract(g - 0.5) - 0.5) / fwidth(g);
      return 1.0 - min(min(d.x, d.y), 1.0);
    }
    void main() {
      float fade = clamp(1.0 - length(at) / reach, 0.0, 1.0);
      pixel = vec4(ink, max(lines(step) * 0.28, lines(step * 5.0) * 0.5) * fade * fade);
    }`],
};

function compile(gl, [vertex, fragment]) {
  const program = gl.createProgram();
  for (const [kind, source] of [[gl.VERTEX_SHADER, vertex], [gl.FRAGMENT_SHADER, fragment]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, GLSL + source);
    gl.compileShader(shader);
    gl.attachShader(program, shader);
    if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS) && !gl.isContextLost()) throw new Error(gl.getShaderInfoLog(shader));
  }
  gl.linkProgram(program);
  const places = {};
  return { use: () => gl.useProgram(program), at: (name) => (name in places ? places[name] : (places[name] = gl.getUniformLocation(program, name))) };
}

/** Vertex normals, weighted by triangle area, as signed bytes in rows of four. */
function meshNormals(position, index, size) {
  const sum = new Float32Array(position.length), out = new Int8Array(position.length / 3 * 4);
  const at = (v) => [position[3 * v] * size[0], position[3 * v + 1] * size[1], position[3 * v + 2] * size[2]];
  for (let f = 0; f < index.length; f += 3) {
    const a = at(index[f]), n = cross(sub(at(index[f + 1]), a), sub(at(index[f + 2]), a));
    for (let k = 0; k < 3; k++) for (let c = 0; c < 3; c++) sum[3 * index[f + k] + c] += n[c];
  }
  for (let v = 0; v < position.length / 3; v++) {
    const n = unit([sum[3 * v], sum[3 * v + 1], sum[3 * v + 2]]);
    for (let c = 0; c < 3; c++) out[4 * v + c] = Math.round(n[c] * 127);
  }
  return out;
}

/** Owns the WebGL context and the buffers; draws what it is told. Coordinates are relative to the scene's centre. */
class Painter {
  constructor(canvas, payload) {
    const gl = canvas.getContext("webgl2", { antialias: true, alpha: false, powerPreference: "high-performance" });
    if (!gl) throw new Error("this browser offers no WebGL 2");
    this.gl = gl;
    this.canvas = canvas;
    this.low = payload.low;
    this.size = payload.size;
    this.programs = Object.fromEntries(Object.entries(SHADERS).map(([name, source]) => [name, compile(gl, source)]));
    this.empty = gl.createVertexArray();
    this.mesh = this.loadMesh(payload.data);
    this.clouds = { points: this.loadPoints(payload.data, "points"), sparse: this.loadPoints(payload.data, "sparse") };
    this.textures = new Map();
  }

  attribute(place, data, columns, type, normalised) {
    const gl = this.gl;
    gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
    gl.bufferData(gl.ARRAY_BUFFER, data, gl.STATIC_DRAW);
    gl.enableVertexAttribArray(place);
    gl.vertexAttribPointer(place, columns, type, normalised, 0, 0);
  }

  /** Rows of three values padded to four, so that every row starts at a multiple of four bytes. */
  padded(data) {
    const rows = data.length / 3, out = new data.constructor(rows * 4);
    for (let r = 0; r < rows; r++) { out[4 * r] = data[3 * r]; out[4 * r + 1] = data[3 * r + 1]; out[4 * r + 2] = data[3 * r + 2]; }
    return out;
  }

  wide(place, data, type, normalised) {
    this.attribute(place, data, 4, type, normalised);
  }

  loadMesh(data) {
    if (!data["mesh.index"]) return null;
    const gl = this.gl, vao = gl.createVertexArray(), position = data["mesh.position"];
    gl.bindVertexArray(vao);
    this.wide(0, this.padded(position), gl.UNSIGNED_SHORT, true);
    if (data["mesh.colour"]) this.wide(1, this.padded(data["mesh.colour"]), gl.UNSIGNED_BYTE, true);
    else gl.vertexAttrib3f(1, 0.75, 0.75, 0.75);
    this.wide(2, meshNormals(position, data["mesh.index"], this.size), gl.BYTE, true);
    gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, gl.createBuffer());
    gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, data["mesh.index"], gl.STATIC_DRAW);
    gl.bindVertexArray(null);
    return { vao, count: data["mesh.index"].length, coloured: Boolean(data["mesh.colour"]) };
  }

  loadPoints(data, name) {
    const position = data[`${name}.position`];
    if (!position) return null;
    const gl = this.gl, vao = gl.createVertexArray();
    const colour = data[`${name}.colour`], confidence = data[`${name}.confidence`];
    gl.bindVertexArray(vao);
    this.wide(0, this.padded(position), gl.UNSIGNED_SHORT, true);
    if (colour) this.wide(1, this.padded(colour), gl.UNSIGNED_BYTE, true);
    if (confidence) this.attribute(2, confidence, 1, gl.UNSIGNED_BYTE, true);
    gl.bindVertexArray(null);
    return { vao, count: position.length / 3, coloured: Boolean(colour), confident: Boolean(confidence) };
  }

  /** Line segments: rows of a (3), b (3), colour (4). */
  makeLines(rows) {
    const gl = this.gl, vao = gl.createVertexArray();
    gl.bindVertexArray(vao);
    gl.bindBuffer(gl.ARRAY_BUFFER, gl.createBuffer());
    gl.bufferData(gl.ARRAY_BUFFER, new Float32Array(rows.flat()), gl.STATIC_DRAW);
    [[0, 3, 0], [1, 3, 12], [2, 4, 24]].forEach(([place, columns, offset]) => {
      gl.enableVertexAttribArray(place);
      gl.vertexAttribPointer(place, columns, gl.FLOAT, false, 40, offset);
      gl.vertexAttribDivisor(place, 1);
    });
    gl.bindVertexArray(null);
    return { vao, count: rows.length };
  }

  resize() {
    const ratio = Math.min(window.devicePixelRatio || 1, 2), canvas = this.canvas;
    const width = Math.max(1, Math.round(canvas.clientWidth * ratio)), height = Math.max(1, Math.round(canvas.clientHeight * ratio));
    if (canvas.width !== width || canvas.height !== height) { canvas.width = width; canvas.height = height; }
    this.ratio = ratio;
  }

  begin(background) {
    const gl = this.gl;
    gl.bindFramebuffer(gl.FRAMEBUFFER, null);
    gl.viewport(0, 0, this.canvas.width, this.canvas.height);
    gl.clearColor(...background, 1);
    gl.depthMask(true);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    gl.enable(gl.DEPTH_TEST);
    gl.depthFunc(gl.LEQUAL);
    gl.disable(gl.BLEND);
  }

  blended(on) {
    const gl = this.gl;
    gl.depthMask(!on);
    if (on) { gl.enable(gl.BLEND); gl.blendFunc(gl.SRC_ALPHA, gl.ONE_MINUS_SRC_ALPHA); } else gl.disable(gl.BLEND);
  }

  drawMesh(clip, eye, up, shading, backFaces, pick = 0) {
    if (!this.mesh) return;
    const gl = this.gl, p = this.programs.mesh;
    p.use();
    gl.uniformMatrix4fv(p.at("clip"), false, clip);
    gl.uniform3fv(p.at("low"), this.low);
    gl.uniform3fv(p.at("size"), this.size);
    gl.uniform3fv(p.at("eye"), eye);
    gl.uniform3fv(p.at("up"), up);
    gl.uniform1i(p.at("shading"), shading);
    gl.uniform1i(p.at("pick"), pick);
    if (backFaces) gl.disable(gl.CULL_FACE); else gl.enable(gl.CULL_FACE);
    gl.bindVertexArray(this.mesh.vao);
    if (!this.mesh.coloured) gl.vertexAttrib3f(1, 0.75, 0.75, 0.75);
    gl.drawElements(gl.TRIANGLES, this.mesh.count, gl.UNSIGNED_INT, 0);
    gl.disable(gl.CULL_FACE);
  }

  drawCloud(name, clip, pixels, smallest, threshold, colour, pick = 0) {
    const cloud = this.clouds[name];
    if (!cloud) return;
    const gl = this.gl, p = this.programs.points;
    p.use();
    gl.uniformMatrix4fv(p.at("clip"), false, clip);
    gl.uniform3fv(p.at("low"), this.low);
    gl.uniform3fv(p.at("size"), this.size);
    gl.uniform1f(p.at("pixels"), pixels);
    gl.uniform1f(p.at("limits"), smallest);
    gl.uniform1f(p.at("threshold"), cloud.confident ? threshold : -1);
    gl.uniform1i(p.at("pick"), pick);
    gl.bindVertexArray(cloud.vao);
    if (!cloud.coloured) gl.vertexAttrib3f(1, ...colour);
    gl.drawArrays(gl.POINTS, 0, cloud.count);
  }

  drawLines(lines, clip, thickness, first = 0, count = lines ? lines.count : 0) {
    if (!lines || !count) return;
    const gl = this.gl, p = this.programs.lines;
    p.use();
    gl.uniformMatrix4fv(p.at("clip"), false, clip);
    gl.uniform2f(p.at("viewport"), this.canvas.width, this.canvas.height);
    gl.uniform1f(p.at("thickness"), thickness * this.ratio);
    gl.bindVertexArray(lines.vao);
    gl.drawArraysInstanced(gl.TRIANGLE_STRIP, 0, 4, count);
  }

  drawGrid(clip, centre, right, forward, reach, step, ink) {
    const gl = this.gl, p = this.programs.grid;
    p.use();
    gl.uniformMatrix4fv(p.at("clip"), false, clip);
    for (const [name, value] of [["centre", centre], ["right", right], ["forward", forward], ["ink", ink]]) gl.uniform3fv(p.at(name), value);
    gl.uniform1f(p.at("reach"), reach);
    gl.uniform1f(p.at("step"), step);
    gl.bindVertexArray(this.empty);
    gl.drawArrays(gl.TRIANGLE_STRIP, 0, 4);
  }

  /** A picture on four corners (top left, top right, bottom left, bottom right); false until it has loaded. */
  drawPicture(clip, corners, image, side, opacity) {
    const texture = this.texture(image, side);
    if (!texture) return false;
    const gl = this.gl, p = this.programs.picture;
    p.use();
    gl.uniformMatrix4fv(p.at("clip"), false, clip);
    gl.uniform3fv(p.at("corners"), corners.flat());
    gl.uniform1f(p.at("opacity"), opacity);
    gl.activeTexture(gl.TEXTURE0);
    gl.bindTexture(gl.TEXTURE_2D, texture);
    gl.uniform1i(p.at("image"), 0);
    gl.bindVertexArray(this.empty);
    gl.drawArrays(gl.TRIANGLE_STRIP, 0, 4);
    return true;
  }

  texture(image, side) {
    const key = `${image.id}@${side}`;
    if (this.textures.has(key)) return this.textures.get(key);
    if (!image.complete || !image.naturalWidth) return null;
    const gl = this.gl, factor = Math.min(1, side / Math.max(image.naturalWidth, image.naturalHeight));
    const small = document.createElement("canvas");
    small.width = Math.max(1, Math.round(image.naturalWidth * factor));
    small.height = Math.max(1, Math.round(image.naturalHeight * factor));
    small.getContext("2d").drawImage(image, 0, 0, small.width, small.height);
    const texture = gl.createTexture();
    gl.bindTexture(gl.TEXTURE_2D, texture);
    gl.texImage2D(gl.TEXTURE_2D, 0, gl.RGBA, gl.RGBA, gl.UNSIGNED_BYTE, small);
    gl.generateMipmap(gl.TEXTURE_2D);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_MIN_FILTER, gl.LINEAR_MIPMAP_LINEAR);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_WRAP_S, gl.CLAMP_TO_EDGE);
    gl.texParameteri(gl.TEXTURE_2D, gl.TEXTURE_WRAP_T, gl.CLAMP_TO_EDGE);
    this.textures.set(key, texture);
    return texture;
  }

  /** Depth-buffer value in [0, 1] nearest to a canvas pixel, or null; `draw` draws with pick = 1. */
  pickDepth(x, y, draw) {
    const gl = this.gl, { width, height } = this.canvas, half = 4;
    const target = gl.createFramebuffer(), colour = gl.createRenderbuffer(), depth = gl.createRenderbuffer();
    gl.bindFramebuffer(gl.FRAMEBUFFER, target);
    for (const [buffer, format, place] of [[colour, gl.RGBA8, gl.COLOR_ATTACHMENT0], [depth, gl.DEPTH_COMPONENT24, gl.DEPTH_ATTACHMENT]]) {
      gl.bindRenderbuffer(gl.RENDERBUFFER, buffer);
      gl.renderbufferStorage(gl.RENDERBUFFER, format, width, height);
      gl.framebufferRenderbuffer(gl.FRAMEBUFFER, place, gl.RENDERBUFFER, buffer);
    }
    const left = clamp(Math.round(x) - half, 0, width - 1), bottom = clamp(height - 1 - Math.round(y) - half, 0, height - 1);
    const w = Math.min(2 * half + 1, width - left), h = Math.min(2 * half + 1, height - bottom);
    gl.enable(gl.SCISSOR_TEST);
    gl.scissor(left, bottom, w, h);
    gl.viewport(0, 0, width, height);
    this.blended(false);
    gl.enable(gl.DEPTH_TEST);
    gl.clearColor(0, 0, 0, 0);
    gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
    draw();
    const data = new Uint8Array(4 * w * h);
    gl.readPixels(left, bottom, w, h, gl.RGBA, gl.UNSIGNED_BYTE, data);
    gl.disable(gl.SCISSOR_TEST);
    gl.bindFramebuffer(gl.FRAMEBUFFER, null);
    gl.deleteFramebuffer(target); gl.deleteRenderbuffer(colour); gl.deleteRenderbuffer(depth);
    let best = Infinity, found = null;
    for (let i = 0; i < w * h; i++) {
      const distance = Math.hypot(left + i % w - x, bottom + Math.floor(i / w) - (height - 1 - y));
      if (data[4 * i + 3] && distance < best) {
        best = distance;
        found = (data[4 * i] + data[4 * i + 1] / 256 + data[4 * i + 2] / 65536) / 255;
      }
    }
    return found;
  }
}
