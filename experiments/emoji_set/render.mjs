// Draw every character of an Iconify package as a PNG on white: node render.mjs <package> <out> <size>
import fs from "node:fs";
import path from "node:path";
import { createRequire } from "node:module";

const [folder, out, size] = process.argv.slice(2);
const { Resvg } = createRequire(path.resolve("package.json"))("@resvg/resvg-js");
const read = (name) => JSON.parse(fs.readFileSync(path.join(folder, name)));
const { icons, aliases = {}, width: side = 16, height: tall = side } = read("icons.json");
const ABORTING = new Set(["1f4e6", "1f3f3-200d-1f308"]); // Noto's package and rainbow flag end the process of resvg 2.6

const resolve = (name) => icons[name] ?? (aliases[name] && resolve(aliases[name].parent));

fs.mkdirSync(out, { recursive: true });
for (const [sequence, name] of Object.entries(read("chars.json"))) {
  const key = sequence.split("-").filter((part) => part !== "fe0f").join("-");
  const icon = resolve(name);
  const file = path.join(out, `${key}.png`);
  if (!icon || fs.existsSync(file) || (ABORTING.has(key) && path.basename(folder) === "noto")) continue;
  const { width = side, height = tall, left = 0, top = 0 } = icon;
  const svg = `<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"
    viewBox="${left} ${top} ${width} ${height}">${icon.body.replace(/currentColor/g, "#222")}</svg>`;
  const fitTo = { mode: width >= height ? "width" : "height", value: Number(size) };
  fs.writeFileSync(file, new Resvg(svg, { background: "white", fitTo, font: { loadSystemFonts: false } }).render().asPng());
}
