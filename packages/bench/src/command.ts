/** Of what it has printed, in an error. */
const LAST_CHARACTERS = 3000

export interface CommandOptions {
  /** It is killed after this time. */
  readonly timeoutMs: number
  /** Beside this process's own. */
  readonly env?: Readonly<Record<string, string>>
  /** Its stdin; absent: none. */
  readonly input?: string
}

/**
 * Runs a program to its end and returns its stdout.
 *
 * @throws Error with its last words, of stderr if it has any, when it fails or is not done in time
 */
export async function outputOf(
  command: readonly string[],
  { timeoutMs, env = {}, input }: CommandOptions,
): Promise<string> {
  const beginMs = performance.now()
  const child = Bun.spawn([...command], {
    stdin: input === undefined ? 'ignore' : new Blob([input]),
    stdout: 'pipe',
    stderr: 'pipe',
    env: { ...process.env, ...env },
    timeout: timeoutMs,
    killSignal: 'SIGKILL',
  })
  const [out, error] = await Promise.all([
    new Response(child.stdout).text(),
    new Response(child.stderr).text(),
  ])
  const status = await child.exited
  if (status === 0) return out
  const late = child.signalCode === 'SIGKILL' && performance.now() - beginMs >= timeoutMs
  const what = late ? `was not done within ${timeoutMs / 1000} s` : `ended with status ${status}`
  throw new Error(`${command.join(' ')} ${what}:\n${(error || out).slice(-LAST_CHARACTERS)}`)
}
