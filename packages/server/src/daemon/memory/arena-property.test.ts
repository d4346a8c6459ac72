import { expect, test } from 'bun:test'
import { openLibrary } from '@ckpt/cuda'
import fc from 'fast-check'
import { LIBRARY } from '../registry/testing/fixture.ts'
import { Arena, type ArenaBuffer } from './arena.ts'
import { HostMemoryError } from './host-memory-error.ts'
import { MIB } from './size-class.ts'

const library = openLibrary(LIBRARY)
const BUDGET_BYTES = 40 * MIB

type Step =
  | { readonly type: 'take' | 'undo' | 'share'; readonly bytes: number }
  | { readonly type: 'give back'; readonly index: number }

const bytes = fc.integer({ min: 0, max: 24 * MIB })
const step: fc.Arbitrary<Step> = fc.oneof(
  fc.record({ type: fc.constantFrom('take', 'take', 'undo', 'share'), bytes }),
  fc.record({ type: fc.constant('give back' as const), index: fc.nat(20) }),
) as fc.Arbitrary<Step>

interface Holding {
  readonly buffers: readonly ArenaBuffer[]
  readonly shared: boolean
}

const total = (buffers: readonly ArenaBuffer[]) =>
  buffers.reduce((sum, buffer) => sum + buffer.bytes, 0)

async function takeAny(arena: Arena, { type, bytes: wanted }: Step & { bytes: number }) {
  if (type === 'share') {
    return { buffers: await arena.share('m', [Math.max(1, wanted)]), shared: true }
  }
  const taking = await arena.take(wanted)
  expect(total(taking.buffers)).toBeGreaterThanOrEqual(wanted)
  if (type !== 'undo') return { buffers: taking.buffers, shared: false }
  arena.undo(taking)
  return null
}

test('in any order of takes and returns no buffer is used twice and nothing exceeds the budget', async () => {
  const before = library.liveObjects()
  let refused = 0
  await fc.assert(
    fc.asyncProperty(fc.array(step, { minLength: 5, maxLength: 30 }), async (steps) => {
      const arena = new Arena(library, BUDGET_BYTES)
      const held: Holding[] = []
      let peakBytes = 0
      const used = () => held.reduce((sum, { buffers }) => sum + total(buffers), 0)
      for (const next of steps) {
        if (next.type === 'give back') {
          const [gone] = held.splice(next.index % Math.max(1, held.length), 1)
          if (gone?.shared) arena.giveBackShared('m', gone.buffers)
          else if (gone) arena.giveBack(gone.buffers)
        } else {
          try {
            const holding = await takeAny(arena, next)
            if (holding !== null) held.push(holding)
            else peakBytes = Math.max(peakBytes, used() + next.bytes * 1.25 + 4 * MIB)
          } catch (error) {
            if (!(error instanceof HostMemoryError)) throw error
            // what it says is short must be what is short
            expect(used() + error.shortBytes).toBeGreaterThan(
              BUDGET_BYTES - next.bytes * 1.25 - 4 * MIB,
            )
            refused += 1
          }
        }
        peakBytes = Math.max(peakBytes, used())
        const handles = held.flatMap(({ buffers }) => buffers.map(({ buffer }) => buffer))
        expect(new Set(handles).size).toBe(handles.length)
        expect(arena.usedBytes).toBe(used())
        expect(arena.pinnedBytes).toBeLessThanOrEqual(Math.min(BUDGET_BYTES, peakBytes))
      }
      for (const { buffers, shared } of held) {
        if (shared) arena.unshare(buffers)
        else arena.giveBack(buffers)
      }
      arena.trim(null)
      expect(arena.pinnedBytes).toBe(0)
      expect(library.liveObjects()).toBe(before)
    }),
    { numRuns: 60 },
  )
  expect(refused).toBeGreaterThan(0)
}, 60_000)
