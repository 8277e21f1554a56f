/** What `uri` and the targets of the AWS kinds may say: read here for validation, and by the upstreams themselves. */

export type AwsKind = "awssns" | "awssqs" | "awslambda";

export function isAwsKind(kind: string): kind is AwsKind {
  return kind === "awssns" || kind === "awssqs" || kind === "awslambda";
}

export interface AwsAddress {
  readonly region: string;
  /** `http://host:port` of an emulator; undefined for AWS itself. */
  readonly endpoint: string | undefined;
  /** For messages: `eu-west-2`, `127.0.0.1:4566`. */
  readonly text: string;
}

/** Emulators take any. */
const EMULATOR_REGION = "us-east-1";
/** `eu-west-2`, `us-gov-east-1`, `ap-southeast-7` (docs.aws.amazon.com/general/latest/gr/rande.html). */
const REGION = /^[a-z]{2,5}(?:-[a-z]+)+-\d{1,2}$/;
const WANTED = "wanted aws://REGION, as in aws://eu-west-2, or aws://host:port of an emulator";

/** The address, or what is wrong with the URI, without showing it. */
export function readAwsUri(text: string): AwsAddress | string {
  let uri: URL;
  try {
    uri = new URL(text);
  } catch {
    return `cannot be parsed; ${WANTED}`;
  }
  if (uri.protocol !== "aws:") return `has the scheme ${uri.protocol}//; ${WANTED}`;
  if (uri.username !== "" || uri.password !== "") {
    return "holds a user; credentials come from where the AWS CLI has them (AWS_ACCESS_KEY_ID, AWS_PROFILE, a role, …)";
  }
  if (uri.pathname.replace("/", "") !== "") return `has the path ${JSON.stringify(uri.pathname)}; ${WANTED}`;
  const unknown = [...uri.searchParams.keys()].find((name) => name !== "region");
  if (unknown !== undefined) return `has the parameter ${JSON.stringify(unknown)}; allowed: region, for an emulator`;
  const region = uri.searchParams.get("region");
  if (uri.port === "") {
    if (region !== null) return `has the parameter "region" and no port; write aws://${region}`;
    if (REGION.test(uri.hostname)) return { region: uri.hostname, endpoint: undefined, text: uri.hostname };
    return `names ${JSON.stringify(uri.hostname)}, which is no region and has no port; ${WANTED}`;
  }
  return { region: region ?? EMULATOR_REGION, endpoint: `http://${uri.host}`, text: uri.host };
}

/** `arn:partition:sns:region:account:name` (SNS API reference, CreateTopic: names of up to 256 characters). */
const TOPIC_ARN = /^arn:[\w-]+:sns:([a-z0-9-]+):\d{12}:[\w-]{1,256}(?:\.fifo)?$/;
/** SQS developer guide, "Amazon SQS standard queue quotas" and "FIFO queue quotas": 80 characters with the suffix. */
const QUEUE_NAME = /^(?=.{1,80}$)[\w-]+(?:\.fifo)?$/;
/** Name, name:qualifier, ARN or partial ARN (Lambda API reference, Invoke, FunctionName). */
const FUNCTION_NAME =
  /^(?=.{1,170}$)(?:arn:[\w-]+:lambda:[a-z0-9-]+:)?(?:\d{12}:)?(?:function:)?[\w-]+(?::(?:\$LATEST|[\w-]+))?$/;

/** Undefined if the target can be used; `region` is that of `uri`, where it is known. */
export function awsTargetProblem(kind: AwsKind, name: string, region?: string): string | undefined {
  switch (kind) {
    case "awssns": {
      const arn = TOPIC_ARN.exec(name);
      if (arn === null) return "is no topic; wanted its ARN, as in topic:arn:aws:sns:eu-west-2:123456789012:orders";
      return region === undefined || arn[1] === region
        ? undefined
        : `is a topic of the region ${arn[1]}, and uri names ${region}; make them the same`;
    }
    case "awssqs":
      if (/^https?:\/\//.test(name) && URL.canParse(name)) return undefined;
      return QUEUE_NAME.test(name)
        ? undefined
        : "is no queue; wanted its name (letters, digits, - and _, at most 80, .fifo at the end of a FIFO queue) or its URL";
    case "awslambda":
      return FUNCTION_NAME.test(name)
        ? undefined
        : "is no function; wanted its name, name:alias or ARN, as in function:resize-images";
  }
}
