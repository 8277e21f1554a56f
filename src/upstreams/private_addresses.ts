/** Addresses that are not on the public Internet, which a webhook reaches only when it is told to. */

import { BlockList, isIP } from "node:net";

/**
 * IANA IPv4 and IPv6 Special-Purpose Address Registries, the blocks that are not globally reachable
 * (www.iana.org/assignments/iana-ipv4-special-registry, iana-ipv6-special-registry), and multicast.
 */
const IPV4_BLOCKS: readonly (readonly [string, number])[] = [
  ["0.0.0.0", 8],
  ["10.0.0.0", 8],
  ["100.64.0.0", 10],
  ["127.0.0.0", 8],
  ["169.254.0.0", 16],
  ["172.16.0.0", 12],
  ["192.0.0.0", 24],
  ["192.0.2.0", 24],
  ["192.168.0.0", 16],
  ["198.18.0.0", 15],
  ["198.51.100.0", 24],
  ["203.0.113.0", 24],
  ["224.0.0.0", 4],
  ["240.0.0.0", 4],
];
const IPV6_BLOCKS: readonly (readonly [string, number])[] = [
  ["::", 96],
  ["64:ff9b:1::", 48],
  ["100::", 64],
  ["2001::", 23],
  ["2001:db8::", 32],
  ["fc00::", 7],
  ["fe80::", 9],
  ["ff00::", 8],
];

/** Those that carry an IPv4 address in their last 32 bits: mapped (RFC 4291), and NAT64 (RFC 6052). */
const EMBEDDING = /^(?:::ffff:|64:ff9b::)([0-9a-f]{1,4}):([0-9a-f]{1,4})$/;
/** 6to4 carries it behind its prefix (RFC 3056). */
const SIX_TO_FOUR = /^2002:([0-9a-f]{1,4}):([0-9a-f]{0,4})(?::|$)/;

/** A literal without brackets; a zone (`%eth0`) makes it private, as link-local addresses have one. Throws for anything else. */
export function isPrivateAddress(address: string): boolean {
  if (address.includes("%")) return true;
  switch (isIP(address)) {
    case 4:
      return BLOCKS.check(address, "ipv4");
    case 6:
      return isPrivateIpv6(new URL(`http://[${address}]/`).hostname.slice(1, -1));
    default:
      throw new Error(`${address} is no IP address`);
  }
}

/** `address` in the shortest form (url.spec.whatwg.org, "IPv6 serializer"), which writes no dots. */
function isPrivateIpv6(address: string): boolean {
  const embedded = EMBEDDING.exec(address) ?? SIX_TO_FOUR.exec(address);
  if (embedded !== null) return isPrivateAddress(dotted(embedded[1] ?? "", embedded[2] || "0"));
  return BLOCKS.check(address, "ipv6");
}

function dotted(high: string, low: string): string {
  const bytes = [high, low].flatMap((word) => [parseInt(word, 16) >> 8, parseInt(word, 16) & 0xff]);
  return bytes.join(".");
}

const BLOCKS = new BlockList();
for (const [address, prefix] of IPV4_BLOCKS) BLOCKS.addSubnet(address, prefix, "ipv4");
for (const [address, prefix] of IPV6_BLOCKS) BLOCKS.addSubnet(address, prefix, "ipv6");
