import { expect, test } from 'bun:test'
import { dtypeIndex } from '@ckpt/core'
import { openLibrary } from '@ckpt/cuda'
import { Parameters } from './parameters.ts'

const RING_BYTES = 4 * 2 ** 20
const U8 = dtypeIndex('U8')

test('tensors that shrink and grow under their names are hashed over their own bytes, and none overlap', () => {
  const library = openLibrary({ kind: 'host', hostDevices: 1 })
  const before = library.liveObjects()
  const memory = library.memoryAlloc(0, RING_BYTES)
  const signal = library.signalCreate()
  const parameters = new Parameters(library, 0, 0, 1)
  try {
    // sizes of `a`, `b`, `c` in each update
    const updates = [
      [900_000, 700_000, 300_000],
      [1000, 700_000, 500],
      [900_000, 100, 300_000],
      [400_000, 450_000, 1],
      [1000, 2000, 3000],
    ]
    for (const [round, sizes] of updates.entries()) {
      let offset = 0
      const list = sizes.map((bytes, i) => {
        library.memoryFill(memory, offset, bytes, 16 * round + i + 1)
        const tensor = { name: 'abc'[i]!, dtype: U8, shape: [bytes], offset }
        offset += Math.ceil(bytes / 256) * 256
        return tensor
      })
      parameters.load(list, { memory, bytes: RING_BYTES }, signal, 5000)
      const held = parameters.hash()
      for (const [i, bytes] of sizes.entries()) {
        const content = new Uint8Array(bytes).fill(16 * round + i + 1)
        const sha256 = new Bun.CryptoHasher('sha256').update(content).digest('hex')
        expect([round, held['abc'[i]!]]).toEqual([round, { dtype: 'U8', shape: [bytes], sha256 }])
      }
    }
  } finally {
    parameters.free()
    library.signalDestroy(signal)
    library.memoryFree(memory)
  }
  expect(library.liveObjects()).toBe(before)
})
