#!/usr/bin/env bash
# Makes events until Ctrl-C: rows inserted, updated and deleted, NOTIFY, and stored messages where the schema `events` is
# installed. Without arguments on the PostgreSQL of examples/compose.yaml.
#
#   scripts/generate_events.sh [postgresql://user:password@host/database] [--count ROUNDS] [--every MILLISECONDS]

. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

"$ROOT/scripts/setup"
exec "$BUN" "$ROOT/scripts/generate_events.ts" "$@"
