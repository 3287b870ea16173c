import { readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { gzipSync } from "node:zlib";
import { svelte } from "@sveltejs/vite-plugin-svelte";
import { defineConfig, type Plugin } from "vite";

/** Writes `x.gz` beside every text file of the output, so that serving never compresses. */
function precompress(): Plugin {
  return {
    name: "noria-precompress",
    apply: "build",
    writeBundle({ dir }) {
      for (const name of readdirSync(dir!, { recursive: true, encoding: "utf8" })) {
        if (!/\.(js|css|svg|html)$/.test(name)) continue;
        const file = join(dir!, name);
        writeFileSync(`${file}.gz`, gzipSync(readFileSync(file), { level: 9 }));
      }
    },
  };
}

const server = process.env.NORIA_ORIGIN ?? "http://127.0.0.1:8000";

export default defineConfig({
  plugins: [svelte(), precompress()],
  build: {
    outDir: "../src/noria/web/static",
    emptyOutDir: true,
    assetsInlineLimit: 0, // data: URLs would need an exception in the content security policy
    modulePreload: { polyfill: false },
    target: "es2022",
  },
  server: { proxy: { "/api": server, "/v1": server, "/login": { target: server, bypass: (q) => (q.method === "GET" && !q.url?.includes("code=") ? q.url : undefined) } } },
});
