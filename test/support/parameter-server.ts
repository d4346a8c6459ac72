/** checkpoint-engine's own ParameterServer in a process of its own: `test/python/parameter_server.py`. */
import { join } from 'node:path'
import { freePort } from '../../packages/server/src/daemon/cluster/testing/free-port.ts'
import { ROOT } from './process.ts'

const SCRIPT = join(ROOT, 'test/python/parameter_server.py')
const READY_MS = 60_000
const STOP_MS = 10_000

export interface ServerJob {
  /** `…/collective_rpc` of the engine. */
  readonly url: string
  readonly files: readonly string[]
  /** Seconds. */
  readonly timeout: number
}

export interface ServerAnswer {
  readonly ok: boolean
  readonly error?: string
  /** What went to the engine's worker, in hexadecimal. */
  readonly messages: readonly string[]
  /** Buffers that were shared and that the worker has not given back; null: on a GPU, where torch counts. */
  readonly held: number | null
  /** That it still has allocated on a GPU. */
  readonly device_bytes: number
}

export class ParameterServer {
  readonly #child: Bun.Subprocess<'pipe', 'pipe', 'pipe'>
  readonly #lines: AsyncIterator<string>
  #log = ''

  private constructor(child: Bun.Subprocess<'pipe', 'pipe', 'pipe'>) {
    this.#child = child
    this.#lines = linesOf(child.stdout)
    void this.#collect(child.stderr)
  }

  /**
   * @param env settings of checkpoint-engine, such as `PS_MAX_BUCKET_SIZE_GB`
   * @param uuid of the device of `shm`, as its engine names it
   */
  static async start(
    python: string,
    device: 'shm' | 'cuda',
    { uuid, env }: { readonly uuid?: string; readonly env?: Record<string, string> } = {},
  ): Promise<ParameterServer> {
    const command = [python, SCRIPT, '--device', device, '--port', String(freePort())]
    if (uuid !== undefined) command.push('--uuid', uuid)
    const child = Bun.spawn(command, {
      stdin: 'pipe',
      stdout: 'pipe',
      stderr: 'pipe',
      env: { ...process.env, LOGURU_DIAGNOSE: 'NO', ...env },
    })
    const server = new ParameterServer(child)
    const line = await server.#line(READY_MS)
    if (line !== 'ready') throw await server.#broken(`it says ${line}`)
    return server
  }

  /** One update; its failure is in the answer. */
  async update(job: ServerJob): Promise<ServerAnswer> {
    this.#child.stdin.write(`${JSON.stringify(job)}\n`)
    await this.#child.stdin.flush()
    const line = await this.#line((job.timeout + 30) * 1000)
    if (line === null) throw await this.#broken('it has not answered')
    return JSON.parse(line)
  }

  async stop(): Promise<void> {
    this.#child.stdin.end()
    const timer = setTimeout(() => this.#child.kill('SIGKILL'), STOP_MS)
    await this.#child.exited
    clearTimeout(timer)
  }

  /** Null: none came in time, or it has ended. */
  async #line(timeoutMs: number): Promise<string | null> {
    const { promise: late, resolve } = Promise.withResolvers<null>()
    const timer = setTimeout(() => resolve(null), timeoutMs)
    const next = this.#lines.next().then(({ done, value }) => (done === true ? null : value))
    try {
      return await Promise.race([next, late])
    } finally {
      // else a script does not end before it
      clearTimeout(timer)
    }
  }

  async #broken(what: string): Promise<Error> {
    await this.stop()
    return new Error(`the ParameterServer: ${what}\n${this.#log}`)
  }

  async #collect(stream: ReadableStream<Uint8Array>): Promise<void> {
    const decoder = new TextDecoder()
    for await (const chunk of stream) this.#log += decoder.decode(chunk, { stream: true })
  }
}

async function* linesOf(stream: ReadableStream<Uint8Array>): AsyncGenerator<string> {
  const decoder = new TextDecoder()
  let rest = ''
  for await (const chunk of stream) {
    const lines = (rest + decoder.decode(chunk, { stream: true })).split('\n')
    rest = lines.pop() ?? ''
    yield* lines
  }
}
