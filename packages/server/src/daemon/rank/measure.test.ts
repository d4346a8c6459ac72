import { expect, test } from 'bun:test'
import { openLibrary, type Library } from '@ckpt/cuda'
import { FREE_BYTES_MIN, MEASURED_BYTES, measureH2d } from './measure.ts'

/** A round that is disturbed for 100 ms has 1e7 bytes a second. */
const LEAST = 3e7
const DEVICE_BYTES = 2 ** 30
const library = openLibrary({ kind: 'host', hostDevices: 1 })
const PLENTY: Partial<Library> = {
  deviceMemory: () => ({ freeBytes: DEVICE_BYTES, totalBytes: DEVICE_BYTES }),
}

/** The library with other answers to some calls; what it is asked for is noted. Shared memory may be small: it says it is not. */
function changed(change: Partial<Library>): { native: Library; asked: string[] } {
  const asked: string[] = []
  const native = new Proxy(library, {
    get(target, name: keyof Library) {
      const method = { ...PLENTY, ...change }[name] ?? target[name]
      if (typeof method !== 'function') return method
      return (...args: unknown[]) => {
        asked.push(name)
        return (method as (...args: unknown[]) => unknown).apply(target, args)
      }
    },
  })
  return { native, asked }
}

test('a measurement finds a rate, soon, and leaves nothing behind', () => {
  const before = library.liveObjects()
  const { native, asked } = changed({})
  const rate = measureH2d(native, 0, () => false) as number
  // of shared memory, on a machine that does other things too
  expect(rate).toBeGreaterThan(LEAST)
  expect(rate).toBeLessThan(1e12)
  expect(asked.filter((name) => name === 'streamSync').length).toBeLessThanOrEqual(9)
  expect(library.liveObjects()).toBe(before)
})

test('a moment in which the machine does something else does not become the rate', () => {
  let rounds = 0
  const { native } = changed({
    streamSync(...args) {
      library.streamSync(...args)
      if (rounds++ < 3) Bun.sleepSync(100)
    },
  })
  expect(measureH2d(native, 0, () => false)).toBeGreaterThan(LEAST)
  expect(rounds).toBeGreaterThanOrEqual(4)
})

test('it takes no memory where there is hardly any', () => {
  const memory = (freeBytes: number) => () => ({ freeBytes, totalBytes: DEVICE_BYTES })
  const little = changed({ deviceMemory: memory(FREE_BYTES_MIN - 1) })
  expect(measureH2d(little.native, 0, () => false)).toBeNull()
  expect(little.asked).toEqual(['deviceMemory'])
  const enough = changed({ deviceMemory: memory(FREE_BYTES_MIN) })
  expect(measureH2d(enough.native, 0, () => false)).not.toBeNull()
})

test('it stops wherever it is told to, and leaves nothing behind', () => {
  const before = library.liveObjects()
  for (let steps = 0; steps < 5; steps++) {
    let left = steps
    const { native, asked } = changed({})
    expect(measureH2d(native, 0, () => left-- === 0)).toBeNull()
    // two looks before the copies, then one before each round but the first
    const rounds = asked.filter((name) => name === 'streamSync').length
    expect(rounds).toBe(Math.max(0, steps - 1))
    expect(library.liveObjects()).toBe(before)
  }
})

test('what fails gives everything back', () => {
  const before = library.liveObjects()
  const calls = ['bufferAlloc', 'streamCreate', 'copyH2d', 'streamSync'] as const
  for (const call of calls) {
    const { native } = changed({
      [call]: () => {
        throw new Error(call)
      },
    })
    expect(() => measureH2d(native, 0, () => false)).toThrow(call)
    expect(library.liveObjects()).toBe(before)
  }
})

test('copies stay within their buffers', () => {
  const seen: { to: number; from: number }[] = []
  const { native } = changed({
    copyH2d(stream, memory, memoryOffset, buffer, bufferOffset, bytes) {
      seen.push({ to: memoryOffset + bytes, from: bufferOffset + bytes })
      library.copyH2d(stream, memory, memoryOffset, buffer, bufferOffset, bytes)
    },
  })
  measureH2d(native, 0, () => false)
  expect(Math.max(...seen.map(({ from }) => from))).toBeLessThanOrEqual(MEASURED_BYTES)
  expect(Math.max(...seen.map(({ to }) => to))).toBeLessThanOrEqual(16 * 2 ** 20)
})
