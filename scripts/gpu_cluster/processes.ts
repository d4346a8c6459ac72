/** Daemons and engines as processes of their own, which one call ends whatever they do. */
import { mkdirSync, readdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import type { EngineTarget, EngineWeights } from '@ckpt/core'
import { DaemonClient, daemonAddress } from '../../packages/server/src/cli/client.ts'
import { Child } from '../../test/cluster/child.ts'
import { until } from '../../test/support/until.ts'
import { CKPT } from '../../test/support/process.ts'
import { killAtExit } from './leftovers.ts'

/** After SIGTERM, and for a process that was killed to be gone. */
const END_MS = 10_000
const HOLD_MS = 20_000
const TAIL_LINES = 15

export interface DaemonPlace {
  readonly dir: string
  readonly nodeRank: number
  readonly ranks: number
  readonly devices: string
  /** `HOST:PORT`. */
  readonly leader: string
  readonly tokenFile: string
  readonly flags: readonly string[]
  readonly env: Record<string, string>
}

export class Daemon {
  readonly child: Child
  readonly client: DaemonClient
  readonly nodeRank: number

  constructor(place: DaemonPlace) {
    const { dir, nodeRank, ranks, devices, leader, tokenFile, flags, env } = place
    mkdirSync(dir, { recursive: true, mode: 0o700 })
    const socket = join(dir, 'ckpt.sock')
    const where = ['--uds', socket, '--state-dir', join(dir, 'state')]
    const what = ['--devices', devices, '--ranks', `${ranks}`, ...flags]
    const among = ['--leader', leader, '--node-rank', `${nodeRank}`, '--nodes', '2']
    const command = [...CKPT, 'serve', ...where, ...what, ...among]
    this.nodeRank = nodeRank
    this.child = new Child(`node ${nodeRank}`, [...command, '--cluster-token-file', tokenFile], env)
    this.client = new DaemonClient(daemonAddress(socket))
  }
}

/** A reference engine. It listens at a Unix socket. */
export class Engine {
  readonly child: Child
  readonly socket: string
  readonly ranks: readonly number[]

  /**
   * @param ranks that update it
   * @param flags of its own
   */
  constructor(
    name: string,
    socket: string,
    devices: string,
    ranks: readonly number[],
    flags: readonly string[] = [],
  ) {
    this.socket = socket
    this.ranks = ranks
    const where = ['--listen', `unix:${socket}`, '--devices', devices]
    const size = ['--tensor-parallel-size', `${ranks.length}`]
    this.child = new Child(name, [...CKPT, 'engine', ...where, ...size, ...flags])
  }

  get target(): EngineTarget {
    const [first] = this.ranks
    const url = `http://engine-${first}/collective_rpc`
    return { url, uds: this.socket, ranks: [...this.ranks], engine: 'vllm' }
  }

  async #ask(path: string, body?: unknown): Promise<Response> {
    const init: Record<string, unknown> = { unix: this.socket, keepalive: false, timeout: false }
    if (body !== undefined) Object.assign(init, { method: 'POST', body: JSON.stringify(body) })
    const answer = await fetch(`http://engine${path}`, init as RequestInit)
    if (!answer.ok) throw new Error(`${this.child.name}: ${path} answers ${answer.status}`)
    return answer
  }

  /** Answers when none of its workers is in an update. */
  async weights(): Promise<EngineWeights> {
    return (await (await this.#ask('/v1/weights')).json()) as EngineWeights
  }

  /** What it does wrong from now on; what it holds goes on. */
  async arm(...faults: string[]): Promise<void> {
    await this.#ask('/v1/faults', { faults })
  }

  /** Until a fault holds it. */
  async holds(): Promise<void> {
    await until(`${this.child.name} to hold`, HOLD_MS, async () => {
      const answer = await this.#ask('/v1/faults')
      return ((await answer.json()) as { holding: boolean }).holding
    })
  }
}

/** Of each its name and state (`R`: runs, `D`: in the kernel), by `proc(5)`. */
function busyThreadsOf({ name, pid }: Child): string[] {
  try {
    return readdirSync(`/proc/${pid}/task`).flatMap((thread) => {
      const stat = readFileSync(`/proc/${pid}/task/${thread}/stat`, 'utf8')
      const [, thing, state] = /\((.*)\) (\S)/.exec(stat) ?? []
      return state === 'R' || state === 'D' ? [`${name}: thread '${thing}' is in ${state}`] : []
    })
  } catch {
    return [] // it has ended meanwhile
  }
}

/** Everything that one layout has started. */
export class Processes {
  readonly #children: Child[] = []
  /** Commands that end by themselves. */
  readonly #commands = new Set<ReturnType<typeof Bun.spawn>>()
  #ended = false

  async start(...children: readonly Child[]): Promise<void> {
    if (this.#ended) throw new Error('it was given up')
    this.#children.push(...children.filter((child) => !this.#children.includes(child)))
    for (const child of children) killAtExit(child)
    await Promise.all(children.map((child) => child.start()))
  }

  /** What a command writes to stdout. @throws Error with all that it has written, when it fails */
  async run(command: readonly string[], env: Record<string, string>): Promise<string> {
    if (this.#ended) throw new Error('it was given up')
    const child = Bun.spawn([...command], {
      stdin: 'ignore',
      stdout: 'pipe',
      stderr: 'pipe',
      env: { ...process.env, NO_COLOR: '1', ...env },
    })
    this.#commands.add(child)
    killAtExit({
      pids: [child.pid],
      get alive() {
        return child.exitCode === null && child.signalCode === null
      },
    })
    const texts = [child.stdout, child.stderr].map((stream) => new Response(stream).text())
    const [stdout, stderr] = await Promise.all(texts)
    const status = await child.exited
    this.#commands.delete(child)
    if (status === 0) return stdout as string
    throw new Error(`it ended with status ${status}: ${stdout}${stderr}`)
  }

  /** The last lines of each. */
  tails(): string[] {
    return this.#children.flatMap(({ name, output, alive }) => {
      const lines = output.trimEnd().split('\n').slice(-TAIL_LINES)
      return [`${name}${alive ? '' : ' (ended)'}:`, ...lines.map((line) => `  ${line}`)]
    })
  }

  /** Threads that run, or wait where nothing interrupts them: what a process that hangs is busy with. */
  busyThreads(): string[] {
    return this.#children.flatMap((child) => (child.alive ? busyThreadsOf(child) : []))
  }

  /** As a user does. @throws Error with those that had to be killed, or ended with a failure */
  async end(): Promise<void> {
    this.#ended = true
    const ended = await Promise.all(
      this.#children.map(async (child) => {
        const status = await child.end(END_MS)
        if (status === 0) return []
        return [`${child.name} ${status === null ? 'had to be killed' : `ended with ${status}`}`]
      }),
    )
    if (ended.flat().length > 0) throw new Error(`after SIGTERM: ${ended.flat().join(', ')}`)
  }

  /** By `kill -9`, at once. */
  async kill(): Promise<void> {
    this.#ended = true
    for (const command of this.#commands) command.kill('SIGKILL')
    const alive = this.#children.filter((child) => child.alive)
    await Promise.race([Promise.all(alive.map((child) => child.kill())), Bun.sleep(END_MS)])
  }
}
