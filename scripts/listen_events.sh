#!/usr/bin/env bash
# Shows what arrives at the brokers until Ctrl-C, as consumers that know nothing of pg-event-proxy: the exchange amq.topic
# of RabbitMQ, every topic of an MQTT broker, every channel of Redis. Without a URI those of examples/compose.yaml.
#
#   scripts/listen_events.sh [amqp://… | mqtt://… | redis://… …] [--count MESSAGES]

. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

"$ROOT/scripts/setup"
exec "$BUN" "$ROOT/scripts/listen_events.ts" "$@"
