import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { Readable } from 'node:stream'
import type { Stage } from '@ckpt/core/update/simulate'
import type { PlainSeconds, PlainSizes, PlainTask } from './plain-stages.ts'

const PROGRAM = join(import.meta.dir, 'plain-stages.ts')

/** So many processes, one for each daemon of a cluster, that do the work of an update's stages and nothing else. */
export class PlainCluster {
  readonly #children: readonly PlainChild[]

  private constructor(children: readonly PlainChild[]) {
    this.#children = children
  }

  /** They have met when it returns, and end with `stack`. */
  static async start(
    stack: AsyncDisposableStack,
    devices: string,
    members: number,
    env: Readonly<Record<string, string>>,
  ): Promise<PlainCluster> {
    const children = Array.from({ length: members }, () => new PlainChild(devices, env))
    stack.defer(async () => void (await Promise.all(children.map((child) => child.end()))))
    const id = (await children[0]?.ask({ type: 'id', members })) as string
    const meeting = children.map((child, member) =>
      child.ask({ type: 'meet', id, members, member }),
    )
    await Promise.all(meeting)
    return new PlainCluster(children)
  }

  /** All at once; of each stage the seconds of the process that took longest. */
  async run(stages: PlainSizes): Promise<PlainSeconds> {
    const all = await Promise.all(
      this.#children.map(
        async (child) => (await child.ask({ type: 'run', stages })) as PlainSeconds,
      ),
    )
    const most = (stage: Stage) => Math.max(...all.map((seconds) => seconds[stage]))
    return { h2d: most('h2d'), broadcast: most('broadcast'), reload: most('reload') }
  }
}

class PlainChild {
  readonly #child: Bun.Subprocess<'pipe', 'pipe', 'inherit'>
  readonly #answers: AsyncIterator<string>

  constructor(devices: string, env: Readonly<Record<string, string>>) {
    this.#child = Bun.spawn([process.execPath, PROGRAM, devices], {
      env: { ...process.env, ...env },
      stdin: 'pipe',
      stdout: 'pipe',
      stderr: 'inherit',
    })
    const input = Readable.fromWeb(this.#child.stdout as never)
    this.#answers = createInterface({ input })[Symbol.asyncIterator]()
  }

  async ask(task: PlainTask): Promise<unknown> {
    this.#child.stdin.write(`${JSON.stringify(task)}\n`)
    await this.#child.stdin.flush()
    const { value, done } = await this.#answers.next()
    if (done === true) throw new Error('a process with plain stages has ended')
    return JSON.parse(value)
  }

  async end(): Promise<void> {
    await this.#child.stdin.end()
    await this.#child.exited
  }
}
