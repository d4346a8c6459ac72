import type { Failure, Phase } from '../api/errors.ts'

/** Dialect of checkpoint-engine's worker: see `docs/engines.md`. */
export type Dialect = 'D1' | 'D2' | 'D3' | 'D4'

/** Deadlines of a conversation in milliseconds, each from the start of its phase. */
export interface ConversationLimits {
  /** Until the worker has connected and replied to the handle. */
  readonly openMs: number
  /** Between a list and its reply. */
  readonly replyMs: number
  /** The whole conversation. */
  readonly totalMs: number
  /** After an abort, or after the last reply: until the HTTP request has returned. */
  readonly leaveMs: number
}

export interface ConversationOptions {
  /** The pickled handle message (message 1 of the protocol). */
  readonly handle: Uint8Array
  readonly rank: number
  readonly limits: ConversationLimits
  /** Whether an HTTP request started this conversation; without one, nothing is waited for after the last reply. */
  readonly http: boolean
  /** What this engine's worker spoke last time, when known. */
  readonly dialect?: Dialect
}

/** What has happened; `nowMs` is a monotonic clock. */
export type ConversationEvent =
  | { readonly type: 'start'; readonly nowMs: number }
  | { readonly type: 'connected'; readonly nowMs: number }
  | { readonly type: 'disconnected'; readonly nowMs: number }
  /** One reply of the worker, opaque bytes. */
  | { readonly type: 'reply'; readonly body: Uint8Array; readonly nowMs: number }
  /** The executor wants this bucket's tensor list sent. */
  | {
      readonly type: 'announce'
      readonly bucket: number
      readonly list: Uint8Array
      readonly nowMs: number
    }
  /** Every bucket is acknowledged: end the conversation. */
  | { readonly type: 'end'; readonly nowMs: number }
  /** The engine's HTTP request has returned; `message` is its own words when not ok. */
  | {
      readonly type: 'http'
      readonly ok: boolean
      readonly status: number
      readonly message: string
      readonly nowMs: number
    }
  | { readonly type: 'abort'; readonly failure: Failure; readonly nowMs: number }
  | { readonly type: 'tick'; readonly nowMs: number }

export type ConversationAction =
  /** Send this body (the driver writes the empty delimiter frame of a DEALER before it). */
  | { readonly type: 'send'; readonly body: Uint8Array }
  /** The worker has mapped the ring. */
  | { readonly type: 'opened' }
  | { readonly type: 'acked'; readonly bucket: number }
  /** The ring may be freed: no worker can read it any more. */
  | { readonly type: 'ring_free' }
  /** Everything went well. */
  | { readonly type: 'finished'; readonly dialect: Dialect }
  /** Something failed; the abort message has been sent where it can be. Sent once, the conversation then leaves. */
  | { readonly type: 'failed'; readonly failure: Failure }
  /** The socket may be closed. `ringFree` false: the leave deadline passed, so the ring must be quarantined. */
  | { readonly type: 'close'; readonly ringFree: boolean }

export type ConversationPhase =
  | Extract<Phase, 'open' | 'transfer' | 'release' | 'post'>
  | 'leaving'
  | 'closed'
