/** A program for tests: sends 2,000 events of a kilobyte to its standard output and says so on its standard error. */

import process from "node:process";
import { StdoutUpstream } from "../../src/upstreams/stdout.ts";
import { COMMON_CONFIG, TestLane, walEvent } from "./upstream_contract.ts";

const target = { type: "topic", name: "terminal" };
const lane = await TestLane.open(new StdoutUpstream({ ...COMMON_CONFIG, kind: "stdout" }), [target]);
const payload = JSON.stringify("x".repeat(1_000));
process.stderr.write("sending\n");
lane.send(target, ...Array.from({ length: 2_000 }, () => walEvent(payload)));
await lane.answered();
process.stderr.write("answered\n");
await lane.close();
