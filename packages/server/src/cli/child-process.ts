import { join } from 'node:path'
import { CkptError, type ErrorBody } from '@ckpt/core'

/** A `ckpt` command that runs beside this one until it is stopped. */
export interface ChildProcess {
  /** What the ready line captured. */
  readonly ready: string
  readonly pid: number
  /** Asks it to end (SIGTERM), and ends it when it does not within five seconds. */
  stop(): Promise<void>
}

const MAIN = join(import.meta.dir, 'main.ts')
const READY_MS = 30_000
const STOP_MS = 5_000
const TAIL_CHARACTERS = 4_000

/**
 * Starts `ckpt ARGS --json`, with these variables beside those of this process, and waits until its stdout matches `ready`, whose first group is captured.
 *
 * @throws CkptError what the process itself reports when it ends, `internal` with its last words when it reports nothing or
 *   does not get ready in time
 */
export async function startCommand(
  args: readonly string[],
  ready: RegExp,
  env: Readonly<Record<string, string>> = {},
): Promise<ChildProcess> {
  const child = Bun.spawn([process.execPath, MAIN, ...args, '--json'], {
    env: { ...process.env, ...env },
    stdin: 'ignore',
    stdout: 'pipe',
    stderr: 'pipe',
  })
  let errors = ''
  const reading = readText(child.stderr, (text) => {
    errors = (errors + text).slice(-TAIL_CHARACTERS)
  })
  const captured = Promise.withResolvers<string>()
  let output = ''
  const listening = readText(child.stdout, (text) => {
    output = (output + text).slice(-TAIL_CHARACTERS)
    const match = output.match(ready)
    if (match !== null) captured.resolve(match[1] ?? match[0])
  })
  const ended = Promise.all([child.exited, reading, listening]).then(([status]) => {
    throw reported(output) ?? failed(args, `ended with status ${status}`, errors)
  })
  ended.catch(() => {})
  const late = Bun.sleep(READY_MS).then(() => {
    throw failed(args, `was not ready within ${READY_MS / 1000} s`, errors)
  })
  late.catch(() => {})
  try {
    const words = await Promise.race([captured.promise, ended, late])
    return { ready: words, pid: child.pid, stop: () => stopProcess(child) }
  } catch (error) {
    await stopProcess(child)
    throw error
  }
}

/** Asks it to end (SIGTERM), and ends it when it does not within `killAfterMs`. */
export async function stopProcess(child: Bun.Subprocess, killAfterMs = STOP_MS): Promise<void> {
  child.kill('SIGTERM')
  const timer = setTimeout(() => child.kill('SIGKILL'), killAfterMs)
  await child.exited
  clearTimeout(timer)
}

/** The error document that a command prints with `--json`. */
function reported(output: string): CkptError | null {
  try {
    return CkptError.from((JSON.parse(output) as ErrorBody).error)
  } catch {
    return null
  }
}

function failed(args: readonly string[], what: string, errors: string): CkptError {
  const words = errors.trim() === '' ? '' : `:\n${errors.trim()}`
  return new CkptError('internal', `\`ckpt ${args.join(' ')}\` ${what}${words}`)
}

async function readText(
  stream: ReadableStream<Uint8Array>,
  onText: (text: string) => void,
): Promise<void> {
  const decoder = new TextDecoder()
  for await (const chunk of stream) onText(decoder.decode(chunk, { stream: true }))
}
