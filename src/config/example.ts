/** What is printed from the key table: the example file, the keys for `--help`, and the reference in the README. */

import { formatIniValue } from "./ini.ts";
import type { UpstreamKind } from "./config.ts";
import { appliesTo, keysOf, type KeySpec, KIND_NAMES, KINDS, type NamedKey, type SectionType } from "./keys.ts";
import { allowedText } from "./values.ts";

const LINE_WIDTH = 116;

/**
 * A commented ini file with both forms and every key. As it stands it prints the events of a local database on standard
 * output; lines that begin with `;` are settings to choose from.
 */
export function exampleIni(): string {
  const terminal = "upstream.terminal";
  const database = { uri: "postgresql://postgres@localhost:5432/postgres" };
  const [firstTls = "amqp", ...otherTls] = kindsWithTls();
  const lines = [
    ...comment(INTRO),
    "#",
    ...comment(SYNTAX),
    "",
    ...comment(
      "One database and any number of upstreams, each with a name of your choice. Variables: PGPROXY_DATABASE-URI, " +
        "PGPROXY_UPSTREAM-TERMINAL-KIND, …",
    ),
    "",
    ...sectionLines("database", "[database]", keysOf("database"), undefined, database),
    ...sectionLines("upstream", `[${terminal}]`, keysFor("stdout"), "stdout"),
    ...KIND_NAMES.filter((kind) => kind !== "stdout").flatMap((kind) => [
      ...comment(
        kind === firstTls
          ? `The keys of [${terminal}] may stand in every upstream, those for TLS also in ${otherTls.join(" and ")}.`
          : `The keys of [${terminal}] may stand here as well.`,
      ),
      ...sectionLines(
        "upstream",
        `;[upstream.my${kind}]`,
        keysFor(kind).filter((key) => isSpecific(key, kind === firstTls)),
        kind,
      ),
    ]),
    ...comment(
      "The other form: a section per bridge of one database and one upstream, with a name of your choice. Variables: " +
        "PGPROXY_LOCAL-POSTGRESQL_URI, PGPROXY_LOCAL-UPSTREAM_CONFIG-URI, …",
    ),
    ...sectionLines("bridge", ";[local]", keysOf("bridge"), "amqp", { replication_slot: "my_replication_slot" }),
    ...comment("Here stand the keys of an upstream that are shown above."),
    ...sectionLines(
      "upstream_config",
      ";[local.upstream_config]",
      keysOf("upstream_config").filter(({ spec }) => spec.required),
      "amqp",
    ),
    ...sectionLines("http", "[http]", keysOf("http"), undefined),
    ...sectionLines("log", "[log]", keysOf("log"), undefined),
  ];
  return lines.join("\n").trimEnd() + "\n";
}

const INTRO =
  "Configuration of pg-event-proxy. Every key may also be set by an environment variable, which then wins: " +
  "PGPROXY_ + section + key, joined with - (or __), as in PGPROXY_UPSTREAM-TERMINAL-KIND or " +
  "PGPROXY_UPSTREAM__TERMINAL__KIND. A name that ends in _FILE (uri_file=/run/secrets/uri) has its value read from the " +
  "file named.";

const SYNTAX =
  "Comments stand on lines of their own. A value goes to the end of its line as it stands; one that begins " +
  'or ends with a blank is put in double quotes, in which \\" and \\\\ stand for " and \\.';

function keysFor(kind: UpstreamKind): NamedKey[] {
  return keysOf("upstream").filter(({ spec }) => appliesTo(spec, kind));
}

/** Those that the keys for TLS apply to. */
function kindsWithTls(): UpstreamKind[] {
  return KIND_NAMES.filter((kind) => keysFor(kind).some(({ spec }) => spec.section === "upstream" && spec.tls));
}

/** What every upstream has is shown once, and so are the keys for TLS. */
function isSpecific({ spec }: NamedKey, withTls: boolean): boolean {
  if (spec.section !== "upstream") return false;
  if (spec.tls) return withTls;
  return spec.required === true || spec.kinds !== undefined;
}

/** A header and its keys; where the header is commented out all keys are. */
function sectionLines(
  type: SectionType,
  header: string,
  keys: readonly NamedKey[],
  kind: UpstreamKind | undefined,
  values: Readonly<Record<string, string>> = {},
): string[] {
  const isActive = !header.startsWith(";");
  const lines = keys.flatMap((key) => {
    const value = values[key.name] ?? exampleValue(key.spec, kind);
    const mark = isActive && key.spec.required ? "" : ";";
    // The slot of an upstream is that of the database unless it is set.
    const text = type === "upstream" && key.spec.section === "database"
      ? `${plain(key.spec.text)} (default: as in [database])`
      : keyText(key);
    return [...comment(text), `${mark}${key.name}=${formatIniValue(value)}`];
  });
  return [header, ...lines, ""];
}

function exampleValue(spec: KeySpec, kind: UpstreamKind | undefined): string {
  if (kind !== undefined) {
    if (spec.name === "kind") return kind;
    if (spec.type === "broker_uri") return KINDS[kind].exampleUri ?? "";
    if (spec.type === "bridge_channels") return KINDS[kind].exampleBindings;
  }
  return spec.default ?? spec.example ?? "";
}

/** `Publish as retained messages (true, false; default false)` */
function keyText({ spec }: NamedKey): string {
  const notes = [
    spec.type === "choice" || spec.type === "boolean" ? allowedText(spec) : "",
    spec.required ? "required" : spec.default !== undefined ? `default ${spec.default}` : "",
    spec.defaultText === undefined ? "" : `default: ${spec.defaultText}`,
  ].filter((note) => note !== "");
  return plain(spec.text) + (notes.length === 0 ? "" : ` (${notes.join("; ")})`);
}

function plain(text: string): string {
  return text.replaceAll("`", "");
}

/** Text in lines of `# …`. */
function comment(text: string): string[] {
  return wrap(text, LINE_WIDTH).map((line) => `# ${line}`);
}

function wrap(text: string, width: number): string[] {
  const lines: string[] = [];
  for (const word of text.split(" ")) {
    const last = lines.at(-1);
    if (last !== undefined && last.length + 1 + word.length <= width) lines[lines.length - 1] = `${last} ${word}`;
    else lines.push(word);
  }
  return lines;
}

interface KeyGroup {
  readonly title: string;
  readonly intro: string;
  readonly keys: readonly NamedKey[];
}

/** The keys in the order and the groups of the documentation. */
function keyGroups(): KeyGroup[] {
  const upstream = keysOf("upstream").filter(({ spec }) => spec.section === "upstream");
  const ofOneKind = (kind: UpstreamKind) =>
    upstream.filter(({ spec }) => spec.section === "upstream" && spec.kinds?.length === 1 && spec.kinds[0] === kind);
  const tls = upstream.filter(({ spec }) => spec.section === "upstream" && spec.tls === true);
  const own = KIND_NAMES.map((kind) => ({ kind, keys: ofOneKind(kind) })).filter(({ keys }) => keys.length > 0);
  const special = new Set([...tls, ...own.flatMap(({ keys }) => keys)]);
  return [
    {
      title: "Database",
      intro: "Section `[database]`; in the first form the section of the bridge, `[NAME]`.",
      keys: keysOf("database"),
    },
    {
      title: "Upstream",
      intro: "Section `[upstream.NAME]`; in the first form `[NAME.upstream_config]`.",
      keys: upstream.filter((key) => !special.has(key)),
    },
    ...own.map(({ kind, keys }) => ({ title: `Upstream of kind ${kind}`, intro: "", keys })),
    { title: "TLS to the upstream", intro: `For ${kindsWithTls().map(code).join(", ")}.`, keys: tls },
    { title: "HTTP", intro: "Section `[http]`.", keys: keysOf("http") },
    { title: "Log", intro: "Section `[log]`.", keys: keysOf("log") },
  ];
}

const HELP_INDENT = 27;

/** Every key with its default and text, for `--help`. */
export function keyHelp(): string {
  return keyGroups().map(({ title, intro, keys }) => {
    const lines = keys.flatMap(({ name, spec }) => {
      const names = otherName(spec) === undefined ? name : `${name}, ${otherName(spec)}`;
      const text = wrap(keyText({ name, spec }), LINE_WIDTH - HELP_INDENT);
      return text.map((line, index) => `  ${(index === 0 ? names : "").padEnd(HELP_INDENT - 2)}${line}`);
    });
    return [`${title}${intro === "" ? "" : ` (${plain(intro).replace(/\.$/, "")})`}`, ...lines].join("\n");
  }).join("\n\n") + "\n";
}

function otherName(spec: KeySpec): string | undefined {
  return "bridgeName" in spec ? spec.bridgeName : undefined;
}

/** The reference for the README: a table of the kinds, and one per group of keys, as `deno fmt` lays tables out. */
export function keyReferenceMarkdown(): string {
  const blocks: string[] = [];
  for (const { title, intro, keys } of keyGroups()) {
    blocks.push(`#### ${title}`);
    if (intro !== "") blocks.push(intro);
    if (title === "Upstream") blocks.push(kindTable());
    blocks.push(table([["key", "value", "default", "meaning"], ...keys.map(keyRow)]));
  }
  return blocks.join("\n\n") + "\n";
}

function kindTable(): string {
  const rows = KIND_NAMES.map((kind) => {
    const { schemes, tlsSchemes, targetTypes, text } = KINDS[kind];
    const uris = [...schemes, ...tlsSchemes].map((scheme) => code(`${scheme}://`)).join(", ");
    return [code(kind), text, uris === "" ? "none" : uris, targetTypes.map((type) => code(`${type}:`)).join(", ")];
  });
  return table([["kind", "destination", "`uri`", "targets in `bridge_channels`"], ...rows]);
}

function keyRow({ name, spec }: NamedKey): string[] {
  const other = otherName(spec);
  const where = other === undefined ? "" : `; in \`[NAME]\` of the first form it is called \`${other}\``;
  const own = spec.section === "database" && spec.perUpstream ? "; may also stand in `[upstream.NAME]`" : "";
  const missing = KIND_NAMES.filter((kind) => !appliesTo(spec, kind));
  const isGeneral = spec.section === "upstream" && !spec.tls && missing.length > 0 &&
    missing.length <= KIND_NAMES.length / 2;
  const not = isGeneral ? `; not for ${missing.map(code).join(", ")}` : "";
  const value = spec.allowed === undefined ? valueText(spec) : spec.allowed.map((one) => code(String(one))).join(", ");
  return [code(name), value, defaultCell(spec), spec.text + where + own + not];
}

function valueText(spec: KeySpec): string {
  switch (spec.type) {
    case "boolean":
      return "`true`, `false`";
    case "integer":
    case "bytes":
      return spec.unit ?? "number";
    case "wal2json_params":
    case "bridge_channels":
      return "list";
    case "slot_name":
      return "name";
    case "broker_uri":
    case "postgresql_uri":
    case "uri_reference":
      return "URI";
    case "listen":
      return "address";
    case "choice":
    case "path":
    case "text":
    case "webhook_secret":
    case "header_list":
      return spec.secret ? "secret" : spec.type;
  }
}

function defaultCell(spec: KeySpec): string {
  if (spec.required) return "required";
  return spec.default === undefined ? spec.defaultText ?? "" : code(spec.default);
}

function code(text: string): string {
  return `\`${text}\``;
}

/** Columns padded to one width, as `deno fmt` would do, so that formatting the README leaves the reference alone. */
function table(texts: readonly (readonly string[])[]): string {
  // A bar ends the cell, in code as well (GitHub Flavored Markdown, "Tables").
  const rows = texts.map((row) => row.map((cell) => cell.replaceAll("|", "\\|")));
  const width = (column: number) => Math.max(3, ...rows.map((row) => [...(row[column] ?? "")].length));
  const line = (cells: readonly string[], fill: string) =>
    `| ${cells.map((cell, column) => cell + fill.repeat(width(column) - [...cell].length)).join(" | ")} |`;
  const [header = [], ...body] = rows;
  return [line(header, " "), line(header.map(() => ""), "-"), ...body.map((row) => line(row, " "))].join("\n");
}

export const REFERENCE_BEGIN = "<!-- configuration reference: begin -->";
export const REFERENCE_END = "<!-- configuration reference: end -->";

/** The reference as it stands in a README, between the two marks; undefined where a mark is missing. */
export function referenceIn(readme: string): string | undefined {
  const begin = readme.indexOf(REFERENCE_BEGIN);
  const end = readme.indexOf(REFERENCE_END, begin);
  if (begin < 0 || end < 0) return undefined;
  return readme.slice(begin + REFERENCE_BEGIN.length, end).trim() + "\n";
}

/** The README with the reference of this version between the two marks; undefined where a mark is missing. */
export function withReference(readme: string): string | undefined {
  if (referenceIn(readme) === undefined) return undefined;
  const begin = readme.indexOf(REFERENCE_BEGIN) + REFERENCE_BEGIN.length;
  const end = readme.indexOf(REFERENCE_END, begin);
  return `${readme.slice(0, begin)}\n\n${keyReferenceMarkdown()}\n${readme.slice(end)}`;
}
