import { expect, setDefaultTimeout, test } from 'bun:test'
import {
  type DirectCopy,
  type DirectPlan,
  FetchedRanges,
  neededRanges,
  planFetches,
} from '@ckpt/core'
import type { CopyPiece, H2dPiece, Handle, Library } from '@ckpt/cuda'
import fc from 'fast-check'
import { Board, BOARD_BYTES } from './board.ts'
import { copyOrder, DirectCopies } from './direct-copies.ts'
import { DirectPlans } from './direct-plans.ts'
import type { EngineMemory } from './engine-memory.ts'
import { givenChunks, Replicas } from './replicas.ts'

setDefaultTimeout(60_000)

const KIB = 2 ** 10
const TENSORS = 12
/** Some are not worth waiting for. */
const TENSOR_BYTES = Array.from(
  { length: TENSORS },
  (_, i) => (i % 4 === 3 ? 20 : 70 + 10 * i) * KIB,
)
const STARTS = TENSOR_BYTES.map((_, i) => TENSOR_BYTES.slice(0, i).reduce((sum, n) => sum + n, 0))
const SOURCE_BYTES = TENSOR_BYTES.reduce((sum, n) => sum + n, 0)
const SOURCE: Handle = 1
const LAYOUT = {
  table: {} as never,
  sources: [{ starts: Float64Array.of(0), bytes: Float64Array.of(SOURCE_BYTES) }],
}
const STEPS_MAX = 20_000
const ALLOCATIONS = 3

/** Copies that are done when they are drawn, each stream's in order; what a copy reads it reads then. */
class World {
  readonly memory = new Map<Handle, Uint8Array>()
  readonly streams = new Map<Handle, (() => void)[]>()
  readonly complete = new Set<Handle>()
  readonly raised = new Set<Handle>()
  h2dBytes = 0
  #next = 2

  allocate(bytes: number): Handle {
    const handle = this.#next++
    this.memory.set(handle, new Uint8Array(bytes))
    return handle
  }

  name(): Handle {
    return this.#next++
  }

  #enqueue(stream: Handle, work: () => void): void {
    const works = this.streams.get(stream) ?? []
    this.streams.set(stream, works)
    works.push(work)
  }

  #move(to: Handle, at: number, from: Handle, offset: number, bytes: number): void {
    const source = this.memory.get(from)?.subarray(offset, offset + bytes)
    if (source?.length !== bytes) throw new Error('no such memory')
    this.memory.get(to)?.set(source, at)
  }

  readonly library = {
    copyH2dBatch: (stream: Handle, pieces: readonly H2dPiece[]) =>
      this.#enqueue(stream, () => {
        for (const one of pieces) {
          this.h2dBytes += one.width
          this.#move(one.memory, one.memoryOffset, one.buffer, one.bufferOffset, one.width)
        }
      }),
    copyDevice: (stream: Handle, to: Handle, from: Handle, pieces: readonly CopyPiece[]) =>
      this.#enqueue(stream, () => {
        for (const { dstOffset, srcOffset, bytes } of pieces) {
          this.#move(to, dstOffset, from, srcOffset, bytes)
        }
      }),
    eventRecord: (event: Handle, stream: Handle) =>
      this.#enqueue(stream, () => void this.complete.add(event)),
    eventNotify: (event: Handle, signal: Handle) => {
      for (const works of this.streams.values()) {
        const last = works.at(-1)
        if (last === undefined) continue
        works[works.length - 1] = () => {
          last()
          if (this.complete.has(event)) this.raised.add(signal)
        }
      }
    },
    eventQuery: (event: Handle) => this.complete.has(event),
    signalRaise: (signal: Handle) => void this.raised.add(signal),
  } as unknown as Library

  engineMemory(): EngineMemory & { readonly handles: readonly Handle[] } {
    const handles = Array.from({ length: ALLOCATIONS }, () => this.allocate(SOURCE_BYTES + 4 * KIB))
    const streams = { stream: this.name(), rowsStream: this.name(), peerStream: this.name() }
    const memory = (allocation: number) => handles[allocation] as Handle
    const events = { event: () => this.name(), reuse: () => {} }
    return { ...streams, ...events, handles, memory, has: () => true } as never
  }
}

/** Of one rank: which tensors it needs, in which allocation each lies, and how far they are apart. */
const needs = fc.array(fc.tuple(fc.boolean(), fc.nat(ALLOCATIONS - 1), fc.nat(300)), {
  minLength: TENSORS,
  maxLength: TENSORS,
})

function planOf(draws: readonly [boolean, number, number][]): DirectPlan {
  let end = 0
  const copies = draws.flatMap(([needed, allocation, gap], tensor): DirectCopy[] => {
    if (!needed) return []
    const width = TENSOR_BYTES[tensor] as number
    const destination = end + gap
    end = destination + width
    const pitches = { sourcePitch: width, destinationPitch: width }
    const source = STARTS[tensor] as number
    return [{ owner: 0, source, allocation, destination, ...pitches, width, height: 1 }]
  })
  const bytes = copies.reduce((sum, { width }) => sum + width, 0)
  const staging = { bytes: 0, pieces: [], copies: [] }
  const groups = Array.from({ length: Math.ceil(copies.length / 2) }, (_, i) => 2 * i)
  return { copies, groups: [...groups, copies.length], staging, fetched: [], bytes }
}

function rankOf(world: World, plan: DirectPlan, boards: readonly Board[], me: number) {
  const { library } = world
  const memory = world.engineMemory()
  const plans = new DirectPlans()
  const signals = boards.map((_, rank) => 1_000_000 + rank)
  const signal = signals[me] as Handle
  plans.write(boards[me] as Board, plan, me)
  const begin = () => {
    const sharing = plans.sharing(plan, boards, me)
    const shared = sharing?.shared.plan ?? plan
    const others = signals.filter((_, rank) => rank !== me)
    const own = { library, signal, givenChunks: [], boards, own: boards[me] as Board }
    const replicas =
      sharing === null ? null : new Replicas({ ...own, ...sharing, signals: others }, memory)
    const buffers = [Uint32Array.of(SOURCE)]
    const copied = (first: number, end: number) => replicas?.copied(first, end)
    const staging = () => 0
    const target = { library, signal, plan: shared, layout: LAYOUT, buffers, staging, copied }
    const copies = new DirectCopies(target, memory)
    const { count } = copyOrder(shared, LAYOUT)
    return {
      step(nowMs: number) {
        copies.takeComplete(nowMs)
        replicas?.takeComplete(nowMs)
        copies.enqueue(count, nowMs)
        replicas?.enqueue(nowMs)
      },
      done: () => copies.done && (replicas?.done ?? true),
    }
  }
  return { plan, memory, signal, begin }
}

test('ranks that take from each other all get their bytes, each over one link, whatever is late', () => {
  let takenAny = 0
  fc.assert(
    fc.property(fc.array(needs, { minLength: 2, maxLength: 4 }), fc.nat(), (draws, seed) => {
      const world = new World()
      const source = Uint8Array.from({ length: SOURCE_BYTES }, (_, i) => (i * 31 + (i >> 9)) % 251)
      world.memory.set(SOURCE, source)
      const boards = draws.map(() => new Board(new SharedArrayBuffer(BOARD_BYTES)))
      const ranks = draws.map((draw, me) => rankOf(world, planOf(draw), boards, me))
      const running = ranks.map((rank) => ({ ...rank, ...rank.begin() }))
      for (const { signal } of running) world.raised.add(signal)
      let state = seed
      const below = (limit: number) => {
        state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0
        return Math.floor((state / 2 ** 32) * limit)
      }
      for (let step = 0; running.some((rank) => !rank.done()); step++) {
        if (step > STEPS_MAX) throw new Error('it does not end')
        const woken = running.filter(({ signal }) => world.raised.has(signal))
        const works = [...world.streams.values()].filter(({ length }) => length > 0)
        if (woken.length + works.length === 0) throw new Error('nobody is woken')
        const one = below(woken.length + works.length)
        const rank = woken[one]
        if (rank === undefined) works[one - woken.length]!.shift()!()
        else {
          world.raised.delete(rank.signal)
          rank.step(step)
        }
      }
      for (const { plan, memory } of ranks) {
        for (const { source: from, destination, allocation, width } of plan.copies) {
          const there = world.memory.get(memory.handles[allocation]!)!
          const placed = there.subarray(destination, destination + width)
          if (!Buffer.from(placed).equals(source.subarray(from, from + width))) {
            throw new Error('the bytes differ')
          }
        }
      }
      const wanted = TENSOR_BYTES.map((bytes, tensor) => {
        const count = draws.filter((draw) => draw[tensor]![0]).length
        return bytes * (bytes < 64 * KIB ? count : Math.min(1, count))
      })
      expect(world.h2dBytes).toBe(wanted.reduce((sum, bytes) => sum + bytes, 0))
      const all = ranks.reduce((sum, { plan }) => sum + plan.bytes, 0)
      if (all > world.h2dBytes) takenAny++
    }),
    { numRuns: 100 },
  )
  expect(takenAny).toBeGreaterThan(70)
})

test('what is shared is worked out again when a rank copies something else', () => {
  const buffers = [0, 1].map(() => new SharedArrayBuffer(BOARD_BYTES))
  // of each run anew
  const wrapped = () => buffers.map((buffer) => new Board(buffer))
  const boards = wrapped()
  const all = planOf(TENSOR_BYTES.map(() => [true, 0, 0]))
  const half = planOf(TENSOR_BYTES.map((_, tensor) => [tensor < TENSORS / 2, 0, 0]))
  const [first, second] = [new DirectPlans(), new DirectPlans()]
  first.write(boards[0]!, all, 0)
  second.write(boards[1]!, all, 1)
  const before = first.sharing(all, boards, 0)
  expect(first.sharing(all, wrapped(), 0)).toBe(before)
  const own = before!.shared.plan.bytes + before!.shared.takenBytes
  expect(own).toBe(all.bytes)
  second.write(boards[1]!, half, 1)
  const after = first.sharing(all, wrapped(), 0)
  expect(after!.shared.takenBytes).toBeLessThan(before!.shared.takenBytes)
  // a Worker that replaces the other one writes a board of its own
  buffers[1] = new SharedArrayBuffer(BOARD_BYTES)
  new DirectPlans().write(wrapped()[1]!, all, 1)
  expect(first.sharing(all, wrapped(), 0)!.shared.takenBytes).toBe(before!.shared.takenBytes)
  // nothing is there at first, whatever was the last time
  boards[0]!.give(0, 7)
  expect(boards[0]!.placeOf(0)).toEqual({ memory: 7, offset: 0 })
  first.write(boards[0]!, all, 0)
  expect(boards[0]!.placeOf(0)).toBeNull()
})

test('a fragment of what is fetched is there with the last chunk that has some of it', () => {
  const copies = planOf(TENSOR_BYTES.map(() => [true, 0, 0])).copies
  const needs = neededRanges(copies, () => true)
  const fetch = planFetches(0, [1], [needs], 100 * KIB)!
  const ranges = new FetchedRanges(fetch)
  const given = [4, 0, 2]
  const chunks = givenChunks(given, copies, ranges)
  expect(chunks.map(({ chunk }) => chunk)).toEqual(
    chunks.map(({ chunk }) => chunk).toSorted((a, b) => a - b),
  )
  for (const { fragment, chunk } of chunks) {
    const { source, width } = copies[fragment]!
    expect(chunk).toBe(Math.floor((source + width - 1) / (100 * KIB)))
  }
  expect(new Set(chunks.map(({ fragment }) => fragment))).toEqual(new Set(given))
  const elsewhere = [{ ...copies[0]!, source: SOURCE_BYTES + KIB }]
  expect(() => givenChunks([0], elsewhere, ranges)).toThrow('is not fetched')
})
