import type { ConversationEvent } from '../engine/conversation-types.ts'
import type { Failure } from '../api/errors.ts'
import type { LookAnswer } from './direct-messages.ts'

export interface DirectOptions {
  readonly rank: number
  /** Digest of the map that is known of this engine worker; null: none is. */
  readonly knownMap: string | null
  readonly limits: DirectLimits
  /** See `ConversationOptions`. */
  readonly http: boolean
}

export interface DirectLimits {
  /** From the start until the worker has said where its weights lie. */
  readonly openMs: number
  /** When all of it must have ended, on the clock of the events. */
  readonly endMs: number
  /** From a failure, or from `leave`. */
  readonly leaveMs: number
}

/** As of `Conversation`, with its own commands. */
export type DirectEvent =
  | Extract<
      ConversationEvent,
      { type: 'start' | 'connected' | 'disconnected' | 'reply' | 'http' | 'abort' | 'tick' }
    >
  /** Copies are to be made: the worker may not change or use its weights any more. After `looked`. */
  | { readonly type: 'begin'; readonly nowMs: number }
  /** The first byte is about to be copied: from here on the engine is of two versions. After `begun`. */
  | { readonly type: 'copying'; readonly nowMs: number }
  /** All is copied. After `copying`. */
  | { readonly type: 'end'; readonly nowMs: number }
  /** It will not be done this way. Before `copying`. */
  | { readonly type: 'leave'; readonly reason: string; readonly nowMs: number }

export type DirectAction =
  /** See `ConversationAction`. */
  | { readonly type: 'send'; readonly body: Uint8Array }
  | { readonly type: 'looked'; readonly answer: LookAnswer }
  | { readonly type: 'begun' }
  /**
   * It cannot be done this way, and no byte was copied. `leave` is to follow. `said`: by the worker, which has changed nothing
   * either; else what it did after `begin` is in its engine's answer.
   */
  | { readonly type: 'refused'; readonly reason: string; readonly said: boolean }
  /** The worker, which had been told to hold still, says that its engine is whole as it was. */
  | { readonly type: 'whole' }
  /** The worker serves the new weights, and its engine's request has returned. */
  | { readonly type: 'finished' }
  | { readonly type: 'failed'; readonly failure: Failure }
  /** The socket may be closed, with a linger long enough for what was just sent. */
  | { readonly type: 'close' }

export type DirectPhase =
  | 'open'
  /** The worker waits for `begin`, or to be told that it is done another way. */
  | 'looked'
  | 'beginning'
  /** It waits for `end`. */
  | 'begun'
  | 'copying'
  | 'ending'
  /** It has all, its engine's request has not returned yet. */
  | 'post'
  /** It could not be done this way, or `leave` was said. */
  | 'withdrawn'
  | 'failed'
  | 'closed'
