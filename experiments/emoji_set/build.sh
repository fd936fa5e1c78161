#!/usr/bin/env bash
# Build the emoji set from public npm packages: experiments/emoji_set/build.sh <folder of the set>
# Needs npm and node; a few minutes. Licences of the drawings and texts: see README.md.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd) out=$(realpath -m "${1:?folder of the set}")
work=${WORK:-$(mktemp -d)} # given: kept, and used again
mkdir -p "$work" && cd "$work"
[ -f package.json ] || echo '{"private": true}' >package.json
npm install --no-audit --no-fund --ignore-scripts @iconify-json/noto@1.2.9 @iconify-json/twemoji@1.2.5 \
  @lobehub/fluent-emoji-3d@1.1.0 cldr-annotations-full@48.2.0 cldr-annotations-derived-full@48.2.0 @resvg/resvg-js@2.6.2
# of this package the table alone: its pictures have other licences
mkdir -p node_modules/emoji-datasource
tar -xzf "$(npm pack --silent emoji-datasource@16.0.0)" -C node_modules/emoji-datasource --strip-components 1 package/emoji_pretty.json
for artist in noto twemoji; do
  node "$here/render.mjs" "node_modules/@iconify-json/$artist" "pictures/$artist" 128
done
"${PYTHON:-$here/../../.venv/bin/python}" "$here/build_set.py" node_modules pictures "$out"
[ -n "${WORK:-}" ] || rm -rf "$work"
