import { join } from 'node:path'
import { createInterface } from 'node:readline'
import { Readable } from 'node:stream'
import type { Stage } from '@ckpt/core/update/simulate'
import type { PlainSeconds, PlainSizes, PlainTask } from './plain-stages.ts'
import { WAIT_MS } from './streams.ts'

const PROGRAM = join(import.meta.dir, 'plain-stages.ts')
/** A process that waits once for each of three stages gives up before, and says in its own words why. */
const ANSWER_MS = 4 * WAIT_MS

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

/** One of these processes. It is asked one task at a time. */
export class PlainChild {
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

  /** @throws Error when it has ended, or has not answered after `limitMs`: then it is killed */
  async ask(task: PlainTask, limitMs = ANSWER_MS): Promise<unknown> {
    const late = Promise.withResolvers<never>()
    const timer = setTimeout(() => {
      // its answer would pass for that to the next task, and its end is waited for
      this.#child.kill('SIGKILL')
      late.reject(new Error(`${wordsOf(task)}: no answer of a process in ${limitMs / 1000} s`))
    }, limitMs)
    try {
      return await Promise.race([this.#answerTo(task), late.promise])
    } finally {
      clearTimeout(timer)
    }
  }

  async #answerTo(task: PlainTask): Promise<unknown> {
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

function wordsOf(task: PlainTask): string {
  if (task.type === 'id') return `an id for ${task.members} members`
  if (task.type === 'meet') return `member ${task.member} of ${task.members} is to meet the others`
  return `plain stages of ${JSON.stringify(task.stages)}`
}
