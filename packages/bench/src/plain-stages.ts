/**
 * One of several processes that do what the stages of an update do with the library alone: no plan, no list, no engine. A line of JSON on its input is a task, and is answered by a line of JSON.
 */
import { createInterface } from 'node:readline'
import type { Stage } from '@ckpt/core/update/simulate'
import { type Handle, type Library, openLibrary, selectDevices } from '@ckpt/cuda'
import { MIB } from './bench.ts'
import { type Lane, openLane, WAIT_MS } from './streams.ts'

export type PlainTask =
  /** Answered with the id of a communicator. */
  | { readonly type: 'id'; readonly members: number }
  | {
      readonly type: 'meet'
      readonly id: string
      readonly members: number
      readonly member: number
    }
  /**
   * Copies and broadcasts of these sizes one behind another. Where there are broadcasts, each has a copy of its root before it and one
   * of each engine behind it, as far as these go. Answered when all are done, with {@link PlainSeconds}.
   */
  | { readonly type: 'run'; readonly stages: PlainSizes }

/** Bytes that this process copies to its device; of the broadcasts of all; that its engine would take. 0: the stage does nothing. */
export interface PlainSizes extends Readonly<Record<Stage, number>> {
  /** Of one copy, and of one broadcast. */
  readonly pieceBytes: number
  readonly ringBytes: number
}

/** From the first to the last of each stage; 0: it did nothing. */
export type PlainSeconds = Readonly<Record<Stage, number>>

const SOURCE_BYTES_MOST = 64 * MIB
const STAGES: readonly Stage[] = ['h2d', 'broadcast', 'reload']
const DEVICE = 0

export class PlainStages {
  readonly #library: Library
  readonly #stack: DisposableStack
  readonly #signal: Handle
  #communicator: {
    readonly handle: Handle
    readonly members: number
    readonly member: number
  } | null = null
  #ring: { readonly memory: Handle; readonly mapped: Handle; readonly bytes: number } | null = null
  #source: { readonly buffer: Handle; readonly bytes: number } | null = null
  #parameters: { readonly memory: Handle; readonly bytes: number } | null = null

  /** `stack` frees what it uses. */
  constructor(library: Library, stack: DisposableStack) {
    this.#library = library
    this.#stack = stack
    this.#signal = library.signalCreate()
    stack.defer(() => library.signalDestroy(this.#signal))
  }

  do(task: PlainTask): unknown {
    if (task.type === 'id') return this.#library.communicatorId(1, task.members).toHex()
    if (task.type === 'run') return this.#run(task.stages)
    const { members, member } = task
    const id = Uint8Array.fromHex(task.id)
    const place = { id, device: DEVICE, members, member, sharers: 1 }
    const handle = this.#library.communicatorCreate(place, this.#signal, WAIT_MS)
    this.#stack.defer(() => this.#library.communicatorDestroy(handle))
    this.#communicator = { handle, members, member }
    return null
  }

  #run(sizes: PlainSizes): PlainSeconds {
    using stack = new DisposableStack()
    const library = this.#library
    const { ringBytes, pieceBytes } = sizes
    const { memory: ring, mapped } = this.#ringOf(ringBytes)
    const source = this.#sourceOf(Math.max(pieceBytes, Math.min(sizes.h2d, SOURCE_BYTES_MOST)))
    const parameters = this.#parametersOf(Math.max(pieceBytes, sizes.reload))
    const pieces = (bytes: number) => piecesOf(bytes, pieceBytes, ringBytes)
    const lanes = {
      h2d: openLane(library, stack, DEVICE),
      broadcast: openLane(library, stack, DEVICE),
      reload: openLane(library, stack, DEVICE),
    }
    // of what the one has done by now the other waits
    const follow = (first: Handle, then: Handle) => {
      const event = library.eventCreate(DEVICE)
      stack.defer(() => library.eventDestroy(event))
      library.eventRecord(event, first)
      library.streamWaitEvent(then, event)
    }
    const beginMs = performance.now()
    const copied = [...pieces(sizes.h2d)]
    const copy = (piece: Piece | undefined) => {
      if (piece === undefined) return
      const from = piece.at % (source.bytes - piece.bytes + 1)
      library.copyH2d(lanes.h2d.stream, ring, piece.offset, source.buffer, from, piece.bytes)
    }
    const loaded = [...pieces(sizes.reload)]
    const load = (piece: Piece | undefined) => {
      if (piece === undefined) return
      const { at: dstOffset, offset: srcOffset, bytes } = piece
      library.copyDevice(lanes.reload.stream, parameters, mapped, [{ dstOffset, srcOffset, bytes }])
    }
    for (const { index, offset, bytes } of pieces(sizes.broadcast)) {
      const { handle, members, member } = this.#joined
      const { stream } = lanes.broadcast
      const root = index % members
      if (root === member) {
        copy(copied.shift())
        follow(lanes.h2d.stream, stream)
      }
      library.communicatorBroadcast(handle, stream, ring, root, offset, bytes)
      follow(stream, lanes.reload.stream)
      load(loaded.shift())
    }
    for (const piece of copied) copy(piece)
    for (const piece of loaded) load(piece)
    return this.#secondsOf(lanes, beginMs, sizes)
  }

  /** Of the work in each lane. Sleeps meanwhile: whoever looks again and again takes a processor from it. */
  #secondsOf(
    lanes: Readonly<Record<Stage, Lane>>,
    beginMs: number,
    sizes: PlainSizes,
  ): PlainSeconds {
    const library = this.#library
    for (const { event, stream } of Object.values(lanes)) {
      library.eventRecord(event, stream)
      library.eventNotify(event, this.#signal)
    }
    const seconds = { h2d: 0, broadcast: 0, reload: 0 }
    for (const open = new Set(STAGES); open.size > 0; ) {
      library.signalWait(this.#signal, WAIT_MS)
      library.signalTake(this.#signal)
      const elapsedMs = performance.now() - beginMs
      for (const stage of open) {
        if (!library.eventQuery(lanes[stage].event)) continue
        open.delete(stage)
        if (sizes[stage] > 0) seconds[stage] = elapsedMs / 1000
      }
    }
    return seconds
  }

  get #joined() {
    if (this.#communicator === null) throw new Error('it has met nobody')
    return this.#communicator
  }

  /** As an engine's process has it too. All of its pages are there: what they cost goes by the ring, not by what is moved. */
  #ringOf(bytes: number): { readonly memory: Handle; readonly mapped: Handle } {
    if (this.#ring !== null && this.#ring.bytes >= bytes) return this.#ring
    const library = this.#library
    const memory = library.memoryAlloc(DEVICE, bytes)
    this.#stack.defer(() => library.memoryFree(memory))
    const mapped = library.memoryOpen(DEVICE, library.memoryExport(memory), bytes)
    this.#stack.defer(() => library.memoryFree(mapped))
    for (const one of [memory, mapped]) library.memoryFill(one, 0, bytes, 0)
    this.#ring = { memory, mapped, bytes }
    return this.#ring
  }

  #sourceOf(bytes: number): { readonly buffer: Handle; readonly bytes: number } {
    if (this.#source !== null && this.#source.bytes >= bytes) return this.#source
    const buffer = this.#library.bufferAlloc(bytes, 0)
    this.#stack.defer(() => this.#library.bufferFree(buffer))
    this.#source = { buffer, bytes }
    return this.#source
  }

  #parametersOf(bytes: number): Handle {
    if (this.#parameters !== null && this.#parameters.bytes >= bytes) return this.#parameters.memory
    const memory = this.#library.memoryAlloc(DEVICE, bytes)
    this.#stack.defer(() => this.#library.memoryFree(memory))
    // an engine's weights have been there for long
    this.#library.memoryFill(memory, 0, bytes, 0)
    this.#parameters = { memory, bytes }
    return memory
  }
}

interface Piece {
  readonly index: number
  /** Byte offset in what is moved. */
  readonly at: number
  /** Byte offset in the ring. */
  readonly offset: number
  readonly bytes: number
}

/** They go round the ring, each whole. */
export function piecesOf(bytes: number, pieceBytes: number, ringBytes: number): Piece[] {
  const perRing = Math.floor(ringBytes / pieceBytes)
  return Array.from({ length: Math.ceil(bytes / pieceBytes) }, (_, index) => {
    const at = index * pieceBytes
    const offset = (index % perRing) * pieceBytes
    return { index, at, offset, bytes: Math.min(pieceBytes, bytes - at) }
  })
}

if (import.meta.main) await serve(process.argv[2] ?? 'host')

async function serve(devices: string): Promise<void> {
  using stack = new DisposableStack()
  const stages = new PlainStages(openLibrary(selectDevices(devices, 1).library), stack)
  for await (const line of createInterface({ input: process.stdin })) {
    const answer = stages.do(JSON.parse(line) as PlainTask)
    process.stdout.write(`${JSON.stringify(answer)}\n`)
  }
}
