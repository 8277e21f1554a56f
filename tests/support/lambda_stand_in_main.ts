/**
 * Stands in for AWS Lambda, of which there is no emulator that can be installed from a package registry: takes Invoke
 * requests, recomputes their signature with another implementation than the product's (`aws4`), and appends what it was
 * given to a file. Usage: lambda_stand_in_main.ts PORT RECORD_FILE SECRET
 *
 * The function's name says what it does: `missing…` is not there, `denied…` may not be invoked, `throttled…` is throttled
 * from the second invocation on, `failing…` throws on a message that contains "poison".
 */

import { appendFileSync } from "node:fs";
import { createServer, type IncomingMessage, type ServerResponse } from "node:http";
import process from "node:process";
// @ts-types="npm:@types/aws4@1.11.6"
import aws4 from "aws4";

const [port = "", recordFile = "", secretAccessKey = ""] = process.argv.slice(2);
const MAX_BYTES = { Event: 1_048_576, RequestResponse: 6_291_456 };
let throttled = 0;

createServer((request, response) => {
  const chunks: Uint8Array[] = [];
  request.on("data", (chunk: Uint8Array) => chunks.push(chunk));
  request.on("end", () => answer(request, Buffer.concat(chunks), response));
}).listen({ port: Number(port), host: "127.0.0.1" });

function answer(request: IncomingMessage, body: Buffer, response: ServerResponse): void {
  if (request.url === "/health") return void response.end("ok");
  if (!isSigned(request, body)) return refuseLogin(request, response);
  const match = /^\/2015-03-31\/functions\/([^/]+)\/invocations$/.exec(request.url ?? "");
  if (match === null) return fail(response, 404, "UnknownOperationException", String(request.url));
  invoke(decodeURIComponent(match[1]!), String(request.headers["x-amz-invocation-type"]), body, response);
}

function invoke(name: string, type: string, body: Buffer, response: ServerResponse): void {
  if (name.includes("missing")) return fail(response, 404, "ResourceNotFoundException", `Function not found: ${name}`);
  if (name.includes("denied")) {
    return fail(
      response,
      403,
      "AccessDeniedException",
      `User: arn:aws:iam::1:user/x is not authorized to invoke ${name}`,
    );
  }
  if (type === "DryRun") return void response.writeHead(204).end();
  if (type !== "Event" && type !== "RequestResponse") {
    return fail(response, 400, "InvalidParameterValueException", type);
  }
  if (name.includes("throttled") && throttled++ % 2 === 1) {
    return fail(response, 429, "TooManyRequestsException", "Rate Exceeded.");
  }
  if (body.length > MAX_BYTES[type]) {
    return fail(response, 413, "RequestTooLargeException", `Request must be smaller than ${MAX_BYTES[type]} bytes`);
  }
  const text = body.toString();
  try {
    JSON.parse(text);
  } catch {
    return fail(response, 400, "InvalidRequestContentException", "Could not parse request body into json");
  }
  if (type === "RequestResponse" && name.includes("failing") && text.includes("poison")) {
    response.writeHead(200, { "x-amz-function-error": "Unhandled" });
    return void response.end(JSON.stringify({ errorType: "TypeError", errorMessage: "poisoned", trace: ["at f"] }));
  }
  appendFileSync(recordFile, `${JSON.stringify({ name, type, text })}\n`);
  response.writeHead(type === "Event" ? 202 : 200).end(type === "Event" ? "" : "null");
}

/** Signature Version 4 over the headers that the request says are signed (IAM user guide, "Create a signed request"). */
function isSigned(request: IncomingMessage, body: Buffer): boolean {
  const authorization = request.headers.authorization ?? "";
  const match = /^AWS4-HMAC-SHA256 Credential=([^/]+)\/\d{8}\/([^/]+)\/([^/]+)\/aws4_request, SignedHeaders=([^,]+), /
    .exec(authorization);
  if (match === null) return false;
  const [, accessKeyId = "", region = "", service = "", names = ""] = match;
  const headers: Record<string, string> = {};
  for (const name of names.split(";")) headers[name] = String(request.headers[name]);
  // The types do not know the last two, which make it sign those headers and no others.
  const unsigned = {
    service,
    region,
    method: request.method ?? "",
    path: request.url ?? "",
    headers,
    body,
    extraHeadersToInclude: Object.fromEntries(names.split(";").map((name) => [name, true])),
    extraHeadersToIgnore: Object.fromEntries(
      ["content-length", "content-type"].filter((name) => !(name in headers)).map((name) => [name, true]),
    ),
  };
  const signed = aws4.sign(unsigned, { accessKeyId, secretAccessKey });
  return signed.headers?.["Authorization"] === authorization;
}

/** As SNS words it, in XML, and as the services with JSON protocols do. */
function refuseLogin(request: IncomingMessage, response: ServerResponse): void {
  const text = "The request signature we calculated does not match the signature you provided.";
  if (String(request.headers["content-type"]).startsWith("application/x-www-form-urlencoded")) {
    response.writeHead(403, { "content-type": "text/xml" });
    response.end(
      `<ErrorResponse xmlns="http://sns.amazonaws.com/doc/2010-03-31/"><Error><Type>Sender</Type>` +
        `<Code>SignatureDoesNotMatch</Code><Message>${text}</Message></Error></ErrorResponse>`,
    );
  } else {
    fail(response, 403, "InvalidSignatureException", text);
  }
}

function fail(response: ServerResponse, status: number, code: string, message: string): void {
  response.writeHead(status, { "content-type": "application/json", "x-amzn-errortype": code });
  response.end(JSON.stringify({ __type: code, message }));
}
