import { CkptError, type Dialect } from '@ckpt/core'
import type { Script } from '@ckpt/core/engine/testing/scripted-worker'
import type { EngineAnswer, EngineCall, EngineHost } from '../../engines/host.ts'
import { EngineWorker, type WorkerPlace } from './engine-worker.ts'
import type { Random } from './random.ts'
import { Life, type SimulatedTime } from './time.ts'

/** What a worker of an engine does in its next update. */
export type WorkerScript = Omit<Script, 'dialect'>

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
  readonly dialect: Dialect
  /** What each worker does in the next update. */
  scripts: readonly WorkerScript[]
  paused = false
  /** Of its workers in the last update. */
  readonly addresses = new Set<string>()
  /** It has ended, or a connection of it, since the last update began: what it was sent then nobody knows. */
  ended = false
  /** Lists that its workers were sent in the last update. */
  listsSent = 0
  readonly #place: WorkerPlace
  readonly #random: Random
  readonly #number: number
  #life = new Life()
  #starts = 0
  #downUntilMs = 0
  readonly #workers: (EngineWorker | null)[]
  #calls = new Set<Call>()
  /** Its own collective RPC may get out of step. */
  readonly #isVllm: boolean

  constructor(
    number: number,
    keys: readonly (readonly string[])[],
    dialect: Dialect,
    isVllm: boolean,
    place: WorkerPlace,
    random: Random,
  ) {
    this.#number = number
    this.url = `http://127.0.0.1:${20_000 + number}`
    this.keys = keys
    this.dialect = dialect
    this.#isVllm = isVllm
    this.#place = place
    this.#random = random
    this.#workers = keys.map(() => null)
    this.scripts = keys.map(() => ({ runMs: 1, postMs: 1 }))
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

  get workers(): readonly EngineWorker[] {
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
    for (const call of this.#calls) call.fail(new CkptError('engine_unreachable', 'ECONNRESET'))
    this.#calls.clear()
    this.#life = new Life()
    this.#starts++
    this.paused = false
    this.#downUntilMs = this.#time.nowMs + RESTART_MS
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
    if (signal.aborted) give()
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
        const { args } = JSON.parse(body ?? '{}') as { args: [Record<string, string>] }
        return this.#update(args[0], call)
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
        if (this.#isVllm) return call.answer({ status: 200, text: '{"version":"1"}' })
        return call.answer({ status: 404, text: '' })
      default:
        return call.answer({ status: 404, text: '' })
    }
  }

  #update(map: Record<string, string>, call: Call): void {
    const errors: (string | null)[] = []
    this.addresses.clear()
    const left = (error: string | null) => {
      errors.push(error)
      // the first one that fails is answered for; the others may be at it still
      if (error === DIED && this.#random.chance(0.5)) return this.restart()
      if (error !== null) return call.answer({ status: ERROR, text: error })
      if (errors.length < this.keys.length) return
      call.answer({ status: 200, text: JSON.stringify({ results: errors }) })
    }
    for (const [i, keys] of this.keys.entries()) {
      const address = keys.map((key) => map[key]).find((one) => one !== undefined && one !== '')
      const script = { ...(this.scripts[i] as WorkerScript), dialect: this.dialect }
      if (address === undefined) left('KeyError: no address of this device')
      else {
        this.addresses.add(address)
        this.#startWorker(i, address, script, left)
      }
    }
  }

  /** A worker takes one update after another. */
  #startWorker(
    index: number,
    address: string,
    script: Script,
    left: (error: string | null) => void,
  ): void {
    const worker = new EngineWorker(this.#place, address, script, this.#life, left)
    const before = this.#workers[index]
    this.#workers[index] = worker
    const life = this.#life
    const delayMs = this.#random.between(0, CONNECT_MS)
    const come = () => void this.#time.after(delayMs, () => worker.connect(), life)
    if (before == null) come()
    else before.whenOver(come)
  }
}

const DIED = 'the process died'
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
