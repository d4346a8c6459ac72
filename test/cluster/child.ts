import { existsSync } from 'node:fs'
import { until } from '../support/until.ts'

const READY_MS = 30_000

/** A process of the program that a case kills, stops and starts again, always with the same command. */
export class Child {
  readonly name: string
  readonly #command: readonly string[]
  readonly #env: Readonly<Record<string, string>>
  #process: ReturnType<typeof spawn> | null = null
  #output = ''
  /** Of every process that was started with this command. */
  readonly pids: number[] = []

  constructor(name: string, command: readonly string[], env: Record<string, string> = {}) {
    this.name = name
    this.#command = command
    this.#env = env
  }

  /** Until a line of its output says that it is ready. @throws Error with its output when it is not within 30 seconds */
  async start(): Promise<void> {
    const child = spawn(this.#command, this.#env)
    this.#process = child
    this.pids.push(child.pid)
    const from = this.#output.length
    void this.#collect(child.stdout)
    void this.#collect(child.stderr)
    const isReady = () => {
      if (child.exitCode !== null || child.signalCode !== null) throw new Error('it has ended')
      return this.#output.includes('ready at', from)
    }
    await until(`${this.name} to be ready`, READY_MS, isReady).catch((error: Error) => {
      throw new Error(`${error.message}:\n${this.#output.slice(from)}`)
    })
  }

  async #collect(stream: ReadableStream<Uint8Array>): Promise<void> {
    const decoder = new TextDecoder()
    for await (const chunk of stream) this.#output += decoder.decode(chunk, { stream: true })
  }

  get #running() {
    if (this.#process === null) throw new Error(`${this.name} was not started`)
    return this.#process
  }

  get pid(): number {
    return this.#running.pid
  }

  get alive(): boolean {
    const child = this.#process
    return child !== null && child.exitCode === null && child.signalCode === null
  }

  /** All that it has said, whichever process of it. */
  get output(): string {
    return this.#output
  }

  signal(signal: NodeJS.Signals): void {
    process.kill(this.pid, signal)
  }

  async kill(): Promise<void> {
    this.#running.kill('SIGKILL')
    await this.#running.exited
  }

  /** As a user does. Returns its exit status; null: it had to be killed after `limitMs`. */
  async end(limitMs: number): Promise<number | null> {
    if (!this.alive) return this.#running.exitCode
    // one that a case left stopped would not hear of it
    this.signal('SIGCONT')
    this.signal('SIGTERM')
    const late = Bun.sleep(limitMs).then(() => null)
    const status = await Promise.race([this.#running.exited, late])
    if (status === null) await this.kill()
    return status
  }

  /** Pids of those of its processes that have ended, whose shared memory must go. */
  get deadPids(): number[] {
    return this.pids.filter((pid) => !existsSync(`/proc/${pid}`))
  }
}

function spawn(command: readonly string[], env: Readonly<Record<string, string>>) {
  return Bun.spawn([...command], {
    stdin: 'ignore',
    stdout: 'pipe',
    stderr: 'pipe',
    env: { ...process.env, NO_COLOR: '1', ...env },
  })
}
