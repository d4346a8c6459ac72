import {
  buildTable,
  type DirectCopy,
  type DirectPlan,
  encodePlacementMap,
  packFrame,
  unpackFrame,
} from '@ckpt/core'
import type { Handle, Library, ZmqSocket } from '@ckpt/cuda'
import { clockMs } from '../clock.ts'
import { BOARD_BYTES } from './board.ts'
import { DirectPlans, type KnownMemory } from './direct-plans.ts'
import { DirectRun } from './direct-run.ts'
import type { EngineMemory } from './engine-memory.ts'
import { NO_RUN, PROGRESS_BYTES, type RankEvent } from './messages.ts'
import { OwnMemory } from './own-memory.ts'
import { type Rehearsals, RehearsedHost } from './rehearsed-host.ts'

/** As of a mixture of experts: some ten copies each. */
const GROUPS = 8
const COPIES = 12
const COPY_BYTES = 64 * 2 ** 10
const STAGED = 16
const STAGED_BYTES = 256
const COPIED_BYTES = GROUPS * COPIES * COPY_BYTES
const ALLOCATION_BYTES = COPIES * COPY_BYTES + STAGED * STAGED_BYTES
const LIMIT_MS = 500
const ENGINE = 'rehearsal'
const LAYOUT = 'rehearsal'

/**
 * Small direct updates into memory of this process. Blocks.
 *
 * @returns how many ran
 * @throws CkptError of what one has failed
 */
export function rehearseDirect({ host, signal, stopped, address, runs }: Rehearsals): number {
  const { library } = host
  using stack = new DisposableStack()
  const buffer = library.bufferAlloc(COPIED_BYTES, 0)
  stack.defer(() => library.bufferFree(buffer))
  const plans = new MadeUpPlans()
  stack.defer(() => plans.free(library))
  for (let run = 0; run < runs; run++) {
    if (stopped()) return run
    if (!new DirectRehearsal(host, signal, stopped).run(plans, buffer, address)) return run
  }
  return runs
}

/** One of them. Its worker speaks as `ckpt_worker/direct.py` does. */
class DirectRehearsal extends RehearsedHost {
  /** See {@link RehearsedHost.play}. */
  run(plans: DirectPlans, buffer: Handle, address: string): boolean {
    const progress = new SharedArrayBuffer(PROGRESS_BYTES)
    const own = { progress, signal: this.signal, board: new SharedArrayBuffer(BOARD_BYTES) }
    const options = {
      run: NO_RUN,
      layoutKey: LAYOUT,
      ranks: [0],
      member: 0,
      peers: [own],
      address,
      http: false,
      engine: ENGINE,
      prepares: false,
      away: [false],
      buffers: [Uint32Array.of(buffer)],
      remotes: [null],
      readings: [null],
      openMs: LIMIT_MS,
      deadlineMs: clockMs() + LIMIT_MS,
      progress,
    }
    return this.play(() => new DirectRun(this, options, plans), address)
  }

  protected work(worker: ZmqSocket): void {
    const body = worker.recv()?.at(-1)
    if (body === undefined) return
    const frame = unpackFrame(body)
    if (frame === null) throw new Error('the run says what is no message')
    const { type, map } = frame.head as { type: string; map?: unknown }
    worker.send([type === 'look' ? looked(map) : DONE])
    if (type === 'end') this.leave()
  }

  protected heard({ type }: RankEvent): void {
    if (type === 'looked') this.say({ type: 'announce', run: NO_RUN })
    if (type === 'begun') this.say({ type: 'copy', run: NO_RUN, fetch: null, shares: false })
    if (type === 'transferred') this.say({ type: 'release', run: NO_RUN })
  }
}

const DONE = packFrame({ ok: true })
/** Of a map nothing but the allocations is looked at: what is copied is made up. */
const MAP = encodePlacementMap([], Array(GROUPS).fill(ALLOCATION_BYTES), [])
const DIGEST = new Bun.CryptoHasher('sha256').update(MAP).digest('hex')
const GENERATION = 'rehearsal'

function looked(known: unknown): Uint8Array {
  const handles = Array(GROUPS).fill('')
  const head = { ok: true, generation: GENERATION, handles, map: DIGEST }
  return packFrame(head, known === DIGEST ? new Uint8Array(0) : MAP)
}

/** Of an engine whose memory is this process's, each time anew. */
class MadeUpPlans extends DirectPlans {
  constructor() {
    super()
    const bytes = Float64Array.of(COPIED_BYTES)
    this.keep(LAYOUT, {
      table: buildTable([]),
      sources: [{ starts: Float64Array.of(0), bytes }],
    })
  }

  override plan(): DirectPlan {
    return PLAN
  }

  override engineMemory(
    library: Library,
    device: number,
    { allocations }: KnownMemory,
  ): EngineMemory {
    return new OwnMemory(library, device, allocations)
  }
}

const PLAN = madeUpPlan()

/** Each group in an allocation of its own; every other copy is of rows. */
function madeUpPlan(): DirectPlan {
  const copies = Array.from({ length: GROUPS * COPIES }, (_, i): DirectCopy => {
    const [width, height] = i % 2 === 0 ? [COPY_BYTES, 1] : [COPY_BYTES / 8, 4]
    const pitch = height === 1 ? width : 2 * width
    const from = { owner: 0, source: i * COPY_BYTES, sourcePitch: pitch }
    const destination = (i % COPIES) * COPY_BYTES
    const allocation = Math.floor(i / COPIES)
    return { ...from, allocation, destination, destinationPitch: pitch, width, height }
  })
  const pieces = Array.from({ length: STAGED }, (_, i) => {
    const from = { owner: 0, source: i * COPY_BYTES, sourcePitch: STAGED_BYTES }
    return { ...from, offset: i * STAGED_BYTES, width: STAGED_BYTES, height: 1 }
  })
  const bytes = STAGED * STAGED_BYTES
  const gathered = { offset: 0, allocation: 0, destination: COPIES * COPY_BYTES, bytes }
  return {
    copies,
    groups: Array.from({ length: GROUPS + 1 }, (_, group) => group * COPIES),
    staging: { bytes, pieces, copies: [gathered] },
    fetched: [],
    bytes: copies.reduce((sum, { width, height }) => sum + width * height, bytes),
  }
}
