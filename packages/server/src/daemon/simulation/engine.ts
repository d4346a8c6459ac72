import { CkptError, type Dialect } from '@ckpt/core'
import type { Script } from '@ckpt/core/engine/testing/scripted-worker'
import type { EngineAnswer, EngineCall, EngineHost } from '../../engines/host.ts'
import { DIED, type DirectFault, DirectWorker } from './direct-worker.ts'
import { EngineWorker, type WorkerPlace } from './engine-worker.ts'
import { Parameters } from './parameters.ts'
import type { Random } from './random.ts'
import { Life, type SimulatedTime } from './time.ts'

/** What a worker of an engine does in its next update. */
export type WorkerScript = Omit<Script, 'dialect'> & { readonly direct?: DirectFault }

/** What an engine is. */
export interface EngineKind {
  readonly dialect: Dialect
  /** Its own collective RPC may get out of step. */
  readonly isVllm: boolean
  /**
   * Whether its workers are of `ckpt_worker`, which tell where their weights lie: each has all of them, or a slice of each tensor.
   * Null: they are checkpoint-engine's.
   */
  readonly direct: 'replicas' | 'slices' | null
  /** Of these: whether weights that are torn may be written directly. */
  readonly directHeals: boolean
}

/** How an engine answers when one of its workers has failed. */
const ERROR = 500
const CONNECT_MS = 30
const RESTART_MS = 150

interface Call {
  readonly answer: (answer: EngineAnswer) => void
  readonly fail: (error: CkptError) => void
}

/** One engine: its HTTP server and its workers, in their own processes. */
export class SimulatedEngine {
  readonly url: string
  /** In the order of its workers: as the daemon's maps name them. */
  readonly keys: readonly (readonly string[])[]
  /** What each worker does in the next update. */
  scripts: readonly WorkerScript[]
  paused = false
  /** Of its workers in the last update. */
  readonly addresses = new Set<string>()
  /** It has ended, or a connection of it, since the last update began: what it was sent then nobody knows. */
  ended = false
  /** Lists that its workers were sent in the last update. */
  listsSent = 0
  /** Of the same: how often they were told to hold still. */
  beginsSent = 0
  readonly #place: WorkerPlace
  readonly #random: Random
  readonly #number: number
  #life = new Life()
  #starts = 0
  #downUntilMs = 0
  readonly #workers: (EngineWorker | DirectWorker | null)[]
  #calls = new Set<Call>()
  readonly #kind: EngineKind
  /** Of each worker; null: see {@link EngineKind}. */
  readonly #parameters: Parameters[] | null

  constructor(
    number: number,
    keys: readonly (readonly string[])[],
    kind: EngineKind,
    place: WorkerPlace,
    random: Random,
  ) {
    this.#number = number
    this.url = `http://127.0.0.1:${20_000 + number}`
    this.keys = keys
    this.#kind = kind
    this.#place = place
    this.#parameters = kind.direct === null ? null : keys.map((_, i) => this.#fresh(i))
    this.#random = random
    this.#workers = keys.map(() => null)
    this.scripts = keys.map(() => ({ runMs: 1, postMs: 1 }))
  }

  /** Of a process that has just begun. */
  #fresh(index: number): Parameters {
    const { of, index: part } =
      this.#kind.direct === 'slices' ? { of: this.keys.length, index } : { of: 1, index: 0 }
    const name = `worker ${index} of ${this.url}`
    const { devices } = this.#place
    return new Parameters(devices, name, { of, index: part }, this.#kind.directHeals)
  }

  /** Of its workers; null: they do not tell where they are. */
  get parameters(): readonly Parameters[] | null {
    return this.#parameters
  }

  get #time(): SimulatedTime {
    return this.#place.time
  }

  get isDown(): boolean {
    return this.#time.nowMs < this.#downUntilMs
  }

  /** Whether a worker of it waits for ever, or still holds a ring. */
  get isStuck(): boolean {
    return this.#calls.size > 0 || this.#workers.some((worker) => worker !== null && !worker.over)
  }

  get workers(): readonly (EngineWorker | DirectWorker)[] {
    return this.#workers.flatMap((worker) => worker ?? [])
  }

  /** What tells this start of it from others. */
  get listener(): string | null {
    return this.isDown ? null : `${1000 * (this.#number + 1) + this.#starts}`
  }

  /** Its processes end, and others take their place. */
  restart(): void {
    this.#life.end()
    this.ended = true
    for (const worker of this.#workers) worker?.die()
    this.#workers.fill(null)
    this.#parameters?.forEach((_, index) => this.#renew(index))
    for (const call of this.#calls) call.fail(new CkptError('engine_unreachable', 'ECONNRESET'))
    this.#calls.clear()
    this.#life = new Life()
    this.#starts++
    this.paused = false
    this.#downUntilMs = this.#time.nowMs + RESTART_MS
  }

  /** A worker's process has ended, and another one takes its place. */
  #renew(index: number): void {
    const parameters = this.#parameters
    if (parameters === null) return
    parameters[index]?.die()
    parameters[index] = this.#fresh(index)
  }

  call(call: EngineCall, signal: AbortSignal): Promise<EngineAnswer> {
    const { promise, resolve, reject } = Promise.withResolvers<EngineAnswer>()
    const caller = this.#time.life
    const back = (run: () => void) => this.#time.after(this.#place.wires.delay(), run, caller)
    const open: Call = {
      answer: (answer) => {
        if (!this.#calls.delete(open)) return
        this.#place.witness.trace(() => `${call.url} answers ${answer.status} ${answer.text}`)
        back(() => resolve(answer))
      },
      fail: (error) => void (this.#calls.delete(open) && back(() => reject(error))),
    }
    this.#calls.add(open)
    const give = () => {
      this.#calls.delete(open)
      reject(CkptError.wrap(signal.reason))
    }
    if (signal.aborted) {
      give()
      return promise
    }
    signal.addEventListener('abort', give, { once: true })
    const life = new Life()
    const come = () => (this.isDown ? open.fail(REFUSED) : this.#take(call, open))
    this.#time.after(this.#place.wires.delay(), come, life)
    return promise.finally(() => signal.removeEventListener('abort', give))
  }

  #take({ url, body }: EngineCall, call: Call): void {
    const { pathname } = new URL(url)
    switch (pathname) {
      case '/collective_rpc': {
        const { method, args } = JSON.parse(body ?? '{}') as {
          method: string
          args: [Record<string, string>]
        }
        return this.#update(args[0], method === 'ckpt_direct', call)
      }
      case '/health':
        return call.answer({ status: 200, text: '' })
      case '/is_paused':
        return call.answer({ status: 200, text: JSON.stringify({ is_paused: this.paused }) })
      case '/pause':
      case '/resume':
        this.paused = pathname === '/pause'
        return call.answer({ status: 200, text: '{}' })
      case '/version':
        if (this.#kind.isVllm) return call.answer({ status: 200, text: '{"version":"1"}' })
        return call.answer({ status: 404, text: '' })
      default:
        return call.answer({ status: 404, text: '' })
    }
  }

  #update(map: Record<string, string>, direct: boolean, call: Call): void {
    if (direct && this.#parameters === null) {
      return call.answer({ status: ERROR, text: 'AttributeError: ckpt_direct' })
    }
    const errors = new Map<number, string | null>()
    this.addresses.clear()
    const left = (index: number, error: string | null) => {
      errors.set(index, error)
      if (error === DIED) this.#renew(index)
      // the first one that fails is answered for; the others may be at it still
      if (error === DIED && this.#random.chance(0.5)) return this.restart()
      const raises = this.#parameters === null || error === DIED
      if (error !== null && raises) return call.answer({ status: ERROR, text: error })
      if (errors.size < this.keys.length) return
      call.answer({ status: 200, text: JSON.stringify({ results: this.#results(errors, direct) }) })
    }
    for (const [i, keys] of this.keys.entries()) {
      const address = keys.map((key) => map[key]).find((one) => one !== undefined && one !== '')
      if (address === undefined) left(i, 'KeyError: no address of this device')
      else {
        this.addresses.add(address)
        this.#startWorker(i, address, direct, (error) => left(i, error))
      }
    }
  }

  /** Our own workers do not raise, but say how it went. */
  #results(errors: ReadonlyMap<number, string | null>, direct: boolean): unknown[] {
    const parameters = this.#parameters
    if (parameters === null) return [...errors.values()]
    return parameters.map(({ torn, notPlaced }, i) => {
      const error = errors.get(i) ?? null
      const common = { ok: error === null, error, torn }
      if (direct) return common
      return { ...common, not_direct: torn ? 'the last update has failed half way' : notPlaced }
    })
  }

  /** A worker takes one update after another. */
  #startWorker(
    index: number,
    address: string,
    direct: boolean,
    left: (error: string | null) => void,
  ): void {
    const worker = this.#worker(index, address, direct, left)
    const before = this.#workers[index]
    this.#workers[index] = worker
    const life = this.#life
    const delayMs = this.#random.between(0, CONNECT_MS)
    const come = () => void this.#time.after(delayMs, () => worker.connect(), life)
    if (before == null) come()
    else before.whenOver(come)
  }

  #worker(
    index: number,
    address: string,
    direct: boolean,
    left: (error: string | null) => void,
  ): EngineWorker | DirectWorker {
    const own = this.scripts[index] as WorkerScript
    const all = this.#parameters
    const life = this.#life
    const place = this.#place
    if (direct && all !== null) {
      return new DirectWorker(place, address, own, () => all[index] as Parameters, life, left)
    }
    const { dialect } = this.#kind
    const script = { ...own, dialect }
    return new EngineWorker(place, address, script, life, left, () => all?.[index] ?? null)
  }
}

const REFUSED = new CkptError('engine_unreachable', 'ECONNREFUSED')

/** The host that these engines run on. */
export function engineHost(engines: () => readonly SimulatedEngine[]): EngineHost {
  const at = (url: string) => engines().find((engine) => url.startsWith(engine.url))
  return {
    async call(call, signal) {
      const engine = at(call.url)
      if (engine === undefined) throw REFUSED
      return engine.call(call, signal)
    },
    listener: async ({ url }) => at(url)?.listener ?? null,
  }
}
