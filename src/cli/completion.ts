/** Scripts that complete the command line in bash, zsh and fish, from the definitions of the commands. */

import type { Command, Option } from "commander";

export const SHELLS = ["bash", "zsh", "fish"] as const;
export type Shell = (typeof SHELLS)[number];

interface Flag {
  /** `--config`, `-c`. */
  readonly names: readonly string[];
  readonly text: string;
  /** What follows it: nothing, a file, or a text that cannot be completed. */
  readonly value: "none" | "file" | "text";
  readonly isRepeatable: boolean;
}

interface Words {
  readonly name: string;
  readonly text: string;
  readonly flags: readonly Flag[];
  /** What may stand as the first argument: words, or a file. */
  readonly choices: readonly string[];
  readonly takesFile: boolean;
}

export function completionScript(program: Command, shell: Shell): string {
  const commands = program.commands.map(wordsOf);
  const own = flagsOf(program);
  switch (shell) {
    case "bash":
      return bashScript(program.name(), own, commands);
    case "zsh":
      return zshScript(program.name(), own, commands);
    case "fish":
      return fishScript(program.name(), own, commands);
  }
}

function wordsOf(command: Command): Words {
  const [argument] = command.registeredArguments;
  const choices = argument?.argChoices ?? [];
  return {
    name: command.name(),
    text: command.description(),
    flags: flagsOf(command),
    choices,
    takesFile: argument?.name() === "config.ini",
  };
}

function flagsOf(command: Command): Flag[] {
  return command.createHelp().visibleOptions(command).map((option) => ({
    names: [option.long, option.short].filter((name) => name !== undefined && name !== null),
    text: option.description,
    value: valueOf(option),
    isRepeatable: option.parseArg !== undefined,
  }));
}

function valueOf({ flags, required, optional }: Option): Flag["value"] {
  if (!required && !optional) return "none";
  return flags.includes("<file>") ? "file" : "text";
}

function functionName(program: string): string {
  return `_${program.replaceAll("-", "_")}`;
}

function bashScript(program: string, own: readonly Flag[], commands: readonly Words[]): string {
  const name = functionName(program);
  const words = (flags: readonly Flag[], others: readonly string[]) =>
    [...others, ...flags.flatMap((flag) => flag.names)].join(" ");
  const withValue = (
    kind: Flag["value"],
  ) => [
    ...new Set(commands.flatMap(({ flags }) => flags.filter(({ value }) => value === kind).flatMap((f) => f.names))),
  ];
  const cases = commands.map(({ name: command, flags, choices, takesFile }) =>
    `    ${command}) words="${words(flags, choices)}" files=${takesFile ? 1 : 0} ;;`
  );
  const branch = (names: readonly string[], action: string) =>
    names.length === 0 ? [] : [
      `    ${names.join(" | ")})`,
      `      ${action}`,
      "      return",
      "      ;;",
    ];
  return [
    `# bash completion for ${program}: source <(${program} completion bash)`,
    `${name}() {`,
    `  local current="\${COMP_WORDS[COMP_CWORD]}" previous="\${COMP_WORDS[COMP_CWORD-1]}" command="" i words files`,
    "  COMPREPLY=()",
    '  case "$previous" in',
    ...branch(
      withValue("file"),
      'compopt -o filenames 2>/dev/null; mapfile -t COMPREPLY < <(compgen -f -- "$current")',
    ),
    ...branch(withValue("text"), ":"),
    "  esac",
    "  for ((i = 1; i < COMP_CWORD; i++)); do",
    '    case "${COMP_WORDS[i]}" in',
    `      ${commands.map(({ name: command }) => command).join(" | ")}) command="\${COMP_WORDS[i]}"; break ;;`,
    "    esac",
    "  done",
    '  case "$command" in',
    ...cases,
    `    *) words="${words(own, commands.map(({ name: command }) => command))}" files=1 ;;`,
    "  esac",
    '  mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")',
    "  if [[ $files = 1 && $current != -* ]]; then",
    "    compopt -o filenames 2>/dev/null",
    '    mapfile -t -O "${#COMPREPLY[@]}" COMPREPLY < <(compgen -f -- "$current")',
    "  fi",
    "}",
    `complete -F ${name} ${program}`,
    "",
  ].join("\n");
}

function zshScript(program: string, own: readonly Flag[], commands: readonly Words[]): string {
  const name = functionName(program);
  const spec = ({ names, text, value, isRepeatable }: Flag): string => {
    const message = `[${text.replace(/[\\[\]:]/g, "\\$&")}]`;
    const action = value === "none" ? "" : value === "file" ? ":file:_files" : ":value: ";
    const star = isRepeatable ? "*" : "";
    if (names.length === 1) return zshQuoted(`${star}${names[0]}${message}${action}`);
    return `'(${names.join(" ")})'{${names.join(",")}}${zshQuoted(`${message}${action}`)}`;
  };
  const branches = commands.flatMap(({ name: command, flags, choices, takesFile }) => {
    const argument = choices.length > 0
      ? [zshQuoted(`1:word:(${choices.join(" ")})`)]
      : takesFile
      ? [zshQuoted("1:configuration file:_files")]
      : [];
    return [
      `        ${command})`,
      `          _arguments ${[...flags.map(spec), ...argument].join(" \\\n            ")}`,
      "          ;;",
    ];
  });
  return [
    `#compdef ${program}`,
    `# zsh completion for ${program}: save it as _${program} in a folder of $fpath`,
    `${name}() {`,
    "  local context state state_descr line curcontext=$curcontext",
    "  typeset -A opt_args",
    "  local -a commands=(",
    ...commands.map(({ name: command, text }) => `    ${zshQuoted(`${command}:${text.replaceAll(":", "\\:")}`)}`),
    "  )",
    `  _arguments -C ${own.map(spec).join(" \\\n    ")} \\`,
    "    '1: :->first' '*:: :->rest'",
    '  case "$state" in',
    "    first)",
    "      _describe -t commands command commands",
    "      _files",
    "      ;;",
    "    rest)",
    '      case "$words[1]" in',
    ...branches,
    "      esac",
    "      ;;",
    "  esac",
    "}",
    "# Loaded from $fpath it is the body of the function itself; sourced it has to be made known.",
    `if [ "\${funcstack[1]}" = "_${program}" ]; then ${name} "$@"; else compdef ${name} ${program}; fi`,
    "",
  ].join("\n");
}

function zshQuoted(text: string): string {
  return `'${text.replaceAll("'", "'\\''")}'`;
}

function fishScript(program: string, own: readonly Flag[], commands: readonly Words[]): string {
  const names = commands.map(({ name }) => name).join(" ");
  const line = (condition: string, flag: Flag): string => {
    const parts = flag.names.map((name) => name.startsWith("--") ? `-l ${name.slice(2)}` : `-s ${name.slice(1)}`);
    const value = flag.value === "none" ? "" : flag.value === "file" ? " -r -F" : " -x";
    return `complete -c ${program} -n ${fishQuoted(condition)} ${parts.join(" ")}${value} -d ${fishQuoted(flag.text)}`;
  };
  const unset = `not __fish_seen_subcommand_from ${names}`;
  return [
    `# fish completion for ${program}: save it as ~/.config/fish/completions/${program}.fish`,
    ...commands.filter(({ takesFile }) => !takesFile).map(({ name }) =>
      `complete -c ${program} -n ${fishQuoted(`__fish_seen_subcommand_from ${name}`)} -f`
    ),
    ...own.map((flag) => line(unset, flag)),
    ...commands.map(({ name, text }) =>
      `complete -c ${program} -n ${fishQuoted(unset)} -a ${name} -d ${fishQuoted(text)}`
    ),
    ...commands.flatMap(({ name, flags, choices }) => {
      const seen = `__fish_seen_subcommand_from ${name}`;
      return [
        ...flags.map((flag) => line(seen, flag)),
        ...choices.length === 0
          ? []
          : [`complete -c ${program} -n ${fishQuoted(seen)} -a ${fishQuoted(choices.join(" "))}`],
      ];
    }),
    "",
  ].join("\n");
}

function fishQuoted(text: string): string {
  return `'${text.replace(/[\\']/g, "\\$&")}'`;
}
