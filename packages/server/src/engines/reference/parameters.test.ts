import { expect, test } from 'bun:test'
import { dtypeIndex } from '@ckpt/core'
import { openLibrary } from '@ckpt/cuda'
import { Parameters } from './parameters.ts'
import { generationOf, placementOf, whyNotPlaced } from './placement.ts'

const RING_BYTES = 4 * 2 ** 20
const U8 = dtypeIndex('U8')

test('tensors that shrink and grow under their names are hashed over their own bytes, and none overlap', () => {
  const library = openLibrary({ kind: 'host', hostDevices: 1 })
  const before = library.liveObjects()
  const memory = library.memoryAlloc(0, RING_BYTES)
  const signal = library.signalCreate()
  const parameters = new Parameters(library, 0, { by: 'rows', rank: 0, size: 1 })
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

function digestOf(parameters: Parameters): string {
  const placement = placementOf(parameters)
  return 'refused' in placement ? placement.refused : placement.digest
}

test('a tensor that torch cannot hold has no place in a map, which says which one', () => {
  const library = openLibrary({ kind: 'host', hostDevices: 1 })
  const before = library.liveObjects()
  const memory = library.memoryAlloc(0, RING_BYTES)
  const signal = library.signalCreate()
  const parameters = new Parameters(library, 0, { by: 'rows', rank: 0, size: 1 })
  const F6 = dtypeIndex('F6_E2M3')
  const update = (...list: { name: string; dtype: number; shape: number[]; offset: number }[]) => {
    parameters.beginUpdate()
    parameters.load(list, { memory, bytes: RING_BYTES }, signal, 5000)
    parameters.endUpdate()
  }
  try {
    const plain = { name: 'plain', dtype: U8, shape: [8], offset: 0 }
    expect(whyNotPlaced(parameters)).toBe('no update has gone through')
    update(plain, { name: 'six', dtype: F6, shape: [4], offset: 256 })
    const why = 'six is F6_E2M3 [4], which torch cannot hold'
    expect(whyNotPlaced(parameters)).toBe(why)
    expect(placementOf(parameters)).toEqual({ refused: why })
    // it is held still, but not of the last update
    update(plain)
    expect(placementOf(parameters)).toMatchObject({ handles: [expect.any(String)] })
    const generation = generationOf(parameters)
    const digest = digestOf(parameters)
    update(plain)
    expect([generationOf(parameters), digestOf(parameters)]).toEqual([generation, digest])
    // as many bytes of another shape, and back
    update({ ...plain, shape: [2, 4] })
    expect(generationOf(parameters)).not.toBe(generation)
    expect(digestOf(parameters)).not.toBe(digest)
    update(plain)
    expect([generationOf(parameters), digestOf(parameters)]).toEqual([generation, digest])
    const held = parameters.hash()
    parameters.move(signal, 5000)
    expect(generationOf(parameters)).not.toBe(generation)
    expect(parameters.hash()).toEqual(held)
  } finally {
    parameters.free()
    library.signalDestroy(signal)
    library.memoryFree(memory)
  }
  expect(library.liveObjects()).toBe(before)
})
