/** `--help` in the sections of a manual page (man-pages(7)), from the definitions of the commands and what stands here. */

import type { Command, Help } from "commander";
import { keyHelp } from "../config/example.ts";

interface Page {
  /** Paragraphs. */
  readonly description: readonly string[];
  readonly examples: ReadonlyArray<readonly [command: string, meaning: string]>;
  readonly exitStatus: ReadonlyArray<readonly [code: string, meaning: string]>;
}

const WIDTH = 100;
const INDENT = "  ";

const CONFIGURATION =
  "The configuration comes from the file, from variables PGPROXY_… of the environment, or both; the " +
  "environment wins. pg-event-proxy config --example prints a commented file.";
const DONE = ["0", "done"] as const;
const USAGE = ["2", "faulty configuration or command line; one line for each fault on standard error"] as const;

const PAGES: Readonly<Record<string, Page>> = {
  "pg-event-proxy": {
    description: [
      "Listens to a PostgreSQL database and hands on what happens there: messages of NOTIFY and of events.send_message, and " +
      "the changes of rows, read from the WAL with wal2json. Without a command it runs the proxy.",
      CONFIGURATION,
      "pg-event-proxy COMMAND --help tells more of each command.",
    ],
    examples: [
      [
        "pg-event-proxy tail postgresql://user@host/db --table items",
        "watch the changes of a table, with nothing set up",
      ],
      ["pg-event-proxy config --example > config.ini", "write a commented configuration to start from"],
      ["pg-event-proxy check config.ini", "see what the servers still lack, and how to mend it"],
      ["pg-event-proxy config.ini", "run with it"],
      ["pg-event-proxy run --help", "list every key"],
    ],
    exitStatus: [DONE, ["1", "could not run; standard error says why and what to do"], USAGE],
  },
  run: {
    description: [
      CONFIGURATION,
      "A variable is PGPROXY_, the section and the key, joined by - or __: PGPROXY_DATABASE-URI, " +
      "PGPROXY_UPSTREAM__MAILS__KIND. A name that ends in _FILE has its value read from the file that it names. The keys " +
      "follow below.",
      "SIGTERM and SIGINT end it when what was read is acknowledged, at the latest after shutdown_timeout; a second signal " +
      "ends it at once.",
    ],
    examples: [
      ["pg-event-proxy config.ini", "run with a file"],
      ["env PGPROXY_DATABASE__URI=postgresql://localhost/app pg-event-proxy config.ini", "with another database"],
    ],
    exitStatus: [
      ["0", "stopped by a signal"],
      ["1", "a fault at the first start that no retry mends: a refused password, a missing exchange or right"],
      USAGE,
    ],
  },
  check: {
    description: [
      "Goes through everything that a run needs, by the run's own code, and prints a line for each: a mark, what was seen " +
      "and, below it, what to do. It creates nothing that stays and takes neither slot nor lock from an instance that runs.",
      "✓ is as it should be, ! works but will miss or cost something, ✗ keeps the proxy from running, – cannot be known " +
      "without publishing: --send then publishes one message to each target, which its consumers see. It holds " +
      '{"check":"pg-event-proxy"}.',
      CONFIGURATION,
    ],
    examples: [
      ["pg-event-proxy check config.ini", "look at everything"],
      [
        "pg-event-proxy check --send --key signup config.ini",
        "see that a message with routing key signup reaches a queue",
      ],
      [
        "pg-event-proxy check --json config.ini | jq '.sections[].findings[] | select(.mark == \"failure\")'",
        "for machines",
      ],
    ],
    exitStatus: [["0", "nothing failed; there may be warnings"], ["1", "something failed"], USAGE],
  },
  tail: {
    description: [
      "Prints events as they happen, until Ctrl-C: coloured lines on a terminal, JSON lines otherwise, one event each, with " +
      "id, type, channel, routing_key and payload. It needs no configuration and leaves nothing on the server: the " +
      "replication slot is a temporary one. What happened before is not shown.",
      "Row changes need wal_level = logical, wal2json and a role with REPLICATION; channels need nothing but the right to " +
      "connect. An UPDATE or DELETE shows only if its table has a primary key or REPLICA IDENTITY.",
      "The variables PGHOST, PGUSER, PGPASSWORD, … and the password file fill in what the URI leaves out.",
    ],
    examples: [
      ["pg-event-proxy tail postgresql://user@host/db", "every change of every table"],
      ["pg-event-proxy tail postgresql://user@host/db --table public.items --table orders", "those of two tables"],
      ["pg-event-proxy tail postgresql://user@host/db --channel events", "notifications"],
      ["pg-event-proxy tail postgresql://user@host/db --table items | jq .payload", "as JSON"],
    ],
    exitStatus: [
      ["0", "ended by Ctrl-C, or because the reader of the pipe has ended"],
      ["1", "the server cannot be watched, or the connection was lost; standard error says why"],
      ["2", "faulty command line"],
    ],
  },
  config: {
    description: ["Prints an ini file that loads as the same configuration; passwords are masked.", CONFIGURATION],
    examples: [
      ["pg-event-proxy config --example > config.ini", "a commented file to start from"],
      ["pg-event-proxy config config.ini", "see what would be used, and where it comes from"],
    ],
    exitStatus: [DONE, USAGE],
  },
  sql: {
    description: [
      "The schema holds events.send_message, which sends messages that are kept until they are delivered, and the trigger " +
      "function events.on_row_change. Installing it again upgrades it and keeps what is stored.",
    ],
    examples: [
      ["pg-event-proxy sql --install config.ini", "install it on each configured database"],
      ["pg-event-proxy sql --role proxy | psql mydb", "print it, for a proxy that logs in as this role"],
    ],
    exitStatus: [DONE, ["1", "it could not be installed; standard error says why"], USAGE],
  },
  completion: {
    description: ["Prints a script that completes commands and options in that shell."],
    examples: [
      ["source <(pg-event-proxy completion bash)", "in ~/.bashrc"],
      ['pg-event-proxy completion zsh > "${fpath[1]}/_pg-event-proxy"', "once; then start zsh anew"],
      ["pg-event-proxy completion fish > ~/.config/fish/completions/pg-event-proxy.fish", "once"],
    ],
    exitStatus: [DONE, ["2", "faulty command line"]],
  },
};

/** For `Command.configureHelp`. */
export function manualPage(command: Command, helper: Help): string {
  const page = PAGES[command.name()];
  const name = command.parent === null ? command.name() : `${command.parent.name()} ${command.name()}`;
  const sections: Array<readonly [title: string, lines: readonly string[]]> = [
    ["NAME", [`${name} - ${helper.commandDescription(command)}`]],
    ["SYNOPSIS", [helper.commandUsage(command)]],
    ["DESCRIPTION", (page?.description ?? []).flatMap((text, i) => [...i === 0 ? [] : [""], ...wrap(text)])],
    ["COMMANDS", terms(helper.visibleCommands(command).map((sub) => [helper.subcommandTerm(sub), sub.description()]))],
    ["ARGUMENTS", terms(helper.visibleArguments(command).map((one) => [one.name(), helper.argumentDescription(one)]))],
    ["OPTIONS", terms(helper.visibleOptions(command).map((one) => [one.flags, helper.optionDescription(one)]))],
    ["CONFIGURATION", command.name() === "run" ? keyHelp().trimEnd().split("\n") : []],
    ["EXAMPLES", (page?.examples ?? []).flatMap(([text, meaning]) => [text, `${INDENT}${meaning}`])],
    ["EXIT STATUS", terms(page?.exitStatus ?? [])],
  ];
  return sections.filter(([, lines]) => lines.length > 0).map(([title, lines]) => {
    return [title, ...lines.map((line) => line === "" ? "" : `${INDENT}${line}`)].join("\n");
  }).join("\n\n") + "\n";
}

function terms(rows: ReadonlyArray<readonly [term: string, text: string]>): string[] {
  const width = Math.max(0, ...rows.map(([term]) => term.length)) + 2;
  return rows.flatMap(([term, text]) => {
    return wrap(text, WIDTH - width).map((line, i) => `${(i === 0 ? term : "").padEnd(width)}${line}`.trimEnd());
  });
}

function wrap(text: string, width = WIDTH): string[] {
  const lines: string[] = [""];
  for (const word of text.split(" ")) {
    const last = lines.at(-1)!;
    if (last === "") lines[lines.length - 1] = word;
    else if (last.length + 1 + word.length <= width) lines[lines.length - 1] = `${last} ${word}`;
    else lines.push(word);
  }
  return lines;
}
