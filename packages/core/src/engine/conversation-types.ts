import type { Failure, Phase } from '../api/errors.ts'

/**
 * Dialect of checkpoint-engine's worker by version: D1 0.1.1 to 0.2.0, D2 0.2.1, D3 0.2.2 to 0.3.4,
 * D4 0.4.x. Only errors tell D1 to D3 apart; an engine of which no more is known than that it is
 * one of them is called D3.
 */
export type Dialect = 'D1' | 'D2' | 'D3' | 'D4'

/** Deadlines of a conversation in milliseconds, each from the start of its phase. */
export interface ConversationLimits {
  /** Until the worker has connected and replied to the handle. */
  readonly openMs: number
  /** Between a list and its reply. */
  readonly replyMs: number
  /** The whole conversation, the engine's post hook and the return of its HTTP request included. */
  readonly totalMs: number
  /**
   * After a failure or an abort: until the HTTP request has returned. A worker that is inside `run`
   * cannot leave before `run` returns: then this counts from its reply (which itself has until
   * `replyMs` and `totalMs`).
   */
  readonly leaveMs: number
}

export interface ConversationOptions {
  /** The pickled handle message (message 1 of the protocol). */
  readonly handle: Uint8Array
  readonly rank: number
  readonly limits: ConversationLimits
  /**
   * Whether an HTTP request started this conversation; without one, nothing is waited for after the
   * last reply.
   */
  readonly http: boolean
  /** What this engine's worker spoke last time, or what the engine says of itself, when known. */
  readonly dialect?: Dialect
}

/**
 * What has happened; `nowMs` is a monotonic clock. The first event is `start`. Whoever drives this
 * hands over every reply that has arrived before a `disconnected` or `http` that came after it: a
 * worker replies, closes and returns within microseconds.
 */
export type ConversationEvent =
  | { readonly type: 'start'; readonly nowMs: number }
  /** A worker has connected (a second event for the same connection changes nothing). */
  | { readonly type: 'connected'; readonly nowMs: number }
  | { readonly type: 'disconnected'; readonly nowMs: number }
  /** One reply of the worker, opaque bytes, without the empty delimiter frame. */
  | { readonly type: 'reply'; readonly body: Uint8Array; readonly nowMs: number }
  /**
   * The executor wants this bucket's tensor list sent. One may wait for the handle's reply or for
   * the reply to the one before; after a failure it is ignored.
   */
  | {
      readonly type: 'announce'
      readonly bucket: number
      readonly list: Uint8Array
      readonly nowMs: number
    }
  /** There are no more buckets: end the conversation once all are acknowledged. */
  | { readonly type: 'end'; readonly nowMs: number }
  /**
   * The engine's HTTP request has returned, or its connection is gone (`status` 0); `message` is
   * its own words when not ok. Not for a request that the daemon itself has given up: the engine
   * may still be at it.
   */
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
  /**
   * Send this body (the driver writes the empty delimiter frame of a DEALER before it). Only while
   * a worker is connected; the handle too is sent when the worker connects and not before. A send
   * that finds no peer any more is dropped.
   */
  | { readonly type: 'send'; readonly body: Uint8Array }
  /** The worker has mapped the ring. */
  | { readonly type: 'opened' }
  | { readonly type: 'acked'; readonly bucket: number }
  /** The ring may be freed: no worker can read it any more. */
  | { readonly type: 'ring_free' }
  /** Everything went well. */
  | { readonly type: 'finished'; readonly dialect: Dialect }
  /**
   * Something failed; the abort message has been sent where it can be. Sent once, the conversation
   * then leaves.
   */
  | { readonly type: 'failed'; readonly failure: Failure }
  /**
   * The socket may be closed, with a linger long enough for what was just sent. `ringFree` false:
   * the leave deadline passed, so the ring must be quarantined; `reason` then says what did not
   * come.
   */
  | { readonly type: 'close'; readonly ringFree: boolean; readonly reason?: string }

export type ConversationPhase =
  | Extract<Phase, 'open' | 'transfer' | 'release' | 'post'>
  | 'leaving'
  | 'closed'
