import { describe, expect, test } from 'bun:test'
import fc from 'fast-check'
import { chooseBucketBytes, DEFAULT_RATES, predictSeconds } from './cost.ts'
import { decideMode, type ModeDecision, type ModeInput, RING_STEP_BYTES } from './mode.ts'

const MIB = 2 ** 20
const GIB = 2 ** 30

function decide(change: Partial<ModeInput>): ModeDecision {
  return decideMode({
    freeBytes: [{ rank: 0, bytes: 80 * GIB }],
    fraction: 0.9,
    largest: { name: 'embed', bytes: 1.24e9 },
    totalBytes: 16.38e9,
    tensorCount: 399,
    ringBytes: null,
    bucketBytes: null,
    mode: 'auto',
    ...change,
  })
}

function ringOf(decision: ModeDecision) {
  if (decision.mode === 'refuse') throw new Error(decision.failure.message)
  return decision
}

const free = (...bytes: number[]) => bytes.map((b, rank) => ({ rank: rank + 3, bytes: b }))

describe('decideMode', () => {
  test('takes the largest tensor and 256 MiB, at least 1 GiB', () => {
    const large = ringOf(decide({}))
    expect(large.mode).toBe('pipelined')
    expect(large.ringBytes).toBe(Math.ceil(1.24e9 / (2 * MIB)) * 2 * MIB + 256 * MIB)
    const small = ringOf(decide({ largest: { name: 'x', bytes: 10 * MIB } }))
    expect(small.ringBytes).toBe(GIB)
    expect(small.bucketBytes).toBeGreaterThanOrEqual(16 * MIB)
    expect(small.bucketBytes).toBeLessThanOrEqual(256 * MIB)
    expect(small.segmentBytes).toBe(16 * MIB)
  })

  test('takes no more than the checkpoint needs', () => {
    const job = { largest: { name: 'x', bytes: 30e6 }, totalBytes: 250e6, tensorCount: 150 }
    const ring = ringOf(decide(job))
    expect(ring).toMatchObject({ mode: 'pipelined', ringBytes: 240 * MIB })
    expect(ring.bucketBytes).toBeLessThanOrEqual(ring.ringBytes / 4)
    const tiny = { largest: { name: 'x', bytes: 5 }, totalBytes: 5, tensorCount: 1 }
    expect(ringOf(decide(tiny))).toMatchObject({ mode: 'pipelined', ringBytes: 2 * MIB })
    const nothing = { largest: { name: '', bytes: 0 }, totalBytes: 0, tensorCount: 0 }
    expect(ringOf(decide(nothing))).toMatchObject({ mode: 'pipelined', ringBytes: 2 * MIB })
  })

  test('goes from pipelined to serial to refusing as memory gets less', () => {
    const job = { fraction: 1, largest: { name: 'embed', bytes: 100 * MIB } }
    const at = (bytes: number) => decide({ ...job, freeBytes: free(GIB, bytes, 2 * GIB) })
    expect(ringOf(at(116 * MIB))).toMatchObject({
      mode: 'pipelined',
      ringBytes: 116 * MIB,
      bucketBytes: 16 * MIB,
    })
    const serial = ringOf(at(116 * MIB - 1))
    expect(serial).toMatchObject({ mode: 'serial', ringBytes: 114 * MIB, bucketBytes: 114 * MIB })
    expect(serial.reason).toContain('free on rank 4')
    expect(ringOf(at(100 * MIB)).mode).toBe('serial')
    expect(at(100 * MIB - 1)).toEqual({
      mode: 'refuse',
      failure: {
        code: 'tensor_too_large',
        message:
          `the largest tensor 'embed' (${100 * MIB} bytes) does not fit into ` +
          `100 % of the ${100 * MIB - 1} bytes free on rank 4`,
        rank: 4,
        phase: 'plan',
        tensor: 'embed',
      },
    })
    expect(at(0).mode).toBe('refuse')
  })

  test('leaves two buckets to each link that a broadcast can follow', () => {
    const bucketOf = (rankCount: number, broadcastBytesPerSecond: number) => {
      const freeBytes = free(...Array.from({ length: rankCount }, () => 80 * GIB))
      const rates = { ...DEFAULT_RATES, broadcastBytesPerSecond }
      return ringOf(decide({ freeBytes, rates })).bucketBytes
    }
    expect(bucketOf(1, 400e9)).toBe(256 * MIB)
    expect(bucketOf(8, 62e9)).toBe(256 * MIB)
    expect(bucketOf(4, 400e9)).toBe(128 * MIB)
    expect(bucketOf(256, 400e9)).toBe(64 * MIB)
  })

  test('keeps to the fraction of the least free memory', () => {
    const job = { largest: { name: 'x', bytes: MIB }, freeBytes: free(500 * MIB, 200 * MIB) }
    expect(ringOf(decide({ ...job, fraction: 0.5 })).ringBytes).toBe(100 * MIB)
    expect(ringOf(decide({ ...job, fraction: 0.9 })).ringBytes).toBe(180 * MIB)
  })

  test('is pipelined on a small device when the whole checkpoint fits', () => {
    const job = { largest: { name: 'x', bytes: 3 * MIB }, totalBytes: 8 * MIB, tensorCount: 9 }
    const freeBytes = free(8 * MIB)
    expect(ringOf(decide({ ...job, freeBytes, fraction: 1 })).mode).toBe('pipelined')
    expect(ringOf(decide({ ...job, freeBytes, fraction: 0.9 })).mode).toBe('serial')
  })

  test('does what the flags say, within what is possible', () => {
    expect(ringOf(decide({ ringBytes: 3 * GIB })).ringBytes).toBe(3 * GIB)
    expect(ringOf(decide({ ringBytes: 3 * GIB + 1 })).ringBytes).toBe(3 * GIB + 2 * MIB)
    const raised = ringOf(decide({ ringBytes: MIB }))
    expect(raised).toMatchObject({ mode: 'serial', ringBytes: 592 * 2 * MIB })
    expect(raised.reason).toContain('the ring asked for')
    expect(ringOf(decide({ ringBytes: 100 * GIB })).ringBytes).toBeLessThan(72 * GIB)
    const two = ringOf(decide({ bucketBytes: 2 * GIB }))
    expect(two).toMatchObject({ ringBytes: 4 * GIB, bucketBytes: 2 * GIB })
    const largest = ringOf(decide({ bucketBytes: 64 * MIB }))
    expect(largest).toMatchObject({ ringBytes: 2 * 592 * 2 * MIB, bucketBytes: 64 * MIB })
    const both = ringOf(decide({ ringBytes: 2 * GIB, bucketBytes: 48 * MIB }))
    expect(both).toMatchObject({ ringBytes: 2 * GIB, bucketBytes: 48 * MIB })
    expect(ringOf(decide({ mode: 'serial' }))).toMatchObject({
      mode: 'serial',
      reason: 'asked for',
    })
    expect(ringOf(decide({ mode: 'pipelined' })).reason).toStartWith('asked for')
  })

  test('refuses to be pipelined by force where nothing is left for a second bucket', () => {
    const job = {
      largest: { name: 'x', bytes: 100 * MIB },
      fraction: 1,
      mode: 'pipelined' as const,
    }
    const tight = ringOf(decide({ ...job, freeBytes: free(102 * MIB) }))
    expect(tight).toMatchObject({ mode: 'pipelined', bucketBytes: 2 * MIB })
    const refused = decide({ ...job, freeBytes: free(100 * MIB) })
    expect(refused).toMatchObject({
      mode: 'refuse',
      failure: { code: 'device_memory_exhausted', rank: 3, tensor: 'x' },
    })
  })

  test('always stays within its bounds', () => {
    const bytes = fc.integer({ min: 0, max: 4 * GIB })
    const optional = fc.option(fc.integer({ min: 1, max: 4 * GIB }))
    const inputs = fc.record({
      freeBytes: fc.array(fc.record({ rank: fc.nat(), bytes }), { minLength: 1, maxLength: 4 }),
      fraction: fc.double({ min: 0.1, max: 1, noNaN: true }),
      largestBytes: fc.oneof(bytes, fc.nat({ max: 64 * MIB })),
      more: fc.oneof(bytes, fc.nat({ max: 64 * MIB })),
      ringBytes: optional,
      bucketBytes: optional,
      mode: fc.constantFrom('auto' as const, 'pipelined' as const, 'serial' as const),
    })
    const modes = { pipelined: 0, serial: 0, refuse: 0 }
    fc.assert(
      fc.property(inputs, ({ largestBytes, more, ...input }) => {
        const totalBytes = largestBytes + more
        const job = { ...input, totalBytes, largest: { name: 'x', bytes: largestBytes } }
        const decision = decide(job)
        modes[decision.mode]++
        if (decision.mode === 'refuse') return
        const { ringBytes, bucketBytes, segmentBytes } = decision
        const least = Math.min(...input.freeBytes.map((rank) => rank.bytes))
        expect(ringBytes % RING_STEP_BYTES).toBe(0)
        expect(ringBytes).toBeGreaterThanOrEqual(largestBytes)
        expect(ringBytes).toBeLessThanOrEqual(input.fraction * least)
        expect(ringBytes).toBeLessThan(Math.max(1, totalBytes) + RING_STEP_BYTES)
        expect(bucketBytes).toBeGreaterThan(0)
        expect(bucketBytes).toBeLessThanOrEqual(ringBytes)
        if (input.bucketBytes !== null) expect(bucketBytes).toBeLessThanOrEqual(input.bucketBytes)
        expect(Number.isInteger(segmentBytes) && segmentBytes > 0).toBe(true)
        const wholeBytes = Math.ceil(totalBytes / RING_STEP_BYTES) * RING_STEP_BYTES
        if (decision.mode === 'pipelined' && ringBytes < wholeBytes) {
          expect(largestBytes + bucketBytes).toBeLessThanOrEqual(ringBytes)
        }
      }),
      { numRuns: 2000 },
    )
    for (const count of Object.values(modes)) expect(count).toBeGreaterThan(20)
  })
})

describe('the cost model', () => {
  const dense = { totalBytes: 16.38e9, tensorCount: 399, rankCount: 1 }
  const moe = { totalBytes: 14.5e9, tensorCount: 18_432, rankCount: 1 }

  test('is near what was measured with the ring prototype', () => {
    // 0.298 s for the dense model, 0.35-0.46 s for the MoE, bound by the Python worker
    const seconds = (job: typeof dense) => predictSeconds(job, 128 * MIB, DEFAULT_RATES)
    expect(seconds(dense)).toBeCloseTo(0.305, 2)
    expect(seconds(moe)).toBeGreaterThan(0.35)
    expect(seconds(moe)).toBeLessThan(0.46)
  })

  test('takes larger buckets for more bytes, and where a bucket costs more', () => {
    const most = 256 * MIB
    const small = { totalBytes: 250e6, tensorCount: 150, rankCount: 1 }
    expect(chooseBucketBytes(small, most, DEFAULT_RATES)).toBe(32 * MIB)
    expect(chooseBucketBytes(dense, most, DEFAULT_RATES)).toBe(256 * MIB)
    const free = { ...DEFAULT_RATES, bucketSeconds: 0 }
    expect(chooseBucketBytes(small, most, free)).toBe(16 * MIB)
    const costly = { ...DEFAULT_RATES, bucketSeconds: 0.01 }
    expect(chooseBucketBytes(small, most, costly)).toBe(256 * MIB)
    expect(chooseBucketBytes(dense, 5 * MIB, DEFAULT_RATES)).toBe(5 * MIB)
    const nothing = { totalBytes: 0, tensorCount: 0, rankCount: 1 }
    expect(chooseBucketBytes(nothing, most, DEFAULT_RATES)).toBe(most)
    expect(predictSeconds(nothing, most, DEFAULT_RATES)).toBeCloseTo(0.0002)
    expect(chooseBucketBytes(moe, 100 * MIB, DEFAULT_RATES)).toBeLessThanOrEqual(100 * MIB)
  })

  test('counts one link per rank, and the broadcast', () => {
    const seconds = (rankCount: number) =>
      predictSeconds({ ...dense, rankCount }, 128 * MIB, DEFAULT_RATES)
    expect(seconds(8)).toBeGreaterThan(dense.totalBytes / DEFAULT_RATES.broadcastBytesPerSecond)
    expect(seconds(8)).toBeLessThan(seconds(1))
  })
})
