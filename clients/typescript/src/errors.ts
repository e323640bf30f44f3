/**
 * What goes wrong, as errors: one class per status that a caller acts on. A status without a class
 * is thrown as `HeadraceError` itself.
 */
import { Code, ConnectError } from "@connectrpc/connect";

import { ErrorInfoSchema, RetryInfoSchema } from "./gen/google/rpc/error_details_pb.js";

export { Code };

/** What a server says beside status and message. */
export interface ErrorDetails {
  /** The machine-readable reason (`google.rpc.ErrorInfo`); empty where there was none. */
  readonly reason?: string;
  /** The wait that the server asks for before another attempt (`google.rpc.RetryInfo`). */
  readonly retryAfterMs?: number | undefined;
  readonly cause?: unknown;
}

/** A call, or one request of a stream, that failed. */
export class HeadraceError extends Error {
  /** The gRPC status. */
  readonly code: Code;
  /** The status's message. */
  readonly details: string;
  readonly reason: string;
  readonly retryAfterMs: number | undefined;

  constructor(code: Code, details: string, more: ErrorDetails = {}) {
    const reason = more.reason ?? "";
    super(`${Code[code]}: ${details}${reason ? ` [${reason}]` : ""}`, { cause: more.cause });
    this.name = new.target.name;
    this.code = code;
    this.details = details;
    this.reason = reason;
    this.retryAfterMs = more.retryAfterMs;
  }
}

/** NOT_FOUND: the server has no model of this name, or not this version of it. */
export class ModelNotFound extends HeadraceError {}
/** INVALID_ARGUMENT: a tensor is missing, unknown, or of the wrong datatype, shape or size. */
export class InvalidInput extends HeadraceError {}
/** RESOURCE_EXHAUSTED: the queue is full, the deadline cannot be met, or a message is too large.
 * Worth another attempt when `retryAfterMs` is set; without it the same request fails again. */
export class Overloaded extends HeadraceError {}
/** DEADLINE_EXCEEDED: the call's deadline passed, here or on the server. */
export class DeadlineExceeded extends HeadraceError {}
/** CANCELLED: the server or `close` cancelled the call. An AbortSignal throws its own reason. */
export class Cancelled extends HeadraceError {}
/** UNAVAILABLE: no connection, a draining server, or a model that is loading or unloading. */
export class Unavailable extends HeadraceError {}
/** INTERNAL: the model itself failed on this input. */
export class InferenceFailed extends HeadraceError {}
/** UNIMPLEMENTED: the server does not have this method. */
export class Unimplemented extends HeadraceError {}
/** PERMISSION_DENIED: the caller is known, and not allowed to do this. */
export class PermissionDenied extends HeadraceError {}
/** UNAUTHENTICATED: the caller's credentials are missing or not valid. */
export class Unauthenticated extends HeadraceError {}
/** A sensor stream cannot go on: its session ended with its connection, its time to live passed, or
 * the server that kept it is gone. Results that were delivered stay good. */
export class SessionLost extends HeadraceError {}
/** The server answered with what the protocol does not allow; `code` is Unknown. */
export class BadResponse extends HeadraceError {
  constructor(details: string, cause?: unknown) {
    super(Code.Unknown, details, { cause });
  }
}

type ErrorClass = new (code: Code, details: string, more?: ErrorDetails) => HeadraceError;

const CLASS_OF: Partial<Record<Code, ErrorClass>> = {
  [Code.NotFound]: ModelNotFound,
  [Code.InvalidArgument]: InvalidInput,
  [Code.ResourceExhausted]: Overloaded,
  [Code.DeadlineExceeded]: DeadlineExceeded,
  [Code.Canceled]: Cancelled,
  [Code.Unavailable]: Unavailable,
  [Code.Internal]: InferenceFailed,
  [Code.Unimplemented]: Unimplemented,
  [Code.PermissionDenied]: PermissionDenied,
  [Code.Unauthenticated]: Unauthenticated,
};

// Reasons that mean something else than their status does for a call.
const CLASS_OF_REASON: Record<string, ErrorClass> = {
  UNKNOWN_SESSION: SessionLost,
  UNKNOWN_HANDLE: SessionLost,
  SESSION_TAKEN: SessionLost,
};

/** The error for a status, and for the reasons that say more than it. */
export function errorOf(code: Code, details: string, more: ErrorDetails = {}): HeadraceError {
  const kind = CLASS_OF_REASON[more.reason ?? ""] ?? CLASS_OF[code] ?? HeadraceError;
  return new kind(code, details, more);
}

/** The error for what a call threw. */
export function fromCallError(thrown: unknown): HeadraceError {
  const error = ConnectError.from(thrown);
  if (isBrokenConnection(error)) {
    return new Unavailable(Code.Unavailable, error.rawMessage, { cause: thrown });
  }
  const [info] = error.findDetails(ErrorInfoSchema);
  const delay = error.findDetails(RetryInfoSchema)[0]?.retryDelay;
  return errorOf(error.code, error.rawMessage, {
    reason: info?.reason ?? "",
    retryAfterMs: delay && Number(delay.seconds) * 1e3 + delay.nanos / 1e6,
    cause: thrown,
  });
}

/** Whether it was not the server that spoke: a connection that ends tells its calls by codes of
 * HTTP/2 or of the operating system, which mean something else as statuses of gRPC. */
function isBrokenConnection(error: ConnectError): boolean {
  for (let cause = error.cause; cause instanceof Error; cause = cause.cause) {
    if ("code" in cause && typeof cause.code === "string" && cause.code !== "ABORT_ERR") {
      return true;
    }
  }
  return /^http\/2 stream closed with error code (CANCEL|INTERNAL_ERROR|REFUSED_STREAM)/.test(
    error.rawMessage,
  );
}
