import { describe, expect, test } from 'bun:test'
import fc from 'fast-check'
import {
  CACHED_FRACTION_MIN,
  decideRead,
  DIRECT_BYTES_MIN,
  groupReads,
  type ReadQuestion,
} from './read-decision.ts'

const EXT4 = 0xef53
const TMPFS = 0x01021994
const OVERLAYFS = 0x794c7630
const NFS = 0x6969
const GB = 1e9

const COLD: ReadQuestion = { bytes: GB, mapped: false, filesystem: EXT4, cachedFraction: 0 }

describe('how a file is read', () => {
  const cases: [string, Partial<ReadQuestion>, string, string][] = [
    ['cold on a disk', {}, 'direct', 'not cached'],
    ['cold in a container', { filesystem: OVERLAYFS }, 'direct', 'not cached'],
    ['just written', { cachedFraction: 1 }, 'read', 'in the page cache'],
    ['half cached', { cachedFraction: 0.5 }, 'read', 'in the page cache'],
    ['hardly cached', { cachedFraction: 0.49 }, 'direct', 'not cached'],
    ['on tmpfs', { filesystem: TMPFS }, 'read', 'in shared memory (tmpfs)'],
    ['held in place', { mapped: true }, 'mapped', 'in place'],
    ['held in place on tmpfs', { mapped: true, filesystem: TMPFS }, 'mapped', 'in place'],
    ['small', { bytes: 1000 }, 'read', 'small'],
    [
      "another user's",
      { cachedFraction: null },
      'read',
      'the kernel does not tell whether it is cached',
    ],
    [
      'cold on a server',
      { filesystem: NFS },
      'read',
      'not cached, on a file system that is not known to be on a disk',
    ],
  ]
  for (const [what, question, how, reason] of cases) {
    test(`${what}: ${how}, ${reason}`, () => {
      expect(decideRead({ ...COLD, ...question })).toEqual({ how, reason } as never)
    })
  }
})

const QUESTION = fc.record({
  bytes: fc.oneof(fc.nat(), fc.maxSafeNat()),
  mapped: fc.boolean(),
  filesystem: fc.oneof(fc.constantFrom(EXT4, TMPFS, OVERLAYFS, NFS), fc.nat()),
  cachedFraction: fc.oneof(fc.constant(null), fc.double({ min: 0, max: 1, noNaN: true })),
})

test('whatever is asked: a way with a reason; direct only what is large, cold and on a disk', () => {
  fc.assert(
    fc.property(QUESTION, (question) => {
      const { how, reason } = decideRead(question)
      expect(reason).not.toBe('')
      expect(how === 'mapped').toBe(question.mapped)
      if (how !== 'direct') return
      expect(question.bytes).toBeGreaterThanOrEqual(DIRECT_BYTES_MIN)
      expect(question.cachedFraction).toBeLessThan(CACHED_FRACTION_MIN)
      expect([EXT4, OVERLAYFS, 0x58465342, 0x9123683e, 0xf2f52010, 0xca451a4e]).toContain(
        question.filesystem,
      )
    }),
  )
})

test('the more of a file is cached, the less it is read directly', () => {
  fc.assert(
    fc.property(
      QUESTION,
      fc.double({ min: 0, max: 1, noNaN: true }),
      fc.double({ min: 0, max: 1, noNaN: true }),
      (question, one, other) => {
        const [less, more] = [Math.min(one, other), Math.max(one, other)]
        const warmer = decideRead({ ...question, cachedFraction: more }).how
        if (warmer === 'direct') {
          expect(decideRead({ ...question, cachedFraction: less }).how).toBe('direct')
        }
      },
    ),
  )
})

test('files of one way and reason are one entry, and none is lost', () => {
  expect(groupReads([])).toEqual([])
  fc.assert(
    fc.property(fc.array(QUESTION), (questions) => {
      const files = questions.map((question) => ({
        ...decideRead(question),
        bytes: question.bytes % 1000,
      }))
      const groups = groupReads(files)
      expect(new Set(groups.map(({ how, reason }) => `${how} ${reason}`)).size).toBe(groups.length)
      const sum = (numbers: number[]) => numbers.reduce((total, one) => total + one, 0)
      expect(sum(groups.map((group) => group.files))).toBe(files.length)
      expect(sum(groups.map(({ bytes }) => bytes))).toBe(sum(files.map(({ bytes }) => bytes)))
    }),
  )
})
