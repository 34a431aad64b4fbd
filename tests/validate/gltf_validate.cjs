// Usage: node gltf_validate.cjs NODE_MODULES FILE... ; prints one JSON object, file -> report.
"use strict";
const fs = require("fs");
const path = require("path");
const [folder, ...files] = process.argv.slice(2);
const validator = require(path.join(path.resolve(folder), "gltf-validator"));

async function main() {
  const out = { version: validator.version(), files: {} };
  for (const file of files) {
    const report = await validator.validateBytes(new Uint8Array(fs.readFileSync(file)), { maxIssues: 100 });
    out.files[file] = report.issues;
  }
  console.log(JSON.stringify(out));
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
