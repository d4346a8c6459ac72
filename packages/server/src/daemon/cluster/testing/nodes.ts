import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { ClusterOptions } from '../cluster.ts'
import type { Command, Line } from './node-program.ts'

/** Short, but a busy machine with few processors keeps within them. */
export const TIMES = { heartbeatMs: 100, lostMs: 1500 }
const WAIT_MS = 20_000

type LineOf<T extends Line['type']> = Extract<Line, { readonly type: T }>

/** A daemon of a cluster as a process of its own. */
export class NodeProcess {
  readonly #child: Bun.Subprocess<'pipe', 'pipe', 'inherit'>
  readonly #lines: Line[] = []
  #changed = Promise.withResolvers<void>()
  /** Lines before this one were waited for already. */
  #seen = 0

  constructor(options: ClusterOptions & { readonly host: string }) {
    const program = join(import.meta.dir, 'node-program.ts')
    this.#child = Bun.spawn([process.execPath, program, JSON.stringify(options)], {
      stdin: 'pipe',
      stdout: 'pipe',
      stderr: 'inherit',
    })
    void this.#read()
  }

  get pid(): number {
    return this.#child.pid
  }

  /** Whether the kernel has stopped each of its threads. */
  get stands(): boolean {
    const tasks = readdirSync(`/proc/${this.pid}/task`)
    return tasks.every((task) => {
      const stat = readFileSync(`/proc/${this.pid}/task/${task}/stat`, 'utf8')
      return /\) T /.test(stat)
    })
  }

  async #read(): Promise<void> {
    const decoder = new TextDecoder()
    let rest = ''
    for await (const chunk of this.#child.stdout) {
      const lines = (rest + decoder.decode(chunk, { stream: true })).split('\n')
      rest = lines.pop()!
      this.#lines.push(...lines.map((line) => JSON.parse(line) as Line))
      this.#changed.resolve()
      this.#changed = Promise.withResolvers()
    }
  }

  /** The next line of this type after the last that was waited for. */
  async next<T extends Line['type']>(
    type: T,
    accepts: (line: LineOf<T>) => boolean = () => true,
  ): Promise<LineOf<T>> {
    const endMs = performance.now() + WAIT_MS
    while (performance.now() < endMs) {
      const at = this.#lines.findIndex(
        (line, i) => i >= this.#seen && line.type === type && accepts(line as LineOf<T>),
      )
      if (at >= 0) {
        this.#seen = at + 1
        return this.#lines[at] as LineOf<T>
      }
      await Promise.race([this.#changed.promise, Bun.sleep(100)])
    }
    throw new Error(`no line '${type}' of node process ${this.pid}: ${JSON.stringify(this.#lines)}`)
  }

  /** Every line of this type so far. */
  all<T extends Line['type']>(type: T): LineOf<T>[] {
    return this.#lines.filter((line): line is LineOf<T> => line.type === type)
  }

  tell(command: Command): void {
    this.#child.stdin.write(`${JSON.stringify(command)}\n`)
    this.#child.stdin.flush()
  }

  signal(signal: 'SIGKILL' | 'SIGSTOP' | 'SIGCONT'): void {
    this.#child.kill(signal)
  }

  /** By what it is asked to do, with its exit status. */
  async close(): Promise<number> {
    this.tell({ type: 'close' })
    return this.#child.exited
  }

  async kill(): Promise<void> {
    this.#child.kill('SIGKILL')
    await this.#child.exited
  }
}

/** The processes of one test. */
export class NodeProcesses {
  readonly dir = mkdtempSync(join(tmpdir(), 'ckpt-cluster-'))
  readonly tokenFile = join(this.dir, 'token')
  readonly #started: NodeProcess[] = []

  readonly #nodes: number

  constructor(nodes: number) {
    this.#nodes = nodes
    writeFileSync(this.tokenFile, 'the-token\n', { mode: 0o600 })
  }

  start(nodeRank: number, port: number, more: Partial<ClusterOptions> = {}): NodeProcess {
    const leader = { host: '127.0.0.1', port }
    const { tokenFile } = this
    const options = { nodeRank, nodes: this.#nodes, leader, tokenFile, times: TIMES, ...more }
    const started = new NodeProcess({ ...options, host: `host-${nodeRank}` })
    this.#started.push(started)
    return started
  }

  async end(): Promise<void> {
    await Promise.all(this.#started.map((one) => one.kill()))
    rmSync(this.dir, { recursive: true, force: true })
  }
}

export function portOf(address: string): number {
  return Number(address.split(':').at(-1))
}
