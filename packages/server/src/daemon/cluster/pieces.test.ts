/** Outbox and inbox: messages are cut into pieces and put together again. */
import { describe, expect, test } from 'bun:test'
import type { MessageStart } from '@ckpt/core'
import fc from 'fast-check'
import { Inbox, type ReceivedMessage } from './inbox.ts'
import { Outbox, PIECE_BYTES } from './outbox.ts'

const NODE = {
  nodeRank: 1,
  session: 1,
  incarnation: 'f',
  info: { host: 'h', ranks: [], version: '1' },
}
const HEAD = new Uint8Array(1)

function pieceOf(start?: MessageStart) {
  const piece = { type: 'piece', leader: 'l', session: 1, seq: 0 } as const
  return start === undefined ? piece : { ...piece, start }
}

/** Everything that an outbox has, through an inbox. */
function carry(outbox: Outbox, inbox: Inbox): { received: ReceivedMessage[]; pieces: number } {
  const received: ReceivedMessage[] = []
  let pieces = 0
  while (!outbox.empty) {
    let start: MessageStart | undefined
    const frames = outbox.next((told) => {
      start = told ?? undefined
      return HEAD
    })
    const [, ...rest] = frames!
    expect(rest.length).toBeLessThan(60)
    expect(rest.reduce((sum, { length }) => sum + length, 0)).toBeLessThanOrEqual(PIECE_BYTES)
    // until it is sent it stays the next
    expect(outbox.next(() => null)).toBe(frames)
    outbox.sent()
    pieces++
    const message = inbox.take(
      pieceOf(start),
      rest.map((frame) => frame.slice()),
    )
    if (message !== null) received.push(message)
  }
  expect(outbox.bytes).toBe(0)
  return { received, pieces }
}

const size = fc.oneof(
  fc.constantFrom(0, 1, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1),
  fc.nat({ max: 3 * PIECE_BYTES }),
  fc.nat({ max: 100 }),
)

test('what goes in comes out, in order, however large its parts are', () => {
  fc.assert(
    fc.property(
      fc.array(fc.array(size, { minLength: 1, maxLength: 80 }), { maxLength: 4 }),
      (all) => {
        const outbox = new Outbox()
        let value = 0
        const sent = all.map((sizes, id) => {
          const blobs = sizes.map((bytes) => new Uint8Array(bytes).fill(++value))
          return { node: NODE, kind: 'post' as const, id, blobs }
        })
        for (const message of sent) outbox.push(message)
        const { received } = carry(outbox, new Inbox())
        expect(received).toHaveLength(sent.length)
        for (const [i, { kind, id, blobs }] of received.entries()) {
          expect({ kind, id }).toEqual({ kind: 'post', id: i })
          expect(blobs.map(({ length }) => length)).toEqual(all[i]!)
          const same = blobs.map((blob, at) => Buffer.compare(blob, sent[i]!.blobs[at]!))
          expect(same.every((order) => order === 0)).toBe(true)
        }
      },
    ),
    { numRuns: 30 },
  )
})

test.each([
  ['a piece has no room for more', [PIECE_BYTES, 0]],
  ['a piece has all the frames it may have', [...Array(32).fill(1), 0, 0]],
  ['it is followed by more', [PIECE_BYTES, 0, 1]],
])('an empty part goes with what is before it where %s', (_, sizes) => {
  const outbox = new Outbox()
  const blobs = sizes.map((bytes: number) => new Uint8Array(bytes))
  outbox.push({ node: NODE, kind: 'post', id: 0, blobs })
  const { received } = carry(outbox, new Inbox())
  expect(received.map((one) => one.blobs.map(({ length }) => length))).toEqual([sizes])
})

test('a small message is one piece, and a message that is large takes several', () => {
  const outbox = new Outbox()
  const small = [new Uint8Array(10), new Uint8Array(0), new Uint8Array(5)]
  outbox.push({ node: NODE, kind: 'request', id: 1, blobs: small })
  expect(carry(outbox, new Inbox()).pieces).toBe(1)
  outbox.push({ node: NODE, kind: 'post', id: 0, blobs: [new Uint8Array(4 * PIECE_BYTES)] })
  expect(carry(outbox, new Inbox()).pieces).toBe(4)
})

test('of a session that is over nothing is next', () => {
  const outbox = new Outbox()
  outbox.push({ node: NODE, kind: 'post', id: 0, blobs: [new Uint8Array(1)] })
  expect(outbox.next(() => null)).toBeNull()
})

describe('what is no message', () => {
  const start = (...sizes: number[]): MessageStart => ({ kind: 'post', id: 0, sizes })

  test.each([
    ['a piece of no message', () => new Inbox().take(pieceOf(), [HEAD])],
    ['more bytes', () => new Inbox().take(pieceOf(start(1)), [HEAD, HEAD])],
    ['more bytes', () => new Inbox().take(pieceOf(start(1)), [new Uint8Array(2)])],
    ['a message of', () => new Inbox().take(pieceOf(start(2 ** 30, 2 ** 30, 1)), [])],
    [
      'a message within a message',
      () => {
        const inbox = new Inbox()
        inbox.take(pieceOf(start(2)), [HEAD])
        inbox.take(pieceOf(start(1)), [HEAD])
      },
    ],
  ])('%s', (words, take) => {
    expect(take).toThrow(words)
  })
})
