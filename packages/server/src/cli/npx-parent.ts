const LOOK_MS = 500

/**
 * `npx` does not pass signals on: when it is ended, what it runs lives on as an orphan, with its socket and its memory. A command
 * that serves ends with it.
 *
 * @param end what SIGTERM would do
 */
export function endWithNpx(end: () => void, env: NodeJS.ProcessEnv = process.env): void {
  // not what some other tool that npx runs has started
  if (env.npm_command !== 'exec' || !/\bckpt\b/.test(env.npm_lifecycle_script ?? '')) return
  const parent = process.ppid
  const timer = setInterval(() => {
    if (process.ppid === parent) return
    clearInterval(timer)
    end()
  }, LOOK_MS)
  timer.unref()
}
