import { type } from 'arktype'
import { packFrame, unpackFrame } from './frame.ts'

/** What an engine worker answers when the daemon asks where its weights lie. */
export interface LookAnswer {
  /** Of the memory that the map is about: another one where anything of it has changed. */
  readonly generation: string
  /** What another process opens each allocation of the map with, raw bytes in hex. */
  readonly handles: readonly string[]
  /** Digest of the map. */
  readonly map: string
  /** The map as `decodePlacementMap` reads it; empty: it is the one that the daemon has said it knows. */
  readonly encodedMap: Uint8Array
}

const Refused = type({ ok: 'false', reason: 'string', 'torn?': 'boolean' })
const Looked = type({
  ok: 'true',
  generation: 'string',
  handles: type('/^([0-9a-f]{2})*$/').array(),
  map: 'string',
})
const Granted = type({ ok: 'true' })
// made once: to compose two takes a millisecond or two
const LookReply = Looked.or(Refused)
const GrantReply = Granted.or(Refused)

/** The worker does not do what it was asked, and says why. */
export interface Refusal {
  readonly refused: string
}

/** Null: it is no answer of `ckpt_worker/direct.py`. */
export function readLookAnswer(frame: Uint8Array): LookAnswer | Refusal | null {
  const unpacked = unpackFrame(frame)
  const head = LookReply(unpacked?.head)
  if (unpacked === null || head instanceof type.errors) return null
  if (!head.ok) return { refused: head.reason }
  const { generation, handles, map } = head
  return { generation, handles, map, encodedMap: unpacked.body }
}

/**
 * The answer to `begin`, `end`, and a `leave` after `begin` in which nothing was written: `refused` is null when it is done. `torn`:
 * the worker has begun to change its weights. Null: it is none.
 */
export function readGrant(
  frame: Uint8Array,
): { readonly refused: string | null; readonly torn: boolean } | null {
  const head = GrantReply(unpackFrame(frame)?.head)
  if (head instanceof type.errors) return null
  return head.ok
    ? { refused: null, torn: false }
    : { refused: head.reason, torn: head.torn ?? false }
}

export function packLook(knownMap: string | null): Uint8Array {
  return packFrame({ type: 'look', map: knownMap })
}

export function packBegin(generation: string): Uint8Array {
  return packFrame({ type: 'begin', generation })
}

export function packEnd(): Uint8Array {
  return packFrame({ type: 'end' })
}

/** @param untouched: no byte of the engine's memory was written */
export function packLeave(reason: string, untouched: boolean): Uint8Array {
  return packFrame({ type: 'leave', reason, untouched })
}
