// Bundles src/ into the folder that is given, each file plain and compressed. Called by dev/console.sh.
import { build } from "esbuild";
import { mkdir, readFile, readdir, writeFile, copyFile } from "node:fs/promises";
import { join } from "node:path";
import { gzipSync } from "node:zlib";

const out = process.argv[2];
await mkdir(out, { recursive: true });
const { metafile } = await build({
  entryPoints: [{ in: "src/main.tsx", out: "app" }, { in: "src/style.css", out: "app" }],
  bundle: true,
  minify: true,
  format: "esm",
  target: "es2024",
  legalComments: "linked",
  metafile: true,
  outdir: out,
});
for (const name of ["index.html", "icon.svg"]) await copyFile(join("src", name), join(out, name));
// What the bundle is made of, and on what terms.
const bundled = Object.keys(metafile.inputs).map((path) => /.*node_modules\/((?:@[^/]+\/)?[^/]+)\//.exec(path)?.[1]);
const terms = [];
for (const name of [...new Set(bundled.filter(Boolean))].sort()) {
  const folder = join("node_modules", name);
  const { version } = JSON.parse(await readFile(join(folder, "package.json"), "utf8"));
  const file = (await readdir(folder)).find((one) => /^licen[cs]e/i.test(one));
  terms.push(`${name} ${version}\n\n${await readFile(join(folder, file), "utf8")}`);
}
await writeFile(join(out, "licenses.txt"), terms.join("\n----\n\n"));
for (const name of await readdir(out)) {
  if (name.endsWith(".gz")) continue;
  const text = await readFile(join(out, name));
  await writeFile(join(out, `${name}.gz`), gzipSync(text, { level: 9 }));
}
