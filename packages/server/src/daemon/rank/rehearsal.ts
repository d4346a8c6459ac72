import { pickleNone } from '@ckpt/core/engine/pickle-writer'
import { type Handle, type ZmqSocket, zmqPoll } from '@ckpt/cuda'
import { clockMs } from '../clock.ts'
import { NO_RUN, PROGRESS_BYTES, PROGRESS_SENT, type RankEvent } from './messages.ts'
import { HeldPlan } from './plans.ts'
import { rehearseDirect } from './rehearse-direct.ts'
import { type RehearsalHost, type Rehearsals, RehearsedHost } from './rehearsed-host.ts'
import { RankRun } from './run.ts'
import { uniformPlan } from './uniform-plan.ts'

/** After so many buckets the runtime has compiled what an update runs: a list then takes a third of the time of the first ones. */
const RUNS = 10
const BUCKETS = 96
const BUCKET_BYTES = 64 * 2 ** 10
/** A third of the buckets: most copies wait for an acknowledgement. */
const RING_BYTES = 2 * 2 ** 20
const LIMIT_MS = 500
const ARRIVE_MS = 5
const SUCCESS = new Uint8Array(0)
const NONE = Buffer.from(pickleNone())

/**
 * Small updates of made-up bytes on this rank's device, through a ring and straight into memory, with a worker in this thread, so
 * that the first real ones find their code compiled. They take some 10 MiB of pinned and device memory for half a second. Blocks.
 *
 * Nothing is left, unless a copy still writes the memory of one that has failed: then that is in quarantine, as {@link NO_RUN}.
 *
 * @param host of the real updates, with the quarantine
 * @param address of an engine socket that nobody else uses
 * @param stopped asked every few milliseconds
 * @returns how many ran; fewer than twenty, ten of each kind, when `stopped`
 * @throws CkptError of what one has failed
 */
export function rehearse(host: RehearsalHost, address: string, stopped: () => boolean): number {
  const { library } = host
  const signal = library.signalCreate()
  try {
    const means = { host, signal, stopped, address, runs: RUNS }
    const runs = rehearseRings(means)
    return runs < RUNS ? runs : runs + rehearseDirect(means)
  } finally {
    library.signalDestroy(signal)
  }
}

/** @returns how many ran */
function rehearseRings({ host, signal, stopped, address, runs }: Rehearsals): number {
  const { library } = host
  using stack = new DisposableStack()
  const buffer = library.bufferAlloc(BUCKETS * BUCKET_BYTES, 0)
  stack.defer(() => library.bufferFree(buffer))
  const held = new HeldPlan(uniformPlan(BUCKETS, BUCKET_BYTES, RING_BYTES))
  held.pickleAll()
  for (let run = 0; run < runs; run++) {
    if (stopped()) return run
    if (!new Rehearsal(host, signal, stopped).run(held, buffer, address)) return run
  }
  return runs
}

/** One through a ring. Its worker speaks D4. */
class Rehearsal extends RehearsedHost {
  readonly #progress = new Int32Array(new SharedArrayBuffer(PROGRESS_BYTES))
  #replies = 0
  #nones = 0

  /** See {@link RehearsedHost.play}. */
  run(held: HeldPlan, buffer: Handle, address: string): boolean {
    const open = () =>
      new RankRun(
        this,
        {
          run: NO_RUN,
          planKey: '',
          ranks: [0],
          member: 0,
          collective: null,
          address,
          http: false,
          engine: null,
          dialect: null,
          buffers: [Uint32Array.of(buffer)],
          remotes: [null],
          readings: [null],
          openMs: LIMIT_MS,
          deadlineMs: clockMs() + LIMIT_MS,
          progress: this.#progress.buffer as SharedArrayBuffer,
        },
        held,
      )
    return this.play(open, address)
  }

  protected work(worker: ZmqSocket): void {
    // a list that was sent is here in some ten microseconds; the handle and the end may take their time
    const lists = Atomics.load(this.#progress, PROGRESS_SENT)
    const owed = lists > this.#replies - 1
    if (!zmqPoll([worker], owed ? ARRIVE_MS : 0)[0]) return
    const body = worker.recv()?.at(-1)
    if (body === undefined) return
    worker.send([SUCCESS])
    this.#replies++
    if (NONE.equals(body) && ++this.#nones === 2) this.leave()
  }

  protected heard({ type }: RankEvent): void {
    if (type === 'transferred') this.say({ type: 'release', run: NO_RUN })
  }
}
