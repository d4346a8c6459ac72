import { EXIT } from './exit.ts'

/** The first Ctrl-C (or SIGTERM) interrupts the job, a second one ends the process at once. */
export function interruptBySignal(): { signal: AbortSignal; happened: Promise<void> } {
  const controller = new AbortController()
  const happened = new Promise<void>((resolve) => {
    const onSignal = () => {
      if (controller.signal.aborted) process.exit(EXIT.failed)
      controller.abort()
      resolve()
    }
    process.on('SIGINT', onSignal)
    process.on('SIGTERM', onSignal)
  })
  return { signal: controller.signal, happened }
}
