import { afterAll, beforeAll, expect, test } from 'bun:test'
import { readFileSync, writeFileSync } from 'node:fs'
import { type EngineWeights, CkptError } from '@ckpt/core'
import { expectedShard, readSafetensors } from '../../../../test/support/checkpoint.ts'
import { type Scratch, scratch } from '../../../../test/support/process.ts'
import { expectedTensors, verifyEngine } from './verify-engine.ts'
import { writeCheckpoint } from './write-checkpoint.ts'

let dir: Scratch
let files: readonly string[]
beforeAll(async () => {
  dir = scratch()
  const tensors = [
    { name: 'halved', dtype: 'F32', shape: [4, 8] },
    { name: 'whole', dtype: 'F32', shape: [3, 8] },
  ]
  files = (await writeCheckpoint(dir.path, tensors, 1, 1)).files
})
afterAll(() => dir.remove())

/** What an engine of two ranks shows that holds the files, made by the tests' own reader. */
function weights(): EngineWeights {
  const tensors = readSafetensors(files)
  const ranks = [0, 1].map((rank) => {
    const shown = [...tensors].map(([name, tensor]) => [name, expectedShard(tensor, rank, 2)])
    return { uuid: `GPU-${rank}`, tensors: Object.fromEntries(shown) }
  })
  return { version: null, updates: 1, torn: false, ranks }
}

test('equal: tensors and bytes of every rank are counted', async () => {
  const verified = verifyEngine(weights(), await expectedTensors(files, 2), 2)
  expect(verified).toEqual({ tensors: 4, bytes: 2 * (64 + 96) })
})

const differences: [string, RegExp, (held: EngineWeights) => void][] = [
  [
    'a byte',
    /rank 1, halved/,
    (held) => {
      held.ranks[1]!.tensors.halved!.sha256 = held.ranks[0]!.tensors.halved!.sha256
    },
  ],
  [
    'a shape',
    /rank 0, whole/,
    (held) => {
      held.ranks[0]!.tensors.whole!.shape = [8, 3]
    },
  ],
  [
    'a dtype',
    /rank 0, whole/,
    (held) => {
      held.ranks[0]!.tensors.whole!.dtype = 'I32'
    },
  ],
  [
    'a tensor too few',
    /rank 1 does not hold whole/,
    (held) => {
      delete held.ranks[1]!.tensors.whole
    },
  ],
  [
    'a tensor too many',
    /rank 0 holds more/,
    (held) => {
      held.ranks[0]!.tensors.more = held.ranks[0]!.tensors.whole!
    },
  ],
  [
    'a rank too few',
    /1 ranks, not 2/,
    (held) => {
      held.ranks.pop()
    },
  ],
]

test.each(differences)('%s differs', async (_, message, change) => {
  const held = weights()
  change(held)
  const expected = await expectedTensors(files, 2)
  expect(() => verifyEngine(held, expected, 2)).toThrow(message)
})

test('one bit of a file differs', async () => {
  const held = weights()
  const original = readFileSync(files[1]!)
  const changed = Buffer.from(original)
  changed[changed.length - 1]! ^= 1
  writeFileSync(files[1]!, changed)
  try {
    const expected = await expectedTensors(files, 2)
    expect(() => verifyEngine(held, expected, 2)).toThrow(CkptError)
  } finally {
    writeFileSync(files[1]!, original)
  }
})
