/** Tells what an executable file is for from its own headers, so that a build for the wrong platform is noticed. */

import { signatureFault } from "./code_signature.ts";
import type { Platform } from "./targets.ts";

/** Throws if the file is no executable of a known format, or if the signature of a Mach-O file does not match it. */
export function platformOf(file: Uint8Array): Platform {
  const view = new DataView(file.buffer, file.byteOffset, file.byteLength);
  if (view.getUint32(0) === 0x7f454c46) return elfPlatform(view);
  if (view.getUint32(0, true) === 0xfeedfacf) return machOPlatform(file, view);
  if (view.getUint16(0) === 0x4d5a) return pePlatform(view);
  throw new Error("neither ELF nor Mach-O nor PE");
}

export function platformText({ os, arch, libc }: Platform): string {
  return [os, arch, libc].filter((part) => part !== undefined).join(" ");
}

/** System V ABI, chapters "ELF Header" and "Program Header"; 64 bit, little endian. */
function elfPlatform(view: DataView): Platform {
  const PT_INTERP = 3;
  const arch = archOf(view.getUint16(18, true), { 62: "x64", 183: "arm64" });
  const table = Number(view.getBigUint64(32, true));
  const entrySize = view.getUint16(54, true);
  const count = view.getUint16(56, true);
  for (let i = 0; i < count; i++) {
    const entry = table + i * entrySize;
    if (view.getUint32(entry, true) !== PT_INTERP) continue;
    const interpreter = textAt(view, Number(view.getBigUint64(entry + 8, true)));
    return { os: "linux", arch, libc: interpreter.includes("musl") ? "musl" : "glibc" };
  }
  throw new Error("an ELF file without an interpreter: a static executable or none at all");
}

/** Microsoft PE and COFF specification: the offset of the PE signature at 0x3c, the machine after it. */
function pePlatform(view: DataView): Platform {
  const header = view.getUint32(0x3c, true);
  if (view.getUint32(header) !== 0x50450000) throw new Error("an MZ file without a PE header");
  return { os: "windows", arch: archOf(view.getUint16(header + 4, true), { 0x8664: "x64", 0xaa64: "arm64" }) };
}

/** `mach-o/loader.h`: 64 bit, little endian. macOS runs nothing unsigned on arm64, so a signature is required. */
function machOPlatform(file: Uint8Array, view: DataView): Platform {
  const arch = archOf(view.getUint32(4, true), { 0x01000007: "x64", 0x0100000c: "arm64" });
  const fault = signatureFault(file);
  if (fault !== undefined) throw new Error(`a Mach-O file that macOS may refuse to run: ${fault}`);
  return { os: "darwin", arch };
}

function archOf(machine: number, known: Readonly<Record<number, Platform["arch"]>>): Platform["arch"] {
  const arch = known[machine];
  if (arch === undefined) throw new Error(`an unknown machine: 0x${machine.toString(16)}`);
  return arch;
}

function textAt(view: DataView, offset: number): string {
  let text = "";
  for (let i = offset; view.getUint8(i) !== 0; i++) text += String.fromCharCode(view.getUint8(i));
  return text;
}
