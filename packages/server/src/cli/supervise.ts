import { EXIT } from './exit.ts'

/** A device that is lost again within this time is not coming back by itself. */
const QUICK_MS = 10_000
const QUICK_LOSSES_MAX = 5

/**
 * Runs this very command without `--supervise`, again and again while it ends with status 4 (the device is lost). Signals
 * go on to it. Gives up when the device is lost five times in a row within ten seconds of the start.
 *
 * @returns the exit status of the last run
 */
export async function supervise(command: readonly string[] = withoutSupervise()): Promise<number> {
  let child: Bun.Subprocess | null = null
  let stopping = false
  const forward = (signal: NodeJS.Signals) => {
    stopping = true
    child?.kill(signal)
  }
  process.on('SIGTERM', forward)
  process.on('SIGINT', forward)
  let quickLosses = 0
  for (;;) {
    const startedMs = performance.now()
    child = Bun.spawn([...command], { stdin: 'ignore', stdout: 'inherit', stderr: 'inherit' })
    const status = await child.exited
    if (stopping || status !== EXIT.deviceLost) return status
    quickLosses = performance.now() - startedMs < QUICK_MS ? quickLosses + 1 : 0
    if (quickLosses >= QUICK_LOSSES_MAX) {
      process.stderr.write(`ckpt: the device was lost ${quickLosses} times in a row, giving up\n`)
      return status
    }
    process.stderr.write('ckpt: the device was lost, starting the daemon again\n')
    // the driver needs a moment to clear what the process left
    await Bun.sleep(1000)
    if (stopping) return status
  }
}

function withoutSupervise(): string[] {
  return [process.execPath, ...process.argv.slice(1).filter((word) => word !== '--supervise')]
}
