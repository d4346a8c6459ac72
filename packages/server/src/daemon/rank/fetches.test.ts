import { expect, test } from 'bun:test'
import {
  cutAtRanges,
  type DirectCopy,
  neededRanges,
  planFetches,
  type SourceSpace,
} from '@ckpt/core'
import type { H2dPiece, Handle } from '@ckpt/cuda'
import fc from 'fast-check'
import { CopyQueue, type QueueCalls } from './copy-queue.ts'
import type { EngineMemory } from './engine-memory.ts'
import { type FetchCalls, Fetches } from './fetches.ts'
import { type Peer, PROGRESS_BYTES } from './messages.ts'
import { copyFetched, SlotCopies } from './slot-copies.ts'

const NODE = 1
const SLOT_BYTES = 1024
const STEPS_MAX = 100_000
/** Of the first rank; no handle is so large. */
const SIGNALS = 1_000_000

interface Work {
  run: () => void
  done: boolean
}

/** Memory, reads and copies that are done when they are drawn, however late; what a copy reads it reads then. */
class World {
  readonly memory = new Map<Handle, Uint8Array>()
  readonly reads = new Map<Handle, Work>()
  /** Of each stream, in order. */
  readonly streams = new Map<Handle, Work[]>()
  readonly events = new Map<Handle, Work>()
  /** Signals that were raised and not taken. */
  readonly raised = new Set<Handle>()
  #next = 1

  allocate(bytes: number): Handle {
    const handle = this.#next++
    this.memory.set(handle, new Uint8Array(bytes))
    return handle
  }

  at(handle: Handle, offset: number, bytes: number): Uint8Array {
    const memory = this.memory.get(handle)
    if (memory === undefined || offset + bytes > memory.length) throw new Error('no such memory')
    return memory.subarray(offset, offset + bytes)
  }

  readonly fetchCalls = {
    p2p: {
      readStart: (pieces, buffer, signal) => {
        const handle = this.#next++
        const run = () => {
          for (const { remote, remoteOffset, bufferOffset, bytes } of pieces) {
            this.at(buffer, bufferOffset, bytes).set(this.at(remote, remoteOffset, bytes))
          }
          this.raised.add(signal)
        }
        this.reads.set(handle, { run, done: false })
        return handle
      },
      readQuery: (read) => this.reads.get(read)?.done ?? false,
      readDestroy: (read) => void this.reads.delete(read),
    },
    signalRaise: (signal) => void this.raised.add(signal),
  } satisfies FetchCalls

  readonly queueCalls: QueueCalls = {
    copyH2dBatch: (stream: Handle, pieces: readonly H2dPiece[]) => {
      this.#streamOf(stream).push({ run: () => this.#copy(pieces), done: false })
    },
    eventRecord: (event: Handle, stream: Handle) => {
      const mark = { run: () => {}, done: false }
      this.#streamOf(stream).push(mark)
      this.events.set(event, mark)
    },
    eventNotify: (event: Handle, signal: Handle) => {
      const mark = this.events.get(event) as Work
      mark.run = () => void this.raised.add(signal)
    },
    eventQuery: (event: Handle) => this.events.get(event)?.done ?? false,
  }

  #streamOf(stream: Handle): Work[] {
    const known = this.streams.get(stream) ?? []
    this.streams.set(stream, known)
    return known
  }

  #copy(pieces: readonly H2dPiece[]): void {
    for (const one of pieces) {
      for (let row = 0; row < one.height; row++) {
        const from = one.bufferOffset + row * one.bufferPitch
        const to = one.memoryOffset + row * one.memoryPitch
        this.at(one.memory, to, one.width).set(this.at(one.buffer, from, one.width))
      }
    }
  }

  engineMemory(bytes: number): EngineMemory {
    const memory = this.allocate(bytes)
    const [stream, rowsStream] = [this.#next++, this.#next++]
    const event = () => this.#next++
    return {
      stream,
      rowsStream,
      memory: () => memory,
      event,
      reuse: () => {},
    } as unknown as EngineMemory
  }

  /** Everything that could happen next. */
  get pending(): (() => void)[] {
    const reads = [...this.reads.values()].filter(({ done }) => !done)
    const firsts = [...this.streams.values()].flatMap((works) => works[0] ?? [])
    const ends = reads.map((work) => () => {
      work.run()
      work.done = true
    })
    const moves = firsts.map((work) => () => {
      work.run()
      work.done = true
      for (const works of this.streams.values()) if (works[0] === work) works.shift()
    })
    return [...ends, ...moves]
  }
}

/** Owners 0 and 2 are away, in two source buffers with a hole between them. */
const SOURCE: SourceSpace = {
  starts: Float64Array.of(0, 6000),
  bytes: Float64Array.of(5000, 9000),
}
const OWNER_NODES = [0, NODE, 2]

const copies = fc.record({
  owner: fc.constantFrom(0, 2),
  buffer: fc.nat(1),
  at: fc.nat(3000),
  width: fc.integer({ min: 1, max: 1500 }),
  height: fc.integer({ min: 1, max: 4 }),
  gap: fc.nat(40),
})

/** Of one rank: rows that all lie in one source buffer, one after another in the engine's memory. */
const rankCopies = fc.array(copies, { maxLength: 12 }).map((draws) => {
  let destination = 0
  return draws.flatMap(({ owner, buffer, at, width, height, gap }): DirectCopy[] => {
    const start = (SOURCE.starts[buffer] as number) + at
    const end = (SOURCE.starts[buffer] as number) + (SOURCE.bytes[buffer] as number)
    const sourcePitch = width + gap
    const rows = Math.min(height, Math.floor((end - start - width) / sourcePitch) + 1)
    if (rows < 1) return []
    const to = { allocation: 0, destination, destinationPitch: width }
    destination += rows * width
    return [{ owner, source: start, sourcePitch, ...to, width, height: rows }]
  })
})

test('ranks that fetch in turns each get their bytes, whatever is late', () => {
  let fetchedAny = 0
  fc.assert(
    fc.property(fc.array(rankCopies, { minLength: 1, maxLength: 4 }), fc.nat(), (ranks, seed) => {
      const world = new World()
      const remotes = OWNER_NODES.map((node, owner) => {
        if (node === NODE) return null
        return Uint32Array.from(SOURCE.bytes, (bytes) => {
          const handle = world.allocate(bytes)
          const memory = world.at(handle, 0, bytes)
          for (let i = 0; i < bytes; i++) memory[i] = (i * 31 + owner * 7 + handle) % 251
          return handle
        })
      })
      const isFetched = (owner: number) => OWNER_NODES[owner] !== NODE
      const needs = ranks.map((own) => neededRanges(own, isFetched))
      const plan = planFetches(NODE, OWNER_NODES, needs, SLOT_BYTES)
      if (plan === null) return
      fetchedAny++
      // a rank of another daemon is in the update, too
      const peers: (Peer | null)[] = [
        null,
        ...ranks.map((_, rank) => ({
          progress: new SharedArrayBuffer(PROGRESS_BYTES),
          signal: SIGNALS + rank,
          board: new SharedArrayBuffer(0),
        })),
      ]
      const sources = OWNER_NODES.map(() => SOURCE)
      const all = ranks.map((own, rank) => {
        const memory = world.engineMemory(200_000)
        const library = world.fetchCalls
        const slots = (bytes: number) => world.allocate(bytes)
        const signal = SIGNALS + rank
        world.raised.add(signal)
        const queue = new CopyQueue(world.queueCalls, signal, memory)
        const fetches = new Fetches({
          library,
          signal,
          plan,
          sources,
          remotes,
          peers,
          member: rank + 1,
          busy: queue.h2d,
          slots,
        })
        const slotCopies = new SlotCopies(cutAtRanges(own, plan), fetches, memory, queue)
        return { own, memory, fetches, queue, slotCopies, signal }
      })
      let state = seed
      const below = (limit: number) => {
        state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0
        return Math.floor((state / 2 ** 32) * limit)
      }
      let steps = 0
      while (all.some(({ fetches, slotCopies }) => !fetches.done || !slotCopies.done)) {
        if (++steps > STEPS_MAX) throw new Error('it does not end')
        const { pending, raised } = world
        const woken = all.filter(({ signal }) => raised.has(signal))
        if (pending.length + woken.length === 0) throw new Error('nobody is woken')
        const one = below(pending.length + woken.length)
        const rank = woken[one - pending.length]
        if (rank === undefined) pending[one]!()
        else {
          raised.delete(rank.signal)
          rank.queue.takeComplete(steps)
          copyFetched(rank.fetches, rank.slotCopies, steps)
        }
      }
      for (const { own, memory } of all) {
        for (const copy of own) requireCopied(world, copy, memory.memory(0), remotes)
      }
      for (const { fetches } of all) fetches.close()
      expect(world.reads.size).toBe(0)
    }),
    { numRuns: 400 },
  )
  expect(fetchedAny).toBeGreaterThan(200)
})

function requireCopied(
  world: World,
  copy: DirectCopy,
  memory: Handle,
  remotes: readonly (Uint32Array | null)[],
): void {
  const buffer = copy.source >= (SOURCE.starts[1] as number) ? 1 : 0
  const remote = remotes[copy.owner]?.[buffer] as number
  for (let row = 0; row < copy.height; row++) {
    const from = copy.source - (SOURCE.starts[buffer] as number) + row * copy.sourcePitch
    const to = copy.destination + row * copy.destinationPitch
    const wanted = world.at(remote, from, copy.width)
    if (!Bun.deepEquals([...world.at(memory, to, copy.width)], [...wanted])) {
      throw new Error('the bytes differ')
    }
  }
}
