/** An upstream: its login, and each target of its bindings, as the run would use them. */

import { randomUUID } from "node:crypto";
import type { Binding, MqttConfig, UpstreamConfig } from "../config/config.ts";
import { maskUri } from "../config/uri.ts";
import { templateOf } from "../core/bindings.ts";
import { sleep } from "../core/backoff.ts";
import { errorText, TransientError } from "../core/errors.ts";
import { type Event, WAL_CHANNEL } from "../core/event.ts";
import type { Permission, Session, Target, Upstream } from "../core/upstream.ts";
import { createUpstream } from "../upstreams/mod.ts";
import { Findings, type Section } from "./finding.ts";

const CLOSE_MS = 1_000;
const ANSWER_MS = 10_000;

export interface UpstreamCheckOptions {
  readonly bridge: string;
  readonly config: UpstreamConfig;
  /** Publish one message to each target. */
  readonly send: boolean;
  /** The routing key of that message for a channel, and for the WAL. */
  readonly key: string;
  readonly walKey: string;
}

/** Never throws but when `signal` aborts. */
export async function checkUpstream(options: UpstreamCheckOptions, signal: AbortSignal): Promise<Section> {
  const { bridge, config } = options;
  const findings = new Findings();
  const part = config.name === bridge ? `${bridge}, upstream` : `${bridge}, upstream ${config.name}`;
  const section = { part, server: serverText(config), findings: findings.list };
  if (config.kind === "stdout") {
    findings.ok("standard output", "needs nothing");
    return section;
  }
  try {
    const upstream = await logIn(options, findings, signal);
    if (upstream === undefined) return section;
    for (const binding of targetsOf(config, options.send)) {
      await checkTarget(options, upstream, binding, findings, signal);
    }
  } catch (error) {
    signal.throwIfAborted();
    findings.failWith("connection", error, "look into the log of the server, and check again");
  }
  return section;
}

function serverText(config: UpstreamConfig): string {
  const uri = "uri" in config ? URL.parse(config.uri) : null;
  return uri === null ? config.kind : `${config.kind} at ${uri.host}`;
}

/** `exchange "amq.topic"`; of a URL without what may be a secret in it. */
function subjectOf({ type, name }: Target): string {
  return `${type} "${type === "url" ? maskUri(name) : name}"`;
}

interface Opened {
  readonly session: Session;
  /** Resolves with the cause when the session is lost. */
  readonly lost: Promise<Error>;
}

/** The targets, each with the first channel that is bound to it, and with the WAL, whose routing keys are others. */
function targetsOf({ bindings }: UpstreamConfig, send: boolean): Binding[] {
  const byTarget = new Map<string, Binding>();
  for (const binding of bindings) {
    const { type, name } = binding.target;
    const key = `${send && binding.channel === WAL_CHANNEL}:${type}:${name}`;
    if (!byTarget.has(key)) byTarget.set(key, binding);
  }
  return [...byTarget.values()];
}

/**
 * Nothing is declared or retained, and a running instance keeps its MQTT session: a second one of the same client
 * identifier would push it out.
 */
function harmless(config: UpstreamConfig, send: boolean): UpstreamConfig[] {
  switch (config.kind) {
    case "amqp":
      return [{ ...config, declare: false }];
    case "mqtt": {
      const clientId = config.clientId === undefined ? undefined : `${config.clientId}-check`;
      const own: MqttConfig = { ...config, clientId, retain: false };
      // Only MQTT 5 tells of a topic that may not be published to.
      return send && config.protocolVersion === 4 ? [{ ...own, protocolVersion: 5, qos: 1 }, own] : [own];
    }
    default:
      return [config];
  }
}

async function logIn(
  { config, send }: UpstreamCheckOptions,
  findings: Findings,
  signal: AbortSignal,
): Promise<Upstream | undefined> {
  let fault: unknown;
  for (const attempt of harmless(config, send)) {
    try {
      const upstream = await createUpstream(attempt);
      await (await open(upstream, [], signal)).session.close(CLOSE_MS);
      // The others have their servers in their targets.
      if ("uri" in config) findings.ok("login", "accepted");
      return upstream;
    } catch (error) {
      signal.throwIfAborted();
      fault = error;
    }
  }
  findings.failWith(
    "login",
    fault,
    "check host and port in uri, that the server runs, and that no firewall stands between",
  );
  return undefined;
}

/** One session at a time: a second one of the same MQTT client identifier ends the first. */
async function open(upstream: Upstream, targets: readonly Target[], signal: AbortSignal): Promise<Opened> {
  const lost = Promise.withResolvers<Error>();
  return { session: await upstream.connect(targets, lost.resolve, signal), lost: lost.promise };
}

async function checkTarget(
  options: UpstreamCheckOptions,
  upstream: Upstream,
  { channel, target }: Binding,
  findings: Findings,
  signal: AbortSignal,
): Promise<void> {
  const subject = subjectOf(target);
  const event = sampleEvent(options, channel);
  const template = templateOf(options.config, target);
  if (template !== undefined && !options.send) {
    return findings.unchecked(subject, "its placeholders are filled in by each event", TRY_BY_SENDING);
  }
  let opened: Opened;
  try {
    opened = await open(upstream, template === undefined ? [target] : [], signal);
  } catch (error) {
    signal.throwIfAborted();
    const declares = options.config.kind === "amqp" && options.config.declare;
    if (declares && /NOT_FOUND/.test(errorText(error))) {
      return findings.ok(subject, "is not there yet: the start creates it (declare=true)");
    }
    return findings.failWith(subject, error, "correct bridge_channels");
  }
  try {
    await tryTarget(options, opened, { subject, event, target: template?.of(event) ?? target }, findings);
  } finally {
    await opened.session.close(CLOSE_MS);
  }
}

interface Trial {
  readonly subject: string;
  readonly event: Event;
  /** With its placeholders filled in. */
  readonly target: Target;
}

async function tryTarget(
  options: UpstreamCheckOptions,
  opened: Opened,
  trial: Trial,
  findings: Findings,
): Promise<void> {
  const { subject, event, target } = trial;
  const permission = await askPermission(opened, target, event.routingKey);
  if (permission?.kind === "refused") return findings.fail(subject, permission.reason, permission.remedy);
  if (options.send) return await send(options.config, opened, trial, findings);
  if (permission?.kind === "allowed") findings.ok(subject, "may be published to");
  else if (permission?.kind === "unknown") findings.unchecked(subject, permission.reason, TRY_BY_SENDING);
  else findings.unchecked(subject, "whether it may be published to shows only a message", TRY_BY_SENDING);
}

const TRY_BY_SENDING = "check --send publishes one, which consumers see";

async function askPermission(
  { session, lost }: Opened,
  target: Target,
  routingKey: string,
): Promise<Permission | undefined> {
  if (session.askPermission === undefined) return undefined;
  return await inTime(session.askPermission(target, routingKey), lost);
}

function sampleEvent({ key, walKey }: UpstreamCheckOptions, channel: string): Event {
  const isWal = channel === WAL_CHANNEL;
  return {
    id: `check-${randomUUID()}`,
    type: isWal ? "wal" : "notify",
    channel,
    routingKey: isWal ? walKey : key,
    payload: Buffer.from(JSON.stringify({ check: "pg-event-proxy" })),
    json: true,
    receivedAtMs: Date.now(),
  };
}

async function send(
  config: UpstreamConfig,
  { session, lost }: Opened,
  { subject, event, target }: Trial,
  findings: Findings,
): Promise<void> {
  const told = session.publishAndTell?.(event, target) ?? publish(session, event, target);
  let arrived: boolean;
  try {
    arrived = await inTime(told, lost);
  } catch (error) {
    return findings.failWith(subject, error, `grant the user of ${config.kind} the right to publish to it`);
  }
  if (arrived) return findings.ok(subject, `took a message with the routing key "${event.routingKey}"`);
  findings.warn(
    subject,
    `a message with the routing key "${event.routingKey}" reached no queue: the events would be dropped`,
    "bind a queue to it (check --send --key KEY tries another routing key)",
  );
}

/** As the run publishes. */
function publish(session: Session, event: Event, target: Target): Promise<boolean> {
  return new Promise((resolve, reject) => {
    session.publish({
      event,
      target,
      acknowledge: () => resolve(true),
      refuse: (_, reason) => reject(new TransientError(reason)),
    });
    session.flush();
  });
}

async function inTime<T>(answer: Promise<T>, lost: Promise<Error>): Promise<T> {
  answer.catch(() => {});
  const patience = new AbortController();
  try {
    const failure = Promise.race([
      lost,
      sleep(ANSWER_MS, patience.signal).then(() => new Error(`no answer within ${ANSWER_MS / 1000} s`)),
    ]).then((cause) => Promise.reject(cause));
    failure.catch(() => {});
    return await Promise.race([answer, failure]);
  } finally {
    patience.abort();
  }
}
