import { expect, test } from 'bun:test'
import { openLibrary } from '@ckpt/cuda'
import { Quarantine } from './quarantine.ts'
import { Ring } from './ring.ts'

const RING_BYTES = 2 ** 20
const NOBODY = { settled: () => {}, freed: () => {}, kept: () => {}, left: () => {} }

test('every ring goes when the process ends: one known to be settled, and one whose streams still have to say so', () => {
  const library = openLibrary({ kind: 'host', hostDevices: 1 })
  const before = library.liveObjects()
  for (let round = 0; round < 50; round++) {
    const quarantine = new Quarantine(NOBODY)
    for (const settled of [true, false]) {
      const ring = new Ring(library, 0, RING_BYTES)
      quarantine.keep({ run: round, ring, read: true, settled, conversation: null })
    }
    quarantine.freeAll()
    expect(library.liveObjects()).toBe(before)
  }
})

test('a ring that nobody reads and whose streams are idle goes with the first sweep', () => {
  const library = openLibrary({ kind: 'host', hostDevices: 1 })
  const before = library.liveObjects()
  for (let round = 0; round < 50; round++) {
    const freed: number[] = []
    const quarantine = new Quarantine({ ...NOBODY, freed: (run) => freed.push(run) })
    const ring = new Ring(library, 0, RING_BYTES)
    quarantine.keep({ run: round, ring, read: false, settled: false, conversation: null })
    quarantine.sweep()
    expect(freed).toEqual([round])
  }
  expect(library.liveObjects()).toBe(before)
})
