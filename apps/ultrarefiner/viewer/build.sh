#!/usr/bin/env bash
# Checks the sources' types and makes built/ultrarefiner.js, which is what the server hands out. Debian: esbuild, node-typescript.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
out="${1:-built/ultrarefiner.js}"
tsc --project .
esbuild src/index.ts --bundle --format=iife --target=es2020 --charset=utf8 --legal-comments=none --log-level=warning --outfile="$out"
