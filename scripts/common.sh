# Shared by the scripts of this folder; to be sourced.
# shellcheck shell=bash

set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
TOOLS="$ROOT/.tools/node_modules/.bin"
# shellcheck disable=SC2034 # used by the scripts that source this file
DENO="$TOOLS/deno" BUN="$TOOLS/bun"

# Progress goes to standard error: standard output belongs to what a script was asked for.
say() {
  printf '%s: %s\n' "$(basename "$0")" "$*" >&2
}

fail() {
  say "$*"
  exit 1
}

# Runs a command whose output matters only if it fails.
quietly() {
  local output status=0
  output=$("$@" 2>&1 </dev/null) || status=$?
  if [ "$status" -ne 0 ]; then printf '%s\n' "$output" | tail -n 40 >&2; fi
  return "$status"
}
